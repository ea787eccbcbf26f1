"""Admission that reserves decode memory before prefill, as the real frontend does, in cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from abkt.capacity import Capacity
from abkt.policy.admission.reserve import Reserve
from abkt.policy.bitrate.fixed import Raw
from abkt.policy.routing.round_robin import RoundRobin
from abkt.serve import LocalClusterSpec
from abkt.serve.frontend.prompt import Prompt
from experiments.lib.results import read_records
from experiments.study.twin import Twin, run_simulated
from sim.cluster import Simulation
from sim.workload.requests import Request
from tests.sim.test_cluster import RATE, SLOS, cluster

ISL, OSL = 100, 20
PREFILL_S = 0.00217 + ISL * 0.000313 + ISL**2 * 1.7e-7
SEND_S = ISL * 1.1e-6 + 6400 / RATE + 0.00047 + ISL * 1.3e-6  # encode, wire and one call, expand; raw
DECODE_S = sum(0.00311 + 0.000271 + (ISL + i) * 1.37e-5 for i in range(OSL - 1))
ALONE_S = PREFILL_S + SEND_S + DECODE_S
ONE_AT_A_TIME = 144  # tokens of memory; a request needs 8 blocks of 16


def of(profile, tokens: int):
    whole = cluster(profile)
    return replace(whole, decode=(replace(whole.decode[0], kv_tokens=tokens),))


def run(profile, admission, tokens: int = ONE_AT_A_TIME):
    requests = [Request(i, 0.0, ISL, OSL) for i in range(2)]
    return Simulation(of(profile, tokens), requests, Raw, RoundRobin(), SLOS, admission=admission, debug=True).run().requests


def test_with_memory_for_one_request_the_second_prefill_starts_when_the_first_request_is_done(profile) -> None:
    first, second = run(profile, Reserve())
    assert first.finish_s == pytest.approx(ALONE_S)
    assert second.queue_exposed_s == first.finish_s  # its prefill begins then, not earlier
    assert second.prefill_token_s == pytest.approx(ALONE_S + PREFILL_S)
    assert second.finish_s == pytest.approx(2 * ALONE_S)
    assert second.wire_exposed_s == pytest.approx(6400 / RATE + 0.00047)  # the transfer does not wait for memory again


def test_without_a_reservation_the_second_prompt_is_computed_meanwhile(profile) -> None:
    first, second = run(profile, None)
    assert second.prefill_token_s < first.finish_s
    assert second.finish_s == pytest.approx(2 * ALONE_S - PREFILL_S - ISL * 1.1e-6)  # its pass and encoding are hidden


def test_with_memory_for_both_requests_the_second_does_not_wait(profile) -> None:
    both = 2 * 128
    assert [r.finish_s for r in run(profile, Reserve(), both)] == [r.finish_s for r in run(profile, None, both)]


def test_the_simulated_twin_reserves_memory_as_the_real_frontend_does(profile, tmp_path: Path) -> None:
    """Eight blocks hold one request of 100 + 20 tokens, so the simulated cluster serves the two requests one after the other."""
    prompts = [Prompt(i, 0.0, tuple(range(ISL)), OSL) for i in range(2)]
    twin = Twin(prompts, Capacity.constant(RATE), SLOS, profile)
    run_simulated(
        twin, LocalClusterSpec(Path("a model"), pool_tokens=ONE_AT_A_TIME), {"_target_": "abkt.policy.bitrate.fixed.Raw"}, tmp_path
    )
    rows = read_records(tmp_path / "requests.parquet")
    assert list(rows.finish_s) == pytest.approx([ALONE_S, 2 * ALONE_S])
    assert rows.queue_exposed_s[1] == rows.finish_s[0]
