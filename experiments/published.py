"""`abkt published`: the model's costs against published servers and transfers, as two tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from abkt.profile.roofline import GpuSpec
from abkt.spec import ModelSpec
from experiments import published_links, published_servers
from experiments.compose import compose
from experiments.config import STRICT, read
from experiments.results import write_text
from experiments.verb import Run, verb

if TYPE_CHECKING:
    from pydantic import ConfigDict

MODELS = {"meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b", "Qwen/Qwen3-32B": "qwen3-32b"}
SERVING = "measured_serving_h100.csv.gz"


@dataclass(frozen=True, slots=True)
class PublishedConfig:
    """hardware: the GPU of the servers, with kernels."""

    hardware: GpuSpec
    data: Path
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@verb("published")
def main(config: PublishedConfig, run: Run) -> None:
    models = {path: read(ModelSpec, compose("simulate", [f"model={name}"]).config["model"]) for path, name in MODELS.items()}
    servers = published_servers.as_markdown(published_servers.read_servers(config.data / SERVING, models, config.hardware))
    links = published_links.as_markdown(config.data)
    for name, module, tables in (("servers", published_servers, servers), ("links", published_links, links)):
        assert module.__doc__ is not None
        write_text(
            config.out / f"published_{name}.md", f"# Published {name}\n\nWritten by `abkt published`.\n\n{module.__doc__}\n{tables}\n"
        )
        print(tables)
    print(f"results: {config.out}")
