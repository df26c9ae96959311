"""Sources through Ray Data: from files to checked rows with declared types.

Everything is read as text and then cast by the schema, so that a value of the wrong type costs its row, which
goes to quarantine, and never the file; types are never guessed.
"""

import codecs
import contextlib
import csv
import glob
import io
import logging
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.csv
import ray

from mlops_ray.config import Csv, File, Source
from mlops_ray.data import validate
from mlops_ray.data.event_time import Clock, columns_of
from mlops_ray.errors import DataError, MlopsError, did_you_mean, one_line
from mlops_ray.expressions import load_function

#: Rows of a file that are read, checked and dropped again at a time; bounds the memory of a task.
BLOCK_BYTES = 8 << 20
#: Of a file, what is read for its header, with the rows that are skipped before it.
HEADER_BYTES = 1 << 20
#: Rows of a wrong width, one after another, at which a file is given up: the reader hands out none before it
#: finds a right one. More than a block can hold: it stops no file in which right ones stand between.
WRONG_ROWS = BLOCK_BYTES
#: Rows of a wrong width that are handed on at a time; bounds the memory of a verdict.
WRONG_ROWS_AT_A_TIME = 100_000
#: What reading a damaged file raises.
UNREADABLE = (pa.ArrowException, OSError, EOFError, zipfile.BadZipFile, zlib.error)
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
#: Rows that do not have the header's number of columns.
WRONG_WIDTH = "number_of_columns"


def files(source: Source, name: str) -> list[File]:
    """The files of a source, globs resolved, in order.

    Raises `DataError` for a path where there is none.
    """
    found: list[File] = []
    for item in source.path or ():
        paths = sorted(glob.glob(item.path)) if glob.has_magic(item.path) else [item.path]
        if not paths or not Path(paths[0]).exists():
            raise DataError(f"source {name!r}: no such file: {item.path}")
        found += [item.model_copy(update={"path": path}) for path in paths]
    return found


def read(source: Source, name: str, selector: dict[str, str]) -> Iterator[validate.Verdict]:
    """The verdicts over all rows of a source, block by block, each file's rows in their order.

    `selector` names the nodes that may touch the source's rows (policy.py). Raises `DataError` with file and
    row where a file cannot be read.
    """
    unsupported(source, name)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Reaches every task of the dataset, also those operators that take no argument.
    context.execution_options.label_selector = selector or None
    context.execution_options.preserve_order = True
    found = files(source, name)
    task: Any = _read_and_check
    blocks = ray.data.range(len(found), override_num_blocks=len(found)).map_batches(
        task,
        fn_kwargs={"found": found, "source": source},
        batch_size=1,
        batch_format="pyarrow",
    )
    batches: Any = iter(blocks.iter_batches(batch_size=None, batch_format="pyarrow"))
    try:
        # Closed by us: Ray's iterator calls into the cluster when it ends, which must then still be there.
        with contextlib.closing(batches):
            for batch in batches:
                yield from map(_unpack, batch.to_pylist())
    except ray.exceptions.RayError as error:
        raise DataError(f"source {name!r}: reading failed: {one_line(error)[:200]}") from error


def unsupported(source: Source, name: str) -> None:
    """Raises `DataError` where a source asks for what is not built yet."""
    asks = {
        "sql": source.sql is not None,
        "event_time.order": source.event_time is not None and source.event_time.order,
        "a format other than csv": any((f.format or source.format).csv is None for f in source.path or ()),
        "an object store": any("://" in file.path for file in source.path or ()),
        "policy": source.policy != type(source.policy)(),
    }
    for what, asked in asks.items():
        if asked:
            raise DataError(f"source {name!r}: {what} is not supported yet")


def _read_and_check(batch: Any, found: list[File], source: Source) -> Iterator[pa.Table]:
    """A task: the verdicts over one file, one a row, packed for the way through the object store.

    An error of the data travels as a row as well: Ray would wrap a raised one, retry the task, and log it.
    """
    for index in batch["id"].to_pylist():
        try:
            for verdict in check_file(found[index], source):
                yield _pack(verdict)
        except MlopsError as error:
            yield pa.Table.from_pylist([{"error": str(error)}], schema=_PACKED)


def check_file(file: File, source: Source) -> Iterator[validate.Verdict]:
    """The verdicts over the rows of one file, block by block."""
    format = _format(file, source)
    names = check_header(file, source)
    renames = {**source.rename, **file.rename}
    clock = Clock(source.event_time) if source.event_time else None
    needed = _needed(source)
    read = [name for name in names if _is_read(renames.get(name, name), needed, source)]
    for block, wrong in _read_csv(file.path, format, names, read):
        if block.height:
            frame = _decimals(block.rename(renames, strict=False), format, source)
            yield validate.check(_unpivoted(_timed(frame, clock, source), source), source)
        for part in wrong.iter_slices(WRONG_ROWS_AT_A_TIME):
            yield _malformed(file.path, part, len(names))


def check_header(file: File, source: Source) -> list[str]:
    """The names of a file's columns, as they stand there.

    Raises `DataError` where the file cannot be read or lacks a column that the source reads, `ConfigError`
    where a function that it derives a column by is not there.
    """
    for how in source.derive.values():
        if not isinstance(how, str):
            load_function(how.path)
    format = _format(file, source)
    try:
        "".encode(format.encoding)
    except (LookupError, ValueError) as error:
        hint = "say format.csv.encoding, e.g. utf-8 or latin-1"
        raise DataError(f"no text is encoded as {format.encoding!r}; {hint}", file=file.path) from error
    names = list(format.names or _header(file.path, format))
    _require_unique(names, "the header", file.path)
    renames = {**source.rename, **file.rename}
    renamed = [renames.get(name, name) for name in names]
    _require_unique(renamed, "with rename, the header", file.path)
    _require_columns(renamed, source, file.path)
    return names


def _require_unique(names: list[str], what: str, path: str) -> None:
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise DataError(f"{what} has {sorted(repeated)[0]!r} more than once", file=path)


def _format(file: File, source: Source) -> Csv:
    format = (file.format or source.format).csv
    assert format is not None, "unsupported() lets no other format through"
    return format


def _require_columns(columns: list[str], source: Source, path: str) -> None:
    """Raises `DataError` where a file lacks a column that the source reads, or has one that unpivot makes."""
    for name in (source.unpivot.names, source.unpivot.values) if source.unpivot else ():
        if name in columns:
            raise DataError(f"unpivot makes the column {name!r}, which the file has; rename it", file=path)
    for name, key in _needed(source).items():
        if name not in columns:
            hint = did_you_mean(name, columns)
            if len(columns) == 1:
                hint = f"; the header reads as one column {columns[0][:60]!r}: is the delimiter right?"
            raise DataError(f"{key} names the column {name!r}, which the file does not have{hint}", file=path)


def _needed(source: Source) -> dict[str, str]:
    """The columns that a file must have, and the key of the project file that asks for each."""
    spec, time = source.unpivot, source.event_time
    made = ({spec.names, spec.values} if spec else set()) | set(source.derive)
    needed = dict.fromkeys(spec.keep if spec else (), "unpivot.keep")
    needed |= dict.fromkeys(columns_of(time) if time else (), "event_time")
    return needed | dict.fromkeys((name for name in source.columns if name not in made), "columns")


def _is_read(name: str, needed: dict[str, str], source: Source) -> bool:
    """Whether a column of a file is read; the others may be called as they like, also like ours."""
    ours = (*validate.PLACE, *validate.TIME)
    return name in needed or (source.unpivot is not None and name not in ours)


def _timed(frame: pl.DataFrame, clock: Clock | None, source: Source) -> pl.DataFrame:
    """A block with what it says about time, see `validate.TIME`."""
    if clock is None:
        return frame
    times, problems = clock.read(frame, [key for key in source.entity if key in frame.columns])
    written = pl.concat_str(
        [pl.col(name).cast(pl.String) for name in columns_of(clock.spec)], separator="-", ignore_nulls=True
    )
    shown = pl.when(problems.is_not_null()).then(written)
    instant, problem, text = validate.TIME
    return frame.with_columns(times.alias(instant), problems.alias(problem), shown.alias(text))


def _unpivoted(frame: pl.DataFrame, source: Source) -> pl.DataFrame:
    spec = source.unpivot
    if spec is None:
        return frame
    ours = [name for name in frame.columns if name in (*validate.PLACE, *validate.TIME)]
    return frame.unpivot(
        index=list(dict.fromkeys([*spec.keep, *ours])), variable_name=spec.names, value_name=spec.values
    )


def _read_csv(
    path: str, format: Csv, names: list[str], read: list[str]
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Blocks of a CSV file, the columns to `read` as text, with the place of each row.

    Each comes with the rows of a wrong width up to its end: their number (`_row`) and of columns (`width`).
    """

    def put_aside(row: Any) -> str:
        wrong["_row"].append(row.number - before)
        wrong["width"].append(row.actual_columns)
        return "skip" if len(wrong["_row"]) < WRONG_ROWS else "error"

    wrong = {"_row": array("q"), "width": array("q")}
    # The header is read like a row, of number 0: it may hold line breaks, so that no line can be skipped.
    row = int(format.names is not None)
    before = format.skip_rows + 1 - row
    try:
        with (
            _open(path) as stream,
            pa.csv.open_csv(stream, **_csv_options(format, names, read, put_aside)) as reader,
        ):
            for batch in reader:
                if not batch.num_rows:
                    continue
                block = pl.DataFrame(pa.Table.from_batches([batch]))
                aside = _wrong_rows(wrong)
                numbers = pl.int_range(row, row + block.height + aside.height, eager=True)
                if aside.height:
                    numbers = numbers.filter(~numbers.is_in(aside["_row"].implode())).head(block.height)
                if row == 0 and not (numbers[0] == 0 and _is_header(block, read)):
                    raise DataError("the header does not end where the first row begins", file=path)
                row = int(numbers[-1]) + 1
                done = aside.filter(pl.col("_row") < row)
                for column in wrong.values():
                    del column[: done.height]
                block = block.with_columns(pl.lit(path).alias("_file"), numbers.alias("_row"))
                yield block[int(numbers[0] == 0) :], done
    except UNREADABLE as error:
        if len(wrong["_row"]) >= WRONG_ROWS:
            why = f"{WRONG_ROWS} rows on end do not have {len(names)} columns; is the delimiter right?"
            raise DataError(why, file=path, row=wrong["_row"][0]) from error
        raise DataError(
            f"cannot be read after row {max(row - 1, 0)}: {one_line(error)[:200]}", file=path
        ) from error
    yield pl.DataFrame(), _wrong_rows(wrong)


def _is_header(block: pl.DataFrame, names: list[str]) -> bool:
    return [name.removeprefix("\ufeff") for name in block.row(0)] == names


def _wrong_rows(wrong: dict[str, "array[int]"]) -> pl.DataFrame:
    return pl.DataFrame([pl.Series(name, values, dtype=pl.Int64) for name, values in wrong.items()])


def _csv_options(format: Csv, names: list[str], read: list[str], on_invalid: Any) -> dict[str, Any]:
    return {
        "read_options": pa.csv.ReadOptions(
            # Row numbers of refused rows are known to a single thread only.
            use_threads=False,
            block_size=BLOCK_BYTES,
            column_names=names,
            skip_rows=format.skip_rows,
            encoding=format.encoding,
        ),
        "parse_options": pa.csv.ParseOptions(
            delimiter=format.delimiter,
            quote_char=format.quote or False,
            newlines_in_values=bool(format.quote),
            invalid_row_handler=on_invalid,
        ),
        "convert_options": pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), include_columns=read, strings_can_be_null=False
        ),
    }


def _header(path: str, format: Csv) -> list[str]:
    dialect: dict[str, Any] = {"delimiter": format.delimiter, "quoting": csv.QUOTE_NONE}
    if format.quote:
        dialect |= {"quotechar": format.quote, "quoting": csv.QUOTE_MINIMAL}
    try:
        with _open(path) as stream:
            head = stream.read(HEADER_BYTES)
            is_whole = not stream.read(1)
        # The last character may be cut in two.
        text = codecs.getincrementaldecoder(format.encoding)().decode(head)
        lines = io.StringIO(text, newline="")
        for _ in range(format.skip_rows):
            lines.readline()
        header = next(csv.reader(lines, **dialect), None)
    except UnicodeDecodeError as error:
        hint = "say format.csv.encoding, e.g. latin-1"
        raise DataError(f"not {format.encoding} text ({one_line(error)[:200]}); {hint}", file=path) from error
    except csv.Error as error:
        raise DataError(f"the header cannot be read: {one_line(error)[:200]}", file=path) from error
    except UNREADABLE as error:
        raise DataError(f"cannot be read: {one_line(error)[:200]}", file=path) from error
    if not (is_whole or lines.read(1)):
        raise DataError(
            f"the header does not end within {HEADER_BYTES} bytes; is it a CSV file, with the right quote?",
            file=path,
        )
    if header is None:
        raise DataError("the file is empty", file=path)
    return [name.removeprefix("\ufeff") for name in header]


def _open(path: str) -> Any:
    if Path(path).suffix == ".zip":
        return _open_zip(path)
    raw = pa.OSFile(path)
    compression = COMPRESSIONS.get(Path(path).suffix)
    return pa.CompressedInputStream(raw, compression) if compression else raw


def _open_zip(path: str) -> Any:
    """The one file that a zip file holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) != 1:
                raise DataError(f"holds {len(members)} files; a zip file must hold exactly one", file=path)
            return pa.PythonFile(archive.open(members[0]), "r")
    except RuntimeError as error:
        # It is encrypted, or packed in a way that Python does not know.
        raise DataError(f"cannot be read: {one_line(error)[:200]}", file=path) from error


def _decimals(block: pl.DataFrame, format: Csv, source: Source) -> pl.DataFrame:
    if format.decimal == ".":
        return block
    numeric = {name for name, spec in source.columns.items() if spec.type in ("float", "int")}
    if source.unpivot is not None and source.unpivot.values in numeric:
        numeric |= set(block.columns) - set(source.unpivot.keep) - set(validate.PLACE)
    return block.with_columns(
        pl.col(name).str.replace(format.decimal, ".", literal=True)
        for name in block.columns
        if name in numeric
    )


def _malformed(path: str, rows: pl.DataFrame, columns: int) -> validate.Verdict:
    """The verdict over rows of a wrong width."""
    found = rows.select(
        pl.lit(path).alias("_file"),
        pl.col("_row"),
        pl.lit(None).alias("column"),
        pl.lit(WRONG_WIDTH).alias("rule"),
        pl.format("{} columns, not {}", "width", pl.lit(columns)).alias("value"),
    )
    quarantine = found.cast(validate.QUARANTINE)  # type: ignore[arg-type]
    return validate.Verdict(rows.height, pl.DataFrame(), quarantine, rows.height, 0, {})


_PACKED = pa.schema(
    {
        "valid": pa.large_binary(),
        "quarantine": pa.large_binary(),
        "rows_in": pa.int64(),
        "rejected": pa.int64(),
        "filtered": pa.int64(),
        "flags": pa.map_(pa.string(), pa.int64()),
        "error": pa.string(),
    }
)


def _pack(verdict: validate.Verdict) -> pa.Table:
    row = {
        "valid": _ipc(verdict.valid),
        "quarantine": _ipc(verdict.quarantine),
        "rows_in": verdict.rows_in,
        "rejected": verdict.rejected,
        "filtered": verdict.filtered,
        "flags": list(verdict.flags.items()),
    }
    return pa.Table.from_pylist([row], schema=_PACKED)


def _unpack(row: dict[str, Any]) -> validate.Verdict:
    if row["error"] is not None:
        raise DataError(row["error"])
    return validate.Verdict(
        rows_in=row["rows_in"],
        valid=pl.read_ipc(row["valid"]),
        quarantine=pl.read_ipc(row["quarantine"]),
        rejected=row["rejected"],
        filtered=row["filtered"],
        flags=dict(row["flags"]),
    )


def _ipc(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_ipc(buffer)
    return buffer.getvalue()
