"""The files of the dashboard and of its login, with the headers that confine them.

The page asks no other address and runs no script but its own files: `default-src 'none'`; what stands inside
the form of the login is allowed by a digest of its text. The files lie at an address with a digest of them
all, so that browsers keep them for good and a new version is another address.
"""

import base64
import gzip
import hashlib
import html
import re
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

#: Where the files are served, below a digest.
ASSETS = "/dashboard/assets"
TYPES = {
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "uplot": "text/plain; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
}
#: Smaller answers are sent as they are.
LEAST_GZIPPED = 1_000
#: How hard it is tried: files once, documents whenever they are asked for.
OF_FILES, OF_DOCUMENTS = 9, 4
_ERROR = "<!-- error -->"
_PLACE = "{{assets}}"


class Asset(NamedTuple):
    """A file, as it is and compressed."""

    type: str
    plain: bytes
    gzipped: bytes


def dashboard() -> bytes:
    """The page; it fetches its files and its data itself."""
    return _file("index.html").replace(_PLACE, f"{ASSETS}/{digest()}").encode()


def login_form(error: str = "") -> bytes:
    """The form that asks for a key, with what was wrong with the last one."""
    shown = f'<p class="error" role="alert">{html.escape(error)}</p>' if error else ""
    return _file("login.html").replace(_ERROR, shown).encode()


@lru_cache(maxsize=1)
def assets() -> dict[str, Asset]:
    """The files by name."""
    found = {}
    for file in resources.files(__package__).joinpath("assets").iterdir():
        plain = file.read_bytes()
        kind = TYPES[file.name.rpartition(".")[2]]
        found[file.name] = Asset(kind, plain, gzip.compress(plain, OF_FILES, mtime=0))
    return found


@lru_cache(maxsize=1)
def digest() -> str:
    """Changes with any of the files."""
    text = b"".join(name.encode() + asset.plain for name, asset in sorted(assets().items()))
    return hashlib.sha256(text).hexdigest()[:16]


@lru_cache(maxsize=1)
def headers() -> dict[str, str]:
    """The headers of both pages."""
    login = _file("login.html")
    scripts, styles = (
        " ".join(_digest(found) for found in re.findall(rf"<{tag}>(.*?)</{tag}>", login, re.S))
        for tag in ("script", "style")
    )
    policy = (
        f"default-src 'none'; script-src 'self' {scripts}; style-src 'self' {styles}; connect-src 'self'; "
        "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "same-origin",
        "cache-control": "no-store",
    }


def asset_headers(type: str) -> dict[str, str]:
    """The headers of a file, which is never another one at the same address."""
    return _kept(type, "max-age=31536000, immutable")


def document_headers(tag: str) -> dict[str, str]:
    """The headers of a JSON document, of which the browser may ask whether it is still the same."""
    return _kept("application/json", "no-cache") | {"etag": tag}


def _kept(type: str, how: str) -> dict[str, str]:
    """The headers of what the browser keeps."""
    return {
        "content-type": type,
        "cache-control": f"private, {how}",
        "x-content-type-options": "nosniff",
        "vary": "accept-encoding",
    }


@lru_cache(maxsize=2)
def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
