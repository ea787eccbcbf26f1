"""Bounds, scores and a whole comparison in a world small enough to be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from abkt.records import SLO, RequestRecord
from experiments.adaptation.comparison import Comparison, Contest, compare_within_bounds
from experiments.adaptation.rivals import (
    Aim,
    Bounds,
    allocated,
    coarsest_within,
    finest_levels_within,
    largest_aim,
    largest_within,
    with_bounds,
)
from experiments.adaptation.scores import Score, difference, p99, ratio, within
from experiments.adaptation.worlds import World

OURS = {"_target_": "ours", "target_distortion": 0.0, "mean_distortion": 0.0, "max_distortion": 0.0}
CACHEGEN = {"_target_": "cachegen", "bits": [8, 4, 2]}


def record(ttft_s: float, distortion: float = 0.0, exposed_s: float = 0.0, outcome: str = "completed") -> RequestRecord:
    made = RequestRecord(0, 10, 4, 0.0, outcome=outcome, decode_token_s=ttft_s, finish_s=ttft_s + 1, raw_bytes=100, wire_bytes=25)
    made.wire_exposed_s, made.distortion_token_weighted = exposed_s, distortion
    return made


def compared(world: World, repeats: int = 1, scout: World | None = None, ours: dict | None = None, target: float = 0.1) -> Comparison:
    """Our policies against a fixed rate of 2 bits, with an SLO of 2.5 s."""
    contest = Contest(SLO(2.5, 0.2), ours or {"embedded": OURS}, CACHEGEN, OURS, Aim(target, math.inf), repeats=repeats)
    return compare_within_bounds(world, contest, 2.0, scout)


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

    made = compared(expensive, scout=world)
    assert len(played) == len({repr(bitrate) for bitrate in played})  # and none is run twice
    assert len(made.rows) - 2 <= len(played) <= len(made.rows)
    assert made.rows == compared(world).rows


def test_a_request_that_was_not_completed_has_an_infinite_time() -> None:
    score = Score("any")
    score.add([record(1.0), record(2.0), record(3.0), record(math.nan, outcome="failed")])
    assert score.attainment(2.0) == 0.5
    assert score.row(2.0)["ttft_worst_s"] == math.inf
    assert "ttft_p99_s" not in score.row(2.0)
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


def test_a_p99_of_times_needs_a_hundred_requests_in_every_repeat() -> None:
    score = Score("any")
    score.add([record(float(i)) for i in range(1, 101)])
    assert score.row(50.0)["ttft_p99_s"] == 99.0
    score.add([record(1.0)] * 99)
    assert not score.has_p99
    assert {"ttft_p99_s", "exposed_p99_s"}.isdisjoint(score.row(50.0))


def test_the_difference_of_shares_within_the_slo_by_hand() -> None:
    ours, theirs = [np.array([1.0, 1.0, 1.0, 3.0])] * 3, [np.array([1.0, 1.0, 3.0, 3.0])] * 3
    assert difference(ours, theirs, within(2.0)) == pytest.approx({"difference": 0.25, "low": 0.25, "high": 0.25})


def test_the_largest_aim_within_the_bounds() -> None:
    """A policy that leaves half of what it aims for may aim for 2 D, and one of which a tenth has 4 times its aim for no more than D."""
    assert largest_within(Bounds(0.01), lambda aim: [aim / 2] * 100) == pytest.approx(0.02, rel=0.02)
    assert largest_within(Bounds(0.01), lambda aim: [aim * 0.1] * 90 + [4 * aim] * 10) == pytest.approx(0.02, rel=0.02)  # 8 D at p99
    assert largest_within(Bounds(0.01), lambda aim: [2 * aim]) is None


def kind_of(bitrate: dict) -> tuple[str, dict]:
    """(class, configuration) of the policy within any choice of coders."""
    bitrate = bitrate["inner"] if bitrate["_target_"].endswith(".Coded") else bitrate
    return bitrate["_target_"].rsplit(".", 1)[-1], bitrate


def world(repeat: int, bitrate: dict, slo: SLO) -> list[RequestRecord]:
    """A link of 10 bits/s for even requests and 1 bit/s for odd ones. Distortion is 4 ** -bits. Ours spends its bound on odd requests."""
    kind, policy = kind_of(bitrate)
    slower = 1.5 if "entropy" in bitrate.get("coders", []) and len(bitrate["coders"]) == 1 else 1.0  # this coder never pays here
    records = []
    for i in range(20):
        slow = i % 2 == 1
        if kind == "Allocated":
            bits = policy["bits"] * (2 if policy["order"] == "uniform" else 1)  # a uniform order needs twice the bits
            distortion = 4.0 ** -policy["bits"]
        elif kind == "cachegen":
            bits = 2 * (min(policy["bits"]) if slow else max(policy["bits"]))
            distortion = 4.0 ** (-bits / 2)
        elif kind == "Equal":
            distortion = policy["distortion"]
            bits = -math.log(distortion, 4)
        elif kind == "Bounded":
            distortion = policy["mean_distortion"]
            bits = -math.log(distortion, 4)
        else:
            distortion = policy["mean_distortion"] * (1.9 if slow else 0.1)
            bits = -math.log(distortion, 4)
        seconds = slower * bits / (1 if slow else 10)
        records.append(record(1.0 + seconds, distortion, seconds))
    return records


def test_a_comparison_by_hand() -> None:
    made = compared(world, repeats=3)
    assert made.bounds.mean == pytest.approx(4.0**-2)
    assert made.slo_ttft_s == 2.5  # as it was given, whatever the fixed rate needs: 3 s on the slow link
    assert not made.missing
    assert made.rows["fixed"]["within_slo"] == 0.5
    assert made.rows["uniform"]["ttft_worst_s"] == pytest.approx(5.0)  # 2 levels of it leave as much, at twice the bits
    assert made.rows["cachegen"]["distortion_mean"] <= 4.0**-2
    assert made.rows["equal"]["distortion_mean"] == pytest.approx(4.0**-2)
    assert made.settings["equal"] == "aims for 1.00 D, fixed"
    exposed_s = -math.log(1.9 * 4.0**-2, 4)
    assert made.rows["embedded"]["ttft_worst_s"] == pytest.approx(1 + exposed_s)
    against = made.against["embedded"]
    assert against["fixed"].within_slo == pytest.approx({"difference": 0.0, "low": 0.0, "high": 0.0})
    assert (against["fixed"].on_slo, against["fixed"].exposed_p99) == ("tie", None)  # 20 requests have no p99
    quick_s, slow_s = 1 - math.log(0.1 * 4.0**-2, 4) / 10, 1 + exposed_s
    assert against["fixed"].ttft_mean["ratio"] == pytest.approx((quick_s + slow_s) / (1.2 + 3))
    assert against["oracle"].on_ttft == "tie"
    assert "embedded, fixed coder alone" in against
    assert against["limit"].on_ttft == "lose"


def test_every_rival_gets_the_coder_that_serves_it_best() -> None:
    def entropy_pays(repeat: int, bitrate: dict, slo: SLO) -> list[RequestRecord]:
        share = 0.5 if bitrate.get("coders") == ["entropy"] else 1.0
        return [record(share * r.ttft_s, r.distortion_token_weighted) for r in world(repeat, {**bitrate, "coders": []}, slo)]

    made = compared(entropy_pays, repeats=2)
    chosen = {name: setting.rsplit(", ", 1)[-1] for name, setting in made.settings.items()}
    assert {chosen[name] for name in ("fixed", "uniform", "equal", "spend", "cachegen", "limit")} == {"entropy"}
    assert all(setting.endswith("fixed") for name, setting in compared(world, 2).settings.items() if name in ("fixed", "uniform", "equal"))


@pytest.mark.parametrize(("mean", "asked"), [(3.0, 1.0), (2.0, 1.0), (1.5, 0.75), (0.5, 0.25), (0.4, None)])
def test_the_aim_is_the_largest_with_no_more_distortion_than_another(mean, asked) -> None:
    made = largest_aim(mean, 1.0, lambda asked: 2 * asked)  # searched for in steps of a 128th
    assert made == (None if asked is None else pytest.approx(asked, abs=1 / 128))
    assert made is None or 2 * made <= mean


def asks(repeat: int, bitrate: dict, slo: SLO) -> list[RequestRecord]:
    """A finer aim takes longer. The spender has twice the distortion that it aims for, in half the time."""
    _, policy = kind_of(bitrate)
    if "target_distortion" not in policy:
        return world(repeat, bitrate, slo)
    spends = 2 if policy.get("name") == "spender" else 1
    distortion = spends * policy["target_distortion"]
    return [record(1.0 / distortion / spends, distortion)] * 20


def test_other_policies_are_compared_with_the_first_at_no_more_distortion() -> None:
    made = compared(asks, 2, ours={"first": OURS, "spender": {**OURS, "name": "spender"}}, target=0.5)
    assert made.rows["spender"]["distortion_mean"] == pytest.approx(2 * made.rows["first"]["distortion_mean"])
    against = made.even["spender, even"]  # it aims for half, to within a step of the search
    assert 1 - 1.5 / 128 <= against["distortion_mean"]["ratio"] <= 1
    assert [against[f"ttft_{figure}"]["ratio"] for figure in ("mean", "worst")] == pytest.approx([0.5] * 2, rel=1.5 / 128)
    assert made.plain()["even_against_first"] == made.even


def test_a_policy_that_breaks_the_bounds_is_named() -> None:
    def careless(repeat: int, bitrate: dict, slo: SLO) -> list[RequestRecord]:
        return [record(1.0, 0.5)] if kind_of(bitrate)[0] == "ours" else world(repeat, bitrate, slo)

    made = compared(careless)
    assert made.missing["embedded"].startswith("breaks the bounds: mean 0.5000")


def test_a_fixed_rate_has_the_fields_of_its_class() -> None:
    assert allocated(2.5) == {"_target_": "abkt.policy.bitrate.allocated.Allocated", "bits": 2.5, "order": "slope"}
