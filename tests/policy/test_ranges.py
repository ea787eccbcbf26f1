"""Ranges of fields: what is in them, what a message says, and where the field's owner stands."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.build import build
from abkt.ranges import OutOfRange, bound, check_seed, short

BANDWIDTH = "abkt.policy.bandwidth.Bandwidth"
EMBEDDED = "abkt.policy.bitrate.embedded.Embedded"


@dataclass
class Owner:
    x: object
    seed: int = 0


numbers = st.floats(-100, 100) | st.integers(-100, 100)


@given(numbers, numbers, numbers)
def test_a_number_is_refused_exactly_if_it_is_outside(x: float, low: float, high: float) -> None:
    for keywords, inside in (
        ({"above": low}, x > low),
        ({"least": low}, x >= low),
        ({"below": high}, x < high),
        ({"most": high}, x <= high),
        ({"least": low, "below": high}, low <= x < high),
        ({"above": low, "most": high}, low < x <= high),
    ):
        for value in (x, [x], (high, x)):
            others = isinstance(value, tuple) and not (high > keywords.get("above", -math.inf) and high >= keywords.get("least", -math.inf))
            others |= isinstance(value, tuple) and not high < keywords.get("below", math.inf)
            if inside and not others:
                bound(Owner(value), "x", **keywords)
            else:
                with pytest.raises(OutOfRange, match=r"^x "):
                    bound(Owner(value), "x", **keywords)


@pytest.mark.parametrize(
    ("value", "keywords", "said"),
    [
        (-1.0, {"above": 0}, "x is -1; it must be above 0"),
        (math.nan, {"above": 0}, "x is nan; it must be above 0"),
        (math.inf, {"above": 0}, "x is inf; it must be above 0"),
        (-math.inf, {"below": 0, "infinite": True}, "x is -inf; it must be below 0, or inf"),
        (7, {"least": 0, "most": 1}, "x is 7; it must be 0 to 1"),
        (70_000, {"least": 0, "most": 65_535}, "x is 70000; it must be 0 to 65,535"),
        (1, {"above": 0, "below": 0.5}, "x is 1; it must be above 0 and below 0.5"),
        ([1, 0], {"above": 0}, "x has 0; it must be above 0"),
        (True, {"above": 0}, "x is True; a number is needed"),
        ("1", {"above": 0}, "x is '1'; a number is needed"),
        (math.nan, {}, "x is nan; it must be finite"),
    ],
)
def test_the_message_says_what_is_possible(value: object, keywords: dict[str, float], said: str) -> None:
    with pytest.raises(OutOfRange) as caught:
        bound(Owner(value), "x", **keywords)
    assert str(caught.value) == said
    assert str(caught.value.under("a.b")) == f"a.b.{said}"


def test_inf_and_null_where_they_have_a_meaning() -> None:
    bound(Owner(math.inf), "x", above=0, most=5, infinite=True)
    bound(Owner(None), "x", above=0)
    with pytest.raises(OutOfRange):
        check_seed(Owner(0, seed=1 << 63))
    check_seed(Owner(0, seed=(1 << 63) - 1))


@pytest.mark.parametrize("value", ["x" * 3000, list(range(3000)), 10**3000, {f"k{i}": i for i in range(99)}])
def test_a_long_value_is_quoted_in_short(value: object) -> None:
    assert len(short(value)) < 120


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"_target_": EMBEDDED, "link": 5}, "link is 5; the fields of a policy are needed"),
        ({"_target_": EMBEDDED, "link": None}, "link is None; the fields of a policy are needed"),
        ({"_target_": EMBEDDED, "link": {"initial_bytes_per_s": 1.0}}, "the fields of a policy are needed, with its class as _target_"),
        ({"_target_": EMBEDDED, "link": {"_target_": BANDWIDTH, "initial_bytes_per_s": -1}}, "link.initial_bytes_per_s is -1; it must be"),
        ({"_target_": BANDWIDTH, "initial_bytes_per_s": True}, "initial_bytes_per_s is True; a number is needed"),
        ({"_target_": "abkt.policy.bitrate.fixed.Fixed", "bits": 4.0}, "bits is 4.0; a whole number is needed"),
        ({"_target_": "abkt.policy.bitrate.fixed.Fixed", "bits": 4, "coder": "zip"}, "coder is 'zip'; it must be fixed or entropy"),
        ({"_target_": "abkt.policy.bitrate.fixed"}, "cannot be found"),
        ({"_target_": "os.getcwd"}, "cannot be found"),
        ({"_target_": 5}, "cannot be found"),
    ],
)
def test_a_policys_fields_have_their_types(config: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        build(config)
    assert "\n" not in str(caught.value)
