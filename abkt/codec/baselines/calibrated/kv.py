"""What every codec that calibrates is given: KV of the calibration texts, their RoPE, and how much an error in each channel matters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from abkt.codec.baselines.rope import Rope, unrotated

SINKS = 4  # first tokens of a prompt, whose keys are unlike all others


@dataclass(frozen=True)
class CalibrationKV:
    """KV of calibration texts.

    Parameters
    ----------
    kv : KV of each text as it lies in the cache, [layers, 2, heads, tokens, head_dim] of any floating dtype.
    rope : the model's RoPE.
    fisher : [layers, 2, heads, head_dim, head_dim], empirical Fisher information of K (before RoPE) and V, mean over tokens.

    Raises
    ------
    ValueError : one line, for no KV, KV that is not finite or of different shapes, or a Fisher information that does not fit it.
    """

    kv: tuple[torch.Tensor, ...]
    rope: Rope
    fisher: torch.Tensor

    def __post_init__(self) -> None:
        if not self.kv:
            raise ValueError("calibration needs the KV of at least one text")
        for x in self.kv:
            if x.ndim != 5 or x.shape[1] != 2 or x.shape[3] <= SINKS:
                raise ValueError(f"calibration KV {tuple(x.shape)} is not [layers, 2, heads, tokens, head_dim] of more than {SINKS} tokens")
            layers, kinds, heads, _, dim = x.shape
            if self.fisher.shape != (layers, kinds, heads, dim, dim):
                raise ValueError(f"Fisher information {tuple(self.fisher.shape)} does not fit KV {tuple(x.shape)}")
            if not x.isfinite().all():
                raise ValueError("calibration KV is not finite")
        if not self.fisher.isfinite().all():
            raise ValueError("the Fisher information is not finite")

    def unrotated(self, every: int = 1) -> torch.Tensor:
        """Every `every`-th token but the sinks, K before RoPE: [layers, 2, heads, tokens of all texts, head_dim] float32."""
        return torch.cat([unrotated(x, self.rope)[..., SINKS::every, :] for x in self.kv], 3)

    @property
    def diagonal(self) -> torch.Tensor:
        """[layers, 2, heads, head_dim] float32: what a unit of squared error in a channel costs."""
        return torch.diagonal(self.fisher, dim1=-2, dim2=-1).float().clamp_min(0)

    @property
    def of_heads(self) -> torch.Tensor:
        """[layers, 2, heads] float32: what a unit of squared error costs, mean over channels; the same before and after RoPE."""
        return self.diagonal.mean(-1).clamp_min(1e-30)

    def save(self, path: Path) -> None:
        """Write it as safetensors. The file is replaced in one step, so that it is never half written."""
        tensors = {f"kv{i}": x.contiguous() for i, x in enumerate(self.kv)}
        tensors |= {"fisher": self.fisher.contiguous(), "thetas": torch.tensor(self.rope.thetas, dtype=torch.float64)}
        part = path.with_suffix(".part")
        save_file(tensors, part)
        part.replace(path)


def load(path: Path) -> CalibrationKV:
    """Read what `save` wrote. Raises ValueError, one line, where the file cannot be read or is something else."""
    try:
        read = load_file(path)
        kv = tuple(read[f"kv{i}"] for i in range(len(read) - 2))
        return CalibrationKV(kv, Rope(tuple(read["thetas"].tolist())), read["fisher"])
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"{path} holds no KV of calibration texts: {error}; remove it, and it is made again") from None
