"""A bound: `embedded` with the link's true capacity at all times instead of an estimate.

The policy does not know which other transfers will use the link. If a policy does better than this one, its gain comes from capacity that
other transfers leave.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from abkt.capacity import Capacity
from abkt.policy.bitrate.base import stream
from abkt.policy.bitrate.break_even import full_precision_instead, stage_costs
from abkt.policy.bitrate.budgeted import Budgeted
from abkt.policy.view import Decision, GoodputSample, TransferView


@dataclass(slots=True)
class OracleBandwidth(Budgeted):
    """link: a Capacity, the true capacity of the link, on the same clock as now_s. For the distortions see Budgeted."""

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        pass

    def estimate_bytes_per_s(self, now_s: float) -> float:
        link: Capacity = self.link  # type: ignore[assignment]
        return link.at(now_s)[0]

    def _cut_in_time(self, now_s: float, view: TransferView, asked: int, rate: float) -> int:
        in_time = bisect_right(
            range(asked + 1), view.deadline_s, key=lambda cut: self._usable_at_s(now_s, view, Decision("stream", "slope", cut))
        )
        return max(0, in_time - 1)

    def _full_precision_instead(self, now_s: float, view: TransferView, asked: int, sent: Decision, rate: float) -> Decision | None:
        return full_precision_instead(
            lambda decision: self._usable_at_s(now_s, view, decision),
            view,
            stream(view, "slope", asked),
            sent,
            hidden_s=now_s + view.hidden_s,
            deadline_s=view.deadline_s,
            raw_if_hidden=False,
        )

    def _expected_s(self, now_s: float, view: TransferView, decision: Decision) -> float:
        return self._usable_at_s(now_s, view, decision) - now_s

    def _usable_at_s(self, now_s: float, view: TransferView, decision: Decision) -> float:
        """The time at which the KV is usable; inf for a mode that is no longer possible."""
        encode_s, wire_bytes, expand_s = stage_costs(view, decision)
        link: Capacity = self.link  # type: ignore[assignment]
        return link.finish_s(now_s + encode_s, wire_bytes) + expand_s if encode_s < math.inf else math.inf
