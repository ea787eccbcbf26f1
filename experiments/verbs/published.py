"""`abkt published`: the simulator's costs against published servers and transfers, as two tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from abkt.profile.roofline import GpuSpec
from abkt.spec import ModelSpec
from experiments.lib.compose import compose
from experiments.lib.config import STRICT, read
from experiments.lib.curves import load_curves
from experiments.lib.progress import bar
from experiments.lib.results import write_text
from experiments.lib.verb import VerbCall, verb
from experiments.published import links as published_links
from experiments.published import servers as published_servers
from experiments.published.loop import as_engines_run

if TYPE_CHECKING:
    from pydantic import ConfigDict

MODELS = {"meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b", "Qwen/Qwen3-32B": "qwen3-32b"}
SERVING = "measured_serving_h100.csv.gz"


@dataclass(frozen=True, slots=True)
class PublishedConfig:
    """hardware: the GPU of the servers, with kernels. simulate: also run each server in the simulator."""

    hardware: GpuSpec
    data: Path
    simulate: bool
    curves: Path
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@verb("published")
def main(config: PublishedConfig, run: VerbCall) -> None:
    models = {path: read(ModelSpec, compose("simulate", [f"model={name}"]).config["model"]) for path, name in MODELS.items()}
    rows = published_servers.read_servers(config.data / SERVING, models, config.hardware)
    servers = published_servers.as_markdown(rows, run_all(config, rows, models) if config.simulate else None)
    links = published_links.as_markdown(config.data)
    for name, module, tables in (("servers", published_servers, servers), ("links", published_links, links)):
        assert module.__doc__ is not None
        write_text(
            config.out / f"published_{name}.md", f"# Published {name}\n\nWritten by `abkt published`.\n\n{module.__doc__}\n{tables}\n"
        )
        print(tables)
    print(f"results: {config.out}")


def run_all(config: PublishedConfig, rows: published_servers.Servers, models: dict[str, ModelSpec]) -> published_servers.Servers:
    with bar("simulated servers", total=len(rows.rows)) as shown:
        return as_engines_run(rows, models, config.hardware, load_curves(config.curves), lambda: shown.step(""))
