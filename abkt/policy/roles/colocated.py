"""Every node does both, and a request stays where it is: no transfer, and prompts and decoding in each other's way.

Source: Sarathi-Serve (OSDI'24), stall-free batching, where the engine's prompts are chunked; Orca (OSDI'22) where they are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.roles.base import Place, Where
from abkt.policy.roles.static import Static
from abkt.policy.view import RequestView


@dataclass(slots=True)
class Colocated(Static):
    def begin(self, role: str) -> str:
        return "both"

    def where(self, now_s: float, request: RequestView, source: Place, target: Place) -> Where:
        return "target"
