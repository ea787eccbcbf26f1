"""The folder of a validation: real/CONDITION/POLICY/REPEAT and simulated/CONDITION/POLICY, each with requests.parquet and summary.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.lib.results import read_json, read_records

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class ValidationFolder:
    path: Path
    repeats: int

    def real(self, condition: str, policy: str, repeat: int) -> Path:
        return self.path / "real" / condition / policy / str(repeat)

    def simulated(self, condition: str, policy: str) -> Path:
        return self.path / "simulated" / condition / policy


@dataclass(frozen=True, slots=True)
class ValidationCase:
    """One policy under one condition: the simulated run, and every repeat on the machine. Requests are in order of arrival."""

    condition: str
    policy: str
    predicted: pd.DataFrame
    measured: tuple[pd.DataFrame, ...]
    predicted_summary: dict[str, Any]
    measured_summaries: tuple[dict[str, Any], ...]


def load_case(folder: ValidationFolder, condition: str, policy: str) -> ValidationCase:
    """Raises ValueError, one line, where one of its runs is missing or damaged."""
    simulated = folder.simulated(condition, policy)
    real = [folder.real(condition, policy, repeat) for repeat in range(folder.repeats)]
    return ValidationCase(
        condition,
        policy,
        read_requests(simulated),
        tuple(map(read_requests, real)),
        read_json(simulated / "summary.json"),
        tuple(read_json(path / "summary.json") for path in real),
    )


def read_requests(path: Path) -> pd.DataFrame:
    """The request records of a run, in order of arrival."""
    rows = read_records(path / "requests.parquet")
    return rows.sort_values(["arrival_s", "request_id"], kind="stable").reset_index(drop=True)
