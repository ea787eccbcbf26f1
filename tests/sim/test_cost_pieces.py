"""Piecewise linear costs equal the profile's own evaluation of the same fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from abkt.profile.schema import Fit, Profile
from sim.cost import Costs


def with_fits(profile: Profile, **tables: dict[str, float]) -> Profile:
    made = {stage: Fit(tuple(t), tuple(t.values()), {}, {}, 0.0, 0) for stage, t in tables.items()}
    return replace(profile, fits={**profile.fits, **made})


def test_piecewise_costs_equal_the_profiles_fits(profile: Profile) -> None:
    decode = {"1": 0.003, "batch": 1e-4, "batch>32": -5e-5, "batch>8": 5e-4, "context": 2e-6}
    prefill = {"1": 0.002, "tokens": 1e-5, "tokens>128": 3e-5, "tokens*tokens": 1e-9}
    pieced = with_fits(profile, decode=decode, prefill=prefill)
    costs = Costs(pieced)
    for batch in (1, 8, 9, 32, 33, 200):
        expected = pieced.fit("decode").seconds(batch=batch, context=batch * 100)
        assert costs.iteration_s(batch, batch * 100) == pytest.approx(expected, rel=1e-12)
    for tokens in (1, 128, 129, 5000):
        assert costs.prefill_s(tokens) == pytest.approx(pieced.fit("prefill").seconds(tokens=tokens), rel=1e-12)


def test_a_knot_in_another_variable_is_refused(profile: Profile) -> None:
    with pytest.raises(ValueError, match="table decode has the feature tokens>9"):
        Costs(with_fits(profile, decode={"1": 0.003, "tokens>9": 1e-6}))
