"""How many replicas a model needs: enough that each is busy two thirds of its time.

Serve counts the requests that it has on their way; those that come directly it does not see (direct.py). So
each replica tells how busy it was, and how many it had to turn away; the controller calls `policy`.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: At which share of its time a replica still answers without a queue.
TARGET = 0.67
BUSY, REFUSED = "busy", "refused"


def replicas(busy: Mapping[Any, float], refused: Mapping[Any, float], current: int) -> int:
    """The number that is needed, from each replica's share of its time, and requests refused a second.

    >>> replicas({"a": 0.9, "b": 0.7}, {"a": 0.0, "b": 0.0}, current=2)
    3
    >>> replicas({"a": 0.2}, {"a": 3.0}, current=1)
    2
    """
    needed = math.ceil(sum(busy.values()) / TARGET)
    return max(needed, current + 1) if sum(refused.values()) > 0 else needed


def policy(context: Any) -> tuple[int, dict[str, Any]]:
    """What Serve's controller asks, with its `AutoscalingContext`."""
    told = context.aggregated_metrics or {}
    if not told.get(BUSY):
        return context.target_num_replicas, {}
    return replicas(told[BUSY], told.get(REFUSED, {}), context.current_num_replicas), {}


@dataclass
class Load:
    """What a replica has done since it was last asked; `cpus` are those that it may use."""

    cpus: float
    refused: int = 0
    _at: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), time.process_time()))

    def told(self) -> dict[str, float]:
        """The share of its processor time that it used, and the requests refused a second."""
        now, before = (time.monotonic(), time.process_time()), self._at
        refused, self.refused, self._at = self.refused, 0, now
        seconds = max(now[0] - before[0], 1e-3)
        return {BUSY: (now[1] - before[1]) / seconds / self.cpus, REFUSED: refused / seconds}
