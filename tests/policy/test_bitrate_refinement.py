"""How far our policies refine after decoding has begun, and how their budgets count it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.bitrate.budget import Budget
from abkt.policy.build import build
from abkt.policy.view import Delivered, Refined, TransferView
from tests.policy.every import LINE, OURS, SLOPE, UNIFORM, configs, every, policy, views

TARGET = 0.0005  # of SLOPE's finest cut


def refining(name: str, distortion: float = TARGET, **budget: float):
    config = configs(LINE, **budget)[name]
    if "inner" in config:
        return build({**config, "inner": {**config["inner"], "refine_distortion": distortion}})
    return build({**config, "refine_distortion": distortion})


def started(cut: int, price: float = 0.0) -> TransferView:
    sent = SLOPE.bytes[cut]
    return TransferView(1_000_000, -1.0, SLOPE, UNIFORM, raw_s=math.inf, sent_bytes=sent, sent_cut=cut, price=price, started=True)


@every
@given(view=views())
def test_no_refinement_by_default(name, view) -> None:
    assert policy(name).decide(0.0, view).refine_to_cut == 0


@pytest.mark.parametrize("name", OURS)
@given(view=views(), distortion=st.floats(0, 1), cut=st.integers(0, SLOPE.finest))
def test_refinement_reaches_its_distortion_and_no_less(name, view, distortion, cut) -> None:
    of = refining(name, distortion)
    for decision in (of.decide(0.0, replace(view, price=0.0, own_slope=None)), of.decide(0.0, started(cut))):
        if decision.mode == "stream":
            assert decision.refine_to_cut <= SLOPE.finest
            assert SLOPE.distortion[decision.refine_to_cut] <= max(distortion, SLOPE.distortion[-1])
            assert decision.refine_to_cut == 0 or SLOPE.distortion[decision.refine_to_cut - 1] > distortion
    assert of.decide(0.0, started(cut)).cut >= cut


@given(cut=st.integers(0, SLOPE.finest), low=st.floats(0, 1e-3), more=st.floats(0, 1e-3))
def test_fleet_refines_less_at_a_higher_price(cut, low, more) -> None:
    of = refining("fleet")
    cheap, dear = (of.decide(0.0, started(cut, price)).refine_to_cut for price in (low, low + more))
    assert dear <= cheap
    assert SLOPE.distortion[dear] + (low + more) * SLOPE.bytes[dear] <= min(
        d + (low + more) * b for d, b in zip(SLOPE.distortion, SLOPE.bytes, strict=True)
    ) * (1 + 1e-12)


@given(shares=st.lists(st.tuples(st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1))), min_size=1, max_size=40))
def test_the_mean_over_tokens_is_within_the_budget_at_any_time(shares) -> None:
    """Each transfer starts with a share of the allowed distortion; some are refined, and their requests end much later or never."""
    budget, counted, late = Budget(0.0, 0.01, 0.08), [], []
    for start, weighted in shares:
        distortion = start * budget.allowed()
        budget.spend(distortion)
        counted.append(distortion)
        if weighted is not None:
            late.append((len(counted) - 1, Refined(distortion, weighted * distortion)))
        if len(late) > 3:
            index, done = late.pop(0)
            budget.refund(done)
            counted[index] = done.distortion_token_weighted
        assert sum(counted) <= 0.01 * len(counted) + 1e-12


@pytest.mark.parametrize("name", OURS)
def test_distortion_that_refinement_saves_is_available_to_the_next_transfer(name) -> None:
    of = refining(name, mean_distortion=0.01, max_distortion=0.15, target_distortion=0.008)
    view = TransferView(1_000_000, -9.0, SLOPE, UNIFORM, encode_s=0.1, expand_s=0.1, raw_s=9.0, price=1.0)
    first = of.decide(0.0, view)
    for _ in range(40):
        of.delivered(0.0, Delivered(0.01, first, view, 0.1))
    assert of.decide(0.0, view).cut == 4
    for _ in range(20):
        of.refined(0.0, Refined(0.01, 0.002))
    assert of.decide(0.0, view).cut == 2  # late, and the budget allows 0.15 now


def test_fleet_refines_as_far_as_the_price_allows() -> None:
    """By hand: the last two bands of SLOPE remove 1.6e-7 and 3.75e-8 a byte."""
    of = refining("fleet")
    assert of.decide(0.0, started(3, price=2.0e-7)).refine_to_cut == 3
    assert of.decide(0.0, started(3, price=1.0e-7)).refine_to_cut == 4
    assert of.decide(0.0, started(3, price=1.0e-8)).refine_to_cut == 5
