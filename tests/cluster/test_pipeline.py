"""What a change of the project or of its data makes a run do again; Ray and training are left out."""

import importlib
import linecache
import re
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from mlops_ray import audit, config
from mlops_ray.cluster import releases
from mlops_ray.cluster.pipeline import Pipeline
from mlops_ray.cluster.training import Trainer
from mlops_ray.data import ingest
from mlops_ray.errors import ClusterError, ConfigError, StorageError
from mlops_ray.serving import deploy, record
from mlops_ray.storage import Storage

from ..conftest import unrecordable

PROJECT = """
project: small
sources:
  meter:
    path: [{path: rows.csv, rename: {}}]
    entity: site
    event_time: {column: time, timezone: UTC}
    columns: {site: {type: category}, load: {type: float, max: 9000}}
features:
  past: {source: meter, features: {before: {value_at: {of: load, ago: 2d}}}}
target: {source: meter, expr: load, horizon: 24h, task: regression}
training: {minimum_rows: 1, validation: {test: {share: 20%}}}
"""


def rows(scale: float) -> str:
    days = [f"2016-01-{day:02d},a,{day * scale},{day + 1000}" for day in range(1, 31)]
    return "\n".join(["time,site,load,load2", *days])


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(self: Trainer, task: Any, training_set: Any) -> dict[str, Any]:
        return {"version": 1, "leaderboard": [], "family": "ridge", "notes": [], "refused": []}

    monkeypatch.setattr(ingest, "on_ray", lambda task, selector: task.parts(range(len(task.inputs))))
    monkeypatch.setattr(Trainer, "train", train)
    monkeypatch.setattr(Pipeline, "_is_registered", lambda self, version: True)


def done(folder: Path, text: str = PROJECT) -> tuple[set[str], list[float]]:
    """The stages that a run did, and the labels of its training set."""
    (folder / "project.yaml").write_text(text)
    project = config.load(folder / "project.yaml", {})
    made = Pipeline(project, Storage.open(project.storage))
    training_set = made.build(made.ingest())
    made.train(training_set)
    stages = {stage.split()[0] for stage in made.stages.seconds if stage not in made.stages.unchanged}
    return stages, training_set.frame["label"].to_list()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.csv").write_text(rows(1))
    assert done(tmp_path)[0] >= {"ingest"}
    return tmp_path


def test_nothing_changed_nothing_is_done(folder: Path) -> None:
    assert done(folder)[0] == set()


def test_a_file_that_changes_back_is_read_again(folder: Path) -> None:
    first = done(folder)[1]
    (folder / "rows.csv").write_text(rows(2))
    assert done(folder)[1] == [2 * label for label in first]
    (folder / "rows.csv").write_text(rows(1))
    assert done(folder)[1] == first


def test_a_changed_option_of_a_file_is_read_again(folder: Path) -> None:
    labels = done(folder, PROJECT.replace("rename: {}", "rename: {load: old, load2: load}"))[1]
    assert min(labels) > 1000


def test_another_horizon_trains_again_also_on_equal_rows(folder: Path) -> None:
    made = done(folder, PROJECT.replace("horizon: 24h", "horizon: 48h"))
    assert made[0] >= {"train"}


def test_a_store_that_was_emptied_is_filled_again(folder: Path) -> None:
    for name in ("online.db", "online.db-wal", "online.db-shm"):
        (folder / ".mlops" / name).unlink(missing_ok=True)
    assert done(folder)[0] == {"features"}


def test_a_history_that_was_removed_is_made_again_with_its_corrections(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder / ".mlops" / "features")
    (folder / "rows.csv").write_text(rows(3))
    assert done(folder)[1][0] % 3 == 0


def test_rows_that_others_of_the_same_file_supersede_are_counted(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(rows(1) + "\n2016-01-30,a,5,5\n2016-01-30,b,5,5\n2016-01-30,a,6,6")
    done(tmp_path)
    report = orjson.loads((tmp_path / ".mlops" / "reports" / "validation-meter.json").read_bytes())
    flagged = {check["rule"]: check["failed"] for check in report["checks"] if check["severity"] == "flag"}
    assert (report["valid"], flagged) == (33, {"same_identity": 2})


def test_a_changed_function_makes_only_the_sources_be_read_that_call_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages that are done again, of two sources of which one derives a column by a function."""
    monkeypatch.setenv("MLOPS_RAY_SEARCH_PATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "derived_here", raising=False)
    function = "{path: derived_here.twice, inputs: [load]}"
    text = PROJECT.replace(
        "features:\n",
        f"""  other:
    path: [{{path: rows.csv, rename: {{}}}}]
    entity: site
    event_time: {{column: time, timezone: UTC}}
    derive: {{more: {{function: {function}}}}}
    columns: {{site: {{type: category}}, load: {{type: float}}, more: {{type: float}}}}
features:
  others: {{source: other, features: {{more: {{value_at: {{of: more, ago: 2d}}}}}}}}
""",
    ).replace(f"{{function: {function}}}", function)
    (tmp_path / "rows.csv").write_text(rows(1))
    again = []
    for factor in (2, 3):
        (tmp_path / "derived_here.py").write_text(f"def twice(load):\n    return load * {factor}\n")
        sys.modules.pop("derived_here", None)
        linecache.clearcache()
        importlib.invalidate_caches()
        done(tmp_path, text)
        project = config.load(tmp_path / "project.yaml", {})
        made = Pipeline(project, Storage.open(project.storage))
        made.ingest()
        assert set(made.stages.unchanged) == {"ingest meter", "ingest other"}
        again.append(made.store.history("meter").newest)
    assert again[0] == again[1]


@pytest.mark.parametrize(
    ("segment", "said"),
    [
        ("bevore", "'bevore' is neither a feature nor a key of the target's rows; did you mean 'before'?"),
        ("load", "'load' is neither a feature nor a key"),
        ("before", "'before' is for machines alone, and a segment shows its values"),
        ("read", "'read' is a time, of which each row has its own"),
    ],
)
def test_a_segment_that_cuts_nothing_is_refused_before_anything_is_done(
    tmp_path: Path, segment: str, said: str
) -> None:
    (tmp_path / "rows.csv").write_text(rows(1))
    column, policy = "load2: {type: datetime}", "policy: {machine_only: [load]}"
    text = PROJECT.replace("max: 9000}}", f"max: 9000}}, {column}}}\n    {policy}")
    text = text.replace("ago: 2d}}", "ago: 2d}}, read: {latest: load2}")
    (tmp_path / "project.yaml").write_text(f"{text}monitoring: {{segments: [site, {segment}]}}\n")
    project = config.load(tmp_path / "project.yaml", {})
    with pytest.raises(ConfigError, match=re.escape(said)):
        Pipeline(project, Storage.open(project.storage))


def test_a_push_where_a_variable_is_not_set_leaves_who_is_told_as_it_was_deployed(folder: Path) -> None:
    (folder / "project.yaml").write_text(PROJECT + 'monitoring: {alerts: [{webhook: "${ALERT_URL}"}]}\n')
    with_it, without = (
        config.load(folder / "project.yaml", environ) for environ in ({"ALERT_URL": "http://h"}, {})
    )
    storage = Storage.open(without.storage)
    deploy.settle(with_it, storage)
    assert Pipeline(without, storage).push({"version": 1, "refused": []}) == 1
    assert [ask.version for ask in record.asked(storage, "small")] == ["1"]
    found = record.settings(storage, "small")
    assert found is not None
    assert [alert["webhook"] for alert in found.alerts] == ["http://h"]


def test_who_asks_for_what_of_a_release_is_recorded_before_and_not_asked_for_where_that_cannot_be(
    folder: Path,
) -> None:
    project = config.load(folder / "project.yaml", {})
    storage = Storage.open(project.storage)
    before = len(list(audit.entries(storage)))
    acts = (
        lambda: releases.push(project, storage, 1),
        lambda: releases.promote(project, storage, 1),
        lambda: releases.rollback(project, storage),
    )
    acts[0]()
    for act in acts[1:]:
        with pytest.raises(ClusterError, match="no service of this storage takes it up"):
            act()
    assert [(each["what"], each["by"], each["about"]["version"]) for each in audit.entries(storage)][
        before:
    ] == [
        ("a push was asked for", audit.who(), 1),
        ("a promotion was asked for", audit.who(), 1),
        ("a rollback was asked for", audit.who(), None),
    ]
    asked = record.asked(storage, "small")
    assert [ask.by for ask in asked] == [audit.who()] * 3
    unrecordable(storage)
    for act in acts[:-1]:
        with pytest.raises(StorageError, match=r"audit record cannot be written.* is not done"):
            act()
    assert record.asked(storage, "small") == asked
    # What goes back to what was good waits for no record.
    with pytest.raises(
        StorageError, match=r"^a rollback was asked for, but the audit record cannot be written"
    ):
        acts[-1]()
    assert [ask.what for ask in record.asked(storage, "small")] == [*(ask.what for ask in asked), "rollback"]
