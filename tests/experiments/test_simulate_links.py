"""Transport, link faults and other traffic, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.cli import dispatch
from experiments.lib.paths import ROOT
from experiments.lib.results import read_records

FEW = ["workload.scaling.requests=12", "progress=false", "routing=round_robin"]
TRANSPORTS = sorted(path.stem for path in (ROOT / "conf" / "transport").glob("*.yaml"))


def simulated(curves: Path, out: Path, *arguments: str):
    assert dispatch(["simulate", f"curves={curves}", f"out={out}", *FEW, *arguments]) == 0
    return read_records(out / "requests.parquet"), read_records(out / "transfers.parquet")


def test_overlap_hides_bytes_and_layouts_cost_calls(curves: Path, tmp_path: Path) -> None:
    """On every transport there is."""
    found = {name: simulated(curves, tmp_path / name, f"transport={name}", "bitrate=raw") for name in TRANSPORTS}
    for requests, transfers in found.values():
        assert (requests.outcome == "completed").all()
        assert len(transfers) == 12
        assert (transfers.wire_bytes >= transfers.raw_bytes).all()
    exposed = {name: requests.wire_exposed_s.mean() for name, (requests, _) in found.items()}
    calls = {name: transfers.calls.sum() for name, (_, transfers) in found.items()}
    assert exposed["overlapped"] < exposed["contiguous"] < exposed["lossy"]
    assert exposed["contiguous"] < exposed["block_wise"] < exposed["layer_wise"]
    assert calls["layer_wise"] == 64 * calls["block_wise"]  # K and V of 32 layers
    assert calls["overlapped"] == 8 * calls["contiguous"] == 8 * 12


def test_a_link_that_goes_down_and_other_traffic(curves: Path, tmp_path: Path) -> None:
    sizes = tmp_path / "sizes.txt"
    sizes.write_text("0 0\n1000000 50\n100000000 100\n")
    plain, _ = simulated(curves, tmp_path / "plain")
    down, _ = simulated(curves, tmp_path / "down", "link_faults=[{link: prefill-0, start_s: 0, end_s: 9, share: 0}]")
    busy, _ = simulated(curves, tmp_path / "busy", "+background=data_centre", f"background.path={sizes}", "background.load=0.6")
    first = plain.prefill_node == "prefill-0"
    assert (down.e2e_s[first] > plain.e2e_s[first]).any()
    assert busy.wire_exposed_s.mean() > plain.wire_exposed_s.mean()
    manifest = json.loads((tmp_path / "busy" / "manifest.json").read_text())
    assert "sizes.txt" in [item["name"] for item in manifest["inputs"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["link_faults=[{link: decode-9, start_s: 0, end_s: 9, share: 0}]"], "there is no link decode-9; there are decode-0"),
        (["link_faults=[{link: decode-0, start_s: 3, end_s: 2, share: 0}]"], "must end after it starts"),
        (["+background=data_centre", "background.path=nowhere.txt"], "nowhere.txt cannot be read"),
        (["transport.frame_loss=1.5"], "transport.frame_loss is 1.5; it must be at least 0 and below 1"),
    ],
)
def test_an_impossible_network_is_one_line(
    curves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    out = tmp_path / "out"
    assert dispatch(["simulate", f"curves={curves}", f"out={out}", *FEW, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()
