"""Classes of tokens: how much finer the step of a token is, in half octaves, by where the last queries of the prompt look.

The squared gradient of the likelihood rises with the squared attention of the last queries (importance.py) as a power of about one half:
what they do not look at may be looked at later. So a token's step is narrowed by importance**(exponent / 2), relative to the geometric mean
of its head. mixing moves each head towards the mean of its layer's heads, which is the same information less noisily. A token that no later
query can see has no importance; its class is HIDDEN, and it costs nothing. The first tokens are attention sinks in many models: the
calibration holds their least classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST, TOP = -11, 24  # half octaves
HIDDEN = LEAST - 1
FLOOR = 1e-6  # of importance, over its mean
QUARTERS = 2  # classes of planes.py are quarter octaves
SPREAD = 2  # half octaves: a head's step is at most so much wider than that of its group
NEVER = -100_000  # class in planes.py of a token whose coefficients never start


def token_classes(importance: np.ndarray, exponent: float, mixing: float, first: np.ndarray) -> np.ndarray:
    """importance: [kinds, heads, tokens], at least 0. first: [kinds, heads, FIRST_TOKENS]. Returns int32 [kinds, heads, tokens]."""
    x, few = np.nan_to_num(importance.astype(np.float64)), first.shape[-1]
    hidden, counted = x <= 0, slice(few if x.shape[-1] > 2 * few else 0, None)
    relative = x / np.maximum(x[..., counted].mean(-1, keepdims=True), 1e-300)
    log = (1 - mixing) * np.log2(relative + FLOOR) + mixing * np.log2(relative.mean(1, keepdims=True) + FLOOR)
    seen = ~hidden[..., counted]
    centre = np.where(seen, log[..., counted], 0).sum(-1, keepdims=True) / np.maximum(seen.sum(-1, keepdims=True), 1)
    found = np.clip(np.round(exponent * (log - centre)), LEAST, TOP).astype(np.int32)  # half octaves of importance**(exponent / 2)
    start = min(few, found.shape[-1])
    found[..., :start] = np.maximum(found[..., :start], first[..., :start])
    return np.where(hidden, HIDDEN, found)


def plain_classes(kinds: int, heads: int, tokens: int, first: np.ndarray) -> np.ndarray:
    """The classes where no query was observed: all tokens the same, but for the first."""
    found = np.zeros((kinds, heads, tokens), dtype=np.int32)
    start = min(first.shape[-1], tokens)
    found[..., :start] = np.maximum(0, first[..., :start])
    return found


def bounded(classes: np.ndarray, members: Sequence[np.ndarray]) -> np.ndarray:
    """classes: [layers, kinds, heads, tokens]. The same, none more than SPREAD below its group's (members: as in Basis).

    An error in a coefficient is one in all heads of the group. In a head whose step for this token is far wider, it would be larger than
    what the head holds, and the last queries are not certain that nothing will ever look there.
    """
    found = classes.copy()
    for of in members:
        own = classes[tuple(of.T)]
        group = np.maximum(group_classes(own), QUARTERS * HIDDEN) // QUARTERS
        found[tuple(of.T)] = np.maximum(own, group - SPREAD)
    return found


def scale_of(classes: np.ndarray) -> np.ndarray:
    """How much finer the step is, float32."""
    return np.exp2(classes.astype(np.float32) / 2)


def group_classes(classes: np.ndarray) -> np.ndarray:
    """The classes of the tokens of a group for planes.py, int32 [tokens], from those of its heads [heads, tokens]: the mean of the squared
    scales, in quarter octaves, in numbers that are exact on any machine. A token that is hidden in all heads never starts."""
    power = np.left_shift(np.int64(1), classes.astype(np.int64) - HIDDEN).sum(0)
    part, octave = np.frexp(power / len(classes))
    quarters = QUARTERS * (octave + HIDDEN) - (part < 2**-0.25).astype(np.int64) - (part < 2**-0.75)
    return np.where((classes <= HIDDEN).all(0), NEVER, quarters).astype(np.int32)
