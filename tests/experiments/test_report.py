"""The report of a made-up study: whole, self-contained, and the same each time."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.report.page import Picture
from experiments.report.words import ms
from experiments.study.folder import load_study, simulated
from experiments.study.report import FIGURES, main, render, write_report
from experiments.study.tables import policy_table
from tests.experiments.conftest import POLICIES, REPEATS


@pytest.fixture(scope="module")
def drawn(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "study"
    shutil.copytree(study, folder)
    write_report(folder)
    return folder


class Page(HTMLParser):
    """What a page refers to, its text, and whether every element that was opened is closed."""

    VOID = ("meta", "img", "br", "link", "source")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "data", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_figure_is_there_as_pdf_and_png(drawn: Path) -> None:
    for _, module in FIGURES:
        name = module.__name__.rpartition(".")[2]
        assert (drawn / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF-")
        png = (drawn / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert int.from_bytes(png[16:20], "big") >= 1000  # pixels wide: sharp in print


def test_the_page_needs_nothing_but_itself(drawn: Path) -> None:
    html = (drawn / "report.html").read_text()
    page = Page(html)
    assert page.open == []
    assert len(page.references) >= len(FIGURES)
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not re.search(r"https?://|@import|url\(|<script", html)
    assert 'name="viewport"' in html


def test_the_page_holds_the_results(drawn: Path) -> None:
    text = " ".join(Page((drawn / "report.html").read_text()).text.split())
    compare = json.loads((drawn / "compare.json").read_text())
    assert "not validated on hardware here" in text
    assert "The link is paced in user space." in text
    for number in (compare["policies"]["int4"]["stages"]["wire"]["mean"][f"{world}_s"] for world in ("measured", "predicted")):
        assert ms(number) in text


def test_drawing_again_from_the_top_files_alone_gives_the_same_bytes(drawn: Path, study: Path, tmp_path: Path) -> None:
    for path in study.glob("*.*"):
        shutil.copy(path, tmp_path)
    write_report(tmp_path)
    assert hashes(tmp_path) == hashes(drawn)


def hashes(folder: Path) -> dict[str, str]:
    files = (*folder.glob("figures/*"), folder / "report.html")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_an_incomplete_study_is_one_line(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    (folder / "transfers.parquet").unlink()
    assert main([str(folder)]) == 2
    assert "transfers.parquet does not exist" in capsys.readouterr().err
    assert not (folder / "report.html").exists()


def test_a_policy_that_never_completed_is_drawn_as_nothing(study: Path) -> None:
    """All of int8's real requests and transfers failed: empty bars and curves, no error."""
    found = load_study(study)
    for rows in (found.requests, found.transfers):
        rows.loc[(rows.world == "real") & (rows.policy == "int8"), "outcome"] = "failed"
    for _, module in FIGURES:
        module.draw(found, 6.0).draw_without_rendering()


def test_records_of_all_worlds_lie_at_the_top(study: Path) -> None:
    found = load_study(study)
    assert set(found.requests.world) == {"real", "simulated", "scaleout"}
    assert len(found.done("real", "raw")) == 40 * REPEATS
    assert len(found.sent("real", "raw")) == 40
    assert set(found.requests[found.requests.world == "scaleout"].routing) == {"round_robin", "load_aware"}
    assert found.link.at(20.0)[0] == pytest.approx(0.03e9 / 8 / 10)
    stored = json.loads((simulated(study, "int4") / "summary.json").read_text())
    assert found.run("twin/simulated/int4") == stored


def test_the_answer_stands_in_the_summary_and_in_the_box(drawn: Path) -> None:
    """The same sentence, and a box of its kind; TTFT of the policies differ by far more than the repeats do."""
    html, summary = unescape((drawn / "report.html").read_text()), json.loads((drawn / "summary.json").read_text())
    verdict, busy = summary["verdict"], summary["utilisation"]
    assert set(verdict) == {"kind", "policy", "sentence", "why"}
    assert verdict["policy"] in POLICIES
    assert f'<div class="verdict {verdict["kind"]}">' in html
    assert f"<strong>{verdict['sentence']}</strong>" in html
    assert summary["trust"]["sentence"] in html
    assert busy["prefill"] == busy["measured"]["prefill"] > 0
    assert busy["decode"] == busy["measured"]["decode"] > 0
    assert busy["planned"]["prefill"] > 0


@pytest.mark.parametrize("kind", ["tie", "no_answer"])
def test_a_run_without_an_answer_is_drawn_as_one(study: Path, tmp_path: Path, kind: str) -> None:
    for path in study.glob("*.*"):
        shutil.copy(path, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    policy = None if kind == "no_answer" else "raw"
    summary["verdict"] = {"kind": kind, "policy": policy, "sentence": "It is as it is.", "why": "overloaded"}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    pictures = {module.__name__.rpartition(".")[2]: Picture(b"", title, "") for title, module in FIGURES}  # this is about the words
    html = render(load_study(tmp_path), pictures)
    assert f'<div class="verdict {kind}">' in html
    assert "It is as it is." in html


def test_the_policy_table_has_the_best_first_and_the_interval_to_it(study: Path) -> None:
    found = load_study(study)
    table = policy_table(found.summary, found.compare)
    assert [row[0] for row in table.rows] == [s["policy"] for s in found.compare["hardware"]["ranking"]]
    reference = found.summary["verdict"]["policy"]
    pair = next(p for p in found.compare["pairs"] if {p["a"], p["b"]} == {"raw", reference})
    factor = 1 + pair["ttft"]["estimate"]
    raw_against = (factor if pair["a"] == "raw" else 1 / factor) - 1
    cell = next(row[3] for row in table.rows if row[0] == "raw")
    assert cell.startswith(f"{raw_against * 100:+.0f} % [")
