"""Pages hold whatever text they are given as text, stand alone, and are the same for the same input."""

import html.parser
import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray import pictures
from mlops_ray.pages import Bar, Block, Section, Table, number, page, plain

VOID = {"meta", "link", "br", "img"}
NASTY = [
    "<script>alert(1)</script>",
    "</svg></title><img src=x onerror=alert(1)>",
    '"\'`><b x="',
    "a\x00b\x07\x1b[31m",
    "abc\u202edcba\u2066",
    "$\\frac{x$ ${y} %s {{ 7 * 7 }}",
    'url(#x) id="axes_1" href="#y"',
    "日本 \U0001f600 ‍",
    "n" * 500,
    "a\nb\nc\td",
    "http://example.org/@import",
    "",
    " ",
]


#: Attributes whose address a browser asks by itself, or at a click.
ASKED_FOR = {
    "src", "href", "xlink:href", "action", "data", "srcset", "poster", "background", "formaction", "ping",
}  # fmt: skip


class Parsed(html.parser.HTMLParser):
    """A page, taken apart: raises `AssertionError` where its elements do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.styles: list[str] = []
        self.named: list[str | None] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.addresses += [v or "" for k, v in attrs if k in ASKED_FOR]
        self.styles += [given["style"] or ""] if "style" in given else []
        assert not any(name.startswith("on") for name in given)
        self.named += [given.get("aria-label")] if tag == "svg" else []
        self._open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.styles if self._open[-1:] == ["style"] else self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def assert_sound(text: str) -> Parsed:
    """A page that nests, runs nothing, and asks nobody for anything."""
    parsed = Parsed(text)
    assert not {"script", "iframe", "object", "form"} & set(parsed.tags)
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert all(address.startswith(("#", "data:")) for address in parsed.addresses)
    assert {a.removeprefix("#") for a in parsed.addresses if a.startswith("#")} <= set(parsed.ids)
    # An address in a text is a text.
    assert not re.search(r"://|@import", " ".join(parsed.styles))
    assert "default-src 'none'" in text
    assert all(parsed.named)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)
    return parsed


def drawn(name: str) -> list[str]:
    days = [f"2016-01-0{day}T00:00:00+00:00" for day in (1, 2, 3)]
    return [
        pictures.histogram([0.0, 1.0, 2.0], [3, 4], f"of {name}"),
        pictures.coverage(days, [5, 0], [(days[1], days[2])], f"of {name}"),
        pictures.heat_map([name, "b"], [[1.0, -0.7], [None, 1.0]], f"of {name}"),
        pictures.dots([name, "b"], [1.0, 2.0], [3, 4], 1.5, f"of {name}", name),
        pictures.curve([10, 20, 40], [3.0, 2.0, 1.5], 4.0, f"of {name}", name),
    ]


def everything(text: str) -> str:
    """A page that has the text in every place that text can stand."""
    blocks = [Block(text, [("ok", text)], text, [(text, text, text)], facts=[(text, text)])]
    blocks += [Block(bars=[Bar(text, 0.5, text)], table=Table([text], [[text]], frozenset({0})))]
    blocks += [Block(picture=svg) for svg in drawn(text)]
    return page(text, text, [{"severity": "note", "said": text}], [Section(text, blocks, text)])


@pytest.mark.parametrize("text", NASTY)
def test_text_of_any_kind_stays_text(text: str) -> None:
    parsed = assert_sound(everything(text))
    assert "img" not in parsed.tags
    assert parsed.tags.count("b") == 1  # the tile's figure
    assert plain(text) in parsed.text


@given(st.text(max_size=30))
def test_any_text_is_shown_as_it_stands(text: str) -> None:
    shown = page(
        "t", "", [{"severity": "note", "said": text}], [Section("s", [Block(table=Table(["h"], [[text]]))])]
    )
    assert plain(text) in assert_sound(shown).text


def test_pictures_have_no_names_that_others_on_their_page_could_share() -> None:
    svgs = drawn("x") * 2
    assert len(set(svgs)) == 5
    parsed = assert_sound(page("t", "", [], [Section("a", [Block(picture=svg) for svg in svgs])] * 2))
    assert parsed.tags.count("svg") == 20
    assert parsed.ids == []


def test_the_same_numbers_are_the_same_picture_in_every_thread() -> None:
    first, found = drawn("x"), []
    threads = [threading.Thread(target=lambda: found.append(drawn("x"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [first] * 2


def test_pictures_take_their_colours_from_the_page_and_keep_their_text() -> None:
    for svg in drawn("name"):
        assert svg.startswith('<svg role="img" aria-label="of name"')
        assert "var(--accent" in svg
        assert not re.search(r"#0\d0\d0\d|DejaVu|<metadata|<style", svg)
        assert "<text" in svg
        assert "Date" not in svg


def test_sections_without_content_are_left_out() -> None:
    assert "Nothing here" not in page("t", "", [], [Section("Nothing here", [])])


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_can_be_read_back(amount: float) -> None:
    text = number(amount, 17)
    assert float(text.replace(",", "")) == pytest.approx(amount, rel=1e-12)
