"""Public-domain text as token ids: read a folder, train a tokenizer on it, and hold out some books."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.probe.tasks import SPECIALS

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Corpus:
    """train, held_out: token ids, uint16; books: file names of each part."""

    train: np.ndarray
    held_out: np.ndarray
    train_books: tuple[str, ...]
    held_out_books: tuple[str, ...]


def read_books(folder: Path, pattern: str, held_out: tuple[str, ...]) -> tuple[dict[str, str], dict[str, str]]:
    """(train, held-out) texts by file name. Raises ValueError where the folder has no such file or nothing is held out."""
    train: dict[str, str] = {}
    kept: dict[str, str] = {}
    for path in sorted(folder.glob(pattern)):
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
        (kept if any(name in path.name for name in held_out) else train)[path.name] = text
    if not train or not kept:
        raise ValueError(f"{folder} has {len(train)} training and {len(kept)} held-out books matching {pattern}; both must be > 0")
    return train, kept


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE (tokenizers library) with the task markers as special tokens 0…7."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts, one after another, as uint16 ids."""
    paragraphs = [part + "\n" for text in texts for part in text.split("\n") if part]
    return np.concatenate([np.asarray(e.ids, dtype=np.uint16) for e in tokenizer.encode_batch_fast(paragraphs)])


def load(folder: Path, pattern: str, held_out: tuple[str, ...], tokenizer: Tokenizer) -> Corpus:
    train, kept = read_books(folder, pattern, held_out)
    return Corpus(encode(tokenizer, list(train.values())), encode(tokenizer, list(kept.values())), tuple(train), tuple(kept))
