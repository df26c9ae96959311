"""What went wrong in the service, as JSON lines that people can search: `STORAGE/errors/PROCESS-….jsonl`.

    {"at", "level", "stage", "model", "version", "request", "type", "status", "said", "where", "count",
     "process"}

A command that fails is a line of `command-DAY.jsonl`: its stage is the command, `run` is the id of its
job, or one of its own. Each process of the service has files of its own, and writes them in a thread of
its own; whatever a logger of ours is told from a warning on is a line there. A caller's error is none: of
those that are alike one line a minute says how many there were, with the sentence of the first. No line
has a value of a row: of sentences that quote a request the quotes are left out, of errors that are not
ours all but their type and where they were raised. It is bounded: lines a second, bytes a file and bytes
of all files; what is left out is counted, but for commands that fail beyond as much a day as a file holds.
"""

import contextlib
import logging
import os
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
import polars as pl

from mlops_ray.errors import Said, safe
from mlops_ray.storage import PRIVATE, Storage

FOLDER = "errors"
#: What is said to be the process of whatever a command failed of.
COMMAND = "command"
#: Whatever may go wrong with one of many, which others must not feel: a panic of Polars is no `Exception`.
DEFECTS: tuple[type[BaseException], ...] = (Exception, pl.exceptions.PanicException)
#: How often is written, and how many lines at most each time; what is more of a kind counts in its last line.
FLUSH_S, MOST_LINES = 1.0, 50
#: How long callers' errors that are alike are gathered, and how many kinds of them.
GATHER_S, MOST_KINDS = 60.0, 100
#: Bytes of a file and of all files, how many there are, a process that dies again and again leaving one each
#: time, and how long one is kept.
MOST_OF_A_FILE, MOST_BYTES, MOST_FILES, KEPT_S = 2 * 2**20, 32 * 2**20, 1_000, 30 * 86_400.0
#: Where Ray says of a job's command whose it is.
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: Characters of a sentence.
LONGEST = 500

#: Which part of the service a module is. What a logger is told is of its own part; of a request the innermost
#: module of ours that a traceback leads through says it.
STAGES = {
    "mlops_ray.serving.protocol": "decode",
    "mlops_ray.serving.tensors": "decode",
    "mlops_ray.serving.tables": "decode",
    "mlops_ray.serving.messages": "decode",
    "mlops_ray.serving.columns": "decode",
    "mlops_ray.serving.admission": "admission",
    "mlops_ray.keys": "admission",
    "mlops_ray.schema": "decode",
    "mlops_ray.features": "features",
    "mlops_ray.expressions": "features",
    "mlops_ray.registry.outcome": "post-process",
    "mlops_ray.serving.answers": "post-process",
    "mlops_ray.registry": "predict",
    "mlops_ray.serving.batcher": "predict",
    "mlops_ray.data.prediction_log": "log",
    "mlops_ray.serving.versions": "release",
    "mlops_ray.serving.reconcile": "release",
    "mlops_ray.serving.reconciler": "release",
    "mlops_ray.serving.release": "release",
    "mlops_ray.serving.record": "release",
    "mlops_ray.serving.verify": "release",
    "mlops_ray.serving.hooks": "release",
    "mlops_ray.serving.contest": "release",
    "mlops_ray.serving.routes": "gateway",
    "mlops_ray.serving.gateway": "gateway",
    "mlops_ray.serving.truth": "labels",
    "mlops_ray.data.labels": "labels",
    "mlops_ray.monitoring": "monitor",
    "mlops_ray.serving.replica": "log",
    "mlops_ray.cluster.loop": "retraining",
}
#: It follows releases, and answers requests.
OF_REQUESTS = {"mlops_ray.serving.versions": "predict"}
#: Of a caller's error the stage in which it is found, by its name (`asgi.reason`).
REFUSED_AT = {
    "unauthorized": "admission",
    "forbidden": "admission",
    "not_found": "admission",
    "method_not_allowed": "admission",
    "overloaded": "admission",
    "deadline": "predict",
    "caller_gone": "admission",
}
#: What a sentence quotes: text in quotes, which no apostrophe begins, and numbers and the like.
_QUOTED = re.compile(
    r"""(?:\bb|(?<!\w))(?:'(?:[^'\\]|\\.)*(?:'|$)|"(?:[^"\\]|\\.)*(?:"|$))"""
    r"""|(?<![\w.])[-+]?\d[\w.+-]*(?::[\w.+-]+)*|\b(?:True|False|None|nan|inf)\b"""
)

Line = dict[str, Any]


class ErrorLog(logging.Handler):
    """The log of one process, `process` being what it is; `model` is what it is about, where it is one's.

    What it is told costs a look into a dictionary; files are written by a thread, until `close`.
    """

    def __init__(self, storage: Storage, process: str, model: str = "") -> None:
        super().__init__(logging.WARNING)
        self._storage, self._head = storage, {"model": model, "process": process}
        self._id = f"{process}-{uuid.uuid4().hex[:8]}"
        self._lines: deque[Line] = deque()
        self._refused: dict[tuple[Any, ...], Line] = {}
        self._over: dict[tuple[Any, ...], int] = {}
        self._gathered_at, self._ended, self._guard = time.monotonic(), threading.Event(), threading.Lock()
        self._file = self._new_file()
        self._thread = threading.Thread(target=self._run, name="errors", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes in what a logger was told; never raises."""
        try:
            self._add(self._line(record))
        except Exception:  # noqa: BLE001 - what logs an error must not make another
            self.handleError(record)

    def refuse(self, status: int, reason: str, error: Exception, request: str, version: str = "") -> None:
        """Counts a caller's error."""
        key = (status, reason, version)
        with self._guard:
            found = self._refused.get(key)
            if found is not None:
                found["count"] += 1
            elif len(self._refused) < MOST_KINDS:
                self._refused[key] = {
                    "at": time.time(),
                    "level": "error" if status >= 500 else "warning",
                    "stage": REFUSED_AT.get(reason, "decode"),
                    "version": version,
                    "request": request,
                    "type": reason,
                    "status": status,
                    "said": unquoted(str(error)),
                    "count": 1,
                }

    def flush(self) -> None:
        """Writes what waits."""
        with self._guard:
            lines, self._lines = list(self._lines), deque()
            over, self._over = self._over, {}
            is_due = time.monotonic() - self._gathered_at >= GATHER_S or self._ended.is_set()
            if is_due:
                self._gathered_at = time.monotonic()
                lines += self._refused.values()
                self._refused = {}
        for (level, stage, kind), count in over.items():
            lines.append(
                {"at": time.time(), "level": level, "stage": stage, "type": kind, "count": count}
                | {"said": f"{count} more of the kind"}
            )
        try:
            if lines:
                self._write(b"".join(orjson.dumps(self._head | line, option=_LINE) for line in lines))
        except OSError:
            # They are tried again, as far as there is room; what is left out is counted.
            for line in lines:
                self._add(line)
            raise

    def close(self) -> None:
        """Writes what waits, and ends."""
        self._ended.set()
        self._thread.join()
        super().close()

    def _run(self) -> None:
        while not self._ended.wait(FLUSH_S):
            self._flushed()
        self._flushed()

    def _flushed(self) -> None:
        # There is no other place where it could be said that this one is full.
        with contextlib.suppress(OSError):
            self.flush()

    def _add(self, line: Line) -> None:
        with self._guard:
            if len(self._lines) < MOST_LINES:
                self._lines.append(line)
                return
            key = line["level"], line["stage"], line["type"]
            if key not in self._over and len(self._over) >= MOST_KINDS:
                key = line["level"], "others", "others"
            self._over[key] = self._over.get(key, 0) + line["count"]

    def _line(self, record: logging.LogRecord) -> Line:
        error = record.exc_info[1] if record.exc_info else None
        trace = record.exc_info[2] if record.exc_info else None
        at, stage = _raised(trace, record.name)
        # Loggers are given what `shown` makes of an error that is not ours, whose sentence is its type.
        kind, model = "" if error is None else type(error).__name__, getattr(record, "model", "")
        kind = str(error) if kind == "RuntimeError" and str(error).isidentifier() else kind
        return {
            "at": record.created,
            "level": record.levelname.lower(),
            "stage": stage,
            "version": getattr(record, "version", ""),
            "request": getattr(record, "request", ""),
            "type": kind or _kind(record),
            "status": getattr(record, "status", None),
            "said": record.getMessage()[:LONGEST],
            "where": at or f"{record.name}:{record.lineno}",
            "count": 1,
        } | ({"model": model} if model else {})

    def _write(self, lines: bytes) -> None:
        if self._file.exists() and self._file.stat().st_size + len(lines) > MOST_OF_A_FILE:
            self._file = self._new_file()
            tidy(self._storage)
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE)
        with open(descriptor, "ab") as file:
            file.write(lines)

    def _new_file(self) -> Path:
        return self._storage.path(FOLDER, f"{self._id}-{time.time_ns() // 1_000_000}.jsonl")


_LINE = orjson.OPT_APPEND_NEWLINE
_installed: list[ErrorLog] = []


def install(storage: Storage, process: str, model: str = "") -> ErrorLog:
    """From now on this process has an error log; an earlier one of it is closed."""
    for before in _installed:
        logging.getLogger("mlops_ray").removeHandler(before)
        before.close()
    made = ErrorLog(storage, process, model)
    _installed[:] = [made]
    logging.getLogger("mlops_ray").addHandler(made)
    tidy(storage)
    return made


def refuse(status: int, reason: str, error: Exception, request: str, version: str = "") -> None:
    """Counts a caller's error, where this process has a log."""
    for log in _installed:
        log.refuse(status, reason, error, request, version)


def tell(storage: Storage, model: str, command: str, error: BaseException) -> None:
    """One line, of the error that a command ends with; where that is in vain, the terminal alone has it."""
    where, _ = _raised(error.__traceback__, "")
    line: Line = {"at": time.time(), "level": "error", "stage": command, "model": model, "version": ""}
    line |= {"request": "", "run": run_id(), "type": type(error).__name__, "status": None}
    line |= {"said": safe(error)[:LONGEST], "where": where, "count": 1, "process": COMMAND}
    day = time.strftime("%Y-%m-%d", time.gmtime(line["at"]))
    # A path that is no UTF-8 is a TypeError of orjson.
    with contextlib.suppress(OSError, TypeError):
        path = storage.path(FOLDER, f"{COMMAND}-{day}.jsonl")
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE)
        with open(descriptor, "ab") as file:
            if os.fstat(descriptor).st_size < MOST_OF_A_FILE:
                file.write(orjson.dumps(line, option=_LINE))
        tidy(storage)


def run_id(environ: Mapping[str, str] = os.environ) -> str:
    """The id under which this process was submitted as a job of Ray, else one that is made.

    >>> run_id({JOB: '{"metadata": {"job_submission_id": "nightly"}}'}), len(run_id({}))
    ('nightly', 12)
    """
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(orjson.loads(environ[JOB])["metadata"]["job_submission_id"])
    return uuid.uuid4().hex[:12]


def unquoted(said: str) -> str:
    """The sentence without what it quotes of a request.

    >>> unquoted("row 3, column 'load': 'x1' is not a number")
    'row …, column …: … is not a number'
    """
    return _QUOTED.sub("…", said)[:LONGEST]


def tidy(storage: Storage) -> None:
    """Removes files that are too old, and the oldest where there are too many, or too many bytes."""
    known = []
    for path in storage.root.glob(f"{FOLDER}/*.jsonl"):
        with contextlib.suppress(FileNotFoundError):
            known.append((path.stat().st_mtime, path.stat().st_size, path))
    total = 0
    for place, (changed, size, path) in enumerate(sorted(known, reverse=True)):
        total += size
        if total > MOST_BYTES or place >= MOST_FILES or time.time() - changed > KEPT_S:
            path.unlink(missing_ok=True)


def _raised(trace: TracebackType | None, logger: str) -> tuple[str, str]:
    """Where an error was raised, in code of ours, and in which stage."""
    at, stage = "", ""
    for module, line in _frames(trace):
        at, stage = f"{module}:{line}", OF_REQUESTS.get(module) or _stage(module) or stage
    return at, _stage(logger) or stage


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, int]]:
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.startswith("mlops_ray."):
            yield module, trace.tb_lineno
        trace = trace.tb_next


def _stage(module: str) -> str:
    while module:
        if module in STAGES:
            return STAGES[module]
        module = module.rpartition(".")[0]
    return ""


def _kind(record: logging.LogRecord) -> str:
    """The type of an error that stands among what a logger was told, else the level."""
    args = record.args.values() if isinstance(record.args, Mapping) else record.args or ()
    named = [
        each.type if isinstance(each, Said) else type(each).__name__
        for each in args
        if isinstance(each, Said | BaseException)
    ]
    return named[0] if named else record.levelname.lower()
