"""The list of bitrate policies that every property is tested on, and the transfers they decide."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st

from abkt.policy.build import build
from abkt.policy.view import BitratePolicy, Curve, Decision, Delivered, GoodputSample, TransferView

PACKAGE = "abkt.policy.bitrate"
LINE = 1e6  # bytes/s, the line rate of a state machine
SLOPE = Curve((2e4, 5e4, 1e5, 2e5, 4e5, 6e5), (1.0, 0.4, 0.15, 0.04, 0.008, 0.0005), (0.0, 0.5, 1.2, 2.8, 5.5, 8.0))
KLT = Curve((1e4, 3e4, 9e4, 2e5, 3.5e5), (0.5, 0.06, 0.01, 0.002, 0.0004), (0.0, 1.0, 2.0, 4.0, 8.0))
UNIFORM = Curve((2e4, 1.6e5, 2.9e5, 5.4e5), (1.0, 0.2, 0.01, 0.0003), (0.0, 2.0, 4.0, 8.0))


def configs(rate: float, **budget: float) -> dict[str, dict[str, Any]]:
    """The configuration of every policy, with a link estimate of `rate` bytes/s. budget: limits of our own policies, wide by default."""
    budget = budget or {"mean_distortion": 0.3, "max_distortion": 0.3}

    def link() -> dict[str, Any]:
        return {"_target_": "abkt.policy.bandwidth.Bandwidth", "initial_bytes_per_s": rate, "stale_s": 30.0}

    def made(where: str, **fields: Any) -> dict[str, Any]:
        return {"_target_": f"{PACKAGE}.{where}", **fields}

    plain = {
        "raw": made("fixed.Raw"),
        "int8": made("fixed.Fixed", bits=8),
        "int4": made("fixed.Fixed", bits=4),
        "int2": made("fixed.Fixed", bits=2),
        "allocated": made("allocated.Allocated", bits=2.8),
        "equal": made("equal.Equal", distortion=0.04),
        "lossless": made("lossless.Lossless"),
        "random": made("random.RandomBitrate", seed=3),
        "cachegen": made("published.cachegen.CacheGen", initial_bytes_per_s=rate, chunk_bytes=5e4),
        "lynx": made("published.lynx.Lynx", link=link()),
        "spectrum": made("published.spectrum.Spectrum", link=link()),
        "spectrum of two tiers": made("published.spectrum.Spectrum", link=link(), int4_allowed=False),
        "kvserve": made("published.kvserve.KVServe", link=link()),
        "state_machine": made("published.state_machine.StateMachine", line_rate_bytes_per_s=LINE),
    }
    embedded = made("embedded.Embedded", link=link(), **budget)
    capacity = {"_target_": "abkt.capacity.Capacity", "starts_s": [0.0], "bytes_per_s": [rate]}
    cachegen = plain["cachegen"]
    ours = {
        "embedded": embedded,
        "embedded_bits": made("embedded.EmbeddedBits", link=link(), bits=2.8, **budget),
        "fleet": made("fleet.Fleet", link=link(), **budget),
        "oracle_bandwidth": made("oracle_bandwidth.OracleBandwidth", link=capacity, **budget),
        "oracle_profile": made("oracle_profile.OracleProfile", inner=embedded),
    }
    told = {
        "cachegen_bounded": made("bounded.Bounded", inner=cachegen, **budget),
        "cachegen_slope": made("bounded.Bounded", inner=cachegen, order="slope", **budget),
        "cachegen_coded": made("coded.Coded", inner=cachegen, coders=["fixed", "entropy"]),
        "cachegen_every_coder": made("coded.Coded", inner=cachegen, coders=["fixed", "entropy", "klt"]),
        "equal_coded": made("coded.Coded", inner=plain["equal"], coders=["entropy", "fixed"], link=capacity),
    }
    off = {f"{name}_off": made("off.Off", inner=inner, link=link()) for name, inner in plain.items()}
    return {**plain, **ours, **told, **off}


POLICIES = configs(LINE)
OURS = ["embedded", "embedded_bits", "fleet", "oracle_bandwidth", "oracle_profile"]
BUDGETED = [*OURS, "cachegen_bounded", "cachegen_slope"]
OFF = [name for name in POLICIES if name.endswith("_off")]
ADAPTIVE = [
    *OURS,
    *OFF,
    "cachegen",
    "cachegen_bounded",
    "cachegen_slope",
    "cachegen_coded",
    "lynx",
    "spectrum",
    "spectrum of two tiers",
    "kvserve",
    "state_machine",
]
every = pytest.mark.parametrize("name", POLICIES)


def policy(name: str, rate: float = LINE, **budget: float) -> BitratePolicy:
    return build(configs(rate, **budget)[name])


@st.composite
def views(draw, klt: bool = False) -> TransferView:
    """A transfer of 1 MB before it is encoded. klt: some of them offer the klt coder."""
    return TransferView(
        raw_bytes=1_000_000,
        deadline_s=draw(st.floats(-1, 3)),
        slope=SLOPE,
        uniform=UNIFORM,
        encode_s=draw(st.floats(1e-3, 0.5)),
        expand_s=draw(st.floats(1e-3, 0.5)),
        raw_s=draw(st.floats(0, 0.1)),
        lossless_bytes=7.5e5,
        lossless_encode_s=draw(st.floats(0, 0.2)),
        lossless_expand_s=draw(st.floats(0, 0.2)),
        entropy_share=draw(st.sampled_from([0.0, 0.7])),
        entropy_encode_s=draw(st.floats(1e-3, 1.0)),
        entropy_expand_s=draw(st.floats(1e-3, 1.0)),
        klt=draw(st.sampled_from([None, KLT])) if klt else None,
        klt_encode_s=draw(st.floats(1e-3, 1.0)),
        klt_expand_s=draw(st.floats(1e-3, 1.0)),
        hidden_s=draw(st.sampled_from([0.0, 0.0, 0.3])),
        price=draw(st.one_of(st.just(0.0), st.floats(1e-9, 1e-3))),
        own_slope=draw(st.sampled_from([None, replace(SLOPE.scaled(1e-6), distortion=tuple(d / 2 for d in SLOPE.distortion))])),
    )


def under_way(view: TransferView, decision: Decision, share: float) -> TransferView:
    """The view after a share of the decided bytes was sent."""
    curve = view.curve(decision.order, decision.coder)
    sizes = curve.bytes
    if decision.coder == "klt":
        view = replace(view, slope=curve, uniform=curve)
    sent_bytes = share * sizes[decision.cut]
    sent_cut = next(cut for cut, size in enumerate(sizes) if size >= sent_bytes) if sent_bytes else 0
    return replace(view, encode_s=0.0, raw_s=math.inf, lossless_bytes=0.0, sent_bytes=sent_bytes, sent_cut=sent_cut, klt=None)


samples = st.builds(GoodputSample, st.floats(1.0, 1e6), st.floats(1e-3, 1.0))
decisions = st.sampled_from([Decision("raw"), Decision("lossless"), Decision("stream", "uniform", 2, 4)])
deliveries = st.builds(Delivered, st.floats(0, 0.3), decisions, views(), st.floats(1e-3, 1.0))
histories = st.lists(st.one_of(samples, deliveries), max_size=8)


def tell(of: BitratePolicy, history: list[GoodputSample | Delivered], every_s: float = 1.0) -> None:
    for i, event in enumerate(history):
        (of.observe if isinstance(event, GoodputSample) else of.delivered)(i * every_s, event)  # type: ignore[arg-type]


def distortion(view: TransferView, decision: Decision) -> float:
    return view.curve(decision.order, decision.coder).distortion[decision.cut] if decision.mode == "stream" else 0.0
