from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.workload.requests import Request
from sim.workload.scaling import Scaling, scale

lengths = st.integers(1, 100_000)
traces = st.lists(st.tuples(st.floats(0, 1e4), lengths, lengths), min_size=1, max_size=30).map(
    lambda rows: [Request(i, at, isl, osl, (i,)) for i, (at, isl, osl) in enumerate(sorted(rows))]
)


def test_scaling_a_trace_by_hand() -> None:
    trace = [Request(0, 1.0, 10, 10), Request(1, 5.0, 1000, 1), Request(2, 7.0, 400, 90), Request(3, 9.0, 4, 9)]
    scaled, facts = scale(trace, Scaling(requests=2, skip=1, speedup=2.0, isl_scale=0.25, osl_scale=0.5, isl_max=200, osl_max=30))
    assert scaled == [Request(1, 0.0, 200, 2), Request(2, 1.0, 100, 30)]  # 250 -> 200; 0 -> 2; 45 -> 30
    assert facts["isl_clipped"] == 1
    assert facts["osl_clipped"] == 2
    assert facts["requests"] == 2
    assert facts["isl_mean_before"] == 700
    assert facts["isl_mean_after"] == 150
    assert facts["rate_per_s_before"] == 1.0
    assert facts["rate_per_s_after"] == 2.0


@given(traces, st.floats(0.1, 50), st.floats(0.001, 3), st.integers(1, 64), st.integers(64, 4096))
def test_scaling_keeps_lengths_in_bounds_and_changes_nothing_else(trace, speedup, factor, low, high) -> None:
    scaled, facts = scale(trace, Scaling(speedup=speedup, isl_scale=factor, osl_scale=factor, isl_min=low, isl_max=high, osl_max=high))
    assert [(r.request_id, r.hash_ids) for r in scaled] == [(r.request_id, r.hash_ids) for r in trace]
    assert all(low <= r.isl <= high and 2 <= r.osl <= high for r in scaled)
    assert scaled[0].arrival_s == 0.0
    for before, after in zip(trace, scaled):
        assert after.arrival_s * speedup == pytest.approx(before.arrival_s - trace[0].arrival_s)
    assert facts["isl_clipped"] == sum(not low <= round(r.isl * factor) <= high for r in trace)


@pytest.mark.parametrize(
    "fields", [{"requests": 0}, {"speedup": 0.0}, {"isl_scale": -1.0}, {"isl_min": 9, "isl_max": 8}, {"osl_min": 0}, {"skip": -1}]
)
def test_an_impossible_scaling_is_refused(fields) -> None:
    with pytest.raises(ValueError, match="must"):
        Scaling(**fields)


def test_skipping_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="no request is left"):
        scale([Request(0, 0.0, 1, 1)], Scaling(skip=1))


@pytest.mark.parametrize("fields", [(0, 5), (5, 0)])
def test_a_request_without_tokens_is_refused(fields) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Request(3, 0.0, *fields)
