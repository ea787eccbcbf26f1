"""Interleaved rANS with static tables, written to be read. It defines the bytes, and is the reference for the compiled code and the
kernels.

A *stream* is one string of n symbols. Each symbol has a context, which picks its row of frequencies. Symbol i belongs to lane
i % LANES; a lane's state x is a number in [2**16, 2**32), and to code a symbol of frequency f that starts at s among the 4,096 shares is

    x -> (x // f) * 4096 + x % f + s,      after x >>= 16, with the 16 bits that leave written as a word, if x >= f * 2**20

so a symbol writes at most one word, and costs log2(4096 / f) bits. Encoding runs from the last symbol to the first, decoding from the
first to the last. The bytes of a stream are the states of the lanes (32 bits each, lane 0 first), then the words in the order in which
decoding reads them: by steps of LANES symbols, within a step by lanes. All little-endian. Lanes start at 2**16, so decoding must end there
with nothing left to read; otherwise it raises an error. This check has 16 bits per lane, so the caller needs a checksum as well.

A stream of no symbols has no bytes. Beyond the entropy, each lane costs 16 bits: 16 bytes for eight lanes.

Source: asymmetric numeral systems (Duda, arXiv 1311.2540), interleaved as in Giesen's arXiv 1402.3392.
"""

from __future__ import annotations

import numpy as np

LANES = 8
SHARE_BITS = 12
SHARES = 1 << SHARE_BITS
LEAST = 1 << 16  # of a state between symbols
STATE_BYTES = 4 * LANES


def most_bytes(n: int) -> int:
    """The most bytes of a stream of n symbols: one word per symbol, and the states."""
    return STATE_BYTES + 2 * n if n else 0


def encode(symbols: np.ndarray, contexts: np.ndarray, tables: np.ndarray) -> list[bytes]:
    """Each stream of `symbols` as bytes.

    symbols, contexts: [streams, n] uint8. tables: [contexts, alphabet] uint16, each row summing to 4,096. Raises ValueError for
    other shapes, dtypes or sums, and for a symbol or context that the tables do not have or that has no share.
    """
    checked(symbols, contexts, tables)
    shares = tables.astype(np.int64)
    starts = shares.cumsum(1) - shares
    check_symbols(symbols, contexts, tables)
    streams, n = symbols.shape
    if n == 0:
        return [b""] * streams
    states = np.full((streams, LANES), LEAST, dtype=np.int64)
    steps = -(-n // LANES)
    words = np.zeros((streams, steps, LANES), dtype=np.uint16)
    written = np.zeros((streams, steps, LANES), dtype=bool)
    for step in reversed(range(steps)):
        here = slice(step * LANES, min(n, (step + 1) * LANES))
        lanes = here.stop - here.start
        x, c, s = states[:, :lanes], contexts[:, here], symbols[:, here]
        share, start = shares[c, s], starts[c, s]
        full = x >= share << 20
        words[:, step, :lanes], written[:, step, :lanes] = x & 0xFFFF, full
        x = np.where(full, x >> 16, x)
        states[:, :lanes] = (x // share << SHARE_BITS) + x % share + start
    heads = states.astype("<u4")
    return [heads[i].tobytes() + words[i][written[i]].astype("<u2").tobytes() for i in range(streams)]


def decode(data: list[bytes], n: int, contexts: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """The symbols of each stream, [streams, n] uint8. contexts, tables: as given to `encode`.

    Raises ValueError for other shapes, and for bytes that no encoder wrote: too few, too many, or a lane that does not end where it began.
    """
    checked(np.zeros((len(data), n), dtype=np.uint8), contexts, tables)
    check_contexts(contexts, tables)
    symbols = np.empty((len(data), n), dtype=np.uint8)
    if n == 0:
        if any(data):
            raise ValueError("a stream of no symbols has bytes; it is damaged")
        return symbols
    shares = tables.astype(np.int64)
    starts = shares.cumsum(1) - shares
    owner = np.stack([np.repeat(np.arange(len(row), dtype=np.uint8), row) for row in shares])  # [contexts, 4096]: the symbol of each share
    words = _padded_words(data)
    states, words = words[:, : 2 * LANES].view("<u4").astype(np.int64), words[:, 2 * LANES :]
    held = np.array([(len(d) - STATE_BYTES) // 2 for d in data])
    if states.size and states.min() < LEAST:
        raise ValueError(f"stream {int((states.min(1) < LEAST).argmax())}: a state is below 2**16; its bytes are damaged")
    read = np.zeros(len(data), dtype=np.int64)
    for step in range(-(-n // LANES)):
        here = slice(step * LANES, min(n, (step + 1) * LANES))
        x, c = states[:, : here.stop - here.start], contexts[:, here]
        share = x & (SHARES - 1)
        s = owner[c, share]
        symbols[:, here] = s
        x = (x >> SHARE_BITS) * shares[c, s] + share - starts[c, s]
        low = x < LEAST
        at = read[:, None] + low.cumsum(1) - low
        read += low.sum(1)
        if (read > held).any():
            raise ValueError(f"stream {int((read > held).argmax())} ends before its symbols do; its bytes are damaged")
        word = np.take_along_axis(words, np.minimum(at, words.shape[1] - 1), 1).astype(np.int64)
        states[:, : here.stop - here.start] = np.where(low, x << 16 | word, x)
    bad = (read != held) | (states != LEAST).any(1)
    if bad.any():
        raise ValueError(f"stream {int(bad.argmax())} does not end where it began; its bytes are damaged")
    return symbols


def _padded_words(data: list[bytes]) -> np.ndarray:
    """[streams, words] uint16, each stream followed by at least one word of 0. Raises ValueError for lengths that no stream has."""
    for i, d in enumerate(data):
        if len(d) < STATE_BYTES or len(d) % 2:
            raise ValueError(f"stream {i} has {len(d)} bytes; it needs an even number, {STATE_BYTES} at least")
    longest = max((len(d) for d in data), default=STATE_BYTES) // 2 + 1
    words = np.zeros((len(data), longest), dtype="<u2")
    for row, d in zip(words, data, strict=True):
        row[: len(d) // 2] = np.frombuffer(d, dtype="<u2")
    return words


def checked(symbols: np.ndarray, contexts: np.ndarray, tables: np.ndarray) -> None:
    """Raises ValueError unless shapes, dtypes and sums are those that `encode` needs."""
    if symbols.ndim != 2 or symbols.dtype != np.uint8 or contexts.shape != symbols.shape or contexts.dtype != np.uint8:
        given = f"symbols {symbols.dtype} {symbols.shape} and contexts {contexts.dtype} {contexts.shape}"
        raise ValueError(f"{given}: both must be uint8 of one shape [streams, n]")
    if tables.ndim != 2 or tables.dtype != np.uint16 or not 1 <= tables.shape[1] <= 256 or not 1 <= tables.shape[0] <= 256:
        raise ValueError(f"tables {tables.dtype} {tables.shape}: they must be uint16 [contexts, alphabet], 1 to 256 of each")
    sums = tables.sum(1, dtype=np.int64)
    if (sums != SHARES).any():
        row = int((sums != SHARES).argmax())
        raise ValueError(f"row {row} of the tables sums to {sums[row]}, not to {SHARES}")


def check_contexts(contexts: np.ndarray, tables: np.ndarray) -> None:
    if contexts.size and contexts.max() >= tables.shape[0]:
        raise ValueError(f"context {contexts.max()} of only {tables.shape[0]}")


def check_symbols(symbols: np.ndarray, contexts: np.ndarray, tables: np.ndarray) -> None:
    """Raises ValueError for a symbol that the tables cannot code."""
    check_contexts(contexts, tables)
    if symbols.size and symbols.max() >= tables.shape[1]:
        raise ValueError(f"symbol {symbols.max()} of an alphabet of {tables.shape[1]}")
    absent = tables[contexts, symbols] == 0
    if absent.any():
        stream, at = (int(i) for i in np.argwhere(absent)[0])
        what = f"symbol {symbols[stream, at]} has no share in context {contexts[stream, at]}"
        raise ValueError(f"stream {stream}, position {at}: {what}; give each symbol that occurs one of the {SHARES}")


def shares_of(counts: np.ndarray) -> np.ndarray:
    """Tables for these counts or probabilities, [contexts, alphabet] uint16: rows sum to 4,096, and each symbol that occurs has at least 1.

    Shares that rounding leaves over go where they cost least. counts: [contexts, alphabet], at least 0; a row of zeros becomes flat.
    Raises ValueError for an alphabet above 256 or counts that are negative or not finite.
    """
    if counts.ndim != 2 or counts.shape[1] > 256 or not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError(f"counts {counts.shape} must be [contexts, alphabet <= 256], finite and at least 0")
    weights = np.where(counts.sum(1, keepdims=True) > 0, counts, 1.0).astype(np.float64)
    weights /= weights.sum(1, keepdims=True)
    tables = np.where(weights > 0, np.maximum(1, np.round(weights * SHARES)), 0).astype(np.int64)
    for weight, row in zip(weights, tables, strict=True):
        while (excess := int(row.sum()) - SHARES) != 0:
            sign = 1 if excess > 0 else -1
            allowed = row > 1 if sign > 0 else row > 0
            cost = np.where(allowed, weight * np.log2(np.maximum(row, 1) / np.maximum(row - sign, 0.5)), np.inf)
            row[cost.argmin()] -= sign
    return tables.astype(np.uint16)
