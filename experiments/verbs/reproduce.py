"""`abkt reproduce flowkv|abkt`: repeat published experiments, with the ratio of our figure to theirs and why it is not 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from abkt.ranges import bound, check_seed
from experiments.lib.config import MOST_WORKERS, STRICT, ProfilePath
from experiments.lib.manifest import write_manifest
from experiments.lib.progress import bar
from experiments.lib.results import write_text
from experiments.lib.stamps import write_stamped
from experiments.lib.verb import VerbCall, verb
from experiments.reproduction import flowkv, probe, seed
from experiments.reproduction.layouts import TRANSPORTS
from experiments.reproduction.runs import Experiments

if TYPE_CHECKING:
    from pydantic import ConfigDict

PAPERS = {"flowkv": flowkv.PARTS, "abkt": seed.PARTS}


@dataclass(frozen=True, slots=True)
class ReproduceConfig:
    """parts: parts of the paper, or all. tokens, transports, layers: settings of the layout table. real: run the part with the probe."""

    paper: str
    parts: tuple[str, ...]
    tokens: tuple[int, ...]
    transports: tuple[str, ...]
    layers: int
    repeats: int
    real: bool
    model_folder: Path
    profile: ProfilePath | None
    workers: int | None
    seed: int
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        if self.paper not in PAPERS:
            raise ValueError(f"paper is {self.paper}; it must be one of {', '.join(PAPERS)}")
        known = PAPERS[self.paper]
        if unknown := [part for part in self.parts if part not in (*known, "all")]:
            raise ValueError(f"{self.paper} has no part {unknown[0]}; there are {', '.join(known)}, and all")
        bound(self, "layers", "repeats", least=1, most=100_000)
        bound(self, "tokens", least=1, most=1 << 24)
        bound(self, "workers", least=1, most=MOST_WORKERS)
        check_seed(self)
        if unknown := [name for name in self.transports if name not in TRANSPORTS]:
            raise ValueError(f"transport {unknown[0]} is unknown; there are {', '.join(TRANSPORTS)}")

    def chosen(self) -> tuple[str, ...]:
        """The parts to run, in the paper's order. The part that uses the probe runs only if it is named, or with real=true."""
        named = PAPERS[self.paper] if "all" in self.parts else tuple(part for part in PAPERS[self.paper] if part in self.parts)
        return tuple(part for part in named if part != "probe" or self.real or "probe" in self.parts)


@verb("reproduce", positional=("paper",), resumes=("*/points.jsonl",))
def main(config: ReproduceConfig, run: VerbCall) -> None:
    print(f"plan: {config.paper}: {', '.join(config.chosen())}; points that {run.out} already has are not run again")
    experiments = Experiments(run.out, config.workers)
    lines = [f"# {config.paper}, repeated", ""]
    for part in config.chosen():
        lines += _parts(config, run, experiments)[part]()
    write_text(run.out / "REPRODUCE.md", "\n".join(lines))
    write_manifest(run)
    print(f"results: {run.out / 'REPRODUCE.md'}")


def _parts(config: ReproduceConfig, run: VerbCall, experiments: Experiments) -> Mapping[str, Callable[[], list[str]]]:
    if config.paper == "flowkv":
        return {
            "layout": lambda: _layout(config, run),
            "longbench": lambda: flowkv.longbench_text(experiments),
            "loads": lambda: flowkv.loads_text(experiments),
            "unlike": lambda: flowkv.unlike_text(config.seed),
        }
    parts: dict[str, Callable[[], list[str]]] = {part: partial(seed.text, part, experiments) for part in seed.TITLES}
    return {**parts, "probe": lambda: seed.probe_text(probe.measure(run.out / "probe", config.model_folder, config.profile, config.seed))}


def _layout(config: ReproduceConfig, run: VerbCall) -> list[str]:
    run.out.mkdir(parents=True, exist_ok=True)
    with bar("layout", len(config.transports) * 3) as progress:
        rows = flowkv.layout(config.tokens, config.transports, config.layers, config.repeats, progress.step)
    write_stamped(run.out / "layout.parquet", pa.Table.from_pandas(rows, preserve_index=False), run)
    return flowkv.layout_text(rows)
