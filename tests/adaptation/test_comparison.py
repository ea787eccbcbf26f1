"""Bounds, scores and a whole comparison in a world small enough to be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from abkt.records import SLO, RequestRecord
from experiments.adaptation.comparison import Comparison, compare_within_bounds
from experiments.adaptation.rivals import Aim, Bounds, allocated, coarsest_within, finest_levels_within, largest_aim, with_bounds
from experiments.adaptation.scores import Score, p99, ratio
from experiments.adaptation.worlds import World

OURS = {"_target_": "ours", "target_distortion": 0.0, "mean_distortion": 0.0, "max_distortion": 0.0}
CACHEGEN = {"_target_": "cachegen", "bits": [8, 4, 2]}


def record(ttft_s: float, distortion: float = 0.0, exposed_s: float = 0.0, outcome: str = "completed") -> RequestRecord:
    made = RequestRecord(0, 10, 4, 0.0, outcome=outcome, decode_token_s=ttft_s, finish_s=ttft_s + 1, raw_bytes=100, wire_bytes=25)
    made.wire_exposed_s, made.distortion_token_weighted = exposed_s, distortion
    return made


def compared(world: World, repeats: int = 1, scout: World | None = None) -> Comparison:
    """One policy of ours against a fixed rate of 2 bits."""
    aim, slo = Aim(0.1, math.inf), SLO(1.0, 0.2)
    return compare_within_bounds(world, repeats, 2.0, {"embedded": OURS}, CACHEGEN, OURS, aim=aim, slo_share=0.9, slo=slo, scout=scout)


def test_bounds_are_of_the_mean_and_of_eight_times_it_at_p99() -> None:
    bounds = Bounds(0.01)
    assert bounds.held_by([0.01] * 100)
    assert not bounds.held_by([0.011] * 100)
    assert bounds.held_by([0.0] * 90 + [0.08] * 10)
    assert not bounds.held_by([0.0] * 95 + [0.09] * 5)


def test_an_adaptive_policy_gets_the_bounds() -> None:
    made = with_bounds({**OURS, "refine_distortion": math.inf}, Bounds(0.01), Aim(0.5, 0.25))
    assert (made["target_distortion"], made["mean_distortion"], made["max_distortion"]) == (0.005, 0.01, 0.08)
    assert made["refine_distortion"] == 0.0025
    assert "refine_distortion" not in with_bounds(OURS, Bounds(0.01), Aim(0.5, 0.25))
    with pytest.raises(ValueError, match="target is 2; it must be above 0 and at most 1"):
        Aim(2, 1)
    with pytest.raises(ValueError, match="has no max_distortion"):
        with_bounds({"_target_": "x"}, Bounds(0.01), Aim(0.5, 1))


def test_the_coarsest_level_within_the_bounds() -> None:
    leaves = {2.0: 0.1, 4.0: 0.01, 8.0: 0.001}
    assert coarsest_within(Bounds(0.02), list(leaves), lambda bits: [leaves[bits]]) == 4.0
    assert coarsest_within(Bounds(0.0001), list(leaves), lambda bits: [leaves[bits]]) is None


def test_the_coarsest_levels_are_removed_first() -> None:
    """A policy that uses its finest and its coarsest level in turn."""

    def leaves(levels: list[int]) -> list[float]:
        return [4.0 ** -levels[0], 4.0 ** -levels[-1]]

    assert finest_levels_within(Bounds(0.04), [2, 3, 4, 8], leaves) == [8, 4, 3, 2]
    assert finest_levels_within(Bounds(0.01), [2, 3, 4, 8], leaves) == [8, 4, 3]
    assert finest_levels_within(Bounds(1e-6), [2, 3, 4], leaves) == []


def test_levels_are_searched_for_in_the_scout_and_not_in_the_world() -> None:
    played = []

    def expensive(repeat: int, bitrate: dict, slo: SLO) -> list[RequestRecord]:
        played.append(bitrate)
        return world(repeat, bitrate, slo)

    made = compare_within_bounds(
        expensive, 1, 2.0, {"embedded": OURS}, CACHEGEN, OURS, aim=Aim(0.1, math.inf), slo_share=0.9, slo=SLO(1.0, 0.2), scout=world
    )
    assert len(played) == len(made.rows) == 5
    assert made.rows == compared(world).rows


def test_a_request_that_was_not_completed_has_an_infinite_time() -> None:
    score = Score("any")
    score.add([record(1.0), record(2.0), record(3.0), record(math.nan, outcome="failed")])
    assert score.attainment(2.0) == 0.5
    assert score.row(2.0)["ttft_worst_s"] == math.inf
    assert score.wire_share == [0.25]


def test_the_ratio_of_a_constant_factor_has_no_width() -> None:
    theirs = [np.linspace(1, 2, 50), np.linspace(3, 5, 40)]
    made = ratio([values / 2 for values in theirs], theirs, p99)
    assert made == pytest.approx({"ratio": 0.5, "low": 0.5, "high": 0.5})
    uneven = ratio([theirs[0] / 2, theirs[1]], theirs, lambda values: float(values.mean()))
    assert uneven["low"] <= uneven["ratio"] <= uneven["high"]
    assert (uneven["low"], uneven["high"]) == pytest.approx((0.5, 1.0))
    with pytest.raises(ValueError, match="cannot be paired"):
        ratio(theirs, theirs[:1], p99)


def world(repeat: int, bitrate: dict, slo: SLO) -> list[RequestRecord]:
    """A link of 10 bits/s for even requests and 1 bit/s for odd ones. Distortion is 4 ** -bits. Ours spends its bound on odd requests."""
    kind = bitrate["_target_"].rsplit(".", 1)[-1]
    records = []
    for i in range(20):
        slow = i % 2 == 1
        if kind == "Allocated":
            bits = bitrate["bits"] * (2 if bitrate["order"] == "uniform" else 1)  # a uniform order needs twice the bits
            distortion = 4.0 ** -bitrate["bits"]
        elif kind == "cachegen":
            bits = 2 * (min(bitrate["bits"]) if slow else max(bitrate["bits"]))
            distortion = 4.0 ** (-bits / 2)
        else:
            distortion = bitrate["mean_distortion"] * (1.9 if slow else 0.1)
            bits = -math.log(distortion, 4)
        seconds = bits / (1 if slow else 10)
        records.append(record(1.0 + seconds, distortion, seconds))
    return records


def test_a_comparison_by_hand() -> None:
    made = compared(world, repeats=3)
    assert made.bounds.mean == pytest.approx(4.0**-2)
    assert made.slo_ttft_s == pytest.approx(3.0)  # 1 s and two bits at 1 bit/s
    assert not made.missing
    assert made.rows["fixed"]["within_slo"] == 1.0
    assert made.rows["uniform"]["exposed_p99_s"] == pytest.approx(4.0)  # 2 levels of it leave as much, at twice the bits
    assert made.rows["cachegen"]["distortion_mean"] <= 4.0**-2
    exposed_s = -math.log(1.9 * 4.0**-2, 4)
    assert made.rows["embedded"]["exposed_p99_s"] == pytest.approx(exposed_s)
    assert made.against["fixed"]["embedded"]["ratio"] == pytest.approx(exposed_s / 2)
    assert made.against["uniform"]["embedded"]["ratio"] == pytest.approx(exposed_s / 4)
    assert made.ttft["embedded"]["ratio"] == 1.0


@pytest.mark.parametrize(("mean", "asked"), [(3.0, 1.0), (2.0, 1.0), (1.5, 0.75), (0.5, 0.25), (0.4, None)])
def test_the_aim_is_the_largest_with_no_more_distortion_than_another(mean, asked) -> None:
    made = largest_aim(mean, 1.0, lambda asked: 2 * asked)  # searched for in steps of a 128th
    assert made == (None if asked is None else pytest.approx(asked, abs=1 / 128))
    assert made is None or 2 * made <= mean


def asks(repeat: int, bitrate: dict, slo: SLO) -> list[RequestRecord]:
    """A finer aim takes longer. The spender has twice the distortion that it aims for, in half the time."""
    if "target_distortion" not in bitrate:
        return world(repeat, bitrate, slo)
    spends = 2 if bitrate.get("name") == "spender" else 1
    distortion = spends * bitrate["target_distortion"]
    return [record(1.0 / distortion / spends, distortion)] * 20


def test_other_policies_are_compared_with_the_first_at_no_more_distortion() -> None:
    ours = {"first": OURS, "spender": {**OURS, "name": "spender"}}
    made = compare_within_bounds(asks, 2, 2.0, ours, CACHEGEN, OURS, aim=Aim(0.5, math.inf), slo_share=0.9, slo=SLO(1.0, 0.2))
    assert made.rows["spender"]["distortion_mean"] == pytest.approx(2 * made.rows["first"]["distortion_mean"])
    against = made.even["spender, even"]  # it aims for half, to within a step of the search
    assert 1 - 1.5 / 128 <= against["distortion_mean"]["ratio"] <= 1
    assert [against[f"ttft_{figure}"]["ratio"] for figure in ("mean", "p99", "worst")] == pytest.approx([0.5] * 3, rel=1.5 / 128)
    assert made.plain()["even_against_first"] == made.even


def test_a_policy_that_breaks_the_bounds_is_named() -> None:
    def careless(repeat: int, bitrate: dict, slo: SLO) -> list[RequestRecord]:
        return [record(1.0, 0.5)] if bitrate["_target_"] == "ours" else world(repeat, bitrate, slo)

    made = compared(careless)
    assert made.missing["embedded"].startswith("breaks the bounds: mean 0.5000")


def test_a_fixed_rate_has_the_fields_of_its_class() -> None:
    assert allocated(2.5) == {"_target_": "abkt.policy.bitrate.allocated.Allocated", "bits": 2.5, "order": "slope"}
