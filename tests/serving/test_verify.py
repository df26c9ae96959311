"""A version is loaded in a process of its own: whatever it does there, who asked goes on, with a reason."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mlops_ray.errors import PackageError
from mlops_ray.registry.models import LinearModel
from mlops_ray.registry.outcome import Called, Outcome
from mlops_ray.registry.package import Package
from mlops_ray.schema import Column, Schema
from mlops_ray.serving.record import Settings
from mlops_ray.serving.verify import Verifier, incompatible
from mlops_ray.storage import Storage
from tests.registry.made import write
from tests.serving.live import PUBLIC, SIGNER

#: What a package may call, each of which breaks its process in its own way.
CRASH, HANG, FAIL, CHAT = (f"tests.serving.hostile.{name}" for name in ("crash", "hang", "fail", "chat"))


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with closing(Verifier()) as made:
        yield made


def settings(storage: Storage, trusted: tuple[str, ...] = (PUBLIC,)) -> Settings:
    functions = (CRASH, HANG, FAIL, CHAT)
    return Settings("", str(storage.path("online.db")), functions=functions, trusted=trusted)


def written(storage: Storage, name: str = "demo", **how: object) -> Package:
    return write(storage.path("packages", name), name=name, sign=SIGNER, **how)


def calling(function: str) -> Outcome:
    return Outcome(function=Called.now(function))


def verified(verifier: Verifier, storage: Storage, package: Package, **how: Any) -> dict[str, Any]:
    return verifier.verify(storage, "demo", "2", package.folder, package.digest, settings(storage, **how))


def refused(verifier: Verifier, storage: Storage, package: Package, **how: Any) -> str:
    with pytest.raises(PackageError) as error:
        verified(verifier, storage, package, **how)
    return str(error.value)


def test_a_sound_version_gets_its_entry(verifier: Verifier, storage: Storage) -> None:
    package = written(storage)
    entry = verified(verifier, storage, package)
    assert (entry["version"], entry["digest"], entry["package"]) == ("2", package.digest, "packages/demo")
    assert Schema.from_json(entry["request"]) == package.feature_set.request
    assert entry["explains"] is True


def test_a_wrong_digest_a_changed_file_and_a_foreign_signature_are_refused(
    verifier: Verifier, storage: Storage
) -> None:
    package = written(storage)
    assert "digest" in refused(verifier, storage, replace(package, digest="0" * 64))
    assert "signing.trusted" in refused(verifier, storage, package, trusted=())
    reference = package.folder / "reference.json"
    reference.write_bytes(reference.read_bytes() + b" ")
    assert "reference.json" in refused(verifier, storage, package)


def test_one_that_does_not_answer_its_own_examples_is_refused(
    verifier: Verifier, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(LinearModel, "predict", lambda self, matrix: np.full(len(matrix), 7.0))
        package = written(storage)
    assert "does not answer its own examples" in refused(verifier, storage, package)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (CRASH, "the process that loaded it died of SIGSEGV"),
        (FAIL, f"the function {FAIL} failed: ValueError: no reason at all"),
    ],
)
def test_a_crash_at_load_is_a_reason_and_no_crash_of_ours(
    verifier: Verifier, storage: Storage, function: str, said: str
) -> None:
    assert refused(verifier, storage, written(storage, outcome=calling(function))) == said


def test_a_slow_load_is_ended(storage: Storage) -> None:
    with closing(Verifier()) as hasty:
        # All is imported.
        verified(hasty, storage, written(storage))
        hasty._load_s = 1.0
        package = written(storage, outcome=calling(HANG))
        assert refused(hasty, storage, package) == "it was not loaded within 1 s"
        working = psutil.Process(hasty._aside.pid).children(recursive=True)
        assert psutil.wait_procs(working, timeout=60)[1] == []


def test_what_a_package_prints_is_no_answer_and_a_foreign_name_is_refused(
    verifier: Verifier, storage: Storage
) -> None:
    package = written(storage, outcome=calling(CHAT))
    assert verified(verifier, storage, package)["version"] == "2"
    assert refused(verifier, storage, written(storage, "other")) == "the package is one of 'other'"


def test_a_package_outside_the_storage_is_refused(
    verifier: Verifier, storage: Storage, tmp_path: Path
) -> None:
    package = written(storage)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(package.folder, elsewhere)
    assert "outside the storage" in refused(verifier, storage, replace(package, folder=elsewhere))


def test_the_process_that_waits_ends_with_whoever_started_it() -> None:
    code = f"from {Verifier.__module__} import Verifier; print(Verifier()._aside.pid, flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdout is not None
        waiting = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert psutil.wait_procs([waiting], timeout=60)[1] == []


def test_where_the_process_that_waits_was_killed_another_verifies(storage: Storage) -> None:
    with closing(Verifier()) as verifier:
        package = written(storage)
        psutil.Process(verifier._aside.pid).kill()
        assert verified(verifier, storage, package)["version"] == "2"


def test_a_verification_ends_with_whoever_asked_for_it(storage: Storage) -> None:
    code = "from mlops_ray.serving.aside import Aside; Aside('tests.serving.hostile').ask('', 600)"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        working: list[psutil.Process] = []
        while not any(one.status() == psutil.STATUS_SLEEPING for one in working):
            assert parent.poll() is None
            below = psutil.Process(parent.pid).children(recursive=True)
            # One waits, one watches, one works.
            working = below if len(below) == 3 else []
        parent.kill()
    assert psutil.wait_procs(working, timeout=60)[1] == []


def test_callers_of_the_champion_can_go_on_with_what_asks_for_no_more() -> None:
    site, load, n = Column("site", "category"), Column("load", "float"), Column("n", "int")
    assert incompatible(Schema((site, n)), Schema((Column("n", "float"), Column("site", "string")))) is None
    said = incompatible(Schema((site, load)), Schema((site, Column("load", "int"))))
    assert said == "callers send 'load' as float, and it asks for int"
