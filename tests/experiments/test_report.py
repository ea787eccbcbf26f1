"""The report of a made-up study: whole, self-contained, and the same each time."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.study.folder import load_study, twin
from experiments.study.report import FIGURES, answer, figure, main, ms, percent, size, trust, write_report


@pytest.fixture(scope="module")
def drawn(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "study"
    shutil.copytree(study, folder)
    write_report(folder)
    return folder


class Page(HTMLParser):
    """What a page refers to, its text, and whether every element that was opened is closed."""

    VOID = ("meta", "img", "br", "link")

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
    assert len(page.references) == len(FIGURES)
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not re.search(r"https?://|@import|url\(|<script", html)
    assert 'name="viewport"' in html


def test_the_page_holds_the_results(drawn: Path) -> None:
    text = " ".join(Page((drawn / "report.html").read_text()).text.split())
    compare = json.loads((drawn / "compare.json").read_text())
    assert f"the best policy on this machine is {compare['hardware']['pick']}" in text
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
        module.draw(found).draw_without_rendering()


def test_records_of_all_worlds_lie_at_the_top(study: Path) -> None:
    found = load_study(study)
    assert set(found.requests.world) == {"real", "simulated", "scaleout"}
    assert len(found.done("real", "raw")) == 40
    assert set(found.requests[found.requests.world == "scaleout"].routing) == {"round_robin", "load_aware"}
    assert found.link.at(20.0)[0] == pytest.approx(0.03e9 / 8 / 10)
    stored = json.loads((twin(study, "simulated", "int4") / "summary.json").read_text())
    assert found.run("twin/simulated/int4") == stored


def verdicts(hardware: str | None, simulated: str | None, **regret: object) -> dict[str, object]:
    errors = {"mean": {"relative_error": 0.05}, "p99": {"relative_error": -0.2}}
    stages = {"ttft": errors, "e2e": errors}
    return {
        "max_distortion": 0.02,
        "hardware": {"pick": hardware, "reason": f"{hardware} has the most goodput, 2 requests/s"},
        "simulated": {"pick": simulated, "reason": ""},
        "policies": {"raw": {"stages": stages}},
        "regret": {
            "simulated_pick": simulated,
            "hardware_best": hardware,
            "goodput_share": None,
            "ttft_s": None,
            "violates": False,
            **regret,
        },
    }


def test_the_headline_in_words() -> None:
    agreed = verdicts("int4", "int4", goodput_share=0.0, ttft_s=0.0)
    assert answer(agreed).endswith(
        "best policy on this machine is int4: it has the most goodput, 2 requests/s. The simulator picks it as well."
    )
    assert "+5.0% on mean TTFT (raw), −20.0% on p99 TTFT (raw)" in trust(agreed)
    assert trust(agreed).endswith("regret 0.")
    other = verdicts("int4", "raw", goodput_share=0.25, ttft_s=0.1)
    assert answer(other).endswith("The simulator picks raw instead.")
    assert "+25.0% of goodput and 100.0 ms of mean TTFT" in trust(other)
    assert "must not be followed" in trust(verdicts("int4", "int2", violates=True))
    assert answer(verdicts(None, None)).startswith("No policy keeps within")
    assert "None" not in trust(verdicts(None, None))


def test_numbers_in_words() -> None:
    assert [figure(v) for v in (None, 0.012345, 12345.6, 3, "x", True)] == ["–", "0.0123", "12,346", "3", "x", "True"]
    assert [ms(v) for v in (None, 0.0123, 12.3)] == ["–", "12.3", "12,300.0"]
    assert [percent(v) for v in (None, 0.5, -0.051)] == ["–", "+50.0%", "−5.1%"]
    assert [size(v) for v in (12, 1500, 2.5e6, 3e9)] == ["12 B", "1.5 kB", "2.5 MB", "3 GB"]
