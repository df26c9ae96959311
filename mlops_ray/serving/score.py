"""Batch scoring: the rows of files through Ray Data, each answered as the endpoint would answer it alone.

The input is cut into parts. The answers to each are a file below OUTPUT.parts, written whole or not at all; a
run that was killed is gone on with by the next, which scores what is missing. What is small is scored in this
process: Ray Data alone takes seconds to begin.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
from pyarrow import parquet

from mlops_ray.config import File
from mlops_ray.data import inputs
from mlops_ray.data.error_log import DEFECTS
from mlops_ray.errors import DataError, MlopsError, StorageError, UsageError, did_you_mean, one_line
from mlops_ray.schema import Schema
from mlops_ray.serving import parts
from mlops_ray.serving.answers import ERROR, Answers
from mlops_ray.serving.parts import PARQUET, Part, Run
from mlops_ray.serving.versions import Load, Served
from mlops_ray.storage import PRIVATE, replacing

#: Rows that are scored here rather than on Ray, which takes as long to begin as these take.
SMALL_ROWS = 500_000
#: Runs of rows are shared out to so many tasks at most: a task has a fixed cost.
TASKS = 256
MANIFEST, LOCK = ".manifest.json", ".lock"
FORMAT_VERSION = 1
#: A block of Ray's is to be one part: its rows lie in one cell, and few cells are as small as this.
BLOCK_BYTES = 1 << 20

Line = dict[str, Any]


@dataclass(frozen=True)
class Scoring:
    """What every part needs: how the model is loaded, what nobody may see, and where answers go.

    Where `restricts`, errors of libraries are told without what they say: they may quote values.
    """

    load: Load
    entry: dict[str, Any]
    hidden: frozenset[str]
    folder: str
    restricts: bool = False

    @cached_property
    def served(self) -> Served:
        return self.load(self.entry)

    def __getstate__(self) -> dict[str, Any]:
        """Without the loaded model: each process loads its own."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Job:
    """An input, cut, and where its answers go; made by `opened`."""

    scoring: Scoring
    runs: tuple[Run, ...]
    output: Path

    @property
    def is_small(self) -> bool:
        return sum(run.rows for run in self.runs) <= SMALL_ROWS

    @property
    def done(self) -> list[Path]:
        """The parts that are written, in the order of their rows."""
        return sorted(Path(self.scoring.folder).glob("[0-9]*.parquet"))

    def run(
        self,
        *,
        on_ray: bool,
        selector: dict[str, str] | None = None,
        on_progress: Callable[[int], None] = lambda rows: None,
        on_node: Callable[[str], None] = lambda node: None,
    ) -> dict[str, Any]:
        """Scores what is missing, and puts all together; `selector` names the nodes that may do it.

        Where it is done by others `on_node` hears the ids of their nodes, again and again.

        Gives back how many `rows` there are, how many `errors` stand in place of an answer, how many rows
        were `scored` now, and the `version`. Raises `DataError` where the input cannot be read to its end,
        or scoring fails; what is done by then stays.
        """
        known = frozenset(part.name for part in self.done)
        lines = _on_ray(self, known, selector or {}) if on_ray else _here(self, known)
        scored = 0
        for line in lines:
            if "error" in line:
                raise DataError(line["error"])
            scored += line["rows"]
            if "node" in line:
                on_node(line["node"])
            on_progress(scored)
        answers = pl.scan_parquet(self.done, glob=False, hive_partitioning=False)
        rows, errors = answers.select(pl.len(), pl.col(ERROR).count()).collect().row(0)
        self._finish()
        said = {"rows": rows, "errors": errors, "scored": scored, "version": self.scoring.served.version}
        return {"output": str(self.output), **said}

    def _finish(self) -> None:
        """The parts as one file, or as the folder of them."""
        folder = Path(self.scoring.folder)
        if self.output.suffix in PARQUET:
            with replacing(self.output) as new:
                _join(self.done, new)
            shutil.rmtree(folder)
            return
        folder.rename(self.output)
        for name in (MANIFEST, LOCK):
            (self.output / name).unlink()


@contextlib.contextmanager
def opened(scoring: Scoring, given: str, output: Path) -> Iterator[Job]:
    """The job of scoring `given` into `output`, on which no other run works within the block.

    `given` is a file, a folder or a glob, of Parquet or CSV; `output` a file, *.parquet, or a folder. Raises
    `UsageError` for an output that is there, `DataError` for an input that cannot be read or lacks a column
    of a request, `StorageError` where a run of another input or version began to write it.
    """
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise UsageError(f"{output} exists already; delete it, or name another output")
    files = parts.find(given)
    _require_columns(parts.require_alike(files), scoring.served.request, files[0])
    runs = parts.cut(files)
    folder = Path(scoring.folder)
    _make_own(folder)
    with _alone(folder):
        _require_same(folder, files, scoring)
        yield Job(scoring, runs, output)


def parts_folder(output: Path) -> Path:
    """Where the parts of an output lie until it is whole."""
    return output.with_name(f"{output.name}.parts")


def _require_columns(names: Sequence[str], request: Schema, file: str) -> None:
    for name in request.names:
        if name not in names:
            needed = f"is missing; a request holds {', '.join(request.names)}"
            # Without a header that is one, what is taken for it is data.
            raise DataError(needed, file=file, column=name, said=did_you_mean(name, names))


def _make_own(folder: Path) -> None:
    """Makes the folder of the parts; one that is there must be ours alone, or others could write answers."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise StorageError(
            f"{folder} is no folder that you alone can write; delete it, or name another output"
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, PRIVATE)
    except OSError as error:
        raise StorageError(f"cannot open {folder / LOCK}: {error.strerror}; delete {folder}") from error
    with os.fdopen(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"another run scores into {folder}; wait for it, or stop it") from None
        # What a killed run had not written whole.
        for left in folder.glob(".[0-9]*"):
            left.unlink(missing_ok=True)
        yield


def _require_same(folder: Path, files: Sequence[str], scoring: Scoring) -> None:
    """Writes what the parts are made from; raises `StorageError` where there are parts of something else."""
    made_from = {
        "format": FORMAT_VERSION,
        "cut": [parts.PART_ROWS, parts.PART_BYTES],
        "version": scoring.served.version,
        "digest": scoring.served.digest,
        "hidden": sorted(scoring.hidden),
        "input": [[path, _identity(path)] for path in files],
    }
    path = folder / MANIFEST
    try:
        begun = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        if any(folder.glob("[0-9]*")):
            raise StorageError(
                f"{folder} holds parts, and does not say of what; delete it to begin anew"
            ) from None
        with replacing(path) as new:
            new.write_bytes(orjson.dumps(made_from))
        return
    except orjson.JSONDecodeError as error:
        raise StorageError(f"{path} is damaged: {error}; delete {folder} to begin anew") from error
    if not isinstance(begun, dict):
        raise StorageError(f"{path} is damaged; delete {folder} to begin anew")
    if begun != made_from:
        why = _difference(begun, made_from)
        raise StorageError(f"{folder} holds parts of another run: {why}; delete it to begin anew")


def _identity(path: str) -> list[int] | str | None:
    """What tells a changed file from the one that was read before."""
    if "://" in path:
        return inputs.fingerprint(File(path=path))
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns]


def _difference(begun: dict[str, Any], now: dict[str, Any]) -> str:
    if begun["input"] != now["input"]:
        changed = [path for path, identity in now["input"] if [path, identity] not in begun["input"]]
        return f"{changed[0]} has changed, or is new" if changed else "its input had more files"
    if begun["digest"] != now["digest"] or begun["version"] != now["version"]:
        return f"that was of version {begun['version']}, and this is version {now['version']}"
    return "it was cut otherwise, or other columns were machine_only"


def _join(done: Sequence[Path], new: Path) -> None:
    """All parts in one file, of which a row group is in memory at a time."""
    schema = parquet.read_schema(done[0])
    with parquet.ParquetWriter(new, schema, **_writing(schema)) as writer:
        for part in done:
            with parquet.ParquetFile(part) as file:
                for group in range(file.num_row_groups):
                    writer.write_table(file.read_row_group(group))


def _writing(schema: pa.Schema) -> dict[str, Any]:
    """How answers are written: numbers seldom repeat, and to look whether they do costs as much."""
    is_text = pa.types.is_large_string, pa.types.is_string
    texts = [field.name for field in schema if any(is_one(field.type) for is_one in is_text)]
    return {"compression": "snappy", "use_dictionary": texts}


# ---------------------------------------------------------------- scoring, here or on Ray


def _here(job: Job, known: frozenset[str]) -> Iterator[Line]:
    yield from _told(job.scoring, map(Scorer(job.scoring).scored, parts.parts(job.runs, known)))


class Scorer:
    """A loaded model that answers parts: an actor of the pool, or this process."""

    def __init__(self, scoring: Scoring) -> None:
        self._scoring = scoring
        self._answers = Answers(scoring.served, scoring.hidden)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Scores what `Reading` packed; a line of JSON for each part, which says on which node."""
        from mlops_ray import placement

        for name, rows, said in zip(batch["name"], batch["rows"], batch["said"], strict=True):
            line = orjson.loads(said.as_py())
            if "error" not in line:
                # Of the object store's memory, no copy.
                table = pa.ipc.open_stream(rows.as_buffer()).read_all()
                part = Part(name.as_py(), table, dict(line["refused"]))
                line = next(_told(self._scoring, map(self.scored, [part])))
                line["node"] = placement.here()
            yield pa.table({"said": [orjson.dumps(line)]})

    def scored(self, part: Part) -> Line:
        """Writes the answers to a part, whole or not at all; how many rows it has."""
        answered = self._answers.to(part.rows, part.refused)
        path = Path(self._scoring.folder, part.name)
        try:
            with replacing(path) as new:
                parquet.write_table(answered, new, **_writing(answered.schema))
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {one_line(error)[:200]}") from error
        return {"rows": answered.num_rows}


@dataclass(frozen=True)
class Reading:
    """Reads the parts of runs that are not known yet; each becomes a row: a name, bytes, and a line."""

    scoring: Scoring
    runs: tuple[Run, ...]
    known: frozenset[str]

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """`batch` names the runs by the numbers of the first, and of the one behind the last."""
        tasks = zip(batch["first"].to_pylist(), batch["end"].to_pylist(), strict=True)
        runs = [run for first, end in tasks for run in self.runs[first:end]]
        for packed in _told(self.scoring, map(_packed, parts.parts(runs, self.known))):
            yield packed if isinstance(packed, pa.Table) else _cell("", pa.py_buffer(b""), packed)


def _told(scoring: Scoring, done: Iterable[Any]) -> Iterator[Any]:
    """What is done, and an error as a line: Ray would wrap a raised one, retry the task, and log it."""
    try:
        yield from done
    except DataError as error:
        yield {"error": str(error.without_data() if scoring.restricts else error)}
    except MlopsError as error:
        yield {"error": str(error)}
    except DEFECTS as error:  # whatever data can do to a library
        said = "" if scoring.restricts else f": {one_line(error)[:200]}"
        yield {"error": f"scoring failed: {type(error).__name__}{said}"}


def _packed(part: Part) -> pa.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, part.rows.schema) as stream:
        stream.write_table(part.rows)
    return _cell(part.name, sink.getvalue(), {"refused": list(part.refused.items())})


def _cell(name: str, data: pa.Buffer, line: Line) -> pa.Table:
    ends = pa.py_buffer(np.array([0, data.size], np.int64))
    rows = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, data])
    return pa.table({"name": [name], "rows": rows, "said": [orjson.dumps(line)]})


def _on_ray(job: Job, known: frozenset[str], selector: dict[str, str]) -> Iterator[Line]:
    """Tasks read, and a pool of actors scores, one for each CPU that is free; a line of each part."""
    import ray

    from mlops_ray import placement
    from mlops_ray.data.ingest import said_by_tasks

    placement.require_room(selector, {"CPU": 1})
    context = ray.data.DataContext.get_current()
    before = context.copy()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # That parts are few is no mistake of anybody's.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
    # Reaches every task of the dataset.
    context.execution_options.label_selector = selector or None
    context.execution_options.preserve_order = False
    context.target_max_block_size = BLOCK_BYTES
    # An actor has a whole CPU, of one node.
    cpus = sum(int(node.get("CPU", 0.0)) for node in placement.free(selector))
    # Both share what CPUs there are: reading takes a tenth of them, and must not wait for scoring to end.
    reading: Any = Reading(job.scoring, job.runs, known)
    readers = max(1, cpus // 2)
    tasks = [{"first": first, "end": end} for first, end in parts.shared(job.runs, readers, TASKS)]
    # Unlike `range` and `from_arrow` it needs no CPU, all of which replicas may hold. But then Ray asks one
    # node after the other, the head too, and each soon ends processes that are idle and hold none: a task may
    # have to wait for a new one, so they are few.
    numbers = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    rows = numbers.map_batches(
        reading,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=readers),
    )
    scorer: Any = Scorer
    lines = rows.map_batches(
        scorer,
        fn_constructor_args=(job.scoring,),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=min(1, cpus),
        compute=ray.data.ActorPoolStrategy(size=max(1, cpus)),
    )
    try:
        yield from said_by_tasks(lines, "scoring", job.scoring.restricts)
    finally:
        ray.data.DataContext._set_current(before)
