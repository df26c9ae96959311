"""HTML pages of sections, tables, bars and pictures; whole in one file, without a script or another address.

Whatever is given is text and is escaped; `Block.picture` alone is markup, which `mlops_ray.pictures` made.
"""

import importlib.resources
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal

import jinja2
from markupsafe import Markup

Kind = Literal["", "ok", "note", "warning", "problem"]

#: Characters of a name, and of a value, that a page shows.
LONGEST_NAME, LONGEST_VALUE = 60, 100
#: Findings that a page lists; the document has the rest.
MOST_FINDINGS = 30
#: Joiners, which scripts and emoji need; whatever else has no shape of its own is written as its number.
JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class Bar:
    """A share of a whole, 0 to 1, and what stands beside it."""

    label: str
    share: float
    value: str
    kind: Kind = ""


@dataclass(frozen=True)
class Table:
    """`numbers` are the positions of columns to be set to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Block:
    """A part of a section; what is given of it is shown from top to bottom."""

    title: str = ""
    chips: Sequence[tuple[Kind, str]] = ()
    note: str = ""
    tiles: Sequence[tuple[str, str, str]] = ()
    """Name, figure, and a remark."""
    picture: Markup | None = None
    facts: Sequence[tuple[str, str]] = ()
    bars: Sequence[Bar] = ()
    table: Table | None = None
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with blocks below, small ones (`cards`) three abreast."""

    title: str
    blocks: Sequence[Block]
    note: str = ""
    cards: bool = False


def page(
    title: str, subtitle: str, findings: Sequence[Mapping[str, Any]], sections: Sequence[Section]
) -> str:
    """The whole page. The same arguments give the same text.

    Of each finding its `severity`, a `Kind`, and what is `said`.

    >>> "&lt;script&gt;" in page("<script>", "", [], [])
    True
    """
    listed = [*findings[:MOST_FINDINGS]] or [{"severity": "ok", "said": "Nothing stands out."}]
    if len(findings) > MOST_FINDINGS:
        said = f"And {len(findings) - MOST_FINDINGS:,} more, in the JSON document."
        listed.append({"severity": "note", "said": said})
    shown = [section for section in sections if section.blocks]
    return _template().render(title=title, subtitle=subtitle, findings=listed, sections=shown)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: plain(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = importlib.resources.files(__package__).joinpath("page.html").read_text("utf-8")
    return environment.from_string(source)


def plain(text: str) -> str:
    """Text with what cannot be seen, or turns the text around it, written as its number.

    >>> plain("a\\x00b\\u202ec\\U000e0001\\n")
    'a\\\\u0000b\\\\u202ec\\\\U000e0001\\\\u000a'
    """
    return text if text.isprintable() else "".join(map(_seen, text))


def _seen(letter: str) -> str:
    # Zl, Zp, Cc, Cf, Cs, Co: separators of lines, and characters without a shape.
    hidden = unicodedata.category(letter) in {"Zl", "Zp", "Cc", "Cf", "Cs", "Co"} and letter not in JOINERS
    number = ord(letter)
    return (f"\\u{number:04x}" if number < 1 << 16 else f"\\U{number:08x}") if hidden else letter


def cut(text: str, most: int = LONGEST_NAME) -> str:
    """Text that fits, its end left out.

    >>> cut("abcdef", 4)
    'abc…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def value(text: str | None) -> str:
    """A value of the data as a page shows it; quoted where it would not be seen.

    >>> value("a "), value(""), value(None)
    ('“a ”', '“”', '–')
    """
    if text is None:
        return "–"
    short = cut(text, LONGEST_VALUE)
    return short if short == short.strip() != "" else f"“{short}”"


def number(amount: float | None, digits: int = 4) -> str:
    """A number for people: whole ones in full, others in so many digits.

    >>> number(1234567), number(9831.3), number(0.01234), number(1e-9), number(None)
    ('1,234,567', '9,831', '0.01234', '1.000e-09', '–')
    """
    if amount is None:
        return "–"
    if isinstance(amount, int) or amount == 0:
        return f"{int(amount):,}"
    size = math.floor(math.log10(abs(amount)))
    if not -5 <= size < 12:
        return f"{amount:.{digits - 1}e}"
    text = f"{amount:,.{max(digits - 1 - size, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def share(part: float) -> str:
    """A share in per cent; a small one is never nothing.

    >>> share(0.5), share(0.0123), share(0.00001), share(0), share(0.99999)
    ('50 %', '1.2 %', 'below 0.1 %', '0 %', 'above 99.9 %')
    """
    if 0 < part < 0.001:
        return "below 0.1 %"
    if 0.999 < part < 1:
        return "above 99.9 %"
    return f"{part * 100:.{1 if 0 < part < 0.1 or 0.9 < part < 1 else 0}f} %"


def when(instant: str | None) -> str:
    """An ISO instant as a date and a time of day in UTC.

    >>> when("2016-01-01T01:00:00+01:00"), when("2016-01-01T00:00:00.5+00:00")
    ('2016-01-01 00:00', '2016-01-01 00:00:00.500000')
    """
    if instant is None:
        return "–"
    text = datetime.fromisoformat(instant).astimezone(UTC).replace(tzinfo=None).isoformat(" ")
    return text.removesuffix(":00") if len(text) == 19 else text


def lasting(seconds: float) -> str:
    """A length of time in the unit that says it best.

    >>> lasting(308.5 * 86400), lasting(3600), lasting(90), lasting(0.25)
    ('308.5 days', '1 hour', '1.5 minutes', '0.25 seconds')
    """
    units = (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))
    unit, long = next((unit for unit in units if seconds >= unit[1]), units[-1])
    amount = number(round(seconds / long, 2), 6)
    return f"{amount} {unit}" if amount == "1" else f"{amount} {unit}s"


def bars(counts: Sequence[tuple[str, int]], whole: int, kind: Kind = "") -> Iterator[Bar]:
    """Bars of counts as shares of a whole."""
    for label, count in counts:
        part = count / whole if whole else 0.0
        yield Bar(label, part, f"{count:,} ({share(part)})", kind)
