"""A profile says what a plain count says, within bounded memory, and nothing of what is hidden."""

import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.data.profile import View, profile
from mlops_ray.schema import INSTANT, Column

START = datetime(2016, 1, 1, tzinfo=UTC)
COLUMNS = [
    Column("load", "float"),
    Column("count", "int"),
    Column("site", "category"),
    Column("open", "bool"),
    Column("seen", "datetime"),
]
TYPES = {
    "load": pl.Float64,
    "count": pl.Int64,
    "site": pl.String,
    "open": pl.Boolean,
    "seen": INSTANT,
    "event_time": INSTANT,
}

INSTANTS = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=st.just(UTC))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "load": st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1.5, 2.5])),
    "count": st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-3, 3)),
    "site": st.one_of(st.text(max_size=3), st.sampled_from(["a", "A", "b "])),
    "open": st.booleans(),
    "seen": INSTANTS,
    "event_time": st.one_of(INSTANTS, st.integers(0, 9).map(lambda hours: START + timedelta(hours=hours))),
}
ROW = st.tuples(*(st.one_of(st.none(), values) for values in VALUES.values()))
TABLES = st.lists(ROW, max_size=40).map(lambda rows: pl.DataFrame(rows, TYPES, orient="row"))


def described(frame: pl.DataFrame, **says: Any) -> dict[str, Any]:
    """The profile, which is JSON without NaN and infinities."""
    columns = [column for column in COLUMNS if column.name in frame.columns]
    found = profile(frame.lazy(), View(columns, **{"time": "event_time", "keys": ["site"], **says}))
    return json.loads(json.dumps(found, allow_nan=False))  # type: ignore[no-any-return]


def column(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in found["columns"] if c["name"] == name)


def known(frame: pl.DataFrame, name: str) -> list[Any]:
    values = frame[name].to_list()
    return [v for v in values if v is not None and not (isinstance(v, float) and not math.isfinite(v))]


@given(TABLES)
def test_a_profile_counts_what_a_plain_count_counts(frame: pl.DataFrame) -> None:
    found = described(frame)
    assert found["rows"] == frame.height
    for c in found["columns"]:
        values = known(frame, c["name"])
        assert c["missing"] == frame.height - len(values)
        assert c["distinct"] == len(set(values))
        assert c["constant"] == (len(set(values)) == 1 and not c["missing"])
    for name in ("load", "count"):
        _check_numbers(column(found, name), sorted(known(frame, name)))
    for name in ("site", "open"):
        _check_top(column(found, name), Counter(map(_text, known(frame, name))))
    identities = Counter((r["site"], r["event_time"]) for r in frame.rows(named=True) if r["event_time"])
    assert found["identity"]["duplicates"] == sum(count - 1 for count in identities.values())
    sizes = Counter(r["site"] for r in frame.rows(named=True) if r["event_time"])
    assert found["identity"]["count"] == len(sizes)
    if sizes:
        assert found["identity"]["rows_per_key"]["max"] == max(sizes.values())


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else value


def _check_numbers(found: dict[str, Any], values: list[float]) -> None:
    if not values:
        assert "min" not in found
        return
    assert (found["min"], found["max"]) == (values[0], values[-1])
    assert found["zeros"] == values.count(0) / len(values)
    for share, quantile in found["quantiles"].items():
        assert quantile == values[max(math.ceil(float(share) * len(values)) - 1, 0)]
    cells = found["histogram"]
    if cells:
        edges = cells["edges"]
        assert edges == sorted(set(edges))
        assert cells["below"] == sum(value < edges[0] for value in values)
        assert cells["above"] == sum(value > edges[-1] for value in values)
        inner = [sum(low < value <= high for value in values) for low, high in itertools.pairwise(edges)]
        inner[0] += values.count(edges[0])
        assert cells["counts"] == inner


def _check_top(found: dict[str, Any], counts: Counter[str]) -> None:
    listed = {value["value"]: value["rows"] for value in found["top"]}
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    assert list(listed.items()) == ranked[:20]
    assert found["other"] == counts.total() - sum(listed.values())


@given(TABLES, st.integers(2, 6))
def test_nothing_is_said_that_fewer_rows_than_the_minimum_share(frame: pl.DataFrame, least: int) -> None:
    frame = pl.concat([frame] * 3) if least % 2 else frame
    found = described(frame, minimum_count=least)
    for c in found["columns"]:
        values = Counter(map(_text, known(frame, c["name"])))
        shown = [c.get("min"), c.get("max"), *c.get("quantiles", {}).values()]
        assert all(values[value] >= least for value in shown if value is not None)
        assert all(value["rows"] >= least for value in c.get("top", ()))
        assert c.get("other") is None or c["other"] == 0 or c["other"] >= least
        rest = values.total() - sum(value["rows"] for value in c.get("top", ()))
        assert not c.get("top") or rest == 0 or rest >= least
        for cells in (c.get("histogram"), c.get("coverage")):
            if cells:
                counts = [cells["below"], *cells["counts"], cells["above"]]
                assert all(count == 0 or count >= least for count in counts)
                assert sum(counts) == values.total()
        assert all("values" not in side for side in (c.get("outliers") or {}).values())
    time = found["time"]
    stamps = Counter(known(frame, "event_time"))
    told = [time["begin"], time["end"], *(gap[end] for gap in time["gaps"] for end in ("begin", "end"))]
    assert all(stamps[datetime.fromisoformat(at)] >= least for at in told if at is not None)


HOURS = st.lists(st.integers(0, 60), min_size=1, max_size=30)


@given(HOURS, st.integers(1, 40))
def test_gaps_are_those_of_a_plain_loop(hours: list[int], regular: int) -> None:
    stamps = sorted(START + timedelta(hours=hour) for hour in [*hours, *range(100, 100 + regular)])
    time = described(pl.DataFrame({"event_time": stamps}, {"event_time": INSTANT}), keys=())["time"]
    instants = sorted(set(stamps))
    between = [(b - a, a, b) for a, b in itertools.pairwise(instants)]
    steps = sorted(step for step, _, _ in between)
    step = steps[(len(steps) - 1) // 2] if steps else None
    assert time["step_s"] == (step.total_seconds() if step else None)
    assert time["regular"] == bool(step and steps.count(step) >= 0.8 * len(steps))
    if step and time["regular"]:
        gaps = sorted((g for g in between if g[0] > 1.5 * step), key=lambda gap: -gap[0])
        assert [tuple(gap.values()) for gap in time["gaps"]] == [
            (a.isoformat(), b.isoformat(), gap.total_seconds(), round(gap / step) - 1)
            for gap, a, b in gaps[:10]
        ]
        assert time["gap_count"] == len(gaps)
        assert time["missing_steps"] == sum(round(gap / step) - 1 for gap, _, _ in gaps)
    covered = time["coverage"]
    edges = [datetime.fromisoformat(edge) for edge in covered["edges"]]
    pairs = itertools.pairwise(edges)
    assert covered["counts"] == [sum(low <= stamp < high for stamp in stamps) for low, high in pairs]
    assert sum(covered["counts"]) == len(stamps)


def test_steps_that_one_key_misses_are_counted_though_another_has_them() -> None:
    rows = [
        (site, START + timedelta(hours=h))
        for h in range(100)
        for site in "ab"
        if site == "a" or not 5 < h < 9
    ]
    frame = pl.DataFrame(rows, {"site": pl.String, "event_time": INSTANT}, orient="row")
    time = described(frame)["time"]
    assert (time["gap_count"], time["missing_in_keys"], time["most_missing"]) == (0, 3, 3)


def test_events_without_a_rhythm_have_no_gaps_but_long_ones() -> None:
    rng = np.random.default_rng(0)
    at = np.cumsum(rng.exponential(3600, 3000))
    at[1500:] += 40 * 86_400
    stamps = [START + timedelta(seconds=float(second)) for second in at]
    time = described(pl.DataFrame({"event_time": stamps}, {"event_time": INSTANT}), keys=())["time"]
    assert (time["regular"], time["gap_count"], time["missing_steps"]) == (False, 1, None)


@pytest.mark.parametrize("name", ["load", "count", "site", "open", "seen"])
def test_of_a_hidden_column_type_and_missing_values_are_all_that_is_said(name: str) -> None:
    canary = {"load": 31337.25, "count": 31337, "site": "canary31337", "open": True, "seen": START}
    frame = pl.DataFrame(
        [{**canary, "event_time": START}] * 30 + [dict.fromkeys([*canary, "event_time"])], TYPES
    )
    found = described(frame, hidden=frozenset({name}))
    told = column(found, name)
    assert told == {"name": name, "type": told["type"], "missing": 1, "hidden": True}
    if name == "site":
        assert (found["identity"]["count"], found["identity"]["rows_per_key"]) == (None, None)
        assert "canary" not in json.dumps(found)


def test_a_hidden_time_is_not_shown_but_identities_are_counted() -> None:
    found = described(
        pl.DataFrame({"event_time": [START] * 3}, {"event_time": INSTANT}),
        hidden=frozenset({"event_time"}),
        keys=(),
    )
    assert found["time"] is None
    assert "2016" not in json.dumps(found)


def far(values: Any, **says: Any) -> dict[str, Any]:
    frame = pl.DataFrame({"load": pl.Series(values, dtype=pl.Float64)})
    return column(described(frame, time=None, keys=(), **says), "load")["outliers"]  # type: ignore[no-any-return]


def test_values_far_outside_and_alone_are_named() -> None:
    rng = np.random.default_rng(1)
    kelvin = rng.normal(281, 13, 5000)
    assert far([*kelvin, *[0.0] * 10])["low"] == {
        "count": 10,
        "distinct": 1,
        "values": [0.0],
        "nearest": kelvin.min(),
    }
    rain = [*np.zeros(5000), *rng.exponential(3, 400)]
    assert far([*rain, 9831.3])["high"]["values"] == [9831.3]
    assert far([*kelvin, *[0.0] * 10], minimum_count=10) == {"low": {"count": 10}}
    assert far([*kelvin, *[0.0] * 9], minimum_count=10) == {}


@pytest.mark.parametrize("law", ["normal", "exponential", "uniform", "lognormal", "poisson"])
def test_of_ordinary_laws_no_value_is_far_outside(law: str) -> None:
    rng = np.random.default_rng(2)
    assert [far(getattr(rng, law)(size=20_000)) for _ in range(5)] == [{}] * 5


def test_one_wild_value_does_not_squeeze_the_histogram() -> None:
    values = [*np.random.default_rng(3).normal(size=5000), 1e9]
    cells = column(described(pl.DataFrame({"load": values}), time=None, keys=()), "load")["histogram"]
    assert cells["above"] == 1
    assert sum(count > 0 for count in cells["counts"]) > 10


def test_spellings_that_differ_in_case_or_space_are_found() -> None:
    sites = ["sky is clear", "Sky is Clear ", "mist"] * 3
    found = column(described(pl.DataFrame({"site": sites}), time=None, keys=()), "site")
    assert found["alike"] == [["Sky is Clear ", "sky is clear"]]


def test_long_values_are_cut_and_rare_ones_added_up() -> None:
    sites = ["x" * 100_000, *(f"site {n}" for n in range(1000) for _ in range(2))]
    found = column(described(pl.DataFrame({"site": sites}), time=None, keys=()), "site")
    assert (found["distinct"], len(found["top"]), found["other"]) == (1001, 20, 2001 - 40)
    assert (
        len(
            column(described(pl.DataFrame({"site": sites[:1]}), time=None, keys=()), "site")["top"][0][
                "value"
            ]
        )
        == 120
    )


@pytest.mark.parametrize("name", [None, *TYPES])
def test_tables_without_rows_or_values_have_a_profile(name: str | None) -> None:
    empty = pl.DataFrame(schema=TYPES)
    found = described(empty if name is None else empty.clear(5))
    assert found["rows"] == (0 if name is None else 5)
    assert found["time"]["coverage"] is None


MEASURED = """
import sys
from pathlib import Path
import polars as pl
from mlops_ray.data.profile import View, profile
from mlops_ray.schema import Column

def peak():
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)

columns = [Column(f"f{i}", "float") for i in range(12)] + [Column(f"i{i}", "int") for i in range(4)]
columns += [Column("key", "category"), Column("open", "bool")] + [Column(n, "string") for n in ("id", "text")]
rows = pl.scan_parquet(sys.argv[1])
before = peak()
profile(rows, View(columns, time="event_time", keys=["key"]))
print(before, peak())
"""


def measured(rows: int, folder: Path) -> tuple[int, int]:
    """Kilobytes of memory at most, before and with the profile of a table of so many rows and 20 columns."""
    rng, at = np.random.default_rng(0), pl.int_range(rows, eager=True)
    frame = pl.DataFrame(
        {f"f{i}": rng.normal(size=rows) for i in range(12)}
        | {f"i{i}": rng.integers(0, 10 ** (2 * i + 1), rows) for i in range(4)}
        | {"open": rng.random(rows) < 0.1}
    )
    frame = frame.with_columns(
        key=pl.format("key {}", at % 500),
        id=pl.format("row-{}-{}", at, at * 7919),
        text=pl.format("a longer free text, number {}, in no word like another {}", at % 100_003, at % 7),
        event_time=(at // 500 * 3_600_000_000).cast(INSTANT),
    )
    frame.write_parquet(folder / "rows.parquet", row_group_size=250_000)
    child = [sys.executable, "-c", MEASURED, str(folder / "rows.parquet")]
    before, peak = map(int, subprocess.run(child, check=True, capture_output=True, text=True).stdout.split())
    return before, peak


def test_memory_stays_within_200_bytes_a_row(tmp_path: Path) -> None:
    """Beside what any table costs: 40 MB with 1,000 rows, some 100 MB once row groups are full.

    That is 1 GB for five million rows: `python -m tests.data.test_profile` measures it with as many. A peak
    varies by 20 MB, by what is there at the same time: of two million rows 10 bytes each.
    """
    sizes = (300_000, 2_300_000)
    some, more = (peak - before for before, peak in (measured(rows, tmp_path) for rows in sizes))
    assert (more - some) * 1000 < 200 * (sizes[1] - sizes[0])


if __name__ == "__main__":
    import tempfile
    import time

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        print("kB before and at most:", measured(5_000_000, Path(folder)))
        print(f"{time.perf_counter() - began:.0f} s, with writing the rows")
