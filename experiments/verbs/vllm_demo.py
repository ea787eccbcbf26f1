"""`abkt vllm-demo`: two vLLM servers with ABKT's connector and the proxy on this machine, and what happens to some prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from abkt.connect.vllm.settings import BITRATES
from abkt.ranges import bound, short
from experiments.lib.config import STRICT
from experiments.lib.verb import VerbCall, verb

if TYPE_CHECKING:
    from pydantic import ConfigDict

PYTHON = Path(".venv-vllm/bin/python")


@dataclass(frozen=True, slots=True)
class VllmDemoConfig:
    """model_folder: null: a tiny Llama. kv_bitrate: of the connector. requests, tokens: prompts, and tokens of each answer. python: the
    interpreter that has vLLM."""

    model_folder: Path | None
    kv_bitrate: str
    requests: int
    tokens: int
    python: Path | None
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        bound(self, "requests", "tokens", least=1)
        if self.kv_bitrate not in BITRATES:
            raise ValueError(f"kv_bitrate is {short(self.kv_bitrate)}; it must be one of {', '.join(BITRATES)}")


@verb("vllm-demo")
def main(config: VllmDemoConfig, run: VerbCall) -> None:
    from experiments.lib.errors import RunError
    from experiments.lib.manifest import write_manifest
    from experiments.lib.results import write_json
    from experiments.vllm import demo, server, tiny

    python = config.python or (PYTHON.absolute() if PYTHON.exists() else None)
    if reason := server.why_not(python):
        raise ValueError(reason)
    config.out.mkdir(parents=True, exist_ok=True)
    model = config.model_folder or tiny.make(config.out / "tiny-llama")
    try:
        found = demo.run(model, config.out, config.kv_bitrate, config.requests, config.tokens, python)
    except RuntimeError as error:
        raise RunError(str(error)) from None
    write_json(config.out / "demo.json", found)
    write_manifest(run, [model / "config.json"])
