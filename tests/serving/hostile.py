"""Functions that a package may name, each of which breaks the process that calls it in its own way."""

import os
import signal
import threading
from typing import NoReturn

import polars as pl


def crash(_: pl.Series) -> NoReturn:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def crash_when_large(values: pl.Series) -> pl.Series:
    """Crashes at answers that no example has."""
    if values.len() and (values > 1_000).any():
        os.kill(os.getpid(), signal.SIGSEGV)
    return values


def hang(values: pl.Series) -> pl.Series:
    threading.Event().wait()
    return values


def work(_: str) -> str:
    """As `hang`, for whoever is asked aside."""
    threading.Event().wait()
    return ""


def fail(_: pl.Series) -> NoReturn:
    raise ValueError("no reason at all")


def chat(values: pl.Series) -> pl.Series:
    print('{"entry": {"version": "forged"}}')
    return values
