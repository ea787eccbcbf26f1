"""The specification of a cluster on this machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from abkt.codec.calibration import load
from abkt.policy.view import CoderName
from abkt.ranges import bound
from abkt.serve.engine.compute_dtype import ComputeDtype, compute_dtype
from abkt.serve.engine.engine import read_spec
from abkt.spec import KVLayout

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class LocalClusterSpec:
    """Prefill workers p0, p1, … and decode workers d0, d1, …. Each is one process and thread, on its own core while there are enough.

    Parameters
    ----------
    model_folder : a Hugging Face model folder, which every worker loads.
    prefill, decode : number of workers of each role.
    pool_tokens : tokens of KV that each worker's pool holds.
    block_tokens : tokens in one block of the pool.
    max_batch : most requests in one batch of a decode worker.
    device : cpu or cuda, where the workers compute and keep their pools.
    dtype : what the workers compute in; auto: what is fast on this machine. KV keeps the model's dtype.
    stall_timeout_s : a run fails if no worker reports anything for this many seconds.
    importance_window : number of last queries of a prompt that give its cells their weights in slope order; 0: all weights are equal.
    calibration : the model's calibration.json, as `abkt quality calibrate=true` writes it; None: none.
    layer_groups : a prompt's KV is sent in this many groups of layers, each as soon as it is computed; 1: all at once, after prefill.
    key_file : file of the key that authenticates transfers; empty: the file that ABKT_KEY_FILE names, or no key.
    encrypt : whether transfers are encrypted as well; this needs a key.
    paced : profile.json of a machine; the workers sleep its times instead of computing (compute=paced). None: the workers compute.
    transport : a name in `abkt.transfer.transports.registry`.
    shares_device : whether all workers share one device and take turns with it.

    Raises
    ------
    ValueError : one line, if the fields contradict each other.
    """

    model_folder: Path
    prefill: int = 1
    decode: int = 1
    pool_tokens: int = 16_384
    block_tokens: int = 16
    max_batch: int = 8
    device: str = "cpu"
    dtype: str = "auto"
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
        bound(self, "prefill", "decode", "max_batch", "layer_groups", "block_tokens", least=1)
        bound(self, "pool_tokens", least=self.block_tokens)
        bound(self, "importance_window", least=0)
        bound(self, "stall_timeout_s", above=0, infinite=True)
        if self.paced and self.layer_groups > 1:
            raise ValueError(f"layer_groups is {self.layer_groups}; it must be 1 where compute is paced")
        if self.dtype not in ("auto", *COMPUTE_DTYPES):
            raise ValueError(f"dtype is {self.dtype}; it must be auto or one of {', '.join(COMPUTE_DTYPES)}")

    def layout(self) -> KVLayout:
        """The layout of each worker's pool. Raises ValueError if the model folder cannot be read or the model has fewer layers."""
        model = read_spec(self.model_folder)
        if self.layer_groups > model.layers:
            raise ValueError(f"layer_groups is {self.layer_groups}; model {model.name} has {model.layers} layers")
        return KVLayout(model, blocks=self.pool_tokens // self.block_tokens, block_tokens=self.block_tokens)

    def compute_dtype(self) -> ComputeDtype:
        """What the workers compute in. `auto` is decided by timing a product, once a process."""
        kv_dtype = read_spec(self.model_folder).dtype
        return compute_dtype(kv_dtype, self.device) if self.dtype == "auto" else ComputeDtype(self.dtype, math.nan)

    @property
    def coders(self) -> tuple[CoderName, ...]:
        """The coders of streams that the workers may be asked for. klt needs a calibration that predicts divergence."""
        if self.device != "cpu":
            return ("fixed",)
        return ("fixed", "entropy", "klt") if self.calibration and load(self.calibration).laws else ("fixed", "entropy")

    @property
    def compute(self) -> str:
        """`real` or `paced`, as in the records."""
        return "paced" if self.paced else "real"
