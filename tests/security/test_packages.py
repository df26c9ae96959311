"""A hostile package is refused for its reason, before anything of it is parsed, made or run."""

import base64
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import stat
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import skops.io  # noqa: F401 - its import takes seconds, which no time limit below is to count
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from mlops_ray.config import Project
from mlops_ray.errors import PackageError, StorageError
from mlops_ray.registry import models, package, signing
from mlops_ray.registry.estimator import EstimatorModel
from mlops_ray.registry.package import Package
from mlops_ray.registry.predictor import Predictor
from mlops_ray.serving.versions import loader
from mlops_ray.storage import Storage
from tests.registry.made import rows, write
from tests.serving.packages import PROJECT

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ATTACKER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
TRUSTED = frozenset({signing.public(KEY)})
FILES = (
    "coefficients.json",
    "digests.json",
    "encoder.json",
    "examples.json",
    "package.json",
    "reference.json",
)
#: Larger than the disk it lies on need be: it has no contents.
HUGE_BYTES = 10 * 2**30


class Canary:
    """Writes a file as soon as anybody makes one of it, or of its pickle."""

    def __init__(self, path: str) -> None:
        self.path = path
        Path(path).write_text("it ran")

    def __reduce__(self) -> tuple[Any, ...]:
        return Canary, (self.path,)


#: As skops names it.
CANARY = f"{Canary.__module__}.Canary"


def _unmade(path: str = "ran") -> Canary:
    made = Canary.__new__(Canary)
    made.path = path
    return made


def _pickled(folder: Path) -> bytes:
    return pickle.dumps(_unmade(str(folder.parent / "ran")))


def _digests(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads((folder / "digests.json").read_bytes())
    return found


def _sign(folder: Path, head: bytes, key: Ed25519PrivateKey | None = KEY) -> None:
    """Makes these the digests, signed by a key, or with the signature that was there."""
    (folder / "digests.json").write_bytes(head)
    if key is not None:
        (folder / "signature.json").write_bytes(orjson.dumps(signing.signature(key, head)))


def _list(folder: Path, key: Ed25519PrivateKey | None = KEY, **names: str) -> None:
    """Makes the digests those of the files that are there, and of `names`."""
    files = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.name not in ("digests.json", "signature.json")
    }
    listed = {**_digests(folder), "files": files | names}
    _sign(folder, orjson.dumps(listed, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS), key)


def _flip(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        data = (folder / name).read_bytes()
        at = len(data) // 2
        (folder / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])

    return harm


def _rename(folder: Path) -> None:
    (folder / "encoder.json").rename(folder / "encoder2.json")


def _swap(folder: Path) -> None:
    encoder, reference = (folder / "encoder.json").read_bytes(), (folder / "reference.json").read_bytes()
    (folder / "encoder.json").write_bytes(reference)
    (folder / "reference.json").write_bytes(encoder)


def _link(folder: Path) -> None:
    (folder / "encoder.json").rename(folder.parent / "outside.json")
    (folder / "encoder.json").symlink_to(folder.parent / "outside.json")


def _link_folder(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


def _pipe(folder: Path) -> None:
    (folder / "encoder.json").unlink()
    os.mkfifo(folder / "encoder.json")


def _grow(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / name).touch()
        os.truncate(folder / name, HUGE_BYTES)

    return harm


def _crowd(folder: Path) -> None:
    for number in range(1000):
        (folder / f"{number}.json").touch()


def _put(name: str, data: Callable[[Path], bytes], key: Ed25519PrivateKey | None) -> Callable[[Path], None]:
    """Another file in place of one, digests and signature made anew."""

    def harm(folder: Path) -> None:
        (folder / name).write_bytes(data(folder))
        _list(folder, key)

    return harm


def _unsigned_pickle(folder: Path) -> None:
    _put("coefficients.json", _pickled, None)(folder)
    (folder / "signature.json").unlink()


def _replay(folder: Path) -> None:
    other = write(folder.parent / "other", params={"alpha": 2.0}, sign=KEY).folder
    shutil.copy(other / "signature.json", folder / "signature.json")


def _newer_contents(folder: Path) -> None:
    """The contents of another version below the signature of this one."""
    before = (folder / "signature.json").read_bytes()
    write(folder, params={"alpha": 2.0})
    (folder / "signature.json").write_bytes(before)


def _twice(folder: Path) -> None:
    head = (folder / "digests.json").read_bytes()
    _sign(folder, head.replace(b'"files": {', b'"files": {\n    "encoder.json": "00",', 1))


def _age(folder: Path) -> None:
    _sign(folder, orjson.dumps({**_digests(folder), "format": 99}))


def _say(**changes: Any) -> Callable[[Path], None]:
    """Changes what the signature says."""

    def harm(folder: Path) -> None:
        said = orjson.loads((folder / "signature.json").read_bytes())
        (folder / "signature.json").write_bytes(orjson.dumps(said | changes))

    return harm


def _borrow_name(folder: Path) -> None:
    """Signed by the attacker, in the name of the trusted key."""
    signed = signing.signature(ATTACKER, (folder / "digests.json").read_bytes())["signature"]
    _say(signature=signed)(folder)


def _cut(folder: Path) -> None:
    said = orjson.loads((folder / "signature.json").read_bytes())["signature"]
    _say(signature=said[:-9])(folder)


def _write_signature(data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "signature.json").write_bytes(data)


NOTHING: tuple[str, ...] = ()
SIGNATURE = ("signature.json",)
#: What has a signature that holds may be parsed; what the digests say of it is then compared.
VOUCHED = ("signature.json", "digests.json")
#: By name: what is done to a signed package, what may be parsed before it is refused, and the reason.
CORPUS: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    **{
        f"a changed byte in {name}": (_flip(name), VOUCHED, f"is damaged: {re.escape(name)} is not what")
        for name in FILES
        if name != "digests.json"
    },
    "a changed byte in digests.json": (_flip("digests.json"), SIGNATURE, "signature does not fit its files"),
    "a changed byte in signature.json": (_flip("signature.json"), SIGNATURE, "cannot be trusted|is not JSON"),
    "an added file": (lambda f: (f / "more.py").write_text("pass"), VOUCHED, r"does not list: 'more\.py'"),
    "a removed file": (lambda f: (f / "examples.json").unlink(), VOUCHED, r"lacks the file 'examples\.json'"),
    "no digests": (lambda f: (f / "digests.json").unlink(), NOTHING, r"it has no digests\.json"),
    "a renamed file": (_rename, VOUCHED, r"does not list: 'encoder2\.json'"),
    "swapped files": (_swap, VOUCHED, r"is damaged: encoder\.json"),
    "a link to outside": (_link, NOTHING, r"'encoder\.json', which is not a plain file"),
    "a link for a folder": (_link_folder, NOTHING, "there is no model package at"),
    "a pipe": (_pipe, NOTHING, r"'encoder\.json', which is not a plain file"),
    "a folder within": (lambda f: (f / "sub").mkdir(), NOTHING, "'sub', which is not a plain file"),
    "a name that climbs": (lambda f: _list(f, **{"../x.json": "0" * 64}), VOUCHED, r"lacks the file '\.\./x"),
    "an absolute name": (
        lambda f: _list(f, **{"/etc/passwd": "0" * 64}),
        VOUCHED,
        "lacks the file '/etc/pas",
    ),
    "a key twice": (_twice, VOUCHED, r"digests\.json is not as it was written"),
    "a digest that is none": (
        lambda f: _list(f, **{"encoder.json": "zz"}),
        VOUCHED,
        r"damaged: encoder\.json",
    ),
    "digests of another form": (lambda f: _sign(f, b'{"format": 3, "files": []}'), VOUCHED, "lists no files"),
    "a later format": (_age, VOUCHED, "has the format 99; this version of mlops_ray reads"),
    "a huge added file": (_grow("more.bin"), NOTHING, r"'more\.bin', which is too large"),
    "a huge model": (_grow("coefficients.json"), NOTHING, r"'coefficients\.json', which is too large"),
    "huge digests": (_grow("digests.json"), NOTHING, r"'digests\.json', which is too large"),
    "a huge signature": (_write_signature(b" " * 5000), NOTHING, r"'signature\.json', which is too large"),
    "many files": (_crowd, NOTHING, "has over 16 files"),
    "a deep signature": (_write_signature(b"[" * 4000), SIGNATURE, r"signature\.json is not JSON"),
    "a signature that is a list": (_write_signature(b"[]"), SIGNATURE, "signature is not of ed25519"),
    "deep digests": (lambda f: _sign(f, b"[" * 60_000), VOUCHED, r"digests\.json is not JSON"),
    "a deep manifest": (
        _put("package.json", lambda f: b'{"name":' * 50_000, KEY),
        (*VOUCHED, "package.json"),
        r"package\.json is not JSON",
    ),
    "a pickle that nobody signed": (_unsigned_pickle, NOTHING, "is not signed"),
    "a pickle that its maker signed": (
        _put("coefficients.json", _pickled, ATTACKER),
        SIGNATURE,
        f"signed by '{re.escape(signing.public(ATTACKER))}', and signing.trusted does not name this key",
    ),
    "a pickle below the old signature": (
        _put("coefficients.json", _pickled, None),
        SIGNATURE,
        "signature does not fit its files",
    ),
    "a pickle for a manifest": (
        _put("package.json", _pickled, KEY),
        (*VOUCHED, "package.json"),
        r"package\.json is not JSON",
    ),
    "no signature": (lambda f: (f / "signature.json").unlink(), NOTHING, "is not signed"),
    "a signature of another package": (_replay, SIGNATURE, "signature does not fit its files"),
    "a signature of an older version": (_newer_contents, SIGNATURE, "signature does not fit its files"),
    "a signature in another's name": (_borrow_name, SIGNATURE, "signature does not fit its files"),
    "another algorithm": (_say(algorithm="none"), SIGNATURE, "signature is not of ed25519"),
    "no algorithm": (_say(algorithm=None), SIGNATURE, "signature is not of ed25519"),
    "a cut signature": (_cut, SIGNATURE, "signature does not fit its files"),
    "a signature that is no text": (_say(signature=5), SIGNATURE, "signature does not fit its files"),
    "a signature of spaces": (_say(signature=" " * 88), SIGNATURE, "signature does not fit its files"),
    "a short key": (_say(key=base64.b64encode(b"short").decode()), SIGNATURE, "does not name this key"),
    "a list of keys": (_say(key=sorted(TRUSTED)), SIGNATURE, "does not name this key"),
}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """All that is given to a parser of ours from here on; a model is never to be made."""
    found: list[bytes] = []
    loads = orjson.loads

    def recorded(data: bytes) -> Any:
        found.append(data)
        return loads(data)

    def never(*_: object) -> None:
        raise AssertionError("a model was made")

    monkeypatch.setattr(orjson, "loads", recorded)
    monkeypatch.setattr(models, "load", never)
    monkeypatch.setattr(pickle, "loads", never)
    return found


@pytest.mark.parametrize("what", CORPUS)
def test_a_hostile_package_is_refused_before_what_nobody_vouches_for_is_parsed(
    what: str, tmp_path: Path, parsed: list[bytes]
) -> None:
    harm, may_be_parsed, reason = CORPUS[what]
    folder = write(tmp_path / "demo", sign=KEY).folder
    harm(folder)
    parsed.clear()
    begin = time.perf_counter()
    with pytest.raises(PackageError, match=reason) as error:
        Predictor.load(folder, None, trusted=TRUSTED)
    assert time.perf_counter() - begin < 5.0
    assert "\n" not in str(error.value)
    assert set(parsed) <= {(folder / name).read_bytes() for name in may_be_parsed}
    assert not (tmp_path / "ran").exists()


def test_the_pickle_of_the_corpus_runs_where_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(_pickled(tmp_path / "demo"))
    assert (tmp_path / "ran").exists()


def test_a_sound_signed_package_is_read_and_answers(tmp_path: Path) -> None:
    written = write(tmp_path / "demo", sign=KEY)
    predictor = Predictor.load(tmp_path / "demo", None, digest=written.digest, trusted=TRUSTED)
    assert predictor.package == written
    assert written.signer == signing.public(KEY)
    assert np.isfinite(predictor.predict_features(rows(5))).all()


def test_a_replica_loads_what_a_trusted_key_signed_and_nothing_else(storage: Storage) -> None:
    load = loader(storage, str(storage.path("online.db")), frozenset(), TRUSTED, frozenset())
    for key in (KEY, None, ATTACKER):
        written = write(storage.path("demo"), sign=key)
        entry = {"version": "1", "digest": written.digest, "package": "demo"}
        if key is KEY:
            assert load(entry).digest == written.digest
        else:
            with pytest.raises(PackageError, match=r"is not signed|does not name this key"):
                load(entry)


def _replaced(folder: Path) -> None:
    (folder / "coefficients.json").write_bytes(_pickled(folder))


def _replaced_by_link(folder: Path) -> None:
    (folder / "coefficients.json").rename(folder.parent / "outside.json")
    (folder / "coefficients.json").symlink_to(folder.parent / "outside.json")


def _replaced_by_pipe(folder: Path) -> None:
    (folder / "coefficients.json").unlink()
    os.mkfifo(folder / "coefficients.json")


def _replaced_by_bomb(folder: Path) -> None:
    os.truncate(folder / "coefficients.json", HUGE_BYTES)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (_replaced, r"is damaged: coefficients\.json"),
        (_replaced_by_link, "cannot read .*coefficients"),
        (_replaced_by_pipe, "is not a plain file, or too large"),
        (_replaced_by_bomb, "is not a plain file, or too large"),
        (lambda folder: (folder / "coefficients.json").unlink(), "cannot read .*coefficients"),
    ],
)
def test_what_takes_a_files_place_between_check_and_use_is_not_read(
    harm: Callable[[Path], object], reason: str, tmp_path: Path, parsed: list[bytes]
) -> None:
    read = package.read(write(tmp_path / "demo", sign=KEY).folder, trusted=TRUSTED)
    harm(read.folder)
    parsed.clear()
    with pytest.raises(PackageError, match=reason):
        _ = read.model
    assert parsed == []


def test_a_change_by_way_of_a_second_name_is_noticed(tmp_path: Path) -> None:
    read = package.read(write(tmp_path / "demo", sign=KEY).folder, trusted=TRUSTED)
    os.link(read.folder / "encoder.json", tmp_path / "second.json")
    assert package.read(read.folder, trusted=TRUSTED) == read
    (tmp_path / "second.json").write_text("{}")
    with pytest.raises(PackageError, match="is damaged"):
        _ = read.encoder


# ---------------------------------------------------------------- estimators


def _packed(folder: Path, data: bytes) -> Package:
    """A signed package whose model is this skops file: whoever signs may be mistaken."""

    class Given(EstimatorModel):
        def predict(self, matrix: Any) -> Any:
            return np.zeros(len(matrix))

    return write(folder, model=Given(data, None), sign=KEY)


def _node(kind: str, path: str, number: int, **rest: Any) -> dict[str, Any]:
    module, _, name = path.rpartition(".")
    return {"__class__": name, "__module__": module, "__loader__": kind, "__id__": number, **rest}


def _zipped(schema: dict[str, Any] | str, compression: int = zipfile.ZIP_STORED, **parts: bytes) -> bytes:
    buffer = io.BytesIO()
    text = schema if isinstance(schema, str) else json.dumps(schema | {"protocol": 2, "_skops_version": "0"})
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name.replace("_", "."), data)
        archive.writestr("schema.json", text)
    return buffer.getvalue()


def _array(number: int, file: str) -> dict[str, Any]:
    return _node("NdArrayNode", "numpy.ndarray", number, type="numpy", file=file)


def _list_of(number: int, *content: Any) -> dict[str, Any]:
    return _node("ListNode", "builtins.list", number, content=list(content))


def _calls(path: str, argument: str) -> dict[str, Any]:
    """An object that is made by calling what stands at this path."""
    text = _node("JsonNode", "builtins.str", 3, content=json.dumps(argument), is_json=True)
    return _node(
        "ConstructorFromReduceNode", path, 1, content=_node("TupleNode", "builtins.tuple", 2, content=[text])
    )


def _growing() -> dict[str, Any]:
    """Forty lists of which each holds the next twice: 2 ** 40 visits."""
    inner: dict[str, Any] = _list_of(100)
    for number in range(40):
        inner = _list_of(number + 1, inner, {"__id__": inner["__id__"]})
    return inner


def _numpy(array: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


ZEROS = _numpy(np.zeros(10_000))
SKOPS: dict[str, tuple[bytes, str]] = {
    "a type that nobody allows": (
        _zipped(_calls(CANARY, "ran")),
        r"holds .*test_packages\.Canary, which the",
    ),
    "a call of the system": (_zipped(_calls("posix.system", "touch ran")), r"holds posix\.system, which the"),
    "a partial call": (
        _zipped(
            _node(
                "PartialNode",
                "functools.partial",
                1,
                content={
                    "func": _node("FunctionNode", "os.system", 2),
                    "args": _node("TupleNode", "builtins.tuple", 3, content=[]),
                    "kwds": _list_of(4),
                    "namespace": _list_of(5),
                },
            )
        ),
        r"holds functools\.partial, os\.system",
    ),
    "a pickle": (b"\x80\x04.", "not a zip file"),
    "a pickle in its midst": (
        _zipped(_array(1, "a.npy"), a_npy=pickle.dumps([1])),
        r"its part 'a\.npy' is no NumPy array",
    ),
    "a pickle in an array": (
        _zipped(_array(1, "a.npy"), a_npy=_numpy(np.array([_unmade()], object), allow_pickle=True)),
        "Object arrays cannot be loaded",
    ),
    "a zip within": (
        _zipped(_array(1, "a.npy"), a_npy=_zipped({}, zipfile.ZIP_DEFLATED)),
        r"its part 'a\.npy' is no NumPy array",
    ),
    "a bomb": (_zipped({}, zipfile.ZIP_DEFLATED, a_npy=bytes(2**26)), "its parts are larger than the file"),
    "a part that is read twice": (
        _zipped(_list_of(1, _array(2, "a.npy"), _array(3, "a.npy")), a_npy=ZEROS),
        "names something twice",
    ),
    "an object without a number": (
        _zipped(_list_of(1, _array(0, "a.npy"), _array(0, "a.npy")), a_npy=ZEROS),
        "names something twice",
    ),
    "objects that refer to each other": (_zipped(_growing()), "names something twice"),
    "deep lists": (_zipped('{"a":' * 100_000), "recursion"),
    "no schema": (
        _zipped(_array(1, "a.npy")).replace(b"schema.json", b"schema.jsom"),
        r"has no schema\.json",
    ),
    "no estimator": (_zipped(_list_of(1)), "is no estimator"),
}


@pytest.mark.parametrize("what", SKOPS)
def test_a_hostile_estimator_is_refused_before_anything_of_it_is_made(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, reason = SKOPS[what]
    monkeypatch.chdir(tmp_path)
    folder = _packed(tmp_path / "demo", data).folder
    begin = time.perf_counter()
    with pytest.raises(PackageError, match=rf"estimator\.skops cannot be read: .*{reason}"):
        Predictor.load(folder, None, trusted=TRUSTED, types=frozenset({"sklearn.tree._tree.Tree"}))
    assert time.perf_counter() - begin < 5.0
    assert not (tmp_path / "ran").exists()


def test_the_type_of_the_corpus_is_made_where_the_operator_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    read = package.read(_packed(tmp_path / "demo", SKOPS["a type that nobody allows"][0]).folder)
    with pytest.raises(PackageError, match="it is no estimator"):
        models.load("estimator", read.contents("estimator.skops"), frozenset({CANARY}))
    assert (tmp_path / "ran").exists()


# ---------------------------------------------------------------- the private key


def test_the_private_key_is_in_its_file_alone(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    project = Project.model_validate(PROJECT)
    key = signing.own_key(project, storage)
    write(storage.path("demo"), sign=key)
    assert stat.S_IMODE(storage.path("signing.key").stat().st_mode) == 0o600
    raw, pem = key.private_bytes_raw(), storage.path("signing.key").read_bytes().splitlines()[1]
    secrets = (raw, raw.hex().encode(), base64.b64encode(raw), pem)
    holding = [
        file.name
        for file in storage.root.rglob("*")
        if file.is_file() and any(secret in file.read_bytes() for secret in secrets)
    ]
    assert holding == ["signing.key"]
    assert not any(secret in f"{key!r}{caplog.text}".encode() for secret in secrets)
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(key)


def test_processes_that_make_the_key_at_once_have_the_same(storage: Storage) -> None:
    project = Project.model_validate(PROJECT)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: signing.trusted(project, storage), range(8)))
    assert len(set(found)) == 1
    assert found[0] == {signing.public(signing.own_key(project, storage))}


def test_a_project_names_a_key_of_its_own_and_trusts_others(storage: Storage, tmp_path: Path) -> None:
    others = signing.public(ATTACKER)
    (tmp_path / "key.pem").touch(0o600)
    (tmp_path / "key.pem").write_bytes(_pem(KEY))
    said = {"key": str(tmp_path / "key.pem"), "trusted": [others]}
    project = Project.model_validate(PROJECT | {"signing": said})
    assert signing.trusted(project, storage) == TRUSTED | {others}
    assert not storage.path("signing.key").exists()


@pytest.mark.parametrize(
    ("mode", "is_private"), [(0o600, True), (0o440, True), (0o644, False), (0o660, False)]
)
def test_a_key_that_others_may_read_or_change_signs_nothing(
    mode: int, is_private: bool, storage: Storage, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_bytes(_pem(KEY))
    file.chmod(mode)
    project = Project.model_validate(PROJECT | {"signing": {"key": str(file)}})
    if is_private:
        assert signing.public(signing.own_key(project, storage)) == signing.public(KEY)
    else:
        with pytest.raises(StorageError, match=f"others may read or change the signing key {file}: chmod"):
            signing.own_key(project, storage)


@pytest.mark.parametrize("what", ["absent", "text", "another kind", "a passphrase"])
def test_a_file_that_is_no_key_is_named_and_not_shown(what: str, storage: Storage, tmp_path: Path) -> None:
    file = tmp_path / "key"
    if what != "absent":
        file.touch(0o600)
    if what == "text":
        file.write_text("hunter2")
    elif what == "another kind":
        file.write_bytes(_pem(X25519PrivateKey.generate()))
    elif what == "a passphrase":
        file.write_bytes(_pem(KEY, BestAvailableEncryption(b"hunter2")))
    project = Project.model_validate(PROJECT | {"signing": {"key": str(file)}})
    with pytest.raises(StorageError, match=f"{file}") as error:
        signing.own_key(project, storage)
    assert "hunter2" not in str(error.value)
    assert error.value.__cause__ is None or isinstance(error.value.__cause__, OSError)


def _pem(key: Any, encryption: KeySerializationEncryption = NoEncryption()) -> bytes:  # noqa: B008
    found: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return found


@pytest.mark.parametrize("key", ["short", "A" * 44, "?" * 43 + "="])
def test_a_public_key_that_is_none_is_a_mistake_in_the_project_file(key: str) -> None:
    with pytest.raises(ValueError, match="should match pattern"):
        Project.model_validate(PROJECT | {"signing": {"trusted": [key]}})
