"""A request with its arrival time and lengths.

Not modelled: requests that depend on the answer to another one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a workload.

    Parameters
    ----------
    request_id : number in the trace, or counted from 0.
    arrival_s : seconds since the start of the run.
    isl, osl : prompt and output tokens, each at least 1.
    hash_ids : hashes of the prompt's prefix blocks, in order; empty where the trace has none.
    hash_tokens : prompt tokens that a hash stands for; 0: not known.

    Raises
    ------
    ValueError : a value is out of range.
    """

    request_id: int
    arrival_s: float
    isl: int
    osl: int
    hash_ids: tuple[int, ...] = ()
    hash_tokens: int = 0

    def __post_init__(self) -> None:
        if self.isl < 1 or self.osl < 1:
            raise ValueError(f"request {self.request_id}: isl is {self.isl} and osl {self.osl}; both must be at least 1")
        if not 0 <= self.arrival_s < math.inf:
            raise ValueError(f"request {self.request_id}: arrival is {self.arrival_s} s; it must be finite and not negative")
