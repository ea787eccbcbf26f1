"""The break-even test against closed forms that were solved by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.bitrate.base import LOSSLESS, RAW
from abkt.policy.bitrate.break_even import coder_for, compression_loses, full_precision_instead, usable_s
from abkt.policy.build import build
from abkt.policy.view import Curve, Decision, TransferView
from tests.policy.every import OFF, SLOPE, UNIFORM, configs, policy, views

STREAM = Decision("stream", "uniform", 1)
case = {
    "raw_bytes": st.integers(1000, 10**9),
    "ratio": st.floats(1.05, 16),
    "encode": st.floats(1e-3, 10),
    "expand": st.floats(1e-3, 10),
    "rate": st.floats(1e3, 1e11),
}


def coded(raw_bytes: int, ratio: float, encode: float, expand: float) -> TransferView:
    curve = Curve((1.0, raw_bytes / ratio), (1.0, 0.0), (0.0, 8.0))
    return TransferView(raw_bytes, 0.0, curve, curve, encode_s=encode, expand_s=expand)


@given(**case)
def test_a_serial_codec_wins_below_its_speed_times_the_bytes_it_saves(raw_bytes, ratio, encode, expand, rate) -> None:
    """B < (1 - 1/r) S with 1/S = 1/S_enc + 1/S_dec."""
    speed = 1 / (encode / raw_bytes + expand / raw_bytes)
    threshold = (1 - 1 / ratio) * speed
    if abs(rate / threshold - 1) > 1e-6:
        assert compression_loses(rate, coded(raw_bytes, ratio, encode, expand), STREAM) == (rate > threshold)


@given(**case)
def test_a_pipelined_codec_wins_below_its_slower_end(raw_bytes, ratio, encode, expand, rate) -> None:
    """B < min(S_enc, S_dec), whatever the ratio."""
    threshold = min(raw_bytes / encode, raw_bytes / expand)
    if abs(rate / threshold - 1) > 1e-6:
        assert compression_loses(rate, coded(raw_bytes, ratio, encode, expand), STREAM, pipelined=True) == (rate > threshold)


@given(view=views(), rate=st.floats(1e3, 1e9), more=st.floats(0, 1))
def test_no_codec_wins_where_raw_is_hidden(view, rate, more) -> None:
    hidden = replace(view, hidden_s=usable_s(rate, view, RAW) + more)
    for decision in (STREAM, LOSSLESS):
        assert compression_loses(rate, hidden, decision)
        assert compression_loses(rate, hidden, decision, pipelined=True)


def test_the_break_even_rates_are_those_worked_out_by_hand() -> None:
    """100 MB, four times smaller, 1 GB/s to encode and 1 GB/s to expand: S = 0.5 GB/s, so up to 0.375 GB/s serial, 1 GB/s pipelined."""
    view = coded(100_000_000, 4.0, 0.1, 0.1)
    assert usable_s(0.25e9, view, STREAM) == pytest.approx(0.1 + 0.1 + 0.1)
    assert usable_s(0.25e9, view, RAW) == pytest.approx(0.4)
    assert [compression_loses(b * 1e9, view, STREAM) for b in (0.25, 0.37, 0.38, 1.0)] == [False, False, True, True]
    assert [compression_loses(b * 1e9, view, STREAM, pipelined=True) for b in (0.25, 0.38, 0.99, 1.0)] == [False, False, False, True]
    # At 0.25 GB/s raw takes 0.4 s and the stream 0.3: where 0.35 s are hidden, raw's 0.05 s still lose; where 0.4 are, nothing is exposed.
    assert [compression_loses(0.25e9, replace(view, hidden_s=h), STREAM) for h in (0.0, 0.35, 0.4)] == [False, False, True]
    half_sent = replace(view, encode_s=0.0, sent_bytes=12.5e6)
    assert usable_s(0.25e9, half_sent, STREAM) == pytest.approx(0.05 + 0.1)


def test_raw_or_lossless_whichever_is_usable_first_and_no_later_than_the_stream() -> None:
    """Lossless: 0.7 of 1 MB, 0.1 s of codec, so sooner than raw below 3 MB/s. The stream: 0.2 MB and 0.5 s."""
    view = TransferView(
        1_000_000, 0.0, SLOPE, UNIFORM, encode_s=0.3, expand_s=0.2, lossless_bytes=7e5, lossless_encode_s=0.06, lossless_expand_s=0.04
    )
    asked = Decision("stream", "slope", 3)

    def instead(rate: float, view: TransferView) -> Decision | None:
        return full_precision_instead(lambda decision: usable_s(rate, view, decision), view, asked, asked, view.hidden_s, 0.0)

    assert [instead(b, view) for b in (1e6, 1.3e6, 2.9e6, 3.1e6)] == [None, LOSSLESS, LOSSLESS, RAW]
    assert instead(1.3e6, replace(view, lossless_bytes=0.0)) is None
    assert instead(1.3e6, replace(view, raw_s=float("inf"), lossless_bytes=0.0, encode_s=0.0)) is None  # it is encoded already


@given(view=views(), rate=st.floats(1e3, 1e9), asked=st.integers(0, 5), sent=st.integers(0, 5))
def test_full_precision_misses_no_deadline_that_the_coarser_stream_keeps(view, rate, asked, sent) -> None:
    def seconds(decision: Decision) -> float:
        return usable_s(rate, view, decision)

    target, coarser = Decision("stream", "slope", asked), Decision("stream", "slope", min(asked, sent))
    decision = full_precision_instead(seconds, view, target, coarser, view.hidden_s, view.deadline_s)
    if decision is not None:
        assert decision in (RAW, LOSSLESS)
        assert seconds(decision) <= max(view.hidden_s, seconds(target))
        if seconds(coarser) <= view.deadline_s and view.hidden_s <= view.deadline_s and sent < asked:
            assert seconds(decision) <= view.deadline_s


@pytest.mark.parametrize("name", OFF)
@given(view=views(), rate=st.floats(1e4, 1e8), pipelined=st.booleans())
def test_off_decides_as_its_inner_policy_or_sends_raw_where_that_is_slower(name, view, rate, pipelined) -> None:
    inner = policy(name.removesuffix("_off"), rate).decide(0.0, view)
    decision = build({**configs(rate)[name], "pipelined": pipelined}).decide(0.0, view)
    assert decision == (RAW if compression_loses(rate, view, inner, pipelined) else inner)


@given(view=views(), rate=st.floats(1e3, 1e9), share=st.floats(0.3, 1.0), encode_s=st.floats(0, 5), expand_s=st.floats(0, 5))
def test_the_entropy_coder_is_chosen_on_slow_links(view, rate, share, encode_s, expand_s) -> None:
    """Bytes saved by the rate, against seconds of coding: so below some rate it wins, above it does not."""
    view = replace(view, entropy_share=share, entropy_encode_s=encode_s, entropy_expand_s=expand_s)
    cut = 4
    saved_bytes = (1 - share) * view.slope.bytes[cut]
    longer_s = encode_s + expand_s - view.encode_s - view.expand_s
    by_hand = "entropy" if saved_bytes > rate * longer_s else "fixed"
    if abs(saved_bytes - rate * longer_s) > 1e-6 * (saved_bytes + rate * abs(longer_s)):
        assert coder_for(rate, view, cut) == by_hand
    if longer_s > 0 and coder_for(rate, view, cut) == "fixed":
        assert coder_for(10 * rate, view, cut) == "fixed"
    assert coder_for(rate, replace(view, entropy_share=0.0), cut) == "fixed"
    assert coder_for(rate, replace(view, sent_bytes=1.0), cut) == "fixed"


@pytest.mark.parametrize("name", ["embedded", "fleet"])
def test_our_policies_choose_the_entropy_coder_where_it_is_faster(name) -> None:
    """At the measured speeds of one core: 15 MB/s against 1 GB/s; a quarter of the bytes saved."""
    view = TransferView(1_000_000, 9.0, SLOPE, UNIFORM, encode_s=1e-3, expand_s=1e-3, raw_s=9.0, entropy_share=0.75)
    view = replace(view, entropy_encode_s=1 / 15, entropy_expand_s=1 / 30)
    assert [policy(name, rate).decide(0.0, view).coder for rate in (1e5, 1e6, 2e6, 1e8)] == ["entropy", "entropy", "fixed", "fixed"]
