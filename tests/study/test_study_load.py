"""Load by the machine: the chosen requests keep the workers as busy as asked, on fast and on slow machines."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.profile.schema import Fit, Profile
from abkt.records import SLO
from abkt.spec import ModelSpec
from experiments.study.load import (  # fmt: skip
    FEWEST,
    LONE,
    MOST,
    MOST_REPEATS,
    PAUSE_S,
    REPEATS,
    WANTED,
    WANTED_REPEATS,
    Aim,
    Costs,
    Given,
    limits,
    plan_load,
    span_s,
)
from sim.workload.requests import Request
from sim.workload.scaling import Scaling

AIM = Aim(load=0.6, budget_s=220.0, policies=7, optional=3)


def machine(token_s: float, iteration_s: float = 0.002, encode_token_s: float = 1e-6, high: float = 2048) -> Profile:
    """Prefill takes token_s a token, a decode iteration takes iteration_s a request."""

    def fit(features: tuple[str, ...], *coefficients: float) -> Fit:
        return Fit(features, coefficients, {"tokens": 64.0}, {"tokens": high}, 0.0, 10)

    codec = {f"{side}/{name}": fit(("1", "tokens"), 0.0, encode_token_s) for side in ("encode", "expand") for name in ("raw", "8")}
    fits = {"prefill": fit(("tokens",), token_s), "decode": fit(("batch",), iteration_s), **codec}
    return Profile(ModelSpec("m", 2, 2, 64), fits, ())


def trace(seed: int = 0, count: int = 200) -> list[Request]:
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(0.3, count))
    lengths = random.lognormal(9.0, 0.8, count).astype(int) + 1
    return [Request(i, float(times[i]), int(lengths[i]), int(random.integers(2, 600))) for i in range(count)]


def test_utilisation_by_hand() -> None:
    """Four requests a second apart arrive within 3 s, 4 s with the last gap. 1 ms a token, 600 tokens each: busy for 0.6 s a second."""
    requests = [Request(i, float(i), 600, 11) for i in range(4)]
    assert span_s(requests) == 4.0
    costs = Costs(machine(1e-3, iteration_s=0.02))
    assert costs.prefill(requests) == pytest.approx(0.6)
    assert costs.decode(requests) == pytest.approx(0.2)  # ten iterations after the first token, 20 ms each
    slo = costs.slo(requests)
    assert slo.ttft_s == pytest.approx(LONE * 0.6, rel=0.01)
    assert slo.tpot_s == pytest.approx(LONE * 0.02)


@given(st.floats(2e-5, 1.5e-3), st.integers(0, 20), st.sampled_from([0.3, 0.6, 0.9]))
def test_any_machine_gets_the_load_that_is_asked_for(token_s: float, seed: int, load: float) -> None:
    """From 0.02 ms a token (a fast core) to 1.5 ms (a slow one in bf16)."""
    aim = Aim(load, 220.0, 7, 3)
    plan = plan_load(trace(seed), machine(token_s), Scaling(), Given(), aim)
    assert plan.prefill == pytest.approx(load, abs=0.01)
    assert plan.decode <= 0.51 or all(r.osl == 8 for r in plan.requests)  # lengths are whole numbers, and no answer is shorter
    assert max(plan.prefill + plan.encode, plan.decode) <= MOST + 1e-9
    assert len(plan.requests) == plan.scaling.requests >= FEWEST
    assert REPEATS <= plan.repeats <= MOST_REPEATS
    assert all(64 <= r.isl <= 2048 for r in plan.requests)
    runs_s = plan.repeats * plan.policies * (plan.span_s + PAUSE_S)
    assert runs_s <= 1.3 * aim.budget_s or (len(plan.requests) == FEWEST and plan.policies == 4)


def test_a_slow_machine_gets_shorter_prompts_and_not_a_longer_study() -> None:
    fast, slow = (plan_load(trace(), machine(token_s), Scaling(), Given(), AIM) for token_s in (2e-4, 8e-4))
    mean = [np.mean([r.isl for r in plan.requests]) for plan in (fast, slow)]
    assert mean[1] < 0.6 * mean[0]
    runs_s = [plan.repeats * (plan.span_s + PAUSE_S) for plan in (fast, slow)]
    assert runs_s[1] == pytest.approx(runs_s[0], rel=0.5)


def test_more_time_gives_more_runs_of_requests_and_five_repeats_where_enough_requests_fit() -> None:
    short, long, longest = (plan_load(trace(), machine(2e-4), Scaling(), Given(), Aim(0.6, s, 7, 3)) for s in (150.0, 220.0, 2000.0))
    ran = [len(plan.requests) * plan.repeats for plan in (short, long, longest)]
    assert ran == sorted(ran)
    assert longest.repeats > WANTED_REPEATS
    assert all(plan.repeats == REPEATS or len(plan.requests) >= WANTED for plan in (short, long, longest))


def test_limits_are_those_of_a_lone_request_or_what_the_queue_needs() -> None:
    """100 requests, the slowest three at 4 s: 98 % need 4 s, and a quarter more is 5 s."""
    ttft_s = [0.5] * 97 + [4.0] * 3
    assert limits(SLO(1.0, 0.1), ttft_s, [0.02, math.nan]) == SLO(5.0, 0.1)
    assert limits(SLO(6.0, 0.01), ttft_s, [0.02, math.nan]) == SLO(6.0, 0.025)


def test_too_little_time_leaves_policies_out_but_keeps_the_others() -> None:
    plan = plan_load(trace(), machine(8e-4), Scaling(), Given(), Aim(0.6, 40.0, 7, 3))
    assert plan.policies == 4


def test_what_is_given_is_kept() -> None:
    given_scaling = Scaling(requests=30, speedup=0.1, isl_scale=0.05, isl_min=64, isl_max=1000, osl_scale=0.02, osl_min=8, osl_max=16)
    plan = plan_load(trace(), machine(1e-4), given_scaling, Given(True, True, True, True), AIM)
    assert plan.scaling == given_scaling
    lengths_only = plan_load(trace(), machine(1e-4), given_scaling, Given(lengths=True), AIM)
    assert lengths_only.scaling.isl_scale == 0.05
    assert lengths_only.prefill == pytest.approx(0.6, abs=0.01)


def test_a_given_load_that_overloads_a_worker_is_refused_with_a_speed_that_fits() -> None:
    """The same lengths at ten times the rate: prefill would have ten times the work."""
    base = Scaling(requests=30, isl_scale=0.05, isl_min=64, isl_max=1000, osl_scale=0.02, osl_min=8, osl_max=16)
    fits = plan_load(trace(), machine(1e-4), base, Given(lengths=True, answers=True, requests=True), AIM)
    given_rate = Scaling(**{**{f: getattr(base, f) for f in base.__dataclass_fields__}, "speedup": fits.scaling.speedup * 10})
    with pytest.raises(ValueError, match=r"busy for 6\d\d% of the time.*workload\.scaling\.speedup=") as refused:
        plan_load(trace(), machine(1e-4), given_rate, Given(True, True, True, True), AIM)
    fitting = float(str(refused.value).partition("speedup=")[2].split()[0])
    assert fitting == pytest.approx(fits.scaling.speedup, rel=0.1)


def test_a_rate_that_encoding_would_overload_is_lowered_and_said() -> None:
    plan = plan_load(trace(), machine(1e-4, encode_token_s=1e-4), Scaling(), Given(), AIM)
    assert plan.prefill + plan.encode == pytest.approx(MOST)
    assert "rate was lowered" in plan.notes[0]


def test_workers_that_share_a_core_leave_room_for_each_other() -> None:
    plan = plan_load(trace(), machine(1e-4), Scaling(), Given(), Aim(0.6, 220.0, 7, 3, shared_core=True))
    assert plan.prefill + plan.decode <= 0.86


def test_requests_that_all_arrive_at_once_have_no_rate() -> None:
    with pytest.raises(ValueError, match="arrive at once"):
        span_s([Request(0, 1.0, 10, 2), Request(1, 1.0, 10, 2)])
