"""What came true: labels that arrive late, by request or by what was asked for.

    labels/MODEL/date=YYYY-MM-DD/NUMBER.parquet   by the day on which they came

A label names its row by `request_id` and `row`, or by columns of the request (an entity and its time), and
has a `label` and `known_at`, when it came. One that comes again counts once: the later wins, and the earlier
is kept.
"""

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import polars as pl

from mlops_ray.data.prediction_log import ASKED
from mlops_ray.errors import DataError
from mlops_ray.instants import LATEST, from_micros
from mlops_ray.schema import DTYPES, INSTANT, Column
from mlops_ray.storage import PRIVATE, Storage, replacing

FOLDER = "labels"
LABEL, KNOWN_AT = "label", "known_at"
BY_REQUEST = ("request_id", "row")
#: Words for yes and no, beside the names that a project gives them.
WORDS = {"true": 1.0, "yes": 1.0, "1": 1.0, "false": 0.0, "no": 0.0, "0": 0.0}


def parse(
    rows: pl.DataFrame, columns: Sequence[Column], task: str, names: tuple[str, str] | None = None
) -> pl.DataFrame:
    """Labels as they are stored, from rows of text or typed values; `columns` are those of the request.

    `names` are what no and yes are called. Raises `DataError` that names the row, from 1, and what it lacks.
    """
    if LABEL not in rows.columns:
        raise DataError(f"labels need a column {LABEL!r}; there are {', '.join(rows.columns) or 'none'}")
    known = {column.name: column for column in columns}
    keys = [name for name in rows.columns if name in known]
    if "request_id" in rows.columns:
        keys = list(BY_REQUEST)
        rows = rows if "row" in rows.columns else rows.with_columns(row=pl.lit(0))
        typed = [rows["request_id"].cast(pl.String), _whole(rows["row"])]
    elif keys:
        typed = [_typed(rows[name], known[name]) for name in keys]
    else:
        raise DataError(
            "labels need the column 'request_id', or columns of the request: " + ", ".join(map(repr, known))
        )
    for series in typed:
        _require(series)
    values = _values(rows[LABEL], task, names)
    return pl.DataFrame([*typed, values])


def write(storage: Storage, model: str, labels: pl.DataFrame) -> int:
    """Stores labels that `parse` made, on disk when this returns, and returns how many."""
    now = datetime.fromtimestamp(time.time(), UTC)
    known_at = pl.lit(now).cast(INSTANT).alias(KNOWN_AT)
    name = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.parquet"
    # What is predicted may be for no eyes.
    with replacing(storage.path(FOLDER, model, f"date={now:%Y-%m-%d}", name), mode=PRIVATE) as file:
        labels.with_columns(known_at).write_parquet(file)
    return labels.height


def read(storage: Storage, model: str, after: float = 0.0, until: float = math.inf) -> list[pl.DataFrame]:
    """The labels that came between two instants (seconds since the epoch), by how they name their rows."""
    found: dict[tuple[str, ...], list[pl.DataFrame]] = {}
    ends = [from_micros(int(after * 1e6)), LATEST if until == math.inf else from_micros(int(until * 1e6))]
    for path in sorted((storage.root / FOLDER / model).glob("date=*/[!.]*.parquet")):
        if path.parent.name < f"date={ends[0]:%Y-%m-%d}":
            continue
        frame = pl.read_parquet(path).filter(pl.col(KNOWN_AT) > ends[0], pl.col(KNOWN_AT) <= ends[1])
        found.setdefault(tuple(sorted(set(frame.columns) - {LABEL, KNOWN_AT})), []).append(frame)
    return [pl.concat(frames, how="diagonal_relaxed") for frames in found.values()]


def labelled(predictions: pl.LazyFrame, labels: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The rows of `prediction_log` that have a label: which, `prediction`, and the latest `label`, `known_at`.

    Only what a label is of is read of the others.
    """
    schema = predictions.collect_schema()
    told = [*BY_REQUEST, "prediction"]
    found = [
        pl.DataFrame(schema={name: schema[name] for name in told} | {LABEL: pl.Float64, KNOWN_AT: INSTANT})
    ]
    for frame in labels:
        keys = [name for name in frame.columns if name not in (LABEL, KNOWN_AT)]
        theirs = keys if "request_id" in keys else [ASKED + key for key in keys]
        if not set(theirs) <= set(schema):
            continue
        latest = frame.sort(KNOWN_AT, maintain_order=True).unique(keys, keep="last", maintain_order=True)
        latest = latest.rename(dict(zip(keys, theirs, strict=True)))
        latest = latest.cast({name: schema[name] for name in theirs})
        asked = predictions.select({*told, *theirs}).join(latest.lazy(), on=theirs, how="inner")
        found.append(asked.select(*told, LABEL, KNOWN_AT).collect(engine="streaming"))
    # Named in two ways, a row has two labels.
    both = pl.concat(found).sort(KNOWN_AT, *BY_REQUEST, maintain_order=True)
    return both.unique(BY_REQUEST, keep="last", maintain_order=True)


def _whole(values: pl.Series) -> pl.Series:
    """Numbers of rows, null where one is none."""
    numbers = values.cast(pl.Float64, strict=False)
    return numbers.cast(pl.Int32, strict=False).set(numbers != numbers.floor(), None)


def _typed(values: pl.Series, column: Column) -> pl.Series:
    if column.type == "datetime":
        if values.dtype == pl.String:
            return values.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
        return values.cast(INSTANT)
    return values.cast(DTYPES[column.type], strict=False)


def _require(values: pl.Series) -> None:
    if values.null_count():
        at = int(values.is_null().arg_max() or 0)
        raise DataError(f"row {at + 1} of the labels has no usable {values.name!r}")


def _values(given: pl.Series, task: str, names: tuple[str, str] | None) -> pl.Series:
    if task == "classification":
        words: Mapping[str, float] = WORDS | (
            {names[0].lower(): 0.0, names[1].lower(): 1.0} if names is not None else {}
        )
        text = given.cast(pl.String).str.to_lowercase().str.strip_suffix(".0")
        values = text.replace_strict(words, default=None, return_dtype=pl.Float64)
    else:
        values = given.cast(pl.Float64, strict=False)
    values = values.alias(LABEL)
    bad = values.is_null() | values.is_nan() | values.is_infinite()
    if bad.any():
        at = int(bad.arg_max() or 0)
        wanted = "yes or no" if task == "classification" else "a number"
        raise DataError(f"row {at + 1} of the labels: {given[at]!r} is not {wanted}")
    return values
