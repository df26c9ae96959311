"""A real Feast reads from an exported repository what a short, slow, obviously right oracle says."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from benchmarks import peers
from mlops_ray.errors import ConfigError
from mlops_ray.features.feast import FeastView, export
from mlops_ray.schema import INSTANT

SCRIPT = Path(peers.__file__).parent / "peer_scripts" / "feast_exported.py"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Times lie on a grid of this step, or a microsecond beside it, so that many hit an edge of the ttl.
STEP_US, STEPS = 1000, 40
TTL_US = 5 * STEP_US
HISTORY_ROWS, SPINE_ROWS = 600, 400
PLACES, LINES = ["A", "B", "C"], [1, 2]
COLUMNS = {"x": pl.Float64, "n": pl.Int64, "flag": pl.Boolean, "text": pl.String, "at": INSTANT}
VIEWS = [
    FeastView("by_place", {"site": "place"}, (("x now", "x"), ("again", "x"), ("n_now", "n")), TTL_US),
    FeastView("by_line", {"site": "place", "line": "line"}, tuple((f"line_{c}", c) for c in COLUMNS)),
    FeastView("anywhere", {}, (("x_anywhere", "x"),), 1),
]


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    """Many share key and event time, some known_at too: corrections of corrections, and ties."""
    generator = np.random.default_rng(3)
    times = moments(generator, HISTORY_ROWS)
    numbers = generator.integers(0, 1000, HISTORY_ROWS).tolist()
    frame = pl.DataFrame(
        {
            "place": generator.choice([*PLACES, None], HISTORY_ROWS).tolist(),
            "line": generator.choice(LINES, HISTORY_ROWS).tolist(),
            "event_time": times,
            "known_at": [time + timedelta(days=int(generator.integers(0, 3))) for time in times],
            "x": [None if number < 100 else number / 7 for number in numbers],
            "n": numbers,
            "flag": [number % 2 == 0 for number in numbers],
            "text": [f"t{number}" for number in numbers],
            "at": times,
        },
        schema_overrides={"place": pl.String, "event_time": INSTANT, "known_at": INSTANT, **COLUMNS},
    )
    assert frame.select("place", "line", "event_time", "known_at").is_duplicated().any()
    return frame


@pytest.fixture(scope="module")
def spine() -> pl.DataFrame:
    generator = np.random.default_rng(4)
    return pl.DataFrame(
        {
            "site": generator.choice([*PLACES, "unknown", None], SPINE_ROWS).tolist(),
            "line": generator.choice([*LINES, 99], SPINE_ROWS).tolist(),
            "event_timestamp": moments(generator, SPINE_ROWS),
        },
        schema_overrides={"site": pl.String, "event_timestamp": INSTANT},
    )


def moments(generator: np.random.Generator, count: int) -> list[datetime]:
    """Before and after 1970, on the grid or a microsecond beside it."""
    steps = generator.integers(-STEPS // 2, STEPS // 2, count)
    beside = generator.choice([-1, 0, 0, 1], count)
    return [EPOCH + timedelta(microseconds=us) for us in (steps * STEP_US + beside).tolist()]


def require_feast() -> None:
    if peers.is_made("feast"):
        return
    message = "Feast's environment is not made: python -m benchmarks.peers feast"
    if os.environ.get("MLOPS_REQUIRE_SERVERS"):
        pytest.fail(message)
    pytest.skip(message)


def oracle(view: FeastView, column: str, rows: list[dict[str, Any]], wanted: dict[str, Any]) -> Any:
    """Section 3 of the semantics, read aloud."""
    p = wanted["event_timestamp"]
    oldest = (
        p - timedelta(microseconds=view.ttl_us)
        if view.ttl_us is not None
        else datetime.min.replace(tzinfo=UTC)
    )
    seen = [
        (row["event_time"], row["known_at"], position, row[column])
        for position, row in enumerate(rows)
        if all(row[key] == wanted[name] is not None for name, key in view.join_keys.items())
        and oldest <= row["event_time"] <= p
    ]
    return max(seen, key=lambda found: found[:3])[3] if seen else None


def test_a_real_feast_reads_what_the_oracle_says(
    rows: pl.DataFrame, spine: pl.DataFrame, tmp_path: Path
) -> None:
    require_feast()
    lacking = export(tmp_path / "repository", "two-words", VIEWS, {view.name: rows for view in VIEWS}, {})
    spine.write_parquet(tmp_path / "spine.parquet")
    answer = peers.run(
        "feast", SCRIPT, tmp_path / "repository", tmp_path / "spine.parquet", tmp_path / "result.parquet"
    )
    result = pl.read_parquet(tmp_path / "result.parquet")
    assert lacking == {}
    assert answer == {"views": len(VIEWS), "rows": SPINE_ROWS}
    history, wanted = rows.to_dicts(), spine.to_dicts()
    for view in VIEWS:
        for name, column in view.features:
            assert result[name].to_list() == [oracle(view, column, history, row) for row in wanted], name
            assert 0 < result[name].null_count() < SPINE_ROWS, name


def test_what_feast_cannot_express_is_returned_and_listed(rows: pl.DataFrame, tmp_path: Path) -> None:
    """Feast takes a ttl of 0 for none, drops columns that end in _y, and knows no case."""
    never = FeastView("never", {"site": "place"}, (("momentary", "x"),), 0)
    names = ("fine", "load_y", "RN", "Site", "twice", "Twice", "a:b")
    named = FeastView("named", {"site": "place"}, tuple((name, "x") for name in names))
    lacking = export(tmp_path, "p", [never, named], {"never": rows, "named": rows}, {"mean_7d": "a window"})
    assert set(lacking) == {"momentary", "mean_7d", *names} - {"fine"}
    exported = (tmp_path / "features.py").read_text()
    assert all(f'#   "{name}": {reason}' in exported for name, reason in lacking.items())
    assert pl.read_parquet(tmp_path / "data" / "named.parquet").columns[-1] == "fine"
    assert "never_view" not in exported, "Feast refuses a view without features"


def test_the_repository_names_no_path_of_this_machine(rows: pl.DataFrame, tmp_path: Path) -> None:
    export(tmp_path, "p", VIEWS, {view.name: rows for view in VIEWS}, {})
    texts = [(tmp_path / name).read_text() for name in ("features.py", "feature_store.yaml")]
    assert not any(str(tmp_path) in text for text in texts)


@pytest.mark.parametrize("name", ["../up", "a b", 'x"]', "1st"])
def test_a_name_that_no_variable_can_have_is_refused(name: str, rows: pl.DataFrame, tmp_path: Path) -> None:
    for view in (FeastView(name, {}, (("f", "x"),)), FeastView("v", {name: "place"}, (("f", "x"),))):
        with pytest.raises(ConfigError, match="rename it"):
            export(tmp_path / "repository", "p", [view], {view.name: rows}, {})
    assert not (tmp_path / "repository").exists()
