"""Machines and what was measured on them, as tests say them."""

import datetime as dt
from typing import Any

from mlops_ray.cost.model import Capacity, Wanted
from mlops_ray.cost.prices import Price, PriceList

SLO = {"p99_ms": 50.0, "error_rate": 0.001}
#: What a plan has to keep, where a test says nothing else: one replica at least, used to the full.
WANTED = Wanted(50, 0.001, safety=1, least=0)


def machine(type: str = "small", vcpu: float = 2, per_hour: float = 0.1, **more: Any) -> Price:
    said = {"memory_gib": 8, "gpu": "", "gpus": 0, "currency": "EUR", "region": "", "spot": False}
    return Price(
        type, vcpu, per_hour=per_hour, **said | {"source": "test", "date": dt.date(2026, 11, 1)} | more
    )


def measured(machine: str = "small", rate: float = 50, **more: Any) -> Capacity:
    """One replica of a CPU that answers so many requests a second, of one row each."""
    said: dict[str, Any] = {
        "model": "shop",
        "version": "3",
        "cpu": 1.0,
        "gpu": 0.0,
        "max_rows": 256,
        "high": rate,
        "rows": 1.0,
        "p99_ms": 40.0,
        "error_rate": 0.0,
        "slo": SLO,
        "on": "a processor",
        "at": "2026-11-02T12:00:00+00:00",
    }
    return Capacity(machine=machine, rate=rate, **said | more)


def listed(*prices: Price) -> PriceList:
    return PriceList(prices)
