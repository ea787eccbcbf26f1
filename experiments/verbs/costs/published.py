"""`abkt published`: the simulator's costs against published servers, transfers and curves of compressed KV, as tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from abkt.profile.roofline import GpuSpec
from abkt.ranges import bound
from abkt.spec import ModelSpec
from experiments.lib.compose import compose
from experiments.lib.config import STRICT, read
from experiments.lib.progress import bar
from experiments.lib.results import write_text
from experiments.lib.verb import VerbCall, verb
from experiments.published import codecs, comparison, kvserve, links, servers
from experiments.published.rows import read_rows

if TYPE_CHECKING:
    from pydantic import ConfigDict


@dataclass(frozen=True, slots=True)
class PublishedConfig:
    """data: folder of the files. servers: tables of measured servers in it, of any GPU in conf/hardware. sampled: rows of them that are run
    through sim too. rows: write every row's figures as published_rows.csv. kvserve: folder of KVServe's figures; null: without them."""

    data: Path
    servers: tuple[Path, ...]
    sampled: int
    rows: bool
    kvserve: Path | None
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        bound(self, "sampled", least=0)


@verb("published")
def main(config: PublishedConfig, run: VerbCall) -> None:
    tables = {"servers": (servers, _servers(config)), "links": (links, links.as_markdown(config.data))}
    tables["codecs"] = (codecs, codecs.as_markdown(*_codecs()))
    if config.kvserve is not None:
        tables["kvserve"] = (kvserve, kvserve.as_markdown(kvserve.reproduce(config.kvserve)))
    for name, (module, text) in tables.items():
        assert module.__doc__ is not None
        write_text(config.out / f"published_{name}.md", f"# Published {name}\n\nWritten by `abkt published`.\n\n{module.__doc__}\n{text}\n")
        print(text)
    print(f"results: {config.out}")


def _codecs() -> tuple[list[GpuSpec], ModelSpec]:
    composed = [compose("simulate", [f"hardware={name}", "model=llama-3.1-8b"]).config for name in ("h100", "rtx_pro_6000", "b200")]
    return [read(GpuSpec, one["hardware"]) for one in composed], read(ModelSpec, composed[0]["model"])


def _servers(config: PublishedConfig) -> str:
    rows, left = read_rows(config.data / name for name in config.servers)
    rows, unfit = servers.fitting(rows)
    fitted = any(row.system == servers.FITTED_ON for row in rows)
    with bar("stepped servers", total=len(rows) * (4 if fitted else 1) + min(config.sampled, len(rows))) as shown:
        compared = comparison.compare(rows, config.sampled, lambda: shown.step(""))
    if config.rows:
        comparison.as_table(compared).to_csv(config.out / "published_rows.csv", index=False)
    return comparison.as_markdown(compared, left | unfit)
