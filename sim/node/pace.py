"""How long decode iterations take: linear in the context as far as a piece reaches, with steps where the batch fills a larger bucket.

Not modelled: steps in the context.
"""

from __future__ import annotations

import math
from bisect import bisect_left

from sim.cost import Costs

Piece = tuple[float, float, float]  # seconds of an iteration now, seconds for each more token of context, context that it holds up to


class Pace:
    """buckets: sizes that a batch is padded to (for instance those that CUDA graphs were captured for); above the largest, and without any,
    it is not padded. Knots in the context are those of the profile's table `decode` (features `context>KNOT`)."""

    def __init__(self, costs: Costs, buckets: tuple[int, ...] = ()) -> None:
        self.costs = costs
        self.buckets = tuple(sorted(buckets))

    @property
    def overhead_s(self) -> float:
        """The part of an iteration that depends on no request."""
        return self.costs.base_s

    def piece(self, batch: int, context: int) -> Piece:
        """An iteration of `batch` requests with `context` tokens of KV in all, and what further tokens of context add."""
        costs, until = self.costs, math.inf
        if self.buckets and batch <= self.buckets[-1]:
            batch = self.buckets[bisect_left(self.buckets, batch)]
        slope_s = costs.context_s
        for knot, more_s in costs.context_pieces:
            if context < knot:
                until = knot
                break
            slope_s += more_s
        return costs.iteration_s(batch, context), slope_s, until
