"""Which heads of a model the klt coder may transform together."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from abkt.spec import ModelSpec

MOST_CHANNELS = 1024  # of a group: its matrix is stored, and multiplied with every token
LEAST_TOKENS = 4  # of a calibration's prompts, for each channel of a group


def groupings(model: ModelSpec, tokens: int) -> dict[str, np.ndarray]:
    """Candidates by name, [layers, kinds, kv_heads] int16: the number of each head's group.

    K and V of a layer come from the same hidden state, and those of adjacent layers differ little, so they are together. Layers whose
    attention windows differ are never in one group. tokens: of the prompts that a calibration learns from; with too few of them, groups
    are smaller.
    """
    shape = (model.layers, model.kv_kinds, model.kv_heads)
    found = {"each head": np.arange(math.prod(shape), dtype=np.int16).reshape(shape)}
    most, layer = min(MOST_CHANNELS, tokens // LEAST_TOKENS), model.values_per_token // model.layers
    for name, channels in (("a layer", min(most, layer)), ("layers", most)):
        grouped = _grouped(model, channels)
        if not any(np.array_equal(grouped, other) for other in found.values()):
            found[name] = grouped
    return found


def _grouped(model: ModelSpec, channels: int) -> np.ndarray:
    """Groups of at most `channels`: whole layers where they fit, else parts of a layer's heads with their K and V, else single heads."""
    found, count = np.empty((model.layers, model.kv_kinds, model.kv_heads), np.int16), 0
    layer, windows = model.values_per_token // model.layers, np.array(model.layer_windows or (0,) * model.layers)
    together, parts = max(1, channels // layer), min(model.kv_heads, -(-layer // max(1, channels)))
    kinds = [slice(None)] if layer // parts <= channels else [slice(kind, kind + 1) for kind in range(model.kv_kinds)]
    bounds = [part * model.kv_heads // parts for part in range(parts + 1)]
    for window in np.unique(windows):
        layers = np.flatnonzero(windows == window)
        for run in np.array_split(layers, -(-len(layers) // together)):
            for kind, (start, stop) in ((kind, span) for kind in kinds for span in pairwise(bounds)):
                found[run, kind, start:stop] = count
                count += 1
    _, first, number = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first)).astype(np.int16)[number].reshape(found.shape)  # numbered by their first heads
