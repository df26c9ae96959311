"""What the monitor saw in a period, as a document and as a page with pictures."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mlops_ray import pages, pictures
from mlops_ray.errors import DataError
from mlops_ray.monitoring import integrity, journal, looks
from mlops_ray.monitoring.drift import EFFECT_FLOOR
from mlops_ray.monitoring.state import ModelState
from mlops_ray.pages import Block, Kind, Section, Table, cut, lasting, number, page, share, when
from mlops_ray.storage import Storage

#: Looks that the page lists, the newest; the document has all.
MOST_LOOKS = 200
#: Segments that the page lists, the worst.
MOST_SEGMENTS = 30
#: What an alarm is about, in words.
KINDS = {
    "data": "fault of the data",
    "input": "inputs moved",
    "prediction": "predictions moved",
    "joint": "rows moved",
    "performance": "performance",
}

#: The figures that are drawn (`integrity.drawn`): what they are called, and what is measured.
FIGURES = {
    "per_hour": ("Rows", "rows an hour"),
    "age_h": ("Age of the features", "hours, the median row's"),
    "invalid": ("Values that fail a check", "share"),
    "repeated": ("Rows that repeat another", "share"),
}
#: How a metric is known, as a look has it and as people read it.
QUALITIES = {
    "estimated": "estimated",
    "weighted": "estimated, weighted for moved inputs",
    "realised": "realised",
}

Document = dict[str, Any]


def document(storage: Storage, model: str, begin: datetime | None, end: datetime | None) -> Document:
    """The looks at windows that ended in [begin, end), and the episodes that went on then.

    `{"model", "from", "to", "rows", "spent", "looks": […], "alarms": […], "columns": {name: [[at, psi], …]},
    "quality": {metric: {"reference", "estimated": [[at, value], …], "weighted": […], "realised": […]}},
    "segments": […], "splits": […], "integrity": {figure: [[at, value], …]},
    "skew": {feature: [rows that differ, rows]}}`; times are ISO 8601.
    Segments are those that looks wrote down, each as it was last, the worst first; splits
    say of labels that came what the loss has grown by; `outside` is the share of hours of a kind of day that
    the training set did not have, `None` where rows have no seasons; `notes` are sentences. Raises
    `DataError` where nothing was looked at then.
    """
    first, last = (edge.timestamp() if edge else other for edge, other in ((begin, 0.0), (end, float("inf"))))
    seen = [look for look in journal.read(storage, model, journal.LOOKS) if first <= look["until"] < last]
    if not seen:
        raise DataError(
            f"no window of {model!r} was looked at then; one closes after monitoring.window and 50 rows"
        )
    stored = storage.read_json(journal.FOLDER, f"{model}.json")
    alarms = ModelState.from_json(stored).alarms if stored else None
    going = [each for each in looks.told(alarms) if _overlaps(each, first, last)]
    found = described(model, seen, going)
    return found | {
        key: edge.isoformat(timespec="seconds") for key, edge in (("from", begin), ("to", end)) if edge
    }


def described(model: str, seen: Sequence[Document], episodes: Sequence[Document]) -> Document:
    """The document of these looks, one at least, and of these episodes (`looks.told`)."""
    return {
        "model": model,
        "from": _iso(seen[0]["since"]),
        "to": _iso(seen[-1]["until"]),
        "rows": sum(look["rows"] for look in seen),
        "spent": sum(look["spent"] for look in seen),
        "looks": [look | {key: _iso(look[key]) for key in ("since", "until", "at")} for look in seen],
        "alarms": [_told(each) for each in episodes],
        "columns": _columns(seen),
        "quality": _quality(seen),
        "segments": segments(seen),
        "splits": splits(seen),
        "integrity": _integrity(seen),
        "skew": skews(look.get("integrity", {}).get("skew", {}) for look in seen),
        "outside": mean(look.get("outside") for look in seen),
        "notes": [],
    }


def html(found: Document) -> str:
    """The page of a document: whole in one file, and the same for the same document."""
    alarms = found["alarms"]
    findings = [
        {"severity": "problem" if alarm["resolved"] is None else "warning", "said": what["evidence"]}
        for alarm in alarms
        for what in alarm["found"]
    ]
    findings += [{"severity": "note", "said": note} for note in found["notes"]]
    tiles = [
        ("Windows", f"{len(found['looks']):,}", f"{found['rows']:,} rows"),
        ("Alarms", f"{len(alarms):,}", f"{sum(alarm['resolved'] is None for alarm in alarms)} go on"),
        ("Spent", number(found["spent"], 3), "false alarms to be expected, at most"),
    ]
    if found["outside"] is not None:
        tiles.append(
            ("Outside the reference", share(found["outside"]), "hours of days that training did not have")
        )
    sections = [
        Section("The period", [Block(tiles=tiles, wide=True)]),
        Section("Alarms", [_alarm(alarm) for alarm in alarms]),
        Section("Quality", list(_qualities(found["quality"])), cards=True),
        Section(
            "The worst segments",
            [_worst(found["segments"])] if found["segments"] else [],
            "Each as the last look had it to which it was among the least likely; beside it the same segment "
            "of the test part.",
        ),
        Section(
            "What the loss has grown by",
            [_parts(found["splits"])] if found["splits"] else [],
            "Of labels that came: moved inputs, other shares of labels, and what is left, which is another "
            "relation of the two (concept drift). The three are the whole.",
        ),
        Section(
            "Drift by column",
            list(_drifts(found["columns"])),
            "PSI less its bias, window by window; the dashed line is where a difference matters.",
            cards=True,
        ),
        Section(
            "Integrity",
            list(_figures(found["integrity"], found["skew"])),
            "How many rows came, how whole they are; of a sample, features of histories are computed again.",
            cards=True,
        ),
        Section(
            "Looks", [_looks(found["looks"])], "All that was asked, and what it spent; the newest first."
        ),
    ]
    subtitle = f"{when(found['from'])} to {when(found['to'])}"
    return page(f"Monitoring of {found['model']}", subtitle, findings, sections)


def _overlaps(episode: Document, first: float, last: float) -> bool:
    return bool(episode["opened"] < last and (episode["resolved"] or float("inf")) >= first)


def _told(episode: Document) -> Document:
    resolved = episode["resolved"]
    found = [what | {"since": _iso(what["since"])} for what in episode["found"]]
    ends = {"opened": _iso(episode["opened"]), "resolved": None if resolved is None else _iso(resolved)}
    return episode | ends | {"found": found}


def _columns(seen: Sequence[Document]) -> dict[str, list[tuple[str, float]]]:
    columns: dict[str, list[tuple[str, float]]] = {}
    for look in seen:
        for name, psi in look["columns"].items():
            if psi is not None:
                columns.setdefault(name, []).append((_iso(look["until"]), psi))
    return columns


def _quality(seen: Sequence[Document]) -> dict[str, Document]:
    found: dict[str, Document] = {}
    for look, how in itertools.product(seen, QUALITIES):
        quality = look["quality"]
        said = (quality.get(how) or {}).get("metrics", {}) if how == "weighted" else quality.get(how, {})
        for metric, value in said.items():
            reference = quality["reference"]["realised"].get(metric)
            entry = found.setdefault(metric, {"reference": reference, **{each: [] for each in QUALITIES}})
            entry[how].append((_iso(look["until"]), value))
    return found


def segments(seen: Sequence[Document]) -> list[Document]:
    """Each segment as the last look had it that wrote it down; looks of older monitors have none."""
    latest: dict[tuple[str, str], Document] = {}
    for look in seen:
        for row in look["quality"].get("segments", ()):
            latest[row["column"], row["value"]] = row | {"until": _iso(look["until"])}
    return sorted(latest.values(), key=lambda row: (-row["harm"], row["column"], row["value"]))


def splits(seen: Sequence[Document]) -> list[Document]:
    """What a loss has grown by, of each look at which labels showed one."""
    return [
        look["quality"]["split"] | {"until": _iso(look["until"])}
        for look in seen
        if look["quality"].get("split")
    ]


def _integrity(seen: Sequence[Document]) -> dict[str, list[tuple[str, float]]]:
    """The figures that are drawn, window by window; those left out that a window does not have."""
    found: dict[str, list[tuple[str, float]]] = {name: [] for name in FIGURES}
    for look in seen:
        for name, value in integrity.drawn(look.get("integrity", {})).items():
            found[name].append((_iso(look["until"]), value))
    return found


def mean(values: Iterable[float | None]) -> float | None:
    """That of the values that are known, if any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def skews(told: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, tuple[int, int]]:
    """By feature in how many rows it differed, and of how many, of what each look told."""
    found: dict[str, tuple[int, int]] = {}
    for look in told:
        for name, (differ, rows) in look.items():
            before = found.get(name, (0, 0))
            found[name] = before[0] + differ, before[1] + rows
    return found


def _alarm(alarm: Document) -> Block:
    going = alarm["resolved"] is None
    chip: tuple[Kind, str] = ("problem", "goes on") if going else ("ok", "over")
    end = "now" if going else when(alarm["resolved"])
    rows = [
        (KINDS.get(what["kind"], what["kind"]), what["about"], what["evidence"], when(what["since"]))
        for what in alarm["found"]
    ]
    return Block(
        f"Version {alarm['version']}, {when(alarm['opened'])} to {end}",
        [chip],
        table=Table(("Kind", "About", "What was seen", "Since"), rows),
        wide=True,
    )


def _qualities(quality: dict[str, Document]) -> Iterator[Block]:
    for metric, found in quality.items():
        drawn = {name: found[how] for how, name in QUALITIES.items() if found[how]}
        value = found["reference"]
        dashed = () if value is None else ("test part", value, value)
        yield Block(
            metric.replace("_", " "), picture=pictures.lines(metric, drawn, ("window's end", metric), dashed)
        )


def _worst(segments: Sequence[Document]) -> Block:
    nothing = (None, None, None)
    rows = [
        (
            f"{cut(row['column'])} = {pages.value(row['value'])}",
            row["metric"].replace("_", " "),
            *map(number, row.get("estimated", nothing)),
            *map(number, row.get("realised", nothing)),
            when(row["until"]),
        )
        for row in segments[:MOST_SEGMENTS]
    ]
    head, known = ("Segment", "Metric"), [(how, "test part", "rows") for how in ("Estimated", "Realised")]
    table = Table((*head, *known[0], *known[1], "Window's end"), rows, frozenset(range(2, 8)))
    return Block(table=table, wide=True)


def _parts(splits: Sequence[Document]) -> Block:
    """The newest first."""
    names = ("before", "now", "inputs", "labels", "rest")
    rows = [
        (when(each["until"]), each["loss"].replace("_", " "), *(number(each[name]) for name in names))
        for each in reversed(splits[-MOST_LOOKS:])
    ]
    head = ("Window's end", "Loss", "Test part", "Now", "By inputs", "By labels", "What is left")
    return Block(table=Table(head, rows, frozenset(range(2, 7))), wide=True)


def _drifts(columns: dict[str, list[tuple[str, float]]]) -> Iterator[Block]:
    floor = ("matters", EFFECT_FLOOR, EFFECT_FLOOR)
    for name, line in columns.items():
        yield Block(name, picture=pictures.lines(name, {"": line}, ("window's end", "PSI"), floor))


def _figures(figures: dict[str, list[tuple[str, float]]], skew: dict[str, Sequence[int]]) -> Iterator[Block]:
    for name, line in figures.items():
        if line:
            title, axis = FIGURES[name]
            yield Block(title, picture=pictures.lines(title, {"": line}, ("window's end", axis)))
    if skew:
        rows = [
            (name, f"{of:,}", f"{differ:,}", share(differ / max(1, of)))
            for name, (differ, of) in skew.items()
        ]
        head = ("Feature of a history", "Computed again", "Differ", "Share")
        yield Block("Served beside computed again", table=Table(head, rows, frozenset({1, 2, 3})), wide=True)


def _looks(seen: Sequence[Document]) -> Block:
    rows = [
        (
            when(look["until"]),
            lasting(
                (
                    datetime.fromisoformat(look["until"]) - datetime.fromisoformat(look["since"])
                ).total_seconds()
            ),
            look["version"],
            f"{look['rows']:,}",
            number(look["spent"], 3),
            f"{len(look['findings']):,}",
            ", ".join(look["found"]) or "–",
        )
        for look in reversed(seen[-MOST_LOOKS:])
    ]
    head = ("Window's end", "Lasted", "Version", "Rows", "Spent", "Asked", "Found")
    return Block(table=Table(head, rows, frozenset({3, 4, 5})), wide=True)


def _iso(second: float) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat(timespec="seconds")
