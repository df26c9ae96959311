"""Pictures for pages: SVG that takes its colours and its font from the page around it.

The same numbers give the same text, and nothing in it has a name that another picture of a page might have.
Names inside pictures are shortened here; pages say them whole.
"""

import importlib.resources
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

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

#: What tells kinds apart, in colour and, for eyes that tell no colours, in shape: paths around a point.
_COLOURS = (_ACCENT, "var(--warning)", "var(--ok)", _BAD)
_SHAPES = ("m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "m-4-4h8v8h-8z", "m0-5l5 9h-10z", "m0-5l5 5l-5 5l-5-5z")
#: Text that is read across lines.
_HALO = {"stroke": _BACK, "stroke_width": 3, "paint_order": "stroke"}
#: A line of so few points has them marked; numbers of which the largest is so many times the smallest lie on
#: a logarithmic axis.
_FEW, _MANY_TIMES = 20, 50

Mark = tuple[float, str]
Marks = Sequence[Mark]
Point = tuple[float, float]
#: What the axes are called: across, and up.
Names = tuple[str, str]
#: A line to compare with: what it is called, and where it lies at the left and at the right.
Dashed = tuple[str, float, float] | tuple[()]
#: Where something lies (a number, an ISO instant, a name), its value and, where that is known, what is below
#: and above it with so much certainty, and of how many rows it is.
Found = Iterable[Any]


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

    def line(self, begin: Point, end: Point, **style: object) -> Markup:
        (x1, y1), (x2, y2) = ((self.across(x), self.down(y)) for x, y in (begin, end))
        return _element("line", x1=x1, y1=y1, x2=x2, y2=y2, **style)

    def dot(self, x: float, y: float, kind: int = 0) -> Markup:
        return _sign(self.across(x), self.down(y), kind)

    def path(self, points: Iterable[Point], **style: object) -> Markup:
        """The points joined."""
        places = "L".join(f"{self.across(x)} {self.down(y)}" for x, y in points)
        return _element("path", d=f"M{places}", **{"fill": "none", **style})

    def named(self, across: str, up: str, kinds: Sequence[str] = ()) -> Iterator[Markup]:
        """What the axes are called and, above the picture, what the kinds are."""
        middle, half = (self.left + self.width - self.right) / 2, (self.top + self.height - self.bottom) / 2
        yield _text(middle, self.height - 8, _label(across, _WIDTH // 10))
        yield _text(12, half, _label(up, _WIDTH // 10), transform=f"rotate(-90 12 {half})")
        step = (self.width - self.left) / max(len(kinds), 1)
        for kind, name in enumerate(kinds):
            x = self.left + kind * step + 5
            yield _sign(x, 9, kind)
            yield _text(x + 9, 13, _label(name, int(step / 7) - 2), text_anchor="start")

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


def _sign(x: float, y: float, kind: int) -> Markup:
    """What marks a point of a kind."""
    colour, shape = _COLOURS[kind % 4], _SHAPES[(kind + kind // 4) % 4]
    return _element("path", d=f"M{x} {y}{shape}", fill=colour, fill_opacity=0.8)


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
    parts = [*axes.grid(_times(begin, span), _round(0, most, 4, whole=True)), axes.stairs(seconds, counts)]
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
    labels: Sequence[str],
    values: Sequence[float],
    counts: Sequence[int],
    line: float,
    title: str,
    axis: str,
    spans: Sequence[Point] = (),
) -> Markup:
    """A value for each label, top down, with its number of rows at the right; `line` is that of all rows.

    `spans`, where given, are between which numbers each value lies.
    """
    ends = [line, *values, *itertools.chain(*spans)]
    low, high, height = min(ends), max(ends), 52 + 22 * len(labels)
    room = 0.08 * (high - low or abs(low) or 1)
    across, (bottom, top) = (low - room, high + room), (len(labels) - 0.4, -0.6)
    axes = _Axes(_WIDTH, height, _beside(labels), 46, 62, 6, across, (bottom, top))
    parts = [*axes.grid(_round(*across, 4), enumerate(map(_label, labels)))]
    parts += [axes.line((line, bottom), (line, top), **_DASHED)]
    for row, (value, count) in enumerate(zip(values, counts, strict=True)):
        bar = {"stroke_width": 9, "stroke_opacity": 0.35} if spans else {"stroke_width": 2}
        parts += [axes.line((line, row), (value, row), stroke=_ACCENT, **bar)]
        for low, high in spans[row : row + 1]:
            up, down = row - 0.2, row + 0.2
            caps = [(low, up), (low, down), (low, row), (high, row), (high, up), (high, down)]
            parts += [axes.path(caps, stroke="currentColor")]
        parts += [axes.dot(value, row), _text(364, axes.down(row) + 4, f"{count:,}", text_anchor="start")]
    said = _text(axes.across(sum(across) / 2), height - 12, _label(axis, _WIDTH // 10))
    return _svg(title, _WIDTH, height, *parts, said)


def whiskers(title: str, found: Sequence[Found], line: float, axis: str) -> Markup:
    """As `dots`, of what was found, each with its span; nothing where there is nothing."""
    if not found:
        return Markup()
    labels, values, lows, highs, rows = zip(*found, strict=True)
    return dots(labels, values, rows, line, title, axis, list(zip(lows, highs, strict=True)))


def curve(sizes: Sequence[int], errors: Sequence[float], naive: float, title: str, axis: str) -> Markup:
    """The error by the number of rows learned from, beside the error of the naive value."""
    marks = [(math.log2(size), f"{size:,}") for size in sizes]
    points = [(place, error) for (place, _), error in zip(marks, errors, strict=True)]
    return lines(title, {"": points}, ("rows learned from", axis), ("naive", naive, naive), marks)


def lines(
    title: str, drawn: Mapping[str, Sequence[Found]], names: Names, dashed: Dashed = (), marks: Marks = ()
) -> Markup:
    """What was found, joined, with a band where its spans are known; named above where it is several.

    Nothing where one has no points.
    """
    if not all(drawn.values()):
        return Markup()
    lies = [[(_seconds(x) if isinstance(x, str) else x, *y) for x, *y in line] for line in drawn.values()]
    xs = [x for line in lies for x, *_ in line]
    heights = [*(y for line in lies for point in line for y in point[1:4]), *dashed[1:]]
    begin, end, low, high = min(xs), max(xs), min(heights), max(heights)
    room = 0.06 * (high - low or abs(high) or 1)
    # Whoever compares heights expects them to begin at 0.
    down = (0 if 0 <= low < high / 2 else low - room, high + room)
    kinds = [*drawn] if len(drawn) > 1 else []
    width = (begin, end if end > begin else begin + (abs(begin) or 1))
    axes = _Axes(_WIDTH, 250, 66, 46, 24, 22 if kinds else 8, width, down)
    is_time = any(isinstance(x, str) for line in drawn.values() for x, *_ in line)
    across = marks or (_times(begin, end - begin) if is_time else _round(begin, end, 5))
    parts = [*axes.grid(across, _round(*down, 5)), *axes.named(*names, kinds)]
    for kind, line in enumerate(lies):
        around = [(x, at[1]) for x, _, *at in reversed(line) if at] + [(x, at[0]) for x, _, *at in line if at]
        parts += [axes.path(around, fill=_COLOURS[kind % 4], fill_opacity=0.2)] if around else []
        parts += [axes.path([point[:2] for point in line], stroke=_COLOURS[kind % 4], stroke_width=1.8)]
        parts += [axes.dot(point[0], point[1], kind) for point in line if len(line) <= _FEW]
    for said, left, right in [dashed] if dashed else []:
        parts += [axes.path([(begin, left), (end, right)], **_DASHED)]
        parts += [_text(axes.across(end), axes.down(right) - 4, _label(said), text_anchor="end", **_HALO)]
    return _svg(title, _WIDTH, 250, *parts)


def scatter(title: str, kinds: Mapping[str, Sequence[Point]], names: Names) -> Markup:
    """Points of several kinds, named above."""
    points = [(kind, *point) for kind, several in enumerate(kinds.values()) for point in several]
    (xs, x_marks), (ys, y_marks) = (_scaled([point[side] for point in points]) for side in (1, 2))
    axes = _Axes(_WIDTH, 270, 66, 46, 16, 24, (0, 1), (0, 1))
    dots = [axes.dot(x, y, kind) for x, y, (kind, *_) in zip(xs, ys, points, strict=True)]
    return _svg(title, _WIDTH, 270, *axes.grid(x_marks, y_marks), *dots, *axes.named(*names, [*kinds]))


def parallel(title: str, columns: Mapping[str, Sequence[Any]], lower_is_better: bool) -> Markup:
    """A line for each row through its values in all columns: the deeper, the better its value in the last."""
    scaled = [_scaled(values) for values in columns.values()]
    axes = _Axes(2 * _WIDTH, 280, 70, 34, 70, 12, (0, len(scaled) - 1), (0, 1))
    rows = sorted(zip(*(places for places, _ in scaled), strict=True), key=lambda row: row[-1])
    parts = [axes.line((place, 0), (place, 1), stroke=_LINE) for place in range(len(scaled))]
    for rank, row in enumerate(reversed(rows) if lower_is_better else rows, 1):
        deep = {"stroke_opacity": round(0.1 + 0.9 * (rank / len(rows)) ** 3, 2)}
        parts += [axes.path(enumerate(row), stroke=_ACCENT, stroke_width=1 + rank // len(rows), **deep)]
    for place, (name, (_, marks)) in enumerate(zip(columns, scaled, strict=True)):
        x = axes.across(place)
        parts += [_text(x, 272, _label(name), font_weight=600)]
        parts += [_text(x - 5, axes.down(y) + 4, said, text_anchor="end", **_HALO) for y, said in marks]
    return _svg(title, 2 * _WIDTH, 280, *parts)


def standalone(picture: Markup) -> str:
    """The picture as a file of its own, in the colours of a page."""
    page = importlib.resources.files(__package__).joinpath("page.html").read_text("utf-8")
    colours = page[page.index(":root") : page.index("* {")]
    style = f"<style>{colours}svg {{ color: var(--text); background: var(--card); font-family: sans-serif }}"
    head, rest = str(picture).replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1).split(">", 1)
    return f"{head}>{style}</style>{rest}"


def _scaled(values: Sequence[Any]) -> tuple[list[float], list[Mark]]:
    """Where values lie from 0 to 1, and what stands at some places there; names lie one above the other."""
    if not all(isinstance(value, int | float) and value is not bool(value) for value in values):
        names = sorted(set(map(str, values)))
        marks = [((place + 0.5) / len(names), _label(name, 10)) for place, name in enumerate(names)]
        return [marks[names.index(str(value))][0] for value in values], marks
    is_log = min(values) > 0 and max(values) > min(values) * _MANY_TIMES
    turned = [math.log10(value) if is_log else float(value) for value in values]
    low, high = min(turned), max(turned)
    room = 0.04 * (high - low) or abs(low) / 2 or 0.5
    low, size = low - room, high - low + 2 * room
    marks = [(x, _short(10.0**x) if is_log else said) for x, said in _round(low, low + size, 5, whole=is_log)]
    return [(value - low) / size for value in turned], [((x - low) / size, said) for x, said in marks]


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


def _times(begin: float, span: float) -> list[Mark]:
    return [(begin + span * part, _date(begin + span * part, span)) for part in (0.08, 0.36, 0.64, 0.92)]


def _date(second: float, span: float) -> str:
    forms = ((0.02, "%H:%M:%S"), (6, "%d %b %H:%M"), (1500, "%d %b %Y"), (math.inf, "%b %Y"))
    form = next(form for days, form in forms if span < days * 86_400)
    return datetime.fromtimestamp(math.floor(second), UTC).strftime(form)
