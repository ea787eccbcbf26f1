"""`abkt reproduce flowkv|abkt`: what was published, done again, with the ratio and why it is not one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from experiments.lib.config import STRICT
from experiments.lib.manifest import write_manifest
from experiments.lib.progress import bar
from experiments.lib.results import write_text
from experiments.lib.stamps import write_stamped
from experiments.lib.verb import VerbCall, verb
from experiments.reproduction import flowkv, seed
from experiments.reproduction.layouts import TRANSPORTS
from experiments.reproduction.runs import Experiments

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import ConfigDict

PAPERS = {"flowkv": flowkv.PARTS, "abkt": seed.PARTS}
PROBE_POLICIES = ("raw", "int8", "int4", "embedded")
PROBE_NETWORKS = ("constant", "mid_drop", "oscillating")
PROBE = ("network.gbps=0.08", "workload.scaling.requests=24", "workload.scaling.speedup=0.2")


@dataclass(frozen=True, slots=True)
class ReproduceConfig:
    """parts: of the paper, or all. tokens, transports, layers: of the layout table. real: whether the probe's part runs."""

    paper: str
    parts: tuple[str, ...]
    tokens: tuple[int, ...]
    transports: tuple[str, ...]
    layers: int
    repeats: int
    real: bool
    model_folder: Path
    profile: Path | None
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
        if min(self.layers, self.repeats, *self.tokens) < 1:
            raise ValueError("layers, repeats and tokens must be at least 1")
        if unknown := [name for name in self.transports if name not in TRANSPORTS]:
            raise ValueError(f"transport {unknown[0]} is unknown; there are {', '.join(TRANSPORTS)}")

    def chosen(self) -> tuple[str, ...]:
        """In the paper's order; the probe's part only where it is asked for."""
        named = PAPERS[self.paper] if "all" in self.parts else tuple(part for part in PAPERS[self.paper] if part in self.parts)
        return tuple(part for part in named if part != "probe" or self.real or "probe" in self.parts)


@verb("reproduce", positional=("paper",))
def main(config: ReproduceConfig, run: VerbCall) -> None:
    print(f"plan: {config.paper}: {', '.join(config.chosen())}; what is finished in {run.out} is not done again")
    experiments = Experiments(run.out, config.workers)
    lines = [f"# {config.paper}, done again", ""]
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
    model = {part: (lambda part=part: seed.text(part, experiments)) for part in seed.TITLES}
    return {**model, "probe": lambda: seed.probe_text(_probe(config, run))}


def _layout(config: ReproduceConfig, run: VerbCall) -> list[str]:
    run.out.mkdir(parents=True, exist_ok=True)
    with bar("layout", len(config.transports) * 3) as progress:
        rows = flowkv.layout(config.tokens, config.transports, config.layers, config.repeats, progress.step)
    write_stamped(run.out / "layout.parquet", pa.Table.from_pandas(rows, preserve_index=False), run)
    return flowkv.layout_text(rows)


def _probe(config: ReproduceConfig, run: VerbCall) -> pd.DataFrame:
    """Every policy over every network, on real processes; one profile for all."""
    import pandas as pd

    from abkt.profile import schema
    from abkt.serve import LocalCluster, LocalClusterSpec
    from experiments.lib.compose import compose
    from experiments.verbs.profile import measure

    folder = run.out / "probe"
    folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    with LocalCluster(LocalClusterSpec(config.model_folder), folder) as cluster:
        if config.profile:
            profile = schema.load(config.profile)
        else:
            with bar("profile") as progress:
                profile = measure(cluster, config.seed, progress.step)
        for network in PROBE_NETWORKS:
            for policy in PROBE_POLICIES:
                plain = compose("replay", [f"network={network}", f"bitrate={policy}", *PROBE]).config
                found.append(
                    {"network": network, "policy": policy, **_replay(cluster, plain, profile, folder / network / policy, config.seed)}
                )
    return pd.DataFrame(found)


def _replay(cluster: Any, plain: Mapping[str, Any], profile: Any, folder: Path, drawn: int) -> dict[str, Any]:
    from experiments.lib.config import read
    from experiments.lib.prompts import prompts_for
    from experiments.lib.workload import read_workload
    from experiments.study.twin import Twin, run_real
    from experiments.verbs.replay import ReplayConfig

    config = read(ReplayConfig, {**plain, "out": folder})
    requests, _ = read_workload(config.workload, drawn)
    twin = Twin(prompts_for(requests, drawn), config.network.capacity(), config.slo, profile)
    with bar(f"{folder.parent.name}, {folder.name}", len(requests)) as progress:
        summary = run_real(twin, cluster, config.bitrate, folder, progress.update)
    return {
        "good": float(summary["good_share"]),
        "ttft_s": float(summary["ttft_s"]["mean"]),
        "p99_s": float(summary["ttft_s"]["p99"]),
        "of_raw": summary["wire_bytes"] / summary["raw_bytes"],
        "distortion": float(summary["distortion"]["mean"]),
        "right": float(summary["answers"]["rest"]),
    }
