"""Functions for the notebooks: a sample of real KV, and a stored figure. Simulations are those of `abkt` itself (experiments.api)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from experiments.figures import stored
from experiments.figures.style import sheet
from experiments.lib.paths import data_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from abkt.kv.pool import Pool


def sample_kv() -> tuple[Pool, list[int], int]:
    """The probe's KV of held-out text: (pool, block table, tokens)."""
    from safetensors.torch import load_file

    from abkt.kv.pool import Pool
    from abkt.spec import KVLayout, ModelSpec

    sample = load_file(data_path("probe/kv_sample.safetensors"))
    layers, kv_heads, tokens, dim = sample["keys"].shape
    pool = Pool(KVLayout(ModelSpec("probe", layers, kv_heads, dim), blocks=-(-tokens // 16) + 1))
    table = list(range(pool.layout.blocks_for(tokens)))
    for layer in range(layers):
        pool.write(table, layer, 0, sample["keys"][layer], sample["values"][layer])
    return pool, table, tokens


def figure(name: str) -> Figure:
    """A figure of experiments.figures, such as fig05_validation, drawn from its stored tables."""
    module = import_module(f"experiments.figures.{name}")
    with sheet():
        drawn: Figure = module.draw({table: stored.load(data_path("figures"), table) for table in module.INPUTS})
    return drawn
