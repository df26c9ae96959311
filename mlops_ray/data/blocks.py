"""From an input's blocks to the verdicts over its rows: named, timed, unpivoted, checked."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import polars as pl

from mlops_ray.config import EventTime, File, Source
from mlops_ray.data import inputs, readers, validate
from mlops_ray.data.ahead import WORKERS, ahead
from mlops_ray.data.delimited import Block
from mlops_ray.data.event_time import Clock, columns_of
from mlops_ray.errors import DataError, did_you_mean
from mlops_ray.expressions import load_function
from mlops_ray.policy import quoting_nothing
from mlops_ray.schema import INSTANT

#: Rows that could not be split into columns are handed on so many at a time; bounds the memory of a verdict.
REFUSED_AT_A_TIME = 100_000


def check_file(file: File, source: Source, after: object = None) -> Iterator[validate.Verdict]:
    """The verdicts over the rows of one input, block by block, in their order.

    `after` is the least value of a query's cursor that is read. Raises `DataError` with file and row where
    the input cannot be read; it quotes no value that people may not see.
    """
    names = validate.columns_of_table(source)
    with quoting_nothing([source.policy]):
        for verdict in _verdicts(file, source.of(file), after):
            # A file's own columns are for what it derives alone.
            yield replace(verdict, valid=verdict.valid.select(names)) if verdict.valid.width else verdict


def check_header(file: File, source: Source) -> list[str]:
    """The names of an input's columns, as they stand there.

    Raises `DataError` where it cannot be read or lacks a column that the source reads, `ConfigError` where a
    function that it derives a column by is not there.
    """
    source = source.of(file)
    for how in source.derive.values():
        if not isinstance(how, str):
            load_function(how.path)
    with quoting_nothing([source.policy]):
        names = list(readers.reader(file, source).names)
        _require_columns(names, source, inputs.shown(file))
        return names


def _verdicts(file: File, source: Source, after: object) -> Iterator[validate.Verdict]:
    reader = readers.reader(file, source, after)
    title = inputs.shown(file)
    _require_columns(reader.names, source, title)
    clock = Clock(source.event_time) if source.event_time else None
    needed = readers.needed_columns(source)
    wanted = [name for name in reader.names if _is_read(source.rename.get(name, name), needed, source)]
    timed = (
        Block(_timed(frame.rename(source.rename, strict=False), clock, source), refused)
        for frame, refused in reader.blocks(wanted)
    )
    # Times depend on the rows before them; nothing else does. Functions of a user's are called one by one.
    workers = 1 if source.deriving else WORKERS
    for verdict, refused in ahead(partial(_checked, source), timed, workers):
        if verdict is not None:
            yield verdict
        for part in refused.iter_slices(REFUSED_AT_A_TIME):
            yield _refused(title, part)


def _checked(source: Source, block: Block) -> tuple[validate.Verdict | None, pl.DataFrame]:
    frame, refused = block
    return validate.check(_unpivoted(frame, source), source) if frame.height else None, refused


def _require_columns(names: list[str], source: Source, title: str) -> None:
    """Raises `DataError` where a column is missing that the source reads, or there that unpivot makes."""
    _require_unique(names, "the header", title)
    columns = [source.rename.get(name, name) for name in names]
    _require_unique(columns, "with rename, the header", title)
    for name in (source.unpivot.names, source.unpivot.values) if source.unpivot else ():
        if name in columns:
            raise DataError(f"unpivot makes the column {name!r}, which the file has; rename it", file=title)
    for name, key in readers.needed_columns(source).items():
        if name not in columns:
            hint = did_you_mean(name, columns)
            if len(columns) == 1:
                hint = f"; the header reads as one column {columns[0][:60]!r}: is the delimiter right?"
            # Without a header that is one, what is taken for it is data.
            raise DataError(
                f"{key} names the column {name!r}, which the file does not have", file=title, said=hint
            )


def _require_unique(names: list[str], what: str, title: str) -> None:
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise DataError(f"{what} has a name more than once", file=title, said=f": {repeated!r}")


def _is_read(name: str, needed: dict[str, str], source: Source) -> bool:
    """Whether a column of an input is read; the others may be called as they like, also like ours."""
    ours = (*validate.PLACE, *validate.TIME)
    return name in needed or (source.unpivot is not None and name not in ours)


def _timed(frame: pl.DataFrame, clock: Clock | None, source: Source) -> pl.DataFrame:
    """A block with what it says about time, see `validate.TIME`."""
    if clock is None or not frame.height:
        return frame
    instant, problem, text = validate.TIME
    if clock.spec.order:
        return frame.with_columns(_place_in_order(clock.spec).alias(instant))
    times, problems = clock.read(frame, [key for key in source.entity if key in frame.columns])
    parts = [pl.col(name).cast(pl.String) for name in columns_of(clock.spec)]
    written = pl.when(problems.is_not_null()).then(pl.concat_str(parts, separator="-", ignore_nulls=True))
    shown = written if problems.null_count() < len(problems) else pl.lit(None, pl.String)
    return frame.with_columns(times.alias(instant), problems.alias(problem), shown.alias(text))


def _place_in_order(spec: EventTime) -> pl.Expr:
    """The time of a row in a stream that knows order alone: the first of an input stands at 1970."""
    return ((pl.col("_row") - 1) * (spec.every or 0)).cast(INSTANT)


def _unpivoted(frame: pl.DataFrame, source: Source) -> pl.DataFrame:
    spec = source.unpivot
    if spec is None:
        return frame
    ours = [name for name in frame.columns if name in (*validate.PLACE, *validate.TIME)]
    return frame.unpivot(
        index=list(dict.fromkeys([*spec.keep, *ours])), variable_name=spec.names, value_name=spec.values
    )


def _refused(title: str, rows: pl.DataFrame) -> validate.Verdict:
    """The verdict over rows that could not be split into columns."""
    found = rows.with_columns(_file=pl.lit(title), column=pl.lit(None), severity=pl.lit("reject"))
    failures = found.select(list(validate.FAILED)).cast(validate.FAILED)  # type: ignore[arg-type]
    none = rows["_row"].clear()
    last = int(rows["_row"][-1])
    return validate.Verdict(rows.height, pl.DataFrame(), none, failures, rows.height, 0, last)
