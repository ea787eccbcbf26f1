"""Recall tasks: token sequences whose answers can only be found in the context.

Every task returns (tokens, answer): int64 ids and a bool mask of the tokens that the context determines. They train the probe
(loss on answers), examine it (recall by distance), and are the prompts of the twin, because a wrong answer is then countable.

Copying, segments and key-value recall follow the usual induction-head curricula; `needle` puts key-value lines between real text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPECIALS = ("<bos>", "<eos>", "<pad>", "<copy>", "<kv>", "<ask>", "<sep>", "<text>")
BOS, EOS, PAD, COPY, KV, ASK, SEP, TEXT = range(len(SPECIALS))
FIRST_SYMBOL = 300  # after the specials and the 256 bytes of the tokenizer's alphabet
MAX_SYMBOLS = 1700


@dataclass(frozen=True, slots=True)
class RecallSample:
    """tokens: [length] int64; answer: [length] bool, True where the context determines the token."""

    tokens: np.ndarray
    answer: np.ndarray


def copying(rng: np.random.Generator, length: int, symbols: int) -> RecallSample:
    """A string of distinct symbols, repeated. Its length varies, so that no fixed distance solves the task."""
    period = int(rng.integers(max(4, length // 6), min((length - 3) // 2, symbols) + 1))
    string = FIRST_SYMBOL + rng.permutation(symbols)[:period]
    return _sample([BOS, COPY, *string], np.resize(string, length - 2 - period), True, length)


def segments(rng: np.random.Generator, length: int, symbols: int) -> RecallSample:
    """A string of distinct symbols, then pieces of it: the successor of each symbol is known from the string."""
    size = int(rng.integers(max(4, length // 6), min(length // 2, symbols) + 1))
    string = FIRST_SYMBOL + rng.permutation(symbols)[:size]
    tail: list[int] = []
    mark: list[bool] = []
    while len(tail) < length - 2 - size:
        start, run = int(rng.integers(0, size - 1)), int(rng.integers(2, 7))
        piece = string[start : start + run]
        tail += piece.tolist()
        mark += [False] + [True] * (len(piece) - 1)
    room = length - 2 - size
    return _sample([BOS, COPY, *string], np.array(tail[:room]), mark[:room], length)


def key_values(rng: np.random.Generator, length: int, symbols: int, asks: int | None = None, value_tokens: int = 1) -> RecallSample:
    """Key-value pairs in random order, then keys, each followed by its value. No symbol is both key and value.

    asks: number of keys after the pairs; None: as many as there are pairs, drawn with replacement.
    """
    size = 1 + value_tokens
    room = (length - 3) // size
    pairs = min(room // 2 if asks is None else room - asks, symbols // 2)
    asks = room - pairs if asks is None else asks
    shuffled = FIRST_SYMBOL + rng.permutation(symbols)
    values = rng.choice(shuffled[pairs:], (pairs, value_tokens))
    lines = np.concatenate([shuffled[:pairs, None], values], axis=1)
    asked = lines[rng.integers(0, pairs, asks)]
    mark = np.tile([False] + [True] * value_tokens, asks)
    return _sample([BOS, KV, *lines.ravel(), ASK], asked.ravel(), mark, length)


def needles(rng: np.random.Generator, length: int, symbols: int, text: np.ndarray, asks: int = 8, value_tokens: int = 2) -> RecallSample:
    """Real text with key-value lines at random places, then the keys, each followed by its value.

    text: [>= length] int64. A line is `<kv> key value… <sep>`.
    """
    line = value_tokens + 3
    asks = max(1, min(asks, length // (3 * (line + value_tokens + 1))))
    tail = asks * (1 + value_tokens)
    body = length - tail - 3 - asks * line
    cuts = np.sort(rng.integers(0, body + 1, asks))
    keys = FIRST_SYMBOL + rng.permutation(symbols)[:asks]
    values = FIRST_SYMBOL + rng.integers(0, symbols, (asks, value_tokens))
    tokens: list[int] = [BOS, TEXT]
    start = 0
    for cut, key, value in zip(cuts, keys, values, strict=True):
        tokens += [*text[start:cut], KV, key, *value, SEP]
        start = cut
    tokens += [*text[start:body], ASK]
    order = rng.permutation(asks)
    asked = np.concatenate([keys[:, None], values], axis=1)[order]
    mark = np.tile([False] + [True] * value_tokens, asks)
    return _sample(tokens, asked.ravel(), mark, length)


def _sample(head: list[int], tail: np.ndarray, mark: bool | list[bool] | np.ndarray, length: int) -> RecallSample:
    tokens = np.full(length, PAD, dtype=np.int64)
    answer = np.zeros(length, dtype=bool)
    used = len(head) + len(tail)
    tokens[: len(head)] = head
    tokens[len(head) : used] = tail
    answer[len(head) : used] = mark
    return RecallSample(tokens, answer)


def recall_prompt(rng: np.random.Generator, tokens: int, value_tokens: int = 3) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(prompt of exactly `tokens` tokens, the right answer): key-value lines, then one key. tokens: at least 8."""
    line = 1 + value_tokens
    if tokens < line + 4:
        raise ValueError(f"a recall prompt needs at least {line + 4} tokens, not {tokens}")
    pairs = (tokens - 4) // line
    symbols = FIRST_SYMBOL + rng.permutation(MAX_SYMBOLS)
    keys, pool = symbols[: MAX_SYMBOLS // 2], symbols[MAX_SYMBOLS // 2 :]
    lines = np.concatenate([np.resize(keys, pairs)[:, None], rng.choice(pool, (pairs, value_tokens))], axis=1)
    asked = lines[rng.integers(0, min(pairs, len(keys)))]
    filler = [SEP] * (tokens - 4 - pairs * line)
    prompt = [BOS, KV, *filler, *lines.ravel(), ASK, asked[0]]
    return tuple(int(t) for t in prompt), tuple(int(t) for t in asked[1:])
