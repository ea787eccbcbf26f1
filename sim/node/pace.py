"""The time of decode iterations: piecewise linear in the context, with a step where the batch needs a larger bucket.

Not modelled: steps in the context.
"""

from __future__ import annotations

import math
from bisect import bisect_left

from sim.cost import Costs

Piece = tuple[float, float, float]  # seconds of an iteration now, seconds per further token of context, context up to which this is valid


class Pace:
    """The iteration times of one kind of node.

    buckets: sizes that a batch is padded to, such as those for which CUDA graphs were captured. A batch above the largest bucket is not
    padded, and neither is any batch if there are no buckets. Knots in the context come from the features `context>KNOT` of the profile's
    table `decode`.
    """

    def __init__(self, costs: Costs, buckets: tuple[int, ...] = ()) -> None:
        self.costs = costs
        self.buckets = tuple(sorted(buckets))

    @property
    def overhead_s(self) -> float:
        """Seconds of an iteration that depend on no request."""
        return self.costs.base_s

    def piece(self, batch: int, context: int) -> Piece:
        """Seconds of an iteration of `batch` requests with `context` tokens of KV in all, and the seconds that further tokens add."""
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
