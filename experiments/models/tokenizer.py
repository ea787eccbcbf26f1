"""A model's own tokenizer, fast or slow, and the public-domain book that comes with ABKT as its token ids."""

from __future__ import annotations

import gzip
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.paths import data_path

BOOK = "text/sherlock_holmes.txt.gz"  # the probe was not trained on it either
FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tiktoken.model", "tekken.json")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)


@lru_cache(maxsize=4)
def tokenizer_of(model_folder: Path) -> Any | None:
    """The tokenizer of a Hugging Face folder, fast or slow; None where the folder has no tokenizer's files.

    Raises
    ------
    ValueError : one line, where there are files, and they cannot be read.
    """
    from transformers import AutoTokenizer

    if not any((model_folder / name).is_file() for name in FILES):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_folder, trust_remote_code=False)
    except UNREADABLE as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model folder {model_folder} has a tokenizer that cannot be read: {first}") from None
    if len(tokenizer) < 2:
        raise ValueError(f"model folder {model_folder} has an empty tokenizer; put its files there")
    return tokenizer


def needed_tokenizer(model_folder: Path) -> Any:
    """As tokenizer_of. Raises ValueError, one line, where there is none."""
    tokenizer = tokenizer_of(model_folder)
    if tokenizer is None:
        raise ValueError(f"model folder {model_folder} has no tokenizer ({', '.join(FILES[:3])}, …); put its files there")
    return tokenizer


def bos_ids(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that the tokenizer puts before every text, such as Gemma's BOS; () where it adds none."""
    before, bare = (tokenizer("a", add_special_tokens=special).input_ids for special in (True, False))
    end = next((i for i in range(len(before)) if before[i : i + len(bare)] == bare), 0)
    return tuple(int(token) for token in before[:end])


@lru_cache(maxsize=4)
def passage_ids(model_folder: Path) -> np.ndarray | None:
    """The book as token ids, without BOS; None where the folder has no tokenizer."""
    tokenizer = tokenizer_of(model_folder)
    if tokenizer is None:
        return None
    text = gzip.decompress(data_path(BOOK).read_bytes()).decode()
    return text_ids(tokenizer, text)


def text_ids(tokenizer: Any, text: str) -> np.ndarray:
    """A text as token ids, without special tokens. It is encoded by paragraph, since some tokenizers take a long text in quadratic time."""
    parts = [part + "\n" for part in text.split("\n") if part.strip()]
    return np.concatenate([np.asarray(ids, dtype=np.int64) for ids in tokenizer(parts, add_special_tokens=False).input_ids])
