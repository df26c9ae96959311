"""How benchmarks report: a table for people, a last line of JSON, and status 1 where a claim fails."""

import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Column, Table

#: Characters of a line where nobody is there to see it wrap.
WIDTH = 140


@dataclass(frozen=True)
class Claim:
    """A figure and the limit that it must keep: at most `limit`, or at least where `at_least`."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def finish(benchmark: str, rows: list[dict[str, Any]], claims: list[Claim]) -> None:
    """Prints rows and claims, and ends the process."""
    _print(benchmark, rows)
    _print("claims", [{**asdict(claim), "holds": claim.holds} for claim in claims])
    document = {
        "benchmark": benchmark,
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "rows": rows,
        "claims": [{"name": c.name, "value": c.value, "limit": c.limit, "holds": c.holds} for c in claims],
    }
    print(json.dumps(document))
    sys.exit(0 if all(claim.holds for claim in claims) else 1)


def machine() -> str:
    """The processor, its cores and the memory of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    memory_gib = psutil.virtual_memory().total / 2**30
    return f"{name}, {psutil.cpu_count()} cores, {memory_gib:.0f} GiB"


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(*(Column(name, no_wrap=True) for name in (rows[0] if rows else [])), title=title)
    for row in rows:
        table.add_row(*map(_text, row.values()))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
