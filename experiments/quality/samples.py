"""Samples for a model: a prompt and a fixed continuation, which is the same for every codec."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.models.tokenizer import needed_tokenizer
from experiments.probe import tasks


@dataclass(frozen=True, slots=True)
class QualitySample:
    """prompt, continuation: token ids. answers: for each token of the continuation, whether it counts as an answer, because the prompt
    determines it (in text, all do). distance: tokens between an answer and its source in the prompt; -1 where there is none."""

    kind: str
    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    answers: tuple[bool, ...]
    distance: tuple[int, ...]


AFTER = 128  # tokens of a continuation of text
MOST_RECALL = tasks.MAX_SYMBOLS  # tokens in key-value pairs, as no symbol is both key and value


def recall(rng: np.random.Generator, tokens: int, asks: int) -> QualitySample:
    """The probe's recall task: key-value pairs, then keys, each followed by its value. The prompt ends with the first key that is asked.

    Raises ValueError for more tokens than there are symbols.
    """
    if tokens > MOST_RECALL:
        raise ValueError(f"tokens={tokens}: a recall prompt has at most {MOST_RECALL}")
    whole = tasks.key_values(rng, tokens + 2 * asks - 1, tasks.MAX_SYMBOLS, asks=asks)
    used = int(np.flatnonzero(whole.tokens != tasks.PAD)[-1]) + 1
    ask = int(np.flatnonzero(whole.tokens == tasks.ASK)[0])
    place = {int(key): 2 + 2 * i for i, key in enumerate(whole.tokens[2:ask:2])}
    start = ask + 2
    after, marked = whole.tokens[start:used], whole.answer[start:used]
    far = [start + i - place[int(whole.tokens[start + i - 1])] if is_answer else -1 for i, is_answer in enumerate(marked)]
    return QualitySample("recall", _ids(whole.tokens[:start]), _ids(after), tuple(marked.tolist()), tuple(far))


def text(rng: np.random.Generator, ids: np.ndarray, tokens: int, after: int, before: Sequence[int] = ()) -> QualitySample:
    """A passage of text and what follows it. before: tokens that the tokenizer puts before every text (BOS); they are part of `tokens`.

    Raises ValueError, one line, if the text is too short.
    """
    if len(ids) <= tokens + after:
        raise ValueError(f"the texts have {len(ids)} tokens; a prompt of {tokens} and its continuation need more than {tokens + after}")
    start, length = int(rng.integers(0, len(ids) - tokens - after)), tokens - len(before)
    prompt, continuation = (*before, *ids[start : start + length]), ids[start + length : start + length + after]
    return QualitySample("text", _ids(prompt), _ids(continuation), (True,) * after, (-1,) * after)


def samples(
    count: int, tokens: int, seed: int, texts: np.ndarray | None, recalls: bool, before: Sequence[int] = ()
) -> Iterator[QualitySample]:
    """`count` samples of each kind. texts: token ids of held-out text; None: no text samples. recalls: whether the model knows the probe's
    recall task. before: as for text."""
    for i in range(count):
        if recalls:
            yield recall(np.random.default_rng((seed, 0, i)), tokens, asks=min(64, tokens // 8))
        if texts is not None:
            yield text(np.random.default_rng((seed, 1, i)), texts, tokens, AFTER, before)


def read_texts(place: Path, model_folder: Path, most: int = 2_000_000) -> np.ndarray:
    """Token ids of a file of text, or of all *.txt and *.txt.gz of a folder, by the model's tokenizer.

    most: characters read of each file. Raises ValueError, one line, where there is no text or no tokenizer.
    """
    paths = [place] if place.is_file() else sorted(p for p in place.glob("*.txt*") if p.suffix in (".txt", ".gz"))
    if not paths:
        raise ValueError(f"texts={place}: there is no .txt or .txt.gz file")
    tokenizer = needed_tokenizer(model_folder)
    ids: list[int] = []
    for path in paths:
        try:
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"texts={place}: {path} cannot be read: {error}") from None
        ids += tokenizer.encode(raw.decode("utf-8", errors="replace")[:most], add_special_tokens=False)
    return np.asarray(ids)


def _ids(tokens: np.ndarray | Sequence[int]) -> tuple[int, ...]:
    return tuple(int(token) for token in tokens)
