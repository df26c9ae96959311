"""Who may call."""

import stat

import pytest

from mlops_ray import audit, keys
from mlops_ray.errors import ForbiddenError, StorageError, UnauthorizedError, UsageError
from mlops_ray.storage import Storage

from .conftest import unrecordable


def test_a_key_opens_what_its_role_allows_and_no_more(storage: Storage) -> None:
    key = keys.add(storage, "web", "predict")
    ring = keys.Keyring(storage)
    assert ring.authorize(f"Bearer {key}", "predict") == keys.Caller("web", "predict")
    with pytest.raises(ForbiddenError, match="has the role 'predict'; this needs 'admin'"):
        ring.authorize(f"Bearer {key}", "admin")


def test_an_admin_may_do_everything(storage: Storage) -> None:
    key = keys.add(storage, "root", "admin")
    for role in ("predict", "label", "read", "admin"):
        assert keys.Keyring(storage).authorize(f"Bearer {key}", role).name == "root"  # type: ignore[arg-type]


@pytest.mark.parametrize("sent", [None, "", "Bearer", "Bearer ", "Basic x", "Bearer wrong", "Bearer ü€"])
def test_no_key_and_a_wrong_key_are_refused(storage: Storage, sent: str | None) -> None:
    keys.add(storage, "web", "predict")
    with pytest.raises(UnauthorizedError):
        keys.Keyring(storage).authorize(sent, "predict")


def test_a_key_is_kept_hashed_in_a_private_file(storage: Storage) -> None:
    key = keys.add(storage, "web", "predict")
    file = storage.path("keys.json")
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_revoked_key_is_refused_when_the_ring_reads_again(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "RELOAD_S", 0.0)
    key = keys.add(storage, "web", "predict")
    ring = keys.Keyring(storage)
    ring.authorize(f"Bearer {key}", "predict")
    keys.revoke(storage, "web")
    with pytest.raises(UnauthorizedError):
        ring.authorize(f"Bearer {key}", "predict")


def test_names_are_unique_and_roles_exist(storage: Storage) -> None:
    keys.add(storage, "web", "predict")
    with pytest.raises(UsageError, match="a key named 'web' exists"):
        keys.add(storage, "web", "read")
    with pytest.raises(UsageError, match="no role 'king'"):
        keys.add(storage, "other", "king")
    with pytest.raises(UsageError, match="no key named 'nobody'"):
        keys.revoke(storage, "nobody")
    # As the bytes of a command that are no UTF-8 come.
    for name in ("\udcff", "web\x9b2J"):
        with pytest.raises(UsageError, match="characters that can be printed, unlike"):
            keys.add(storage, name, "read")
    assert keys.names(storage) == {"web": "predict"}


def test_the_local_key_is_made_once_and_again_when_it_is_lost(storage: Storage) -> None:
    path = storage.path("local.key")
    assert keys.ensure_local(storage) == str(path)
    first = path.read_text()
    keys.ensure_local(storage)
    assert path.read_text() == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    keys.ensure_local(storage)
    assert keys.Keyring(storage).authorize(f"Bearer {path.read_text().strip()}", "admin").name == "local"


def test_a_key_may_be_limited_to_so_many_requests_a_second(storage: Storage) -> None:
    key = keys.add(storage, "batch", "predict", rate=2.5)
    assert keys.Keyring(storage).authorize(f"Bearer {key}", "predict").rate == 2.5
    for rate in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="requests a second above 0"):
            keys.add(storage, "other", "predict", rate=rate)


def test_who_made_and_revoked_a_key_is_recorded_and_never_the_key(storage: Storage) -> None:
    key = keys.add(storage, "web", "predict", rate=2.0)
    id = keys.stamp(storage, "web")[: keys.ID_DIGITS]
    keys.revoke(storage, "web")
    about = {"name": "web", "role": "predict", "rate": 2.0, "id": id}
    assert [(each["what"], each["by"], each["about"]) for each in audit.entries(storage)] == [
        ("a key was made", audit.who(), about),
        ("a key was revoked", audit.who(), about),
    ]
    assert not any(key in path.read_text() for path in storage.path("audit", "x").parent.iterdir())


def test_a_key_is_not_made_where_that_cannot_be_recorded_and_revoked_all_the_same(storage: Storage) -> None:
    keys.add(storage, "web", "predict")
    unrecordable(storage)
    with pytest.raises(StorageError, match=r"audit record cannot be written.* is not done"):
        keys.add(storage, "other", "read")
    assert keys.names(storage) == {"web": "predict"}
    with pytest.raises(StorageError, match=r"^a key was revoked, but the audit record cannot be written"):
        keys.revoke(storage, "web")
    assert keys.names(storage) == {}
