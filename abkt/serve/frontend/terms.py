"""What holds for all requests of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from abkt.capacity import Capacity
from abkt.profile.schema import Profile
from abkt.serve.commands import StartDecodeRun, StartPrefillRun


@dataclass(frozen=True, slots=True)
class RunTerms:
    """bitrate: a policy's configuration. network: of each NIC; pacing: see abkt.serve.pacing. most_tokens: of one request, prompt and
    output together; limits: the sentence that says where that comes from. replace_dead: start another worker for one that has died.
    longest: the prompt whose KV is sent, where compute is paced; empty: each prompt is computed.
    """

    bitrate: Mapping[str, Any]
    network: Capacity
    pacing: str
    slo_ttft_s: float
    profile: Profile | None
    compute: str = "real"
    most_tokens: int = 0
    limits: str = ""
    replace_dead: bool = False
    longest: tuple[int, ...] = ()

    def start(self, role: str, origin_s: float, peers: Mapping[str, str]) -> StartPrefillRun | StartDecodeRun:
        """What a worker of this role is told. peers: decode worker -> its address."""
        if role == "decode":
            return StartDecodeRun(origin_s, self.network)
        return StartPrefillRun(origin_s, self.network, self.bitrate, self.pacing, self.profile, peers)
