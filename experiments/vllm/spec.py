"""A prefill and a decode server of vLLM as a LocalClusterSpec: what profiles, runs and predicts our own workers takes them too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from abkt.policy.build import build
from abkt.policy.view import CoderName
from abkt.serve import LocalClusterSpec
from abkt.serve.engine.compute_dtype import ComputeDtype
from abkt.spec import KVLayout

MOST_TOKENS = 2048  # of a request
KIND = {"raw": "Raw", "lossless": "Lossless", "int8": 8, "int4": 4, "int2": 2}


@dataclass(frozen=True, slots=True)
class VllmSpec(LocalClusterSpec):
    """bitrate: the policy of the prefill server, as abkt.policy.build takes it; requests may ask for one of KIND in its place. deadline_s:
    how long after the ask KV should be usable."""

    bitrate: Mapping[str, Any] | None = None
    deadline_s: float = 10.0

    def layout(self) -> KVLayout:
        """vLLM computes in float32, and so is its KV."""
        layout = LocalClusterSpec.layout(self)
        model = replace(layout.model, dtype="float32", max_tokens=min(layout.model.max_tokens, MOST_TOKENS))
        return replace(layout, model=model)

    def compute_dtype(self) -> ComputeDtype:
        return ComputeDtype("float32", math.nan)

    @property
    def coders(self) -> tuple[CoderName, ...]:
        return ("fixed",)

    def asked(self, bitrate: Mapping[str, Any]) -> str:
        """The `abkt_bitrate` of a request that shall be sent by this policy; empty: the server's own. Raises ValueError, one line, if the
        server cannot send by it."""
        wanted: Any = build(bitrate)
        if self.bitrate is not None and wanted == build(self.bitrate):
            return ""
        kind = type(wanted).__name__
        for name, known in KIND.items():
            if known == kind or (kind == "Fixed" and known == wanted.bits and wanted.coder == "fixed"):
                return name
        raise ValueError(f"vLLM's servers send by {', '.join(KIND)} or by one other policy, the same for all runs; not by {kind}")
