"""A training set has a manifest of its own, read whole or not at all; of a spine nothing is guessed."""

import copy
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlops_ray import audit, cli, config
from mlops_ray.config import Policy
from mlops_ray.errors import DataError, PolicyError, StorageError
from mlops_ray.features import dataset, manifest
from mlops_ray.features.dataset import TrainingSet, rebuild, values_digest
from mlops_ray.features.store import FeatureStore, read_spine
from mlops_ray.policy import HERE
from mlops_ray.storage import ERASURE, Storage

from ..conftest import unrecordable

PROJECT = """
project: p
sources:
  s:
    path: s.csv
    entity: k
    event_time: {column: t}
    columns: {k: {type: category}, x: {type: float}, y: {type: float}}
features:
  v: {source: s, features: {last: {latest: x}, total: {window: {of: x, agg: sum, over: 2d}}}}
  r: {on_request: {twice: {expr: x * 2}, feast: {holiday_of: t, country: DE}, hour: {hour_of: t}}}
target: {source: s, expr: y, task: regression}
"""
DAY = timedelta(days=1)
NOON = datetime(2026, 1, 8, 12, tzinfo=UTC)
SPINE = pl.DataFrame({"k": ["a", "b"], "t": ["2026-01-08T12:00Z"] * 2, "x": ["1", "2"]})
Document = dict[str, Any]


def opened(folder: Path, text: str = PROJECT) -> FeatureStore:
    (folder / "p.yaml").write_text(text)
    return FeatureStore(config.load(folder / "p.yaml", {}), Storage.open(str(folder / ".mlops")))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """A project with eight rows, one a day and all within the widest window of these tests."""
    store = opened(tmp_path)
    times = [NOON - timedelta(hours=hour) for hour in range(8)]
    rows = pl.DataFrame({"k": ["a"] * 8, "event_time": times, "x": [1.0] * 8, "y": [2.0] * 8})
    store.history("s").append(rows, store.project.sources["s"], "first")
    return store


def file_of(made: TrainingSet) -> Path:
    return made.path.with_suffix(".json")


def contents(folder: Path) -> dict[Path, bytes]:
    """All files but the audit record, which hears of what was asked for, also in vain."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != audit.FOLDER)
    files = (path for path in files if path.name != ERASURE)
    return {path: path.read_bytes() for path in files}


# ---------------------------------------------------------------- one manifest a question


def test_another_question_with_the_same_answer_has_a_manifest_of_its_own(
    store: FeatureStore, tmp_path: Path
) -> None:
    first = store.get(SPINE)
    before = file_of(first).read_bytes()
    wider = opened(tmp_path, PROJECT.replace("over: 2d", "over: 3d")).get(SPINE)
    told = store.history("s").newest
    assert told is not None
    store.history("s").append(
        pl.DataFrame({"k": ["z"], "event_time": [NOON], "x": [1.0], "y": [2.0]}),
        store.project.sources["s"],
        "another key",
    )
    earlier = store.get(SPINE, told.committed_at)
    moved = opened(
        tmp_path, PROJECT.replace("y: {type: float}}", "y: {type: float}}\n    policy: {minimum_count: 7}")
    )
    allowed = moved.get(SPINE)
    sets = [first, wider, earlier, allowed]
    assert len({made.manifest["digest"] for made in sets}) == 1
    assert len({made.path for made in sets}) == len(sets)
    assert file_of(first).read_bytes() == before
    for made in sets:
        assert rebuild(file_of(made)).manifest == json.loads(file_of(made).read_bytes())


def test_the_same_question_again_is_the_same_manifest(store: FeatureStore) -> None:
    first = store.get(SPINE)
    before = file_of(first).read_bytes()
    assert store.get(SPINE).path == first.path
    assert file_of(first).read_bytes() == before


def test_no_two_frames_have_one_digest() -> None:
    two = pl.DataFrame({"a": [1], "b": [2]})
    one, other = ("Int64\0" + number.to_bytes(8, "little").decode() for number in (1, 2))
    frames = [
        two,
        pl.DataFrame({"a:Int64:1;\0" + (1).to_bytes(8, "little").decode() + "b": [2]}),
        pl.DataFrame({"a": [1], f"b{other}c": [3]}),
        pl.DataFrame({f"a{one}b": [2], "c": [3]}),
        two.select("b", "a"),
        two.head(0),
        pl.DataFrame(),
        two.cast(pl.UInt64),
        two.cast(pl.String),
        pl.DataFrame({"a": [None], "b": [2]}, schema=two.schema),
        pl.DataFrame({"a": [0], "b": [2]}),
    ]
    assert len({values_digest(frame) for frame in frames}) == len(frames)


# ---------------------------------------------------------------- what is no manifest of ours


def changed(*place: Any, to: Any) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        for key in place[:-1]:
            document = document[key]
        document[place[-1]] = to

    return change


def without(*place: Any) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        for key in place[:-1]:
            document = document[key]
        del document[place[-1]]

    return change


STORED, COMPUTED = ("features", "stored"), ("features", "computed")
AS_OF = ("as_of", "s")
#: Where the project file would have been refused, it is enough that no set is made.
ANYTHING = ""
#: What is changed in a manifest, and what of it is said. Whoever changed it gave it the name of its contents.
WRONG: dict[str, tuple[Callable[[Document], None], str]] = {
    "no digest": (without("digest"), "digest: is missing"),
    "a number as digest": (changed("digest", to=5), "digest"),
    "no policies": (without("policies"), "policies: is missing"),
    "an unknown policy": (changed("policies", "s", to={"xx": 5}), "policies.s: unknown key 'xx'"),
    "a policy of another type": (changed("policies", "s", "allowed_regions", to=5), "policies.s.allowed"),
    "no spine": (without("spine"), "target: say target and warm, or else spine"),
    "no history": (without("as_of"), "as_of: is missing"),
    "nothing of a source": (without("as_of", "s"), "as_of: the source 's' is missing"),
    "no instant": (changed(*AS_OF, "known_at", to="yesterday"), "as_of.s.known_at"),
    "a naive instant": (changed(*AS_OF, "known_at", to="2026-01-01T00:00:00"), "as_of.s.known_at"),
    "an instant outside the calendar": (
        changed(*AS_OF, "committed_at", to="0001-01-01T00:00:00+23:59"), "as_of.s.committed_at: lies outside",
    ),
    "another folder": (changed(*AS_OF, "table", "table", to="../s"), "as_of.s.table: '../s' is no history"),
    "no interval": (changed(*AS_OF, "table", "every_us", to=0), ANYTHING),
    "another table": (changed(*AS_OF, "table", "row_id", to="x"), ANYTHING),
    "text for libraries": (changed("libraries", to="x"), "libraries"),
    "an unknown kind": (changed(*STORED, 0, "kind", to="evil"), "features.stored.0.kind"),
    "an unknown aggregate": (changed(*STORED, 1, "agg", to="__class__"), ANYTHING),
    "a column that is not there": (changed(*STORED, 0, "of", to="_known_at"), ANYTHING),
    "a source that is not there": (changed(*STORED, 0, "source", to="q"), ANYTHING),
    "other keys": (changed(*STORED, 0, "on", to=["k", "k"]), ANYTHING),
    "a window backwards": (changed(*STORED, 1, "over_us", to=-5), ANYTHING),
    "a look ahead": (changed("features", "horizon_us", to=-(10**12)), ANYTHING),
    "another time": (changed("features", "time", to="x"), ANYTHING),
    "an unknown calendar": (changed(*COMPUTED, 2, "kind", to="evil_of"), ANYTHING),
    "an unknown country": (changed(*COMPUTED, 1, "country", to="country_holidays"), ANYTHING),
    "an unknown zone": (changed(*COMPUTED, 2, "timezone", to="../../etc/passwd"), ANYTHING),
    "a time that is none": (changed(*COMPUTED, 2, "argument", to="x"), ANYTHING),
    "no expression": (changed(*COMPUTED, 0, "argument", to="SELECT"), ANYTHING),
    "an input that is not there": (changed(*COMPUTED, 0, "argument", to="q * 2"), ANYTHING),
    "an unknown type": (changed("features", "columns", 0, "type", to="object"), "features.columns.0.type"),
    "another type": (changed("features", "columns", 0, "type", to="string"), ANYTHING),
    "a column too few": (without("features", "columns", 0), ANYTHING),
    "a pattern that is none": (
        changed("features", "request", "columns", 0, "pattern", to="(((("), "ComputeError: regex error",
    ),
    "a spine elsewhere": (changed("spine", to="../../../spine.parquet"), "spine: String should match"),
    "a spine that is not there": (changed("spine", to=f"spine-{'0' * 12}.parquet"), "cannot be read"),
    "another digest": (changed("digest", to="0" * 64), "not 000000000000"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_in_a_manifest_is_said_in_a_sentence_and_nothing_is_written(
    what: str, store: FeatureStore, tmp_path: Path
) -> None:
    change, says = WRONG[what]
    made = store.get(SPINE)
    document = json.loads(file_of(made).read_bytes())
    change(document)
    document["file"] = manifest.name(document)
    forged = file_of(made).with_name("forged.json")
    forged.write_text(json.dumps(document))
    before = contents(tmp_path)
    with pytest.raises(DataError) as told:
        rebuild(forged)
    assert says in str(told.value)
    assert "\n" not in str(told.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("target"), "target: say target and warm"),
        (changed("target", to=None), "target: say target and warm"),
        (changed("target", "source", to="q"), "as_of: the source 'q' is missing"),
        (changed("target", "expr", to="SELECT"), "target.expr: "),
        (changed("target", "where", to=5), "target.where"),
        (changed("warm", to="x"), "warm"),
        (changed("warm", to="2026-01-01T00:00:00"), "warm"),
        (changed("spine", to=f"spine-{'0' * 12}.parquet"), "target: say target and warm, or else spine"),
    ],
)
def test_what_is_wrong_in_the_manifest_of_a_target_is_said_in_a_sentence(
    change: Callable[[Document], None], says: str, store: FeatureStore
) -> None:
    document: Document = {
        **json.loads(file_of(store.get(SPINE)).read_bytes()),
        "target": {"source": "s", "expr": "y", "where": None},
        "warm": "2026-01-01T00:00:00+00:00",
    }
    del document["spine"]
    document["file"] = manifest.name(document)
    assert manifest.parse(copy.deepcopy(document), "m.json").target is not None
    change(document)
    document["file"] = manifest.name(document)
    with pytest.raises(DataError) as told:
        manifest.parse(document, "m.json")
    assert says in str(told.value)


@pytest.mark.parametrize(
    "change",
    [
        changed("rows", to=3),
        changed(*STORED, 1, "over_us", to=3 * 86_400_000_000),
        *(
            changed("file", to=name)
            for name in ("..", "", "../x", "x\0y", "*.parquet", "p-000000000000.json")
        ),
    ],
)
def test_a_manifest_that_was_changed_is_refused_and_overwrites_nothing(
    change: Callable[[Document], None], store: FeatureStore, tmp_path: Path
) -> None:
    other = store.get(SPINE.head(1))
    made = store.get(SPINE)
    document = json.loads(file_of(made).read_bytes())
    for edit in (change, changed("file", to=other.path.name), changed("file", to=file_of(other).name)):
        edited = copy.deepcopy(document)
        edit(edited)
        forged = file_of(made).with_name("forged.json")
        forged.write_text(json.dumps(edited))
        before = contents(tmp_path)
        with pytest.raises(DataError, match="was changed since it was written"):
            rebuild(forged)
        assert contents(tmp_path) == before


def test_a_spine_that_was_changed_is_not_taken_for_a_changed_history(store: FeatureStore) -> None:
    made = store.get(SPINE)
    SPINE.reverse().write_parquet(made.path.with_name(made.manifest["spine"]))
    with pytest.raises(DataError, match="the spine was changed since the set was made"):
        rebuild(file_of(made))


@pytest.mark.parametrize(
    ("edit", "says"),
    [(without("format"), "names no format: .* older version"), (changed("format", to=3), "is of format 3")],
)
def test_a_manifest_of_another_format_is_not_compared(
    edit: Callable[[Document], None], says: str, store: FeatureStore
) -> None:
    made = store.get(SPINE)
    document = json.loads(file_of(made).read_bytes())
    edit(document)
    file_of(made).write_text(json.dumps(document))
    with pytest.raises(DataError, match=says):
        rebuild(file_of(made))


def test_a_manifest_is_read_where_it_was_written_and_the_set_is_not_taken_for_it(
    store: FeatureStore, tmp_path: Path
) -> None:
    made = store.get(SPINE)
    copied = tmp_path / file_of(made).name
    copied.write_bytes(file_of(made).read_bytes())
    with pytest.raises(DataError, match="it must lie in the folder 'datasets' of its storage"):
        rebuild(copied)
    with pytest.raises(DataError, match=f"its manifest is {file_of(made).name}, beside it"):
        rebuild(made.path)


@pytest.mark.parametrize("made", ["by a target", "of a spine"])
def test_todays_policies_hold_for_older_sets_beside_those_that_they_were_made_under(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: FeatureStore, made: str
) -> None:
    monkeypatch.setenv(HERE, "eu-de")
    then = PROJECT.replace("over: 2d", "over: 2h").replace(
        "y: {type: float}}", "y: {type: float}}\n    policy: {allowed_regions: [eu-de, eu-fr]}"
    )
    before = opened(tmp_path, then)
    file = file_of(before.get(SPINE) if made == "of a spine" else before.build(before.snapshots()))
    asked: list[object] = []

    def unjoinable(*_: object, selector: object, on_node: object) -> None:
        asked.append(selector)
        raise ValueError("no float: 'Ann'")

    monkeypatch.setattr(dataset, "join", unjoinable)
    with pytest.raises(DataError, match="ValueError: no float: 'Ann'"):
        rebuild(file)
    today = [Policy(allowed_regions=("eu-de", "us-east"), machine_only=("k",))]
    with pytest.raises(DataError, match=r"ValueError$"):
        rebuild(file, policies=today)
    assert asked == [{"region": "in(eu-de,eu-fr)"}, {"region": "in(eu-de)"}]
    for here in ("eu-fr", "us-east"):
        monkeypatch.setenv(HERE, here)
        with pytest.raises(PolicyError, match=f"this machine is in {here}"):
            rebuild(file, policies=today)
    assert len(asked) == 2


def test_the_command_asks_the_policies_of_the_project_file_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: FeatureStore
) -> None:
    monkeypatch.setenv(HERE, "us-east")
    made = store.get(SPINE)
    bound = PROJECT.replace("y: {type: float}}", "y: {type: float}}\n    policy: {allowed_regions: [eu-de]}")
    (tmp_path / "p.yaml").write_text(bound)
    with pytest.raises(PolicyError, match="this machine is in us-east"):
        cli.dataset_rebuild(file_of(made), tmp_path / "p.yaml")


# ---------------------------------------------------------------- times of a spine

MOMENT = [NOON, NOON]
TIMES: dict[str, tuple[pl.Series, str]] = {
    "seconds": (pl.Series([1_767_873_600] * 2), "the times are Int64, which names no instant"),
    "milliseconds, in floats": (pl.Series([1.7678736e12] * 2), "the times are Float64"),
    "truth values": (pl.Series([True, False]), "the times are Boolean"),
    "dates": (pl.Series([date(2026, 1, 8)] * 2), "the times are Date"),
    "times of a day": (pl.Series([time(12)] * 2), "the times are Time"),
    "naive": (pl.Series(MOMENT).dt.replace_time_zone(None), "the times carry no offset"),
    "before the calendar": (
        pl.Series([0, -(2**62)], dtype=pl.Datetime("us", "UTC")), "row 2, column 't': the time lies outside",
    ),
    "after the calendar": (
        pl.Series([2**62, 0], dtype=pl.Datetime("ms", "UTC")), "row 1, column 't': the time lies outside",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TIMES)
def test_nothing_is_guessed_about_the_times_of_a_spine(
    what: str, store: FeatureStore, tmp_path: Path
) -> None:
    times, says = TIMES[what]
    before = contents(tmp_path)
    with pytest.raises(DataError) as told:
        store.get(SPINE.with_columns(times.alias("t")))
    assert says in str(told.value)
    assert contents(tmp_path) == before, "not even the spine"


@pytest.mark.parametrize(
    "times",
    [
        pl.Series(["2026-01-08T13:00+01:00"] * 2, dtype=pl.Categorical),
        pl.Series(["2026-01-08T13:00+01:00"] * 2, dtype=pl.Enum(["2026-01-08T13:00+01:00"])),
        pl.Series(MOMENT).dt.convert_time_zone("Asia/Tokyo"),
        pl.Series(MOMENT).dt.cast_time_unit("ms"),
        pl.Series(MOMENT).dt.cast_time_unit("ns"),
    ],
)
def test_instants_are_taken_however_they_are_written(times: pl.Series, store: FeatureStore) -> None:
    asked = SPINE.with_columns(times.alias("t"))
    assert store.get(asked).manifest["digest"] == store.get(SPINE).manifest["digest"]


def test_a_duration_is_no_amount(store: FeatureStore) -> None:
    with pytest.raises(DataError, match=r"column 'x': is Duration.* in the spine, and float in a request"):
        store.get(SPINE.with_columns(x=pl.Series([DAY, DAY])))


# ---------------------------------------------------------------- files of a spine


def test_a_spine_is_the_file_that_was_named_and_no_other(tmp_path: Path) -> None:
    for number in (1, 2):
        SPINE.head(number).write_parquet(tmp_path / f"a[{number}].parquet")
        SPINE.head(number).write_csv(tmp_path / f"a[{number}].csv")
    for suffix in ("parquet", "csv"):
        assert read_spine(tmp_path / f"a[1].{suffix}").height == 1
        with pytest.raises(DataError, match="cannot be read"):
            read_spine(tmp_path / f"*.{suffix}")
    with pytest.raises(DataError, match="it is a folder; name one file"):
        read_spine(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("k,t,k\na,b,c\n", "column 'k': stands twice in the header"),
        ('k,t\n"a\nb",c\na,b\na,b,c\na,b,c,d\n', "row 3: has 3 fields, and the header 2"),
        ('k,t\na,"b\n', "cannot be read: could not parse"),
    ],
)
def test_a_csv_file_that_cannot_be_meant_is_told_by_its_place(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "spine.csv").write_text(text)
    with pytest.raises(DataError) as told:
        read_spine(tmp_path / "spine.csv")
    assert says in str(told.value)
    assert "Consider" not in str(told.value)
    assert "might want" not in str(told.value)


# ---------------------------------------------------------------- in words


def test_a_list_says_everything_that_a_feature_is_made_of(tmp_path: Path) -> None:
    text = PROJECT.replace(
        "last: {latest: x}",
        "q: {window: {of: x, agg: quantile, quantile: 0.9, over: 1d}}, "
        "at: {value_at: {of: x, ago: 1d, tolerance: 90m}}, exact: {value_at: {of: x, ago: 1d}}",
    ).replace("hour: {hour_of: t}", "hour: {hour_of: t, timezone: Europe/Berlin}, f: "
              "{function: {path: operator.add, inputs: [x, x]}}")  # fmt: skip
    said = {feature["name"]: feature["definition"] for feature in opened(tmp_path, text).list()}
    assert said == {
        "q": "quantile 0.9 of s.x over 1d",
        "at": "s.x 1d before, or up to 90m older",
        "exact": "s.x 1d before",
        "total": "sum of s.x over 2d",
        "twice": "expr(x * 2)",
        "feast": "holiday_of(t) of DE in UTC",
        "hour": "hour_of(t) in Europe/Berlin",
        "f": "operator.add(x, x)",
    }


@pytest.mark.parametrize(
    ("target", "labels"),
    [
        ("{source: s, expr: y > 1, task: classification}", [1.0] * 8),
        ("{source: s, expr: y > 1, positive: false, task: classification}", [0.0] * 8),
        ("{source: s, expr: CAST(y AS VARCHAR), positive: '2.0', task: classification}", [1.0] * 8),
        ("{source: s, expr: CAST(y AS VARCHAR), positive: other, task: classification}", [0.0] * 8),
        ("{source: s, expr: CAST(y AS INT), positive: 2, task: classification}", [1.0] * 8),
    ],
)
def test_a_class_is_labelled_1_and_every_other_0(
    store: FeatureStore, tmp_path: Path, target: str, labels: list[float]
) -> None:
    text = PROJECT.replace("{source: s, expr: y, task: regression}", target).replace("2d", "1h")
    made = opened(tmp_path, text).build(store.snapshots())
    assert made.frame["label"].to_list() == labels[1:]
    assert rebuild(file_of(made)).frame["label"].to_list() == labels[1:]


def test_a_class_of_another_type_than_the_column_is_said(store: FeatureStore, tmp_path: Path) -> None:
    target = "{source: s, expr: y, positive: late, task: classification}"
    text = PROJECT.replace("{source: s, expr: y, task: regression}", target)
    with pytest.raises(DataError, match=r"the target .* cannot be computed"):
        opened(tmp_path, text).build(store.snapshots())


# ---------------------------------------------------------------- who gets rows


def test_who_gets_rows_is_recorded_before_and_gets_none_where_that_cannot_be(
    store: FeatureStore, tmp_path: Path
) -> None:
    made = store.get(SPINE)
    store.export_feast(tmp_path / "feast")
    rebuild(file_of(made))
    about = {"project": "p", "sources": ["s"]}
    assert [(each["what"], each["by"], each["about"]) for each in audit.entries(store.storage)] == [
        ("features were asked for", audit.who(), about | {"rows": 2}),
        ("rows were exported", audit.who(), about | {"rows": 8}),
        ("a training set was rebuilt", audit.who(), {"set": made.path.stem, "rows": 2}),
    ]
    unrecordable(store.storage)
    before = contents(tmp_path)
    acts = (
        lambda: store.get(SPINE.head(1)),
        lambda: store.export_feast(tmp_path / "again"),
        lambda: rebuild(file_of(made)),
    )
    for act in acts:
        with pytest.raises(StorageError, match="audit record cannot be written"):
            act()
    assert contents(tmp_path) == before
