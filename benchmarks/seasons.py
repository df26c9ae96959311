"""A course of time watched: 21 factories, learned from January to June and replayed from July.

What the monitor would have said is written down as it is: every alarm with its day and its evidence. Then
the load of each site in turn is halved from the first of September, and it is seen when its name is said.
The features of halved loads are computed here by plain Polars, which on the loads as they are must agree with
the pipeline.
"""

import argparse
import gzip
import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from mlops_ray.cluster import head

# Ray reads these once, when it is first imported.
os.environ.update(head.SETTINGS)

import numpy as np
import polars as pl
import yaml

from benchmarks.report import Claim, finish
from mlops_ray.cluster import service
from mlops_ray.cluster.stages import Silent
from mlops_ray.config import Project
from mlops_ray.features.on_request import public_holidays
from mlops_ray.features.store import FeatureStore
from mlops_ray.monitoring import looks, replay
from mlops_ray.monitoring.alarms import Budget
from mlops_ray.monitoring.looks import Release
from mlops_ray.monitoring.replay import Replayed
from mlops_ray.registry.predictor import Predictor
from mlops_ray.registry.registry import Registry
from mlops_ray.serving import deploy
from mlops_ray.storage import Storage

ZONE = ZoneInfo("Europe/Berlin")
BEGIN, HALVED = (datetime(2016, month, 1, tzinfo=ZONE).astimezone(UTC) for month in (7, 9))
SOON, END = (datetime(*month, 1, tzinfo=ZONE).astimezone(UTC) for month in ((2016, 8), (2017, 1)))
WITHIN = timedelta(days=14)
DAY_S, DAY_US = 86_400.0, 86_400_000_000
AGO = {"load_1d_ago": 1, "load_2d_ago": 2, "load_7d_ago": 7}
MEANS = {"load_mean_7d": 7, "load_mean_30d": 30}
FOUND_AT_LEAST = 15
PROJECT = Path(__file__).parent.parent / "configs" / "factory_load.yaml"
RAW = Path(__file__).parent.parent / "mlops_ray" / "datasets" / "factory_load" / "load_profiles_2016.csv.gz"


def project(folder: Path, name: str, until: date | None = None) -> Project:
    """The example's project over its data up to a day, in a storage of its own, with a quick search."""
    lines = gzip.decompress(RAW.read_bytes()).decode("utf-8-sig").splitlines(keepends=True)
    kept = [line for line in lines[1:] if until is None or _day(line) < until]
    (folder / name).mkdir()
    (folder / name / "loads.csv").write_text("".join([lines[0], *kept]), "utf-8")
    asked = yaml.safe_load(PROJECT.read_text("utf-8"))
    asked["sources"]["meter"]["path"] = str(folder / name / "loads.csv")
    asked["training"] |= {"families": ["xgboost"], "search": {"trials": 2, "seed": 7}}
    asked["training"]["validation"] = {"by": "time", "test": {"from": "2016-04-01"}, "folds": 2}
    asked["monitoring"]["alerts"] = []
    return Project.model_validate(asked | {"storage": str(folder / name / "storage")})


def _day(line: str) -> date:
    return datetime.strptime(line.split(";")[0].strip('"')[:10], "%d.%m.%Y").date()


def learned(folder: Path) -> tuple[Release, Predictor]:
    """The model of the first half of the year, as if it were live."""
    half = project(folder, "half", date(2016, 7, 1))
    storage = Storage.open(half.storage)
    trained = service.train(half, storage, Silent())
    package = Registry(deploy.tracking_uri(half, storage)).package(half.project, trained["version"])
    predictor = Predictor.load(package.folder, None)
    return looks.released("1", package.folder, package.digest), predictor


def year(folder: Path) -> pl.DataFrame:
    """All labelled rows of the year with their features, by the pipeline."""
    whole = project(folder, "whole")
    storage = Storage.open(whole.storage)
    service.ingest(whole, storage, Silent())
    store = FeatureStore(whole, storage)
    return store.build(store.snapshots()).frame


def features_of(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with features made of their labels: of gapless hours of each site, in their order."""
    load, hours = pl.col("label"), 24
    ago = [load.shift(hours * days).over("site").alias(name) for name, days in AGO.items()]
    means = [
        load.rolling_mean(hours * days).shift(hours).over("site").alias(name) for name, days in MEANS.items()
    ]
    return rows.sort("site", "time").with_columns(*ago, *means).sort("time", "site")


def disagreement(rows: pl.DataFrame) -> float:
    """How far features made here are from the pipeline's, at most, where both have a whole past."""
    ours = features_of(rows)
    begin = rows["time"].min() + timedelta(days=32)  # type: ignore[operator]
    both = rows.sort("time", "site").filter(pl.col("time") > begin)
    ours = ours.filter(pl.col("time") > begin)
    names = [*AGO, *MEANS]
    return float(max((both[name] - ours[name]).abs().max() or 0.0 for name in names))  # type: ignore[type-var]


def replayed(
    release: Release, predictor: Predictor, rows: pl.DataFrame, begin: datetime, end: datetime
) -> Replayed:
    log = replay.log(release, rows, predictor.predict_features, DAY_US)
    inside = log.filter(pl.col("at") >= begin, pl.col("at") < end)
    return replay.replay(release, inside, DAY_S, Budget())


def opened(replayed: Replayed) -> Iterator[dict[str, Any]]:
    """Each alarm: the day on which it opened, in the local time, and what was seen."""
    for episode in replayed.alarms.episodes:
        day = datetime.fromtimestamp(episode.opened, ZONE).date()
        (look,) = (look for look in replayed.looks if look["at"] == episode.opened)
        first = [each["evidence"] for each in look["findings"] if each["about"] in look["found"]]
        off = day.isoweekday() == 7 or day in public_holidays("DE", day.year)
        over = episode.resolved and datetime.fromtimestamp(episode.resolved, ZONE).date().isoformat()
        yield {
            "opened": f"{day:%a %d %b}",
            "over": over or "goes on",
            "rest_day": off,
            "evidence": " | ".join(first)[:400],
        }


def named(replayed: Replayed, site: str) -> dict[float, str]:
    """When the name of a site stood in what a look found, and in what words."""
    return {
        look["at"]: finding["evidence"]
        for look in replayed.looks
        for finding in look["findings"]
        if finding["about"] in look["found"] and f"{site} " in finding["evidence"]
    }


def halved(release: Release, predictor: Predictor, rows: pl.DataFrame, site: str) -> dict[str, Any]:
    """After how many days a site is named whose load is halved, and was not named with it as it was."""
    begin, end = HALVED - timedelta(days=8), HALVED + WITHIN
    is_halved = (pl.col("site") == site) & (pl.col("time") >= HALVED)
    load = pl.when(is_halved).then(pl.col("label") / 2).otherwise(pl.col("label"))
    with_it = replayed(release, predictor, features_of(rows.with_columns(label=load)), begin, end)
    before = named(replayed(release, predictor, rows, begin, end), site)
    said = {
        at: why
        for at, why in named(with_it, site).items()
        if before.get(at) != why and at > HALVED.timestamp()
    }
    days = (min(said) - HALVED.timestamp()) / DAY_S if said else None
    return {
        "site": site,
        "named_after_days": days and round(days, 1),
        "evidence": said[min(said)][:200] if said else "",
    }


def corrupted(release: Release, predictor: Predictor, rows: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Each fault of the data from the first of September: after how many windows it is found, and as what."""
    is_bad = pl.col("time") >= HALVED
    faults = {
        "all zero": pl.lit(0.0),
        "another unit": pl.col("load_1d_ago") * 1_000,
        "feed stopped": pl.lit(None, pl.Float64),
        "some missing": pl.when(pl.int_range(pl.len()) % 5 > 0).then("load_1d_ago"),
    }
    bad = {
        f"load_1d_ago: {name}": ("load_1d_ago", pl.when(is_bad).then(value).otherwise("load_1d_ago"))
        for name, value in faults.items()
    }
    recoded = pl.when(is_bad).then(pl.col("site").str.to_lowercase()).otherwise("site")
    for name, (column, value) in {**bad, "site: recoded": ("site", recoded)}.items():
        log = rows.with_columns(value.alias(column))
        seen = replayed(release, predictor, log, HALVED - timedelta(days=9), HALVED + timedelta(days=3)).looks
        said = [
            (look["until"], finding["evidence"])
            for look in seen
            for finding in look["findings"]
            if finding["about"] in look["found"] and finding["kind"] == "data" and column in finding["about"]
        ]
        # A row is answered a day before the time that it is of.
        begun = (HALVED - timedelta(days=1)).timestamp()
        yield {
            "fault": name,
            "found_after_windows": (said and round((said[0][0] - begun) / DAY_S)) or None,
            "before": sum(until <= begun for until, _ in said),
            "evidence": said[0][1][:200] if said else "",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a month, and three sites")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        release, predictor = learned(Path(folder))
        rows = year(Path(folder))
        apart = disagreement(rows)
        quiet = list(opened(replayed(release, predictor, rows, BEGIN, SOON if quick else END)))
        sites = sorted(rows["site"].unique())[: 3 if quick else None]
        faults = list(corrupted(release, predictor, rows))
        found = [halved(release, predictor, rows, site) for site in sites]
    times = [row["named_after_days"] for row in found if row["named_after_days"] is not None]
    needed = FOUND_AT_LEAST * len(sites) / 21
    finish(
        "seasons",
        [*quiet, *faults, *found],
        [
            Claim("features made here, from the pipeline's", apart, 1e-9),
            Claim(
                "alarms that open on a Sunday or a public holiday", sum(row["rest_day"] for row in quiet), 0
            ),
            Claim(
                "faults of the data that are not named as such within two windows",
                sum(not 0 < (row["found_after_windows"] or 99) <= 2 or row["before"] > 0 for row in faults),
                0,
            ),
            Claim(
                "sites whose load is halved that are named within 14 days", len(times), needed, at_least=True
            ),
            Claim("days until they are, the median", float(np.median(times)) if times else np.inf, 14),
        ],
    )


if __name__ == "__main__":
    main()
