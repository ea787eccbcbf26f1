"""A report is one well-formed page that refers to nothing outside of itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from experiments.report.page import Page, Section, Table, picture, write_page
from experiments.report.terminal import show_table, show_verdict
from experiments.report.verdict import Verdict


class Reader(HTMLParser):
    """What a page refers to, its text, its classes, and the elements that are not closed."""

    VOID = ("meta", "img", "source")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.classes: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "srcset")]
        self.classes += [value or "" for name, value in attributes if name == "class"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def draw(width_in: float) -> Figure:
    figure = Figure(figsize=(width_in, 2))
    figure.subplots().plot([0, 1], [1, 0])
    return figure


TABLE = Table(("policy", "sent", "why"), [(f"p{i}", f"{i} GB", "<ok>") for i in range(20)], "a note", fold_after=5, best=1, left=("why",))
USE = Verdict("use", "int4", "Use int4: it is <fast>.", "3 repeats")


def page(verdict: Verdict | None) -> Page:
    shown = picture(draw, "a line", "What it shows.")
    sections = [Section("One", "First.\n\nSecond.", ["a point"], TABLE, [shown]), Section("Two", pictures=[shown, shown])]
    return Page("A title", "What ran.", verdict, sections, {"command": "abkt x", "made": "today"})


def test_the_page_is_whole_and_self_contained(tmp_path: Path) -> None:
    text = write_page(tmp_path / "report.html", page(USE)).read_text()
    found = Reader(text)
    assert not found.open
    assert len(found.references) == 4  # one plot for a screen and a phone, and two beside each other
    assert all(reference.startswith("data:image/png;base64,") for reference in found.references)
    assert not re.search(r"https?://|@import|url\(|<script", text)
    for word in (
        "A title",
        "What ran.",
        "Use int4: it is <fast>.",
        "3 repeats",
        "Second.",
        "a point",
        "What it shows.",
        "abkt x",
        "a note",
    ):
        assert word in found.text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        (USE, "use"),
        (Verdict("tie", "raw", "a and b", ""), "tie"),
        (Verdict("no_answer", None, "none", "do this"), "no_answer"),
        (None, "none"),
    ],
)
def test_the_box_has_the_class_of_the_verdict(tmp_path: Path, verdict: Verdict | None, kind: str) -> None:
    text = write_page(tmp_path / "report.html", page(verdict)).read_text()
    assert f"verdict {kind}" in Reader(text).classes
    assert f".verdict.{kind} " in text or kind == "none"


def test_rows_of_a_long_table_are_folded_and_none_is_lost(tmp_path: Path) -> None:
    text = write_page(tmp_path / "report.html", page(None)).read_text()
    before, _, folded = text.partition("<details>")
    assert "15 more rows" in folded
    assert [f"<td>p{i}</td>" in before for i in range(20)] == [i < 5 for i in range(20)]
    assert all(f"<td>p{i}</td>" in folded for i in range(5, 20))
    assert before.count('<tr class="best">') == 1
    assert '<tr class="best"><td>p1</td>' in text


def test_a_row_with_a_cell_too_many_is_refused() -> None:
    with pytest.raises(ValueError, match="has 2 cells; there are 1 columns"):
        Table(("a",), [("1", "2")])


def test_the_terminal_shows_every_cell_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    show_table(Table(("name", "a wide heading of a column"), [("x" * 40, "y" * 40)], "the note"), "the title")
    show_verdict(USE)
    said = capsys.readouterr().out
    for word in ("x" * 40, "y" * 40, "a wide heading of a column", "the note", "the title", USE.sentence, USE.why):
        assert word in said
