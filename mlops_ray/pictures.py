"""Pictures for pages: SVG as text that takes its colours and its font from the page around it.

matplotlib draws; what it drew is then cut down to what belongs inside a page. The same numbers give the same
text. Names inside pictures are shortened here; pages say them whole.
"""

import html
import io
import itertools
import math
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

#: Stands in a picture for a colour of the page, and what it is where the page has none.
_TEXT, _LINE, _ACCENT, _SECOND, _BAD, _BACK = (f"#0{digit}0{digit}0{digit}" for digit in range(1, 7))
_COLOURS = {
    _TEXT: "currentColor",
    _LINE: "var(--line, #bbb)",
    _ACCENT: "var(--accent, #1f56d8)",
    _SECOND: "var(--second, #8a97a8)",
    _BAD: "var(--bad, #b3261e)",
    _BACK: "var(--card, #fff)",
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mlops_ray",
    "figure.dpi": 72,
    # A name may hold dollars.
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 11),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), _TEXT),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _LINE),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
}
#: Pixels; on a telephone a picture this wide is shown at eight tenths, its text at nine pixels.
_WIDTH = 420
#: matplotlib keeps its settings in one place for all threads.
_ALONE = threading.Lock()
#: Characters of a name beside an axis.
_LONGEST_LABEL = 22
#: A gap shorter than this share of the axis would not be seen.
_THINNEST = 0.006


def histogram(edges: Sequence[float], counts: Sequence[int], title: str) -> str:
    """Rows by cells between numbers; small, for beside a column's figures. Height is rows per unit."""
    widths = [high - low for low, high in itertools.pairwise(edges)]
    # Merged cells are wider: area is what says how many.
    heights = [count / width * widths[0] for count, width in zip(counts, widths, strict=True)]

    def draw(axes: Any) -> None:
        axes.stairs(heights, edges, fill=True, color=_ACCENT)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlim(edges[0], edges[-1])
        ticks = [edges[0], (edges[0] + edges[-1]) / 2, edges[-1]]
        axes.set_xticks(ticks, [_short(tick) for tick in ticks])
        for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
            label.set_horizontalalignment(side)

    return _svg(draw, title, (300, 96), (3, 22, 6, 4))


def coverage(edges: Sequence[str], counts: Sequence[int], gaps: Sequence[tuple[str, str]], title: str) -> str:
    """Rows over time, between ISO instants; intervals without rows are marked."""
    seconds = [_seconds(edge) for edge in edges]
    span = seconds[-1] - seconds[0]

    def draw(axes: Any) -> None:
        axes.stairs(counts, seconds, fill=True, color=_ACCENT)
        for begin, end in gaps:
            low, high = _seconds(begin), _seconds(end)
            wide = max(high - low, span * _THINNEST)
            axes.axvspan(
                (low + high - wide) / 2, (low + high + wide) / 2, color=_BAD, alpha=0.35, linewidth=0
            )
        axes.set_xlim(seconds[0], seconds[-1])
        axes.set_ylim(0, max(1, *counts) * 1.05)
        ticks = [seconds[0] + span * part for part in (0.08, 0.36, 0.64, 0.92)]
        axes.set_xticks(ticks, [_date(tick, span) for tick in ticks])
        axes.yaxis.set_major_locator(_ticks(4, integer=True))
        axes.yaxis.set_major_formatter(lambda value, _: _short(value))
        axes.grid(axis="y")

    return _svg(draw, title, (_WIDTH, 200), (54, 24, 6, 8))


def heat_map(names: Sequence[str], values: Sequence[Sequence[float | None]], title: str) -> str:
    """A square of values from -1 to 1; the deeper the colour, the further from 0; unknown ones are empty."""
    size, spoken = len(names), len(names) <= 12
    labels = [_label(name) for name in names]
    centred = {"ha": "center", "va": "center", "fontsize": 10}

    def draw(axes: Any) -> None:
        from matplotlib.patches import Rectangle

        for row, column in ((row, column) for row in range(size) for column in range(size)):
            value = values[row][column]
            if value is None:
                continue
            colour, depth = _BAD if value < 0 else _ACCENT, round(abs(value) * 0.85, 2)
            axes.add_patch(Rectangle((column, row), 0.96, 0.96, color=colour, alpha=depth, linewidth=0))
            if spoken:
                said = f"{value:.2f}".replace("0.", ".").replace("-.00", ".00")
                axes.text(column + 0.48, row + 0.5, said, color=_BACK if depth > 0.65 else _TEXT, **centred)
        axes.set(xlim=(0, size), ylim=(size, 0))
        upright = {"rotation": 90, "rotation_mode": "anchor", "ha": "right", "va": "center"}
        axes.set_xticks([i + 0.5 for i in range(size)], labels, **upright)
        axes.set_yticks([i + 0.5 for i in range(size)], labels)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    margin = _beside(labels)
    return _svg(draw, title, (_WIDTH, margin + max(size * 16, min(size * 28, 330))), (margin, margin, 4, 4))


def dots(
    labels: Sequence[str], values: Sequence[float], counts: Sequence[int], line: float, title: str, axis: str
) -> str:
    """A value for each label, top down, with its number of rows at the right; `line` is that of all rows."""

    def draw(axes: Any) -> None:
        at = range(len(labels))
        axes.axvline(line, color=_SECOND, linestyle=(0, (4, 3)), linewidth=1.2)
        axes.hlines(at, line, values, color=_ACCENT, linewidth=2, alpha=0.5)
        axes.plot(values, at, "o", color=_ACCENT, markersize=7)
        axes.set_yticks(at, [_label(label) for label in labels])
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.xaxis.set_major_locator(_ticks(4))
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        axes.margins(x=0.08)
        axes.grid(axis="x")
        axes.set_xlabel(_label(axis, _WIDTH // 10))
        for row, count in zip(at, counts, strict=True):
            axes.text(1.02, row, f"{count:,}", transform=axes.get_yaxis_transform(), va="center", fontsize=11)

    return _svg(draw, title, (_WIDTH, 52 + 22 * len(labels)), (_beside(labels), 46, 62, 6))


def curve(sizes: Sequence[int], errors: Sequence[float], naive: float, title: str, axis: str) -> str:
    """The error by the number of rows learned from, beside the error of the naive value."""

    def draw(axes: Any) -> None:
        axes.set_xscale("log")
        axes.plot(sizes, errors, "o-", color=_ACCENT, markersize=6)
        axes.axhline(naive, color=_SECOND, linestyle=(0, (4, 3)), linewidth=1.2)
        axes.annotate(
            "naive",
            (1, naive),
            (0, 3),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha="right",
        )
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.set_xticks([], minor=True)
        axes.set_ylim(0, max(naive, *errors) * 1.15 or 1)
        axes.yaxis.set_major_locator(_ticks(5))
        axes.yaxis.set_major_formatter(lambda value, _: _short(value))
        axes.grid(axis="y")
        axes.set(xlabel="rows learned from", ylabel=_label(axis))

    return _svg(draw, title, (_WIDTH, 250), (66, 46, 24, 8))


def _svg(
    draw: Callable[[Any], None],
    title: str,
    size: tuple[float, float],
    margins: tuple[float, float, float, float],
) -> str:
    """What `draw` puts on axes within `margins` (left, bottom, right, top), all in pixels."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Whatever settings the machine has: the same numbers are the same picture.
    settings: Any = {k: v for k, v in matplotlib.rcParamsDefault.items() if "backend" not in k} | _STYLE
    (width, height), (left, bottom, right, top) = size, margins
    place = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    written = io.StringIO()
    with _ALONE, matplotlib.rc_context(settings), warnings.catch_warnings():
        # The page's fonts have more letters than the one that measures here.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(width / 72, height / 72))
        draw(figure.add_axes(place))
        FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return _inline(written.getvalue(), title, width)


def _inline(svg: str, title: str, width: float) -> str:
    """The SVG element alone: named for those who do not see it, in the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    # No text holds < or >: only tags are changed.
    svg = re.sub(r"<[^<>]+>", lambda tag: _tag(tag[0], used), svg)
    said = html.escape(title)
    head = f'<svg role="img" aria-label="{said}" style="max-width:{width * 1.35:.0f}px" viewBox='
    svg = re.sub(r"<svg [^>]*?viewBox=", lambda _: head, svg, count=1)
    return re.sub(r"\n\s*", "\n", svg).strip()


def _tag(tag: str, used: set[str]) -> str:
    for sentinel, colour in _COLOURS.items():
        tag = tag.replace(sentinel, colour)
    tag = re.sub(r"'DejaVu Sans'(?:, [^;\"]*)?", "system-ui, sans-serif", tag)
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", tag)


def _beside(labels: Sequence[str]) -> float:
    """Pixels that labels need beside an axis."""
    return 14 + 7 * max(len(_label(label)) for label in labels)


def _ticks(most: int, *, integer: bool = False) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, integer=integer)


def _label(name: str, most: int = _LONGEST_LABEL) -> str:
    name = " ".join(name[: 2 * most].split())
    return name if len(name) <= most else name[: most - 1] + "…"


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
    days = span / 86_400
    form = (
        "%H:%M:%S" if days < 0.02 else "%d %b %H:%M" if days < 6 else "%d %b %Y" if days < 1500 else "%b %Y"
    )
    return datetime.fromtimestamp(math.floor(second), UTC).strftime(form)
