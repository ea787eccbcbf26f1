"""`abkt fit-hardware`: fit published kernel tables with the few coefficients of conf/kernels. One folder for each engine."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from abkt.profile.kernels import GpuKernels
from experiments.lib.config import STRICT
from experiments.lib.results import write_text
from experiments.lib.verb import VerbCall, verb
from experiments.published.kernel_tables import ENGINES, fit_gpu

if TYPE_CHECKING:
    from pydantic import ConfigDict

HEAD = """# Written by `abkt fit-hardware`: fits of kernel times to the tables of {source}.
# launch_s + smooth maximum of work / rate; error: mean relative error on `rows` rows that were held out. See abkt/profile/kernels.py.
"""


@dataclass(frozen=True, slots=True)
class FitHardwareConfig:
    """data: a folder with one subfolder of tables for each of `gpus`. engines: whose kernels are fitted."""

    data: Path
    gpus: list[str]
    engines: list[str]
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        if unknown := set(self.engines) - set(ENGINES):
            raise ValueError(f"engines has {min(unknown)}; there are {', '.join(ENGINES)}")
        for gpu in self.gpus:
            if not (self.data / gpu).is_dir():
                raise ValueError(f"{self.data / gpu} is not a folder of kernel tables; choose data=DIR and gpus=[NAME,…]")


@verb("fit-hardware")
def main(config: FitHardwareConfig, run: VerbCall) -> None:
    fits = {(engine, gpu): fit_gpu(config.data / gpu, engine) for gpu in config.gpus for engine in config.engines}
    for (engine, gpu), kernels in fits.items():  # all of them are fitted before the first is written
        write_text(config.out / engine / f"{gpu}.yaml", as_yaml(kernels))
        print(f"{engine} on {gpu}: " + ", ".join(f"{name} {error:.1%}" for name, error in errors(kernels).items()))
    print(f"results: {config.out}")


def as_yaml(kernels: GpuKernels) -> str:
    lines = [HEAD.format(source=kernels.source) + f"source: {kernels.source}"]
    for name, value in asdict(kernels).items():
        if isinstance(value, dict) and "error" in value:
            lines.append(f"{name}: {_flow(value)}")
        elif isinstance(value, dict) and value:
            lines += [f"{name}:", *(f"  {key}: {_flow(inner)}" for key, inner in value.items())]
    return "\n".join(lines) + "\n"


def _flow(values: dict[str, float]) -> str:
    return "{" + ", ".join(f"{key}: {'.inf' if math.isinf(value) else format(value, '.4g')}" for key, value in values.items()) + "}"


def errors(kernels: GpuKernels) -> dict[str, float]:
    """Held-out error of each fit, by its name."""
    found: dict[str, float] = {}

    def collect(place: str, value: Any) -> None:
        if isinstance(value, dict) and "error" in value:
            found[place] = value["error"]
        elif isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{place} {key}".strip(), inner)

    collect("", asdict(kernels))
    return found
