"""Send the bands that remove most distortion per byte first, up to the target or the deadline, within a distortion budget.

The cut is decided again before each frame, so it follows a link that changes during the transfer. Raw or lossless bytes are sent instead
if they are usable no later than the stream at the target, unless only a coarser stream would meet the deadline (break_even.py).

Source: post-compression rate-distortion optimisation (EBCOT, Taubman 2000), applied to the passes of a KV stream; docs/design.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from mypy_extensions import mypyc_attr

from abkt.policy.bitrate.budgeted import BudgetedEstimate


@mypyc_attr(allow_interpreted_subclasses=True)
@dataclass(slots=True)
class Embedded(BudgetedEstimate):
    """Deadline cut of an embedded stream, from an estimate of the link.

    Parameters
    ----------
    link : Bandwidth, the estimate of wire goodput to this peer; the policy plans with its low quantile.
    target_distortion, mean_distortion, max_distortion, refine_distortion : see Budgeted. Relative squared errors.

    Source: EBCOT's rate-distortion optimisation (Taubman 2000), applied to KV.
    """
