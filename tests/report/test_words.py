"""Numbers, dates and links as people write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.capacity import Capacity
from experiments.report import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.size(1.9e13), "19 TB"),
        (words.size(364_665_765_888), "365 GB"),
        (words.size(999_960), "1 MB"),
        (words.size(512), "512 B"),
        (words.size(0), "0 B"),
        (words.seconds(0.0149), "14.9 ms"),
        (words.seconds(3.2e-4), "320 µs"),
        (words.seconds(1.396), "1.4 s"),
        (words.seconds(125), "2 min 5 s"),
        (words.seconds(12_000), "3 h 20 min"),
        (words.seconds(3600), "1 h"),
        (words.seconds(math.nan), "–"),
        (words.ms(0.3), "300.0"),
        (words.percent(0.995), "99.5 %"),
        (words.percent(0.99999), "above 99.9 %"),
        (words.percent(1), "100 %"),
        (words.percent(1e-6), "below 0.1 %"),
        (words.change(-0.0312), "−3.1 %"),
        (words.change(1e-9), "0.0 %"),
        (words.interval(-0.012, 0.034), "[−1.2, +3.4] %"),
        (words.interval(None, 0.1), "–"),
        (words.number(0.00093204), "0.000932"),
        (words.number(12_345.6), "12,300"),
        (words.number(1e-5), "0.00001"),
        (words.number(3), "3"),
        (words.number("as it is"), "as it is"),
        (words.number(None), "–"),
        (words.plural(1, "request"), "1 request"),
        (words.plural(12_031, "request"), "12,031 requests"),
        (words.date("2026-11-29T16:27:05+00:00"), "29 November 2026, 16:27 UTC"),
    ],
)
def test_as_people_write_it(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize(
    ("starts_s", "mbit_per_s", "period_s", "expected"),
    [
        ((0.0,), (math.inf,), math.inf, "an unlimited link"),
        ((0.0,), (5000,), math.inf, "a link of 5 Gbit/s"),
        ((0.0, 6.0), (80, 8), 12.0, "a link that swings between 80 and 8 Mbit/s every 6 s"),
        ((0.0, 6.0), (2000, 80), 12.0, "a link that swings between 2 Gbit/s and 80 Mbit/s every 6 s"),
        ((0.0, 4.0), (80, 8), 12.0, "a link that repeats 80 Mbit/s for 4 s, then 8 Mbit/s for 8 s"),
        ((0.0, 15.0, 30.0), (80, 8, 80), 60.0, "a link of 80 Mbit/s that falls to 8 Mbit/s for 15 s every 60 s"),
        ((0.0, 4.0), (80, 8), math.inf, "a link of 80 Mbit/s that falls to 8 Mbit/s after 4 s"),
        ((0.0, 1.0, 2.0, 3.0), (10, 20, 30, 8), 4.0, "a link that changes between 8 and 30 Mbit/s, with 4 rates, repeated every 4 s"),
    ],
)
def test_a_link_in_words(starts_s: tuple[float, ...], mbit_per_s: tuple[float, ...], period_s: float, expected: str) -> None:
    capacity = Capacity(starts_s, tuple(rate * 1e6 / 8 for rate in mbit_per_s), period_s)
    assert words.link(capacity) == expected
    assert words.link(capacity, delay_s=0.02, loss=0.01) == f"{expected}, 20 ms away, losing 1 % of packets"


@given(st.floats(1e-7, 1e14))
def test_a_number_is_right_to_three_digits_and_has_no_exponent(value: float) -> None:
    text = words.number(value)
    assert "e" not in text
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.0051)
