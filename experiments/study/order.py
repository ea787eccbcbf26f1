"""The order of a study's real runs: every policy once in each repeat, in a random order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def interleaved(policies: Sequence[str], repeats: int, seed: int) -> list[tuple[int, str]]:
    """(repeat from 1, policy) of each run. A drift of the machine then meets all policies alike."""
    random = np.random.default_rng(seed)
    return [(repeat, policies[i]) for repeat in range(1, repeats + 1) for i in random.permutation(len(policies))]
