"""A hundred swaps of what is live, under steady load, while replicas and the reconciler are killed.

Fifty times the other version is pushed, without a canary, and fifty times rolled back. Callers ask on kept
connections all the time, and each answer must be that of the version that it names. A push is timed from the
call to the last caller's first answer of the new version; those while nothing was down are claimed apart.
`--quick` makes ten swaps.
"""

import argparse
import http.client
import json
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

from benchmarks import ours
from benchmarks.load import Rows
from benchmarks.ours import Service
from benchmarks.report import Claim, finish
from mlops_ray.cluster import releases
from mlops_ray.cluster.stages import Silent
from mlops_ray.config import load
from mlops_ray.serving import heartbeats

SWAPS, QUICK_SWAPS, SEED = 100, 10, 1
CALLERS, PAUSE_S = 4, 0.01
#: Kills of a replica, or of the reconciler, come so far apart, and none comes before the last one is mended.
EVERY_S = (3.0, 8.0)
#: After a process that was killed is back, what follows is undisturbed.
CALM_S = 2.0
REPLICAS = 2
MOST_S, TOLERANCE = 120.0, 1e-4
RECONCILER = "reconciler"
PUSH_S, ROLLBACK_S = 2.0, 1.0
SERVING = {"replicas": {"min": REPLICAS, "max": REPLICAS}, "resources": {"cpu": 0.4}}


@dataclass
class Callers:
    """Callers on kept connections, and what they met; `expected` are the answers to each row by version."""

    url: str
    headers: dict[str, str]
    rows: Rows
    expected: dict[str, Rows]
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    #: The version that each caller was answered by last.
    latest: dict[int, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def failed(self) -> int:
        return sum(count for status, count in self.statuses.items() if status != 200)

    def calls(self) -> list[Callable[[threading.Event], None]]:
        return [partial(self._call, number) for number in range(CALLERS)]

    def wait_for(self, version: str) -> None:
        """Until every caller was answered by this version."""
        end = time.monotonic() + MOST_S
        while len(self.latest) < CALLERS or set(self.latest.values()) != {version}:
            if time.monotonic() > end:
                raise RuntimeError(f"version {version} is not live; callers are answered by {self.latest}")
            time.sleep(PAUSE_S / 2)

    def _call(self, number: int, stop: threading.Event) -> None:
        address, at = urlsplit(self.url), 0
        connection = http.client.HTTPConnection(address.netloc, timeout=MOST_S)
        while not stop.wait(PAUSE_S):
            at = (at + CALLERS) % len(self.rows)
            body = json.dumps(ours.body(self.rows[at].tolist()))
            try:
                connection.request("POST", address.path, body, self.headers)
                reply = connection.getresponse()
                status, said = reply.status, json.loads(reply.read())
            except (OSError, http.client.HTTPException, ValueError):
                connection.close()
                status, said = 0, None
            with self._lock:
                self.statuses[status] += 1
                if status == 200:
                    version = said["model_version"]
                    self.wrong += abs(ours.answer(said) - float(self.expected[version][at])) > TOLERANCE
                    self.latest[number] = version


@dataclass
class Killer:
    """Kills one process after another; `is_calm` tells whether all is as it should be."""

    service: Service
    killed: Counter[str] = field(default_factory=Counter)
    down_until: float = 0.0
    is_down: bool = False
    random: Random = field(default_factory=partial(Random, SEED))

    def is_calm(self, since: float) -> bool:
        """Whether nothing was down since then, or just before."""
        return not self.is_down and since > self.down_until + CALM_S

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(self.random.uniform(*EVERY_S)):
            kind = self.random.choice([self.service.name, RECONCILER])
            alive = ours.replicas(self.service, kind)
            if len(alive) < (REPLICAS if kind == self.service.name else 1):
                continue
            self.is_down = True
            self.random.choice(alive).kill()
            self.killed[kind] += 1
            self.mended(kind, len(alive))
            self.is_down, self.down_until = False, time.monotonic()

    def mended(self, kind: str, count: int) -> None:
        """Until as many processes answer as before."""
        storage, end = self.service.storage, time.monotonic() + MOST_S
        while time.monotonic() < end:
            alive = [each for each in heartbeats.followers(storage, self.service.name) if each.is_alive]
            followed = kind == RECONCILER or len(alive) >= count
            if (
                len(ours.replicas(self.service, kind)) >= count
                and followed
                and heartbeats.silent_s(storage) < 1.0
            ):
                return
            time.sleep(0.1)
        raise RuntimeError(f"what was killed of {kind} does not come back")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ten swaps")
    swaps = QUICK_SWAPS if parser.parse_args().quick else SWAPS
    rows = ours.asked()
    with tempfile.TemporaryDirectory() as name:
        service = Service(Path(name, "ours"), "swap", SERVING)
        with service.up() as url:
            expected = {"1": ours.expected(service.model, rows)}
            # Another tree depth makes another version, which is pushed at once.
            replace(service, depth=ours.DEPTH - 2).run()
            expected["2"] = ours.expected(service.model, rows)
            callers = Callers(url, service.headers, rows, expected)
            finish("swap", *swapped(service, callers, swaps))


def swapped(service: Service, callers: Callers, swaps: int) -> tuple[list[dict[str, Any]], list[Claim]]:
    """Swaps there and back, and what came of them."""
    project, storage, killer = load(service.file), service.storage, Killer(service)
    timed: dict[str, list[tuple[float, bool]]] = {"push": [], "rollback": []}
    with going(*callers.calls()), going(killer.run):
        for number in range(swaps):
            # Version 2 is live to begin with.
            what, version = ("push", "2") if number % 2 else ("rollback", "1")
            begin = time.monotonic()
            if what == "push":
                releases.require_live(releases.pushed(project, storage, Silent(), int(version)))
            else:
                releases.rollback(project, storage)
            callers.wait_for(version)
            timed[what].append((time.monotonic() - begin, killer.is_calm(begin)))
    kills, failed = killer.killed[service.name], callers.failed
    rows = [_row(what, found) for what, found in timed.items()]
    rows += [
        {"swap": "killed: replicas", "times": kills},
        {"swap": "killed: reconcilers", "times": killer.killed[RECONCILER]},
        {"swap": "requests answered", "times": callers.statuses[200]},
        {"swap": "requests failed", "times": failed},
    ]
    rows = [dict.fromkeys(rows[0], None) | row for row in rows]
    worst = {what: max(seconds for seconds, is_calm in found if is_calm) for what, found in timed.items()}
    return rows, [
        Claim("push to live, worst undisturbed, s", worst["push"], PUSH_S),
        Claim("rollback, worst undisturbed, s", worst["rollback"], ROLLBACK_S),
        Claim("failed requests beyond those on killed replicas", max(0, failed - CALLERS * kills), 0),
        Claim("answers of another version than the one named", callers.wrong, 0),
    ]


def _row(what: str, found: list[tuple[float, bool]]) -> dict[str, Any]:
    calm, other = ([seconds for seconds, is_calm in found if is_calm is kind] for kind in (True, False))
    return {
        "swap": what,
        "times": len(found),
        "undisturbed": len(calm),
        "median s": statistics.median(calm),
        "worst s": max(calm),
        "worst s with a kill": max(other, default=None),
    }


@contextmanager
def going(*works: Callable[[threading.Event], None]) -> Iterator[None]:
    """Each in a thread of its own for the block; what one raises is raised at the end."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(works)) as pool:
        futures = [pool.submit(work, stop) for work in works]
        try:
            yield
        finally:
            stop.set()
        for future in futures:
            future.result()


if __name__ == "__main__":
    main()
