"""Are the data whole? What a look asks beside the distributions of columns, all of it faults of the data.

Rules, which no chance breaks: what was served is what the history says (`skew`); sources are as fresh as the
project declares. A rule that is broken has the p-value 0, and one that holds is not asked, so that rules take
nothing of the budget from the tests: to Holm's correction a p-value of 0 is one test less.

Tests, of a figure of this window beside those of earlier windows of the same version, at a like time: how
many rows come, how old the features are, how many values fail a check, how many rows repeat another. Nobody
knows how such figures are spread, so what is usual must have been seen first, and they are said to differ
only where they do so grossly.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from mlops_ray.data import prediction_log
from mlops_ray.data.prediction_log import ASKED
from mlops_ray.errors import DataError, MlopsError, PolicyError, one_line, safe
from mlops_ray.features.commits import BEGINNING
from mlops_ray.monitoring import journal, skew
from mlops_ray.monitoring.alarms import Finding
from mlops_ray.monitoring.attribution import percent
from mlops_ray.monitoring.skew import Skew
from mlops_ray.monitoring.state import Closed, Outlook, counter, listed
from mlops_ray.pages import lasting
from mlops_ray.registry.package import Package
from mlops_ray.storage import Storage

#: A feature is skewed of which so many rows differ: one alone may have been damaged anywhere on its way.
LEAST_ROWS, LEAST_SHARE = 2, 0.01
#: Earlier windows of a like time that are looked at, and how many there must be for a figure to be usual.
MOST_EARLIER, FEWEST = 28, 8
#: Where too few were at a like time, all are looked at that were within four weeks, once they have seen each
#: day of a week and more.
WEEK_S, REACH_S = 8 * 86_400.0, 28 * 86_400.0
#: Windows of at least half a day have a kind of day, shorter ones an hour too.
HALF_A_DAY_S, FRIDAY = 43_200.0, 4
#: Counts come some seconds after their rows, so that a window's are not quite those of the log.
WHOLE = 0.9
#: Bytes of the journal's end that are read: some hundred looks of a model with a hundred columns.
MOST_BYTES = 16 * 2**20
#: Figures of a service have heavier tails than a normal law. With a tail that falls with the third power,
#: p-values are right for such tails too, down to 1e-5 (by simulation; with five they are 20 times too small).
MOST_FREEDOM = 3
#: The least spread of figures, on the scale of logarithms: windows that were all alike have told little.
RATE_SPREAD, AGE_SPREAD, SHARE_SPREAD = 0.1, 0.2, 0.3
#: From which factor on a rate or an age matters, and by how much a share must have risen.
FACTOR, FAILING, REPEATED = 2.0, 0.05, 0.1
#: How far such faults go before others is not known: behind what the columns themselves show.
HARM = 0.05

logger = logging.getLogger(__name__)
#: What the journal keeps of a look under "integrity", and an entry of the journal of looks.
Figures = dict[str, Any]
Entry = Mapping[str, Any]


def see(
    storage: Storage, of: Outlook, package: Package, window: Closed, rows: pl.DataFrame
) -> tuple[Figures, list[Finding]]:
    """The figures of a window, of which `rows` are a sample of the log, and what is asked of them."""
    seen = journal.read(storage, of.model, journal.LOOKS, MOST_BYTES)
    compared, newest, why = _recomputed(storage, of.model, package, window, rows)
    found, asked = judge(window, rows, seen, compared, why)
    old = stale(newest, of.fresh_s, window.until, is_told=not _withholds(package))
    return found, skewed(compared) + old + asked


def judge(
    window: Closed, rows: pl.DataFrame, seen: Sequence[Entry], compared: Sequence[Skew] = (), why: str = ""
) -> tuple[Figures, list[Finding]]:
    """The figures of a window, and what is asked of them beside those of looks that were `seen` before."""
    before = [look for look in seen if look["version"] == window.version and look["until"] <= window.since]
    found = figures(window, rows, before[-1:], compared, why)
    earlier = comparable(window.since, window.until, before)
    tests = (volume, age, invalid, repeated)
    return found, [asked for test in tests for asked in test(found, earlier)]


def _withholds(package: Package) -> bool:
    """Whether there is anything in the sources of a version that people may not see."""
    return any(policy.restricts for policy in skew.policies(package))


def _recomputed(
    storage: Storage, model: str, package: Package, window: Closed, rows: pl.DataFrame
) -> tuple[list[Skew], dict[str, float], str]:
    """The features beside those of the histories, when the newest rows of these happened; or why not."""
    if not package.feature_set.tables:
        return [], {}, "no feature is read from a history"
    try:
        held = skew.snapshots(storage, package)
        hidden = prediction_log.machine_only(storage, model, window.since, window.until)
        compared = skew.compare(package.feature_set, held, rows, hidden)
        if _withholds(package):
            # Of what not everybody may see no row is told.
            compared = [each._replace(example="") for each in compared]
        return compared, skew.newest(held), ""
    except (DataError, PolicyError) as error:
        # A monitor elsewhere, or without the histories, sees the rest.
        return [], {}, one_line(error)
    except (MlopsError, OSError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        logger.error("the features of %s are not computed again (%s)", model, safe(error))
        return [], {}, f"{type(error).__name__}, see the log of the monitor"


def figures(
    window: Closed, rows: pl.DataFrame, before: Sequence[Entry], compared: Sequence[Skew] = (), why: str = ""
) -> Figures:
    """What the journal keeps of a window: plain data.

    `rows` and `per_hour`; `age_s`, the median age of the features of a row, up to when they went
    (`watermark`, seconds since the epoch) and whether that `moves`; `repeats`, rows whose content another one
    had before, of so many `asked`, and whether these were all (`is_whole`); `invalid` as [[column, rule,
    values], …]; `skew` as {feature: [rows that differ, rows]}, and why it may be `untold`.
    """
    hours = max(window.until - window.since, 1.0) / 3600
    return {
        "rows": window.counts.rows,
        "per_hour": window.counts.rows / hours,
        **_ages(rows, before),
        **_repeats(rows, window.counts.rows),
        "invalid": listed(window.invalid),
        "skew": {found.column: [found.differ, found.rows] for found in compared},
        "untold": why,
    }


def _ages(rows: pl.DataFrame, before: Sequence[Entry]) -> Figures:
    known = rows.drop_nulls("watermark") if "watermark" in rows.columns else rows.clear()
    if known.is_empty():
        return {"age_s": None, "watermark": None, "moves": False}
    marks, ends = (known[name].dt.epoch("us").to_numpy() / 1e6 for name in ("watermark", "at"))
    last = before[0].get("integrity", {}).get("watermark") if before else None
    since = float(marks.min()) if last is None else last
    newest = float(marks.max())
    return {"age_s": float(np.median(ends - marks)), "watermark": newest, "moves": newest > since}


def _repeats(rows: pl.DataFrame, answered: int) -> Figures:
    asked = rows.select(name for name in rows.columns if name.startswith(ASKED))
    repeats = asked.height - asked.n_unique() if asked.width else 0
    # Of a part of the rows nobody knows how many repeat one of the rest.
    return {"repeats": repeats, "asked": asked.height, "is_whole": asked.height >= WHOLE * answered}


def drawn(found: Figures) -> dict[str, float]:
    """What a picture shows of the figures of a window: those that it has."""
    if not found:
        return {}
    failed = counter(found["invalid"]).total()
    shown = {
        "per_hour": found["per_hour"],
        "age_h": None if found["age_s"] is None else found["age_s"] / 3600,
        "invalid": failed / max(1, failed + found["rows"]),
        "repeated": found["repeats"] / found["asked"] if found["asked"] else None,
    }
    return {name: value for name, value in shown.items() if value is not None}


# ---------------------------------------------------------------- rules


def skewed(compared: Sequence[Skew]) -> list[Finding]:
    """The features that are not what the history says.

    >>> found = skewed([Skew("load_1d_ago", 200, 12, "0.3 instead of 0.35 for BL-H at 2016-07-01T10:00")])
    >>> found[0].evidence
    'load_1d_ago served differs from the history in 12 of 200 rows: 0.3 instead of 0.35 for BL-H at 2016-07-01T10:00'
    """  # noqa: E501
    return [
        Finding(
            f"skew of {each.column}",
            "data",
            0.0,
            matters=True,
            evidence=f"{each.column} served differs from the history in {each.differ:,} of {each.rows:,} rows"
            + (f": {each.example}" if each.example else ""),
            harm=each.differ / each.rows,
        )
        for each in compared
        if each.differ >= max(LEAST_ROWS, LEAST_SHARE * each.rows)
    ]


def stale(
    newest: Mapping[str, float], fresh_s: Mapping[str, float], until: float, *, is_told: bool = True
) -> list[Finding]:
    """The sources whose newest row was older, at a window's end, than the project says that it may be.

    Unless it `is_told`, nothing says when that row happened: it is the value of a single row.
    """
    found = []
    for source, limit in sorted(fresh_s.items()):
        # A table without time has no age.
        if source not in newest or newest[source] <= BEGINNING.timestamp() or until - newest[source] <= limit:
            continue
        when = f"of {_when(newest[source])}, {lasting(until - newest[source])} before the window's end"
        said = (
            f"the newest row of {source} is {when if is_told else 'not new enough'}; "
            f"it may be as old as {lasting(limit)}"
        )
        found.append(Finding(f"freshness of {source}", "data", 0.0, matters=True, evidence=said, harm=HARM))
    return found


# ---------------------------------------------------------------- beside earlier windows


def kind(since: float, until: float) -> tuple[int, int | None]:
    """What time a window is of: 0 for a working day, 5 for Saturday, 6 for Sunday, and the hour, UTC.

    By its middle, whatever the hour at which days of the monitor begin; of a long one there is no hour.

    >>> kind(0.0, 3_600.0), kind(2 * 86_400.0, 3 * 86_400.0)
    ((0, 0), (5, None))
    """
    middle = datetime.fromtimestamp((since + until) / 2, UTC)
    day = middle.weekday() if middle.weekday() > FRIDAY else 0
    return day, middle.hour if until - since < HALF_A_DAY_S else None


def comparable(since: float, until: float, looks: Sequence[Entry]) -> list[Entry]:
    """The looks at windows of a like time, the newest; none while nobody can say what is usual."""
    like = [look for look in looks if kind(look["since"], look["until"]) == kind(since, until)]
    if len(like) >= FEWEST:
        return like[-MOST_EARLIER:]
    late = [look for look in looks if look["since"] >= since - REACH_S]
    has_seen_a_week = bool(late) and late[-1]["until"] - late[0]["since"] >= WEEK_S
    return late if has_seen_a_week and len(late) >= FEWEST else []


def above(now: float, earlier: Sequence[float], least: float) -> float:
    """How likely chance alone makes a figure as large as `now`, which is one more of the `earlier`.

    Of a normal sample of n the next lies (x - mean) / (s √(1 + 1/n)) from the mean in Student's t with n - 1
    degrees of freedom (Fisher 1935, Annals of Eugenics 6, 391-398); here with at most `MOST_FREEDOM`, and s
    at `least` so large.

    >>> round(above(3.0, [0.0, 0.1, -0.1, 0.05, -0.05, 0.1, -0.1, 0.0], 0.1), 6)
    4.9e-05
    """
    number = len(earlier)
    spread = max(float(np.std(earlier, ddof=1)), least) * math.sqrt(1 + 1 / number)
    return float(stats.t.sf((now - float(np.mean(earlier))) / spread, min(number - 1, MOST_FREEDOM)))


def volume(now: Figures, earlier: Sequence[Entry]) -> list[Finding]:
    """Whether the rows of an hour are as many as usual: neither half nor double."""
    rates = [math.log(rate) for rate in _of(earlier, "per_hour") if rate]
    if len(rates) < FEWEST or not now["per_hour"]:
        return []
    rate, mean = math.log(now["per_hour"]), float(np.mean(rates))
    p = 2 * min(above(rate, rates, RATE_SPREAD), above(-rate, [-each for each in rates], RATE_SPREAD))
    usual, low, high = (
        f"{now['rows'] * math.exp(each - rate):,.0f}" for each in (mean, min(rates), max(rates))
    )
    said = f"{now['rows']:,} rows where {usual} are usual ({low} to {high} in {len(rates)} windows)"
    return [Finding("volume", "data", p, abs(rate - mean) > math.log(FACTOR), said, HARM)]


def age(now: Figures, earlier: Sequence[Entry]) -> list[Finding]:
    """Whether the features stand still that moved in each window before, and are older than usual.

    A history that is not fed, as in a demonstration, has never moved.
    """
    moves = _of(earlier, "moves")
    ages = [math.log(max(each, 1.0)) for each in _of(earlier, "age_s")]
    if now["age_s"] is None or len(ages) < FEWEST or not all(moves):
        return []
    old, mean = math.log(max(now["age_s"], 1.0)), float(np.mean(ages))
    p = above(old, ages, AGE_SPREAD)
    matters = not now["moves"] and old - mean > math.log(FACTOR)
    said = (
        f"the features of the store end {lasting(math.exp(old))} before their rows are asked for; "
        f"earlier windows' {lasting(math.exp(mean))} before"
    )
    return [Finding("age of the features", "data", p, matters, said, HARM)]


def invalid(now: Figures, earlier: Sequence[Entry]) -> list[Finding]:
    """Whether more values fail a check than usual, of all columns together; the sentence names the worst."""
    before = [look["integrity"] for look in earlier if "invalid" in look.get("integrity", {})]
    counts = counter(now["invalid"])
    failed, rows = counts.total(), now["rows"]
    if len(before) < FEWEST:
        return []
    sums = [counter(each["invalid"]).total() for each in before]
    odds = [_odds(count, each["rows"]) for count, each in zip(sums, before, strict=True)]
    usual = sum(sums) / max(1, sum(sums) + sum(each["rows"] for each in before))
    rose = failed / max(1, failed + rows) - usual
    p = above(_odds(failed, rows), odds, SHARE_SPREAD)
    return [Finding("invalid values", "data", p, rose > FAILING, _worst(counts, rows, before), HARM)]


def _worst(counts: Counter[tuple[str, str]], rows: int, before: Sequence[Figures]) -> str:
    if not counts:
        return ""
    usual = sum((counter(each["invalid"]) for each in before), Counter[tuple[str, str]]())
    many = max(1, sum(each["rows"] for each in before))
    column, rule = max(counts, key=lambda key: counts[key] - usual[key] * rows / many)
    count = counts[column, rule]
    said = f"{count:,} values of {column or 'several columns'} fail {rule!r} beside {rows:,} answered rows"
    return f"{said}; before, {usual[column, rule]:,} beside {many:,}"


def repeated(now: Figures, earlier: Sequence[Entry]) -> list[Finding]:
    """Whether more rows repeat another than usual; asked only where all rows were looked at."""
    whole = [each["integrity"] for each in earlier if each.get("integrity", {}).get("is_whole")]
    if len(whole) < FEWEST or not now["is_whole"] or not now["asked"]:
        return []
    odds = [_odds(each["repeats"], each["asked"] - each["repeats"]) for each in whole]
    usual = sum(each["repeats"] for each in whole) / max(1, sum(each["asked"] for each in whole))
    share = now["repeats"] / now["asked"]
    p = above(_odds(now["repeats"], now["asked"] - now["repeats"]), odds, SHARE_SPREAD)
    said = f"{percent(share)} of the rows repeat another one, {percent(usual)} in {len(whole)} windows before"
    return [Finding("repeated rows", "data", p, share - usual > REPEATED, said, HARM)]


def _odds(count: int, others: int) -> float:
    """The logarithm of the odds, half a row added to both sides."""
    return math.log((count + 0.5) / (others + 0.5))


def _of(earlier: Sequence[Entry], name: str) -> list[Any]:
    """A figure of the windows that have it."""
    found = [look.get("integrity", {}).get(name) for look in earlier]
    return [each for each in found if each is not None]


def _when(second: float) -> str:
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M}"
