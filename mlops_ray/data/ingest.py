"""Sources through Ray Data: from files to checked rows with declared types.

Everything is read as text and then cast by the schema, so that a value of the wrong type costs its row, which
goes to quarantine, and never the file; types are never guessed.
"""

import contextlib
import csv
import glob
import io
import logging
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.csv
import ray

from mlops_ray.config import Csv, File, Source
from mlops_ray.data import validate
from mlops_ray.data.event_time import Clock
from mlops_ray.errors import DataError, MlopsError, did_you_mean
from mlops_ray.expressions import load_function

#: Rows of a file that are read, checked and dropped again at a time; bounds the memory of a task.
BLOCK_BYTES = 8 << 20
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
        raise DataError(f"source {name!r}: reading failed: {_one_line(error)}") from error


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
    bad_rows: list[tuple[int, str]] = []
    for block in _read_csv(file.path, format, names, bad_rows):
        frame = _decimals(block, format, source).rename(renames, strict=False)
        if clock is not None:
            keys = [key for key in source.entity if key in frame.columns]
            times, problems = clock.read(frame, keys)
            frame = frame.with_columns(times.alias("event_time"), problems.alias("time_problem"))
        yield validate.check(_unpivoted(frame, source), source)
    if bad_rows:
        yield _malformed(file.path, bad_rows)


def check_header(file: File, source: Source) -> list[str]:
    """The names of a file's columns, as they stand there.

    Raises `DataError` where the file cannot be read or lacks a column that the source reads, `ConfigError`
    where a function that it derives a column by is not there.
    """
    for how in source.derive.values():
        if not isinstance(how, str):
            load_function(how.path)
    format = _format(file, source)
    names = list(format.names or _header(file.path, format))
    renames = {**source.rename, **file.rename}
    _require_columns([renames.get(name, name) for name in names], source, file.path)
    return names


def _format(file: File, source: Source) -> Csv:
    format = (file.format or source.format).csv
    assert format is not None, "unsupported() lets no other format through"
    return format


def _require_columns(columns: list[str], source: Source, path: str) -> None:
    """Raises `DataError` where a file lacks a column that the source reads."""
    spec, time = source.unpivot, source.event_time
    made = ({spec.names, spec.values} if spec else set()) | set(source.derive)
    needed = dict.fromkeys(spec.keep if spec else (), "unpivot.keep")
    needed |= dict.fromkeys(
        (time.columns or ((time.column,) if time.column else ())) if time else (), "event_time"
    )
    needed |= dict.fromkeys((name for name in source.columns if name not in made), "columns")
    for name, key in needed.items():
        if name not in columns:
            hint = did_you_mean(name, columns)
            if len(columns) == 1:
                hint = f"; the header reads as one column {columns[0][:60]!r}: is the delimiter right?"
            raise DataError(f"{key} names the column {name!r}, which the file does not have{hint}", file=path)


def _unpivoted(frame: pl.DataFrame, source: Source) -> pl.DataFrame:
    spec = source.unpivot
    if spec is None:
        return frame
    ours = [name for name in frame.columns if name in (*validate.PLACE, "event_time", "time_problem")]
    return frame.unpivot(
        index=list(dict.fromkeys([*spec.keep, *ours])), variable_name=spec.names, value_name=spec.values
    )


def _read_csv(
    path: str, format: Csv, names: list[str], bad_rows: list[tuple[int, str]]
) -> Iterator[pl.DataFrame]:
    """Blocks of a CSV file as text, with the place of each row; rows of a wrong width are put aside."""

    def put_aside(row: Any) -> str:
        bad_rows.append((row.number - skipped, f"{row.actual_columns} columns, not {row.expected_columns}"))
        return "skip"

    skipped = format.skip_rows + (format.names is None)
    row = 1
    try:
        with (
            _open(path) as stream,
            pa.csv.open_csv(stream, **_csv_options(format, names, put_aside)) as reader,
        ):
            for batch in reader:
                block = pl.DataFrame(pa.Table.from_batches([batch]))
                numbers = pl.int_range(row, row + block.height + len(bad_rows), eager=True)
                numbers = numbers.filter(~numbers.is_in([number for number, _ in bad_rows])).head(
                    block.height
                )
                yield block.with_columns(pl.lit(path).alias("_file"), numbers.alias("_row"))
                row = int(numbers[-1]) + 1 if block.height else row
    except UNREADABLE as error:
        raise DataError(f"cannot be read after row {row - 1}: {_one_line(error)}", file=path) from error


def _csv_options(format: Csv, names: list[str], on_invalid: Any) -> dict[str, Any]:
    return {
        "read_options": pa.csv.ReadOptions(
            # Row numbers of refused rows are known to a single thread only.
            use_threads=False,
            block_size=BLOCK_BYTES,
            column_names=names,
            skip_rows=format.skip_rows + (format.names is None),
            encoding=format.encoding,
        ),
        "parse_options": pa.csv.ParseOptions(
            delimiter=format.delimiter,
            quote_char=format.quote or False,
            newlines_in_values=bool(format.quote),
            invalid_row_handler=on_invalid,
        ),
        "convert_options": pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    }


def _header(path: str, format: Csv) -> list[str]:
    try:
        with _open(path) as stream:
            text = io.TextIOWrapper(stream, encoding=format.encoding, newline="")
            for _ in range(format.skip_rows):
                text.readline()
            dialect: dict[str, Any] = {"delimiter": format.delimiter, "quoting": csv.QUOTE_NONE}
            if format.quote:
                dialect |= {"quotechar": format.quote, "quoting": csv.QUOTE_MINIMAL}
            header = next(csv.reader(text, **dialect))
    except StopIteration:
        raise DataError("the file is empty", file=path) from None
    except UnicodeDecodeError as error:
        hint = "say format.csv.encoding, e.g. latin-1"
        raise DataError(f"not {format.encoding} text ({_one_line(error)}); {hint}", file=path) from error
    except UNREADABLE as error:
        raise DataError(f"cannot be read: {_one_line(error)}", file=path) from error
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise DataError(f"the header has {sorted(repeated)[0]!r} more than once", file=path)
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
        raise DataError(f"cannot be read: {_one_line(error)}", file=path) from error


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


def _malformed(path: str, rows: list[tuple[int, str]]) -> validate.Verdict:
    quarantine = pl.DataFrame(
        [(path, number, None, WRONG_WIDTH, what) for number, what in rows],
        schema=validate.QUARANTINE,
        orient="row",
    )
    return validate.Verdict(len(rows), pl.DataFrame(), quarantine, len(rows), 0, {})


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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
