"""What a person should know about a table's rows, in sentences, and as a page with pictures.

The page shows what is in the JSON document and nothing else. The sections of a profile are also those of the
first look (explore_page.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup

from mlops_ray import pictures
from mlops_ray.pages import (
    Bar,
    Block,
    Kind,
    Section,
    Table,
    bars,
    cut,
    lasting,
    number,
    page,
    share,
    value,
    when,
)

#: Missing values are worth a sentence from this share on, and a warning from the other.
MISSING, MOSTLY_MISSING = 0.05, 0.5
#: Share of a regular series whose absence is a problem rather than a warning: two weeks and a half of a year.
GAP_PROBLEM = 0.05
#: A name that differs in so many of its rows, of so many at least, tells rows apart.
IDENTIFIER, IDENTIFIER_ROWS = 0.95, 100
#: What a page lists of a kind; the document has the rest.
MOST_ROWS, MOST_PICTURES, MOST_VALUES = 200, 100, 8
#: Columns that a sentence names.
MOST_NAMED = 5
#: Characters of a sentence that another part of the package made.
LONGEST_SAID = 400
#: How bad a failed check is, by what it does.
KINDS: dict[str, Kind] = {"flag": "warning", "reject": "problem", "stop": "problem"}
ORDER: tuple[Kind, ...] = ("problem", "warning", "note", "ok")

Document = dict[str, Any]


# ---------------------------------------------------------------- sentences


def finding(severity: Kind, said: str, column: str | None = None) -> Document:
    """A finding as it stands in a document."""
    return {"severity": severity, "said": said, "column": column}


def ranked(findings: Iterable[Document]) -> list[Document]:
    """Findings, the worst first."""
    return sorted(findings, key=lambda found: ORDER.index(found["severity"]))


def profile_findings(profile: Document) -> list[Document]:
    """What stands out in a profile: empty tables, gaps, repeated and missing rows, wild values.

    >>> profile_findings({"rows": 0, "columns": [], "identity": None, "time": None})[0]["said"]
    'The table has no rows.'
    """
    if not profile["rows"]:
        return [finding("problem", "The table has no rows.")]
    shown = [column for column in profile["columns"] if "hidden" not in column]
    found = [*_of_time(profile["time"]), *_of_identity(profile["identity"])]
    found += [*_of_missing(profile), *_of_constants(shown)]
    for column in shown:
        found += [*_of_outliers(column), *_of_names(column)]
    return ranked(found)


def _of_time(time: Document | None) -> Iterator[Document]:
    if time is None:
        return
    if time["missing"]:
        yield finding("warning", f"{_rows(time['missing'])} without a time.")
    if time["gap_count"]:
        yield _of_gaps(time)
    if time["missing_in_keys"] and time["most_missing"] > (time["missing_steps"] or 0):
        said = f"Within keys {time['missing_in_keys']:,} steps of {lasting(time['step_s'])} are missing"
        yield finding("warning", f"{said}; the key that lacks most lacks {time['most_missing']:,}.")


def _of_gaps(time: Document) -> Document:
    count, lost = time["gap_count"], time["missing_steps"]
    said = f"{count:,} gap{'s' if count > 1 else ''} without any row"
    for longest in time["gaps"][:1]:
        bounds = f"{when(longest['begin'])} to {when(longest['end'])} ({lasting(longest['seconds'])})"
        said += f"; the longest from {bounds}" if count > 1 else f", from {bounds}"
    if lost is None:
        return finding("note", said + ".")
    rows = sum(time["coverage"]["counts"]) if time["coverage"] else 0
    severity: Kind = "problem" if lost > GAP_PROBLEM * (lost + rows) else "warning"
    return finding(severity, f"{said}; {lost:,} steps of {lasting(time['step_s'])} are missing.")


def _of_identity(identity: Document | None) -> Iterator[Document]:
    if identity and identity["duplicates"]:
        names = " and ".join(_name(name) for name in (*identity["keys"], identity["time"]) if name)
        verb = "repeats" if identity["duplicates"] == 1 else "repeat"
        yield finding("warning", f"{_rows(identity['duplicates'])} {verb} the {names} of one before.")


def _of_missing(profile: Document) -> Iterator[Document]:
    parts = sorted(((c["missing"] / profile["rows"], c["name"]) for c in profile["columns"]), reverse=True)
    many = [f"{_name(name)} ({share(part)})" for part, name in parts if part >= MISSING]
    if many:
        yield finding("warning" if parts[0][0] >= MOSTLY_MISSING else "note", f"Missing: {_listed(many)}.")


def _of_constants(columns: Sequence[Document]) -> Iterator[Document]:
    names = [_name(column["name"]) for column in columns if column["constant"]]
    if names:
        yield finding("note", f"The same value in every row: {_listed(names)}.")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more:,} more columns" if more > 0 else "")


def _of_outliers(column: Document) -> Iterator[Document]:
    for side, found in (column.get("outliers") or {}).items():
        where = "below" if side == "low" else "above"
        said = f"{_name(column['name'])}: {_rows(found['count'])} far {where} all others"
        if "values" in found:
            more = ", …" if found["distinct"] > len(found["values"]) else ""
            listed = ", ".join(number(amount, 6) for amount in found["values"])
            said += f": {listed}{more}; the next value is {number(found['nearest'], 6)}"
        yield finding("problem", said + ".", column["name"])


def _of_names(column: Document) -> Iterator[Document]:
    for group in column.get("alike", ()):
        listed = ", ".join(f"“{cut(name)}”" for name in group)
        said = f"{_name(column['name'])}: values differ in case or spaces alone: {listed}."
        yield finding("warning", said, column["name"])
    given = sum(found["rows"] for found in column.get("top", ())) + (column.get("other") or 0)
    if "alike" in column and given >= IDENTIFIER_ROWS and column["distinct"] >= IDENTIFIER * given:
        said = f"{_name(column['name'])} differs in nearly every row: it names rows and describes nothing."
        yield finding("note", said, column["name"])


def _name(name: str) -> str:
    return f"‘{cut(name)}’"


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def report_findings(document: Document) -> list[Document]:
    """The verdict of a validation, then what failed and what stands out in the rows that it kept."""
    found = [_verdict(document)]
    for check in document["table"]:
        if not check["holds"]:
            of = f"{_name(check['column'])}: " if check["column"] else ""
            said = f"{of}{cut(check['said'], LONGEST_SAID)}."
            found.append(finding(KINDS[check["severity"]], said, check["column"]))
    return found + (profile_findings(document["profile"]) if document.get("profile") else [])


def _verdict(document: Document) -> Document:
    parts = [f"{document['valid']:,} are valid", f"{document['quarantined']:,} in quarantine"]
    erased = document.get("erased", 0)
    filtered = document["filtered"] - erased
    parts += [f"{filtered:,} left out by the source's where"] if filtered else []
    parts += [f"{erased:,} left out since they were erased"] if erased else []
    counts = f"of {_rows(document['rows_in'])}, {', '.join(parts)}."
    if document["state"] == "refused":
        why = cut(document["said"] or "a check stops the job", LONGEST_SAID).rstrip(".")
        return finding("problem", f"Refused, nothing was committed: {why}. So far {counts}")
    done = "Committed" if document["state"] == "committed" else "Checked, nothing was committed"
    return finding("warning" if document["quarantined"] else "ok", f"{done}: {counts}")


# ---------------------------------------------------------------- pages


def report_page(document: Document) -> str:
    """The page of a validation report, from its JSON document alone."""
    sections = [_rows_section(document), _checks_section(document), _table_section(document)]
    sections += [_files_section(document)]
    if profile := document.get("profile"):
        sections += [time_section(profile), missing_section(profile), columns_section(profile)]
    title, made = f"Validation of {cut(document['source'])}", f"{when(document['made_at'])} UTC"
    return page(title, made, report_findings(document), sections)


def _rows_section(document: Document) -> Section:
    kinds: dict[str, tuple[str, Kind]] = {
        "valid": ("valid", "ok"),
        "quarantined": ("in quarantine", "problem"),
        "filtered": ("left out", "note"),
    }
    total = document["rows_in"]
    parts: list[Bar] = []
    for key, (label, kind) in kinds.items():
        parts += bars([(label, document[key])], total, kind)
    return Section("Rows", [Block(f"{total:,} rows read", bars=parts, wide=True)])


def _checks_section(document: Document) -> Section:
    checks = sorted(document["checks"], key=lambda check: -check["failed"])
    if not checks:
        return Section("Failed checks", [Block(note="None failed.", wide=True)])
    drawn, most = [], max(checks[0]["failed"], 1)
    for check in checks[:MOST_VALUES]:
        part, kind = check["failed"] / most, KINDS[check["severity"]]
        drawn.append(Bar(_check(check), part, f"{check['failed']:,}", kind))
    rows = [[_check(check), check["severity"], f"{check['failed']:,}", _examples(check)] for check in checks]
    table = _table(["Check", "Severity", "Rows", "Examples: file, row, value"], rows, 2)
    note = "Flagged rows pass and are counted; rejected ones are in quarantine."
    return Section("Failed checks", [Block(bars=drawn, wide=True), Block(table=table, wide=True)], note)


def _check(check: Document) -> str:
    return f"{cut(check['column'])}: {cut(check['rule'])}" if check["column"] else cut(check["rule"])


def _examples(check: Document) -> str:
    return "; ".join(f"{e['file']}, row {e['row']:,}: {_given(e, check)}" for e in check["examples"]) or "–"


def _given(example: Document, check: Document) -> str:
    if example["value"] is None:
        return "(missing)" if check["rule"] == "required" else "(withheld by the source's policy)"
    return value(example["value"])


def _table_section(document: Document) -> Section:
    rows = []
    for check in sorted(document["table"], key=lambda check: check["holds"]):
        verdict = "holds" if check["holds"] else "fails"
        said = cut(check["said"], LONGEST_SAID)
        rows.append([check["check"], value(check["column"]), check["severity"], verdict, said])
    table = _table(["Check", "Column", "Severity", "Verdict", "Found"], rows)
    return Section("Checks of the whole table", [Block(table=table, wide=True)] if rows else [])


def _files_section(document: Document) -> Section:
    keys = ("rows_in", "valid", "quarantined", "filtered")
    rows = [[value(file["file"]), *(f"{file[key]:,}" for key in keys)] for file in document["files"]]
    head = ["File", "Rows", "Valid", "In quarantine", "Left out"]
    return Section("Files", [Block(table=_table(head, rows, 1, 2, 3, 4), wide=True)] if rows else [])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *numbers: int) -> Table:
    listed = list(rows[:MOST_ROWS])
    if len(rows) > MOST_ROWS:
        listed += [[f"and {len(rows) - MOST_ROWS:,} more", *[""] * (len(head) - 1)]]
    return Table(head, listed, frozenset(numbers))


# ---------------------------------------------------------------- sections of a profile


def overview_section(profile: Document, *more: tuple[str, str, str]) -> Section:
    """The size of the table, in figures."""
    time, identity = profile["time"], profile["identity"]
    tiles = [("Rows", f"{profile['rows']:,}", ""), ("Columns", f"{len(profile['columns']):,}", "")]
    if identity and identity["keys"]:
        sizes = identity["rows_per_key"] or {}
        span = dict.fromkeys(number(sizes[end]) for end in ("min", "max") if sizes.get(end))
        tiles += [("Keys", number(identity["count"]), f"{' to '.join(span)} rows each" if span else "")]
    if time:
        ends = (("First row", time["begin"]), ("Last row", time["end"]))
        tiles += [(name, when(instant), "UTC" if instant else "not shown") for name, instant in ends]
        usual = "of nearly all rows" if time["regular"] else "in the middle of all"
        tiles += [("Step", lasting(time["step_s"]), usual) if time["step_s"] else ("Step", "–", "")]
    return Section("Overview", [Block(tiles=[*tiles, *more], wide=True)])


def columns_section(profile: Document) -> Section:
    """A card for each column."""
    columns, rows, least = profile["columns"], profile["rows"], profile["minimum_count"]
    cards = [_card(column, rows, is_drawn=at < MOST_PICTURES) for at, column in enumerate(columns)]
    note = f"What fewer than {least:,} rows share is not shown." if least else ""
    return Section("Columns", cards, note, cards=True)


def _card(column: Document, rows: int, *, is_drawn: bool) -> Block:
    title = cut(column["name"])
    chips: list[tuple[Kind, str]] = [("", column["type"])]
    facts = [("missing", f"{column['missing']:,} ({share(column['missing'] / rows)})" if rows else "0")]
    if "hidden" in column:
        return Block(title, chips, "The source's policy shows this column to nobody.", facts=facts)
    chips += [("note", "constant")] if column["constant"] else []
    chips += [("problem", "far outside")] if column.get("outliers") else []
    facts += [("distinct", f"{column['distinct']:,}"), *_facts(column)]
    picture = _picture(column) if is_drawn else None
    return Block(title, chips, _beyond(column), picture=picture, facts=facts, bars=value_bars(column, rows))


def _facts(column: Document) -> Iterator[tuple[str, str]]:
    if "begin" in column:
        yield from (("first", when(column["begin"])), ("last", when(column["end"])))
    if "quantiles" in column:
        shown = column | {"median": column["quantiles"]["0.5"]}
        yield from ((name, number(shown[name])) for name in ("min", "median", "mean", "max", "std"))
        yield from [("zeros", share(column["zeros"]))] if column["zeros"] else []


def _beyond(column: Document) -> str:
    cells = column.get("histogram")
    if not cells or "top" in column:
        return ""
    parts = [f"{_rows(cells[side])} {side}" for side in ("below", "above") if cells[side]]
    return f"Not drawn: {' and '.join(parts)}." if parts else ""


def _picture(column: Document) -> Markup | None:
    cells, covered = column.get("histogram"), column.get("coverage")
    if cells and "top" not in column:
        # Cells of whole numbers begin halfway before their first.
        edges = [edge + 0.5 * (column["type"] == "int") for edge in cells["edges"]]
        return pictures.histogram(edges, cells["counts"], f"Histogram of {cut(column['name'])}")
    title = f"Rows over the time of {cut(column['name'])}"
    return pictures.coverage(covered["edges"], covered["counts"], [], title) if covered else None


def value_bars(counted: Document, rows: int) -> list[Bar]:
    """The commonest values of `profile.commonest` as shares of so many rows, and all others."""
    top = counted.get("top", ())
    if not top or (top[0]["rows"] == 1 and len(top) > MOST_VALUES):
        return []
    rest = sum(found["rows"] for found in top[MOST_VALUES:]) + (counted["other"] or 0)
    counts = [(value(cut(found["value"])), found["rows"]) for found in top[:MOST_VALUES]]
    return [*bars(counts, rows), *bars([("others", rest)] if rest else [], rows, "note")]


def time_section(profile: Document) -> Section:
    """Rows over time, and the longest intervals without any."""
    time = profile["time"]
    if not time or not time["coverage"]:
        return Section("Time", [])
    edges, gaps, count = time["coverage"]["edges"], time["gaps"], time["gap_count"]
    title = f"Rows over time, from {when(time['begin'])} to {when(time['end'])}, {count:,} gaps"
    marked = [(gap["begin"], gap["end"]) for gap in gaps]
    picture = pictures.coverage(edges, time["coverage"]["counts"], marked, title)
    wide = (datetime.fromisoformat(edges[1]) - datetime.fromisoformat(edges[0])).total_seconds()
    note = f"Cells of {lasting(wide)}; the longest gaps are marked."
    blocks = [Block("Rows over time", note=note, picture=picture)]
    if gaps:
        rows = [
            [when(g["begin"]), when(g["end"]), lasting(g["seconds"]), number(g.get("missing_steps"))]
            for g in gaps
        ]
        table = _table(["Last row before", "First row after", "Length", "Steps missing"], rows, 2, 3)
        note = f"The longest {len(gaps):,} of {count:,}; intervals in which no row lies."
        blocks += [Block("Gaps", note=note, table=table)]
    return Section("Time", blocks, "All times are UTC.")


def missing_section(profile: Document) -> Section:
    """Missing values by column, most first."""
    missing = [(cut(c["name"]), c["missing"]) for c in profile["columns"] if c["missing"]]
    missing.sort(key=lambda pair: (pair[1], pair[0]), reverse=True)
    listed = list(bars(missing[:MOST_ROWS], profile["rows"], "warning"))
    note = "" if listed else "No value is missing."
    return Section("Missing values", [Block(note=note, bars=listed, wide=True)])
