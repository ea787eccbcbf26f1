"""A prompt goes to a prefill node only if it is long and the queue there is short; otherwise the decode node computes it.

    split  iff  isl > local_tokens  and  queued(source) < queue_s

Source: conditional disaggregation of NVIDIA Dynamo, with its two thresholds (the queue in seconds here, in requests there).
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.roles.base import Place, Where
from abkt.policy.roles.static import Static
from abkt.policy.routing.base import RequestView
from abkt.ranges import bound


@dataclass(slots=True)
class Conditional(Static):
    """local_tokens: prompts of at most this length stay on the decode node. queue_s: longest prefill queue, in seconds, to which a prompt
    is sent."""

    local_tokens: int = 512
    queue_s: float = 2.0

    def __post_init__(self) -> None:
        Static.__post_init__(self)
        bound(self, "local_tokens", least=0)
        bound(self, "queue_s", above=0, infinite=True)

    def where(self, now_s: float, request: RequestView, source: Place, target: Place) -> Where:
        return "split" if request.isl > self.local_tokens and source.queued_s < self.queue_s else "target"
