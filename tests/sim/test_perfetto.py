"""The Chrome trace of a run, against the format's rules and the records that it was made from."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from math import nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.policy.bitrate.fixed import Fixed
from abkt.policy.routing.round_robin import RoundRobin
from abkt.records import SLO, STAGES, RequestRecord, TransferRecord
from sim.cluster import Simulation
from sim.perfetto import Lanes, chrome_trace
from sim.specs import ClusterSpec, NodeSpec
from sim.workload.synthetic import synthetic

TRACKS = ("X", "s", "t", "f", "i", "C")


def trace_of(requests, transfers) -> list[dict]:
    made = json.loads("".join(chrome_trace(requests, transfers)))
    assert set(made) == {"displayTimeUnit", "traceEvents"}
    return made["traceEvents"]


@pytest.fixture(scope="module")
def run(profile):
    nodes = [NodeSpec(f"{role}-{i}", profile, 2000, Capacity.constant(2e6)) for role in ("prefill", "decode") for i in range(2)]
    requests = synthetic(60, 3.0, 300, 20, variation=0.8, seed=2)
    simulation = Simulation(ClusterSpec(tuple(nodes[:2]), tuple(nodes[2:])), requests, lambda: Fixed(4), RoundRobin(), SLO(1.0, 0.1))
    return simulation.run()


def test_every_event_has_the_fields_of_its_kind(run) -> None:
    for event in trace_of(run.requests, run.transfers):
        assert event["ph"] in (*TRACKS, "M")
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
        if event["ph"] == "M":
            assert set(event["args"]) in ({"name"}, {"sort_index"})
            continue
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] > 0
        if event["ph"] in "stf":
            assert isinstance(event["id"], int)
            assert event["cat"] == "request"
            assert (event.get("bp") == "e") == (event["ph"] == "f")
        if event["ph"] == "C":
            assert all(value >= 0 for value in event["args"].values())


def test_time_goes_forward_on_each_track_and_slices_do_not_overlap(run) -> None:
    tracks = defaultdict(list)
    for event in trace_of(run.requests, run.transfers):
        if event["ph"] != "M":
            tracks[event["pid"], event["tid"]].append(event)
    assert len(tracks) > 8
    for events in tracks.values():
        times = [event["ts"] for event in events]
        assert times == sorted(times)
        slices = [event for event in events if event["ph"] == "X"]
        for before, after in pairwise(slices):
            assert before["ts"] + before["dur"] <= after["ts"] + 1e-6


def test_each_requests_arrow_leads_through_its_own_slices_from_first_to_last_stage(run) -> None:
    events = trace_of(run.requests, run.transfers)
    slices = {(e["pid"], e["tid"], e["ts"]): e for e in events if e["ph"] == "X"}
    arrows = defaultdict(list)
    for event in events:
        if event["ph"] in "stf":
            arrows[event["id"]].append(event)
            assert slices[event["pid"], event["tid"], event["ts"]]["args"]["request"] == event["id"]
    done = [r for r in run.requests if r.outcome == "completed" and r.osl > 1]
    assert set(arrows) >= {r.request_id for r in done}
    for steps in arrows.values():
        kinds = [event["ph"] for event in sorted(steps, key=lambda e: e["ts"])]
        assert kinds == ["s", *["t"] * (len(kinds) - 2), "f"]


def test_slices_add_up_to_the_times_of_the_records(run) -> None:
    seconds = defaultdict(float)
    for event in trace_of(run.requests, run.transfers):
        if event["ph"] == "X":
            seconds[event["args"]["request"], event["cat"]] += event["dur"] / 1e6
    for record in run.requests:
        if record.outcome == "completed":
            for stage in STAGES:
                assert seconds[record.request_id, stage] == pytest.approx(getattr(record, f"{stage}_exposed_s"), abs=2e-9)


def test_a_links_counter_integrates_to_the_bytes_sent(run) -> None:
    """The integral of a node's sending rate is the bytes of its transfers. The counter ends at 0."""
    events = trace_of(run.requests, run.transfers)
    names = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    for way, end in (("sends Gbit/s", "source"), ("receives Gbit/s", "destination")):
        for pid in {e["pid"] for e in events if e["name"] == way}:
            steps = [(e["ts"], e["args"]["Gbit/s"]) for e in events if e["name"] == way and e["pid"] == pid]
            carried = sum(gbps * (after - now) * 1e-6 * 1e9 / 8 for (now, gbps), (after, _) in pairwise(steps))
            sent = sum(t.wire_bytes for t in run.transfers if getattr(t, end) == names[pid])
            assert carried == pytest.approx(sent, rel=1e-3)
            assert steps[-1][1] == 0


def test_an_unserved_request_is_shown_with_its_reason() -> None:
    lost = RequestRecord(7, 10, 10, 1.5, outcome="rejected", reason="too long")
    half = TransferRecord(7, "a", "b", 1.0, finish_s=nan)
    (mark,) = [e for e in trace_of([lost], [half]) if e["ph"] == "i"]
    assert (mark["ts"], mark["args"]["reason"]) == (1.5e6, "too long")


def test_an_empty_run_gives_a_valid_trace() -> None:
    assert trace_of([], []) == []


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=40).map(sorted))
def test_spans_are_packed_into_the_fewest_lanes(spans) -> None:
    """No two spans overlap on a lane, and there are no more lanes than spans at the busiest moment."""
    lanes = Lanes()
    taken = [(start, start + length, lanes.take(start, start + length)) for start, length in spans]
    for i, (start, end, lane) in enumerate(taken):
        assert all(other != lane or e <= start or s >= end for s, e, other in taken[:i])
    busiest = max((sum(s <= moment < e for s, e, _ in taken) for moment, _, _ in taken), default=0)
    assert lanes.count == busiest
