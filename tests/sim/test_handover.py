"""The time in which a worker takes over a prompt: it counts as queueing, and delays every prompt behind it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from abkt.records import STAGES
from sim.workload.requests import Request
from tests.sim.conftest import FITS, exact
from tests.sim.test_cluster import cluster, run


def test_a_handover_before_every_prompt_by_hand(profile) -> None:
    """Three prompts: an idle node, a prompt that waits for the first, and one that arrives when the node is idle again."""
    handover_s, prefill_s, encode_s = 0.0015, 0.00217 + 100 * 0.000313 + 100**2 * 1.7e-7, 100 * 1.1e-6
    taken = replace(profile, fits={**FITS, "handover": exact({"1": handover_s})})
    result = run(cluster(taken), [Request(i, at_s, 100, 4) for i, at_s in enumerate((1.0, 1.01, 9.0))], debug=True)
    first, second, third = result.requests
    free_s = 1.0 + handover_s + prefill_s + encode_s
    assert [r.queue_exposed_s for r in (first, second, third)] == pytest.approx([handover_s, free_s + handover_s - 1.01, handover_s])
    for record in result.requests:
        assert (record.prefill_busy_s, record.prefill_exposed_s) == pytest.approx((prefill_s, prefill_s))
        assert sum(getattr(record, f"{stage}_exposed_s") for stage in STAGES) == pytest.approx(record.e2e_s)
    without = run(cluster(profile), [Request(0, 1.0, 100, 4)])
    assert first.e2e_s == pytest.approx(without.requests[0].e2e_s + handover_s)
    assert first.cost_usd == pytest.approx(without.requests[0].cost_usd), "the GPU does not work meanwhile"
