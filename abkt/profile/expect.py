"""The expected cost of a transfer before it is coded. The simulator and real workers give this view to a bitrate policy."""

from __future__ import annotations

import math

from abkt.policy.view import BitratePolicy, Curve, Decision, TransferView
from abkt.profile.schema import Profile, RateCurve
from abkt.ranges import short


def curve_for(profile: Profile, tokens: int, draw: int = 0, among: int = 4) -> RateCurve:
    """Curve `draw` of the `among` measured ones nearest in length (by ratio); 0: the nearest. Raises ValueError if there are none."""
    if not profile.curves:
        raise ValueError("the profile has no rate curves; run `abkt profile` again")
    nearest = sorted(profile.curves, key=lambda c: abs(math.log(c.tokens / tokens)))[:among]
    return nearest[draw % len(nearest)]


def expected_view(profile: Profile, tokens: int, deadline_s: float, curve: RateCurve | None = None) -> TransferView:
    """The view of a transfer before its first byte. Routing quotes, real workers and the simulator all use this view.

    Parameters
    ----------
    profile : the measured costs of the model on the machine.
    tokens : tokens of KV to transfer.
    deadline_s : when the KV should be usable, on the run's clock.
    curve : the transfer's own rate-distortion curve; None: the nearest measured one.

    Returns
    -------
    The TransferView. It offers the lossless mode and the entropy coder (bytes above 0), and the klt coder (a curve), only if the profile
    has measured their seconds.

    Raises
    ------
    ValueError : if the profile lacks a stage or has no curves.
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
    if curve.klt is not None and profile.has_codec("klt"):
        view.klt = curve.klt.scaled(raw_bytes)
        view.klt_encode_s, view.klt_expand_s = profile.codec_s("klt", tokens)
    return view


def unmeasured_view(raw_bytes: int, deadline_s: float) -> TransferView:
    """The view without a profile: every cut costs 0 s and 0 bytes, so a policy decides by its own rule alone."""
    curve = Curve(bytes=(0.0,) * 4, distortion=(1.0,) * 4, bits=(0.0, 2.0, 4.0, 8.0))
    return TransferView(raw_bytes, deadline_s, slope=curve, uniform=curve, lossless_bytes=raw_bytes)


def check_unit(profile: Profile, calibration: str) -> None:
    """Called before a run on real workers. Raises ValueError, one line, where their streams state another distortion than the profile
    has.

    calibration: digest of the workers' calibration if it predicts divergence (Calibration.predicts); empty: their distortion is a relative
    squared error.
    """
    if theirs := {(c.calibration or "") if c.nats else "" for c in profile.curves} - {calibration}:
        named = [f"in nats of calibration {name}" if name else "a squared error" for name in (min(theirs), calibration)]
        raise ValueError(
            f"the distortion of the profile's curves is {named[0]}, and that of the workers' streams {named[1]}: give calibration= as when "
            "the profile was made, or run `abkt profile` again"
        )


def ask_once(policy: BitratePolicy, profile: Profile) -> None:
    """Called before a run. Raises ValueError, one line, if the policy needs something that the profile lacks, or decides no Decision."""
    decided = policy.decide(0.0, expected_view(profile, tokens=1024, deadline_s=0.0))
    if not isinstance(decided, Decision):
        raise ValueError(f"policy {type(policy).__name__} decides {short(decided)}; a Decision of abkt.policy.view is needed")


def kv_deadline_s(profile: Profile, arrival_s: float, isl: int, slo_ttft_s: float) -> float:
    """When the KV must be usable for TTFT to meet its SLO: that deadline, less one decode iteration of the request alone."""
    return arrival_s + slo_ttft_s - profile.fit("decode").seconds(batch=1, context=isl)
