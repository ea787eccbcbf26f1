"""Answers whose tokens are given: vLLM then tells how likely it finds a known text after KV that was loaded.

vLLM gives no log probabilities of a prompt whose KV was loaded. So the text is decoded token by token like any answer. The log
probabilities are those before this processor (`logprobs_mode` raw_logprobs, vLLM's default). It runs inside vLLM: the server has
`--logits-processors experiments.vllm.forced:Forced`, and a request `"vllm_xargs": {"forced": [token ids]}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor


class Forced(AdapterLogitsProcessor):
    """Leaves only the next given token, as long as there is one."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> Callable[[list[int], torch.Tensor], torch.Tensor] | None:
        given = (params.extra_args or {}).get("forced")
        return force([int(each) for each in given]) if given else None


def force(given: list[int]) -> Callable[[list[int], torch.Tensor], torch.Tensor]:
    def processor(output: list[int], logits: torch.Tensor) -> torch.Tensor:
        if len(output) < len(given):
            allowed = torch.full_like(logits, -torch.inf)
            allowed[given[len(output)]] = 0.0
            return allowed
        return logits

    return processor
