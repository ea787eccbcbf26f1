"""What the klt coder knows of a model: the transform of its heads into coefficients that matter alike, and how large they are.

The channels of a *group* of heads (one head, or K and V of the heads of some layers) become coefficients together, by one matrix. A unit of
squared error in a coefficient costs the same likelihood, whatever group it lies in, and the coefficients of a group are not correlated. So
one step for all of them is the best there is (reverse water-filling), and a stream's distortion is a prediction of the divergence of the
model's answers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch

from abkt.codec.klt.planes import CLASSES, CONTEXTS, POINTS, PlaneTables
from abkt.codec.klt.rotary import PAIRS, Rotary
from abkt.spec import KVLayout, ModelSpec

FIRST_TOKENS = 4  # attention sinks: tokens whose own classes a calibration holds
PLANES = (0, 1, 2, 3, 5, 8)  # of the passes of a depth of 8 bits
ARRAYS = {
    "groups": "int16", "matrices": "float16", "unit": "float32", "deviation": "float32", "mean": "float32", "first": "int16",
    "styles": "uint8", "frequencies": "float32", "chances": "uint16", "points": "float32", "numbers": "float64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Basis:
    """The transform of the heads of a model. D is head_dim.

    Parameters
    ----------
    groups : [layers, kinds, kv_heads] int16, the number of each head's group, 0 to the number of groups less 1.
    matrices : float16, the matrix of each group, one after the other, [n, n] for n channels of its heads in order; coefficients by falling
        variance are matrix @ ((x - mean) / unit). x is V, or K without its rotation.
    unit : [layers, kinds, kv_heads] float32, above 0.
    deviation : [layers, kinds, kv_heads, D] float32, standard deviation of each coefficient. The coefficients of a group are dealt to its
        heads in order: D to the first, D to the next.
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

    groups: np.ndarray
    matrices: np.ndarray
    unit: np.ndarray
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
    members: tuple[np.ndarray, ...] = field(init=False, repr=False, compare=False)
    _made: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        layers, kinds, _, dim = shape = self.deviation.shape
        counts = np.bincount(self.groups.ravel().clip(0)) if self.groups.size else np.zeros(1, int)
        expected = {
            "groups": shape[:3], "matrices": (int(np.square(counts * dim).sum()),), "unit": shape[:3],
            "deviation": shape, "mean": shape, "first": (*shape[:3], FIRST_TOKENS), "chances": (CONTEXTS,), "points": (CLASSES, POINTS),
        }  # fmt: skip
        for name, size in expected.items():
            if getattr(self, name).shape != size:
                raise ValueError(f"klt basis: {name} is {list(getattr(self, name).shape)}; it must be {list(size)}")
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"klt basis: {name} holds a number that is not finite")
        if self.groups.min() < 0 or not counts.all():
            raise ValueError("klt basis: groups must be numbered from 0, without a gap")
        object.__setattr__(self, "members", tuple(np.argwhere(self.groups == number) for number in range(len(counts))))
        styles, frequencies = self.rotary.styles, self.rotary.frequencies
        if styles.shape != (layers,) or frequencies.shape[0] != layers or 2 * frequencies.shape[1] > dim or int(styles.max()) > PAIRS:
            raise ValueError(f"klt basis: rotations {list(styles.shape)} and {list(frequencies.shape)} do not fit {layers} layers of {dim}")
        if kinds != 2 or not bool(torch.isfinite(frequencies).all()) or (self.deviation < 0).any() or (self.unit <= 0).any():
            raise ValueError("klt basis: it must hold K and V, with finite frequencies, deviations of at least 0 and units above 0")
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

    def _stored(self, number: int) -> np.ndarray:
        sizes = np.array([len(each) for each in self.members]) * self.deviation.shape[-1]
        start, size = int(np.square(sizes[:number]).sum()), int(sizes[number])
        return self.matrices[start : start + size * size].reshape(size, size)

    def matrix(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The matrix of a group with its units, [n, n] float32, and its inverse. Raises ValueError, one line, if it has none."""
        if number not in self._made:
            unit = self.unit[tuple(self.members[number].T)].repeat(self.deviation.shape[-1])
            made = torch.from_numpy(self._stored(number).astype(np.float64) / unit)
            inverse, failed = torch.linalg.inv_ex(made)
            if int(failed) or not bool(torch.isfinite(inverse).all()):
                raise ValueError(f"klt basis: the matrix of group {number} has no inverse")
            self._made[number] = made.float(), inverse.float()
        return self._made[number]

    def ranks(self) -> np.ndarray:
        """Places in [layers, kinds, kv_heads, D], flat, so that a table of D columns in this order has coefficients of falling variance
        from left to right, each row of one group."""
        dim, flat = self.deviation.shape[-1], np.arange(self.deviation.size).reshape(self.deviation.shape)
        return np.concatenate([flat[tuple(of.T)].reshape(dim, len(of)).T.ravel() for of in self.members])

    def ends(self) -> tuple[int, ...]:
        """The numbers of layers, rising, after which no group goes on that has begun."""
        layers = len(self.groups)
        last = [max(self.members[number][-1, 0] for number in np.unique(of_layer)) for of_layer in self.groups]
        reach = np.maximum.accumulate(last)
        return tuple(layer + 1 for layer in range(layers) if reach[layer] == layer)

    def klass(self, layer: int, kind: int, head: int) -> np.ndarray:
        """Classes of the coefficients of a head at the first step, int32 (planes.py)."""
        with np.errstate(divide="ignore"):
            return np.clip(np.round(4 * np.log2(self.deviation[layer, kind, head] / self.step)), -400, 400).astype(np.int32)

    def check(self, layout: KVLayout) -> None:
        """Raise ValueError, one line, unless the basis fits the layout's model."""
        model = layout.model
        if self.deviation.shape != (model.layers, model.kv_kinds, model.kv_heads, model.head_dim):
            theirs = f"[layers, kinds, kv_heads, head_dim] = {list(self.deviation.shape)}"
            ours = [model.layers, model.kv_kinds, model.kv_heads, model.head_dim]
            raise ValueError(f"the klt basis of the calibration is of {theirs}; model {model.name} has {ours}")
        windows = model.layer_windows or (0,) * model.layers
        if any(len({windows[layer] for layer in of[:, 0]}) > 1 for of in self.members):
            raise ValueError(
                f"the klt basis of the calibration has a group of layers whose windows differ in model {model.name}: {windows}"
            )

    def part(self, first: int, stop: int) -> Basis:
        """The basis of some layers. It keeps the name of the whole, and predicts the divergence as if all layers were like these.

        Raises ValueError, one line, if it would divide a group.
        """
        of, nats = slice(first, stop), self.nats * len(self.deviation) / (stop - first)
        if not {first, stop} <= {0, *self.ends()}:
            raise ValueError(f"the klt basis has groups of layers that end at {self.ends()}; layers {first} to {stop} divide one")
        kept, groups = np.unique(self.groups[of], return_inverse=True)
        matrices = np.concatenate([self._stored(number).ravel() for number in kept.tolist()])
        return Basis(
            groups.reshape(self.groups[of].shape).astype(np.int16), matrices, self.unit[of], self.deviation[of], self.mean[of],
            self.first[of], self.rotary.part(first, stop), self.chances, self.points, self.step, self.exponent, self.mixing, nats,
            self.digest,
        )  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays by name, for a file."""
        numbers = np.array([self.step, self.exponent, self.mixing, self.nats])
        rotary = self.rotary.styles.numpy(), self.rotary.frequencies.numpy()
        kept = self.groups, self.matrices, self.unit, self.deviation, self.mean, self.first
        parts = (*kept, *rotary, self.chances, self.points, numbers)
        return dict(zip(ARRAYS, parts, strict=True))


def basis_of(arrays: dict[str, np.ndarray]) -> Basis:
    """The inverse of `Basis.arrays`. Raises ValueError, one line, where an array is missing or is not what it must be."""
    if "matrices" not in arrays and "forward" in arrays:
        raise ValueError("klt basis: it is of an earlier version, which transformed each head by itself; calibrate again")
    for name, dtype in ARRAYS.items():
        if name not in arrays or str(arrays[name].dtype) != dtype:
            raise ValueError(f"klt basis: {name} is missing, or is not {dtype}")
    groups, matrices, unit, deviation, mean, first, styles, frequencies, chances, points, numbers = (arrays[n] for n in ARRAYS)
    if deviation.ndim != 4 or numbers.shape != (4,) or not deviation.size:
        raise ValueError(
            f"klt basis: deviation is {list(deviation.shape)}, numbers {list(numbers.shape)}; it must be [layers, kinds, heads, D] and [4]"
        )
    step, exponent, mixing, nats = numbers.tolist()
    rotary = Rotary(torch.from_numpy(styles.copy()), torch.from_numpy(frequencies.copy()))
    return Basis(groups, matrices, unit, deviation, mean, first, rotary, chances, points, step, exponent, mixing, nats)


def by_layer(members: np.ndarray) -> list[tuple[int, int, slice, np.ndarray]]:
    """(layer, kind, rows of members, their heads) of the heads of a group, [n, 3]."""
    found, start = [], 0
    for (layer, kind), rows in groupby(members.tolist(), key=lambda row: (row[0], row[1])):
        heads = np.array([row[2] for row in rows])
        found.append((layer, kind, slice(start, start + len(heads)), heads))
        start += len(heads)
    return found


def refusal(model: ModelSpec) -> str:
    """Why the klt coder cannot code a model's KV, in one line; empty if it can."""
    if model.kv_kinds != 2:
        return f"the klt coder needs K and V of each head; model {model.name} has one latent (MLA): take coder fixed or entropy"
    return ""
