"""Batch scoring: the answers of the endpoint, row by row, whatever stops it on its way."""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from mlops_ray.data import delimited
from mlops_ray.errors import DataError, InvalidRowError, StorageError, UsageError
from mlops_ray.registry.outcome import Called, Outcome
from mlops_ray.registry.predictor import Predictor
from mlops_ray.serving import parts, protocol, score
from mlops_ray.serving.columns import Reader
from mlops_ray.serving.refusals import refuse_rejected
from mlops_ray.serving.score import Scoring
from mlops_ray.serving.versions import Served, reference
from tests.registry.made import write

#: A column of the request that nobody may see.
HIDDEN = frozenset({"lag"})
OUTCOMES = {
    "regression": Outcome(clip=(0.0, 1.5), function=Called.now("operator.neg")),
    "classification": Outcome(threshold=0.4, labels=("stays", "goes")),
}
TIME = datetime(2016, 11, 2, 10, tzinfo=UTC)


def load(entry: dict[str, Any]) -> Served:
    """As a version's entry says, without a service around it."""
    functions = frozenset({"operator.neg"})
    predictor = Predictor.load(Path(entry["package"]), None, digest=entry["digest"], functions=functions)
    package = predictor.package
    request, outcome = package.feature_set.request, package.outcome
    counts = reference(package)
    return Served(
        entry["version"], entry["digest"], request, counts, predictor, outcome.threshold, outcome.labels
    )


@pytest.fixture(scope="session")
def entries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A version for each task, as the release document names it."""
    folder = tmp_path_factory.mktemp("packages")
    made = {task: write(folder / task, task=task, outcome=outcome) for task, outcome in OUTCOMES.items()}
    return {
        task: {"version": "1", "digest": packed.digest, "package": str(packed.folder)}
        for task, packed in made.items()
    }


def scoring(entry: dict[str, Any], output: Path, hidden: frozenset[str] = HIDDEN) -> Scoring:
    return Scoring(load, entry, hidden, str(score.parts_folder(output)))


def scored(
    entry: dict[str, Any], given: Path | str, output: Path, hidden: frozenset[str] = HIDDEN, **how: Any
) -> pl.DataFrame:
    """The answers to files."""
    with score.opened(scoring(entry, output, hidden), str(given), output) as job:
        said = job.run(**{"on_ray": False, **how})
    answers = pl.read_parquet(output if output.is_file() else output / "*.parquet")
    assert (said["rows"], said["errors"]) == (answers.height, answers["error"].count())
    assert not score.parts_folder(output).exists()
    return answers


def asked(served: Served, row: dict[str, Any], hidden: frozenset[str] = HIDDEN) -> dict[str, Any]:
    """What the endpoint answers to one row that is sent to it."""
    body = orjson.dumps({"dataframe_records": [row]})
    try:
        request = protocol.decode_invocations(Reader(served.request, hidden), body, None)
        answer = served.predictor.predict(request.rows.frame)
        refuse_rejected(answer.failures, served.request, hidden)
    except InvalidRowError as error:
        return dict.fromkeys(served.outputs) | {"error": re.sub(r"^row 0(, |: )", "", str(error))}
    found = {name: np.asarray(values)[0].item() for name, values in served.answers(answer.values).items()}
    return found | {"error": None}


def expected(served: Served, rows: list[dict[str, Any]], hidden: frozenset[str] = HIDDEN) -> pl.DataFrame:
    answers = [asked(served, row, hidden) for row in rows]
    return pl.DataFrame(answers, schema=[*served.outputs, "error"], infer_schema_length=None)


def same(answers: pl.DataFrame, wanted: pl.DataFrame) -> None:
    for name in wanted.columns:
        assert answers[name].to_list() == wanted[name].to_list(), name


TEXTS = st.sampled_from(
    [
        "", "a", "b", "1", "1.5", "7.0", " 2", "-3", "11", "1e400", "inf", "nan", "NaN", "1_0", "0x1", "true",
        "False", "yes", "99999999999999999999", "2016-11-02T10:00:00Z", "2016-11-02 10:00:00.25+01:00",
        "2016-11-02T10:00Z", "20161102T100000Z", "2016-11-02T10:00:00", "2016-11-02", "2016-13-02T10:00:00Z",
        "2016-11-02T24:00:00Z", "2016-11-02T10:00:60Z", "0000-11-02T10:00:00Z", "1478080800000000", "ü",
    ]
)  # fmt: skip
REQUEST = ("site", "time", "lag", "hour", "holiday")
GOOD = st.fixed_dictionaries(
    {
        "site": st.sampled_from(["a", "b", "z"]),
        "time": st.just("2016-11-02T10:00:00Z"),
        "lag": st.floats(-5, 12).map(repr),
        "hour": st.integers(0, 30).map(str),
        "holiday": st.sampled_from(["true", "0", ""]),
    }
)
ROWS = st.tuples(GOOD, st.dictionaries(st.sampled_from(REQUEST), TEXTS, max_size=2)).map(
    lambda pair: pair[0] | pair[1]
)


@pytest.mark.parametrize("task", sorted(OUTCOMES))
@given(rows=st.lists(ROWS, min_size=1, max_size=25))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_row_of_text_gets_what_the_endpoint_answers_to_it_alone(
    entries: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, task: str, rows: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("text")
    pl.DataFrame(rows, schema=REQUEST).write_csv(folder / "rows.csv")
    answers = scored(entries[task], folder / "rows.csv", folder / "answers.parquet")
    same(answers, expected(load(entries[task]), rows))
    assert answers["site"].to_list() == [row["site"] for row in rows]


@pytest.mark.parametrize("text", ["x" * 10_001, "ü" * 10_000, "1." + "0" * 10_000])
@pytest.mark.parametrize("name", ["site", "lag"])
def test_text_that_the_endpoint_finds_too_long_is_too_long(
    entries: dict[str, Any], tmp_path: Path, name: str, text: str
) -> None:
    good = {"site": "a", "time": "2016-11-02T10:00:00Z", "lag": "0.5", "hour": "1", "holiday": "true"}
    rows = [good, good | {name: text}]
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    answers = scored(entries["regression"], tmp_path / "rows.parquet", tmp_path / "answers")
    same(answers, expected(load(entries["regression"]), rows))


#: Columns of Parquet as programs write them, beside the types that a request declares.
TYPED: dict[str, list[Any]] = {
    "hour": [
        pl.Series([1, None, 40], dtype=pl.UInt8),
        pl.Series([1.0, float("nan"), 2.5]),
        pl.Series([2**63, 1, None], dtype=pl.UInt64),
        pl.Series([True, False, None]),
        pl.Series([Decimal("3.00"), Decimal("3.50"), None]),
        pl.Series([float("inf"), 1e300, -0.0]),
    ],
    "holiday": [
        pl.Series([1, 0, 2]),
        pl.Series([1.0, 0.5, None]),
        pl.Series(["yes", "maybe", None]),
    ],
    "site": [
        pl.Series([7, 8, None]),
        pl.Series([7.0, 7.5, 1e-7]),
        pl.Series([True, None, False]),
        pl.Series(["a", "b", None], dtype=pl.Categorical),
    ],
    "time": [
        pl.Series([TIME, TIME, None], dtype=pl.Datetime("ns", "Europe/Berlin")),
        pl.Series([TIME.replace(tzinfo=None)] * 3),
        pl.Series([TIME.date(), None, TIME.date()]),
        pl.Series([1478080800000000, -1, None]),
        pl.Series([1478080800000000.0, 0.5, None]),
    ],
    "lag": [
        pl.Series([0.5, 11.0, None], dtype=pl.Float32),
        pl.Series([1, 11, None]),
        pl.Series([float("nan"), 0.25, 10.5]),
        pl.Series([True, None, False]),
        pl.Series([TIME, None, None]),
    ],
}


def sent(value: Any) -> Any:
    """A value of a Parquet file as a caller sends it in JSON, which knows neither NaN nor more types."""
    if isinstance(value, float) and np.isnan(value):
        return None
    if isinstance(value, Decimal):
        return str(value).rstrip("0").rstrip(".")
    return value.isoformat() if hasattr(value, "isoformat") else value


@pytest.mark.parametrize(
    ("name", "column"), [(name, column) for name, columns in TYPED.items() for column in columns]
)
def test_typed_columns_are_read_as_the_endpoint_reads_what_a_caller_makes_of_them(
    entries: dict[str, Any], tmp_path: Path, name: str, column: pl.Series
) -> None:
    good = {"site": "a", "time": TIME, "lag": 0.5, "hour": 1, "holiday": True}
    frame = pl.DataFrame([good] * 3).with_columns(column.alias(name))
    frame.write_parquet(tmp_path / "rows.parquet")
    rows = [{key: sent(value) for key, value in row.items()} for row in frame.rows(named=True)]
    if name == "hour" and "inf" in str(column.to_list()):
        # JSON has no word for it; binary tensors and MLflow's CSV have.
        rows[0]["hour"] = "inf"
    served = load(entries["regression"])
    answers = scored(entries["regression"], tmp_path / "rows.parquet", tmp_path / "answers", frozenset())
    wanted = expected(served, rows, frozenset())
    if name == "hour" and "inf" in str(column.to_list()):
        assert "is not a whole number" in answers["error"][0]
        answers, wanted = answers[1:], wanted[1:]
    same(answers, wanted)


def csv(count: int, bad: Callable[[int], bool] = lambda row: False) -> str:
    lines = ["id,site,time,lag,hour,holiday"]
    lines += [
        f"{row},{'ab'[row % 2]},2016-11-02T10:00:00Z,{'secret' if bad(row) else row % 9},{row % 24},0"
        for row in range(count)
    ]
    return "\n".join(lines)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of some hundred rows."""
    monkeypatch.setattr(parts, "ROWS", 50)
    monkeypatch.setattr(parts, "PART_ROWS", 100)
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 4_000)


@given(
    rows=st.lists(st.sampled_from([0, 1, 1_000, 200_000, parts.MANY_ROWS]), min_size=1, max_size=600),
    readers=st.integers(1, 64),
)
def test_each_run_is_read_by_one_task_and_small_ones_share_it(rows: list[int], readers: int) -> None:
    runs = [parts.Run(number, "", None, count) for number, count in enumerate(rows)]
    tasks = parts.shared(runs, readers, score.TASKS)
    assert [number for first, end in tasks for number in range(first, end)] == [*range(len(runs))]
    assert len(tasks) <= score.TASKS
    if len(runs) <= score.TASKS // 2:
        most = [min(count, parts.PART_ROWS) for count in rows]
        assert all(sum(most[first:end]) <= parts.PART_ROWS for first, end in tasks)
        # No two next to each other would have been one.
        share = min(parts.PART_ROWS, sum(most) / readers)
        assert all(sum(most[a:d]) > share for (a, _), (_, d) in pairwise(tasks))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("output", ["answers", "answers.parquet"])
def test_rows_come_back_in_their_order_with_their_columns_and_nothing_that_nobody_may_see(
    entries: dict[str, Any], tmp_path: Path, output: str
) -> None:
    (tmp_path / "in").mkdir()
    whole = pl.read_csv(io.StringIO(csv(1_000, bad=lambda row: row % 10 == 3)), infer_schema=False)
    for number, frame in enumerate(whole.iter_slices(400)):
        table = frame.with_columns(error=pl.lit("mine"), blob=pl.lit(b"\x00")).to_arrow()
        parquet.write_table(table, tmp_path / "in" / f"{number}.parquet", row_group_size=130)
    answers = scored(entries["regression"], tmp_path / "in", tmp_path / output)
    assert answers.columns == [
        "id", "site", "time", "hour", "holiday", "blob", "prediction", "model_version", "error",
    ]  # fmt: skip
    assert answers["id"].to_list() == [str(row) for row in range(1_000)]
    assert answers.schema["blob"] == pl.Binary
    assert set(answers["model_version"]) == {"1"}
    bad = answers.filter(pl.col("error").is_not_null())
    assert bad["id"].cast(pl.Int64).to_list() == list(range(3, 1_000, 10))
    assert set(bad["error"]) == {"column 'lag': the value is not a number"}
    assert bad["prediction"].null_count() == bad.height
    for file in tmp_path.rglob("answers*"):
        assert file.is_dir() or b"secret" not in file.read_bytes()


@pytest.mark.usefixtures("small_parts")
def test_a_row_of_csv_that_cannot_be_split_costs_its_own_answer(
    entries: dict[str, Any], tmp_path: Path
) -> None:
    lines = csv(300).split("\n")
    lines[5], lines[250] = "4,a", "249,a,2016-11-02T10:00:00Z,1,1,0,7"
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    answers = scored(entries["regression"], tmp_path / "rows.csv", tmp_path / "answers")
    assert answers.height == 300
    wrong = answers.with_row_index().filter(pl.col("error").is_not_null())
    assert wrong.select("index", "id", "error").rows() == [
        (4, None, "the row cannot be read: 2 columns, not 6"),
        (249, None, "the row cannot be read: 7 columns, not 6"),
    ]
    assert answers["id"][250] == "250"


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_no_rows_get_no_answers(entries: dict[str, Any], tmp_path: Path, name: str) -> None:
    frame = pl.read_csv(io.StringIO(csv(1)), infer_schema=False).clear()
    frame.write_csv(tmp_path / name) if name.endswith("csv") else frame.write_parquet(tmp_path / name)
    answers = scored(entries["classification"], tmp_path / name, tmp_path / "answers.parquet")
    assert answers.height == 0
    assert answers.columns[-5:] == ["prediction", "decision", "label", "model_version", "error"]


# ---------------------------------------------------------------- going on


#: A process that scores and is killed by itself when so many parts are written.
DYING = """
import json, os, pathlib, signal, sys
from mlops_ray.data import delimited
from mlops_ray.serving import parts, score
from tests.serving.test_score import scoring
parts.ROWS, parts.PART_ROWS, delimited.BLOCK_BYTES = 50, 100, 4_000
entry, given, output = json.loads(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
seen = []
def note(rows):
    seen.append(rows)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
with score.opened(scoring(entry, output), given, output) as job:
    job.run(on_ray=False, on_progress=note)
"""


def killed(entry: dict[str, Any], given: Path, output: Path) -> None:
    """A run that ended in the midst."""
    root = Path(__file__).parent.parent.parent
    arguments = [orjson.dumps(entry).decode(), str(given), str(output)]
    done = subprocess.run(
        [sys.executable, "-c", DYING, *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not output.exists()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_run_that_was_killed_is_gone_on_with_and_what_is_done_is_not_done_again(
    entries: dict[str, Any], tmp_path: Path, name: str
) -> None:
    (tmp_path / "rows.csv").write_text(csv(1_000))
    pl.read_csv(tmp_path / "rows.csv", infer_schema=False).write_parquet(tmp_path / "rows.parquet")
    entry, given = entries["regression"], tmp_path / name
    killed(entry, given, tmp_path / "answers")
    folder = score.parts_folder(tmp_path / "answers")
    left = {part: part.stat().st_mtime_ns for part in folder.glob("*.parquet")}
    assert len(left) == 3
    (folder / ".000009-000000.parquet.x").write_text("half a part")
    with score.opened(scoring(entry, tmp_path / "answers"), str(given), tmp_path / "answers") as job:
        said = job.run(on_ray=False)
    known = sum(parquet.read_metadata(tmp_path / "answers" / part.name).num_rows for part in left)
    assert said["scored"] == 1_000 - known
    for part, written in left.items():
        assert (tmp_path / "answers" / part.name).stat().st_mtime_ns == written
    assert all(file.suffix == ".parquet" for file in (tmp_path / "answers").iterdir())
    whole = scored(entry, given, tmp_path / "at_once")
    assert pl.read_parquet(tmp_path / "answers" / "*.parquet").equals(whole)


@pytest.mark.usefixtures("small_parts")
def test_another_input_or_version_does_not_go_on_with_what_was_begun(
    entries: dict[str, Any], tmp_path: Path
) -> None:
    given, output = tmp_path / "rows.csv", tmp_path / "answers"
    given.write_text(csv(1_000))
    killed(entries["regression"], given, output)
    with pytest.raises(StorageError, match="that was of version 1, and this is version 2; delete it"):
        scored(entries["classification"] | {"version": "2"}, given, output)
    given.write_text(csv(1_001))
    with pytest.raises(StorageError, match=r"rows\.csv has changed, or is new; delete it to begin anew"):
        scored(entries["regression"], given, output)


def test_two_runs_do_not_score_into_one_place(entries: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(csv(10))
    entry, output = entries["regression"], tmp_path / "answers"
    first = score.opened(scoring(entry, output), str(tmp_path / "rows.csv"), output)
    with first, pytest.raises(StorageError, match="another run scores into"):
        scored(entry, tmp_path / "rows.csv", output)
    scored(entry, tmp_path / "rows.csv", output)
    with pytest.raises(UsageError, match="exists already"):
        scored(entry, tmp_path / "rows.csv", output)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no such file"),
        ({"a.txt.md": "x"}, "is neither Parquet nor CSV"),
        ({"a.csv": "site,time\n"}, "column 'lag': is missing; a request holds site, time, lag"),
        ({"a.csv": csv(1), "b.csv": "x\n1\n"}, "b.csv: has other columns, or other types, than"),
        ({"a.csv": "x,x\n"}, "stands twice in the header"),
        ({"a.parquet": "no such thing"}, "a.parquet: cannot be read"),
    ],
)
def test_an_input_that_cannot_be_scored_is_told_before_anything_is_written(
    entries: dict[str, Any], tmp_path: Path, files: dict[str, str], said: str
) -> None:
    (tmp_path / "in").mkdir()
    for name, text in files.items():
        (tmp_path / "in" / name).write_text(text)
    with pytest.raises(DataError, match=re.escape(said)):
        scored(entries["regression"], tmp_path / "in", tmp_path / "answers")
    assert not score.parts_folder(tmp_path / "answers").exists()


# ---------------------------------------------------------------- on Ray


class Dying:
    """A predictor that kills its process, once."""

    def __init__(self, predictor: Any, mark: Path) -> None:
        self._predictor, self._mark = predictor, mark

    def predict(self, inputs: pl.DataFrame, /) -> Any:
        if (inputs["hour"] == 13).any() and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self._predictor.predict(inputs)


@pytest.fixture
def by_value() -> Any:
    """Ray's workers cannot import this module."""
    import ray.cloudpickle as pickle

    pickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    yield
    pickle.unregister_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("ray_cluster", "by_value")
def test_on_ray_the_answers_are_the_same_though_an_actor_is_killed(
    entries: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for number, frame in enumerate(pl.read_csv(io.StringIO(csv(900))).iter_slices(300)):
        frame.write_parquet(tmp_path / "in" / f"{number}.parquet", row_group_size=150)
    entry, mark = entries["regression"], tmp_path / "killed"

    def dying(entry: dict[str, Any]) -> Served:
        served = load(entry)
        return replace(served, predictor=Dying(served.predictor, mark))  # type: ignore[arg-type]

    here = scored(entry, tmp_path / "in", tmp_path / "here")
    output, seen = tmp_path / "on_ray.parquet", list[int]()
    scoring_there = replace(scoring(entry, output), load=dying)
    with score.opened(scoring_there, str(tmp_path / "in"), output) as job:
        said = job.run(on_ray=True, on_progress=seen.append)
    assert mark.exists()
    assert (said["rows"], said["scored"]) == (900, 900)
    assert seen == sorted(seen)
    assert pl.read_parquet(output).equals(here)


@pytest.mark.usefixtures("ray_cluster", "by_value")
def test_many_small_files_are_read_by_few_tasks(
    entries: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    (tmp_path / "in").mkdir()
    for number, frame in enumerate(pl.read_csv(io.StringIO(csv(400)), infer_schema=False).iter_slices(10)):
        frame.write_csv(tmp_path / "in" / f"{number:02}.csv")
    asked, from_items = list[int](), ray.data.from_items

    def counted(items: list[Any], **how: Any) -> Any:
        asked.append(len(items))
        return from_items(items, **how)

    monkeypatch.setattr(ray.data, "from_items", counted)
    here = scored(entries["regression"], tmp_path / "in", tmp_path / "here")
    there = scored(entries["regression"], tmp_path / "in", tmp_path / "there", on_ray=True)
    # Of two CPUs one reads.
    assert asked == [1]
    assert there.equals(here)


class Failing:
    """A predictor with a defect, which quotes a value."""

    def predict(self, inputs: pl.DataFrame, /) -> Any:
        raise ZeroDivisionError("secret")


def failing(entry: dict[str, Any]) -> Served:
    return replace(load(entry), predictor=Failing())  # type: ignore[arg-type]


@pytest.mark.usefixtures("ray_cluster", "by_value")
@pytest.mark.parametrize("restricts", [False, True])
def test_what_goes_wrong_is_one_sentence_that_quotes_nothing_that_nobody_may_see(
    entries: dict[str, Any], tmp_path: Path, restricts: bool
) -> None:
    (tmp_path / "rows.csv").write_text(csv(10))
    output = tmp_path / "answers"
    there = replace(scoring(entries["regression"], output), load=failing, restricts=restricts)
    opened = score.opened(there, str(tmp_path / "rows.csv"), output)
    said = "scoring failed: ZeroDivisionError" + ("" if restricts else ": secret")
    for on_ray in (True, False):
        with opened as job, pytest.raises(DataError, match=f"^{said}$"):
            job.run(on_ray=on_ray)
        opened = score.opened(there, str(tmp_path / "rows.csv"), output)


def begun_by_others(folder: Path, how: str, outside: Path) -> None:
    """What somebody else may have made where the parts are to lie."""
    if how == "a link":
        outside.mkdir()
        folder.symlink_to(outside)
        return
    folder.mkdir(mode=0o700)
    if how == "open to others":
        folder.chmod(0o777)
    elif how == "a link for a lock":
        outside.write_text("precious")
        (folder / score.LOCK).symlink_to(outside)
    elif how == "parts":
        pl.DataFrame({"prediction": [666.0]}).write_parquet(folder / "000000-000000.parquet")
    elif how == "a list":
        (folder / score.MANIFEST).write_text("[]")


@pytest.mark.parametrize("how", ["a link", "open to others", "a link for a lock", "parts", "a list"])
def test_parts_that_others_have_begun_are_not_gone_on_with(
    entries: dict[str, Any], tmp_path: Path, how: str
) -> None:
    output, outside = tmp_path / "answers", tmp_path / "outside"
    (tmp_path / "rows.csv").write_text("site,time,lag,hour,holiday\na,2016-11-01T00:00:00Z,0.5,1,true\n")
    begun_by_others(score.parts_folder(output), how, outside)
    entry = next(iter(entries.values()))
    with (
        pytest.raises(StorageError),
        score.opened(scoring(entry, output), str(tmp_path / "rows.csv"), output),
    ):
        raise AssertionError("it was gone on with")
    assert not outside.is_file() or outside.read_text() == "precious"
