"""What a transfer is expected to cost before it is coded: the view both worlds hand to a bitrate policy, from the same Profile."""

from __future__ import annotations

import math
from dataclasses import replace

from abkt.policy.view import BitratePolicy, TransferView
from abkt.profile.schema import Profile, RateCurve


def curve_for(profile: Profile, tokens: int, draw: int = 0, among: int = 4) -> RateCurve:
    """One of the `among` measured curves nearest in length (by ratio); draw 0 is the nearest. Raises ValueError without any."""
    if not profile.curves:
        raise ValueError("the profile has no rate curves; run `abkt profile` again")
    nearest = sorted(profile.curves, key=lambda c: abs(math.log(c.tokens / tokens)))[:among]
    return nearest[draw % len(nearest)]


def expected_view(profile: Profile, tokens: int, deadline_s: float, curve: RateCurve | None = None) -> TransferView:
    """The view of a transfer of `tokens` of KV before its first byte; curve: its own, or None for the nearest measured one."""
    raw_bytes = profile.model.kv_bytes(tokens)
    curve = curve or curve_for(profile, tokens)
    exact = profile.exact_share > 0 and {"encode/exact", "expand/exact"} <= profile.fits.keys()
    return TransferView(
        raw_bytes=raw_bytes,
        deadline_s=deadline_s,
        slope=curve.slope.scaled(raw_bytes),
        uniform=curve.uniform.scaled(raw_bytes),
        encode_s=profile.fit("encode/8").seconds(tokens=tokens),
        expand_s=profile.fit("expand/8").seconds(tokens=tokens),
        raw_s=profile.fit("encode/raw").seconds(tokens=tokens) + profile.fit("expand/raw").seconds(tokens=tokens),
        exact_bytes=raw_bytes * profile.exact_share if exact else 0.0,
        exact_encode_s=profile.fit("encode/exact").seconds(tokens=tokens) if exact else 0.0,
        exact_expand_s=profile.fit("expand/exact").seconds(tokens=tokens) if exact else 0.0,
    )


def with_entropy(profile: Profile, tokens: int, view: TransferView) -> TransferView:
    """The view with what the entropy form is expected to cost, where the profile has measured it."""
    if not (profile.entropy_share > 0 and {"encode/entropy", "expand/entropy"} <= profile.fits.keys()):
        return view
    encode_s, expand_s = (profile.fit(f"{stage}/entropy").seconds(tokens=tokens) for stage in ("encode", "expand"))
    return replace(view, entropy_share=profile.entropy_share, entropy_encode_s=encode_s, entropy_expand_s=expand_s)


def ask_once(policy: BitratePolicy, profile: Profile) -> None:
    """Raises ValueError, one line, where the policy needs what the profile does not have: before a run, not in it."""
    policy.decide(0.0, expected_view(profile, tokens=1024, deadline_s=0.0))


def kv_deadline_s(profile: Profile, arrival_s: float, isl: int, slo_ttft_s: float) -> float:
    """When KV must be usable for the first decoded token to come in time: one iteration, alone in the batch, before the SLO."""
    return arrival_s + slo_ttft_s - profile.fit("decode").seconds(batch=1, context=isl)
