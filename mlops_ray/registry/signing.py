"""Ed25519 signatures over packages: who signs, and whose are trusted.

The private key stays in its file and in the process that signs; it cannot be pickled, nor is it printed.
"""

import base64
import fcntl
import stat
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mlops_ray.config import Project
from mlops_ray.errors import PackageError, StorageError
from mlops_ray.storage import PRIVATE, Storage, replacing

ALGORITHM = "ed25519"
#: The operator's private key in the storage, where the project names no other, and its form.
KEY_FILE = "signing.key"
PEM = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
#: A group may read a key, as a mounted secret's does.
OTHERS = stat.S_IWGRP | stat.S_IRWXO
#: Public keys of which one must have signed; `None` where no signature is asked for.
Trusted = frozenset[str] | None


def own_key(project: Project, storage: Storage) -> Ed25519PrivateKey:
    """The key that signs: of the file that the project names, else of the storage, made there at first use.

    The file is PEM without a passphrase, as `openssl genpkey -algorithm ed25519` writes it. Raises
    `StorageError` where it is not.
    """
    named = project.signing.key
    path = Path(named) if named is not None else _made(storage)
    try:
        if path.stat().st_mode & OTHERS:
            raise StorageError(f"others may read or change the signing key {path}: chmod 600 it")
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise StorageError(f"cannot read the signing key {path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # What it says of the file is not for a log.
        raise StorageError(f"{path} is no private key in PEM without a passphrase") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise StorageError(f"{path} is a private key, but not of {ALGORITHM}")
    return key


def _made(storage: Storage) -> Path:
    """The file in the storage; of two processes that make it at once, both get the same."""
    path = storage.path(KEY_FILE)
    with storage.path(f"{KEY_FILE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            key = Ed25519PrivateKey.generate()
            with replacing(path, mode=PRIVATE) as new:
                new.write_bytes(key.private_bytes(*PEM))
    return path


def public(key: Ed25519PrivateKey) -> str:
    """The public half of a key, in base64: what others write under `signing.trusted`."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def trusted(project: Project, storage: Storage) -> frozenset[str]:
    """The public keys whose packages are served: one's own, and those that the project names."""
    return frozenset({public(own_key(project, storage)), *project.signing.trusted})


def signature(key: Ed25519PrivateKey, data: bytes) -> dict[str, str]:
    """What `signer` checks, as a document."""
    signed = base64.b64encode(key.sign(data)).decode()
    return {"algorithm": ALGORITHM, "key": public(key), "signature": signed}


def signer(document: Any, data: bytes, keys: frozenset[str]) -> str:
    """The one of these public keys that signed the data, as the document says.

    Raises `PackageError` with the reason where it did not.
    """
    said = document if isinstance(document, dict) else {}
    algorithm, key, signed = (said.get(name) for name in ("algorithm", "key", "signature"))
    if algorithm != ALGORITHM:
        raise PackageError(f"its signature is not of {ALGORITHM}")
    if not isinstance(key, str) or key not in keys:
        raise PackageError(f"it is signed by {key!r:.60}, and signing.trusted does not name this key")
    try:
        raw = base64.b64decode(signed, validate=True)  # type: ignore[arg-type]  # a TypeError is told, too
        Ed25519PublicKey.from_public_bytes(base64.b64decode(key, validate=True)).verify(raw, data)
    except (ValueError, TypeError, InvalidSignature):
        raise PackageError("its signature does not fit its files") from None
    return key
