"""The folder of a study: its files, and how the report reads them back.

twin/real/POLICY/REPEAT, twin/simulated/POLICY and scaleout/ROUTING-BITRATE each hold requests.parquet, transfers.parquet and summary.json.
predictions.json is what the simulator said before the first real run. At the top are all records in one requests.parquet and one
transfers.parquet, with the columns world (real, simulated, scaleout), policy, routing and repeat; compare.json, profile.json, summary.json
and manifest.json; and figures/ and report.html, which are drawn from these files alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abkt.capacity import Capacity
from abkt.records import SLO
from experiments.lib.results import merge_records, read_json, read_records, write_json

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 3
WORLDS = ("real", "simulated")


def simulated(folder: Path, policy: str) -> Path:
    return folder / "twin" / "simulated" / policy


def real(folder: Path, policy: str, repeat: int) -> Path:
    """repeat: counted from 1."""
    return folder / "twin" / "real" / policy / str(repeat)


def scaleout(folder: Path, routing: str, bitrate: str) -> Path:
    return folder / "scaleout" / f"{routing}-{bitrate}"


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """Facts about the study, for its summary.

    Parameters
    ----------
    policies : policies of the twin.
    repeats : real runs of each policy.
    routings, bitrates : policies of the scale-out.
    load : the prefill utilisation that was asked for.
    slo : limits of the twin's requests.
    link : link of the twin.
    scaling : how the twin's requests were scaled.
    chosen : what was chosen by the machine, one sentence each.
    again : the chosen values as arguments of the command line; empty where the workload has no scaling.
    compute : what the workers computed in, in words.
    minutes : `asked`, `planned` (after profiling) and `actual` minutes of the whole study.
    scaleout : the cluster in words (model, hardware, cluster, network, workload).
    notes : one sentence for each thing that was emulated or left out.
    """

    policies: Sequence[str]
    repeats: int
    routings: Sequence[str]
    bitrates: Sequence[str]
    max_distortion: float
    load: float
    slo: SLO
    scaleout_slo: SLO
    link: Capacity
    scaling: Mapping[str, float]
    chosen: Sequence[str]
    again: str
    compute: str
    minutes: Mapping[str, float]
    scaleout: Mapping[str, str]
    notes: Sequence[str]


def write_study(folder: Path, facts: StudyFacts, answer: Mapping[str, Any]) -> None:
    """Write summary.json and the merged records, from the folders of the runs. answer: more keys of the summary, such as the verdict."""
    parts = {}
    for policy in facts.policies:
        for repeat in range(1, facts.repeats + 1):
            parts[real(folder, policy, repeat)] = {"world": "real", "policy": policy, "routing": "", "repeat": str(repeat)}
        parts[simulated(folder, policy)] = {"world": "simulated", "policy": policy, "routing": "", "repeat": ""}
    for routing in facts.routings:
        for b in facts.bitrates:
            parts[scaleout(folder, routing, b)] = {"world": "scaleout", "policy": b, "routing": routing, "repeat": ""}
    merge_records(parts, folder)
    runs = {str(part.relative_to(folder)): read_json(part / "summary.json") for part in parts}
    runs |= {f"twin/real/{policy}": over_repeats(folder, policy, facts.repeats) for policy in facts.policies}
    write_json(folder / "summary.json", {"schema_version": SCHEMA_VERSION, **answer, **asdict(facts), "runs": runs})


def over_repeats(folder: Path, policy: str, repeats: int) -> dict[str, Any]:
    """The summary of a policy's real runs: the mean of each number over the repeats."""
    mean = _mean([read_json(real(folder, policy, repeat) / "summary.json") for repeat in range(1, repeats + 1)])
    assert isinstance(mean, dict)
    return mean


def _mean(values: Sequence[Any]) -> Any:
    if all(isinstance(value, dict) for value in values):
        return {key: _mean([value[key] for value in values]) for key in values[0] if all(key in value for value in values)}
    known = [value for value in values if value is not None]
    numeric = known and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
    return sum(known) / len(known) if numeric else values[0]


@dataclass(frozen=True, slots=True)
class Study:
    """A study folder in memory.

    Parameters
    ----------
    summary, compare, profile, manifest : the JSON files of those names.
    requests, transfers : records of all runs, one a row, with the columns world (real, simulated, scaleout), policy, routing and repeat.
    """

    summary: dict[str, Any]
    compare: dict[str, Any]
    profile: dict[str, Any]
    manifest: dict[str, Any]
    requests: pd.DataFrame
    transfers: pd.DataFrame

    @property
    def policies(self) -> list[str]:
        return list(self.summary["policies"])

    @property
    def link(self) -> Capacity:
        return capacity(self.summary["link"])

    def run(self, path: str) -> dict[str, Any]:
        """The summary of one run, such as twin/simulated/int4 or scaleout/random-raw; twin/real/int4 is the mean over its repeats."""
        return dict(self.summary["runs"][path])

    def done(self, world: str, policy: str) -> pd.DataFrame:
        """The completed requests of one policy of the twin, of all repeats."""
        rows = self.requests
        return rows[(rows.world == world) & (rows.policy == policy) & (rows.outcome == "completed")]

    def sent(self, world: str, policy: str) -> pd.DataFrame:
        """The completed transfers of one run of the twin, in order of their start; of a real run, those of the first repeat."""
        rows = self.transfers
        one = (rows.world == world) & (rows.policy == policy) & rows.repeat.isin(("", "1"))
        return rows[one & (rows.outcome == "completed")].sort_values("start_s")


def capacity(schedule: Mapping[str, Any]) -> Capacity:
    """A link's schedule as summary.json has it."""
    starts_s, bytes_per_s = (tuple(map(float, schedule[name])) for name in ("starts_s", "bytes_per_s"))
    return Capacity(starts_s, bytes_per_s, float(schedule["period_s"]))


def load_study(folder: Path) -> Study:
    """Read a study. Raises ValueError, one line, if a file is missing or damaged, or the study was written by another version."""
    summary = read_json(folder / "summary.json")
    if summary.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{folder}/summary.json has schema version {summary.get('schema_version')}, this code reads {SCHEMA_VERSION}")
    compare, profile, manifest = (read_json(folder / f"{name}.json") for name in ("compare", "profile", "manifest"))
    requests, transfers = (read_records(folder / f"{name}.parquet") for name in ("requests", "transfers"))
    return Study(summary, compare, profile, manifest, requests, transfers)
