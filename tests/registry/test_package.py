"""A package is what was written, or an error: every byte, every file, before anything is parsed."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mlops_ray.errors import PackageError
from mlops_ray.registry import package, signing
from mlops_ray.registry.models import LinearModel
from tests.registry.made import FEATURES, write


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    written = write(tmp_path / "demo")
    read = package.read(tmp_path / "demo", digest=written.digest)
    assert read == written
    assert (read.name, read.family, read.task, read.metrics) == ("demo", "ridge", "regression", {"mae": 0.1})
    assert read.feature_set == FEATURES
    assert read.outcome.clip == (0.0, 1.5)


def test_the_same_contents_have_the_same_digest(tmp_path: Path) -> None:
    assert write(tmp_path / "one").digest == write(tmp_path / "two").digest
    assert write(tmp_path / "three", params={"alpha": 2.0}).digest != write(tmp_path / "one").digest


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    write(tmp_path / "demo")
    assert {file.suffix for file in (tmp_path / "demo").iterdir()} == {".json"}
    assert not any(file.read_bytes().startswith(b"\x80") for file in (tmp_path / "demo").iterdir())


@pytest.mark.parametrize(
    "name", ["coefficients.json", "encoder.json", "package.json", "digests.json", "sbom.cdx.json"]
)
def test_every_changed_byte_is_an_error(tmp_path: Path, name: str) -> None:
    digest = write(tmp_path / "demo").digest
    file = tmp_path / "demo" / name
    data = file.read_bytes()
    for at in range(0, len(data), 37):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(PackageError):
            package.read(tmp_path / "demo", digest=digest)


def _rename(folder: Path) -> None:
    (folder / "encoder.json").rename(folder / "encoder2.json")


def _link(folder: Path) -> None:
    (folder / "encoder.json").rename(folder.parent / "outside.json")
    (folder / "encoder.json").symlink_to(folder.parent / "outside.json")


def _climb(folder: Path) -> None:
    listed = orjson.loads((folder / "digests.json").read_bytes())
    listed["files"]["../outside.json"] = "0" * 64
    (folder / "digests.json").write_bytes(
        orjson.dumps(listed, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    )


def _age(folder: Path) -> None:
    listed = orjson.loads((folder / "digests.json").read_bytes())
    (folder / "digests.json").write_bytes(orjson.dumps({**listed, "format": 99}))


def _space(folder: Path) -> None:
    (folder / "digests.json").write_bytes((folder / "digests.json").read_bytes() + b"\n")


def _swap(folder: Path) -> None:
    encoder, reference = folder / "encoder.json", folder / "reference.json"
    first, second = encoder.read_bytes(), reference.read_bytes()
    encoder.write_bytes(second)
    reference.write_bytes(first)


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (_rename, "does not list: 'encoder2.json'"),
        (_link, "'encoder.json', which is not a plain file"),
        (_climb, "lacks the file '../outside.json'"),
        (_age, "has the format 99"),
        (_space, "is not as it was written"),
        (_swap, "is damaged: encoder.json"),
        (lambda folder: (folder / "more.py").write_text("pass"), "does not list: 'more.py'"),
        (lambda folder: (folder / "reference.json").unlink(), "lacks the file 'reference.json'"),
        (lambda folder: (folder / "sub").mkdir(), "'sub', which is not a plain file"),
        (lambda folder: (folder / "digests.json").unlink(), "is no model package"),
        (lambda folder: (folder / "digests.json").write_text("[]"), "has the format None"),
        (lambda folder: (folder / "digests.json").write_text(" " * 70_000), "too large"),
    ],
)
def test_a_hostile_folder_is_refused_in_a_sentence(
    tmp_path: Path, harm: Callable[[Path], object], sentence: str
) -> None:
    write(tmp_path / "demo")
    harm(tmp_path / "demo")
    with pytest.raises(PackageError, match=sentence):
        package.read(tmp_path / "demo")


def test_a_file_that_changes_after_the_check_is_not_parsed(tmp_path: Path) -> None:
    read = write(tmp_path / "demo")
    (tmp_path / "demo" / "encoder.json").write_text("{}")
    with pytest.raises(PackageError, match="is damaged"):
        _ = read.encoder


def test_another_package_than_the_registered_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "demo")
    with pytest.raises(PackageError, match="not the one that was registered"):
        package.read(tmp_path / "demo", digest="0" * 64)


def test_a_write_that_fails_leaves_the_old_package(tmp_path: Path) -> None:
    before = write(tmp_path / "demo")
    with pytest.raises(TypeError):
        write(tmp_path / "demo", params={"alpha": object()})
    assert package.read(tmp_path / "demo") == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["demo"]


def test_a_model_that_nobody_could_read_again_is_not_packed(tmp_path: Path) -> None:
    class Own(LinearModel):
        kind: ClassVar[str] = "linaer"

    with pytest.raises(PackageError, match="'linaer' cannot be packed: nobody could read it again"):
        write(tmp_path / "demo", model=Own((1.0,) * 30, 0.5))
    assert not (tmp_path / "demo").exists()


def test_a_signature_changes_nothing_of_the_package_itself(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    unsigned, signed = write(tmp_path / "one"), write(tmp_path / "two", sign=key)
    assert (signed.digest, signed.files) == (unsigned.digest, unsigned.files)
    assert (unsigned.signer, signed.signer) == (None, signing.public(key))
    assert package.read(tmp_path / "two").manifest == unsigned.manifest


def test_examples_are_made_up_and_hold_every_known_category_type(tmp_path: Path) -> None:
    rows, answers = write(tmp_path / "demo").examples
    assert rows["lag"].to_list() == [-1.0, -0.5, 0.0, None]
    assert rows["site"].to_list() == ["a", "b", "c", None]
    assert len(answers) == rows.height
