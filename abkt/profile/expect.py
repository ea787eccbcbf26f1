"""What a transfer is expected to cost before it is coded: the view both worlds hand to a bitrate policy, from the same Profile."""

from __future__ import annotations

import math

from abkt.policy.view import BitratePolicy, Curve, TransferView
from abkt.profile.schema import Profile, RateCurve


def curve_for(profile: Profile, tokens: int, draw: int = 0, among: int = 4) -> RateCurve:
    """One of the `among` measured curves nearest in length (by ratio); draw 0 is the nearest. Raises ValueError without any."""
    if not profile.curves:
        raise ValueError("the profile has no rate curves; run `abkt profile` again")
    nearest = sorted(profile.curves, key=lambda c: abs(math.log(c.tokens / tokens)))[:among]
    return nearest[draw % len(nearest)]


def expected_view(profile: Profile, tokens: int, deadline_s: float, curve: RateCurve | None = None) -> TransferView:
    """The view of a transfer before its first byte, the same for a quote, a real worker's decision and the simulator.

    Parameters
    ----------
    tokens : of KV that travel.
    deadline_s : when the KV should be usable.
    curve : the transfer's own rate curve; None takes the nearest measured one.

    The lossless mode and the entropy coder are offered (bytes above 0) only where the profile has measured them.
    """
    raw_bytes = profile.model.kv_bytes(tokens)
    curve = curve or curve_for(profile, tokens)
    view = TransferView(
        raw_bytes=raw_bytes,
        deadline_s=deadline_s,
        slope=curve.slope.scaled(raw_bytes),
        uniform=curve.uniform.scaled(raw_bytes),
        encode_s=profile.fit("encode/8").seconds(tokens=tokens),
        expand_s=profile.fit("expand/8").seconds(tokens=tokens),
        raw_s=profile.fit("encode/raw").seconds(tokens=tokens) + profile.fit("expand/raw").seconds(tokens=tokens),
    )
    if profile.lossless_share > 0 and profile.has_codec("lossless"):
        view.lossless_bytes = raw_bytes * profile.lossless_share
        view.lossless_encode_s, view.lossless_expand_s = profile.codec_s("lossless", tokens)
    if profile.entropy_share > 0 and profile.has_codec("entropy"):
        view.entropy_share = profile.entropy_share
        view.entropy_encode_s, view.entropy_expand_s = profile.codec_s("entropy", tokens)
    return view


def unmeasured_view(raw_bytes: int, deadline_s: float) -> TransferView:
    """The view where no profile says what coding costs: 0 s and 0 bytes for every cut, so that a policy decides by its own rule alone."""
    curve = Curve(bytes=(0.0,) * 4, distortion=(1.0,) * 4, bits=(0.0, 2.0, 4.0, 8.0))
    return TransferView(raw_bytes, deadline_s, slope=curve, uniform=curve, lossless_bytes=raw_bytes)


def ask_once(policy: BitratePolicy, profile: Profile) -> None:
    """Raises ValueError, one line, where the policy needs what the profile does not have: before a run, not in it."""
    policy.decide(0.0, expected_view(profile, tokens=1024, deadline_s=0.0))


def kv_deadline_s(profile: Profile, arrival_s: float, isl: int, slo_ttft_s: float) -> float:
    """When KV must be usable for the first decoded token to come in time: one iteration, alone in the batch, before the SLO."""
    return arrival_s + slo_ttft_s - profile.fit("decode").seconds(batch=1, context=isl)
