from __future__ import annotations

from dataclasses import replace
from math import isnan, sqrt

import numpy as np
import pytest

from abkt.profile.schema import Fit, Profile
from abkt.records import RequestRecord
from sim.interval import intervals, residuals, summary

ERRORS = {"queue": 0.1, "prefill": 0.1, "encode": 0.02, "wire": 0.05, "expand": 0.02, "decode": 0.2}


def arrays(columns: dict[str, list[float]]) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in columns.items()}


def record(**stages: float) -> RequestRecord:
    """A request whose stages follow one another from 5 s on. Its first token comes half way through decoding."""
    made = RequestRecord(0, 10, 10, 5.0, prefill_node="p", decode_node="d")
    for stage, seconds in stages.items():
        setattr(made, f"{stage}_exposed_s", seconds)
    made.finish_s = 5.0 + sum(stages.values())
    made.decode_token_s = made.finish_s - stages["decode"] / 2
    return made


def test_the_interval_of_one_request_is_as_worked_out_by_hand() -> None:
    """Queue 1 s and prefill 2 s at 10 %, wire 3 s at 5 %, decode 4 s at 20 %: sqrt(0.1^2 + 0.2^2 + 0.15^2 + 0.8^2) x 1.96 of E2E 10 s."""
    columns = intervals([record(queue=1, prefill=2, wire=3, decode=4)], {"p": ERRORS, "d": ERRORS})
    for name, seconds, decode in (("ttft", 8.0, 0.4), ("e2e", 10.0, 0.8)):
        half = 1.96 * sqrt(0.1**2 + 0.2**2 + 0.15**2 + decode**2)
        assert columns[f"{name}_low_s"][0] == pytest.approx(seconds - half, rel=1e-3)
        assert columns[f"{name}_high_s"][0] == pytest.approx(seconds + half, rel=1e-3)


def test_an_interval_holds_the_time_as_often_as_it_claims() -> None:
    """The same request is drawn ten thousand times, each stage with a random error of its own size."""
    random, stages = np.random.default_rng(0), {"queue": 0.3, "prefill": 1.0, "encode": 0.2, "wire": 2.0, "expand": 0.1, "decode": 1.5}
    columns = intervals([record(**stages)], {"p": ERRORS, "d": ERRORS})
    happened = sum(seconds * (1 + ERRORS[stage] * random.standard_normal(10_000)) for stage, seconds in stages.items())
    inside = (columns["e2e_low_s"][0] <= happened) & (happened <= columns["e2e_high_s"][0])
    assert inside.mean() == pytest.approx(0.95, abs=0.01)


def test_a_stage_without_a_measured_error_is_named(profile: Profile) -> None:
    measured = Fit(("1",), (0.01,), {}, {}, 0.07, 40)
    known = residuals(replace(profile, fits={**profile.fits, "decode": measured, "encode/4": measured}))
    assert known["decode"] == known["encode"] == 0.07
    assert isnan(known["prefill"])
    columns = intervals([record(prefill=2, decode=1)], {"p": known, "d": known})
    assert columns["e2e_high_s"][0] == pytest.approx(3 + 1.96 * 0.07, rel=1e-3)
    said = summary(arrays(columns), {"p": known, "d": known})
    assert said["error_unknown"] == ["expand", "prefill", "queue", "wire"]
    assert said["e2e_half_width_s"] == pytest.approx(1.96 * 0.07, rel=1e-3)


def test_a_request_that_was_not_completed_has_no_interval() -> None:
    lost = RequestRecord(0, 10, 10, 5.0, outcome="rejected")
    columns = intervals([lost], {"p": ERRORS})
    assert all(isnan(values[0]) for values in columns.values())
    assert isnan(summary(arrays(columns), {"p": ERRORS})["ttft_half_width_s"])
