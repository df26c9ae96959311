"""How benchmarks measure: pairs that alternate, growth in processes of their own, peak memory."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MIB = 2**20
#: Runs before those that count: files are in the page cache then, and what is made once is made.
WARM_UPS = 1


@dataclass(frozen=True)
class Pairs:
    """Seconds of two sides that ran in turn, and what each answered last."""

    ours: list[float]
    theirs: list[float]
    answers: tuple[Any, Any]

    @property
    def ratio(self) -> float:
        """The median over the pairs of ours over theirs: what slows the machine slows both of a pair."""
        return statistics.median(a / b for a, b in zip(self.ours, self.theirs, strict=True))


@dataclass(frozen=True)
class Grown:
    """What a size took: seconds of each run, and the process's memory at its peak."""

    rows: int
    seconds: list[float]
    peak_bytes: int


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int) -> Pairs:
    """Ours, theirs, ours, theirs …, after a warm-up."""
    for _ in range(WARM_UPS):
        ours()
        theirs()
    timed = [(timed_run(ours), timed_run(theirs)) for _ in range(pairs)]
    seconds = [(a, b) for (a, _), (b, _) in timed]
    return Pairs([a for a, _ in seconds], [b for _, b in seconds], (timed[-1][0][1], timed[-1][1][1]))


def repeat(run: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each run, after a warm-up."""
    for _ in range(WARM_UPS):
        run()
    return [timed_run(run)[0] for _ in range(times)]


def timed_run(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the answer."""
    begin = time.perf_counter()
    answer = run()
    return time.perf_counter() - begin, answer


def peak(rows: int, run: Callable[[], Any], times: int) -> Grown:
    """Seconds of a few runs in this process, and its memory; the peak of what went before is forgotten."""
    Path("/proc/self/clear_refs").write_text("5")
    seconds = repeat(run, times)
    return Grown(rows, seconds, peak_bytes())


def peak_bytes() -> int:
    """The most memory that this process has held. A child's `ru_maxrss` would begin at its parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def in_new_process(function: Callable[..., Any], *args: Any, **environ: str) -> Any:
    """What a function answers in a new interpreter: its memory is that of nobody else.

    `environ` is in its environment besides.
    """
    context, before = multiprocessing.get_context("spawn"), dict(os.environ)
    os.environ.update(environ)
    try:
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            return pool.submit(function, *args).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The power of its size that a time grows with: the slope of the logarithms, by least squares.

    >>> round(exponent([1, 10, 100], [2, 20, 200]), 6)
    1.0
    """
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def line(counts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds that are there anyway, and seconds for each more: a straight line by least squares.

    >>> [round(part, 6) for part in line([1, 2, 4], [3, 5, 9])]
    [1.0, 2.0]
    """
    slope, fixed = np.polyfit(counts, seconds, 1)
    return float(fixed), float(slope)


def shown(
    what: str,
    rows: int,
    seconds: Sequence[float],
    *,
    ratio: float | None = None,
    peak_bytes: int | None = None,
    exponent: float | None = None,
) -> dict[str, Any]:
    """A row of a table: the median of the runs and their spread, seconds; rows of the history."""
    return {
        "what": what,
        "rows": rows,
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "ratio": ratio,
        "peak_mib": None if peak_bytes is None else round(peak_bytes / MIB),
        "exponent": exponent,
    }


def growth(what: str, grown: Sequence[Grown]) -> list[dict[str, Any]]:
    """Rows of a table: each size, and from the second on the exponent from the one before and over all."""
    medians = [statistics.median(g.seconds) for g in grown]
    sizes = [g.rows for g in grown]
    rows = [
        shown(what, g.rows, g.seconds, peak_bytes=g.peak_bytes, exponent=_local(sizes, medians, number))
        for number, g in enumerate(grown)
    ]
    return [*rows, {**rows[-1], "what": f"{what}, all sizes", "exponent": exponent(sizes, medians)}]


def _local(sizes: list[int], seconds: list[float], number: int) -> float | None:
    return exponent(sizes[number - 1 : number + 1], seconds[number - 1 : number + 1]) if number else None
