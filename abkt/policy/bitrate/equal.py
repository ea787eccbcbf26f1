"""The same distortion for every request, blind to the link: each request gets the bytes that its own curve needs.

It differs from `allocated`, which gives every request the same bits, and from `embedded`, which also looks at the deadline and the link.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from abkt.policy.bitrate.base import Stateless, refinement_cut, stream
from abkt.policy.view import CoderName, Decision, TransferView
from abkt.ranges import bound


@dataclass(slots=True)
class Equal(Stateless):
    """Every request is cut at the same distortion.

    Parameters
    ----------
    distortion : at the start of decoding, as Budgeted's; the coarsest cut that reaches it is sent.
    refine_distortion : the distortion to refine to after decoding has begun, while the link has nothing more urgent to send; inf: no
        refinement.
    coder : the coder of the passes.
    """

    distortion: float = 0.002
    refine_distortion: float = math.inf
    coder: CoderName = "fixed"

    def __post_init__(self) -> None:
        bound(self, "distortion", least=0)
        bound(self, "refine_distortion", least=0, infinite=True)

    def decide(self, now_s: float, view: TransferView) -> Decision:
        curve = view.curve("slope", self.coder)
        cut = view.sent_cut if view.started else curve.cut_reaching(self.distortion)
        return stream(view, "slope", cut, refine_to_cut=refinement_cut(curve, self.refine_distortion), coder=self.coder)
