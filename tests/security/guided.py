"""Fuzzing in this process that is guided by coverage: what reaches a new step of the code is changed further.

As AFL does it, with what Python brings: the steps are those from line to line of some files.
"""

import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, Self

from polars.exceptions import PanicException

from mlops_ray.errors import RequestError
from tests.security.samples import MARKS, Sample, mutated, quotable

#: Reads a request, or raises; what it returns has been looked at.
Read = Callable[[Sample], object]
#: Of the processor, not of the clock, which a busy machine makes run away: far more than any request takes.
LIMIT_S = 5.0
#: What one request of at most 16 kB may have in use at a time beside what was in use before.
MOST_GROWTH_BYTES = 64 * 2**20
#: Linux forgets the most memory that was in use where this is written there.
_CLEAR, _PEAK = Path("/proc/self/clear_refs"), "5"
#: Characters of an error's sentence.
MOST_SAID = 1_000
#: Of what takes until the limit each try does.
MOST_MINIMISING_S = 60.0
#: More lines than a file has.
_LINES = 10_000


class Arcs:
    """Which steps from line to line the code of some files took while this was entered: `seen`, as numbers.

    >>> import tests.security.samples as code
    >>> with Arcs([code.__file__]) as arcs:
    ...     _ = code.text("a")
    >>> len(arcs.seen), arcs.lines
    (2, 1)
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._first = {file: at * _LINES**2 for at, file in enumerate(files)}
        self.seen: set[int] = set()

    def __enter__(self) -> Self:
        self.seen = set()
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _called(self, frame: FrameType, event: str, _: Any) -> Any:
        first = self._first.get(frame.f_code.co_filename)
        if first is None:
            return None
        last, seen = 0, self.seen

        def step(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            if event == "line":
                seen.add(first + last * _LINES + frame.f_lineno)
                last = frame.f_lineno
            elif event == "return":
                seen.add(first + last * _LINES)
            return step

        return step

    @property
    def lines(self) -> int:
        return lines_of(self.seen)


def lines_of(arcs: set[int]) -> int:
    """How many lines they lead to."""
    return len({(arc // _LINES**2, arc % _LINES) for arc in arcs if arc % _LINES})


# ---------------------------------------------------------------- what must not be


class TooSlowError(BaseException):
    """Nobody catches it by chance."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `TooSlowError` in what computes for longer; in the main thread alone."""

    def stop(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def wrong(read: Read, sample: Sample, limit_s: float = LIMIT_S) -> str:
    """What is wrong with how a request is read, alike for what has one cause; empty where nothing is."""
    _CLEAR.write_text(_PEAK)
    why, before = "", _most_bytes()
    try:
        with limited(limit_s):
            read(sample)
    except RequestError as error:
        why = wrongly_said(str(error), sample)
        if not 400 <= error.status < 500:
            why = f"status {error.status}"
        why = f"{why} {_place(error)}" if why else ""
    except (Exception, PanicException, TooSlowError) as error:  # noqa: BLE001 - whatever happens is told
        why = f"{type(error).__name__} {_place(error)}"
    if _most_bytes() - before > MOST_GROWTH_BYTES:
        why = why or "memory"
    return why


def wrongly_said(said: str, sample: Sample) -> str:
    """What an error's sentence must not be: empty, endless, or of a value that nobody may see."""
    if not said or len(said) >= MOST_SAID:
        return "sentence of no length" if not said else "endless sentence"
    told = [mark for mark in MARKS if mark in said.encode("utf-8", "replace")]
    return "hidden value told" if told and not all(mark in quotable(sample) for mark in told) else ""


def _place(error: BaseException) -> str:
    """The last line of ours that an error came from."""
    ours = str(Path(__file__).parents[2])
    frames = traceback.extract_tb(error.__traceback__)
    of_ours = [each for each in frames if each.filename.startswith(ours) and _is_read(each.filename)]
    return f"{Path(of_ours[-1].filename).stem} {of_ours[-1].name}"


def _is_read(file: str) -> bool:
    return file != __file__ and "site-packages" not in file


def _most_bytes() -> int:
    """The most memory that was in use since it was told to forget."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# ---------------------------------------------------------------- the search


@dataclass
class Fuzzed:
    """What was tried: `corpus` are the requests that reached something new, `found` those by what was wrong.

    `first` are the steps that the seeds took, `arcs` those of all.
    """

    tried: int = 0
    seconds: float = 0.0
    corpus: list[Sample] = field(default_factory=list)
    first: set[int] = field(default_factory=set)
    arcs: set[int] = field(default_factory=set)
    found: dict[str, Sample] = field(default_factory=dict)


def fuzz(
    read: Read,
    seeds: Sequence[Sample],
    files: Sequence[str],
    random: Random,
    *,
    inputs: float = float("inf"),
    seconds: float = float("inf"),
    is_guided: bool = True,
) -> Fuzzed:
    """Reads so many requests made of the seeds, or for so long; without guidance of the seeds alone."""
    fuzzed, began = Fuzzed(), time.monotonic()
    for seed in seeds:
        _try(fuzzed, read, seed, files)
    fuzzed.corpus, fuzzed.first = list(seeds), set(fuzzed.arcs)
    while fuzzed.tried < inputs and fuzzed.seconds < seconds:
        sample = mutated(_one_of(fuzzed.corpus, random), random.choice(fuzzed.corpus), random)
        if _try(fuzzed, read, sample, files) and is_guided:
            fuzzed.corpus.append(sample)
        fuzzed.seconds = time.monotonic() - began
    return fuzzed


def _one_of(corpus: Sequence[Sample], random: Random) -> Sample:
    """More often of those that came last: they are the furthest."""
    return corpus[int(len(corpus) * random.random() ** 0.5)]


def _try(fuzzed: Fuzzed, read: Read, sample: Sample, files: Sequence[str]) -> bool:
    """Whether a request reached something new and was read as it must be."""
    arcs = Arcs(files)

    def traced(sample: Sample) -> None:
        with arcs:
            read(sample)

    why = wrong(traced, sample)
    fuzzed.tried += 1
    is_new = not arcs.seen <= fuzzed.arcs
    fuzzed.arcs |= arcs.seen
    if why and why not in fuzzed.found:
        fuzzed.found[why] = sample
    return is_new and not why


def minimised(read: Read, sample: Sample) -> Sample:
    """The request without all that is not needed for the same to be wrong with it, if there is time."""
    why, end = wrong(read, sample), time.monotonic() + MOST_MINIMISING_S
    for header in sample.headers:
        without = sample._replace(headers=tuple(each for each in sample.headers if each != header))
        sample = without if wrong(read, without) == why else sample
    size = len(sample.body)
    while size := size // 2:
        at = 0
        while at < len(sample.body) and time.monotonic() < end:
            without = sample._replace(body=sample.body[:at] + sample.body[at + size :])
            if wrong(read, without) == why:
                sample = without
            else:
                at += size
    return sample
