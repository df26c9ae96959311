"""Who may call: keys with roles, kept hashed.

A key is 256 random bits, so that one round of SHA-256 is enough to keep it: there is nothing to guess.
"""

import contextlib
import fcntl
import hashlib
import math
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mlops_ray import audit
from mlops_ray.errors import ForbiddenError, UnauthorizedError, UsageError
from mlops_ray.storage import PRIVATE, Storage

Role = Literal["predict", "label", "read", "admin"]
FILE = "keys.json"
#: The key that a local start makes for its own curl line.
LOCAL = "local"
#: A revoked key must be refused within a second.
RELOAD_S = 0.5
#: Of the digest of a key, in hex, by which the audit record names it; it tells nothing of the key.
ID_DIGITS = 12


@dataclass(frozen=True)
class Caller:
    """Whose key it is, what it may do, and how often a second, where that is limited."""

    name: str
    role: str
    rate: float | None = None


def add(storage: Storage, name: str, role: str, *, rate: float | None = None) -> str:
    """A new key; it is shown here and never again. `rate` is how often a second it may ask each replica.

    Raises `UsageError` for a name that is taken or cannot be printed, a role that does not exist, and a rate
    that is none.
    """
    if not name.isprintable():
        raise UsageError(f"the name of a key is made of characters that can be printed, unlike {name!r}")
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise UsageError(f"a rate is a number of requests a second above 0, not {rate:g}")
    if role not in get_args(Role):
        raise UsageError(f"no role {role!r}; there are {', '.join(get_args(Role))}")
    with _changing(storage) as known:
        if name in known:
            raise UsageError(f"a key named {name!r} exists; revoke it first, or take another name")
        key = secrets.token_urlsafe(32)
        made = {"role": role, "sha256": _digest(key)} | ({"rate": rate} if rate is not None else {})
        _tell(storage, "a key was made", name, made)
        known[name] = made
    return key


def revoke(storage: Storage, name: str) -> None:
    """Takes a key away; services refuse it within a second, whether that can be recorded or not."""
    with _changing(storage) as known:
        if name not in known:
            raise UsageError(f"no key named {name!r}; there are {', '.join(sorted(known)) or 'none'}")
        entry = known.pop(name)
    _tell(storage, "a key was revoked", name, entry, is_done=True)


def stamp(storage: Storage, name: str) -> str:
    """Changes with the key behind a name; empty where there is none."""
    return str(_read(storage).get(name, {}).get("sha256", ""))


def names(storage: Storage) -> dict[str, str]:
    """The role of each key by its name."""
    return {name: entry["role"] for name, entry in sorted(_read(storage).items())}


def ensure_local(storage: Storage) -> str:
    """The path of a file (mode 0600) with a key of role `admin` for the person at this machine."""
    path = storage.path("local.key")
    known = _read(storage)
    key = path.read_text().strip() if path.exists() else ""
    if not key or known.get(LOCAL, {}).get("sha256") != _digest(key):
        if LOCAL in known:
            revoke(storage, LOCAL)
        key = add(storage, LOCAL, "admin")
        path.touch(mode=PRIVATE)
        path.chmod(PRIVATE)
        path.write_text(key + "\n")
    return str(path)


@dataclass
class Keyring:
    """The keys as a running service sees them: read again when they may have changed."""

    storage: Storage
    _callers: dict[str, Caller] = field(default_factory=dict)
    _read_at: float = float("-inf")

    def authorize(self, authorization: str | None, *roles: Role) -> Caller:
        """The caller, whose key comes as `Bearer KEY` and is of one of the roles; `admin` may do everything.

        Raises `UnauthorizedError` and `ForbiddenError`.
        """
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise UnauthorizedError("a key is needed: send the header 'Authorization: Bearer KEY'")
        # Found by its digest, of which nobody who guesses can tell how much of it was right.
        caller = self._current().get(_digest(key.strip()))
        if caller is None:
            raise UnauthorizedError("the key is not known here, or was revoked")
        if caller.role not in roles and caller.role != "admin":
            needed = " or ".join(map(repr, roles))
            raise ForbiddenError(f"the key {caller.name!r} has the role {caller.role!r}; this needs {needed}")
        return caller

    def _current(self) -> dict[str, Caller]:
        if time.monotonic() - self._read_at > RELOAD_S:
            self._callers = {
                entry["sha256"]: Caller(name, entry["role"], entry.get("rate"))
                for name, entry in _read(self.storage).items()
            }
            self._read_at = time.monotonic()
        return self._callers


def _tell(storage: Storage, what: str, name: str, entry: dict[str, Any], *, is_done: bool = False) -> None:
    about = {key: value for key, value in entry.items() if key != "sha256"}
    about |= {"name": name, "id": entry["sha256"][:ID_DIGITS]}
    audit.append(storage, what, audit.who(), about, is_done=is_done)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _read(storage: Storage) -> dict[str, dict[str, Any]]:
    return storage.read_json(FILE) or {}


@contextlib.contextmanager
def _changing(storage: Storage) -> Iterator[dict[str, dict[str, Any]]]:
    """The entries, written again at the end; one writer at a time, so that no revocation is lost."""
    with storage.path(f"{FILE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entries = _read(storage)
        yield entries
        storage.write_json(entries, FILE, mode=PRIVATE)
