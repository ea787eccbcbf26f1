"""The plan of a strip, computed from its statistics: steps, the pass at which each channel starts, and which passes are coded with rANS.
Since both sides have the statistics, cells need not carry the plan.

A strip carries, once per stream, a centre for each channel and a scale: the standard deviation as 2**((code - 128) / 4), code 0 for a
channel that does not vary.

Steps. All channels of a strip have the same step, because equal squared error in all channels gives the least squared error for the bytes
(reverse water-filling: Cover and Thomas, Elements of Information Theory, 10.3.3). Pass 1 has the step at which the channels would take one
bit per value on average; each pass divides it by 2, and passes 5 and 6 by 4. A channel whose deviation is more than 4 steps of pass 1 has a
coarser step, by as few octaves as necessary.

Start. A channel whose deviation is less than 0.42 of a step stays at its centre until the pass whose step is small enough, where it starts.
At every pass there is a bin edge at the centre, so each pass halves or quarters each bin. A bin with the centre in its middle could not be
nested like that; no measurable loss was found in comparison (for normal channels, whatever the factor between their deviations).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from abkt.codec.cells import WIDTHS
from abkt.codec.entropy.tables import LEAST, SAVED, TOP

PASSES = len(WIDTHS)
FINER = tuple(sum(WIDTHS[1 : p + 1]) for p in range(PASSES))  # octaves between the step of pass 1 and that of pass p + 1
FINEST = FINER[-1]
START_AT = -5  # the least class with which a channel starts: 0.42 steps
COARSEST = 8  # the largest class at pass 1: 4 steps
NEVER = PASSES + 1
ORIGIN = 128  # the code of a scale of 1
CODE_FROM = 100  # in 4096ths of a bit per value: pass 3 and later are coded with rANS only if that saves at least this, 0.024 bit
MANTISSAS = (1.0, 19 / 16, 23 / 16, 27 / 16)  # quarter octaves in so few bits that products with a code are exact


@dataclass(frozen=True, slots=True)
class Plan:
    """step: [strips, dim] float32, width of a bin at pass 1. kind: [strips, dim] int32, the class at pass 1 (tables.py). start: [strips,
    dim] int32, the first pass of each channel, or NEVER. coded: [strips, passes] bool, which passes are coded with rANS; the others are
    packed bits."""

    step: np.ndarray
    kind: np.ndarray
    start: np.ndarray
    coded: np.ndarray


def plan_of(log_scale: np.ndarray) -> Plan:
    """The plan of strips with scales log_scale [strips, dim] uint8. Computed in integers, so that every machine gets the same."""
    scale = log_scale.astype(np.int32) - ORIGIN
    varies = log_scale > 0
    candidates = np.arange(-ORIGIN - 8, 256 - ORIGIN + 8, dtype=np.int32)
    quarters = _quarter_bits(log_scale, len(candidates))
    base = candidates[(quarters <= 4 * np.maximum(1, varies.sum(1, keepdims=True))).argmax(1)][:, None]
    kind = np.where(varies, scale - base, -(2**20))
    raised = np.maximum(0, -(-(kind - COARSEST) // 4))
    kind = np.where(varies, kind - 4 * raised, -(2**10)).astype(np.int32)
    code = base + 4 * raised
    step = np.ldexp(np.array(MANTISSAS, dtype=np.float32)[code & 3], code >> 2)
    reached = np.stack([kind + 4 * finer >= START_AT for finer in FINER], -1)
    start = np.where(reached.any(-1), reached.argmax(-1) + 1, NEVER).astype(np.int32)
    return Plan(step, kind, start, _coded(kind, start))


def _quarter_bits(log_scale: np.ndarray, candidates: int) -> np.ndarray:
    """How many quarter bits all channels of a strip take at each candidate of a step: the sum over those that vary of max(0, scale -
    candidate + 8), [strips, candidates]. As many as there are candidates at or above this one, channel by channel: two sums from above."""
    strips = np.arange(len(log_scale))[:, None] * candidates
    place = np.where(log_scale > 0, log_scale.astype(np.int64) + 15, 0)  # the last candidate at which a channel takes any
    found = np.bincount((strips + place).reshape(-1), (log_scale > 0).reshape(-1), len(log_scale) * candidates)
    sums = found.astype(np.int64).reshape(-1, candidates)[:, ::-1].cumsum(1).cumsum(1)
    return sums[:, ::-1]


def _coded(kind: np.ndarray, start: np.ndarray) -> np.ndarray:
    coded = np.ones((len(kind), PASSES), dtype=bool)
    for p in range(3, PASSES + 1):
        parent = kind + 4 * FINER[p - 2]
        halved = (start < p) & (parent <= TOP) & (WIDTHS[p - 1] == 1)
        saved = np.where(halved, SAVED[np.clip(parent, LEAST, TOP) - LEAST], 0).sum(1)
        coded[:, p - 1] = (start == p).any(1) | (saved >= CODE_FROM * (start <= p).sum(1))
    return coded
