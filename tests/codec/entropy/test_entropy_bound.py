"""The entropy coder against a bound for all uniform scalar quantisers of the same data: ideal code and centroids for each channel."""

import numpy as np
import pytest
import torch

from abkt.codec.codec import Codec
from abkt.codec.entropy.stats import rotated, rotation_of
from abkt.codec.header import verbatim_token_bytes
from abkt.kv.pool import Pool
from abkt.serve.engine.engine import Engine, read_spec
from abkt.spec import KVLayout, ModelSpec
from experiments.lib.paths import data_path
from experiments.probe.tasks import recall_prompt

TOKENS = 2048
WITHIN_BITS = 0.12


def quantised(y: np.ndarray, step: float) -> tuple[float, float]:
    """Squared error and bits a value of strip y [tokens, dim] at one uniform step. Each channel has its own ideal code and centroids."""
    bins = np.round(y / step).astype(np.int64)
    bins -= bins.min(0)
    width = int(bins.max()) + 1
    place = (bins + width * np.arange(y.shape[1])).reshape(-1)
    counts = np.bincount(place, minlength=width * y.shape[1])
    centroids = np.bincount(place, weights=y.reshape(-1), minlength=len(counts)) / np.maximum(counts, 1)
    share = counts[counts > 0] / len(y)
    return float(np.square(y.reshape(-1) - centroids[place]).sum()), float(-(share * np.log2(share)).sum() / y.shape[1])


def least_bits(y: np.ndarray, error: float) -> float:
    """Bits a value at which such a quantiser has this squared error, by bisection on the step."""
    low, high = 1e-4 * y.std(), 8 * y.std()
    for _ in range(18):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if quantised(y, middle)[0] < error else (low, middle)
    return quantised(y, low)[1]


def normal_kv() -> tuple[Pool, list[int], np.ndarray]:
    """KV whose channels have their own mean and spread, in heads of 128; and the varying part of each strip."""
    rng, layout = np.random.default_rng(0), KVLayout(ModelSpec("m", 1, 2, 128), TOKENS // 16)
    pool, table = Pool(layout), list(range(layout.blocks))
    x = rng.standard_normal((2, 2, TOKENS, 128)) * np.exp(0.7 * rng.standard_normal((2, 2, 1, 128))) + 3 * rng.standard_normal(
        (2, 2, 1, 128)
    )
    pool.write(table, 0, 0, *torch.from_numpy(x).bfloat16())
    return pool, table, x.reshape(4, TOKENS, 128)[:, 16:-16]


def probe_kv() -> tuple[Pool, list[int], np.ndarray]:
    """KV of the probe; K without the centre that rotates with the position."""
    folder = data_path("probe")
    layout = KVLayout(read_spec(folder), TOKENS // 16 + 1)
    engine, table = Engine(folder, layout), list(range(layout.blocks_for(TOKENS)))
    engine.prefill(recall_prompt(np.random.default_rng(0), TOKENS)[0], table)
    strips, rotation = [], rotation_of(TOKENS - 32, 64).astype(np.float64)
    for layer in range(layout.model.layers):
        k, v = (x.double().numpy()[:, 16:-16] for x in engine.pool.read(table, layer, TOKENS))
        still = rotated(k, rotation * np.array([1.0, -1.0])[:, None]).mean(1, keepdims=True)
        strips += [k - rotated(still, rotation), v]
    return engine.pool, table, np.concatenate(strips)


@pytest.mark.parametrize(("make", "tile"), [(normal_kv, 128), (probe_kv, 256)], ids=["normal", "probe"])
def test_passes_2_to_4_are_within_an_eighth_of_a_bit_of_the_bound(make, tile):
    """All bytes of the stream but the verbatim tokens count, for cells of 16,384 values."""
    pool, table, strips = make()
    codec = Codec(pool.layout, tile_tokens=tile, rope_theta=10_000.0)
    stream = codec.encode(pool, table, TOKENS, coder="entropy", order="uniform")
    cells = stream.header.cells
    errors = stream.parts.coded.cells.errors.reshape(cells.passes + 1, len(strips), -1).sum(2)
    varying = strips - strips.mean(1, keepdims=True)
    for cut in (2, 3, 4):
        bits = 8 * (stream.ends[cut] - verbatim_token_bytes(cells)) / cells.values.sum()
        least = np.mean([least_bits(y, error) for y, error in zip(varying, errors[cut], strict=True)])
        assert least > cut - 0.5
        assert bits - least <= WITHIN_BITS, f"{bits:.3f} bits where {least:.3f} are needed"
