"""`abkt reproduce`: the layout table is measured on real processes, published figures stand as printed, bad input is one line."""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd
import pytest
import torch

from abkt.spec import KVLayout, ModelSpec
from experiments.cli import dispatch
from experiments.reproduction import flowkv, layouts, published, unlike
from experiments.reproduction.markdown import cell, percent, table
from tests.experiments.refused import refused


@pytest.mark.parametrize("tokens", [16, 100, 512])
def test_calls_of_each_layout_by_hand(tokens: int) -> None:
    """layer-wise: layers x 2 x blocks; block-wise: blocks, less what happens to be adjacent; contiguous: 1. All move the same bytes."""
    layout = KVLayout(ModelSpec("m", 4, 2, 8), blocks=64)
    blocks = layout.blocks_for(tokens)
    pieces, sizes = {}, set()
    for kind in layouts.LAYOUTS:
        _, of = layouts.pool_bytes(kind, layout)
        table_of = layouts.blocks_of(kind, layout, tokens)
        assert len(set(table_of)) == blocks
        pieces[kind] = of(table_of)
        sizes.add(sum(size for _, size in pieces[kind]))
    scattered = layouts.blocks_of("block-wise", layout, tokens)
    runs = 1 + sum(b != a + 1 for a, b in itertools.pairwise(scattered))
    assert [len(pieces[kind]) for kind in layouts.LAYOUTS] == [4 * 2 * runs, runs, 1]
    assert sizes == {blocks * layout.block_bytes}


@pytest.mark.slow
def test_the_layout_table_through_a_real_peer(tmp_path: Path) -> None:
    model = ModelSpec("m", 2, 2, 8)
    steps: list[str] = []
    rows = list(layouts.measure(model, (40, 200), ("unix",), 1, tmp_path, steps.append))
    assert [(row.layout, row.tokens) for row in rows] == list(itertools.product(layouts.LAYOUTS, (40, 200)))
    assert len(steps) == 3
    assert all(row.seconds > 0 for row in rows)
    assert {row.bytes for row in rows if row.tokens == 40} == {3 * KVLayout(model, 1).block_bytes}
    with pytest.raises(ValueError, match="transport pigeon is unknown"):
        list(layouts.measure(model, (40,), ("pigeon",), 1, tmp_path, steps.append))


def test_pools_of_a_gpu_need_one(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="CUDA IPC needs an NVIDIA GPU"):
        next(layouts.measure(ModelSpec("m", 2, 2, 8), (40,), ("cuda_ipc",), 1, tmp_path, str))


def test_published_figures_are_those_of_the_paper() -> None:
    assert published.LAYOUT_S["layer-wise"][8000] == 1.1173
    assert published.LAYOUT_S["block-contiguous"][500] == 0.0044
    assert pytest.approx(0.944, abs=0.0005) == 1 - published.TRANSFER_AFTER_S / published.TRANSFER_BEFORE_S


def test_the_layout_text_has_both_gains_and_their_ratio() -> None:
    rows = [{"layout": kind, "transport": "tcp", "tokens": 500, "calls": n, "bytes": 1, "seconds": s, "source": "measured"}
            for kind, n, s in (("layer-wise", 2048, 0.06), ("block-wise", 32, 0.03), ("block-contiguous", 1, 0.02))]  # fmt: skip
    text = "\n".join(flowkv.layout_text(pd.DataFrame(rows)))
    theirs = 0.0678 / 0.0044
    assert f"| tcp | 500 | 2,048 / 32 / 1 | 60 | 30 | 20 | 3 | {theirs:.3g} | {3 / theirs:.3g} |" in text
    assert "94.4% less; the text says 96%" in text
    assert "| 500 | 8 | 20 | 2.5 |" in text  # between two nodes
    assert "between two nodes" not in "\n".join(flowkv.layout_text(pd.DataFrame(rows).assign(transport="shm")))


def test_cells_percentages_and_tables_are_formatted() -> None:
    assert [cell(v) for v in (1234.5, -0.12345, float("nan"), 1234, "x")] == ["1,234", "−0.123", "–", "1,234", "x"]
    assert percent(-0.051) == "−5.1 %"
    assert table(("a",), [(1,)]) == ["| a |", "|---|", "| 1 |", ""]


def test_unlike_gpus_differ_by_which_one_decodes() -> None:
    """H20 has 4.6 times L20's memory bandwidth, so its TPOT as a decode node is lower, whoever prefills."""
    rows = {(row["prefill"], row["decode"]): row for row in unlike.rows(0)}
    for prefill in ("l20", "h20"):
        assert rows[prefill, "h20"]["tpot_s"] < 0.5 * rows[prefill, "l20"]["tpot_s"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "paper must be given"),
        (["mooncake"], "paper is mooncake; it must be one of flowkv, abkt"),
        (["flowkv", "parts=[budget]"], "flowkv has no part budget"),
        (["flowkv", "tokens=[0]"], "tokens has 0; it must be 1 to"),
        (["flowkv", "transports=[pigeon]"], "transport pigeon is unknown"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refused(["reproduce", *arguments, "out=results"], tmp_path, capsys)


@pytest.mark.slow
def test_a_part_of_each_paper(tmp_path: Path) -> None:
    small = ["tokens=[100]", "transports=[unix]", "layers=2", "repeats=1"]
    assert dispatch(["reproduce", "flowkv", "parts=[layout,longbench]", *small, f"out={tmp_path / 'f'}"]) == 0
    text = (tmp_path / "f" / "REPRODUCE.md").read_text()
    for words in ("| unix | 100 |", "gov_report", "+48.9 %", "Why they differ"):
        assert words in text
    assert set(pd.read_parquet(tmp_path / "f" / "layout.parquet").source) == {"measured", "FlowKV"}
    assert dispatch(["reproduce", "abkt", "parts=[cost]", f"out={tmp_path / 'a'}"]) == 0
    assert "edge_uplink" in (tmp_path / "a" / "REPRODUCE.md").read_text()
