"""The folder of a study: its files, and how the report reads them back.

twin/real/POLICY, twin/simulated/POLICY and scaleout/ROUTING-BITRATE each hold requests.parquet, transfers.parquet and summary.json.
At the top are all records in one requests.parquet and one transfers.parquet, with the columns world (real, simulated, scaleout), policy and
routing; compare.json, profile.json, summary.json and manifest.json; and figures/ and report.html, which are drawn from these files alone.
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

SCHEMA_VERSION = 2
WORLDS = ("real", "simulated")


def twin(folder: Path, world: str, policy: str) -> Path:
    return folder / "twin" / world / policy


def scaleout(folder: Path, routing: str, bitrate: str) -> Path:
    return folder / "scaleout" / f"{routing}-{bitrate}"


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """Facts about the study, for its summary.

    policies: policies of the twin. routings, bitrates: policies of the scale-out. link: link of the twin. scaling: how the twin's requests
    were scaled. scaleout: the cluster in words (model, hardware, cluster, network, workload). notes: one sentence for each thing that was
    emulated or left out.
    """

    policies: Sequence[str]
    routings: Sequence[str]
    bitrates: Sequence[str]
    max_distortion: float
    slo: SLO
    scaleout_slo: SLO
    link: Capacity
    scaling: Mapping[str, float]
    scaleout: Mapping[str, str]
    notes: Sequence[str]


def write_study(folder: Path, facts: StudyFacts) -> None:
    """Write summary.json and the merged records, from the folders of the runs."""
    parts = {twin(folder, w, p): {"world": w, "policy": p, "routing": ""} for w in WORLDS for p in facts.policies}
    for routing in facts.routings:
        parts |= {scaleout(folder, routing, b): {"world": "scaleout", "policy": b, "routing": routing} for b in facts.bitrates}
    merge_records(parts, folder)
    summaries = {str(part.relative_to(folder)): read_json(part / "summary.json") for part in parts}
    write_json(folder / "summary.json", {"schema_version": SCHEMA_VERSION, **asdict(facts), "runs": summaries})


@dataclass(frozen=True, slots=True)
class Study:
    """A study folder in memory.

    Parameters
    ----------
    summary, compare, profile, manifest : the JSON files of those names.
    requests, transfers : records of all runs, one a row, with the columns world (real, simulated, scaleout), policy and routing.
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
        schedule = self.summary["link"]
        starts_s, bytes_per_s = (tuple(map(float, schedule[name])) for name in ("starts_s", "bytes_per_s"))
        return Capacity(starts_s, bytes_per_s, float(schedule["period_s"]))

    def run(self, path: str) -> dict[str, Any]:
        """The summary of one run, such as twin/real/int4 or scaleout/random-raw."""
        return dict(self.summary["runs"][path])

    def done(self, world: str, policy: str) -> pd.DataFrame:
        """The completed requests of one run of the twin."""
        rows = self.requests
        return rows[(rows.world == world) & (rows.policy == policy) & (rows.outcome == "completed")]

    def sent(self, world: str, policy: str) -> pd.DataFrame:
        """The completed transfers of one run of the twin, in order of their start."""
        rows = self.transfers
        return rows[(rows.world == world) & (rows.policy == policy) & (rows.outcome == "completed")].sort_values("start_s")


def load_study(folder: Path) -> Study:
    """Read a study. Raises ValueError, one line, if a file is missing or damaged, or the study was written by another version."""
    summary = read_json(folder / "summary.json")
    if summary.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{folder}/summary.json has schema version {summary.get('schema_version')}, this code reads {SCHEMA_VERSION}")
    compare, profile, manifest = (read_json(folder / f"{name}.json") for name in ("compare", "profile", "manifest"))
    requests, transfers = (read_records(folder / f"{name}.parquet") for name in ("requests", "transfers"))
    return Study(summary, compare, profile, manifest, requests, transfers)
