"""The input of batch scoring: files, cut into parts of rows, each the same whenever it is cut again."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
from pyarrow import parquet

from mlops_ray.config import File, Source
from mlops_ray.data import inputs, readers
from mlops_ray.data.values import ROWS
from mlops_ray.errors import DataError

#: A part of Parquet has so many rows, or bytes, and at most a batch more; of text it is what the reader reads
#: at a time. While it is scored it takes some hundred megabytes.
PART_ROWS, PART_BYTES = 2 * ROWS, 64 << 20
#: Rows of text are seldom shorter.
TEXT_ROW_BYTES = 50
#: How many rows a file is taken for whose size tells nothing: one that is packed, or lies elsewhere.
MANY_ROWS = 1 << 40
PARQUET, TEXT = (".parquet", ".pq"), (".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Run:
    """Rows of a file that a task reads; of Parquet these row groups, of text all.

    `number` is its place among the runs of the whole input, `rows` about how many it has, or more.
    """

    number: int
    path: str
    groups: tuple[int, ...] | None
    rows: int


def find(given: str) -> list[str]:
    """The files of a path, a folder or a glob, in order."""
    is_folder = "://" not in given and Path(given).is_dir()
    path = f"{given.rstrip('/')}/**/*" if is_folder else given
    path = path if "://" in path else str(Path(path).absolute())
    found = [str(file.path) for file in inputs.find(_source(path), "--input")]
    files = [file for file in found if not Path(file).name.startswith("_")] if is_folder else found
    for file in files:
        if inputs.kind(file) not in (*PARQUET, *TEXT):
            known = ", ".join((*PARQUET, *TEXT))
            raise DataError(f"is neither Parquet nor CSV by what it is called ({known})", file=file)
    if not files:
        raise DataError(f"there is no file in {given}")
    return files


def _source(path: str) -> Source:
    """An input as the readers of sources take it: no types are declared, a request's are asked for later."""
    return Source.model_validate({"path": path, "time": "none", "columns": {}})


def _is_parquet(path: str) -> bool:
    return inputs.kind(path) in PARQUET


def _parquet(path: str) -> parquet.ParquetFile:
    return parquet.ParquetFile(inputs.seekable(path), pre_buffer=False)


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except inputs.UNREADABLE as error:
        raise DataError("cannot be read", file=path, said=f": {inputs.why(error)}") from error


def _header(path: str) -> pa.Schema:
    """The columns of a file and their types, text where it says none."""
    with _readable(path):
        if _is_parquet(path):
            with _parquet(path) as file:
                return file.schema_arrow.remove_metadata()
        names = readers.reader(File(path=path), _source(path)).names
    return pa.schema([(name, pa.large_string()) for name in names])


def require_alike(files: Sequence[str]) -> list[str]:
    """The names of the columns, which all files have, of the same types; else raises `DataError`."""
    headers = [_header(path) for path in files]
    for file, header in zip(files, headers, strict=True):
        if not header.equals(headers[0]):
            raise DataError(f"has other columns, or other types, than {files[0]}; score it apart", file=file)
        twice = [name for name in header.names if header.names.count(name) > 1]
        if twice:
            raise DataError("stands twice in the header; name each column once", file=file, column=twice[0])
    return list(headers[0].names)


def cut(files: Iterable[str]) -> tuple[Run, ...]:
    """The runs of rows that tasks read."""
    pieces: list[tuple[str, tuple[int, ...] | None, int]] = []
    for path in files:
        if not _is_parquet(path):
            pieces.append((path, None, _text_rows(path)))
            continue
        with _readable(path), _parquet(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        pieces += [
            (path, groups, sum(sizes[group] for group in groups)) for groups in _grouped(sizes, PART_ROWS)
        ]
    return tuple(Run(number, *piece) for number, piece in enumerate(pieces))


def _text_rows(path: str) -> int:
    is_plain = "://" not in path and Path(path).suffix not in inputs.PACKED
    return Path(path).stat().st_size // TEXT_ROW_BYTES if is_plain else MANY_ROWS


def _grouped(sizes: Sequence[int], most: float) -> Iterator[tuple[int, ...]]:
    """Neighbours, by their places, together as long as they have at most so many rows.

    >>> list(_grouped([50, 60, 50, 900, 10], most=120)), list(_grouped([], most=120))
    ([(0, 1), (2,), (3,), (4,)], [()])
    """
    group: list[int] = []
    total = 0
    for number, size in enumerate(sizes):
        if group and total + size > most:
            yield tuple(group)
            group, total = [], 0
        group.append(number)
        total += size
    yield tuple(group)


def shared(runs: Sequence[Run], readers: int, most: int) -> list[tuple[int, int]]:
    """The runs of each task that reads: the number of the first, and of the one behind the last.

    A task takes longer to begin than small files to read: it has as many as make one part, or a reader's
    share where that is less. There are `most` tasks at most.

    >>> [shared([Run(number, "", None, 1_000) for number in range(8)], readers, 256) for readers in (1, 2)]
    [[(0, 8)], [(0, 4), (4, 8)]]
    """
    # Nobody knows how much is behind a run that makes a part of its own: they count alike.
    sizes = [min(run.rows, PART_ROWS) for run in runs]
    total = sum(sizes)
    # Two tasks next to each other have more together than one may have.
    limit = max(2 * total / most, min(PART_ROWS, total / readers))
    return [(group[0], group[-1] + 1) for group in _grouped(sizes, limit)]


@dataclass(frozen=True)
class Part:
    """Rows to score: the name of their part, and of those that could not be read what is wrong with them."""

    name: str
    rows: pa.Table
    refused: dict[int, str]


def parts(runs: Iterable[Run], done: frozenset[str]) -> Iterator[Part]:
    """The parts of runs that are not done; where a file is cut depends on nothing but the file."""
    for run in runs:
        read = _parquet_parts(run) if run.groups is not None else _text_parts(run)
        for number, (rows, refused) in enumerate(read):
            name = f"{run.number:06}-{number:06}.parquet"
            if name not in done:
                yield Part(name, rows, refused)


def _parquet_parts(run: Run) -> Iterator[tuple[pa.Table, dict[int, str]]]:
    with _readable(run.path), _parquet(run.path) as file:
        gathered: list[pa.RecordBatch] = []
        for batch in file.iter_batches(ROWS, row_groups=list(run.groups or ())):
            gathered.append(batch)
            rows = sum(part.num_rows for part in gathered)
            if rows >= PART_ROWS or sum(part.nbytes for part in gathered) >= PART_BYTES:
                yield pa.Table.from_batches(gathered), {}
                gathered = []
        if gathered or not run.groups:
            yield pa.Table.from_batches(gathered, file.schema_arrow), {}


def _text_parts(run: Run) -> Iterator[tuple[pa.Table, dict[int, str]]]:
    reader = readers.reader(File(path=run.path), _source(run.path))
    schema = pa.schema([(name, pa.large_string()) for name in reader.names])
    before = 0
    for block in reader.blocks(reader.names):
        count = block.frame.height + block.refused.height
        rows, refused = block.frame.select(reader.names), dict[int, str]()
        if block.refused.height:
            # They have numbers too, and stand as empty rows where they stood.
            numbers = pl.DataFrame({"_row": range(before + 1, before + count + 1)}, {"_row": pl.Int64})
            rows = numbers.join(block.frame, "_row", "left", maintain_order="left").select(reader.names)
            for number, said in block.refused.select("_row", "value").rows():
                refused[number - before - 1] = f"the row cannot be read: {said}"
        if count:
            yield rows.to_arrow().cast(schema), refused
        before += count
    if not before:
        yield schema.empty_table(), {}
