"""Every node prefills and decodes, and a request stays on its node. There is no transfer, but prefill and decoding delay each other.

Source: Sarathi-Serve (OSDI'24), stall-free batching, if the engine chunks prompts; Orca (OSDI'22) if it does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.roles.base import Place, Where
from abkt.policy.roles.static import Static
from abkt.policy.routing.base import RequestView


@dataclass(slots=True)
class Colocated(Static):
    def begin(self, role: str) -> str:
        return "both"

    def where(self, now_s: float, request: RequestView, source: Place, target: Place) -> Where:
        return "target"
