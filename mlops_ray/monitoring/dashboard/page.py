"""The HTML of the dashboard and of its login, with the headers that confine them.

The page asks no other address and runs no script but its own: `default-src 'none'`, and its one script and
its one style are allowed by a digest of their text.
"""

import base64
import hashlib
import html
import re
from functools import lru_cache
from importlib import resources

FILES = ("index.html", "login.html")
_ERROR = "<!-- error -->"


def dashboard() -> bytes:
    """The page; it fetches its data itself."""
    return _file("index.html").encode()


def login_form(error: str = "") -> bytes:
    """The form that asks for a key, with what was wrong with the last one."""
    shown = f'<p class="error" role="alert">{html.escape(error)}</p>' if error else ""
    return _file("login.html").replace(_ERROR, shown).encode()


@lru_cache(maxsize=1)
def headers() -> dict[str, str]:
    """The headers of both pages."""
    texts = [_file(name) for name in FILES]
    scripts = " ".join(
        _digest(found) for text in texts for found in re.findall(r"<script>(.*?)</script>", text, re.S)
    )
    styles = " ".join(
        _digest(found) for text in texts for found in re.findall(r"<style>(.*?)</style>", text, re.S)
    )
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; connect-src 'self'; img-src data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "same-origin",
        "cache-control": "no-store",
    }


@lru_cache(maxsize=len(FILES))
def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
