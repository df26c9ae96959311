"""Pictures for pages: SVG that takes its colours and its font from the page around it.

The same numbers give the same text, and nothing in it has a name that another picture of a page might have.
Names inside pictures are shortened here; pages say them whole.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup

from mlops_ray.pages import cut, plain

_LINE, _ACCENT, _BAD, _BACK = (f"var(--{colour})" for colour in ("line", "accent", "bad", "card"))
_DASHED = {"stroke": "var(--second)", "stroke-width": 1.2, "stroke-dasharray": "5 4"}
#: Pixels; on a telephone a picture this wide is shown at eight tenths, its text at nine pixels.
_WIDTH = 420
#: How much larger than its own pixels a picture is shown at most.
_LARGEST = 1.35
#: Characters of a name beside an axis.
_LONGEST_LABEL = 22
#: Pixels; a shorter gap would not be seen.
_THINNEST = 2
#: Columns of a heat map whose values have room to be written out.
_MOST_SPOKEN = 12

Mark = tuple[float, str]


@dataclass(frozen=True)
class _Axes:
    """Where the numbers from `x` and `y` lie: in a picture of this size, within its margins, in pixels."""

    width: float
    height: float
    left: float
    bottom: float
    right: float
    top: float
    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        low, high = self.x
        return round(self.left + (value - low) / (high - low) * (self.width - self.left - self.right), 2)

    def down(self, value: float) -> float:
        low, high = self.y
        part = (value - low) / (high - low)
        return round(self.height - self.bottom - part * (self.height - self.bottom - self.top), 2)

    def line(self, begin: tuple[float, float], end: tuple[float, float], **style: object) -> Markup:
        (x1, y1), (x2, y2) = ((self.across(x), self.down(y)) for x, y in (begin, end))
        return _element("line", x1=x1, y1=y1, x2=x2, y2=y2, **style)

    def dot(self, x: float, y: float) -> Markup:
        return _element("circle", cx=self.across(x), cy=self.down(y), r=4, fill=_ACCENT)

    def stairs(self, edges: Sequence[float], heights: Sequence[float]) -> Markup:
        """The area below cells between edges."""
        steps = (f"V{self.down(h)}H{self.across(edge)}" for h, edge in zip(heights, edges[1:], strict=True))
        base = self.down(0)
        return _element("path", d=f"M{self.across(edges[0])} {base}{''.join(steps)}V{base}Z", fill=_ACCENT)

    def grid(self, across: Iterable[Mark], down: Iterable[Mark]) -> Iterator[Markup]:
        """Lines at the marks of both axes, and what is said of them below and at the left."""
        (left, right), (low, high) = self.x, self.y
        yield self.line((left, low), (right, low), stroke=_LINE)
        for x, said in across:
            yield self.line((x, low), (x, high), stroke=_LINE)
            yield _text(self.across(x), self.down(low) + 15, said)
        for y, said in down:
            yield self.line((left, y), (right, y), stroke=_LINE)
            yield _text(self.left - 6, self.down(y) + 4, said, text_anchor="end")


def _element(name: str, *inside: str, **given: object) -> Markup:
    """An element of SVG; text inside and in attributes is escaped."""
    attributes = (Markup(' {}="{}"').format(key.replace("_", "-"), said) for key, said in given.items())
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("").join(attributes), Markup("\n").join(inside))


def _text(x: float, y: float, said: str, **style: object) -> Markup:
    return _element("text", said, x=x, y=y, **style)


def _svg(title: str, width: float, height: float, *parts: Markup) -> Markup:
    """The parts as one picture, named for those who do not see it."""
    head = {"role": "img", "aria-label": plain(title), "style": f"max-width:{width * _LARGEST:.0f}px"}
    size = {"viewBox": f"0 0 {width} {height}", "fill": "currentColor", "font-size": 11}
    return _element("svg", *parts, **head, **size, text_anchor="middle")


def histogram(edges: Sequence[float], counts: Sequence[int], title: str) -> Markup:
    """Rows by cells between numbers; small, for beside a column's figures. Height is rows per unit."""
    widths = [high - low for low, high in itertools.pairwise(edges)]
    # Merged cells are wider: area is what says how many.
    heights = [count / width * widths[0] for count, width in zip(counts, widths, strict=True)]
    low, high = edges[0], edges[-1]
    axes = _Axes(300, 96, 24, 22, 24, 4, (low, high), (0, max(heights) or 1))
    marks = [(edge, _short(edge)) for edge in (low, (low + high) / 2, high)]
    return _svg(title, 300, 96, *axes.grid(marks, ()), axes.stairs(edges, heights))


def coverage(
    edges: Sequence[str], counts: Sequence[int], gaps: Sequence[tuple[str, str]], title: str
) -> Markup:
    """Rows over time, between ISO instants; intervals without rows are marked."""
    seconds = [_seconds(edge) for edge in edges]
    begin, span, most = seconds[0], seconds[-1] - seconds[0], max(1, *counts) * 1.05
    axes = _Axes(_WIDTH, 200, 54, 24, 6, 8, (begin, seconds[-1]), (0, most))
    times = [begin + span * part for part in (0.08, 0.36, 0.64, 0.92)]
    marks = [(time, _date(time, span)) for time in times]
    parts = [*axes.grid(marks, _round(0, most, 4, whole=True)), axes.stairs(seconds, counts)]
    for low, high in ((axes.across(_seconds(low)), axes.across(_seconds(high))) for low, high in gaps):
        wide = max(high - low, _THINNEST)
        place = {"x": (low + high - wide) / 2, "y": 8, "width": wide, "height": 168}
        parts += [_element("rect", **place, fill=_BAD, fill_opacity=0.35)]
    return _svg(title, _WIDTH, 200, *parts)


def heat_map(names: Sequence[str], values: Sequence[Sequence[float | None]], title: str) -> Markup:
    """A square of values from -1 to 1; the deeper the colour, the further from 0; unknown ones are empty."""
    size, margin = len(names), _beside(names)
    wide, high = (_WIDTH - margin - 4) / size, max(16, min(28, 330 / size))
    parts = []
    for place, name in enumerate(map(_label, names)):
        middle, below = margin + (place + 0.5) * wide + 4, size * high + 8
        parts += [_text(margin - 6, (place + 0.5) * high + 4, name, text_anchor="end")]
        parts += [_text(middle, below, name, text_anchor="end", transform=f"rotate(-90 {middle} {below})")]
    for row, column in itertools.product(range(size), repeat=2):
        value, x, y = values[row][column], margin + column * wide, row * high
        if value is None:
            continue
        colour, depth = _BAD if value < 0 else _ACCENT, round(abs(value) * 0.85, 2)
        cell = {"x": x, "y": y, "width": wide * 0.96, "height": high * 0.96}
        parts += [_element("rect", **cell, fill=colour, fill_opacity=depth)]
        if size <= _MOST_SPOKEN:
            said = f"{value:.2f}".replace("0.", ".").replace("-.00", ".00")
            text = _BACK if depth > 0.65 else "currentColor"
            parts += [_text(x + wide / 2, y + high / 2 + 4, said, font_size=10, fill=text)]
    return _svg(title, _WIDTH, margin + size * high, *parts)


def dots(
    labels: Sequence[str], values: Sequence[float], counts: Sequence[int], line: float, title: str, axis: str
) -> Markup:
    """A value for each label, top down, with its number of rows at the right; `line` is that of all rows."""
    low, high, height = min(line, *values), max(line, *values), 52 + 22 * len(labels)
    room = 0.08 * (high - low or abs(low) or 1)
    across, down = (low - room, high + room), (len(labels) - 0.4, -0.6)
    axes = _Axes(_WIDTH, height, _beside(labels), 46, 62, 6, across, down)
    parts = [*axes.grid(_round(*across, 4), enumerate(map(_label, labels)))]
    parts += [axes.line((line, down[0]), (line, down[1]), **_DASHED)]
    for row, (value, count) in enumerate(zip(values, counts, strict=True)):
        parts += [axes.line((line, row), (value, row), stroke=_ACCENT, stroke_width=2)]
        parts += [axes.dot(value, row), _text(364, axes.down(row) + 4, f"{count:,}", text_anchor="start")]
    said = _text(axes.across(low / 2 + high / 2), height - 12, _label(axis, _WIDTH // 10))
    return _svg(title, _WIDTH, height, *parts, said)


def curve(sizes: Sequence[int], errors: Sequence[float], naive: float, title: str, axis: str) -> Markup:
    """The error by the number of rows learned from, beside the error of the naive value."""
    places, most = [math.log2(size) for size in sizes], max(naive, *errors) * 1.15 or 1
    begin, end = places[0] - 0.2, places[-1] + 0.2
    axes = _Axes(_WIDTH, 250, 66, 46, 24, 8, (begin, end), (0, most))
    marks = [(place, f"{size:,}") for place, size in zip(places, sizes, strict=True)]
    parts = [*axes.grid(marks, _round(0, most, 5)), axes.line((begin, naive), (end, naive), **_DASHED)]
    learned = list(zip(places, errors, strict=True))
    parts += [axes.line(*ends, stroke=_ACCENT, stroke_width=1.5) for ends in itertools.pairwise(learned)]
    parts += [axes.dot(*point) for point in learned]
    parts += [_text(396, axes.down(naive) - 4, "naive", text_anchor="end")]
    parts += [
        _text(231, 242, "rows learned from"),
        _text(12, 106, _label(axis), transform="rotate(-90 12 106)"),
    ]
    return _svg(title, _WIDTH, 250, *parts)


def _round(low: float, high: float, most: int, *, whole: bool = False) -> list[Mark]:
    """Round numbers from `low` to `high`, at most one more than so many; none where floats are too coarse."""
    rough = (high - low) / most
    if not 1e-300 < rough < 1e300:
        return []
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * power for unit in (1, 2, 2.5, 5, 10) if unit * power >= rough)
    step = max(1, math.ceil(step)) if whole else step
    first, last = math.ceil(low / step), math.floor(high / step)
    return [(place * step, _short(place * step)) for place in range(first, last + 1)]


def _beside(labels: Sequence[str]) -> float:
    """Pixels that labels need beside an axis."""
    return 14 + 7 * max(len(_label(label)) for label in labels)


def _label(name: str, most: int = _LONGEST_LABEL) -> str:
    return cut(plain(" ".join(name[: 2 * most].split())), most)


def _short(value: float) -> str:
    """A number in few characters.

    >>> _short(0.25), _short(12_000.0), _short(3_400_000.0), _short(1e-7)
    ('0.25', '12,000', '3.4M', '1e-07')
    """
    size = abs(value)
    if 1e6 <= size < 1e12:
        unit, letter = (1e9, "G") if size >= 1e9 else (1e6, "M")
        return f"{value / unit:.4g}{letter}"
    return f"{value:,.0f}" if 1e3 <= size < 1e6 else f"{value:.4g}"


def _seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


def _date(second: float, span: float) -> str:
    forms = ((0.02, "%H:%M:%S"), (6, "%d %b %H:%M"), (1500, "%d %b %Y"), (math.inf, "%b %Y"))
    form = next(form for days, form in forms if span < days * 86_400)
    return datetime.fromtimestamp(math.floor(second), UTC).strftime(form)
