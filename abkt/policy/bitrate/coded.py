"""Any policy with a list of coders that it may use: each transfer gets the coder whose stream is usable first.

The inner policy decides once for each coder, on the transfer's curve and times with that coder. Of the streams that it chooses, the least
distortion is sent, with the coder that makes a cut of at most this distortion usable first; the first of the list on ties. Raw or lossless
is sent if the policy chooses it whatever the coder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from abkt.capacity import Capacity
from abkt.policy.bitrate.break_even import stage_costs
from abkt.policy.bitrate.coders import distortion_of, with_coder
from abkt.policy.view import BitratePolicy, CoderName, Decision, Delivered, GoodputSample, Refined, TransferView
from abkt.ranges import OutOfRange, short


@dataclass(slots=True)
class Coded:
    """A policy with a choice of coders.

    Parameters
    ----------
    inner : the policy. It must estimate the link, unless there is one coder or `link` is given.
    coders : names of the coders; those that the profile has not measured are left out.
    link : the true capacity of the link, for a bound; None: the inner policy's estimate of the rate.
    """

    inner: BitratePolicy
    coders: Sequence[CoderName] = ("fixed", "entropy")
    link: Capacity | None = None

    def __post_init__(self) -> None:
        known = get_args(CoderName)
        if not self.coders or any(coder not in known for coder in self.coders):
            raise OutOfRange(f"coders is {short(list(self.coders))}; some of {', '.join(known)} must be given")
        if len(self.coders) > 1 and self.link is None and math.isnan(self.inner.estimate_bytes_per_s(0.0)):
            raise OutOfRange(
                f"coders is {short(list(self.coders))}; a policy without an estimate of the link cannot choose, so give one coder"
            )

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        self.inner.observe(now_s, sample)

    def delivered(self, now_s: float, done: Delivered) -> None:
        self.inner.delivered(now_s, done)

    def refined(self, now_s: float, done: Refined) -> None:
        self.inner.refined(now_s, done)

    def decide(self, now_s: float, view: TransferView) -> Decision:
        if view.started or view.sent_bytes > 0 or math.isinf(view.raw_s):  # encoded: the coder holds for the whole transfer
            return self.inner.decide(now_s, view)
        views = {coder: coded for coder in self.coders if (coded := with_coder(view, coder)) is not None}
        if not views:
            raise ValueError(f"the profile has measured none of the coders {', '.join(self.coders)}; run `abkt profile` again")
        decisions = {coder: self.inner.decide(now_s, coded) for coder, coded in views.items()}
        streams = {coder: decision for coder, decision in decisions.items() if decision.mode == "stream"}
        if not streams:
            return next(iter(decisions.values()))
        least = min(distortion_of(views[coder], decision) for coder, decision in streams.items())
        finest = {
            coder: replace(decision, cut=max(decision.cut, views[coder].curve(decision.order).cut_reaching(least)), coder=coder)
            for coder, decision in streams.items()
        }
        best = (
            min(finest, key=lambda coder: self._usable_at_s(now_s, views[coder], finest[coder])) if len(finest) > 1 else next(iter(finest))
        )
        return finest[best]

    def estimate_bytes_per_s(self, now_s: float) -> float:
        return self.inner.estimate_bytes_per_s(now_s)

    def _usable_at_s(self, now_s: float, view: TransferView, decision: Decision) -> float:
        encode_s, wire_bytes, expand_s = stage_costs(view, decision)
        if self.link is not None:
            return self.link.finish_s(now_s + encode_s, wire_bytes) + expand_s
        return now_s + encode_s + wire_bytes / self.inner.estimate_bytes_per_s(now_s) + expand_s
