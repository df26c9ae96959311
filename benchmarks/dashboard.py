"""The dashboard in a real browser: how soon it is painted, of twenty models with a year of windows.

Two storages are made up as the monitor leaves them: windows of a day, and windows of an hour, of 20 columns
each. Each page is opened by a click in a service that has just started, and again; what counts is the time
from the click until the browser has painted what was asked for. With `--pictures FOLDER` the README's
example is trained instead and its second half-year replayed, and pictures of every page are taken.
"""

import argparse
import contextlib
import json
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import uvicorn

from benchmarks import watched
from benchmarks.browser import Page, browser
from benchmarks.report import Claim, finish
from mlops_ray import keys
from mlops_ray.serving.routes import Routes
from mlops_ray.storage import Storage

DAY_S, HOUR_S = 86_400.0, 3_600.0
MODELS, COLUMNS = 20, 20
#: Windows of a year.
YEAR = {"daily": (365, DAY_S), "hourly": (8_760, HOUR_S)}
#: Made apart; the others of as many lines are copies.
DIFFERENT = 2
MOST_MS = 1_000.0
PAGES = {
    "models": "#/?period={period}",
    "overview": "#/models/model-{n:02d}?period={period}",
    "drift": "#/models/model-{n:02d}/drift?period={period}",
    "performance": "#/models/model-{n:02d}/performance?period={period}",
    "alarms": "#/models/model-{n:02d}/alarms?period={period}",
    "errors": "#/errors?period={period}",
}
#: A click, and the time until what it asks for is on the screen (milliseconds).
CLICKED = """new Promise((done) => {{
  const from = performance.now(), main = document.querySelector('#main');
  const painted = () => requestAnimationFrame(() => setTimeout(() => done(performance.now() - from)));
  const link = Object.assign(document.createElement('a'), {{ href: {address} }});
  document.body.append(link);
  link.click();
  link.remove();
  const wait = () => (main.hasAttribute('aria-busy') ? requestAnimationFrame(wait) : painted());
  setTimeout(wait);
}})"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
PICTURED = {
    "models": "#/?period=quarter",
    "overview": "#/models/factory-load?period=7d",
    "drift": "#/models/factory-load/drift?period=quarter",
    "distribution": "#/models/factory-load/drift?period=quarter&column=load_1d_ago",
    "performance": "#/models/factory-load/performance?period=quarter",
    "alarms": "#/models/factory-load/alarms?period=quarter",
    "errors": "#/models/factory-load/errors?period=30d",
    "releases": "#/models/factory-load/releases",
    "features": "#/models/factory-load/features?period=quarter",
    "runs": "#/models/factory-load/runs",
}
SIZES = ((390, 844), (1024, 768), (1920, 1080))


@contextlib.contextmanager
def served(storage: Storage) -> Iterator[tuple[str, str]]:
    """The address of a gateway without Ray, and a key for it."""

    async def ping() -> dict[str, Any]:
        return {}

    routes = Routes(storage, ping)
    with contextlib.suppress(Exception):
        keys.revoke(storage, "reader")
    key = keys.add(storage, "reader", "read")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(routes, lifespan="off", log_level="critical"))  # type: ignore[arg-type]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", key
        finally:
            server.should_exit = True
            thread.join()


def year(folder: Path, windows: int, window_s: float, models: int) -> Storage:
    """So many models with a year of windows each."""
    storage, now = Storage.open(str(folder)), time.time()
    for number in range(models):
        name = f"model-{number:02d}"
        if number < DIFFERENT:
            watched.made_up(storage, name, windows, window_s, COLUMNS, now=now)
            continue
        like = f"model-{number % DIFFERENT:02d}"
        shutil.copytree(folder / "monitor" / like, folder / "monitor" / name)
        for part in ("release", "monitor"):
            document = storage.read_json(part, f"{like}.json") | {"model": name}
            storage.write_json(document, part, f"{name}.json")
    watched.errors(storage, "model-00", now)
    return storage


def measured(page: Page, url: str, key: str, windows: str, models: int) -> Iterator[dict[str, Any]]:
    """Each page opened by a click, of a week and of a year, for the first time and again."""
    page.log_in(url, key)
    page.go(f"{url}/dashboard")
    yield {"windows": windows, "page": "first paint", "period": "7d", "first_ms": round(page.run(PAINT))}
    for number, period in enumerate(("7d", "year")):
        for name, address in PAGES.items():
            # Of a model that nobody has looked at yet.
            shown = json.dumps(address.format(period=period, n=min(2 + number, models - 1)))
            times = []
            for _ in range(2):
                page.show("#/errors?period=1h")
                times.append(round(page.run(CLICKED.format(address=shown))))
            yield {
                "windows": windows,
                "page": name,
                "period": period,
                "first_ms": times[0],
                "again_ms": times[1],
            }


def pictures(folder: Path, storage: Storage) -> None:
    """Each page at three widths, in light and dark."""
    folder.mkdir(parents=True, exist_ok=True)
    with served(storage) as (url, key), browser() as tab, tab() as page:
        page.size(1024, 800)
        page.log_in(url, key)
        for name, address in PICTURED.items():
            for width, height in SIZES:
                for dark in (False, True):
                    page.size(width, height, dark=dark)
                    page.go(f"{url}/dashboard{address}")
                    page.picture(folder / f"{name}-{width}{'-dark' if dark else ''}.png")
        print(f"{len(PICTURED) * 6} pictures in {folder}; the console said {page.said}")


def replayed(folder: Path) -> Storage:
    """The README's example, trained on half a year, and what the monitor sees of the other half.

    The load of one factory is halved in the last weeks.
    """
    from benchmarks import seasons
    from mlops_ray.monitoring import looks, replay
    from mlops_ray.registry import package as packages

    release, predictor = seasons.learned(folder)
    rows, now = seasons.year(folder), time.time()
    halved = (pl.col("site") == "BL-H") & (pl.col("time") >= seasons.END - timedelta(days=40))
    load = pl.when(halved).then(pl.col("label") / 2).otherwise(pl.col("label"))
    log = replay.log(
        release,
        seasons.features_of(rows.with_columns(label=load)),
        predictor.predict_features,
        seasons.DAY_US,
    )
    seen, windows = watched.replayed(
        release, log.filter(pl.col("at") >= seasons.BEGIN, pl.col("at") < seasons.END)
    )
    storage, name = Storage.open(str(folder / "half" / "storage")), "factory-load"
    package = packages.read(release.package.folder, digest=release.package.digest)
    watched.live(storage, name, 1, package, now - 183 * DAY_S)
    watched.keep(storage, looks.releases(storage, name)["1"], name, seen, windows, now=now)
    watched.errors(storage, name, now)
    return storage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three models, windows of a day alone")
    parser.add_argument("--pictures", type=Path, help="no figures but pictures, into this folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.pictures:
            pictures(asked.pictures, replayed(Path(folder)))
            return
        rows: list[dict[str, Any]] = []
        models = 3 if asked.quick else MODELS
        for name, (windows, window_s) in list(YEAR.items())[: 1 if asked.quick else 2]:
            storage = year(Path(folder) / name, windows, window_s, models)
            with served(storage) as (url, key), browser() as tab, tab() as page:
                page.size(1440, 900)
                rows += measured(page, url, key, name, models)
        times = [row[key] for row in rows for key in ("first_ms", "again_ms") if key in row]
        worst = max(times)
    finish("dashboard", rows, [Claim("the slowest page, from click to painted, ms", worst, MOST_MS)])


if __name__ == "__main__":
    main()
