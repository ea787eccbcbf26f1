"""Order of the runs, utilisation from records, what the user has given, and trust in the simulator: cases solved by hand."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest

from abkt.records import SLO
from experiments.study.answer import measured
from experiments.study.comparison import mean_of_repeats
from experiments.study.decision import Measured, decide
from experiments.study.folder import _mean
from experiments.study.load import Given
from experiments.study.order import interleaved
from experiments.study.plan import explicit
from experiments.study.trust import trust
from experiments.study.utilisation import utilisation


def test_every_policy_runs_once_a_repeat_in_an_order_of_its_own() -> None:
    order = interleaved(["a", "b", "c", "d"], repeats=5, seed=1)
    assert [repeat for repeat, _ in order] == [r for r in range(1, 6) for _ in range(4)]
    assert set(Counter(order).values()) == {1}
    assert len({tuple(p for r, p in order if r == repeat) for repeat in range(1, 6)}) > 1
    assert order == interleaved(["a", "b", "c", "d"], repeats=5, seed=1)


def test_utilisation_by_hand() -> None:
    """Three requests, one a second: 3 s with the last gap. Prefill 0.5 s each, encoding 0.1 s. Decoding from 1 to 2.5 s, from 2 to 3 s
    (half of it while the first is still decoded), and of the last from 4 to 4.5 s: busy for 2.5 s."""
    rows = pd.DataFrame(
        {
            "arrival_s": [0.0, 1.0, 2.0],
            "prefill_busy_s": 0.5,
            "encode_busy_s": 0.1,
            "finish_s": [2.5, 3.0, 4.5],
            "decode_exposed_s": [1.5, 1.0, 0.5],
            "outcome": "completed",
        }
    )
    assert utilisation(rows) == pytest.approx({"prefill": 0.5, "encode": 0.1, "decode": 2.5 / 3})


@pytest.mark.parametrize(
    ("arguments", "load", "network", "slo"),
    [
        ([], Given(), False, False),
        (["network=mid_drop"], Given(), True, False),
        (["network.gbps=0.1", "slo=relaxed"], Given(), True, True),
        (["workload.scaling.isl_scale=0.1", "workload.scaling.requests=9"], Given(lengths=True, requests=True), False, False),
        (["workload.scaling.speedup=2", "workload.scaling.osl_max=9", "slo.ttft_s=1"], Given(answers=True, rate=True), False, True),
        (["workload.rate_per_s=2"], Given(rate=True), False, False),
        (["scaleout.network.gbps=1", "network@scaleout.network=5g", "workload=azure", "out=DIR"], Given(), False, False),
    ],
)
def test_what_the_user_has_given(arguments: list[str], load: Given, network: bool, slo: bool) -> None:
    found = explicit(arguments)
    assert (found.load, found.network, found.slo) == (load, network, slo)


def rows(ttft_s: list[float], outcome: str = "completed") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "request_id": range(len(ttft_s)),
            "arrival_s": np.arange(len(ttft_s), dtype=float),
            "ttft_s": ttft_s,
            "tpot_s": 0.01,
            "e2e_s": [t + 1 for t in ttft_s],
            "transfer_exposed_s": 0.1,
            **{f"{stage}_exposed_s": 0.1 for stage in ("queue", "prefill", "encode", "wire", "expand", "decode")},
            "distortion_token_weighted": 0.001,
            "outcome": outcome,
        }
    )


def test_what_is_measured_and_how_repeats_are_averaged() -> None:
    late = rows([0.2, 0.4])
    late.loc[1, "outcome"] = "failed"
    found = measured("int4", [rows([0.1, 2.0]), late], SLO(1.0, 0.1))
    assert found.good.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert math.isnan(found.ttft_s[1, 1])
    assert (found.share, found.distortion_mean) == (0.5, 0.001)
    mean = mean_of_repeats([rows([0.1, 2.0]), late])
    assert list(mean.request_id) == [0]  # the other one failed in a repeat
    assert mean.ttft_s[0] == pytest.approx(0.15)
    assert _mean([{"a": 1, "b": {"c": 2.0}, "d": "x", "e": None}, {"a": 2, "b": {"c": 4.0}, "d": "y", "e": 3.0}]) == {
        "a": 1.5,
        "b": {"c": 3.0},
        "d": "x",
        "e": 3.0,
    }


def summary(share: float, ttft_s: float, e2e_s: float = 2.0) -> dict[str, Any]:
    return {
        "goodput_per_s": 2 * share,
        "ttft_s": {"mean": ttft_s},
        "e2e_s": {"mean": e2e_s},
        "distortion": {"mean": 0.0, "p99": 0.0},
    }


def policy(name: str, good: int, ttft_s: float) -> Measured:
    return Measured(name, np.tile((np.arange(16) < good).astype(float), (3, 1)), np.full((3, 16), ttft_s), 0.0, 0.0)


def test_trust_counts_only_what_the_machine_tells_apart() -> None:
    """int4 and embedded are equal on the machine, raw is behind both. A simulator that picks int4 agrees with it in both pairs with
    raw, and costs nothing. One that picks raw costs the 8 of 16 requests that raw misses."""
    found = [policy("raw", 8, 2.0), policy("int4", 16, 0.5), policy("embedded", 16, 0.5)]
    decision = decide(found, 0.01, {"prefill": 0.5})
    repeats = {m.policy: [summary(m.share, m.ttft_mean_s * (1 + x)) for x in (-0.1, 0.0, 0.1)] for m in found}
    right = {"raw": summary(0.5, 1.8), "int4": summary(1.0, 0.45), "embedded": summary(0.99, 0.6)}
    said = trust(right, repeats, found, decision, 0.01)
    assert (said.pick, said.same, said.pairs, said.agreed, said.regret) == ("int4", True, 2, 2, 0.0)
    assert said.ttft_error == pytest.approx((0.1 + 0.1 + 0.2) / 3)
    assert said.ttft_noise == pytest.approx((0.15 / 1.05 + 0.0 + 0.15 / 0.95) / 3)
    assert said.e2e_error == said.e2e_noise == 0.0
    assert "among the machine's best" in said.sentence()
    assert "2 of the 2 pairs" in said.sentence()
    wrong = {"raw": summary(1.0, 0.1), "int4": summary(0.5, 1.0), "embedded": summary(0.5, 1.0)}
    said = trust(wrong, repeats, found, decision, 0.01)
    assert (said.pick, said.same, said.agreed, said.regret) == ("raw", False, 0, 0.5)
    assert "would cost 50 % of goodput" in said.sentence()


def test_where_the_machine_tells_nothing_apart_the_simulator_is_neither_right_nor_wrong() -> None:
    found = [policy("int4", 16, 0.5), policy("embedded", 16, 0.5)]
    predicted = {"int4": summary(1.0, 0.4), "embedded": summary(1.0, 0.6)}
    repeats = {m.policy: [summary(1.0, 0.5)] for m in found}
    said = trust(predicted, repeats, found, decide(found, 0.01, {"prefill": 0.5}), 0.01)
    assert (said.same, said.regret) == (None, 0.0)
    assert math.isnan(said.ttft_noise)
    assert "neither confirm nor deny" in said.sentence()
    assert "noise: –" in said.sentence()
