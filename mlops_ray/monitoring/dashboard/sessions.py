"""Logging in to the dashboard: a key is changed for a signed cookie, which holds no key.

A session ends after its time, and with the key of its holder's name.
"""

import hashlib
import hmac
import secrets
import time

from mlops_ray import keys
from mlops_ray.storage import PRIVATE, Storage

COOKIE = "mlops_session"
#: A working day; then the key is asked for again.
LIFETIME_S = 12 * 3600
SECRET = "session.json"  # noqa: S105 - a file's name
READERS = ("read", "admin")


class Sessions:
    """Makes and checks cookies; their secret lies in the storage, so that all gateways share it."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        document = storage.read_json(SECRET)
        if document is None:
            document = {"secret": secrets.token_hex(32)}
            storage.write_json(document, SECRET, mode=PRIVATE)
        self._secret = bytes.fromhex(document["secret"])

    def cookie(self, name: str, *, now: float | None = None) -> str:
        """The value of `Set-Cookie` for the holder of the key of this name.

        Scripts cannot read it, and no other site's page can make a browser send it.
        """
        until = int((time.time() if now is None else now) + LIFETIME_S)
        token = f"{name.encode().hex()}.{until}"
        attributes = f"Path=/dashboard; HttpOnly; SameSite=Strict; Max-Age={LIFETIME_S}"
        return f"{COOKIE}={token}.{self._sign(token, name)}; {attributes}"

    def role(self, header: str, *, now: float | None = None) -> str | None:
        """The role of whose session the header `Cookie` holds; `None` where it is over, or its key gone."""
        try:
            # Not by `http.cookies`: of Python 3.11, what quotes cost it grows with the square of their number
            # (CVE-2024-7592), and nobody needs a key to send them. Ours need none.
            sent = dict(part.strip().partition("=")[::2] for part in header.split(";"))
            token, _, signature = sent.get(COOKIE, "").rpartition(".")
            written, until = token.split(".")
            name = bytes.fromhex(written).decode()
            if not hmac.compare_digest(signature.encode(), self._sign(token, name).encode()):
                return None
        except ValueError:
            return None
        if (time.time() if now is None else now) > int(until):
            return None
        role = keys.names(self._storage).get(name)
        return role if role in READERS else None

    def _sign(self, token: str, name: str) -> str:
        """Holds for the key that the name has now, not for one that is made under it later."""
        message = f"{token}.{keys.stamp(self._storage, name)}"
        return hmac.new(self._secret, message.encode(), hashlib.sha256).hexdigest()
