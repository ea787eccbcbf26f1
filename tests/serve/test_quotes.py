"""The frontend's quote, the worker's decision and the simulator see the same curves and codec times of a transfer."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.policy.view import Curve, Decision, TransferView
from abkt.profile.expect import check_unit, curve_for
from abkt.profile.schema import Fit, Profile, RateCurve
from abkt.serve.commands import StartPrefillRun, WorkerConfig
from abkt.serve.expect import quoted
from abkt.serve.frontend.reservations import Expectations, Reservations
from abkt.serve.worker.run import PrefillRun
from abkt.spec import KVLayout, ModelSpec
from sim.cost import Costs
from sim.transfer.pair import wire_size

MODEL = ModelSpec("m", layers=4, kv_heads=2, head_dim=64, max_tokens=10_000)
LAYOUT = KVLayout(MODEL, blocks=64)
RAW = {"_target_": "abkt.policy.bitrate.fixed.Raw"}
ENTROPY = {"_target_": "abkt.policy.bitrate.fixed.Fixed", "bits": 4, "coder": "entropy"}
TIMES = (
    "encode_s",
    "expand_s",
    "raw_s",
    "lossless_encode_s",
    "lossless_expand_s",
    "entropy_encode_s",
    "entropy_expand_s",
    "klt_encode_s",
    "klt_expand_s",
)
SIZES = ("raw_bytes", "slope", "klt", "uniform", "deadline_s", "lossless_bytes", "entropy_share", "sent_bytes", "sent_cut", "hidden_s")


def line(base_s: float, token_s: float) -> Fit:
    return Fit(("1", "tokens"), (base_s, token_s), {"tokens": 1.0}, {"tokens": 9999.0}, 0.0, 9)


def profile(lossless: bool, entropy: bool, klt: bool = False) -> Profile:
    """A profile in which every codec has a different time, so that a test notices if one is used for another."""
    names = [f"{stage}/{codec}" for codec in ("raw", "2", "4", "8", "lossless", "entropy", "klt") for stage in ("encode", "expand")]
    has = {"lossless": lossless, "entropy": entropy, "klt": klt}
    fits = {name: line(1e-3 * (i + 1), 1e-6 * (i + 1)) for i, name in enumerate(names) if has.get(name.partition("/")[2], True)}
    fits |= {
        "prefill": Fit(("1", "tokens", "tokens*tokens"), (0.01, 1e-4, 1e-8), {}, {}, 0.0, 9),
        "decode": Fit(("1", "batch", "context"), (0.01, 1e-3, 1e-7), {}, {}, 0.0, 9),
        "transport": Fit(("calls", "bytes"), (1e-5, 1e-9), {}, {}, 0.0, 9),
    }
    curves = tuple(
        RateCurve(
            tokens,
            Curve((0.1, 0.2, 0.5), (1.0, left, left / 9), (0.0, 4.0, 8.0)),
            Curve((0.1, 0.3, 0.6), (1.0, left, left / 5), (0.0, 4.0, 8.0)),
            "0123456789abcdef",
            klt,
            Curve((0.02, 0.05, 0.2), (0.7, left, left / 11), (0.0, 4.0, 8.0)) if klt else None,
        )
        for tokens, left in ((64, 0.2), (512, 0.1), (4096, 0.05))
    )
    return Profile(MODEL, fits, curves, lossless_share=0.7 if lossless else 0.0, entropy_share=0.8 if entropy else 0.0)


def workers_view(made: Profile, tokens: int, deadline_s: float, device: str = "cpu") -> TransferView:
    run = PrefillRun(WorkerConfig("p0", "prefill", "", 64, 16, 1), LAYOUT, device)
    run.start(StartPrefillRun(0.0, Capacity.constant(math.inf), RAW, "userspace", made, {}))
    return run.view(SimpleNamespace(price_per_byte=lambda now_s: 0.0), tokens, deadline_s, 0.0)  # type: ignore[arg-type]


@given(st.integers(1, 9999), st.floats(-10, 100), st.booleans(), st.booleans(), st.booleans())
def test_quote_decision_and_simulator_see_the_same_transfer(
    tokens: int, deadline_s: float, lossless: bool, entropy: bool, klt: bool
) -> None:
    made = profile(lossless, entropy, klt)
    quote = Expectations(made, LAYOUT, 1.0).view(tokens, deadline_s)
    decision = workers_view(made, tokens, deadline_s)
    simulated = Costs(made).view(tokens, deadline_s)
    assert quote == decision
    assert (quote.lossless_bytes > 0, quote.entropy_share > 0, quote.klt is not None) == (lossless, entropy, klt)
    for name in SIZES:
        assert getattr(simulated, name) == getattr(quote, name), name
    for name in TIMES:
        assert getattr(simulated, name) == pytest.approx(getattr(quote, name), rel=1e-12), name
    assert quote.slope == curve_for(made, tokens).slope.scaled(MODEL.kv_bytes(tokens))


@given(st.integers(1, 9999), st.sampled_from(["raw", "lossless", "fixed", "entropy", "klt"]), st.integers(0, 2))
def test_a_quote_counts_the_bytes_and_times_of_the_decided_coder(tokens: int, codec: str, cut: int) -> None:
    made = profile(lossless=True, entropy=True, klt=True)
    costs, view = Costs(made), Expectations(made, LAYOUT, 1.0).view(tokens, 0.0)
    decision = Decision(codec) if codec in ("raw", "lossless") else Decision("stream", cut=cut, coder=codec)  # type: ignore[arg-type]
    encode_s, wire_bytes, expand_s = quoted(view, decision)
    assert wire_bytes == pytest.approx(wire_size(decision, view)[0])
    assert encode_s + expand_s == pytest.approx(
        costs.encode_s(tokens, decision) + costs.expand_s(tokens, decision.mode, 8.0, decision.coder)
    )


def test_an_unmeasured_entropy_coder_is_quoted_as_the_fixed_coder() -> None:
    view = Expectations(profile(lossless=True, entropy=False), LAYOUT, 1.0).view(500, 0.0)
    assert quoted(view, Decision("stream", cut=1, coder="entropy")) == quoted(view, Decision("stream", cut=1))


def test_routing_quotes_the_bytes_of_the_entropy_coder() -> None:
    made = profile(lossless=True, entropy=True)
    reservations = Reservations(Expectations(made, LAYOUT, 1.0), ENTROPY, Capacity.constant(1e6))
    reservations.enter("p0", "prefill")
    reservations.enter("d0", "decode")
    view = reservations.expect.view(500, 0.0)
    decision = reservations.pair("p0", "d0").policy.decide(0.0, view)
    assert (decision.coder, decision.cut) == ("entropy", 1)
    wire_s = 0.8 * view.curve(decision.order).bytes[1] / 1e6
    assert reservations.quote_s("p0", "d0", 500, 0.0, 0.0) == pytest.approx(view.entropy_encode_s + wire_s + view.entropy_expand_s)
    reservations.promise(0, "p0", "d0", 500, 9, 0.0)
    assert reservations.pair("p0", "d0").backlog_bytes == pytest.approx(wire_s * 1e6)


@pytest.mark.parametrize("made", [None, profile(lossless=True, entropy=True, klt=True)], ids=["unmeasured", "measured"])
def test_on_a_gpu_neither_side_expects_the_lossless_mode_or_klt(made: Profile | None) -> None:
    quote = Expectations(made, LAYOUT, 1.0, device="cuda").view(300, 2.0)
    on_cpu = Expectations(made, LAYOUT, 1.0).view(300, 2.0)
    assert on_cpu.lossless_bytes > 0
    assert quote == replace(on_cpu, lossless_bytes=0.0, klt=None)
    assert (on_cpu.klt is not None) == (made is not None)
    if made:
        assert workers_view(made, 300, 2.0, "cuda") == quote


def test_a_profile_in_another_unit_than_the_workers_streams_is_refused() -> None:
    nats, squared = profile(lossless=True, entropy=True, klt=True), profile(lossless=True, entropy=True)
    check_unit(nats, "0123456789abcdef")
    check_unit(squared, "")
    with pytest.raises(ValueError, match=r"in nats of calibration 0123456789abcdef, and that of the workers' streams a squared error"):
        check_unit(nats, "")
    with pytest.raises(ValueError, match=r"profile's curves is a squared error, and .* in nats of calibration fedcba9876543210"):
        check_unit(squared, "fedcba9876543210")


def test_klt_needs_its_seconds_and_its_curve() -> None:
    made = profile(lossless=False, entropy=False, klt=True)
    for lacking in ("encode/klt", "expand/klt"):
        fits = {name: fit for name, fit in made.fits.items() if name != lacking}
        assert Expectations(replace(made, fits=fits), LAYOUT, 1.0).view(500, 0.0).klt is None
        assert Costs(replace(made, fits=fits)).view(500, 0.0).klt is None
    with pytest.raises(ValueError, match="all must be of one calibration"):
        replace(made, curves=(*made.curves, profile(lossless=False, entropy=False).curves[0]))
