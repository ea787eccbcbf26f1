"""What the klt coder knows of a model: for each head the transform into coefficients that matter alike, and how large they are.

A unit of squared error in a coefficient costs the same likelihood, whatever layer, head or channel it lies in. So one step for all of them
is the best there is (reverse water-filling), and a stream's distortion is a prediction of the divergence of the model's answers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch

from abkt.codec.klt.planes import CLASSES, CONTEXTS, POINTS, PlaneTables
from abkt.codec.klt.rotary import PAIRS, Rotary
from abkt.spec import KVLayout, ModelSpec

FIRST_TOKENS = 4  # attention sinks: tokens whose own classes a calibration holds
PLANES = (0, 1, 2, 3, 5, 8)  # of the passes of a depth of 8 bits
ARRAYS = ("forward", "inverse", "deviation", "mean", "first", "styles", "frequencies", "chances", "points", "numbers")


@dataclass(frozen=True, slots=True)
class Basis:
    """The transform of each head of a model. D is head_dim.

    Parameters
    ----------
    forward, inverse : [layers, kinds, kv_heads, D, D] float32; coefficients = forward @ (x - mean), by falling variance. x is V, or K
        without its rotation.
    deviation : [layers, kinds, kv_heads, D] float32, standard deviation of each coefficient.
    mean : [layers, kinds, kv_heads, D] float32.
    first : [layers, kinds, kv_heads, FIRST_TOKENS] int16, least classes of the first tokens (weights.py).
    rotary : how K rotates.
    chances, points : see PlaneTables.
    step : the step of the first pass.
    exponent, mixing : how the last queries' attention becomes classes of tokens (weights.py).
    nats : predicted divergence (nats a token) for a mean squared error of 1 a token, summed over all coefficients of the model.
    digest : names the basis; empty: computed.

    Raises
    ------
    ValueError : one line, for shapes that do not fit, and for numbers that are not finite or out of range.
    """

    forward: np.ndarray
    inverse: np.ndarray
    deviation: np.ndarray
    mean: np.ndarray
    first: np.ndarray
    rotary: Rotary
    chances: np.ndarray
    points: np.ndarray
    step: float
    exponent: float
    mixing: float
    nats: float
    digest: str = field(default="")

    def __post_init__(self) -> None:
        layers, kinds, _, dim = shape = self.forward.shape[:4]
        expected = {
            "forward": (*shape, dim), "inverse": (*shape, dim), "deviation": shape, "mean": shape, "first": (*shape[:3], FIRST_TOKENS),
            "chances": (CONTEXTS,), "points": (CLASSES, POINTS),
        }  # fmt: skip
        for name, size in expected.items():
            if getattr(self, name).shape != size:
                raise ValueError(f"klt basis: {name} is {list(getattr(self, name).shape)}; it must be {list(size)}")
            if not np.isfinite(getattr(self, name).astype(np.float64)).all():
                raise ValueError(f"klt basis: {name} holds a number that is not finite")
        styles, frequencies = self.rotary.styles, self.rotary.frequencies
        if styles.shape != (layers,) or frequencies.shape[0] != layers or 2 * frequencies.shape[1] > dim or int(styles.max()) > PAIRS:
            raise ValueError(f"klt basis: rotations {list(styles.shape)} and {list(frequencies.shape)} do not fit {layers} layers of {dim}")
        if kinds != 2 or not bool(torch.isfinite(frequencies).all()) or (self.deviation < 0).any():
            raise ValueError("klt basis: it must hold K and V, with finite frequencies and deviations of at least 0")
        if not ((self.points >= 0) & (self.points <= 1)).all() or self.chances.min() < 32 or self.chances.max() > 65_504:
            raise ValueError("klt basis: a chance or a point of reconstruction is out of range")
        numbers = (self.step, self.nats, self.exponent, self.mixing)
        if not (np.isfinite(numbers).all() and self.step > 0 and self.nats > 0 and 0 <= self.exponent <= 2 and 0 <= self.mixing <= 1):
            raise ValueError(
                f"klt basis: step {self.step}, nats {self.nats}, exponent {self.exponent} or mixing {self.mixing} is out of range"
            )
        if not self.digest:
            object.__setattr__(
                self, "digest", hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in self.arrays().values())).hexdigest()[:16]
            )

    @property
    def tables(self) -> PlaneTables:
        return PlaneTables(self.chances, self.points, PLANES)

    def klass(self, layer: int, kind: int, head: int) -> np.ndarray:
        """Classes of the coefficients of a head at the first step, int32 (planes.py)."""
        with np.errstate(divide="ignore"):
            return np.clip(np.round(4 * np.log2(self.deviation[layer, kind, head] / self.step)), -400, 400).astype(np.int32)

    def check(self, layout: KVLayout) -> None:
        """Raise ValueError, one line, unless the basis fits the layout's model."""
        model = layout.model
        if self.forward.shape[:4] != (model.layers, model.kv_kinds, model.kv_heads, model.head_dim):
            theirs = f"[layers, kinds, kv_heads, head_dim] = {list(self.forward.shape[:4])}"
            ours = [model.layers, model.kv_kinds, model.kv_heads, model.head_dim]
            raise ValueError(f"the klt basis of the calibration is of {theirs}; model {model.name} has {ours}")

    def part(self, first: int, stop: int) -> Basis:
        """The basis of some layers. It keeps the name of the whole, and predicts the divergence as if all layers were like these."""
        of, nats = slice(first, stop), self.nats * len(self.forward) / (stop - first)
        return Basis(
            self.forward[of], self.inverse[of], self.deviation[of], self.mean[of], self.first[of], self.rotary.part(first, stop),
            self.chances, self.points, self.step, self.exponent, self.mixing, nats, self.digest,
        )  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays by name, for a file."""
        numbers = np.array([self.step, self.exponent, self.mixing, self.nats])
        rotary = self.rotary.styles.numpy(), self.rotary.frequencies.numpy()
        parts = (self.forward, self.inverse, self.deviation, self.mean, self.first, *rotary, self.chances, self.points, numbers)
        return dict(zip(ARRAYS, parts, strict=True))


def basis_of(arrays: dict[str, np.ndarray]) -> Basis:
    """The inverse of `Basis.arrays`. Raises ValueError, one line, where an array is missing or is not what it must be."""
    types = (*["float32"] * 4, "int16", "uint8", "float32", "uint16", "float32", "float64")
    for name, dtype in zip(ARRAYS, types, strict=True):
        if name not in arrays or str(arrays[name].dtype) != dtype:
            raise ValueError(f"klt basis: {name} is missing, or is not {dtype}")
    forward, inverse, deviation, mean, first, styles, frequencies, chances, points, numbers = (arrays[name] for name in ARRAYS)
    if forward.ndim != 5 or numbers.shape != (4,) or not forward.size:
        raise ValueError(
            f"klt basis: forward is {list(forward.shape)}, numbers {list(numbers.shape)}; it must be [layers, kinds, heads, D, D] and [4]"
        )
    step, exponent, mixing, nats = numbers.tolist()
    rotary = Rotary(torch.from_numpy(styles.copy()), torch.from_numpy(frequencies.copy()))
    return Basis(forward, inverse, deviation, mean, first, rotary, chances, points, step, exponent, mixing, nats)


def refusal(model: ModelSpec) -> str:
    """Why the klt coder cannot code a model's KV, in one line; empty if it can."""
    if model.kv_kinds != 2:
        return f"the klt coder needs K and V of each head; model {model.name} has one latent (MLA): take coder fixed or entropy"
    return ""
