"""`key=value` arguments of the benches, read without Hydra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from abkt.arguments import read
from abkt.ranges import bound


@dataclass(frozen=True, slots=True)
class BenchArguments:
    """device: cpu or cuda. layers: layers of the synthetic model; 0 means 1 on a CPU and 32 on a GPU. tokens: sequence lengths that are
    measured with the first block size. blocks: block sizes that are measured at the middle length. depths: depths of the codec in bits.
    repeats: number of timed rounds, whose median is reported. architectures: compute capabilities that `counted` compiles for."""

    device: str = "cpu"
    out: Path = Path("outputs/bench")
    layers: int = 0
    kv_heads: int = 8
    head_dim: int = 128
    tokens: tuple[int, ...] = (256, 1_024, 4_096, 16_384)
    blocks: tuple[int, ...] = (16, 64, 256)
    depths: tuple[int, ...] = (2, 4, 8)
    repeats: int = 7
    architectures: tuple[int, ...] = (80, 90, 100)

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device={self.device}: one of cpu, cuda is possible")
        bound(self, "tokens", "blocks", "kv_heads", "head_dim", "repeats", least=1, most=1 << 30)
        bound(self, "architectures", least=80, most=120)
        bound(self, "depths", least=1, most=8)
        bound(self, "layers", least=0, most=10_000)


def parse(arguments: Sequence[str]) -> BenchArguments:
    """The arguments as an object. Raises ValueError, in one line, for an unknown argument or a bad value."""
    return read(BenchArguments, arguments)
