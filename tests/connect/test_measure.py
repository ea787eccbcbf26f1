"""The measurement's cells, rows and table, without a server; and the answers that are forced, where vLLM is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.vllm.plan import MeasureConfig, cells, read_rows
from experiments.vllm.table import facts, spread, table


def row(way: str, link: Any, ttft_s: float, logprobs: list[float], **more: float) -> dict[str, Any]:
    given = dict.fromkeys(("exposed_s", "offer_s", "arrive_s", "write_s", "report_s", "received_distortion", "held_s", "encode_s"), 0.0)
    best = ["token_id:1", "token_id:2"]
    return {**given, "way": way, "link_mbit_s": [link], "prompt": 0, "prefill_s": 1.0, "ttft_s": ttft_s, "logprobs": logprobs,
            "best": best, "bytes": 2e6, "load": 1.0, **more}  # fmt: skip


def test_rows_of_an_earlier_run_are_kept_unless_they_failed_or_were_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"key": "raw inf 0", "ttft_s": 1}\n{"key": "raw inf 1", "error": "gone"}\n{"key": "raw inf 2", "ttf')
    assert list(read_rows(path)) == ["raw inf 0"]
    config = MeasureConfig(tmp_path, tmp_path, tmp_path, tmp_path, links=(math.inf, 5.0), prompts=2)
    keys = [cell.key for cell in cells(config, ("local", "raw", "embedded"))]
    assert keys == ["local inf 0", "raw inf 0", "embedded inf 0", "local inf 1", "raw inf 1", "embedded inf 1", "raw 5 0", "embedded 5 0",
                    "embedded 100>5 0", "embedded 100>5 1"]  # fmt: skip


def test_the_table_compares_the_text_with_local_and_the_facts_with_the_targets() -> None:
    rows = {
        "a": row("local", "inf", 2.0, [-1.0, -2.0]),
        "b": row("raw", "inf", 0.33, [-1.0, -2.0]),
        "c": row("nixl", "inf", 0.30, [-1.0, -2.0]),
        "d": row("raw", 20.0, 8.0, [-1.0, -2.0], exposed_s=8.0),
        "e": row("embedded", 20.0, 1.0, [-1.2, -2.1], exposed_s=2.0, held_s=0.012, encode_s=0.010),
    }
    page = table(rows)
    assert "| 20 | embedded | 1 | 1.00 | 2.00 | 2.00 | 0.0000 | +0.1500 | 2 of 2 |" in page
    nixl, exposed = facts(rows)[:2]
    assert nixl.endswith("0.33 s against 0.30 s; target of 1.1 times: met.")
    assert "0.25 (target: at most 0.45: met)" in exposed
    assert (
        "Against the TTFT there, it loses against raw (not shaped), NixlConnector (not shaped), embedded (20); wins against raw (20)."
        in page
    )
    rows["e2"] = row("raw", "inf", 0.40, [-1.0, -2.0])
    assert facts(rows)[0].endswith("0.36 (0.33–0.40) s against 0.30 s; target of 1.1 times: cannot tell.")
    assert "ratio 1.20" in page
    assert page.index("| not shaped | local") < page.index("| not shaped | NixlConnector") < page.index("| 20 | raw")
    assert spread([3.0, 1.0, 2.0]) == "2.00 (1.00–3.00)"
    assert json.dumps(rows)


def test_a_forced_answer_is_the_given_text_and_then_free() -> None:
    pytest.importorskip("vllm.v1.sample.logits_processor")
    from experiments.vllm.forced import force

    process, logits = force([3, 1]), torch.tensor([9.0, 1.0, 2.0, 0.0])
    assert [int(process(output, logits).argmax()) for output in ([], [3], [3, 1])] == [3, 1, 0]
    assert torch.equal(logits, torch.tensor([9.0, 1.0, 2.0, 0.0])), "log probabilities are taken from the model's own logits"
