"""Bases for the klt coder from the statistics of a calibration, and their choice by prompts that the statistics did not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from abkt.codec.klt.basis import Basis
from abkt.codec.klt.compiled import Seen
from abkt.codec.klt.planes import CLASSES, CONTEXTS, HALF, LATER, MORE, NEAR, POINTS, START, STEPS
from abkt.codec.klt.rotary import Rotary
from abkt.codec.klt.weights import LEAST, TOP
from abkt.policy.view import CoderName
from experiments.quality.likelihood import Statistics

Candidate = TypeVar("Candidate")
LEAST_BITS = 0.05  # of the first pass, bits per value, as the deviations predict
SINK = 14  # least class of the first token, in half octaves: its gradient says too little, because its attention is saturated
PRIOR = 8.0  # bits that a context's formula counts for, beside what was seen


def basis_of_statistics(
    found: Statistics,
    rotary: Rotary,
    setting: tuple[float, float],
    floor: float,
    groups: str,
    tokens: int,
    after: int,
    weights: np.ndarray | None = None,
) -> Basis:
    """The transform whose coefficients are uncorrelated and matter alike: with F the metric of a group, S its covariance and u the
    eigenvectors of F^1/2 S F^1/2, it is u^T F^1/2. The metric is that of the whole group, because errors of several heads that come from
    one coefficient add up. floor: what is added to F in all directions, over its mean eigenvalue in each head, because few prompts leave
    some directions unseen. groups: which heads are together, by name. tokens, after: lengths of prompts and continuations. weights:
    [layers, kinds], what the metric is multiplied with (shares.py); None: 1."""
    count, mean = max(1, found.draws), found.mean / found.prompts
    unit, deviation, matrices = torch.empty(mean.shape[:3], dtype=torch.float64), torch.empty(mean.shape, dtype=torch.float64), []
    chosen, of_group, dim = found.groups[groups], found.metric[setting, groups], mean.shape[-1]
    for number, metric in enumerate(of_group):
        unit[np.nonzero(chosen == number)] = (metric / count).diagonal().reshape(-1, dim).mean(-1)
    level = unit.clamp_min(unit.mean() * 1e-6 + 1e-30)
    unit = level.rsqrt()
    for number, (metric, covariance) in enumerate(zip(of_group, found.covariance[setting, groups], strict=True)):
        of = np.nonzero(chosen == number)
        units = unit[of].repeat_interleave(dim)
        values, vectors = torch.linalg.eigh(units[:, None] * (metric / count) * units + floor * torch.eye(len(metric), dtype=metric.dtype))
        root = vectors * values.clamp_min(1e-9).sqrt() @ vectors.mT
        if weights is not None:
            root = root * torch.from_numpy(weights[of[:2]]).sqrt().repeat_interleave(dim)
        variance, turn = torch.linalg.eigh(root @ (covariance / found.prompts / units[:, None] / units) @ root.mT)
        deviation[of] = variance.flip(-1).clamp_min(0).sqrt().reshape(len(of[0]), -1)
        matrices.append((turn.mT.flip(-2) @ root).half().numpy().ravel())
    least = (found.squared / count / (found.scaled[setting] / count).clamp_min(1e-30)[..., None]).clamp_min(1e-9)
    first = least.log2().round().clamp(LEAST, TOP).to(torch.int16)
    first[..., 0].clamp_(min=SINK)
    chances, points = formula()
    deviations = deviation.float().numpy()
    return Basis(
        chosen, np.concatenate(matrices), unit.float().numpy(), deviations, mean.float().numpy(), first.numpy(), rotary, chances, points,
        step=step_of(deviations), exponent=setting[0], mixing=setting[1], nats=0.5 * tokens / after,
    )  # fmt: skip


def step_of(deviation: np.ndarray) -> float:
    """The step at which coefficients of these deviations need LEAST_BITS per value, by the high-rate formula."""
    low, high = float(deviation.max()) * 1e-9, float(deviation.max())
    for _ in range(60):
        step = (low * high) ** 0.5
        if np.log2(np.maximum(1.0, 1.2 * deviation / step)).mean() > LEAST_BITS:
            low = step
        else:
            high = step
    return step


def formula() -> tuple[np.ndarray, np.ndarray]:
    """chances and points of PlaneTables for a Laplacian coefficient, where nothing was seen."""
    k = np.arange(START, START + CLASSES)
    rate = np.sqrt(2) / 2 ** (k / 4)  # of the exponential fall, per step
    zero = np.empty(CONTEXTS)
    zero[:LATER] = np.repeat(1 - np.exp(-rate), NEAR)
    zero[LATER:MORE] = np.repeat(1 / (1 + np.exp(-rate)), NEAR)  # the nearer half of the two steps of a zero
    zero[MORE:HALF] = np.repeat(1 - np.exp(-rate), STEPS)  # no more
    zero[HALF:] = np.repeat(1 / (1 + np.exp(-rate)), POINTS)
    points = np.repeat((1 / rate - 1 / np.expm1(rate))[:, None], POINTS, 1)
    return np.clip(zero * 65_536, 32, 65_504).astype(np.uint16), np.clip(points, 0.05, 0.5).astype(np.float32)


def learned(basis: Basis, seen: Seen) -> Basis:
    """The basis with chances and points as they were seen; what was hardly seen keeps to the formula."""
    chances, points = formula()
    prior = chances / 65_536
    zero = (seen.bits[:, 0] + PRIOR * prior) / (seen.bits.sum(1) + PRIOR)
    point = (seen.offsets[..., 0] + PRIOR * points) / (seen.offsets[..., 1] + PRIOR)
    clipped = np.clip(np.round(zero * 65_536), 32, 65_504).astype(np.uint16)
    return replace(basis, chances=clipped, points=np.clip(point, 0, 1).astype(np.float32), digest="")


def best(scores: Mapping[Candidate, Sequence[float]]) -> Candidate:
    """The candidate with the least mean logarithm of its divergences."""
    return min(scores, key=lambda name: float(np.mean(np.log(np.maximum(scores[name], 1e-9)))))


def choices(shares: Sequence[float], klt: np.ndarray, entropy: np.ndarray) -> tuple[tuple[float, CoderName], ...]:
    """(share of raw, coder) by share: klt where its mean divergence over held-out prompts is below that of the entropy coder without a
    calibration. klt, entropy: [prompts, shares], nan or inf where a coder does not reach the share (then the other one is taken)."""
    klt, entropy = (np.where(np.isfinite(a), a, np.inf).mean(0) for a in (klt, entropy))
    return tuple((float(share), "klt" if a < b else "entropy") for share, a, b in zip(shares, klt, entropy, strict=True))
