"""The settings that hold for all requests of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from abkt.capacity import Capacity
from abkt.profile.schema import Profile
from abkt.serve.commands import StartDecodeRun, StartPrefillRun


@dataclass(frozen=True, slots=True)
class RunTerms:
    """The settings of a run.

    bitrate: a policy's configuration. network: capacity of each NIC. pacing: see abkt.serve.pacing. most_tokens: most tokens of one
    request, prompt and output together; limits: a sentence that gives the reason for this limit. replace_dead: start a new worker for each
    one that dies. longest: with paced compute, the prompt whose KV is sent for all; empty: each prompt is computed.
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
        """The command that starts the run on a worker of this role. peers: decode worker -> its address."""
        if role == "decode":
            return StartDecodeRun(origin_s, self.network)
        return StartPrefillRun(origin_s, self.network, self.bitrate, self.pacing, self.profile, peers)
