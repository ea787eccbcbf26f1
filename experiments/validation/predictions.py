"""predictions.json: what the simulator says about runs that the machine has not made yet, with the time at which it was said."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from datetime import UTC, datetime

from experiments.lib.results import write_json
from experiments.validation.condition import Condition
from experiments.validation.folder import ValidationFolder, read_requests
from experiments.validation.load import Load, utilisation_of


def write_predictions(
    folder: ValidationFolder, conditions: Mapping[str, Condition], policies: Collection[str], loads: Mapping[str, Load]
) -> None:
    """Write predictions.json from the simulated runs in the folder, before the machine runs."""
    rows = []
    for name, condition in conditions.items():
        for policy in policies:
            told = read_requests(folder.simulated(name, policy))
            done = told[told.outcome == "completed"]
            means = {f"{column}_mean": float(done[column].mean()) for column in ("queue_exposed_s", "ttft_s", "e2e_s")}
            rows.append({"condition": name, "policy": policy, "utilisation": utilisation_of(told, condition.prefill), **means})
    planned_loads = {name: asdict(load) for name, load in loads.items()}
    write_json(folder.path / "predictions.json", {"predicted_at": now(), "loads": planned_loads, "predictions": rows})


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
