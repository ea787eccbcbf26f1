"""A model's calibration, from any text: the klt coder's basis, by gradients, and how the other coders order their cells.

Nothing is taken on trust. Prompts that the statistics did not see choose among the candidates, and "no calibration" is always one of them:
for the order of the fixed and the entropy coder, and, at each rate, for the klt coder against the entropy coder.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from abkt.codec.calibration import Calibration
from abkt.codec.codec import Codec
from abkt.codec.klt.basis import Basis, refusal
from abkt.codec.klt.coder import KltCoder
from abkt.codec.klt.compiled import Seen
from abkt.codec.klt.rotary import AS_CACHED
from abkt.policy.view import CoderName
from abkt.spec import ModelSpec
from experiments.quality import likelihood, shares
from experiments.quality.bases import basis_of_statistics, best, choices, learned
from experiments.quality.divergence import laws
from experiments.quality.groups import groupings
from experiments.quality.measure import Bench
from experiments.quality.methods import Cuts, Held, seen
from experiments.quality.samples import QualitySample

Candidate = tuple[str, float, tuple[float, float], bool]  # groups of heads, floor, (exponent, mixing), metric corrected (shares.py)
HELD_OUT = 3  # prompts that choose, and are in no statistics; more where there are more kinds
SETTINGS = ((0.5, 0.4), (0.0, 0.0))  # (exponent, mixing) of the tokens' classes; the last: all tokens alike
FLOORS = (0.3, 0.1, 1.0)
SHARES = (0.04, 0.06, 0.08, 0.1, 0.16, 0.25, 0.4)  # of raw bytes, at which klt and entropy are compared
DECIDING = (0.06, 0.13)  # of raw bytes, at which candidates are compared
BITS = (1.0, 2.0, 3.0)  # rates of the fixed coder at which orders are compared

log = logging.getLogger("abkt.quality")


def calibrate(
    bench: Bench, codec: Codec, samples: Sequence[QualitySample], done: Callable[[int], None], fingerprint: str = ""
) -> Calibration:
    """Calibrate on prompts like those that will be served. The last of them are held out (`held_out_of`).

    done: called with the number of prompts, or trials on a prompt, that were just worked through (`passes` says how many there are).
    """
    model = codec.layout.model
    held_out = samples[len(samples) - held_out_of(samples) :]
    fitted = samples[: len(samples) - len(held_out)]
    if not fitted or not held_out:
        raise ValueError(f"a calibration needs at least 2 prompts, not {len(samples)}; give more text")
    made = {
        "prompts": str(len(samples)),
        "held out": str(len(held_out)),
        "kinds": ", ".join(sorted({s.kind for s in samples})),
        "texts": hashlib.sha256(b"".join(np.array(s.prompt, "<i8").tobytes() for s in samples)).hexdigest()[:16],
    }
    plain = Calibration(model.name, 0.0, np.ones((model.layers, model.kv_kinds, model.kv_heads)), _levels(bench, codec, fitted), made)
    basis: Basis | None = None
    picked: tuple[tuple[float, CoderName], ...] = ()
    why = refusal(model)
    if not why:
        basis, picked = _basis(bench, codec, fitted, held_out, done, made)
        if not any(coder == "klt" for _, coder in picked):
            why = "it was better than the entropy coder at no size on the held-out prompts"
            basis, picked = None, ()
    if why:
        log.warning("the klt coder is not used for %s: %s", model.name, why)
        made["klt"] = f"not used: {why}"
    gamma = _exponent(bench, codec, plain, held_out, done, made)
    found = Calibration(model.name, gamma, plain.sensitivity, plain.levels, made, basis, picked, fingerprint)
    return with_laws(bench, codec, found, held_out)


def with_laws(bench: Bench, codec: Codec, made: Calibration, held_out: Sequence[QualitySample]) -> Calibration:
    """The same, with what streams of the other coders predict of the divergence; without a basis nothing needs it."""
    if made.basis is None:
        return made
    known = laws(bench, codec, made, held_out)
    said = {f"divergence of {name}": law.words() for name, law in known.items()}
    return replace(made, about={**made.about, **said}, laws=known)


def held_out_of(samples: Sequence[QualitySample]) -> int:
    """How many prompts are held out: HELD_OUT, or one of each kind where there are more kinds; at most half of them."""
    return min(max(HELD_OUT, len({sample.kind for sample in samples})), len(samples) // 2)


def passes(model: ModelSpec, samples: Sequence[QualitySample]) -> int:
    """How often `calibrate` reports."""
    held = held_out_of(samples)
    if refusal(model):
        return held * len(GAMMAS)
    fitted = samples[: len(samples) - held]
    of_groups = len(groupings(model, sum(len(sample.prompt) for sample in fitted)))
    tried = of_groups * (len(floors(True)) + 1) + 1
    return len(fitted) + min(held, len(fitted)) + held * (tried + 1 + len(GAMMAS))


def _basis(
    bench: Bench,
    codec: Codec,
    fitted: Sequence[QualitySample],
    held_out: Sequence[QualitySample],
    done: Callable[[int], None],
    made: dict[str, str],
) -> tuple[Basis, tuple[tuple[float, CoderName], ...]]:
    rotary, errors = likelihood.rotary_of(bench, fitted[0].prompt)
    unknown = np.flatnonzero(rotary.styles.numpy() == AS_CACHED)
    made["rotation"] = f"found in {len(errors) - len(unknown)} of {len(errors)} layers; K of the others is transformed as cached"
    if len(unknown):
        log.warning("the rotation of K is not known in layers %s; it is transformed as cached", unknown.tolist())
    learned_from = sum(len(sample.prompt) for sample in fitted)
    statistics, differentiable = likelihood.empty(bench, SETTINGS, groupings(codec.layout.model, learned_from)), True
    for sample in fitted:
        try:
            likelihood.add_prompt(statistics, bench, sample, rotary, differentiable)
        except (RuntimeError, NotImplementedError) as error:
            if statistics.draws:
                raise
            differentiable = False
            log.warning("the model cannot be differentiated (%s); noise in each head is measured instead", str(error).splitlines()[0])
        done(1)
    made["metric"] = "Fisher, by gradients" if differentiable else "one number a head, by noise"
    if not differentiable:
        likelihood.from_probes(statistics, bench, fitted[:2])
    tokens, after = len(fitted[0].prompt), len(fitted[0].continuation)
    candidates: dict[Candidate, Basis] = {}
    scores: dict[Candidate, list[float]] = {}
    references = [bench.reference(sample, bench.prefill(sample)) for sample in held_out]

    def score(names: Sequence[Candidate]) -> Candidate:
        raw = {
            name: basis_of_statistics(statistics, rotary, name[2], name[1], name[0], tokens, after, weights if name[3] else None)
            for name in names
        }
        candidates.update({name: learned(raw[name], seen) for name, seen in _seen(bench, codec, raw, fitted[:2]).items()})
        for sample, reference in zip(held_out, references, strict=True):
            held = bench.prefill(sample)
            for name in names:
                found = _klt_divergences(bench, codec, candidates[name], held, sample, reference, DECIDING)
                scores.setdefault(name, []).extend(kl for kl, _ in found)
                done(1)
        return best(scores)

    weights = np.ones((codec.layout.model.layers, codec.layout.model.kv_kinds))
    name = score([(groups, floor, SETTINGS[0], False) for groups in statistics.groups for floor in floors(differentiable)])
    leaders = [best({one: found for one, found in scores.items() if one[0] == groups}) for groups in statistics.groups]
    name = score([(*name[:2], SETTINGS[1], False)])
    told = fitted[-min(len(held_out), len(fitted)) :]  # as many as are held out, so one of each kind where kinds take turns
    weights = shares.corrections(bench, _with_basis(codec, candidates[name]), told, done)
    name = score([(*leader[:3], True) for leader in leaders])
    of_k, of_v = np.exp(np.log(weights).mean(0))
    made["correction of the metric"] = f"K times {of_k:.2f}, V times {of_v:.2f}, {weights.min():.2f} to {weights.max():.2f} by layers"
    made["candidates"] = "; ".join(
        f"{g}, floor {f:g}, exponent {e:g}{', corrected' if c else ''}: {np.exp(np.mean(np.log(s))):.5f}"
        for (g, f, (e, _), c), s in scores.items()
    )
    basis, klt, entropy, ratio = candidates[name], [], [], []
    for sample, reference in zip(held_out, references, strict=True):
        held = bench.prefill(sample)
        found = _klt_divergences(bench, codec, basis, held, sample, reference, SHARES)
        klt.append([kl for kl, _ in found])
        ratio += [kl / said for kl, said in found if 1e-3 < kl < 0.1]
        entropy.append(_entropy_divergences(bench, codec, held, sample, reference))
        done(1)
    if ratio:  # so that the distortion that a stream states is the divergence that was measured
        basis = _restated(basis, float(np.exp(np.mean(np.log(ratio)))))
        made["measured over predicted divergence"] = f"{np.exp(np.mean(np.log(ratio))):.3f} (spread {np.exp(np.std(np.log(ratio))):.2f})"
    table = zip(SHARES, np.mean(klt, 0), np.mean(entropy, 0), strict=True)
    made["divergence klt / entropy by share of raw"] = "; ".join(f"{share:g}: {a:.5f} / {b:.5f}" for share, a, b in table)
    return basis, choices(SHARES, np.array(klt), np.array(entropy))


def floors(differentiable: bool) -> tuple[float, ...]:
    """What is tried; where the metric is one number a head, a floor changes nothing but its scale."""
    return FLOORS if differentiable else FLOORS[:1]


def _restated(basis: Basis, factor: float) -> Basis:
    return replace(basis, nats=basis.nats * factor, digest="")


def _seen(bench: Bench, codec: Codec, bases: Mapping[Candidate, Basis], samples: Sequence[QualitySample]) -> dict[Candidate, Seen]:
    """What the coefficients of some prompts turn out to be, in each basis."""
    found = {name: Seen() for name in bases}
    for sample in samples:
        held = bench.prefill(sample)
        importance = held.importance.tokens(held.pool, held.table, held.tokens)
        cells = codec.cells(held.tokens, 8, "klt")
        for name, basis in bases.items():
            KltCoder(basis, importance, found[name]).encode(held.pool.data, cells.coded_table(held.table), cells)
    return found


def _klt_divergences(
    bench: Bench, codec: Codec, basis: Basis, held: Held, sample: QualitySample, reference: torch.Tensor, at: Sequence[float]
) -> list[tuple[float, float]]:
    """(divergence, stated distortion) where a klt stream is cut at each share of the raw bytes (`at`); inf where it has no such cut."""
    model, own = codec.layout.model, _with_basis(codec, basis)
    importance = held.importance.tokens(held.pool, held.table, held.tokens)
    stream = own.encode(held.pool, held.table, held.tokens, coder="klt", importance=importance)
    found = []
    for share in at:
        cut = stream.curve.cut_within(share * held.tokens * model.kv_bytes_per_token)
        fits = stream.ends[cut] <= share * held.tokens * model.kv_bytes_per_token
        put = partial(own.expand, stream.prefix(cut), held.pool)
        found.append((bench.divergence(sample, put, reference), stream.curve.distortion[cut]) if fits else (float("inf"), 1.0))
    return found


def facts_of(model: ModelSpec, basis: Basis) -> Calibration:
    """A calibration that knows nothing but a basis."""
    shape = model.layers, model.kv_kinds, model.kv_heads
    return Calibration(model.name, 0.0, np.ones(shape), np.zeros(shape, np.uint8), basis=basis)


def _with_basis(codec: Codec, basis: Basis) -> Codec:
    return Codec(codec.layout, tile_tokens=codec.tile_tokens, calibration=facts_of(codec.layout.model, basis))


def _entropy_divergences(bench: Bench, codec: Codec, held: Held, sample: QualitySample, reference: torch.Tensor) -> list[float]:
    own = Codec(codec.layout, tile_tokens=codec.tile_tokens, rope_theta=codec.rope_theta)
    stream = own.encode(held.pool, held.table, held.tokens, coder="entropy")
    found = []
    for share in SHARES:
        budget = share * held.tokens * codec.layout.model.kv_bytes_per_token
        cut = stream.curve.cut_within(budget)
        put = partial(own.expand, stream.prefix(cut), held.pool)
        found.append(bench.divergence(sample, put, reference) if stream.ends[cut] <= budget else float("inf"))
    return found


GAMMAS = (0.0, 0.5)  # exponents of the cells' importance; 0: no weights at all


def _exponent(
    bench: Bench, codec: Codec, plain: Calibration, held_out: Sequence[QualitySample], done: Callable[[int], None], made: dict[str, str]
) -> float:
    """The exponent of importance for the order of the fixed and the entropy coder. All heads count the same, and an exponent other than 0
    must be better on average and at every one of BITS."""
    found: dict[float, list[list[float]]] = {gamma: [] for gamma in GAMMAS}
    for sample in held_out:
        held = bench.prefill(sample)
        reference = bench.reference(sample, held)
        for gamma in GAMMAS:
            facts = Calibration(plain.model, gamma, plain.sensitivity, plain.levels)
            own = Codec(codec.layout, tile_tokens=codec.tile_tokens, rope_theta=codec.rope_theta)
            stream = Cuts("trial", own, seen(facts) if gamma else lambda held, cells: None).stream(held)
            cuts = [stream.slope.cut_within(stream.uniform.bytes[stream.uniform.cut_of_bits(bits)]) for bits in BITS]
            found[gamma].append([bench.divergence(sample, partial(own.expand, stream.prefix(cut), held.pool), reference) for cut in cuts])
            done(1)
    means = {gamma: np.mean(rows, 0) for gamma, rows in found.items()}
    made["divergence by exponent, fixed coder at 1, 2, 3 bits"] = "; ".join(
        f"{g:g}: {', '.join(f'{v:.5f}' for v in m)}" for g, m in means.items()
    )
    return safest(means)


def safest(means: dict[float, np.ndarray]) -> float:
    """The exponent with the least mean logarithm of its divergences among those that are at no rate worse than none (0)."""
    able = [gamma for gamma, found in means.items() if gamma == 0 or (found <= means[0.0]).all()]
    return min(able, key=lambda gamma: (float(np.log(np.maximum(means[gamma], 1e-9)).mean()), gamma))


def _levels(bench: Bench, codec: Codec, samples: Sequence[QualitySample]) -> np.ndarray:
    """Levels of differences of tokens for the entropy coder: the median of what it chooses on two prompts."""
    model = codec.layout.model
    found = []
    for sample in samples[:2]:
        bench.prefill(sample)
        stream = codec.encode(bench.engine.pool, bench.sent, len(sample.prompt), coder="entropy")
        if stream.header.levels.size:
            shape = (model.layers, model.kv_kinds, -1)
            found.append(stream.header.levels.reshape(shape)[..., :: max(1, stream.header.cells.shape[2] // model.kv_heads)])
    none = np.zeros((model.layers, model.kv_kinds, model.kv_heads), dtype=np.uint8)
    return np.median(found, axis=0).astype(np.uint8) if found else none
