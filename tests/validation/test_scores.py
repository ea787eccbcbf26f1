"""Figures of a validation on made-up runs whose errors, noise and regret are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from abkt.profile.schema import Fit, Profile
from abkt.records import SLO, RequestRecord, columns, summarize
from abkt.spec import ModelSpec
from experiments.validation.document import document
from experiments.validation.folder import ValidationCase
from experiments.validation.scores import by_condition, by_stage, coverage, drift, errors, noise, rank_correlation, regrets
from experiments.validation.tables import conditions_table, stages_table, targets_table
from experiments.validation.targets import error_target, targets
from experiments.validation.trust import choices, trust, winner

LIMIT = SLO(ttft_s=1.0, tpot_s=1.0)
LIMITS = {"e2e": 0.05, "ttft": 0.10, "queue": 0.15, "regret": 0.02}


def run(wire_s: float, factor: float = 1.0, count: int = 40) -> list[RequestRecord]:
    """`count` requests of 0.2 s prefill, about wire_s of wire and 0.5 s of decode, all times `factor`."""
    made = []
    for i in range(count):
        r = RequestRecord(i, 100, 12, arrival_s=float(i), prefill_node="p0", decode_node="d0")
        wire = wire_s * (0.5 + i / (count - 1))
        moments = [i + factor * t for t in (0.0, 0.2, 0.2, 0.2 + wire, 0.2 + wire, 0.7 + wire)]
        r.decode_token_s, r.finish_s = moments[4] + factor * 0.05, moments[5]
        r.expose(*moments[:5])
        made.append(r)
    return made


def case(policy: str, predicted: list[RequestRecord], *measured: list[RequestRecord], condition: str = "c") -> ValidationCase:
    frames = [pd.DataFrame(columns(records)) for records in (predicted, *measured)]
    summaries = [summarize(records, LIMIT, 1.0) for records in (predicted, *measured)]
    return ValidationCase(condition, policy, frames[0], tuple(frames[1:]), summaries[0], tuple(summaries[1:]))


def test_errors_and_noise_by_hand() -> None:
    """Predicted 1.0 of everything, measured 0.9 and 1.1 times: error 0 on means; each repeat lies 2/11 and 2/9 from the other."""
    found = errors([case("raw", run(0.4), run(0.4, 0.9), run(0.4, 1.1))])
    row = found[(found.stage == "e2e") & (found["quantile"] == "mean")].iloc[0]
    assert row.error == pytest.approx(0.0, abs=1e-9)
    assert row.noise == pytest.approx((0.2 / 1.1 + 0.2 / 0.9) / 2)
    assert row.measured_low_s == pytest.approx(0.9 * row.measured_s)
    encode = found[(found.stage == "encode") & (found["quantile"] == "mean")].iloc[0]
    assert math.isnan(encode.error)  # nothing to be relative to
    stages = by_stage(found)
    assert not (stages[stages.stage == "queue"].cases > 0).any()  # below 1 % of E2E
    assert noise(np.array([1.0])) is math.nan


def test_a_prediction_that_is_a_tenth_too_long_has_an_error_of_a_tenth() -> None:
    found = by_stage(errors([case("raw", run(0.4, 1.1), run(0.4), run(0.4))]))
    for stage in ("prefill", "wire", "decode", "ttft", "tpot", "e2e"):
        row = found[(found.stage == stage) & (found["quantile"] == "mean")].iloc[0]
        assert (row.error, row.bias, row.noise) == pytest.approx((0.1, 0.1, 0.0), abs=1e-6)


def test_regret_counts_only_what_hardware_can_tell_apart() -> None:
    """The simulator predicts that raw is fast; on hardware half of its requests miss the SLO, and all of int4's keep it."""
    slow, fast = run(1.0), run(0.3)
    wrong = [case("raw", run(0.2), slow, slow), case("int4", fast, fast, fast)]
    (found,) = regrets(wrong, 0.02, LIMIT)
    assert (found.simulated_pick, found.hardware_best) == ("raw", "int4")
    assert found.goodput_share == found.counted == pytest.approx(np.mean([r.ttft_s > 1.0 for r in slow]))
    assert found.goodput_interval.low > 0
    assert found.ttft_s == pytest.approx(0.7)

    one = [replace(r, decode_token_s=r.arrival_s + 1.01) if r.request_id == 7 else r for r in run(0.31)]  # a single late request
    (close,) = regrets([case("raw", run(0.2), one, one), case("int4", fast, fast, fast)], 0.02, LIMIT)
    assert close.goodput_share == pytest.approx(1 / 40)
    assert close.counted == 0.0


def test_a_pick_that_breaks_the_distortion_limit_is_full_regret() -> None:
    lossy = [replace(r, distortion_token_weighted=0.5) for r in run(0.1)]
    cases = [case("int2", run(0.1), lossy, lossy), case("raw", run(0.5), run(0.5), run(0.5))]
    (found,) = regrets(cases, 0.02, LIMIT)
    assert found.simulated_pick == "int2"
    assert found.violates
    met = {target.name: target for target in targets(cases, [found], LIMITS, {})}
    assert met["largest regret"].answer == "not_met"
    assert met["mean E2E error"].answer == "met"


def test_rank_correlation() -> None:
    times = {"raw": 0.5, "int8": 0.4, "int4": 0.3}
    right = [case(name, run(s), run(s * 1.2)) for name, s in times.items()]
    assert rank_correlation(right)["c"]["ttft"] == pytest.approx(1.0)
    reversed_ = [case(name, run(s), run(1 - s)) for name, s in times.items()]
    assert rank_correlation(reversed_)["c"]["ttft"] == pytest.approx(-1.0)
    assert math.isnan(rank_correlation(right[:1])["c"]["ttft"])


def profile(residual: float) -> Profile:
    fit = Fit(("1",), (0.1,), {"tokens": 1.0}, {"tokens": 9.0}, residual, 5)
    names = ("prefill", "decode", "transport", "encode/4", "expand/4")
    return Profile(ModelSpec("m", 1, 1, 8), dict.fromkeys(names, fit), ())


def test_coverage_is_the_share_within_the_simulators_interval() -> None:
    exact = [case("raw", run(0.4), run(0.4))]
    assert coverage(exact, profile(0.01)) == {"ttft": 1.0, "e2e": 1.0}
    off = [case("raw", run(0.4), run(0.4, 1.3))]
    assert coverage(off, profile(0.001))["e2e"] == 0.0
    assert coverage(off, profile(0.5))["e2e"] == 1.0


def test_drift_and_the_document() -> None:
    before, slower = profile(0.1), profile(0.1)
    slower = replace(slower, fits={name: replace(fit, coefficients=(0.12,)) for name, fit in slower.fits.items()})
    changed = drift(before, slower)
    assert changed == pytest.approx(dict.fromkeys(changed, 0.2))
    cases = [case("raw", run(0.4), run(0.4, 0.9), run(0.4, 1.1)), case("int4", run(0.2), run(0.2), run(0.2))]
    found = errors(cases)
    stages, regret = by_stage(found), regrets(cases, 0.02, LIMIT)
    facts = {"cluster": "1P1D on m", "compute": "paced", "device": "cpu", "repeats": 2, "requests": 40, "conditions": {"c": "a link"}}
    facts |= {"policies": ["raw", "int4"], "emulated": ["The link."], "drift": changed, "made": "Predicted today."}
    met, made = targets(cases, regret, LIMITS, {"c": 0.85}), choices(cases, regret, 0.02, LIMIT)
    loads = {"c": {"planned": 0.85, "predicted": 0.8, "measured": 0.9}}
    tables = {
        "Targets": targets_table(met, paced=True),
        "Conditions": conditions_table(by_condition(found), loads, made, paced=True),
        "Errors by stage": stages_table(stages.to_dict("records"), paced=True),
    }
    facts["trust"] = trust(met, made, paced=True)
    text = document(facts, tables, regret, rank_correlation(cases), {"ttft": 0.9, "e2e": math.nan}, {"c": 1.0})
    assert "| mean E2E error | 0 % |" in text
    assert "prefill 20 %" in text
    assert "90 % lie within the simulator's 95 % interval of TTFT and – within" in " ".join(text.split())
    assert "nan" not in text
    assert text.count("circular for prefill and decode") >= 5, "in the line, under the three tables, and under the choice of a policy"
    assert "| prefill (circular) | mean |" in text


# -- targets: met, not met, cannot tell ----------------------------------------------------------------------------------------------


def noisy(factor: float, seed: int, spread: float) -> list[RequestRecord]:
    """Runs whose requests each take a time of their own, `factor` on average."""
    made = run(0.4)
    for record, own in zip(made, factor * (1 + spread * np.random.default_rng(seed).standard_normal(len(made))), strict=True):
        record.decode_token_s = record.arrival_s + own * (record.decode_token_s - record.arrival_s)
    return made


def test_an_error_well_within_the_limit_is_met_and_one_well_above_is_not() -> None:
    near = error_target("e", [case("raw", run(0.4, 1.01), run(0.4, 1.001), run(0.4, 0.999))], "ttft_s", 0.05)
    assert (near.answer, near.words) == ("met", "met")
    assert near.value == pytest.approx(0.01)
    assert near.interval.low <= near.value <= near.interval.high < 0.05
    far = error_target("e", [case("raw", run(0.4, 1.3), run(0.4, 1.001), run(0.4, 0.999))], "ttft_s", 0.05)
    assert (far.answer, far.words) == ("not_met", "not met")


def test_an_error_whose_interval_holds_the_limit_cannot_be_judged() -> None:
    found = error_target("e", [case("raw", run(0.4), noisy(1.06, 1, 0.3), noisy(1.06, 2, 0.3), noisy(1.06, 3, 0.3))], "ttft_s", 0.05)
    assert found.answer == "cannot_tell"
    assert "the interval of the error holds the limit" in found.words


def test_an_error_within_the_machines_own_noise_is_met_and_said_so() -> None:
    found = error_target("e", [case("raw", run(0.4, 1.1), run(0.4, 0.8), run(0.4, 1.3))], "ttft_s", 0.01)
    assert found.noise > 0.3
    assert (found.answer, found.words) == ("met", "met, within the machine's noise")


@pytest.mark.parametrize(
    ("runs", "why"),
    [((run(0.4),), "one repeat does not show"), ((run(0.4, count=20), run(0.4, count=20)), "20 requests of a run completed; at least 30")],
)
def test_one_repeat_or_a_handful_of_requests_judges_nothing(runs: tuple[list[RequestRecord], ...], why: str) -> None:
    cases = [case("raw", run(0.4, count=len(runs[0])), *runs), case("int4", run(0.2, count=len(runs[0])), *runs)]
    met = targets(cases, regrets(cases, 0.02, LIMIT), LIMITS, {"c": 0.85})
    assert {target.answer for target in met} == {"cannot_tell"}
    assert all(why in target.why for target in met)
    if len(runs) == 1:
        table = targets_table(met, paced=False)
        assert {row[4] for row in table.rows} == {"–"}, "noise that was not measured is no noise of 0"
        assert "noise was not measured" in trust(met, choices(cases, regrets(cases, 0.02, LIMIT), 0.02, LIMIT), paced=False)


def test_queueing_is_judged_at_85_percent_alone() -> None:
    cases = [case("raw", run(0.4), run(0.4), run(0.4))]
    names = {target.name: target for target in targets(cases, regrets(cases, 0.02, LIMIT), LIMITS, {"c": 0.7})}
    queue = names["mean queueing error at 85 % utilisation"]
    assert (queue.answer, queue.why) == ("cannot_tell", "no condition has a utilisation of 85 %")


# -- trust ---------------------------------------------------------------------------------------------------------------------------


def test_a_pick_counts_only_where_the_machine_can_tell() -> None:
    """Under `a` int4 is far ahead of raw on the machine, and the simulator says so too; under `b` both are the same."""
    fast, slow = run(0.3), run(1.0)
    cases = [case("raw", slow, slow, slow, condition="a"), case("int4", fast, fast, fast, condition="a")]
    cases += [case("raw", slow, fast, fast, condition="b"), case("int4", fast, fast, fast, condition="b")]
    regret = regrets(cases, 0.02, LIMIT)
    made = choices(cases, regret, 0.02, LIMIT)
    assert [(choice.condition, choice.told_apart, choice.same) for choice in made] == [("a", True, True), ("b", False, True)]
    line = trust(targets(cases, regret, LIMITS, {}), made, paced=False)
    assert "the machine's best policy under 1 of 1 conditions where the machine can tell; under 1 more it cannot" in line
    assert "circular" not in line
    answer = winner(made, cases)
    assert (answer.kind, answer.policy) == ("use", "int4")


def test_a_wrong_pick_counts_against_the_simulator_and_two_winners_are_none() -> None:
    fast, slow = run(0.3), run(1.0)
    cases = [case("raw", fast, slow, slow, condition="a"), case("int4", slow, fast, fast, condition="a")]
    cases += [case("raw", fast, fast, fast, condition="b"), case("int4", slow, slow, slow, condition="b")]
    regret = regrets(cases, 0.02, LIMIT)
    made = choices(cases, regret, 0.02, LIMIT)
    assert [(choice.told_apart, choice.same) for choice in made] == [(True, False), (True, True)]
    assert "under 1 of 2 conditions" in trust(targets(cases, regret, LIMITS, {}), made, paced=False)
    answer = winner(made, cases)
    assert (answer.kind, answer.why) == ("no_answer", "a: int4; b: raw")
