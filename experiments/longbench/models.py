"""A Hugging Face causal LM as the tasks need it: its shape, its tokenizer, and the tokens that end an answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abkt.serve.engine.model_folder import eos_tokens, read_spec, rope_theta
from abkt.spec import ModelSpec
from experiments.models.tokenizer import needed_tokenizer


@dataclass(frozen=True, slots=True)
class Model:
    """spec: shape of the model. rope_theta: base of its rotary embedding; None if it has none. stops: tokens that end an answer."""

    spec: ModelSpec
    tokenizer: Any
    rope_theta: float | None
    stops: frozenset[int]


def read_model(folder: Path) -> Model:
    """Read a model folder.

    Raises
    ------
    ValueError
        One line, where the config or the tokenizer cannot be read, or the workers do not compute a feature of the model's attention.
    """
    spec = read_spec(folder)
    tokenizer = needed_tokenizer(folder)
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return Model(spec, tokenizer, rope_theta(folder), frozenset(eos_tokens(folder) or own))
