"""Prompts for requests of a trace, in the language of the model that serves them.

The probe gets recall lines as it was trained on, so that every answer can be checked. Any other model gets passages of a public-domain
book in its own tokens, with BOS where its tokenizer adds one. A model without a tokenizer gets ids at random, below its vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from abkt.serve.frontend.prompt import Prompt
from experiments.models.tokenizer import bos_ids, needed_tokenizer, passage_ids, tokenizer_of
from experiments.probe.tasks import recall_prompt
from sim.workload.requests import Request

Kind = Literal["recall lines", "text", "random ids"]


def prompts_for(requests: Sequence[Request], model_folder: Path, seed: int) -> list[Prompt]:
    """The requests with tokens, which depend only on the model, request_id and seed.

    Parameters
    ----------
    requests : a trace's requests; the prompts have their lengths.
    model_folder : a Hugging Face folder.

    Raises
    ------
    ValueError : one line, if the model's config or tokenizer cannot be read.
    """
    made = (prompt_tokens(model_folder, np.random.default_rng((seed, request.request_id)), request.isl) for request in requests)
    return [Prompt(r.request_id, r.arrival_s, tokens, r.osl, expected) for r, (tokens, expected) in zip(requests, made, strict=True)]


def prompt_kind(model_folder: Path) -> Kind:
    """What prompts_for fills the prompts of a model with, for a plan line."""
    if (model_folder / "probe.json").is_file():
        return "recall lines"
    return "random ids" if tokenizer_of(model_folder) is None else "text"


def prompt_tokens(model_folder: Path, rng: np.random.Generator, tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(a prompt of exactly `tokens` tokens, the right answer where it is known, else ())."""
    match prompt_kind(model_folder):
        case "recall lines":
            return recall_prompt(rng, tokens)
        case "text":
            return passage(model_folder, rng, tokens), ()
    return tuple(rng.integers(0, vocabulary(model_folder), tokens).tolist()), ()


def passage(model_folder: Path, rng: np.random.Generator, tokens: int) -> tuple[int, ...]:
    """`tokens` tokens of the book from a random place, BOS included; a prompt longer than the book begins it again."""
    book = passage_ids(model_folder)
    assert book is not None
    if book.max() >= vocabulary(model_folder):
        raise ValueError(f"model folder {model_folder}: its tokenizer has more ids than the model's {vocabulary(model_folder)}")
    before = bos_ids(needed_tokenizer(model_folder))[:tokens]
    start, length = int(rng.integers(0, len(book))), tokens - len(before)
    return (*before, *np.take(book, np.arange(start, start + length), mode="wrap").tolist())


def vocabulary(model_folder: Path) -> int:
    """Token ids of a model."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(model_folder, trust_remote_code=False).get_text_config().vocab_size)


def answers(prompts: Sequence[Prompt], outputs: dict[int, list[int]]) -> dict[str, float]:
    """Share of right answer tokens: `first` (by the prefill side, from its own KV) and `rest` (by the decode side, from received KV).
    Empty where no prompt has a known answer."""
    checked = [prompt for prompt in prompts if prompt.expected]
    if not checked:
        return {}
    first, rest = [], []
    for prompt in checked:
        if prompt.request_id in outputs:
            right = [a == b for a, b in zip(prompt.expected, outputs[prompt.request_id], strict=False)]
            first += right[:1]
            rest += right[1:]
    return {"first": float(np.mean(first)) if first else float("nan"), "rest": float(np.mean(rest)) if rest else float("nan")}
