"""Importance against measurements of how far errors in K and V move the attention output."""

import numpy as np
import pytest
import torch

from abkt.codec.calibration import Calibration
from abkt.codec.cells import Cells
from abkt.codec.codec import Codec
from abkt.codec.importance import Importance, weights_of
from abkt.kv.pool import Pool


def attention(query, key, value, scale):
    """The definition of attention, one query head and position at a time: [heads, window, dim]."""
    heads, window, _ = query.shape
    group, tokens = heads // key.shape[0], key.shape[1]
    out = torch.zeros_like(query)
    for head in range(heads):
        for i in range(window):
            seen = tokens - window + i + 1
            logits = (key[head // group, :seen] @ query[head, i]) * scale
            out[head, i] = torch.softmax(logits, 0) @ value[head // group, :seen]
    return out


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (2, 2), (3, 1)])
@pytest.mark.parametrize(("kind", "window"), [(0, 1), (1, 1), (1, 5)])
def test_a_small_error_moves_the_output_by_the_amount_that_its_weight_predicts(heads, kv_heads, kind, window):
    """The squared relative change of the output, one channel at a time, is compared with the weight. For K the window is one query: over
    more queries the weight multiplies two means, while the change is the mean of a product."""
    generator = torch.Generator().manual_seed(heads)
    shapes = (heads, window, 8), (kv_heads, 20, 8), (kv_heads, 20, 8)
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    scale = 8**-0.5
    base = attention(query, key, value, scale)
    expected = weights_of(query, key, value, scale).tokens[kind]
    spread = (key - key.mean(1, keepdim=True)).square().sum(1) if kind == 0 else torch.ones(kv_heads, 8)
    share = spread / spread.sum(1, keepdim=True)  # the error of a channel of K is proportional to its spread
    for head, token in ((0, 3), (kv_heads - 1, 11), (0, 17)):
        change = 0.0
        for channel in range(8):
            error = torch.zeros_like(key)
            error[head, token, channel] = 1e-4
            moved = attention(query, key + error if kind == 0 else key, value + error if kind else value, scale)
            change += float(share[head, channel] * (moved - base).square().mean(1).sum() / base.square().mean(1).sum() / 1e-8)
        assert change == pytest.approx(float(expected[head, token]), rel=0.01)


def needle(layout, table, tokens: int, at: int):
    """A pool in which the last query of every head attends to token `at`, and an Importance that has seen that query."""
    generator = torch.Generator().manual_seed(0)
    pool, importance = Pool(layout), Importance(window=4)
    model = layout.model
    for layer in range(model.layers):
        keys, values = (torch.randn(model.kv_heads, tokens, model.head_dim, generator=generator) for _ in range(2))
        keys[:, at] = 8 * torch.nn.functional.normalize(keys[:, at], dim=-1)
        query = torch.randn(2 * model.kv_heads, tokens, model.head_dim, generator=generator)
        query[:, -1] = 4 * keys[:, at].repeat_interleave(2, 0)
        pool.write(table, layer, 0, keys.to(pool.dtype), values.to(pool.dtype))
        importance.observe(layer, query.to(pool.dtype), model.head_dim**-0.5)
    return pool, importance


def test_the_tile_with_the_most_attention_weighs_most_and_comes_first(layout_of, table_of):
    layout = layout_of(dim=32)
    table = table_of(layout, 300)
    pool, importance = needle(layout, table, 300, at=150)
    codec = Codec(layout, tile_tokens=32)
    weights = importance.weights(pool, table, codec.cells(300))
    assert weights.shape == codec.cells(300).shape == (2, 2, 2, 9)
    assert float(weights.mean()) == pytest.approx(1)
    tile = (150 - 16) // 32
    assert (weights[:, 1].argmax(-1) == tile).all()
    assert (weights[:, 1, :, tile] > 10 * weights[:, 1].sum(-1).sub(weights[:, 1, :, tile]) / 8).all()
    stream = codec.encode(pool, table, 300, weights=weights)
    first_bands = stream.header.bands.of[0].reshape(2, 2, 2, 9)[:, 1]
    assert (first_bands[..., tile] == first_bands.min(-1)).all(), "the first pass of V where the query looks is sent before all others"


def test_weights_go_from_flat_to_full_as_gamma_goes_from_0_to_1(layout_of, table_of):
    layout = layout_of(dim=16)
    table = table_of(layout, 200)
    pool, importance = needle(layout, table, 200, at=70)
    cells = Cells(layout, 200, 32, 8)
    even, none = np.ones((2, 2, 2)), np.zeros((2, 2, 2), dtype=np.uint8)
    calibrated = (Calibration("m", gamma, even, none) for gamma in (0.0, 0.5, 1.0))
    flat, half, full = (importance.weights(pool, table, cells, calibration) for calibration in calibrated)
    assert torch.equal(flat, torch.ones(cells.shape))
    assert torch.equal(half.flatten().argsort(stable=True), full.flatten().argsort(stable=True))
    assert half.max() < full.max()
    assert full.min() > 0


def test_a_calibrations_sensitivity_weights_the_heads(layout_of, table_of):
    layout = layout_of(dim=16)
    table = table_of(layout, 200)
    pool, importance = needle(layout, table, 200, at=70)
    cells = Cells(layout, 200, 32, 8)
    sensitivity = np.arange(1.0, 9).reshape(2, 2, 2)
    plain = importance.weights(pool, table, cells)
    weighed = importance.weights(pool, table, cells, Calibration("m", 1.0, sensitivity, np.zeros((2, 2, 2), dtype=np.uint8)))
    ratio = (weighed / plain).flatten(3)
    assert torch.allclose(ratio / ratio[0, 0, 0, 0], torch.from_numpy(sensitivity).float()[..., None].expand_as(ratio), rtol=1e-4)
    other = Calibration("other", 1.0, np.ones((3, 2, 2)), np.zeros((3, 2, 2), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"\(3, 2, 2\); the pool has \(2, 2, 2\)"):
        importance.weights(pool, table, cells, other)


def test_parts_of_a_head_share_its_weight(layout_of, table_of):
    layout = layout_of(layers=1, heads=2, dim=256)
    table = table_of(layout, 100)
    pool, importance = needle(layout, table, 100, at=50)
    weights = importance.weights(pool, table, Cells(layout, 100, 32, 8))
    assert weights.shape[2] == 4
    assert torch.equal(weights[:, :, 0], weights[:, :, 1])


def test_inputs_that_do_not_fit_are_refused(layout_of, table_of):
    layout = layout_of(dim=16)
    with pytest.raises(ValueError, match=r"missing are \[0, 1\]"):
        Importance().weights(Pool(layout), table_of(layout, 200), Cells(layout, 200, 32, 8))
    with pytest.raises(ValueError, match=r"\(3, 4, 8\).*\(2, 9, 8\)"):
        weights_of(torch.zeros(3, 4, 8), torch.zeros(2, 9, 8), torch.zeros(2, 9, 8), 1.0)
