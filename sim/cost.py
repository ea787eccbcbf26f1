"""Costs of work in seconds, from a Profile. This is the only module of the simulator that reads a profile.

Not modelled: noise (the same work always takes the same time); more load on the host than during profiling.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from abkt.policy.view import CoderName, Curve, Decision, Mode, TransferView
from abkt.profile.expect import curve_for
from abkt.profile.schema import Fit, Profile, RateCurve

KEPT = 1 << 14  # entries in each cache of values that depend only on a request's length
DRAWS = 12  # a draw among 1, 2, 3 or 4 curves repeats after this many


class Costs:
    """Seconds of prefill, decode iterations, codec and transport on one kind of node.

    Parameters
    ----------
    profile : measured tables, or tables computed from a data sheet.

    Raises
    ------
    ValueError : the profile lacks a table, or a table has a feature that the simulator does not know.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.base_s, self.request_s, self.context_s = _terms(profile, "decode", ("1", "batch", "context"), "batch", "context")
        self._pieces_batch = PieceSeconds(pieces(profile, "decode", "batch"))
        self.context_pieces = pieces(profile, "decode", "context")
        self._pieces_context = PieceSeconds(self.context_pieces)
        if self.base_s + self.request_s + self.context_s <= 0:
            raise ValueError("the profile's decode iterations take no time; run `abkt profile` again")
        self._prefill = _terms(profile, "prefill", ("1", "tokens", "tokens*tokens"), "tokens")
        self._pieces_tokens = PieceSeconds(pieces(profile, "prefill", "tokens"))
        self._encode, self._expand = _Codec(profile, "encode"), _Codec(profile, "expand")
        self.call_s, self.byte_s = _terms(profile, "transport", ("calls", "bytes"))
        self.first_token_s = profile.fit("first_token").seconds() if "first_token" in profile.fits else 0.0
        self._pass = _terms(profile, "pass", ("1", "tokens"), "tokens") if "pass" in profile.fits else None
        self._pieces_pass = PieceSeconds(pieces(profile, "pass", "tokens")) if "pass" in profile.fits else None
        self.handover_s = profile.fit("handover").seconds() if "handover" in profile.fits else 0.0
        self.kv_bytes_per_token = profile.model.kv_bytes_per_token
        self._views: dict[tuple[int, int], TransferView] = {}
        self._slopes: dict[tuple[int, int], Curve] = {}
        self._passes: dict[int, float] = {}
        self._alone: dict[int, float] = {}
        self._prefill_range = _range(profile.fit("prefill"), "tokens")
        self._batch_range, self._context_range = (_range(profile.fit("decode"), name) for name in ("batch", "context"))

    def prefill_s(self, tokens: int) -> float:
        seconds = self._passes.get(tokens)
        if seconds is None:
            if len(self._passes) >= KEPT:
                self._passes.clear()
            base, linear, square = self._prefill
            seconds = self._passes[tokens] = base + tokens * (linear + tokens * square) + self._pieces_tokens[tokens]
        return seconds

    def shared_s(self, batch: int, parts: Sequence[int]) -> float:
        """Seconds that decode steps and parts of prompts save because they share one pass, over a pass for each: overheads, weights and
        experts count once. Without a table `pass` it is one overhead, the smaller one."""
        if self._pass is None or self._pieces_pass is None:
            base_s = self._prefill[0]
            return base_s * (len(parts) - 1) + (min(base_s, self.base_s) if batch else 0.0)
        (base, slope), extra, total = self._pass, self._pieces_pass, batch + sum(parts)
        alone_s = sum(base + slope * part + extra[part] for part in parts) + (base + slope * batch + extra[batch] if batch else 0.0)
        return max(0.0, alone_s - (base + slope * total + extra[total]))

    def iteration_s(self, batch: int, context: int) -> float:
        """Seconds of one decode iteration of `batch` requests with `context` tokens of KV in all."""
        flat_s = self.base_s + self.request_s * batch + self._pieces_batch[batch] + self.context_s * context
        return flat_s + self._pieces_context.at(context) if self.context_pieces else flat_s

    def alone_s(self, context: int) -> float:
        """Seconds of one decode iteration of a single request."""
        seconds = self._alone.get(context)
        if seconds is None:
            if len(self._alone) >= KEPT:
                self._alone.clear()
            seconds = self._alone[context] = self.iteration_s(1, context)
        return seconds

    def encode_s(self, tokens: float, decision: Decision) -> float:
        """Seconds to encode a prompt's KV. tokens: number of prompt tokens; for one of G layer groups, that number divided by G."""
        return self._encode.seconds(tokens, decision.mode, decision.depth_bits, decision.coder)

    def expand_s(self, tokens: float, mode: Mode, bits: float = 0.0, coder: CoderName = "fixed") -> float:
        """Seconds to expand KV. bits: mean bits per value that arrived of a stream.

        Times are interpolated linearly between measured depths. The entropy and klt coders always take their time at full depth.
        """
        return self._expand.seconds(tokens, mode, bits, coder)

    def view(
        self, tokens: int, deadline_s: float, price: float = 0.0, own_slope: Curve | None = None, hidden_s: float = 0.0
    ) -> TransferView:
        """The expected view of a transfer before it is encoded, as abkt.profile.expect.expected_view gives it; cached by length."""
        it = self.expected(tokens)
        return TransferView(
            it.raw_bytes,
            deadline_s,
            it.slope,
            it.uniform,
            it.encode_s,
            it.expand_s,
            it.raw_s,
            0.0,
            0,
            it.lossless_bytes,
            it.lossless_encode_s,
            it.lossless_expand_s,
            hidden_s=hidden_s,
            price=price,
            own_slope=own_slope,
            entropy_share=it.entropy_share,
            entropy_encode_s=it.entropy_encode_s,
            entropy_expand_s=it.entropy_expand_s,
            klt=it.klt,
            klt_encode_s=it.klt_encode_s,
            klt_expand_s=it.klt_expand_s,
        )

    def expected(self, tokens: int, draw: int = 0) -> TransferView:
        """That view with a deadline of 0 s, on the `draw`-th of the measured curves nearest in length (0: the nearest)."""
        key = (tokens, draw % DRAWS)
        known = self._views.get(key)
        if known is None:
            if len(self._views) >= KEPT:
                self._views.clear()
                self._slopes.clear()
            known = self._views[key] = self._expect(tokens, curve := curve_for(self.profile, tokens, key[1]))
            self._slopes[key] = curve.slope
        return known

    def _expect(self, tokens: int, curve: RateCurve) -> TransferView:
        """As abkt.profile.expect does it, but from tables that were read once."""
        profile, encode, expand = self.profile, self._encode, self._expand
        raw_bytes = profile.model.kv_bytes(tokens)
        view = TransferView(
            raw_bytes,
            0.0,
            curve.slope.scaled(raw_bytes),
            curve.uniform.scaled(raw_bytes),
            encode.seconds(tokens, "stream", 8, "fixed"),
            expand.seconds(tokens, "stream", 8, "fixed"),
            encode.seconds(tokens, "raw", 0, "fixed") + expand.seconds(tokens, "raw", 0, "fixed"),
        )
        if profile.lossless_share > 0 and encode.has("lossless") and expand.has("lossless"):
            view.lossless_bytes = raw_bytes * profile.lossless_share
            view.lossless_encode_s, view.lossless_expand_s = (codec.seconds(tokens, "lossless", 0, "fixed") for codec in (encode, expand))
        if profile.entropy_share > 0 and encode.has("entropy") and expand.has("entropy"):
            view.entropy_share = profile.entropy_share
            view.entropy_encode_s, view.entropy_expand_s = (codec.seconds(tokens, "stream", 8, "entropy") for codec in (encode, expand))
        if curve.klt is not None and encode.has("klt") and expand.has("klt"):
            view.klt = curve.klt.scaled(raw_bytes)
            view.klt_encode_s, view.klt_expand_s = (codec.seconds(tokens, "stream", 8, "klt") for codec in (encode, expand))
        return view

    def own_slope(self, tokens: int, draw: int) -> Curve:
        """The slope curve of that view, by raw bytes."""
        key = (tokens, draw % DRAWS)
        if key not in self._views:
            self.expected(tokens, draw)
        return self._slopes[key]

    def prefill_measured(self, tokens: int) -> bool:
        low, high = self._prefill_range
        return low <= tokens <= high

    def codec_measured(self, tokens: int) -> bool:
        return self._encode.low <= tokens <= self._encode.high and self._expand.low <= tokens <= self._expand.high

    def decode_measured(self, batch: int, context: int, last_context: int) -> bool:
        low, high = self._batch_range
        least, most = self._context_range
        return low <= batch <= high and least <= context and last_context <= most


class _Codec:
    """Seconds of one codec stage (encode or expand) by tokens: for raw, lossless, the entropy and klt coders, and streams of any depth.

    The constructor raises ValueError if raw was not measured. Other modes raise it when they are asked for.
    """

    def __init__(self, profile: Profile, stage: str) -> None:
        self.stage = stage
        wholes = [f"{stage}/{whole}" for whole in ("raw", "lossless", "entropy", "klt")]
        profile.fit(wholes[0])
        self.wholes = {name: _terms(profile, name, ("1", "tokens")) for name in wholes if name in profile.fits}
        names = [name for name in profile.fits if name.startswith(f"{stage}/") and name not in wholes]
        if not names:
            raise ValueError(f"the profile has no table {stage}/8; run `abkt profile` again")
        self.depths = sorted(float(name.partition("/")[2]) for name in names)
        self.terms = [_terms(profile, f"{stage}/{depth:g}", ("1", "tokens")) for depth in self.depths]
        ranges = [_range(profile.fit(name), "tokens") for name in names]
        self.low, self.high = max(low for low, _ in ranges), min(high for _, high in ranges)
        self._known: dict[tuple[Mode, float, CoderName], tuple[float, ...]] = {}

    def has(self, whole: str) -> bool:
        return f"{self.stage}/{whole}" in self.wholes

    def seconds(self, tokens: float, mode: Mode, bits: float, coder: CoderName) -> float:
        terms = self._known.get((mode, bits, coder))
        if terms is None:
            if len(self._known) >= KEPT:
                self._known.clear()
            terms = self._known[mode, bits, coder] = self._terms_at(mode, bits, coder)
        return terms[0] + tokens * terms[1]

    def _terms_at(self, mode: Mode, bits: float, coder: CoderName) -> tuple[float, ...]:
        if mode != "stream" or coder != "fixed":
            whole = f"{self.stage}/{mode if mode != 'stream' else coder}"
            if whole not in self.wholes:
                raise ValueError(f"the profile has no table {whole}; run `abkt profile` again")
            return self.wholes[whole]
        after = bisect_left(self.depths, bits)
        if after == 0 or after == len(self.depths):  # outside the measured depths the nearest one counts
            return self.terms[min(after, len(self.depths) - 1)]
        share = (bits - self.depths[after - 1]) / (self.depths[after] - self.depths[after - 1])
        (base0, linear0), (base1, linear1) = self.terms[after - 1], self.terms[after]
        return base0 + share * (base1 - base0), linear0 + share * (linear1 - linear0)


def pieces(profile: Profile, stage: str, variable: str) -> tuple[tuple[float, float], ...]:
    """The features `variable>knot` of a piecewise linear table, in order: (knot, extra seconds for each unit beyond the knot)."""
    split = ((name.partition(">"), value) for name, value in profile.fit(stage).by_feature.items())
    return tuple(sorted((float(knot), value) for (name, above, knot), value in split if above and name == variable))


class PieceSeconds(dict[int, float]):
    """value -> seconds that the pieces beyond their knots add. Cached, because the same batch and prompt sizes recur."""

    def __init__(self, pieces: tuple[tuple[float, float], ...]) -> None:
        super().__init__()
        self.pieces = pieces

    def __missing__(self, value: int) -> float:
        self[value] = seconds = self.at(value)
        return seconds

    def at(self, value: float) -> float:
        """The same without the cache."""
        return sum((slope * (value - knot) for knot, slope in self.pieces if value > knot), 0.0)


def _terms(profile: Profile, stage: str, known: tuple[str, ...], *pieced: str) -> tuple[float, ...]:
    """Coefficients of the known features, 0 for a feature that the table lacks. pieced: variables that may also have knots."""
    table = profile.fit(stage).by_feature
    if unknown := {name for name in set(table) - set(known) if name.partition(">")[0] not in pieced}:
        raise ValueError(f"the profile's table {stage} has the feature {min(unknown)}; the simulator knows {', '.join(known)}")
    return tuple(table.get(feature, 0.0) for feature in known)


def _range(fit: Fit, variable: str) -> tuple[float, float]:
    return fit.low.get(variable, -math.inf), fit.high.get(variable, math.inf)
