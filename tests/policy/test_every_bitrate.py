"""Properties of every bitrate policy, each tested on all of them."""

from __future__ import annotations

import copy
import inspect
import math
import pkgutil
from dataclasses import replace
from importlib import import_module

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import abkt.policy.bitrate
from abkt.policy.bitrate.budgeted import Budgeted, BudgetedEstimate
from abkt.policy.view import Delivered, GoodputSample
from tests.policy.every import ADAPTIVE, BUDGETED, OFF, OURS, POLICIES, distortion, every, histories, policy, tell, under_way, views


def test_the_list_has_every_policy() -> None:
    modules = [import_module(m.name) for m in pkgutil.walk_packages(abkt.policy.bitrate.__path__, "abkt.policy.bitrate.")]
    made = {
        f"{module.__name__}.{name}"
        for module in modules
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__ == module.__name__ and hasattr(kind, "decide")
    }
    made -= {f"{base.__module__}.{base.__name__}" for base in (Budgeted, BudgetedEstimate)}
    assert made == {config["_target_"] for config in POLICIES.values()}


@every
@settings(max_examples=30)
@given(view=views(klt=True), history=histories, share=st.floats(0, 1), later_s=st.floats(0, 2), price=st.floats(0, 1e-3))
def test_every_policy_chooses_an_existing_cut_and_keeps_sent_bytes(name, view, history, share, later_s, price) -> None:
    of = policy(name)
    tell(of, history)
    first = of.decide(0.0, view)
    if first.mode != "stream":
        assert first.cut == 0
        return
    assert 0 <= first.cut <= view.curve(first.order, first.coder).finest
    assert first.depth_bits in (2, 4, 8)
    now = replace(under_way(view, first, share), price=price)
    for later in (of.decide(later_s, now), of.decide(1e9, now), of.decide(-1e9, now)):
        if later.mode == "raw":
            assert name.startswith("kvserve")  # raw after encoding means: everything that was encoded
            continue
        assert later.mode == "stream"
        assert later.order == first.order
        assert now.sent_cut <= later.cut <= now.curve(later.order).finest


@every
@settings(max_examples=30)
@given(view=views(klt=True), other=views(klt=True), history=histories)
def test_the_same_calls_give_the_same_answers_and_decide_changes_no_state(name, view, other, history) -> None:
    asked, quiet = policy(name), policy(name)
    for i, event in enumerate(history):
        for of in (asked, quiet):
            tell(of, [event], every_s=0.0) if isinstance(event, GoodputSample) else of.delivered(float(i), event)
        asked.decide(float(i), other)  # routing asks about transfers that may never happen
        asked.estimate_bytes_per_s(float(i))
    copied = copy.deepcopy(asked)
    assert asked.decide(9.0, view) == quiet.decide(9.0, view) == copied.decide(9.0, view) == asked.decide(9.0, view)
    assert repr(asked.estimate_bytes_per_s(9.0)) == repr(quiet.estimate_bytes_per_s(9.0))


@every
@settings(max_examples=20)
@given(
    view=views(klt=True),
    rate=st.sampled_from([1e-3, 1.0, 1e12, math.inf]),
    deadline_s=st.sampled_from([-1e12, 0.0, 1e12, math.inf, -math.inf]),
    seen=st.lists(st.sampled_from([(1e-6, 1e6), (1e12, 1e-6), (0.0, 1.0), (5.0, 0.0), (1e9, 1e9)]), max_size=4),
)
def test_no_decision_or_estimate_is_nan(name, view, rate, deadline_s, seen) -> None:
    """For any link, and for one that is only known to be unlimited."""
    of = policy(name, rate)
    tell(of, [GoodputSample(*sample) for sample in seen], every_s=7.0)
    view = replace(view, deadline_s=deadline_s)
    for now_s in (0.0, 40.0):
        decision = of.decide(now_s, view)
        of.delivered(now_s, Delivered(distortion(view, decision), decision, view, 0.1))
        if decision.mode == "stream":
            later = of.decide(now_s + 1, under_way(view, decision, 0.5))
            assert later.mode == "stream"
            assert type(later.cut) is int
    estimate = of.estimate_bytes_per_s(50.0)
    assert estimate > 0 or (
        math.isnan(estimate)
        and name in ("raw", "int8", "int4", "int2", "allocated", "equal", "equal_coded", "lossless", "random", "state_machine")
    )


@pytest.mark.parametrize("name", [name for name in POLICIES if not name.startswith("random")])  # random's draw depends on the deadline
@settings(max_examples=30)
@given(view=views(), rate=st.floats(1e4, 1e8), later_s=st.integers(1, 64))
def test_a_decision_depends_only_on_the_time_left(name, view, rate, later_s) -> None:
    view = replace(view, deadline_s=round(view.deadline_s * 64) / 64)  # sums of such times are exact
    of = policy(name, rate)
    assert of.decide(0.0, view) == of.decide(float(later_s), replace(view, deadline_s=view.deadline_s + later_s))


@pytest.mark.parametrize("name", ADAPTIVE)
@settings(max_examples=30)
@given(view=views(), rate=st.floats(1e4, 1e8), faster=st.floats(1, 10), seconds=st.lists(st.floats(0.01, 2), max_size=5))
def test_more_bandwidth_never_gives_more_distortion(name, view, rate, faster, seconds) -> None:
    def ends_at(rate: float) -> float:
        of = policy(name, rate)
        tell(of, [GoodputSample(rate * s, s) for s in seconds], every_s=2.0)
        return distortion(view, of.decide(12.0, replace(view, deadline_s=view.deadline_s + 12.0)))

    assert ends_at(rate * faster) <= ends_at(rate)


@pytest.mark.parametrize("name", [*OURS, *OFF, "kvserve"])
@given(view=views(klt=True))
def test_raw_is_sent_on_a_very_fast_link(name, view) -> None:
    assert policy(name, 1e15).decide(0.0, replace(view, raw_s=0.0, lossless_encode_s=1e-3)).mode == "raw"


@pytest.mark.parametrize("name", BUDGETED)
@settings(max_examples=30)
@given(st.lists(views(klt=True), min_size=1, max_size=30), st.floats(1e3, 1e7), st.floats(0.001, 0.3), st.floats(1, 8))
def test_the_distortion_budget_is_kept(name, transfers, rate, mean, spread) -> None:
    """The mean is within its limit after every transfer, and no transfer is above the maximum."""
    of = policy(name, rate, target_distortion=0.001, mean_distortion=mean, max_distortion=mean * spread)
    left = []
    for view in transfers:
        view = replace(view, own_slope=None)
        decision = of.decide(0.0, view)
        left.append(distortion(view, decision))
        of.delivered(0.0, Delivered(left[-1], decision, view, 0.1))
        assert sum(left) <= len(left) * mean * (1 + 1e-9)
        assert left[-1] <= mean * spread
