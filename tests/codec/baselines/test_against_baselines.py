"""Our bytes against those of the published baselines at equal error, on KV of a real model. All bytes of both are counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from abkt.codec.baselines import CacheGenCodec, Kivi
from abkt.codec.codec import Codec
from abkt.kv.pool import Pool
from abkt.serve.engine.engine import Engine, read_spec
from abkt.spec import KVLayout
from experiments.lib.paths import data_path
from experiments.probe.tasks import recall_prompt

TOKENS = 2048


@pytest.fixture(scope="module")
def filled():
    """KV of the probe after a prompt of 2,048 tokens."""
    folder = data_path("probe")
    layout = KVLayout(read_spec(folder), TOKENS // 16 + 2)
    engine, table = Engine(folder, layout), list(range(layout.blocks_for(TOKENS)))
    prompt, _ = recall_prompt(np.random.default_rng(0), TOKENS)
    engine.prefill(prompt, table)
    return engine.pool, table, TOKENS


def held(pool, table, tokens):
    return torch.stack([torch.stack(pool.read(table, layer, tokens)) for layer in range(pool.layout.model.layers)]).double()


def nmse(source, result):
    """Mean over (layer, K|V) of squared error over squared deviation from channel means. Verbatim tokens count, with error 0."""
    spread = (source - source.mean(3, keepdim=True)).square().sum((2, 3, 4))
    return float(((source - result).square().sum((2, 3, 4)) / spread).mean())


@pytest.fixture(scope="module")
def ours(filled):
    """(bytes, NMSE) of every second cut of the entropy coder."""
    pool, table, tokens = filled
    source, codec, points = held(*filled), Codec(pool.layout, tile_tokens=256, rope_theta=10_000.0), []
    stream = codec.encode(pool, table, tokens, coder="entropy")
    for cut in range(0, len(stream.ends), 2):
        out = Pool(pool.layout)
        codec.expand(stream.prefix(cut), out, table)
        points.append((stream.ends[cut], nmse(source, held(out, table, tokens))))
    return np.array(points)


@pytest.mark.parametrize(
    ("theirs", "fewer"),
    [(Kivi("k4", 4), 0.2), (Kivi("k2", 2), 0.2), (CacheGenCodec(), 0.3), (CacheGenCodec(coarseness=2.0), 0.3)],
    ids=["kivi4", "kivi2", "cachegen", "coarse cachegen"],
)
def test_the_entropy_coder_takes_fewer_bytes_at_no_more_error(filled, ours, theirs, fewer):
    pool, table, tokens = filled
    message, out = theirs.encode(pool, table, tokens), Pool(pool.layout)
    theirs.expand(message, out, table)
    error = nmse(held(*filled), held(out, table, tokens))
    enough = ours[ours[:, 1] <= error]
    assert len(enough)
    assert enough[:, 0].min() <= (1 - fewer) * len(message)
