"""The language models that a run may use: found by folder, hub id, GGUF file or name, and read with their tokenizer.

Used by every verb that runs a model. `resolve_model` turns what the user wrote into a Hugging Face folder; the other functions take that
folder. `prompts` makes the prompts that the model is served, and `calibration` finds the model's calibration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from experiments.models.resolve import resolve_model
    from experiments.models.tokenizer import passage_ids, tokenizer_of

__all__ = ["passage_ids", "resolve_model", "tokenizer_of"]
__getattr__ = exporter(__name__, {"passage_ids": "tokenizer", "resolve_model": "resolve", "tokenizer_of": "tokenizer"})
