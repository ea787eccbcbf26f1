from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.view import Decision
from abkt.profile.expect import curve_for, expected_view
from abkt.profile.schema import Fit
from sim.cost import Costs
from tests.sim.conftest import exact

tokens = st.integers(1, 5000)


@given(tokens=tokens, batch=st.integers(1, 64), depth=st.sampled_from((2, 4, 8)))
def test_costs_equal_the_profiles_fits(profile, tokens, batch, depth) -> None:
    costs = Costs(profile)
    assert costs.prefill_s(tokens) == pytest.approx(profile.fit("prefill").seconds(tokens=tokens))
    assert costs.iteration_s(batch, tokens) == pytest.approx(profile.fit("decode").seconds(batch=batch, context=tokens))
    stream, raw = Decision("stream", depth_bits=depth), Decision("raw")
    assert costs.encode_s(tokens, stream) == pytest.approx(profile.fit(f"encode/{depth}").seconds(tokens=tokens))
    assert costs.encode_s(tokens, raw) == pytest.approx(profile.fit("encode/raw").seconds(tokens=tokens))
    assert costs.expand_s(tokens, "stream", depth) == pytest.approx(profile.fit(f"expand/{depth}").seconds(tokens=tokens))
    assert costs.expand_s(tokens, "raw") == pytest.approx(profile.fit("expand/raw").seconds(tokens=tokens))


@given(tokens=tokens, bits=st.floats(0, 8), more=st.floats(0, 8))
def test_the_time_to_expand_lies_between_those_of_the_measured_depths(profile, tokens, bits, more) -> None:
    costs = Costs(profile)
    two, four, eight = (profile.fit(f"expand/{depth}").seconds(tokens=tokens) for depth in (2, 4, 8))
    expected = two if bits <= 2 else two + (four - two) * (bits - 2) / 2 if bits <= 4 else four + (eight - four) * (bits - 4) / 4
    assert costs.expand_s(tokens, "stream", bits) == pytest.approx(expected)
    less, more = sorted((bits, more))
    assert costs.expand_s(tokens, "stream", less) <= costs.expand_s(tokens, "stream", more) * (1 + 1e-12)


@given(tokens=tokens, draw=st.integers(0, 1000), count=st.integers(1, 5), deadlines=st.lists(st.floats(0, 9), min_size=2, max_size=3))
def test_a_cached_view_equals_a_newly_made_one(profile, tokens, draw, count, deadlines) -> None:
    fits = {f"{stage}/{whole}": exact({"1": 1.3e-4, "tokens": 3e-6}) for stage in ("encode", "expand") for whole in ("lossless", "entropy")}
    few = replace(profile, curves=profile.curves[:count])
    if count > 2:
        few = replace(few, fits={**few.fits, **fits}, lossless_share=0.7)
    if count > 3:
        few = replace(few, entropy_share=0.8)
    costs = Costs(few)
    for deadline_s in deadlines:
        assert costs.view(tokens, deadline_s) == expected_view(few, tokens, deadline_s)
        own = curve_for(few, tokens, draw)
        shown = replace(expected_view(few, tokens, deadline_s), price=0.3, own_slope=own.slope, hidden_s=0.2)
        assert costs.view(tokens, deadline_s, 0.3, costs.own_slope(tokens, draw), 0.2) == shown
        assert costs.expected(tokens, draw) == expected_view(few, tokens, 0.0, own)


def test_the_entropy_coder_has_the_bytes_and_times_of_its_own_fits(profile) -> None:
    fits = {"encode/entropy": exact({"1": 0.001, "tokens": 1e-3}), "expand/entropy": exact({"tokens": 2e-3})}
    both = replace(profile, fits={**profile.fits, **fits}, entropy_share=0.8)
    costs = Costs(both)
    view = costs.view(100, 1.0)
    assert view == expected_view(both, 100, 1.0)
    assert (view.entropy_share, view.entropy_encode_s, view.entropy_expand_s) == (0.8, pytest.approx(0.101), pytest.approx(0.2))
    assert costs.encode_s(100, Decision("stream", coder="entropy")) == pytest.approx(0.101)
    assert costs.expand_s(100, "stream", 2.7, "entropy") == pytest.approx(0.2)
    assert costs.encode_s(100, Decision("stream")) == pytest.approx(profile.fit("encode/8").seconds(tokens=100))
    with pytest.raises(ValueError, match="no table encode/entropy"):
        Costs(profile).encode_s(100, Decision("stream", coder="entropy"))


def test_values_outside_the_measured_range_count_as_extrapolated(profile) -> None:
    costs = Costs(profile)
    assert costs.prefill_measured(1000)
    assert not costs.prefill_measured(1001)
    assert costs.decode_measured(32, 1, 20_000)
    assert not costs.decode_measured(33, 1, 9)
    assert not costs.decode_measured(1, 1, 20_001)
    assert not costs.decode_measured(1, 0, 9)
    assert costs.codec_measured(10**9)  # without a range in the profile every value counts as measured


def test_a_profile_that_the_simulator_cannot_use_is_refused(profile) -> None:
    def without(stage: str) -> dict[str, Fit]:
        return {name: fit for name, fit in profile.fits.items() if name != stage}

    with pytest.raises(ValueError, match="no table decode"):
        Costs(replace(profile, fits=without("decode")))
    strange = Fit(("batch*context",), (1.0,), {}, {}, 0.0, 0)
    with pytest.raises(ValueError, match=r"decode has the feature batch\*context"):
        Costs(replace(profile, fits={**profile.fits, "decode": strange}))
    with pytest.raises(ValueError, match="take no time"):
        Costs(replace(profile, fits={**profile.fits, "decode": Fit(("1",), (0.0,), {}, {}, 0.0, 0)}))
