"""A Hugging Face causal LM over a block pool: attention, sampling, and the pool as a transformers Cache. Workers and studies of answer
quality use it; it does not depend on frontends or transfers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.serve.engine.attention import SequenceRow
    from abkt.serve.engine.cache import PoolCache
    from abkt.serve.engine.engine import Engine
    from abkt.serve.engine.generation import Generation, Sampling
    from abkt.serve.engine.model_folder import read_spec

__all__ = ["Engine", "Generation", "PoolCache", "Sampling", "SequenceRow", "read_spec"]
__getattr__ = exporter(
    __name__,
    {
        "Engine": "engine",
        "Generation": "generation",
        "PoolCache": "cache",
        "Sampling": "generation",
        "SequenceRow": "attention",
        "read_spec": "model_folder",
    },
)
