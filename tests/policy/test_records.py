from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.records import DERIVED, SLO, STAGES, RequestRecord, TransferRecord, columns, spread, summarize


def record(request_id: int, arrival_s: float, token_s: float, finish_s: float, osl: int = 12, **more) -> RequestRecord:
    return RequestRecord(request_id, 100, osl, arrival_s, decode_token_s=token_s, finish_s=finish_s, **more)


@given(st.floats(0, 100), st.lists(st.floats(0, 10), min_size=6, max_size=6))
def test_exposed_parts_sum_to_e2e(arrival_s, parts) -> None:
    moments = [arrival_s]
    for part in parts:
        moments.append(moments[-1] + part)
    one = RequestRecord(0, 1, 2, arrival_s, finish_s=moments[-1])
    one.expose(*moments[1:-1])
    assert [getattr(one, f"{s}_exposed_s") for s in STAGES] == pytest.approx(parts, abs=1e-9)
    assert sum(getattr(one, f"{s}_exposed_s") for s in STAGES) == pytest.approx(one.e2e_s)
    assert one.transfer_exposed_s == pytest.approx(sum(parts[2:5]), abs=1e-9)


def test_the_times_of_a_record_are_those_worked_out_by_hand() -> None:
    one = record(0, 1.0, 3.0, 8.0, osl=12)
    assert (one.ttft_s, one.e2e_s, one.tpot_s) == (2.0, 7.0, 0.5)  # ten tokens after the first decoded one
    assert math.isnan(record(0, 0.0, 1.0, 1.0, osl=2).tpot_s)


def test_the_summary_is_as_worked_out_by_hand() -> None:
    records = [
        record(0, 0.0, 1.0, 2.0, wire_bytes=10, raw_bytes=40, distortion_token_weighted=0.02, cost_usd=1.0),  # good
        record(1, 2.0, 3.0, 8.0, wire_bytes=20, raw_bytes=40, extrapolated=True),  # tpot 0.5: too slow
        record(2, 5.0, 9.0, 10.0),  # ttft 4: too late
        record(3, 6.0, 7.0, 7.0, osl=2),  # no tpot to hold: good
        RequestRecord(4, 1, 1, 1.0, outcome="rejected", reason="full"),
    ]
    summary = summarize(records, SLO(ttft_s=1.5, tpot_s=0.2), wall_s=0.7)
    assert summary["requests"] == {"initiated": 5, "completed": 4, "rejected": 1, "failed": 0}
    assert summary["throughput_per_s"] == 0.4
    assert summary["goodput_per_s"] == 0.2
    assert summary["good_share"] == 0.4
    assert summary["ttft_s"]["mean"] == 1.75
    assert summary["tpot_s"]["p50"] == 0.1
    assert summary["e2e_s"]["p99"] == pytest.approx(5.97)
    assert (summary["wire_bytes"], summary["raw_bytes"], summary["cost_usd"], summary["wall_s"]) == (30, 80, 1.0, 0.7)
    assert summary["distortion"]["mean"] == 0.005
    assert summary["extrapolated_share"] == 0.25


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0.01, 5), st.floats(0.01, 5), st.sampled_from(["completed", "failed"])), max_size=20))
def test_goodput_is_part_of_throughput(rows) -> None:
    records = [record(i, at, at + a, at + a + b, outcome=outcome) for i, (at, a, b, outcome) in enumerate(rows)]
    summary = summarize(records, SLO(1.0, 0.2), 0.0)
    assert 0 <= summary["goodput_per_s"] <= summary["throughput_per_s"]
    assert sum(summary["requests"][o] for o in ("completed", "rejected", "failed")) == len(rows) == summary["requests"]["initiated"]
    assert summarize(records, SLO(math.inf, math.inf), 0.0)["goodput_per_s"] == summary["throughput_per_s"]


def test_a_run_that_completed_nothing_has_a_summary() -> None:
    summary = summarize([RequestRecord(0, 1, 1, 0.0, outcome="failed")], SLO(1, 1), 0.0)
    assert summary["goodput_per_s"] == 0.0
    assert math.isnan(summary["ttft_s"]["mean"])
    assert summary["distortion"] == {}


def test_spread_leaves_out_nan() -> None:
    assert spread([1.0, math.nan, 3.0]) == pytest.approx({"mean": 2.0, "p50": 2.0, "p90": 2.8, "p99": 2.98})


def test_columns_hold_every_field_and_the_derived_times() -> None:
    table = columns([record(0, 1.0, 3.0, 8.0), record(1, 1.0, 4.0, 9.0)])
    assert table["ttft_s"] == [2.0, 3.0]
    assert set(DERIVED) < set(table)
    assert table["request_id"] == [0, 1]
    assert "ttft_s" not in columns([TransferRecord(0, "p", "d", 0.0)])
    assert columns([]) == {}
