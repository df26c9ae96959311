"""Where e-mail goes, as a project file says it: a server, and who is written to, in one address.

    smtp://user:password@mail.example.org/ops@example.org,boss@example.org?from=ml@example.org

`smtp` encrypts by STARTTLS (port 587) and `smtps` from the start (465); `?tls=no` does not (25), for a relay
on a network of one's own. What is written as `%40` or so is read back, so that a password may hold any sign.
"""

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

Tls = Literal["starttls", "from the start", "no"]
#: By how it is encrypted.
PORTS: dict[Tls, int] = {"starttls": 587, "from the start": 465, "no": 25}
#: One mailbox, without a name beside it: nothing in it ends a header, or begins another mailbox.
_MAILBOX = re.compile(r"[^\s@,;:<>()\[\]\"\\]+@[A-Za-z0-9.-]+")
EXAMPLE = "smtp://user:password@mail.example.org/ops@example.org"


@dataclass(frozen=True)
class Mail:
    """A server, how to come in, and who is written to; `sender` is empty where the file does not say."""

    host: str
    port: int
    tls: Tls
    to: tuple[str, ...]
    sender: str = ""
    user: str = ""
    password: str = field(default="", repr=False)


def mail(address: str) -> Mail:
    """What an address says; raises `ValueError`, which shows nothing of the address, where it says nothing.

    >>> mail("smtp://ann:s%40fe@mail.example.org/ops@example.org?from=ml@example.org")
    Mail(host='mail.example.org', port=587, tls='starttls', to=('ops@example.org',), sender='ml@example.org',
         user='ann')
    >>> mail("smtp://localhost/ops@example.org?tls=no").port
    25
    """
    try:
        parts = urlsplit(address)
        options = parse_qs(parts.query, strict_parsing=bool(parts.query))
        said = {key: values[-1] for key, values in options.items()}
        port, host = parts.port, parts.hostname
    except ValueError:
        raise ValueError(f"cannot be read as an address; write e.g. {EXAMPLE}") from None
    if parts.scheme not in ("smtp", "smtps") or not host or parts.fragment:
        raise ValueError(f"write e.g. {EXAMPLE}, signs such as @ / ? # of a password as %40 %2F %3F %23")
    if said.keys() - {"from", "tls"}:
        raise ValueError("an option is not known; there are from=ADDRESS and tls=no")
    to = tuple(unquote(parts.path).strip("/").split(","))
    sender = said.get("from", "")
    if not all(_MAILBOX.fullmatch(each) for each in (*to, *([sender] if sender else []))):
        raise ValueError(f"who is written to, or from= whom, is no mailbox; write e.g. {EXAMPLE}")
    tls = _tls(parts, said.get("tls", "yes"))
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not (user + password).isascii():
        raise ValueError("a user and a password may hold signs of ASCII alone, as Python's smtplib has it")
    if password and tls == "no":
        raise ValueError("with tls=no everybody on the way could read the password")
    return Mail(host, port or PORTS[tls], tls, to, sender, user, password)


def _tls(parts: SplitResult, said: str) -> Tls:
    if said not in ("yes", "no") or (said == "no" and parts.scheme == "smtps"):
        raise ValueError("tls is yes or no, and with smtps it is yes")
    if said == "no":
        return "no"
    return "from the start" if parts.scheme == "smtps" else "starttls"
