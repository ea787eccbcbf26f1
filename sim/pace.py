"""How long decode iterations take: linear in the context as far as a piece reaches, with steps where the batch fills a larger bucket.

A profile has one linear table, `decode` (batch, context), and may have pieces: `decode/B` holds for batches up to B (the size that a CUDA
graph was captured for, say) and `decode/B/C` from a context of C tokens on, each linear in the context. A batch above the largest B takes
the pieces of that one.

Not modelled: steps inside a piece.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right

from abkt.profile.schema import Fit, Profile
from sim.cost import beyond
from sim.cost import pieces as batch_pieces

Piece = tuple[float, float, float]  # seconds of an iteration now, seconds for each more token of context, context that it holds up to


class Pace:
    """Raises ValueError, one line, for tables in other features, or pieces of which none begins at a context of 0."""

    def __init__(self, profile: Profile) -> None:
        names = [name for name in profile.fits if name.startswith("decode/")]
        self._base_s, self._request_s, self._context_s = _terms("decode", profile.fit("decode"), ("1", "batch", "context"))
        self._batch_pieces = batch_pieces(profile, "decode", "batch")
        if self._base_s + self._request_s + self._context_s <= 0:
            raise ValueError("the profile's decode iterations take no time; run `abkt profile` again")
        pieces: dict[int, dict[int, tuple[float, ...]]] = {}
        for name in names:
            bucket, _, knot = name.removeprefix("decode/").partition("/")
            pieces.setdefault(int(bucket), {})[int(knot or 0)] = _terms(name, profile.fit(name), ("1", "context"))
        self._buckets = sorted(pieces)
        self._knots = [sorted(pieces[batch]) for batch in self._buckets]
        self._pieces = [[pieces[batch][knot] for knot in sorted(pieces[batch])] for batch in self._buckets]
        for batch, knots in zip(self._buckets, self._knots):
            if knots[0] != 0:
                raise ValueError(f"the profile's tables decode/{batch}/… begin at a context of {knots[0]}; the first must begin at 0")

    @property
    def overhead_s(self) -> float:
        """Of an iteration, whoever is in it."""
        return self._pieces[0][0][0] if self._buckets else self._base_s

    def piece(self, batch: int, context: int) -> Piece:
        """One iteration of `batch` requests with `context` tokens of KV in all, and what the next ones take."""
        if not self._buckets:
            base_s = self._base_s + self._request_s * batch + beyond(self._batch_pieces, batch)
            return base_s + self._context_s * context, self._context_s, math.inf
        bucket = min(bisect_left(self._buckets, batch), len(self._buckets) - 1)
        knots = self._knots[bucket]
        index = bisect_right(knots, context) - 1
        base_s, context_s = self._pieces[bucket][index]
        until = knots[index + 1] - 1 if index + 1 < len(knots) else math.inf
        return base_s + context_s * context, context_s, until


def _terms(name: str, fit: Fit, known: tuple[str, ...]) -> tuple[float, ...]:
    table = fit.by_feature
    if unknown := {feature for feature in set(table) - set(known) if not ("batch" in known and feature.startswith("batch>"))}:
        raise ValueError(f"the profile's table {name} has the feature {min(unknown)}; the model knows {', '.join(known)}")
    return tuple(table.get(feature, 0.0) for feature in known)
