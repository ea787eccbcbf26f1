"""A sample of the probe's real KV in safetensors, for tests of the codec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from abkt.serve.engine.engine import Engine, read_spec
from abkt.spec import KVLayout

NAME = "kv_sample.safetensors"


def write(folder: Path, tokens: Sequence[int]) -> None:
    """Write keys and values of one prompt, each [layers, kv_heads, tokens, head_dim], beside the model in `folder`."""
    from safetensors.torch import save_file

    layout = KVLayout(read_spec(folder), blocks=-(-len(tokens) // 16))
    engine = Engine(folder, layout)
    table = list(range(layout.blocks))
    engine.prefill(tokens, table)
    both = [engine.pool.read(table, layer, len(tokens)) for layer in range(layout.model.layers)]
    keys, values = (torch.stack([layer[i] for layer in both]).contiguous() for i in (0, 1))
    save_file({"keys": keys, "values": values}, folder / NAME)
