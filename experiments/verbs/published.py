"""`abkt published`: the simulator's costs against published servers, transfers and curves of compressed KV, as tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from experiments.lib.config import STRICT
from experiments.lib.progress import bar
from experiments.lib.results import write_text
from experiments.lib.verb import VerbCall, verb
from experiments.published import links, servers
from experiments.published.rows import read_rows

if TYPE_CHECKING:
    from pydantic import ConfigDict


@dataclass(frozen=True, slots=True)
class PublishedConfig:
    """data: folder of the files. servers: tables of measured servers in it, of any GPU in conf/hardware."""

    data: Path
    servers: tuple[Path, ...]
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@verb("published")
def main(config: PublishedConfig, run: VerbCall) -> None:
    tables = {"servers": (servers, _servers(config)), "links": (links, links.as_markdown(config.data))}
    for name, (module, text) in tables.items():
        assert module.__doc__ is not None
        write_text(config.out / f"published_{name}.md", f"# Published {name}\n\nWritten by `abkt published`.\n\n{module.__doc__}\n{text}\n")
        print(text)
    print(f"results: {config.out}")


def _servers(config: PublishedConfig) -> str:
    rows, left = read_rows(config.data / name for name in config.servers)
    rows, unfit = servers.fitting(rows)
    fitted = any(row.system == servers.FITTED_ON for row in rows)
    with bar("stepped servers", total=len(rows) * (4 if fitted else 1)) as shown:
        ships = servers.shipped(rows, lambda: shown.step(""))
        measured = servers.response(rows, lambda: shown.step("")) if fitted else None
    return servers.as_markdown(ships, measured, left | unfit)
