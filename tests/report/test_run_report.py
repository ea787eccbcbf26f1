"""The table and the lines of one run, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from abkt.records import SLO, RequestRecord, summarize
from experiments.cli import dispatch
from experiments.report.run import RunReport, scaling_lines


def record(i: int, ttft_s: float, gap_s: float, osl: int = 12, **more: object) -> RequestRecord:
    at = float(i)
    return RequestRecord(i, 100, osl, at, decode_token_s=at + ttft_s, finish_s=at + ttft_s + gap_s * (osl - 2), **more)  # type: ignore[arg-type]


def test_itl_weighs_gaps_and_tpot_weighs_requests() -> None:
    """One request of 90 gaps of 10 ms, one of 10 gaps of 110 ms: the mean request has 60 ms, the mean gap 20 ms."""
    summary = summarize([record(0, 1.0, 0.01, 92), record(1, 1.0, 0.11, 12), record(2, 1.0, 0.0, 2)], SLO(2, 1), 0.0)
    assert summary["tpot_s"]["mean"] == pytest.approx(0.06)
    assert summary["itl_s"]["mean"] == pytest.approx((90 * 0.01 + 10 * 0.11) / 100)
    assert summary["itl_s"]["p50"] == pytest.approx(0.01)
    assert summary["itl_s"]["p90"] == pytest.approx(0.01)
    assert summary["itl_s"]["p99"] == pytest.approx(0.11)


def test_lines_say_the_slo_the_bytes_and_what_is_extrapolated() -> None:
    records = [record(i, 0.5 if i else 3.0, 0.01, wire_bytes=10**9, raw_bytes=4 * 10**9, extrapolated=i == 1) for i in range(4)]
    slo = SLO(2.0, 0.1)
    report = RunReport("title", "plan", summarize(records, slo, 1.0), slo, "the profile has measured")
    first, sent, *rest = report.lines()
    assert first.startswith("75 % of 4 requests within the SLO (TTFT 2 s, TPOT 100 ms): goodput ")
    assert sent == "4 GB of 16 GB sent (25 %)"
    assert rest[-1] == "25 % of the requests lie outside of what the profile has measured: extrapolated"
    assert report.table().rows[0][:2] == ("TTFT (s)", "1.125")


def test_a_run_that_completed_nothing_has_a_table_and_a_page() -> None:
    records = [RequestRecord(0, 10, 5, 0.0, outcome="failed", reason="no")]
    slo = SLO(2.0, 0.1)
    report = RunReport("title", "plan", summarize(records, slo, 1.0), slo)
    assert report.table().rows[0] == ("TTFT (s)", "–", "–", "–", "–")
    assert [section.title for section in report.page(pd.DataFrame([{"outcome": "failed"}]), {}).sections] == [
        "Times of a request",
        "What was run",
    ]


def test_scaling_in_words() -> None:
    scaling = {
        "requests": 20,
        "requests_in_trace": 12_031,
        "isl_clipped": 3,
        "osl_clipped": 0,
        "isl_mean_before": 13_910.0,
        "isl_mean_after": 1_112.8,
        "rate_per_s_before": 2.0,
        "rate_per_s_after": 2.001,
    }
    assert scaling_lines(scaling) == [
        "20 of the trace's 12,031 requests",
        "prompt lengths scaled: mean 13,900 tokens in the trace, 1,110 here",
        "the prompt of 3 requests was clipped to the allowed range",
    ]


def test_simulate_plots_and_writes_csv_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["workload=poisson", "workload.requests=8", "workload.isl=200", "workload.osl=6", "progress=false"]
    out = tmp_path / "out"
    assert dispatch(["simulate", *few, f"out={out}", "plot=true", "csv=true"]) == 0
    assert "within the SLO" in capsys.readouterr().out
    assert "How it spreads" in (out / "report.html").read_text()
    for name in ("requests", "transfers"):
        stored, read = pq.read_table(out / f"{name}.parquet").to_pandas(), pd.read_csv(out / f"{name}.csv")
        assert list(read) == list(stored)
        assert len(read) == len(stored) == 8
        assert read.wire_bytes.tolist() == stored.wire_bytes.tolist()
    assert json.loads((out / "summary.json").read_text())["slo"].keys() == {"ttft_s", "tpot_s"}
