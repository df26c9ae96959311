"""What came true: labels that arrive late, by request or by what was asked for.

    labels/MODEL/date=YYYY-MM-DD/NUMBER.parquet   by the day on which they came

A label names its row by `request_id` and `row`, or by columns of the request (an entity and its time), and
has a `label` and `known_at`, when it came. One that comes again counts once: the later wins, and the earlier
is kept.
"""

import io
import logging
import math
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import polars as pl

from mlops_ray.data.erased import Erased
from mlops_ray.data.prediction_log import ASKED, rewriting
from mlops_ray.errors import DataError, StorageError, safe
from mlops_ray.instants import LATEST, from_micros
from mlops_ray.schema import DTYPES, INSTANT, Column, read_iso
from mlops_ray.storage import PRIVATE, Storage, replacing

FOLDER = "labels"
LABEL, KNOWN_AT = "label", "known_at"
BY_REQUEST = ("request_id", "row")
#: Where a row stands among those that are looked at.
AT = "at_row"
#: Errors are squared, and sums of them must stay numbers.
MOST_LABEL = 1e100
#: Of names and values that a caller sent, how many an error shows, and how many characters of each.
SHOWN, SHOWN_CHARACTERS = 10, 40
#: Words for yes and no, beside the names that a project gives them.
WORDS: dict[str, float] = {"true": 1.0, "yes": 1.0, "1": 1.0, "false": 0.0, "no": 0.0, "0": 0.0}

#: Sources, and which of their keys a column of a request is (`registry.package`).
Whose = Sequence[tuple[str, Mapping[str, str]]]

logger = logging.getLogger(__name__)


def parse(
    rows: pl.DataFrame, columns: Sequence[Column], task: str, names: tuple[str, str] | None = None
) -> pl.DataFrame:
    """Labels as they are stored, from rows of text or typed values; `columns` are those of the request.

    `names` are what no and yes are called. Raises `DataError` that names the row, from 1, and what it lacks.
    """
    if LABEL not in rows.columns:
        # Without a header that is one, what is taken for it is data.
        raise DataError(f"labels need a column {LABEL!r}", said=f"; there are {_shown(rows.columns)}")
    # An amount names nothing: measured again, it is another.
    known = {c.name: c for c in columns if c.type != "float" and c.name not in (LABEL, KNOWN_AT)}
    keys = [name for name in rows.columns if name in known]
    times = [name for name, column in known.items() if column.type == "datetime"]
    if "request_id" in rows.columns:
        keys = list(BY_REQUEST)
        rows = rows if "row" in rows.columns else rows.with_columns(row=pl.lit(0))
        typed = [rows["request_id"].cast(pl.String), _whole(rows["row"], pl.Int32())]
    elif keys and times and not set(keys) & set(times):
        raise DataError(
            f"labels by {', '.join(map(repr, keys))} need {times[0]!r} too: of which time they are"
        )
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


def without_erased(storage: Storage, labels: pl.DataFrame, whose: Whose) -> pl.DataFrame:
    """Labels that `parse` made but for those of keys whose rows were erased, as far as they name a key."""
    theirs = pl.repeat(False, labels.height, eager=True)
    for source, keys in whose:
        if named := [labels[name].alias(key) for name, key in keys.items() if name in labels.columns]:
            theirs |= Erased.of(storage.root / "features", source).are_theirs(pl.DataFrame(named))
    return labels.filter(~theirs)


def write(storage: Storage, model: str, labels: pl.DataFrame) -> int:
    """Stores labels that `parse` made, on disk when this returns, and returns how many.

    Raises `StorageError` where they cannot be written, as on a full disk.
    """
    now = datetime.fromtimestamp(time.time(), UTC)
    known_at = pl.lit(now).cast(INSTANT).alias(KNOWN_AT)
    name = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.parquet"
    content = io.BytesIO()
    labels.with_columns(known_at).write_parquet(content)
    try:
        # What is predicted may be for no eyes.
        with replacing(storage.path(FOLDER, model, f"date={now:%Y-%m-%d}", name), mode=PRIVATE) as file:
            file.write_bytes(content.getvalue())
    except OSError as error:
        raise StorageError(f"labels of {model!r} cannot be stored: {error.strerror}") from error
    return labels.height


def new(storage: Storage, model: str, after: float = 0.0, until: float = math.inf) -> list[pl.DataFrame]:
    """The labels that came in (after, until], seconds since the epoch, by how they name their rows.

    Those are left out whose row had one before: a label that comes again counts once.
    """
    first = from_micros(int(after * 1e6))
    last = LATEST if until == math.inf else from_micros(int(until * 1e6))
    days = [date for date in _dates(storage, model) if date.name <= f"date={last:%Y-%m-%d}"]
    known_at = pl.col(KNOWN_AT)
    found = []
    for keys, files in _by_keys(path for date in days for path in _of_day(date)).items():
        every = _scanned(files)
        came = every.filter(known_at > first, known_at <= last)
        before = every.filter(known_at <= first).select(keys)
        found.append(came.join(before, on=keys, how="anti").collect(engine="streaming"))
    return [frame for frame in found if frame.height]


def _dates(storage: Storage, model: str) -> list[Path]:
    return sorted((storage.root / FOLDER / model).glob("date=*"))


def _of_day(date: Path) -> list[Path]:
    return sorted(date.glob("[!.]*.parquet"))


def _by_keys(paths: Iterable[Path]) -> dict[tuple[str, ...], list[Path]]:
    found: dict[tuple[str, ...], list[Path]] = {}
    for path in paths:
        try:
            keys = sorted(set(pl.read_parquet_schema(path)) - {LABEL, KNOWN_AT})
        except (OSError, pl.exceptions.PolarsError) as error:
            _log_once(path, safe(error))
            continue
        found.setdefault(tuple(keys), []).append(path)
    return found


@lru_cache(maxsize=1_000)
def _log_once(path: Path, why: str) -> None:
    """A release looks every few seconds."""
    logger.error("labels in %s cannot be read: %s", path, why)


def since(storage: Storage, model: str, at: float) -> list[Path]:
    """The files of the day of that time and of later ones, seconds since the epoch; `scan` reads them."""
    first = f"date={from_micros(int(at * 1e6)):%Y-%m-%d}"
    return [path for date in _dates(storage, model) if date.name >= first for path in _of_day(date)]


def scan(paths: Iterable[Path]) -> list[pl.LazyFrame]:
    """All labels of files, by how they name their rows."""
    return [_scanned(files) for files in _by_keys(paths).values()]


def _scanned(paths: Sequence[Path]) -> pl.LazyFrame:
    return pl.concat([pl.scan_parquet(path) for path in paths], how="diagonal_relaxed")


def compact(storage: Storage, model: str) -> int:
    """Makes one file of each past day's, and returns how many are gone.

    A kill in between leaves labels twice, and a label that comes again counts once.
    """
    gone = 0
    with rewriting(storage, model):
        for date in _dates(storage, model):
            if date.name >= f"date={datetime.now(UTC):%Y-%m-%d}":
                continue
            for paths in _by_keys(_of_day(date)).values():
                if len(paths) > 1:
                    joined = _scanned(paths).collect()
                    with replacing(date / f"compact-{time.time_ns()}.parquet", mode=PRIVATE) as file:
                        joined.write_parquet(file)
                    for path in paths:
                        path.unlink()
                    gone += len(paths)
    return gone


def labelled(
    predictions: pl.LazyFrame, labels: Sequence[pl.DataFrame], also: Iterable[str] = ()
) -> pl.DataFrame:
    """The rows of `prediction_log` that have a label: which, `prediction`, the latest `label` and `known_at`.

    With the columns of `also` that the log has. Only what a label is of is read of the others.
    """
    predictions = predictions.with_row_index(AT)
    schema = predictions.collect_schema()
    told = [AT, *BY_REQUEST, "prediction", *(name for name in dict.fromkeys(also) if name in schema)]
    empty = {name: schema[name] for name in told} | {LABEL: pl.Float64(), KNOWN_AT: INSTANT}
    found = [pl.DataFrame(schema=empty)]
    for frame in labels:
        keys = [name for name in frame.columns if name not in (LABEL, KNOWN_AT)]
        by_request = "request_id" in keys
        theirs = keys if by_request else [ASKED + key for key in keys]
        if not set(theirs) <= set(schema):
            continue
        latest = frame.sort(KNOWN_AT, maintain_order=True).unique(keys, keep="last", maintain_order=True)
        latest = latest.rename(dict(zip(keys, theirs, strict=True)))
        latest = latest.cast({name: schema[name] for name in theirs})
        asked = predictions.select({*told, *theirs}).join(latest.lazy(), on=theirs, how="inner")
        rows = asked.select(*told, LABEL, KNOWN_AT).collect(engine="streaming")
        if by_request:
            # One that was sent again, and answered alike, counts once.
            rows = rows.unique([name for name in rows.columns if name != AT])
            # Callers name requests: of two that have one name nobody knows which is which.
            rows = rows.unique(BY_REQUEST, keep="none")
        found.append(rows)
    # Named in two ways, a row has two labels.
    both = pl.concat(found).sort(KNOWN_AT, AT, maintain_order=True)
    return both.unique(AT, keep="last", maintain_order=True).drop(AT)


def _typed(values: pl.Series, column: Column) -> pl.Series:
    if column.type == "datetime":
        if values.dtype == pl.String:
            return read_iso(values)
        # A day has many instants, and what has no zone is none.
        is_one = values.dtype.is_integer() or getattr(values.dtype, "time_zone", None) is not None
        return values.cast(INSTANT) if is_one else pl.Series(values.name, [None] * len(values), INSTANT)
    if column.type == "bool":
        words = values.cast(pl.String).str.to_lowercase().replace_strict(WORDS, default=None)
        return words.cast(pl.Boolean).alias(values.name)
    if column.type == "int":
        return _whole(values, pl.Int64())
    return values.cast(DTYPES[column.type], strict=False)


def _whole(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Whole numbers, null where one is none."""
    numbers = values.cast(pl.Float64, strict=False)
    return values.cast(dtype, strict=False).set(numbers != numbers.floor(), None)


def _require(values: pl.Series) -> None:
    if values.null_count():
        at = int(values.is_null().arg_max() or 0)
        hint = (
            "; a time is written with its offset, e.g. 2026-11-01T00:00Z" if values.dtype == INSTANT else ""
        )
        raise DataError(f"row {at + 1} of the labels has no usable {values.name!r}{hint}")


def _shown(given: Sequence[object]) -> str:
    """Names and values as an error has them: in quotes, by which a log knows what it may not keep."""
    texts = (repr(each[:SHOWN_CHARACTERS] if isinstance(each, str) else each) for each in given[:SHOWN])
    return ", ".join(texts) or "none"


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
    bad = values.is_null() | values.is_nan() | (values.abs() > MOST_LABEL)
    if bad.any():
        at = int(bad.arg_max() or 0)
        wanted = "yes or no" if task == "classification" else "a number"
        # It may be of a column that nobody may see.
        said = f": {_shown([given[at]])}"
        raise DataError(f"row {at + 1} of the labels", said=said, then=f" is not {wanted}")
    return values
