"""The base of ABKT's own policies: a distortion budget, the cut for a deadline, full precision if it is no later, and refinement.

`embedded`, `fleet` and `oracle_bandwidth` send bands in the order of distortion removed per byte (rate-distortion slope). They differ in
their knowledge of the link (`link`) and in where they cut. Where the klt coder is offered, they decide once with it and once without it,
and take the better decision (coders.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

from mypy_extensions import mypyc_attr

from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.base import bytes_in_time, refinement_cut, stream
from abkt.policy.bitrate.break_even import coder_for, full_precision_instead, stream_is_sooner, usable_s
from abkt.policy.bitrate.budget import Budget
from abkt.policy.bitrate.coders import demerit, distortion_of, with_coder
from abkt.policy.view import CoderName, Decision, Delivered, GoodputSample, Refined, TransferView
from abkt.ranges import bound


class Link(Protocol):
    """What a policy knows of the link to its peer: an estimate (Bandwidth), or the true capacity (Capacity)."""


@mypyc_attr(allow_interpreted_subclasses=True)
@dataclass(slots=True)
class Budgeted:
    """Base of the policies that cut one embedded stream within a distortion budget.

    Parameters
    ----------
    link : the link to the peer, as an estimate (Bandwidth) or as its true capacity (Capacity).
    target_distortion : the distortion to reach if time allows. It is a relative squared error: 0 is no error; 1 means that every value is
        its channel's mean. With a calibration that predicts it, it is the divergence of the model's answers in nats a token.
    mean_distortion : limit of the mean over all transfers to this peer.
    max_distortion : limit of each transfer, even if it misses its deadline.
    refine_distortion : the distortion to refine to after decoding has begun, while the link has nothing more urgent to send; inf: no
        refinement.

    Raises
    ------
    ValueError : if 0 <= target_distortion <= mean_distortion <= max_distortion does not hold.
    """

    link: Link
    target_distortion: float = 0.002
    mean_distortion: float = 0.004
    max_distortion: float = 0.016
    refine_distortion: float = math.inf
    _budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        bound(self, "refine_distortion", least=0, infinite=True)
        self._budget = Budget(self.target_distortion, self.mean_distortion, self.max_distortion)

    def delivered(self, now_s: float, done: Delivered) -> None:
        self._budget.spend(done.distortion)

    def refined(self, now_s: float, done: Refined) -> None:
        self._budget.refund(done)

    def decide(self, now_s: float, view: TransferView) -> Decision:
        if view.klt is not None:
            return self._with_klt(now_s, view)
        refine = self._refine_to(view)
        if view.started:  # the promised cut has arrived; only refinement remains
            return stream(view, "slope", view.sent_cut, refine_to_cut=refine)
        asked, rate = self._asked_cut(view), self._planned_bytes_per_s(now_s)
        cut = self._start_cut(now_s, view, asked, rate)
        if view.sent_bytes > 0:
            return stream(view, "slope", cut, refine_to_cut=refine)
        sent = stream(view, "slope", cut, refine_to_cut=refine, coder=self._coder(now_s, view, asked))
        return self._full_precision_instead(now_s, view, asked, sent, rate) or sent

    def _with_klt(self, now_s: float, view: TransferView) -> Decision:
        """The better of the decisions with and without the klt coder."""
        alone = with_coder(view, "klt")
        assert alone is not None
        plain, coded = self.decide(now_s, replace(view, klt=None)), self.decide(now_s, alone)
        if coded.mode != "stream":
            return plain
        coded = stream(alone, coded.order, coded.cut, coded.depth_bits, coded.refine_to_cut, "klt")
        return coded if self._demerit(now_s, view, coded) < self._demerit(now_s, view, plain) else plain

    def _demerit(self, now_s: float, view: TransferView, decision: Decision) -> tuple[bool, float, float]:
        own = with_coder(view, decision.coder) if decision.mode == "stream" else view
        assert own is not None  # a decision names a coder that is offered
        usable_s, left_s = self._expected_s(now_s, own, decision), max(view.hidden_s, view.deadline_s - now_s)
        return demerit(usable_s, left_s, distortion_of(own, decision), self.target_distortion)

    def _expected_s(self, now_s: float, view: TransferView, decision: Decision) -> float:
        """Seconds until the KV is usable, for the choice of a coder."""
        raise NotImplementedError

    def _asked_cut(self, view: TransferView) -> int:
        """The cut to send where time allows."""
        return view.slope.cut_reaching(self.target_distortion)

    def _refine_to(self, view: TransferView) -> int:
        return refinement_cut(view.slope, self.refine_distortion)

    def _planned_bytes_per_s(self, now_s: float) -> float:
        """The rate to plan with, asked once for a decision; nan where the link is known for all time."""
        return math.nan

    def _start_cut(self, now_s: float, view: TransferView, asked: int, rate: float) -> int:
        """The cut at which decoding may begin: as fine as time allows, and fine enough for the budget."""
        cut = self._cut_in_time(now_s, view, asked, rate)
        return cut if cut == asked else max(cut, view.slope.cut_reaching(self._budget.allowed()))

    def _cut_in_time(self, now_s: float, view: TransferView, asked: int, rate: float) -> int:
        """The finest cut, at most `asked`, that is usable by the deadline; 0 if none is."""
        raise NotImplementedError

    def _coder(self, now_s: float, view: TransferView, asked: int) -> CoderName:
        return "fixed"

    def _full_precision_instead(self, now_s: float, view: TransferView, asked: int, sent: Decision, rate: float) -> Decision | None:
        """Raw or lossless in place of the stream `sent`, if break_even.full_precision_instead chooses it. asked: the cut at the target."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
@dataclass(slots=True)
class BudgetedEstimate(Budgeted):
    """Base of the budgeted policies that estimate the link; `link` is a Bandwidth.

    They plan with its low quantile, so that few transfers are late.
    """

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        link: Bandwidth = self.link  # type: ignore[assignment]
        link.update(now_s, sample)

    def estimate_bytes_per_s(self, now_s: float) -> float:
        link: Bandwidth = self.link  # type: ignore[assignment]
        return link.mean_bytes_per_s(now_s)

    def _planned_bytes_per_s(self, now_s: float) -> float:
        link: Bandwidth = self.link  # type: ignore[assignment]
        return link.low_bytes_per_s(now_s)

    def _cut_in_time(self, now_s: float, view: TransferView, asked: int, rate: float) -> int:
        return min(asked, view.slope.cut_within(bytes_in_time(rate, now_s, view)))

    def _coder(self, now_s: float, view: TransferView, asked: int) -> CoderName:
        """By the mean of the rate: after a drop the low quantile would choose the slow coder long after the link has recovered."""
        link: Bandwidth = self.link  # type: ignore[assignment]
        return coder_for(link.mean_bytes_per_s(now_s), view, asked)

    def _expected_s(self, now_s: float, view: TransferView, decision: Decision) -> float:
        link: Bandwidth = self.link  # type: ignore[assignment]
        return usable_s(link.mean_bytes_per_s(now_s), view, decision)

    def _full_precision_instead(self, now_s: float, view: TransferView, asked: int, sent: Decision, rate: float) -> Decision | None:
        if stream_is_sooner(rate, view, asked):
            return None
        target, left_s = stream(view, "slope", asked), view.deadline_s - now_s
        return full_precision_instead(lambda decision: usable_s(rate, view, decision), view, target, sent, view.hidden_s, left_s)
