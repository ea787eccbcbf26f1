"""A model of a given shape with random weights: it loads, computes and has the right size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from abkt.serve.engine.engine import Engine, read_spec
from abkt.spec import KVLayout, ModelSpec
from experiments.validation.shaped import make

SHAPE = ModelSpec("small", layers=3, kv_heads=2, head_dim=32, hidden=64, heads=4, inner=96, vocabulary=500, max_tokens=256)


def test_the_model_computes_and_has_the_shape(tmp_path: Path) -> None:
    make(SHAPE, tmp_path / "small", seed=1)
    spec = read_spec(tmp_path / "small")
    assert (spec.layers, spec.kv_heads, spec.head_dim, spec.dtype, spec.hidden, spec.heads) == (3, 2, 32, "bfloat16", 64, 4)
    assert spec.max_tokens == 256
    engine = Engine(tmp_path / "small", KVLayout(spec, blocks=4))
    token = engine.prefill(list(range(40)), [2, 0, 3])
    assert 0 <= token < 500
    kv = engine.pool.data[[2, 0, 3]].float()
    assert torch.isfinite(kv).all()
    assert 0.005 < kv.std() < 5


def test_an_existing_model_is_kept_and_another_shape_replaces_it(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    make(SHAPE, tmp_path, seed=1)
    first = weights.read_bytes()
    weights.touch()
    stamp = weights.stat().st_mtime_ns
    make(SHAPE, tmp_path, seed=2)
    assert (weights.read_bytes(), weights.stat().st_mtime_ns) == (first, stamp)
    make(replace(SHAPE, layers=2), tmp_path, seed=1)
    assert len(weights.read_bytes()) < len(first)
    assert read_spec(tmp_path).layers == 2


@pytest.mark.parametrize("other", [{"experts": 8}, {"kv_kinds": 1}, {"window": 128, "window_layers": 1}, {"inner": 0}, {"vocabulary": 0}])
def test_a_shape_other_than_a_dense_llama_is_refused(other: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not that of a dense Llama"):
        make(replace(SHAPE, **other), tmp_path / "none", seed=0)
    assert not (tmp_path / "none").exists()
