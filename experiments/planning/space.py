"""The splits xPyD within a budget, and how few instances could do the work at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from abkt.records import SLO
from sim.cost import Costs
from sim.specs import EngineSpec
from sim.workload.requests import Request


@dataclass(frozen=True, slots=True, order=True)
class Split:
    """xPyD: x instances that prefill and y that decode."""

    prefill: int
    decode: int

    def __str__(self) -> str:
        return f"{self.prefill}P{self.decode}D"

    def within(self, other: Split) -> bool:
        """Whether the other has at least as many instances of each role."""
        return self.prefill <= other.prefill and self.decode <= other.decode


@dataclass(frozen=True, slots=True)
class Price:
    """An instance of one role: its GPUs and its price."""

    gpus: int
    usd_per_hour: float


@dataclass(frozen=True, slots=True)
class Space:
    """The splits that a budget allows.

    Parameters
    ----------
    prefill, decode : an instance of each role.
    max_gpus, max_usd_per_hour : the budget of the whole cluster; inf: no limit.

    Raises
    ------
    ValueError
        One line, where not even 1P1D is within the budget, or the budget is no limit.
    """

    prefill: Price
    decode: Price
    max_gpus: float
    max_usd_per_hour: float

    def __post_init__(self) -> None:
        if math.isinf(self.max_gpus) and (
            math.isinf(self.max_usd_per_hour) or min(self.prefill.usd_per_hour, self.decode.usd_per_hour) <= 0
        ):
            raise ValueError("the plan has no limit: give max_gpus=N, or max_usd_per_hour=USD with GPUs that have a price")
        if not self.affords(Split(1, 1)):
            raise ValueError(
                f"1P1D needs {self.gpus(Split(1, 1))} GPUs and {self.usd_per_hour(Split(1, 1)):g} USD/hour, more than the budget: "
                "give a larger max_gpus or max_usd_per_hour"
            )

    def gpus(self, split: Split) -> int:
        return split.prefill * self.prefill.gpus + split.decode * self.decode.gpus

    def usd_per_hour(self, split: Split) -> float:
        return split.prefill * self.prefill.usd_per_hour + split.decode * self.decode.usd_per_hour

    def affords(self, split: Split) -> bool:
        return self.gpus(split) <= self.max_gpus and self.usd_per_hour(split) <= self.max_usd_per_hour * (1 + 1e-9)

    def splits(self) -> list[Split]:
        """All of them, the cheapest first; of the same price those with fewer GPUs first."""
        found, prefill = [], 1
        while self.affords(Split(prefill, 1)):
            decode = 1
            while self.affords(Split(prefill, decode)):
                found.append(Split(prefill, decode))
                decode += 1
            prefill += 1
        return sorted(found, key=lambda split: (self.usd_per_hour(split), self.gpus(split), split))

    def largest(self) -> Split:
        """The most instances of each role that the budget allows; both together are beyond it."""
        splits = self.splits()
        return Split(max(s.prefill for s in splits), max(s.decode for s in splits))


def fewest(requests: Sequence[Request], prefill: Costs, decode: Costs, slo: SLO, share: float, max_batch: int, engine: EngineSpec) -> Split:
    """A lower bound: with fewer instances of a role there is not enough time for the work of `share` of the requests, whatever the policy.

    The cheapest `share` of the requests is counted. Their prompts have to be computed before the last arrival plus the TTFT limit, and
    their tokens before the last one may be late. A token costs at least its share of the most efficient batch, and the read of its own
    prompt.
    An engine that computes prompts together or caches prefixes may need less time for a prompt, so prefill then has no bound but 1.
    """
    needed, last_s = math.ceil(share * len(requests)), requests[-1].arrival_s
    prompts_s = 0.0
    if not engine.prefill_tokens and not engine.hash_tokens:
        prompts_s = sum(sorted(prefill.prefill_s(request.isl) for request in requests)[:needed])
    token_s = min(decode.iteration_s(batch, 0) / batch for batch in range(1, max_batch + 1))
    rising = all(slope >= 0 for _, slope in decode.context_pieces)
    context_s = decode.context_s if rising else 0.0
    tokens_s = sum(sorted((token_s + context_s * r.isl) * max(0, r.osl - 2) for r in requests)[:needed])
    late_s = last_s + slo.ttft_s + slo.tpot_s * max(request.osl for request in requests)
    return Split(max(1, math.ceil(prompts_s / (last_s + slo.ttft_s))), max(1, math.ceil(tokens_s / late_s)))
