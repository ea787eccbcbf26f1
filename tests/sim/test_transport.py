from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.bitrate.fixed import Fixed, Raw
from abkt.profile.expect import curve_for
from abkt.spec import ModelSpec
from sim.transfer.transport import FRAME_BYTES, TransportModel
from sim.workload.requests import Request
from tests.sim.conftest import exact as fit
from tests.sim.test_cluster import cluster, run

MODEL = ModelSpec("a dense one", layers=32, kv_heads=8, head_dim=128)


def raw(blocks: int, **more) -> int:
    return TransportModel(**more).raw_calls(blocks, MODEL)


def test_the_number_of_calls_is_that_of_arithmetic() -> None:
    assert raw(500) == 1
    assert raw(500, layout="block_wise") == 500
    assert raw(500, layout="layer_wise") == 32_000  # 2 x 32 layers x 500 blocks, as FlowKV counts them
    assert raw(501, fragmentation=0.02) == 11
    assert raw(501, fragmentation=0.02, layer_groups=4) == 44
    assert raw(500, fragmentation=1.0) == raw(500, layout="block_wise")
    assert TransportModel(layout="layer_wise").raw_calls(10, replace(MODEL, kv_kinds=1)) == 320  # one latent for K and V
    assert raw(1, fragmentation=0.5) == 1


def test_calls_between_tensor_parallel_ranks_are_those_of_arithmetic() -> None:
    assert raw(500, prefill_tp=4, decode_tp=4) == 4  # each rank to its own peer
    assert raw(10, prefill_tp=2, decode_tp=4) == 4 * 640  # heads of a block lie apart in each layer, K and V
    assert raw(10, prefill_tp=2, decode_tp=3) == 4 * 640  # 0-1/3, 1/3-1/2, 1/2-2/3, 2/3-1 of the heads
    assert TransportModel(prefill_tp=4, decode_tp=2).calls_per_rank(10) == 3
    assert TransportModel().calls_per_rank(10) == 10


def test_coded_bytes_are_sent_in_frames() -> None:
    assert [TransportModel().coded_calls(size) for size in (0, 1, FRAME_BYTES, FRAME_BYTES + 1)] == [1, 1, 1, 2]
    assert TransportModel(layout="layer_wise").coded_calls(5 * FRAME_BYTES) == 5
    assert TransportModel(layer_groups=4, prefill_tp=2, decode_tp=4).coded_calls(5 * FRAME_BYTES) == 16


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 50))
def test_pairs_of_ranks_are_those_whose_heads_overlap(p, d, heads) -> None:
    """With all heads on the interval from 0 to 1, rank i of n holds those from i/n to (i+1)/n."""
    overlapping = sum(max(i / p, j / d) + 1e-9 < min((i + 1) / p, (j + 1) / d) for i in range(p) for j in range(d))
    assert TransportModel(prefill_tp=p, decode_tp=d).pairs_of_ranks == overlapping


def test_a_queue_of_calls_limits_the_rate() -> None:
    """4 calls of 1000 bytes are in flight with a round trip of 2 ms: 2 MB/s."""
    assert TransportModel(depth=4).limit_bytes_per_s(1e-9, 8000, 8, 0.001) == pytest.approx(2e6)
    assert TransportModel(depth=4, prefill_tp=2, decode_tp=2).limit_bytes_per_s(1e-9, 8000, 8, 0.001) == pytest.approx(4e6)
    assert TransportModel(depth=4).limit_bytes_per_s(1e-3, 8000, 8, 0.001) == pytest.approx(1e3)
    assert (
        TransportModel().limit_bytes_per_s(0.0, 8000, 8, 0.001) == TransportModel(depth=9).limit_bytes_per_s(0.0, 8000, 8, 0.0) == math.inf
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"layout": "block"},
        {"fragmentation": 1.5},
        {"prefill_tp": 0},
        {"layer_groups": 0},
        {"staging": 0},
        {"frame_loss": 1.0},
        {"timeout_s": 0.0},
        {"depth": -1},
        {"backoff_s": -1.0},
    ],
)
def test_an_impossible_transport_is_refused(fields) -> None:
    with pytest.raises(ValueError, match=r"is .*; it must be"):
        TransportModel(**fields)


# -- in a run ----------------------------------------------------------------------------------------------------------------------


def one(profile, transport: TransportModel, bitrate=Raw, **more):
    result = run(cluster(profile, transport=transport, **more), [Request(2, 0.0, 100, 2)], bitrate)
    return result.requests[0], result.transfers[0]


def test_alpha_is_paid_for_each_call(profile) -> None:
    """100 tokens are 7 blocks; the made-up model has 2 layers; alpha is 0.47 ms."""
    for layout, calls in (("block_contiguous", 1), ("block_wise", 7), ("layer_wise", 28)):
        record, transfer = one(profile, TransportModel(layout))
        assert transfer.calls == calls
        assert record.wire_busy_s == pytest.approx(6400 / 1e5 + calls * 0.00047)
    record, transfer = one(profile, TransportModel("layer_wise", prefill_tp=2, decode_tp=2))
    assert transfer.calls == 56
    assert record.wire_busy_s == pytest.approx(6400 / 1e5 + 28 * 0.00047)  # the ranks side by side


def test_a_pull_takes_one_more_round_trip_than_a_push(profile) -> None:
    push, _ = one(profile, TransportModel(), delay_s=0.01)
    pull, _ = one(profile, TransportModel(pull=True), delay_s=0.01)
    assert pull.finish_s - push.finish_s == pytest.approx(0.02)
    assert pull.wire_busy_s == pytest.approx(push.wire_busy_s)


def test_a_shallow_queue_leaves_a_link_with_a_long_delay_idle(profile) -> None:
    """One call of 6400 bytes in 40 ms gives 160 kB/s, more than the link. One call of a block's 914 bytes gives 22.9 kB/s."""
    whole, _ = one(profile, TransportModel(depth=1), delay_s=0.02)
    assert whole.wire_busy_s == pytest.approx(6400 / 1e5 + 0.00047 + 0.02)
    blocks, _ = one(profile, TransportModel("block_wise", depth=1), delay_s=0.02)
    assert blocks.wire_busy_s == pytest.approx(7 * 0.04 + 7 * 0.00047 + 0.02)


def test_tokens_that_the_decode_node_holds_are_not_sent(profile) -> None:
    """The test tells the job that a prefix is held, because there is no cache here."""
    from sim.cluster import Simulation
    from sim.job import Job
    from tests.sim.test_cluster import SLOS, RoundRobin

    of = cluster(profile)
    simulation = Simulation(of, [Request(0, 0.0, 100, 2)], lambda: Fixed(4), RoundRobin(), SLOS)
    made = Job.__init__

    def holding(self, *args, **more) -> None:
        made(self, *args, **more)
        self.reservation.held_tokens = 64

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "__init__", holding)
        result = simulation.run()
    (record,), (transfer,) = result.requests, result.transfers
    assert transfer.raw_bytes == record.raw_bytes == 36 * 64
    assert record.encode_busy_s == pytest.approx(0.00017 + 36 * 1.3e-5)
    assert record.expand_busy_s == pytest.approx(0.00019 + 36 * 1.2e-5)
    assert transfer.bits_per_value == pytest.approx(8 * transfer.wire_bytes / (36 * 32))


def test_one_request_with_the_entropy_coder_has_the_bytes_and_times_worked_out_by_hand(profile) -> None:
    """The entropy coder sends four fifths of the bytes and has times of its own."""
    fits = {"encode/entropy": fit({"1": 0.001, "tokens": 1e-3}), "expand/entropy": fit({"tokens": 2e-3})}
    both = replace(profile, fits={**profile.fits, **fits}, entropy_share=0.8)
    result = run(cluster(both), [Request(2, 0.0, 100, 2)], lambda: Fixed(4, coder="entropy"))
    (record,), (transfer,) = result.requests, result.transfers
    curve = curve_for(both, 100, draw=2).uniform
    assert transfer.wire_bytes == round(0.8 * curve.bytes[2] * 6400)
    assert record.distortion_start == curve.distortion[2]
    assert record.encode_busy_s == pytest.approx(0.101)
    assert record.expand_busy_s == pytest.approx(0.2)
