"""`abkt import-profile`: a profile.json for the simulator from tables that others have measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from abkt.profile.model_costs import ModelCosts, PassCosts
from abkt.profile.roofline import GpuSpec, kv_tokens, roofline
from abkt.profile.schema import Fit, Profile, fit_stages
from abkt.spec import ModelSpec
from experiments.lib.config import STRICT
from experiments.lib.curves import load_curves
from experiments.lib.verb import VerbCall, verb
from experiments.published.kernel_tables import fit_gpu
from experiments.published.layer_tables import read_layer_tables

if TYPE_CHECKING:
    from pydantic import ConfigDict


@dataclass(frozen=True, slots=True)
class ImportProfileConfig:
    """tables: what is read. kind: llmservingsim, a folder tpN of its profiler; aiconfigurator, the folder of a GPU; samples, a JSON file of
    stages and their samples, as an engine's connector writes them. model, hardware: whose tables these are; the hardware's overheads, codec
    and memory go with them. kernels_of: the engine of aiconfigurator's tables."""

    tables: Path
    kind: Literal["llmservingsim", "aiconfigurator", "samples"]
    model: ModelSpec
    hardware: GpuSpec
    kernels_of: str
    curves: Path
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@verb("import-profile")
def main(config: ImportProfileConfig, run: VerbCall) -> None:
    profile, errors = imported(config)
    config.out.mkdir(parents=True, exist_ok=True)
    profile.save(config.out / "profile.json")
    for name, error in errors.items():
        print(f"{name}: mean relative error {error:.1%}")
    tokens = kv_tokens(config.hardware, config.model)
    print(f"profile: {config.out / 'profile.json'} ({config.model.name}; hardware=profile hardware.kv_tokens={tokens})")


def imported(config: ImportProfileConfig) -> tuple[Profile, dict[str, float]]:
    """The profile, and the error of each fit on samples that it has not seen (of samples: of the fit itself).

    Raises ValueError, one line, where the tables cannot be read.
    """
    gpu, model = config.hardware, config.model
    base = roofline(gpu, model, load_curves(config.curves))
    if config.kind == "samples":
        fits, errors, source = _samples(config.tables)
    else:
        costs: PassCosts
        if config.kind == "llmservingsim":
            costs = read_layer_tables(config.tables, model, gpu.overhead_s)
            errors, source = costs.errors, "LLMServingSim layer tables"
        else:
            kernels = fit_gpu(config.tables, config.kernels_of)
            overheads = (gpu.overhead_s, gpu.layer_s, gpu.request_s)
            costs = ModelCosts(model, kernels, gpu.parallel, gpu.memory_bytes_per_s, *overheads, gpu.routing_skew)
            errors, source = {"kernels": costs.error}, kernels.source
        fits = costs.fits()
        errors = errors | {f"{name}, straight lines": fit.residual for name, fit in fits.items()}
    kept = {name: fit for name, fit in base.fits.items() if name not in ("prefill", "decode", "pass")}
    return replace(base, fits=kept | fits, fingerprint={**base.fingerprint, "tables": source}, source="published"), errors


def _samples(path: Path) -> tuple[dict[str, Fit], dict[str, float], str]:
    """The fits of a file {"engine": NAME, "stages": {STAGE: [[{VARIABLE: VALUE}, SECONDS], ...]}}, and their residuals."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        stages = {
            str(stage): [({str(k): float(v) for k, v in variables.items()}, float(seconds)) for variables, seconds in samples]
            for stage, samples in data["stages"].items()
        }
        fits = fit_stages(stages)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; kind=samples reads a JSON file of stages") from None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a file of samples: {error!r}; it needs stages -> [[variables, seconds], ...]") from None
    if missing := {"prefill", "decode"} - set(fits):
        raise ValueError(f"{path} has no stage {min(missing)}; the simulator needs prefill and decode")
    return fits, {f"{name}, of the fit": fit.residual for name, fit in fits.items()}, str(data.get("engine", "samples"))
