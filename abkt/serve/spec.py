"""What a cluster on this machine consists of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from abkt.serve.engine.engine import read_spec
from abkt.spec import KVLayout


@dataclass(frozen=True, slots=True)
class LocalClusterSpec:
    """Prefill workers p0, p1, … and decode workers d0, d1, …: one process and thread each, on a core of its own as far as there are cores.

    Parameters
    ----------
    model_folder : a Hugging Face model folder, which every worker loads.
    prefill, decode : how many workers of each role.
    pool_tokens : tokens of KV that each worker's pool holds.
    block_tokens : tokens of one block of the pool.
    max_batch : requests that a decode worker decodes at a time.
    device : cpu or cuda, where the workers compute and keep their pools.
    stall_timeout_s : a run fails when no worker reports anything for so long.
    importance_window : last queries of a prompt that weigh its cells in slope order; 0: all cells weigh the same.
    calibration : the model's calibration.json, as `abkt quality calibrate=true` writes it; None: none.
    layer_groups : a prompt's KV is sent in this many groups of layers, each as soon as it is computed; 1: all at once, after prefill.
    key_file : the key that authenticates transfers; empty: the one that ABKT_KEY_FILE names, or none.
    encrypt : whether transfers are encrypted too; needs a key.
    paced : the profile.json of a machine that the workers stand for: they sleep its times (compute=paced). None: they compute.
    transport : a name of `abkt.transfer.transports.registry`.
    shares_device : all workers share one device, and take turns with it.

    Raises
    ------
    ValueError : in one line, where the fields do not go together.
    """

    model_folder: Path
    prefill: int = 1
    decode: int = 1
    pool_tokens: int = 16_384
    block_tokens: int = 16
    max_batch: int = 8
    device: str = "cpu"
    stall_timeout_s: float = 60.0
    importance_window: int = 32
    calibration: Path | None = None
    layer_groups: int = 1
    key_file: str = ""
    encrypt: bool = False
    paced: Path | None = None
    transport: str = "tcp"
    shares_device: bool = False

    def __post_init__(self) -> None:
        if self.shares_device and self.paced:
            raise ValueError(
                "paced workers sleep instead of computing, so they cannot share a device; shares_device goes with compute=real"
            )
        if self.layer_groups < 1 or (self.paced and self.layer_groups > 1):
            raise ValueError(f"layer_groups is {self.layer_groups}; it must be at least 1, and 1 where compute is paced")
        if min(self.prefill, self.decode, self.max_batch) < 1:
            raise ValueError(
                f"{self.prefill} prefill and {self.decode} decode workers, max_batch {self.max_batch}: each must be at least 1"
            )

    def layout(self) -> KVLayout:
        """Of each worker's pool. Raises ValueError where the model folder cannot be read."""
        return KVLayout(read_spec(self.model_folder), blocks=self.pool_tokens // self.block_tokens, block_tokens=self.block_tokens)

    @property
    def compute(self) -> str:
        """real or paced, as records say it."""
        return "paced" if self.paced else "real"
