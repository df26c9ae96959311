"""The load generator: wrk from Debian, on one thread, over connections that are kept open.

Requests are made beforehand, whole, and sent in turn from a file, where no list of processes shows their key.
"""

import http.client
import json
import shutil
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from benchmarks.report import Claim

FOLDER = Path(__file__).parent
#: Of one, of as many as a batch likes, of more than are answered at once.
CONNECTIONS = (1, 16, 64)
#: Longer than any server may take.
TIMEOUT_S = 30.0
WARM_UP_S, WARM_UP_CONNECTIONS = 2, 16
CHECKED_ROWS = 32
#: XGBoost answers in 32 bits, and servers write its answers out in their own ways.
TOLERANCE = 1e-5
JSON = {"Content-Type": "application/json"}

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Load:
    """What wrk measured; `errors` counts replies of 400 and more, and connections that failed."""

    rate: float
    p50_ms: float
    p99_ms: float
    errors: int


@dataclass(frozen=True)
class Target:
    """Where requests go, and the same in a file for wrk."""

    url: str
    file: Path

    def closed(self, connections: int, seconds: float) -> Load:
        """So many connections, each of which sends the next request when it has the answer to the last."""
        said = wrk("closed.lua", self, connections, seconds)
        errors = said["refused"] + said["broken"]
        return Load(said["requests"] / said["seconds"], said["p50_ms"], said["p99_ms"], errors)


def wrk(script: str, target: Target, connections: int, seconds: float, *args: object) -> dict[str, Any]:
    """What a script for wrk prints as its last line, a JSON object; seconds are whole ones."""
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("wrk is not installed; Debian has it")
    options = ["-t1", f"-c{connections}", f"-d{seconds:.0f}s", f"--timeout={TIMEOUT_S:.0f}s", "--latency"]
    command = [program, *options, "-s", str(FOLDER / script), target.url, "--", str(target.file)]
    done = subprocess.run([*command, *map(str, args)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"wrk failed: {done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def target(
    url: str, bodies: Iterable[Mapping[str, Any]], file: Path, headers: Mapping[str, str] | None = None
) -> Target:
    """A target for these bodies, whose requests are written to a file that the owner alone reads."""
    parts = urlsplit(url)
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in {**JSON, **(headers or {})}.items()]
    file.touch(mode=0o600)
    file.write_bytes(b"".join(_whole(lines, json.dumps(body).encode()) + b"\0" for body in bodies))
    return Target(url, file)


def _whole(lines: list[str], body: bytes) -> bytes:
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


class Caller:
    """One connection that is kept open, for answers that are read."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self._path, self._headers = parts.path, {**JSON, **(headers or {})}
        self._connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT_S)

    def post(self, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """Status and body of the reply; raises `OSError` or `HTTPException` where there is none."""
        try:
            self._connection.request("POST", self._path, json.dumps(body), self._headers)
            reply = self._connection.getresponse()
            return reply.status, reply.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()  # the next call opens it again
            raise

    def answers(self, body: Mapping[str, Any]) -> bool:
        """Whether the request is answered with 200."""
        try:
            return self.post(body)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def close(self) -> None:
        self._connection.close()


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over the rounds of ours over theirs: what slows the machine slows both of a round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


class Bench:
    """Measures targets round by round: requests/s and latencies, and whether answers are the model's own.

    `expected` is what the model answers to `rows`; requests are kept in `folder`.
    """

    def __init__(self, folder: Path, seconds: float, rows: Rows, expected: Rows) -> None:
        self.folder, self.seconds = folder, seconds
        self.rows, self.expected = rows, expected
        self.loads: dict[tuple[str, int], list[Load]] = defaultdict(list)
        self.differing = 0

    def target(
        self,
        name: str,
        url: str,
        body: Callable[[list[float]], Any],
        headers: Mapping[str, str] | None = None,
    ) -> Target:
        """A target for all rows."""
        return target(url, map(body, self.rows.tolist()), self.folder / f"{name}.requests", headers)

    def check(
        self, caller: Caller, body: Callable[[list[float]], Any], answer: Callable[[Any], float]
    ) -> None:
        """Counts the answers that are not the model's own."""
        got = [answer(json.loads(caller.post(body(row))[1])) for row in self.rows[:CHECKED_ROWS].tolist()]
        caller.close()
        is_same = np.isclose(got, self.expected[:CHECKED_ROWS], rtol=TOLERANCE, atol=TOLERANCE)
        self.differing += int((~is_same).sum())

    def measure(self, targets: Mapping[str, Target]) -> None:
        """All targets in turn, with each number of connections, after a warm-up."""
        for target in targets.values():
            target.closed(WARM_UP_CONNECTIONS, WARM_UP_S)
        for connections in CONNECTIONS:
            for name, target in targets.items():
                self.loads[name, connections].append(target.closed(connections, self.seconds))

    def of(self, name: str, connections: int, what: str) -> list[float]:
        """A figure of each round."""
        return [getattr(load, what) for load in self.loads[name, connections]]

    def table(self) -> list[dict[str, Any]]:
        """For each target and number of connections the medians of the rounds, and their spread."""
        return [_shown(name, connections, loads) for (name, connections), loads in self.loads.items()]

    def correct(self, errors: int = 0) -> list[Claim]:
        """That nothing went wrong, `errors` besides included."""
        errors += sum(load.errors for loads in self.loads.values() for load in loads)
        return [
            Claim("answers that are not the model's", self.differing, 0),
            Claim("requests that failed under load", errors, 0),
        ]


def _shown(name: str, connections: int, loads: Sequence[Load]) -> dict[str, Any]:
    rates, p99s = [load.rate for load in loads], [load.p99_ms for load in loads]
    return {
        "server": name,
        "connections": connections,
        "requests_s": round(statistics.median(rates)),
        "min": round(min(rates)),
        "max": round(max(rates)),
        "p50_ms": statistics.median(load.p50_ms for load in loads),
        "p99_ms": statistics.median(p99s),
        "p99_min": min(p99s),
        "p99_max": max(p99s),
        "errors": sum(load.errors for load in loads),
    }
