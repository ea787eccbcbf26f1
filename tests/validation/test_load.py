"""The planned load of a condition: the speedup and the link follow from what prefill and the raw KV take."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from abkt.capacity import Capacity
from abkt.profile.schema import Fit, Profile
from abkt.spec import ModelSpec
from experiments.lib.network import NetworkConfig
from experiments.validation.condition import Condition
from experiments.validation.load import mean_bytes_per_s, planned, span_of, utilisation_of, work_s
from sim.workload.requests import Request

MODEL = ModelSpec("m", layers=2, kv_heads=1, head_dim=8)  # 64 bytes of KV a token
REQUESTS = [Request(i, 10.0 * i, 100, 8) for i in range(5)]  # over 50 s, with the gap after the last one


def constant(seconds: float) -> Fit:
    return Fit(("1",), (seconds,), {}, {}, 0.0, 1)


PROFILE = Profile(MODEL, {"handover": constant(0.1), "prefill": constant(1.5), "encode/8": constant(0.4), "expand/8": constant(0.0)}, ())
LINK = NetworkConfig(gbps=0.08, share=(1.0,), starts_s=(0.0,), period_s=float("inf"))


def test_the_speedup_gives_the_utilisation() -> None:
    assert work_s(REQUESTS, PROFILE) == pytest.approx(5 * 2.0)
    one, load = planned(Condition(LINK, 2.0, 1.0, 0, prefill=1, decode=1, utilisation=0.5), REQUESTS, PROFILE)
    assert (load.utilisation, load.span_s, load.rate_per_s) == pytest.approx((0.5, 20.0, 0.25))
    assert one.speedup == pytest.approx(2.0 * 50 / 20), "from the speedup at which the requests were read"
    two, _ = planned(Condition(LINK, 2.0, 1.0, 0, prefill=2, decode=1, utilisation=0.5), REQUESTS, PROFILE)
    assert two.speedup == pytest.approx(2 * one.speedup)


def test_the_link_gives_the_share_that_raw_kv_takes() -> None:
    of, load = planned(Condition(LINK, 1.0, 1.0, 0, prefill=1, decode=1, utilisation=0.5, link_utilisation=0.8), REQUESTS, PROFILE)
    raw_bytes = 5 * 100 * 64
    assert of.network.gbps * 1e9 / 8 * load.span_s * 0.8 == pytest.approx(raw_bytes)
    assert load.link == 0.8
    each, _ = planned(Condition(LINK, 1.0, 1.0, 0, prefill=2, decode=1, utilisation=0.5, link_utilisation=0.8), REQUESTS, PROFILE)
    assert each.network.gbps == pytest.approx(of.network.gbps), "half the time, and half of the requests over each of two links"
    shared = Condition(replace(LINK, senders=2), 1.0, 1.0, 0, prefill=2, decode=1, utilisation=0.5, link_utilisation=0.8)
    assert planned(shared, REQUESTS, PROFILE)[0].network.gbps == pytest.approx(2 * of.network.gbps)


def test_without_utilisations_a_condition_stays_as_it_is() -> None:
    given = Condition(LINK, 1.0, 1.0, 0, prefill=1, decode=1)
    same, load = planned(given, REQUESTS, PROFILE)
    assert same == given
    assert load.utilisation == pytest.approx(10 / 50)
    assert load.link == pytest.approx(5 * 6400 / (50 * 1e7))
    at_once = [replace(request, arrival_s=0.0) for request in REQUESTS]
    with pytest.raises(ValueError, match="all arrive at once"):
        planned(replace(given, utilisation=0.5), at_once, PROFILE)


def test_the_mean_rate_of_a_changing_link() -> None:
    assert mean_bytes_per_s(Capacity((0.0, 1.0), (4.0, 2.0), 2.0), 6.0) == pytest.approx(3.0)
    assert mean_bytes_per_s(Capacity((0.0, 1.0), (4.0, 2.0)), 4.0) == pytest.approx((4 + 3 * 2) / 4)


def test_the_utilisation_of_a_run_by_hand() -> None:
    rows = pd.DataFrame({"arrival_s": [0.0, 1.0, 2.0], "outcome": "completed", "prefill_busy_s": 0.5, "encode_busy_s": 0.1})
    assert span_of([0.0, 1.0, 2.0]) == pytest.approx(3.0)
    assert utilisation_of(rows, 1) == pytest.approx(1.8 / 3)
    assert utilisation_of(rows, 2) == pytest.approx(0.9 / 3)


def test_a_policy_knows_the_planned_link_at_first() -> None:
    policy = {"_target_": "x", "link": {"initial_bytes_per_s": 5.0, "quantile": 0.2}}
    of = Condition(LINK, 1.0, 1.0, 0, link_utilisation=0.5)
    assert of.estimated(policy)["link"] == {"initial_bytes_per_s": 1e7, "quantile": 0.2}
    assert of.estimated({"_target_": "y"}) == {"_target_": "y"}
    assert replace(of, link_utilisation=0.0).estimated(policy) == policy
