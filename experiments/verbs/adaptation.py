"""`abkt adaptation`: what following the link is worth at equal bounds of distortion."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from abkt.capacity import Capacity
from abkt.policy.view import CoderName
from abkt.profile import schema
from abkt.ranges import OutOfRange, bound, check_seed
from abkt.records import SLO
from experiments.adaptation.comparison import Comparison, Contest, compare_within_bounds
from experiments.adaptation.outcome import Margin
from experiments.adaptation.page import write_report
from experiments.adaptation.rivals import Aim
from experiments.adaptation.worlds import World, lone_ttft_s, real, simulated
from experiments.lib.config import STRICT, BitrateConfig, ProfilePath
from experiments.lib.manifest import write_manifest
from experiments.lib.network import Network, network_files
from experiments.lib.progress import bar
from experiments.lib.results import read_json, write_json
from experiments.lib.verb import VerbCall, verb
from experiments.lib.workload import TraceWorkload, Workload, read_workload
from experiments.study.load import two_digits

if TYPE_CHECKING:
    from pydantic import ConfigDict

    from abkt.profile.schema import Profile
    from abkt.serve import LocalClusterSpec
    from sim.workload.requests import Request

SCHEMA_VERSION = 3


@dataclass(frozen=True, slots=True)
class AdaptationConfig:
    """ours: policies that take bounds of distortion, by name. bits: mean bits per value of the fixed rates. target, refine: see Aim.

    receivers: decode nodes; several of them share the prefill node's link, in the simulator alone. coders, rows: see Contest.
    parts: whether the first of ours also runs without each of its parts. slo_factor: the TTFT limit, in times of what the longest prompt
    needs alone, as raw KV over the undisturbed link. margin: see Margin.
    """

    world: Literal["simulated", "real"]
    model_folder: Path
    profile: ProfilePath | None
    calibration: Path | None
    pacing: str
    network: Network
    receivers: int
    workload: Workload
    ours: dict[str, BitrateConfig]
    cachegen: BitrateConfig
    oracle: BitrateConfig
    bits: tuple[float, ...]
    target: float
    refine: float
    coders: tuple[CoderName, ...]
    parts: bool
    rows: tuple[str, ...]
    slo_factor: float
    margin: Margin
    tpot_s: float
    repeats: int
    seed: int
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        bound(self, "repeats", least=1, most=10_000)
        bound(self, "slo_factor", least=1, most=1000)
        bound(self, "bits", above=0, most=8)
        bound(self, "tpot_s", above=0, infinite=True)
        check_seed(self)
        if not self.bits:
            raise OutOfRange("bits is empty; give the bits of a fixed rate, such as bits=[2]")
        if not self.coders or len(set(self.coders)) < len(self.coders):
            raise OutOfRange(f"coders is {list(self.coders)}; give each coder once, such as coders=[fixed,entropy]")
        if not self.ours:
            raise ValueError("adaptation needs a policy in ours")
        bound(self, "receivers", least=1, most=200)
        if self.receivers > 1 and self.world != "simulated":
            raise OutOfRange(f"receivers is {self.receivers}; more than 1 needs world=simulated")
        aim = Aim(self.target, self.refine)
        Contest(*(SLO(1.0, self.tpot_s), self.ours, self.cachegen, self.oracle, aim, self.coders), rows=self.rows)


@verb("adaptation")
def main(config: AdaptationConfig, run: VerbCall) -> None:
    repeats = [_requests(config.workload, config.seed, repeat) for repeat in range(config.repeats)]
    where = "in the simulator" if config.world == "simulated" else "on real processes"
    print(
        f"plan: {config.repeats} times {len(repeats[0])} requests, network {run.choices['network']}, {where}; "
        f"{', '.join(config.ours)} against rivals "
        f"within the distortion of {', '.join(f'{bits:g}' for bits in config.bits)} bits"
    )
    spec = cluster_spec(config)
    known = schema.load(config.profile) if config.profile else None
    config.out.mkdir(parents=True, exist_ok=True)
    aim = Aim(config.target, config.refine)
    with ExitStack() as stack:
        world, scout, alone_s, facts = _worlds(config, spec, known, repeats, stack)
        coders = measured(config.coders, schema.load(config.out / "profile.json"))
        slo = SLO(two_digits(config.slo_factor * alone_s), config.tpot_s)
        longest = max(r.isl for requests in repeats for r in requests)
        print(
            f"SLO: TTFT {slo.ttft_s:g} s, {config.slo_factor:g} times the {alone_s:.2f} s of a lone request of {longest:,} tokens, "
            f"sent raw over the undisturbed link of {1000 * config.network.gbps:g} Mbit/s"
        )
        contest = Contest(
            *(slo, config.ours, config.cachegen, config.oracle, aim, coders, config.margin, config.repeats), config.parts, config.rows
        )
        comparisons = [compare_within_bounds(world, contest, bits, scout) for bits in config.bits]
    facts |= {"slo": {"ttft_s": slo.ttft_s, "factor": config.slo_factor, "alone_s": alone_s}, "coders": list(coders)}
    told = {"world": config.world, "repeats": config.repeats, "requests": sum(len(requests) for requests in repeats), **facts}
    compared = {"comparisons": [comparison.plain() for comparison in comparisons]}
    write_json(config.out / "adaptation.json", {"schema_version": SCHEMA_VERSION, "network": run.choices["network"], **told, **compared})
    traces = [config.workload.path] if isinstance(config.workload, TraceWorkload) else []
    write_manifest(run, [*traces, *network_files(config.network), config.out / "profile.json"])
    show(run.choices["network"], comparisons)
    print(f"report: {write_report(config.out, run.choices['network'], told, comparisons, read_json(config.out / 'manifest.json'))}")


def without_klt(profile: Profile, coders: Sequence[CoderName]) -> Profile:
    """The profile, without the times of klt if it is not among the coders, so that no policy gets it."""
    if "klt" in coders:
        return profile
    return replace(profile, fits={name: fit for name, fit in profile.fits.items() if not name.endswith("/klt")})


def measured(coders: Sequence[CoderName], profile: Profile) -> tuple[CoderName, ...]:
    """The coders that the profile has measured; says which are left out. Raises ValueError, one line, if none is left."""
    known = tuple(coder for coder in coders if coder == "fixed" or profile.has_codec(coder))
    if not known:
        raise ValueError(f"the profile has measured none of the coders {', '.join(coders)}; run `abkt profile` again")
    if left_out := [coder for coder in coders if coder not in known]:
        print(f"coders that the profile has not measured are left out: {', '.join(left_out)}")
    return known


def _requests(workload: Any, seed: int, repeat: int) -> list[Request]:
    """The requests of one repeat: a part of the trace, or a random draw, that no other repeat has."""
    if isinstance(workload, TraceWorkload):
        scaling = workload.scaling
        if scaling.requests is None:
            raise ValueError("workload.scaling.requests must be a number, so that each repeat can have other requests of the trace")
        workload = replace(workload, scaling=replace(scaling, skip=scaling.skip + repeat * scaling.requests))
    return read_workload(workload, seed + repeat)[0]


def cluster_spec(config: AdaptationConfig) -> LocalClusterSpec:
    """The cluster. Raises ValueError, one line, if the folder holds no model, or the calibration is not of this model."""
    from abkt.serve import LocalClusterSpec
    from experiments.models.calibration import calibration_file

    spec = LocalClusterSpec(config.model_folder, prefill=config.network.senders, decode=config.receivers)
    return replace(spec, calibration=calibration_file(config.calibration, config.model_folder, spec.layout()))


def _worlds(
    config: AdaptationConfig, spec: LocalClusterSpec, known: Profile | None, repeats: Sequence[Sequence[Request]], stack: ExitStack
) -> tuple[World, World, float, dict[str, Any]]:
    """The world to compare in, the simulator for the search of settings, the TTFT of the longest prompt alone, and facts about the world.

    Measures a profile if none is known.
    """
    from abkt.serve import LocalCluster
    from experiments.lib.profiling import profile_machine
    from experiments.study.twin import simulated_cluster

    profile = without_klt(known or profile_machine(replace(spec, prefill=1, decode=1), config.out, config.seed), config.coders)
    profile.save(config.out / "profile.json")
    network, capacity = config.network, config.network.capacity()
    scout = simulated(simulated_cluster(spec, profile, capacity, shared=network.senders > 1, delay_s=network.delay_s), repeats)
    undisturbed = Capacity.constant(network.gbps * 1e9 / 8)
    alone = simulated_cluster(replace(spec, prefill=1, decode=1), profile, undisturbed, delay_s=network.delay_s)
    alone_s = lone_ttft_s(alone, max(r.isl for requests in repeats for r in requests))
    if config.world == "simulated":
        return scout, scout, alone_s, {}
    from experiments.lib.real_network import real_network
    from experiments.models.prompts import prompts_for

    over = stack.enter_context(real_network(config.network, config.pacing, config.seed))
    cluster = stack.enter_context(LocalCluster(replace(spec, key_file=over.key_file), config.out, over.namespaces, over.pacing))
    shown = stack.enter_context(bar("requests"))
    prompts = [prompts_for(requests, config.model_folder, config.seed + i) for i, requests in enumerate(repeats)]
    measured = real(cluster, profile, capacity, prompts, lambda: shown.progress.advance(shown.task))
    return measured, scout, alone_s, {"pacing": over.pacing, **over.facts}


def show(network: str, comparisons: Sequence[Comparison]) -> None:
    from experiments.adaptation.page import answers_table, lines, overall, pairs_table, rows_table, where
    from experiments.report.terminal import show_lines, show_table, show_verdict

    for comparison in comparisons:
        show_table(rows_table(comparison), where(network, comparison))
        for name in comparison.against:
            show_table(pairs_table(comparison, name), f"{name} against the others")
        show_lines(lines(comparison))
    show_table(answers_table(network, comparisons), "who wins")
    show_verdict(overall(network, comparisons))
