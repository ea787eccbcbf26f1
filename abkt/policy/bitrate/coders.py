"""A choice between coders: the view of a transfer with one coder alone, and which of two decisions is better.

The fixed and the entropy coder reach the same distortions at the same cuts, so the one that is usable first is better (break_even.py). The
klt coder has a curve of its own, so a decision with it is compared by time and by distortion. All distortions of a view have the same unit;
klt is offered only where that is the divergence of the model's answers.
"""

from __future__ import annotations

from dataclasses import replace

from abkt.policy.view import CoderName, Decision, TransferView


def with_coder(view: TransferView, coder: CoderName) -> TransferView | None:
    """The view of a transfer before encoding, if this coder is the only one; None if it is not offered."""
    if coder == "fixed":
        return replace(view, entropy_share=0.0, klt=None)
    if coder == "klt":
        if view.klt is None:
            return None
        return replace(
            view,
            slope=view.klt,
            uniform=view.klt,
            own_slope=None,
            encode_s=view.klt_encode_s,
            expand_s=view.klt_expand_s,
            entropy_share=0.0,
            klt=None,
        )
    share = view.entropy_share
    if share <= 0:
        return None
    return replace(
        view,
        slope=view.slope.scaled(share),
        uniform=view.uniform.scaled(share),
        own_slope=view.own_slope.scaled(share) if view.own_slope else None,
        encode_s=view.entropy_encode_s,
        expand_s=view.entropy_expand_s,
        entropy_share=0.0,
        klt=None,
    )


def distortion_of(view: TransferView, decision: Decision) -> float:
    """The expected distortion of a decision; 0 for full precision."""
    return view.curve(decision.order, decision.coder).distortion[decision.cut] if decision.mode == "stream" else 0.0


def demerit(usable_s: float, left_s: float, distortion: float, target: float) -> tuple[bool, float, float]:
    """What is worse about a decision, the weightiest first; the lower of two is the better decision.

    In time is better than late. In time, less distortion is better, down to the target; after that, sooner is better. Of two late ones
    the sooner is better, since the distortion budget allows both.

    Parameters
    ----------
    usable_s : seconds until the KV is usable.
    left_s : seconds until it is needed.
    distortion : expected distortion.
    target : distortion below which less is worth no time.
    """
    late = usable_s > left_s
    return late, 0.0 if late else max(distortion, target), usable_s
