"""The plan of a study's twin: load, SLO and link by the machine, unless the user has given them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from abkt.capacity import Capacity
from abkt.profile.schema import Profile
from abkt.records import SLO, RequestRecord
from experiments.lib.compose import parse
from experiments.lib.network import DriveConfig, NetworkConfig
from experiments.lib.workload import ServegenWorkload, SyntheticWorkload, TraceWorkload, read_workload
from experiments.report.words import link as link_words
from experiments.report.words import number, percent, plural, seconds
from experiments.study.link import FINEST, LinkPlan, check_link, plan_link
from experiments.study.load import HEADROOM, LONE, SERVED, Aim, Costs, Given, LoadPlan, limits, plan_load
from experiments.study.twin import UNLIMITED, Twin, simulate
from sim.workload.requests import Request
from sim.workload.scaling import Scaling

if TYPE_CHECKING:
    from abkt.serve import LocalClusterSpec
    from abkt.serve.frontend.prompt import Prompt

LENGTHS = ("workload.scaling.isl_scale", "workload.scaling.isl_min", "workload.scaling.isl_max", "workload.isl", "workload.variation")
ANSWERS = ("workload.scaling.osl_scale", "workload.scaling.osl_min", "workload.scaling.osl_max", "workload.osl")
REQUESTS = ("workload.scaling.requests", "workload.requests")
RATE = ("workload.scaling.speedup", "workload.rate_per_s")


@dataclass(frozen=True, slots=True)
class Explicit:
    """What the user has given on the command line and the machine does not choose."""

    load: Given
    network: bool
    slo: bool


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """overrides: what was chosen by the machine, as arguments of the command line. chosen: the same in sentences."""

    load: LoadPlan
    prompts: Sequence[Prompt]
    slo: SLO
    link: LinkPlan
    overrides: tuple[str, ...]
    chosen: tuple[str, ...]


def explicit(arguments: Sequence[str]) -> Explicit:
    """What the arguments of the command line give. A group at another place, such as network@scaleout.network, is none of the twin's."""
    keys = [override.key_or_group for text in arguments if (override := parse(text)) is not None and not override.package]

    def any_of(names: Sequence[str]) -> bool:
        return any(key in names for key in keys)

    def group(name: str) -> bool:
        return any(key == name or key.startswith(f"{name}.") for key in keys)

    return Explicit(Given(any_of(LENGTHS), any_of(ANSWERS), any_of(REQUESTS), any_of(RATE)), group("network"), group("slo"))


@dataclass(frozen=True, slots=True)
class Unscaled:
    """The requests of a workload before scaling, what is known about them, and the scaling of the configuration."""

    requests: Sequence[Request]
    facts: Mapping[str, Any]
    configured: Scaling


def unscaled(workload: TraceWorkload | ServegenWorkload | SyntheticWorkload, seed: int) -> Unscaled:
    if isinstance(workload, SyntheticWorkload):
        return Unscaled(*read_workload(workload, seed), Scaling())
    return Unscaled(*read_workload(replace(workload, scaling=Scaling()), seed), workload.scaling)


def plan_study(
    trace: Unscaled, given: Explicit, aim: Aim, slo: SLO, network: NetworkConfig | DriveConfig, profile: Profile, spec: LocalClusterSpec,
    seed: int,
) -> StudyPlan:  # fmt: skip
    """Choose what the user has not given.

    Parameters
    ----------
    trace : the requests before scaling.
    given : what to keep.
    aim : the utilisation and the time to aim at.
    slo, network : those of the configuration.
    profile, spec : the measured costs and the cluster of the twin.
    seed : of the prompts.

    Raises
    ------
    ValueError
        One line, where the given load would overload a worker, or a request does not fit the model.
    """
    from experiments.models.prompts import prompts_for

    load = plan_load(trace.requests, profile, trace.configured, given.load, aim)
    most = min(spec.layout().model.max_tokens, spec.pool_tokens)
    if (longest := max(r.isl + r.osl for r in load.requests)) > most:
        raise ValueError(f"a request has {longest} tokens, and the model takes {most}; give a smaller workload.scaling.isl_max")
    prompts = prompts_for(load.requests, spec.model_folder, seed)

    def completed(policy: Mapping[str, object], link: Capacity, limits: SLO) -> list[RequestRecord]:
        result, _ = simulate(Twin(prompts, link, limits, profile), spec, policy)
        return [r for r in result.requests if r.outcome == "completed"]

    if not given.slo:
        alone = Costs(profile).slo(load.requests)
        done = completed(FINEST, UNLIMITED, alone)
        slo = limits(alone, [r.ttft_s for r in done], [r.tpot_s for r in done])

    def share(policy: Mapping[str, object], link: NetworkConfig | DriveConfig) -> float:
        done = completed(policy, link.capacity(), slo)
        return sum(r.ttft_s <= slo.ttft_s and not r.tpot_s > slo.tpot_s for r in done) / len(prompts)

    raw_bytes_per_s = sum(profile.model.kv_bytes(r.isl) for r in load.requests) / load.span_s
    kept = given.network or not isinstance(network, NetworkConfig)
    if isinstance(network, DriveConfig) or given.network:
        link = check_link(network, share)
    else:
        link = plan_link(network, raw_bytes_per_s, load.span_s, share)
    return StudyPlan(load, prompts, slo, link, _overrides(given, slo, link, kept), _sentences(given, load, slo, link, kept))


def scaling_overrides(given: Given, scaling: Scaling) -> list[str]:
    """The chosen scaling as arguments, with which the same twin runs again on another machine."""
    chosen: dict[str, object] = {}
    if not given.requests:
        chosen["requests"] = scaling.requests
    if not given.rate:
        chosen["speedup"] = scaling.speedup
    if not given.lengths:
        chosen |= {"isl_scale": scaling.isl_scale, "isl_min": scaling.isl_min, "isl_max": scaling.isl_max}
    if not given.answers:
        chosen |= {"osl_scale": scaling.osl_scale, "osl_min": scaling.osl_min, "osl_max": scaling.osl_max}
    return [f"workload.scaling.{key}={value}" for key, value in chosen.items()]


def _overrides(given: Explicit, slo: SLO, link: LinkPlan, kept: bool) -> tuple[str, ...]:
    chosen = [] if given.slo else [f"slo.ttft_s={slo.ttft_s}", f"slo.tpot_s={slo.tpot_s}"]
    if not kept:
        network = link.network
        assert isinstance(network, NetworkConfig)
        starts = ",".join(map(str, network.starts_s))
        period = network.period_s if network.period_s < float("inf") else ".inf"
        chosen += [f"network.gbps={network.gbps}", f"network.starts_s=[{starts}]", f"network.period_s={period}"]
    return tuple(chosen)


def _sentences(given: Explicit, load: LoadPlan, slo: SLO, link: LinkPlan, kept: bool) -> tuple[str, ...]:
    isl = sum(r.isl for r in load.requests) / len(load.requests)
    osl = sum(r.osl for r in load.requests) / len(load.requests)
    as_given = [name for name, is_given in zip(("prompts", "answers", "number", "rate"), _parts(given.load), strict=True) if is_given]
    lengths = (
        f"Load: {plural(len(load.requests), 'request')} a run, {number(len(load.requests) / load.span_s)} in a second, prompts of "
        f"{isl:.0f} tokens and answers of {osl:.0f} on average. So the prefill worker computes for {percent(round(load.prefill, 2))} of "
        f"the time and the decode worker for at most {percent(round(load.decode, 2))}; encoding to 8 bits adds "
        f"{percent(round(load.encode, 2))} to prefill."
    )
    over = "over a link without limits on this machine"
    basis = (
        "as given"
        if given.slo
        else f"the larger of {LONE:g} times what the median request needs alone and {HEADROOM:g} times what {SERVED:.0%} of the requests "
        f"need at this load, {over}"
    )
    expected = (
        f"the simulator expects raw KV to keep the SLO for {percent(round(link.raw, 2))} of the requests, and KV of 8 bits for "
        f"{percent(round(link.finest, 2))}"
    )
    return (
        lengths + (f" As given: {', '.join(as_given)}." if as_given else ""),
        *(f"{note[0].upper()}{note[1:]}." for note in load.notes),
        f"SLO: TTFT {seconds(slo.ttft_s)}, TPOT {seconds(slo.tpot_s)}: {basis}.",
        f"Link: {link_words(link.network.capacity())}{', as given' if kept else ''}; {expected}.",
        *([f"{link.note[0].upper()}{link.note[1:]}."] if link.note else []),
    )


def _parts(given: Given) -> tuple[bool, bool, bool, bool]:
    return given.lengths, given.answers, given.requests, given.rate
