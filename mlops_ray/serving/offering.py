"""A process of its own that offers requests, as `loadtest.search` asks it to: generator.py is its program."""

import base64
import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from mlops_ray.errors import ServiceError
from mlops_ray.serving.loadtest import Objectives, Second

Arrivals = Literal["poisson", "even"]
PROGRAM = "mlops_ray.serving.generator"
#: With it the chance begins by which requests come.
SEED = 7
#: No answer within so many times the allowed p99, or this long, is none: beyond its limit a service takes
#: ever longer, and the next rate has to wait for all of it.
PATIENCE, LEAST_TIMEOUT_S = 5, 2.0
#: After a rate a single caller asks for so long, again and again, until answered in time: what was given up
#: may still be worked on. It asks no longer than that.
REST_S, MOST_REST_S = 0.5, 10.0
#: How long the process may take to end: less than who is interrupted has (cluster/interrupt.py).
END_S = 2.0


def request(url: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A whole POST, as it goes over a connection that is kept open.

    >>> request("http://127.0.0.1:8000/v2", {"A": "b"}, b"{}")
    b'POST /v2 HTTP/1.1\\r\\nHost: 127.0.0.1:8000\\r\\nA: b\\r\\nContent-Length: 2\\r\\n\\r\\n{}'
    """
    parts = urlsplit(url)
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


class Offering:
    """The process; a context manager that ends it. Requests go, in turn, to the address of `url`.

    They come by chance, the same way each time, or evenly.
    """

    def __init__(
        self, url: str, requests: Sequence[bytes], allowed: Objectives, arrivals: Arrivals = "poisson"
    ) -> None:
        self._arrivals, self._seed = arrivals, SEED
        parts = urlsplit(url)
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._late_s = allowed.p99_ms / 1000
        self._tell(
            host=parts.hostname,
            port=parts.port,
            requests=[base64.b64encode(request).decode() for request in requests],
            late_s=self._late_s,
            timeout_s=max(LEAST_TIMEOUT_S, PATIENCE * self._late_s),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self._process.communicate("", END_S)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def closed(self, connections: int, seconds: float) -> float:
        """The answers a second that so many callers get who each wait for one before they ask again.

        Raises `ServiceError` where they get none, or the process has ended.
        """
        self._tell(connections=connections, seconds=seconds)
        found = self._heard()
        if found is None:
            raise ServiceError("the generator ended while it warmed the service up")
        if not found["answered"]:
            raise ServiceError(f"none of {found['failed']} requests was answered while the service warmed up")
        return float(found["answered"] / found["seconds"])

    def offer(self, rate: float | Sequence[float]) -> Generator[Second]:
        """Offers a rate until it is closed, and then waits until the service has come to rest.

        Of several each is that of one second, and the last one, which goes on, must be more than none.
        """
        self._seed += 1
        rates = list(rate) if isinstance(rate, Sequence) else rate
        self._tell(rate=rates, seed=self._seed if self._arrivals == "poisson" else None)
        try:
            while (found := self._heard()) is not None:
                took, lag = (
                    Counter({int(ticks): n for ticks, n in found[of].items()}) for of in ("took", "lag")
                )
                yield Second(found["due"], found["late"], found["failed"], took, lag)
        finally:
            self._tell()
            while (found := self._heard()) is not None and "ended" not in found:
                pass
            self._rest()

    def _rest(self) -> None:
        until = time.monotonic() + MOST_REST_S
        while time.monotonic() < until:
            self._tell(connections=1, seconds=REST_S)
            found = self._heard()
            if found is None or found["seconds"] <= found["answered"] * self._late_s:
                return

    def _tell(self, **asked: Any) -> None:
        """One line; nothing asked: it is to stop. Of a process that has ended the next answer is none."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write((json.dumps(asked) if asked else "stop") + "\n")
            self._process.stdin.flush()

    def _heard(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else None
