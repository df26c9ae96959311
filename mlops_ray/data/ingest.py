"""Sources through Ray Data: every input is read and checked in a task, and its valid rows are staged.

What is staged are Parquet files under the storage, gone when it is over: a source is never in memory as a
whole, whoever looks at it next (the history, a report, `explore`).
"""

import contextlib
import fcntl
import logging
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import ray

from mlops_ray import placement
from mlops_ray.config import File, Source
from mlops_ray.data.ahead import ahead
from mlops_ray.data.blocks import check_file
from mlops_ray.data.erased import Erased
from mlops_ray.data.inputs import shown
from mlops_ray.data.profile import View, profile
from mlops_ray.data.validate import (
    EVENT_TIME,
    FAILED,
    QUARANTINE,
    REPEATED,
    Report,
    Verdict,
    columns_of_table,
    quoted,
    table_checks,
)
from mlops_ray.errors import DataError, MlopsError, StorageError, first_line, one_line
from mlops_ray.policy import label_selector
from mlops_ray.schema import DTYPES, INSTANT
from mlops_ray.storage import replacing

#: Valid rows are written when so many bytes of them are gathered; bounds the memory of a task.
PART_BYTES = 32 << 20
#: Rows that are worked on in one piece rather than bucket by bucket.
WHOLE_ROWS = 1_000_000
#: Inputs are shared out to so many tasks at most: a task has a fixed cost.
TASKS = 64
#: What stands beside the table's columns in a part: the input's number, the row's in it, and its bucket.
INPUT, ROW, BUCKET = "_input", "_row", "_bucket"
STAGING, LOCK = "staging", ".lock"

#: Which of so many buckets each row of a frame lies in: all rows of a key in one.
Partition = Callable[[pl.DataFrame], pl.Series]


@dataclass
class Staged:
    """What reading inputs of a source gave: valid rows in files, failures in others, and the counts."""

    source: Source
    name: str
    folder: Path
    inputs: Sequence[File]
    report: Report = field(default_factory=Report)
    parts: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    #: Of each input, how many rows it has, whatever became of them.
    rows_of: dict[int, int] = field(default_factory=dict)
    #: What was found of the checks of all rows together, see `table_checks`.
    table: list[dict[str, Any]] = field(default_factory=list)
    #: The ids of the nodes on which it was read.
    nodes: set[str] = field(default_factory=set)
    #: Rows that were left out since they are of somebody whose rows were erased.
    erased: int = 0
    #: Whether the parts were written again, each row at its time.
    _is_settled: bool = False

    def scan(self) -> pl.LazyFrame:
        """The valid rows, in the order of inputs and rows within a bucket."""
        if not self.parts:
            types = {c.name: DTYPES[c.type] for c in self.source.row_schema.columns} | {EVENT_TIME: INSTANT}
            return pl.LazyFrame(schema={name: types[name] for name in columns_of_table(self.source)})
        rows = pl.scan_parquet(self.parts, hive_partitioning=False, glob=False)
        time = self.source.event_time
        if time is not None and time.order and not self._is_settled:
            # Each input's rows follow those of the one before it.
            before, shifts = 0, {}
            for number in range(len(self.inputs)):
                shifts[number] = before
                before += self.rows_of.get(number, 0) * (time.every or 0)
            shift = pl.col(INPUT).replace_strict(shifts, return_dtype=pl.Int64)
            rows = rows.with_columns(pl.col(EVENT_TIME) + pl.duration(microseconds=shift))
        return rows

    def first(self, count: int) -> pl.DataFrame:
        """Some of the valid rows, with the table's columns."""
        return self.scan().select(columns_of_table(self.source)).head(count).collect()

    def chunks(self) -> Iterator[pl.DataFrame]:
        """The rows to store, with the table's columns; all of a key in one frame."""
        return self._buckets(columns_of_table(self.source))

    def _buckets(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        rows = self.scan()
        if not self.parts:
            return
        if self.report.valid <= WHOLE_ROWS:
            yield rows.select(columns).collect()
            return
        for bucket in sorted(rows.select(pl.col(BUCKET).unique()).collect()[BUCKET]):
            yield rows.filter(pl.col(BUCKET) == bucket).select(columns).collect()

    def settle(self) -> None:
        """Finds rows that another of their identity follows; raises `DataError` where they stop the job."""
        source, identity, severity = self.source, _identity(self.source), self.source.unique
        looked_at = dict.fromkeys([*identity, *([source.deleted] if source.deleted else []), INPUT, ROW])
        repeated = 0
        for rows in self._buckets(list(looked_at)):
            found = self._failed(rows.filter(_repeats(rows, source)), identity)
            if found.is_empty():
                continue
            repeated += found.height
            if severity == "stop":
                first = found.row(0, named=True)
                raise DataError(
                    REPEATED,
                    file=first["_file"],
                    row=first["_row"],
                    said=quoted(first["value"]),
                    then=f" comes once more behind it (and {found.height - 1:,} more such rows); unique:"
                    " stop ends the job",
                )
            if severity == "reject":
                self.failures.append(_write(found, self.folder, "failed"))
                self.report.take_back(found)
            else:
                self.report.note(found)
        if repeated and severity == "reject":
            self._take_out_repeats()
        self.table = self._table_checks(repeated)

    def _take_out_repeats(self) -> None:
        """Writes the parts again, without them and with each row at its time."""
        names = [*columns_of_table(self.source), INPUT, ROW, BUCKET]
        kept = (rows.filter(~_repeats(rows, self.source)) for rows in self._buckets(names))
        self.parts, self._is_settled = [_write(rows, self.folder, "kept") for rows in kept], True

    def _table_checks(self, repeated: int) -> list[dict[str, Any]]:
        names = list(self.source.checks.missing)
        facts = [pl.col(name).null_count().alias(f"missing {name}") for name in names]
        facts += [pl.col(EVENT_TIME).max()] if self.source.checks.freshness and self.source.event_time else []
        found = self.scan().select(facts).collect().row(0, named=True) if facts else {}
        return table_checks(
            self.source,
            valid=self.report.valid,
            repeated=repeated,
            newest=found.get(EVENT_TIME),
            missing={name: found[f"missing {name}"] for name in names},
            now=datetime.now(UTC),
        )

    @property
    def view(self) -> View:
        """What people may see of the rows."""
        return View(
            self.source.row_schema.columns,
            time=EVENT_TIME if self.source.event_time else None,
            keys=self.source.entity,
            hidden=self.source.hidden,
            minimum_count=self.source.policy.minimum_count if self.source.policy.restricts else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The report, as report.py shows it."""
        return {
            "source": self.name,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "erased": self.erased,
            **self.report.to_json(self.source.policy.curated.rows if self.source.policy.curated else None),
            "table": self.table,
            "profile": profile(self.scan(), self.view),
        }

    def _failed(self, rows: pl.DataFrame, identity: Sequence[str]) -> pl.DataFrame:
        titles = {number: shown(file) for number, file in enumerate(self.inputs)}
        hidden = self.source.hidden.intersection(identity) or self.source.policy.curated is not None
        value = pl.concat_str([pl.col(n).cast(pl.String).fill_null("null") for n in identity], separator=", ")
        return rows.select(
            pl.col(INPUT).replace_strict(titles, return_dtype=pl.String).alias("_file"),
            ROW,
            pl.lit(None, pl.String).alias("column"),
            pl.lit(REPEATED).alias("rule"),
            (pl.lit(None, pl.String) if hidden or not identity else value).alias("value"),
            pl.lit(self.source.unique).alias("severity"),
        )

    def write_quarantine(self, path: Path) -> None:
        """The rows that were rejected, with the rule and, where people may see it, the value."""
        if not self.failures:
            rows = pl.LazyFrame(schema=FAILED)
        else:
            rows = pl.scan_parquet(self.failures, glob=False)
        rows = rows.filter(pl.col("severity") == "reject").select(*QUARANTINE)
        curated = self.source.policy.curated
        if curated is not None:
            seen = pl.col("value").is_not_null().cum_sum() <= curated.rows
            rows = rows.with_columns(pl.when(seen).then("value"))
        try:
            with replacing(path) as new:
                rows.sink_parquet(new)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise StorageError(f"{path} cannot be written: {first_line(error)}") from error


@contextlib.contextmanager
def staging(source: Source, name: str, inputs: Sequence[File], storage: Path) -> Iterator[Staged]:
    """A place for what is read of a source, taken away at the end; so is what a killed process left."""
    root = storage / STAGING
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        with _locked(root, wait=True):
            _remove_left(root)
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
            held.enter_context(_locked(folder))
        try:
            yield Staged(source, name, folder, inputs)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def clear(storage: Path) -> None:
    """Takes away what processes that were killed had staged."""
    root = storage / STAGING
    if root.is_dir():
        with _locked(root, wait=True):
            _remove_left(root)


def _remove_left(root: Path) -> None:
    for left in (path for path in root.iterdir() if path.is_dir()):
        with contextlib.suppress(OSError), _locked(left):
            shutil.rmtree(left)


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Waits, or raises `BlockingIOError`, where another process has it."""
    with (folder / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def read(
    staged: Staged,
    partition: Partition,
    *,
    after: Mapping[int, object] | None = None,
    on_progress: Callable[[Report], None] = lambda report: None,
) -> None:
    """Reads and checks the inputs, and stages what is found.

    `after` are the least values of the cursors of queries, by input. Raises `DataError` with file and row
    where an input cannot be read, or a check of severity `stop` fails.
    """
    erased = Erased.of(staged.folder.parent.parent / "features", staged.name)
    task = Task(staged.source, tuple(staged.inputs), str(staged.folder), partition, dict(after or {}), erased)
    for part in on_ray(task, label_selector([staged.source.policy])):
        staged.nodes.update(part.get("nodes", ()))
        if "error" in part:
            raise DataError(**part["error"])
        staged.report.merge(Report.from_json(part["report"]))
        staged.parts += part["valid"]
        staged.failures += part["failed"]
        staged.erased += part["erased"]
        for number, rows in part["rows_of"]:
            staged.rows_of[number] = max(rows, staged.rows_of.get(number, 0))
        on_progress(staged.report)
    staged.settle()


def on_ray(task: "Task", selector: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What a task says of all its inputs, in their order, on nodes with these labels (policy.py)."""
    placement.require_room(selector, {"CPU": 1})
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Reaches every task of the dataset, also those operators that take no argument.
    context.execution_options.label_selector = selector or None
    context.execution_options.preserve_order = True
    count = len(task.inputs)
    function: Any = task
    blocks = ray.data.range(count, override_num_blocks=min(count, TASKS)).map_batches(
        function, batch_size=None, batch_format="pyarrow"
    )
    yield from said_by_tasks(blocks, "reading", task.source.policy.restricts)


def said_by_tasks(blocks: Any, doing: str, restricts: bool) -> Iterator[Any]:
    """What the tasks of a Ray dataset say: JSON in its column `said`, in its order.

    Raises `DataError` where they fail in `doing` so; where it `restricts`, without quoting anything.
    """
    batches: Any = iter(blocks.iter_batches(batch_size=None, batch_format="pyarrow"))
    try:
        # Closed by us: Ray's iterator calls into the cluster when it ends, which must then still be there.
        with contextlib.closing(batches):
            for batch in batches:
                yield from map(orjson.loads, batch["said"].to_pylist())
    except ray.exceptions.RayError as error:
        why = DataError(f"{doing} failed on Ray", said=f": {one_line(error)[:200]}")
        raise (why.without_data() if restricts else why) from error


@dataclass(frozen=True)
class Task:
    """Reads, checks and stages some of a source's inputs; says what came of it, one line of JSON a part.

    An error of the data is said as well: Ray would wrap a raised one, retry the task, and log it.
    """

    source: Source
    inputs: tuple[File, ...]
    folder: str
    partition: Partition
    after: dict[int, object]
    erased: Erased | None = None

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """`batch` names the inputs by their numbers, in the column `id`."""
        for part in self.parts(batch["id"].to_pylist()):
            yield pa.table({"said": [orjson.dumps(part | {"nodes": [placement.here()]})]})

    def parts(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """What is said of the inputs with these numbers."""
        try:
            yield from self._parts(numbers)
        except DataError as error:
            # Apart, so that the error log leaves out what quotes the data.
            yield {"error": error.parts}
        except MlopsError as error:
            yield {"error": {"message": str(error)}}
        except (Exception, pl.exceptions.PanicException) as error:  # noqa: BLE001
            # Whatever data can do to a library. Raised, Ray would log it with the values that it quotes.
            names = ", ".join(shown(self.inputs[number]) for number in numbers)
            said = "" if self.source.policy.restricts else f": {one_line(error)[:200]}"
            failed = f"{names[:500]}: cannot be read: {type(error).__name__}"
            yield {"error": {"message": failed, "said": said}}

    def _parts(self, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
        # One is written while the next is gathered.
        return ahead(_Part.written, self._gathered(numbers), workers=1)

    def _gathered(self, numbers: Iterable[int]) -> "Iterator[_Part]":
        part = _Part(self)
        for number in numbers:
            file = self.inputs[number]
            for verdict in check_file(file, self.source, self.after.get(number)):
                part.add(number, shown(file), verdict)
                if part.bytes >= PART_BYTES:
                    yield part
                    part = _Part(self)
            part.rows_of.setdefault(number, 0)
        yield part


@dataclass
class _Part:
    """Verdicts that are gathered until they are worth a file."""

    task: Task
    report: Report = field(default_factory=Report)
    valid: list[pl.DataFrame] = field(default_factory=list)
    failed: list[pl.DataFrame] = field(default_factory=list)
    rows_of: dict[int, int] = field(default_factory=dict)
    bytes: float = 0
    erased: int = 0

    def add(self, number: int, file: str, verdict: Verdict) -> None:
        if self.task.erased is not None:
            are_theirs = self.task.erased.are_theirs(verdict.valid)
            self.erased += int(are_theirs.sum())
            verdict = _without(verdict, are_theirs) if are_theirs.any() else verdict
        self.report.add(verdict, file)
        self.rows_of[number] = max(verdict.last, self.rows_of.get(number, 0))
        if verdict.valid.height:
            number_of_input = pl.lit(number, pl.Int32).alias(INPUT)
            rows = verdict.valid.with_columns(number_of_input, verdict.rows.alias(ROW))
            self.valid.append(rows)
            self.bytes += rows.estimated_size()
        rejected = verdict.failures.filter(pl.col("severity") == "reject")
        if rejected.height:
            self.failed.append(rejected)
            self.bytes += rejected.estimated_size()

    def written(self) -> dict[str, Any]:
        """Writes what was gathered; where it lies, and what was counted."""
        folder = Path(self.task.folder)
        valid = []
        if self.valid:
            rows = pl.concat(self.valid)
            rows = rows.with_columns(self.task.partition(rows).alias(BUCKET))
            valid.append(_write(rows.sort(BUCKET, maintain_order=True), folder, "valid"))
        failed = [_write(pl.concat(self.failed), folder, "failed")] if self.failed else []
        counts = list(self.rows_of.items())
        told = {"report": self.report.to_json(), "valid": valid, "failed": failed, "rows_of": counts}
        return told | {"erased": self.erased}


def _without(verdict: Verdict, are_theirs: pl.Series) -> Verdict:
    """The verdict without these of its valid rows, nor what was flagged of them."""
    gone = verdict.rows.filter(are_theirs)
    return replace(
        verdict,
        valid=verdict.valid.filter(~are_theirs),
        rows=verdict.rows.filter(~are_theirs),
        failures=verdict.failures.filter(~pl.col("_row").cast(pl.Int64).is_in(gone.cast(pl.Int64).implode())),
        filtered=verdict.filtered + gone.len(),
    )


def _write(rows: pl.DataFrame, folder: Path, what: str) -> str:
    path = folder / f"{what}-{uuid.uuid4()}.parquet"
    try:
        rows.write_parquet(path, compression="uncompressed", row_group_size=1 << 15)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise StorageError(f"{path} cannot be written: {first_line(error)}") from error
    return str(path)


def _identity(source: Source) -> list[str]:
    """What tells rows of a source apart, versions of one row included."""
    time = EVENT_TIME if source.event_time else None
    known = source.known_at.column if source.known_at else None
    names = (*source.entity, source.row_id or time, known, source.sequence)
    return list(dict.fromkeys(name for name in names if name is not None))


def _repeats(rows: pl.DataFrame, source: Source) -> pl.Series:
    """Which rows another one of their identity follows: the last counts, as it does between readings."""
    identity = _identity(source)
    # A row that takes another back does not repeat it.
    gone = pl.col(source.deleted).fill_null(False) if source.deleted else pl.lit(False)
    # Without an identity the table is a single row.
    who = pl.struct(identity) if identity else pl.repeat(0, pl.len())
    # Few hash alike, and only those are compared.
    places = rows.select(pl.arg_where(who.hash().is_duplicated() & ~gone)).to_series()
    followed = ~rows[places].select(who.is_last_distinct()).to_series()
    return pl.repeat(False, rows.height, eager=True).scatter(places.filter(followed), True)
