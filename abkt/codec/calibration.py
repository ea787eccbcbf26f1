"""Facts about a model that are measured once, before any request: how far predicted importance can be trusted, how much an error in each
head changes the model's answers, and which heads are coded as differences of neighbouring tokens.

With the klt coder (klt/basis.py) the facts are a transform of each head in the metric of the model's likelihood, and which coder was better
on prompts that the calibration had not seen. For the other two coders a cell's weight is sensitivity[layer, kind, kv_head] *
importance**gamma. Sensitivity is the divergence of the model's answers for a unit of relative squared error in that head. gamma lies
between 0 (importance is ignored) and 1 (importance is trusted fully). Both are measured, because importance that is assumed rather than
measured can do harm: in ABKT's first implementation the perplexity was 8.32 with it, and 7.76 without it at equal size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import numpy as np

from abkt.codec.divergence import DivergenceLaw
from abkt.codec.entropy.haar import MOST_LEVELS
from abkt.codec.klt.basis import Basis, basis_of
from abkt.policy.view import CoderName
from abkt.spec import KVLayout

VERSION = 1
TENSORS = ".safetensors"  # of a file with a klt basis


@dataclass(frozen=True, slots=True)
class Calibration:
    """The measured facts about one model.

    Parameters
    ----------
    model : name of the model.
    gamma : exponent of importance, in [0, 1].
    sensitivity : [layers, kinds, kv_heads] float64, above 0; only ratios between heads matter.
    levels : [layers, kinds, kv_heads] uint8, how many levels of differences along tokens (entropy/haar.py) the entropy coder uses.
    about : how the calibration was made, in words.
    basis : what the klt coder needs; None: it is not used.
    choices : (share of raw bytes, coder): the coder that was better on held-out prompts at and above that size, rising.
    fingerprint : of the model's files; empty: not known.
    laws : coder -> what its streams predict of the divergence of answers; both of fixed and entropy, and only with a basis, or neither.

    Raises
    ------
    ValueError : for shapes that differ, and for values out of range.
    """

    model: str
    gamma: float
    sensitivity: np.ndarray
    levels: np.ndarray
    about: dict[str, str] = field(default_factory=dict)
    basis: Basis | None = None
    choices: tuple[tuple[float, CoderName], ...] = ()
    fingerprint: str = ""
    laws: Mapping[str, DivergenceLaw] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sensitivity.ndim != 3 or self.sensitivity.shape != self.levels.shape:
            raise ValueError(
                f"calibration of {self.model}: sensitivity {self.sensitivity.shape} and levels {self.levels.shape} must both be "
                "[layers, kinds, kv_heads]"
            )
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"calibration of {self.model}: gamma is {self.gamma}; it lies in [0, 1]")
        if not (np.isfinite(self.sensitivity).all() and (self.sensitivity > 0).all()):
            raise ValueError(f"calibration of {self.model}: a sensitivity is not finite or not above 0")
        if self.levels.dtype != np.uint8 or self.levels.max(initial=0) > MOST_LEVELS:
            raise ValueError(f"calibration of {self.model}: levels must be uint8, 0 to {MOST_LEVELS}")
        if list(self.choices) != sorted(self.choices) or not {coder for _, coder in self.choices} <= {"entropy", "klt"}:
            raise ValueError(f"calibration of {self.model}: choices must be (share of raw, entropy or klt), rising")
        if self.laws and (set(self.laws) != {"fixed", "entropy"} or self.basis is None):
            raise ValueError(f"calibration of {self.model}: divergence laws must be of fixed and entropy, and beside a klt basis")

    def coder_at(self, of_raw: float) -> CoderName:
        """The better of entropy and klt where a stream is cut at this share of the raw bytes, as held-out prompts said."""
        if self.basis is None:
            return "entropy"
        found = [coder for share, coder in self.choices if share <= of_raw] or [coder for _, coder in self.choices[:1]]
        return found[-1] if found else "klt"

    @property
    def predicts(self) -> str:
        """The digest, if streams of every coder state the divergence of answers in nats a token; empty: a relative squared error."""
        return self.digest if self.laws else ""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name what the codec uses of it: gamma, sensitivity, levels, basis and laws. Curves carry it."""
        parts = (np.float64(self.gamma), np.array(self.sensitivity.shape), self.sensitivity.astype("<f8"), self.levels)
        basis = bytes.fromhex(self.basis.digest) if self.basis else b""
        laws = b"".join(np.array(astuple(self.laws[name]), "<f8").tobytes() for name in sorted(self.laws))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts) + basis + laws).hexdigest()[:16]

    def check(self, layout: KVLayout) -> None:
        """Raises ValueError, with both shapes, unless the calibration fits KV of this layout."""
        model = layout.model
        needed = (model.layers, model.kv_kinds, model.kv_heads)
        if self.sensitivity.shape != needed:
            raise ValueError(f"calibration of {self.model} has (layers, kinds, kv_heads) = {self.sensitivity.shape}; the pool has {needed}")
        if self.basis:
            self.basis.check(layout)

    def check_files(self, fingerprint: str) -> None:
        """Raise ValueError, one line, if it was made on other weights. fingerprint: of the model that is served."""
        if self.fingerprint and fingerprint and self.fingerprint != fingerprint:
            raise ValueError(f"calibration of {self.model} ({self.fingerprint}) was made on other weights than those here ({fingerprint})")

    def part(self, first: int, stop: int) -> Calibration:
        """The calibration of some layers."""
        of = slice(first, stop)
        basis = self.basis.part(first, stop) if self.basis else None
        return replace(self, sensitivity=self.sensitivity[of], levels=self.levels[of], basis=basis)

    def save(self, path: Path) -> None:
        """Write it: as safetensors with a basis, else as JSON. The file is replaced in one step, so that it is never half written.

        Raises ValueError for a basis and a name that does not end in .safetensors, or the other way round.
        """
        if (path.suffix == TENSORS) != (self.basis is not None):
            raise ValueError(f"calibration {path}: a file with a klt basis ends in {TENSORS}, and one without in .json")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        if self.basis:
            from safetensors.numpy import save_file

            said = {
                "version": str(VERSION), "model": self.model, "gamma": repr(self.gamma), "fingerprint": self.fingerprint,
                "choices": json.dumps(self.choices), "about": json.dumps(self.about),
                "laws": json.dumps({name: astuple(law) for name, law in self.laws.items()}),
            }  # fmt: skip
            arrays = {"sensitivity": self.sensitivity.astype(np.float64), "levels": self.levels, **self.basis.arrays()}
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part, said)
            part.replace(path)
            return
        body = {
            "version": VERSION, "model": self.model, "gamma": self.gamma, "sensitivity": self.sensitivity.tolist(),
            "levels": self.levels.tolist(), "about": self.about,
        }  # fmt: skip
        part.write_text(json.dumps(body, indent=1) + "\n")
        part.replace(path)


def load(path: Path) -> Calibration:
    """Read a calibration. Raises ValueError, in one line, if the file is missing, not a calibration, of another version, or out of
    range."""
    if path.suffix == TENSORS:
        return _load_tensors(path)
    try:
        body = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"calibration {path} does not exist") from None
    except ValueError as error:  # bad JSON, or a bad encoding of characters
        raise ValueError(f"calibration {path} is not JSON: {error}") from None
    if not isinstance(body, dict) or body.get("version") != VERSION:
        found = body.get("version") if isinstance(body, dict) else None
        raise ValueError(f"calibration {path} has version {found}; version {VERSION} can be read")
    try:
        levels = np.array(body["levels"], dtype=np.int64)
        if levels.size and not 0 <= levels.min() <= levels.max() <= MOST_LEVELS:
            raise ValueError(f"levels must be 0 to {MOST_LEVELS}")
        sensitivity = np.array(body["sensitivity"], dtype=np.float64)
        return Calibration(str(body["model"]), float(body["gamma"]), sensitivity, levels.astype(np.uint8), dict(body.get("about", {})))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"calibration {path} is damaged: {error}") from None


def _load_tensors(path: Path) -> Calibration:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"calibration {path} does not exist")
    try:
        with safe_open(path, framework="np") as file:
            said, arrays = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"calibration {path} is not a safetensors file, or it is cut: {error}") from None
    if said.get("version") != str(VERSION):
        raise ValueError(f"calibration {path} has version {said.get('version')}; version {VERSION} can be read")
    try:
        choices = tuple((float(share), coder) for share, coder in json.loads(said["choices"]))
        sensitivity, levels = arrays.pop("sensitivity"), arrays.pop("levels")
        made = said["model"], float(said["gamma"]), sensitivity, levels, json.loads(said["about"])
        laws = {name: DivergenceLaw(*map(float, numbers)) for name, numbers in json.loads(said.get("laws", "{}")).items()}
        return Calibration(*made, basis_of(arrays), choices, said["fingerprint"], laws)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"calibration {path} is damaged: {error}") from None
