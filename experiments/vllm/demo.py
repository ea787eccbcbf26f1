"""What `abkt vllm-demo` does: two servers, the proxy, some prompts, and a table of what happened."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

from experiments.vllm.metrics import external_tokens
from experiments.vllm.pair import REQUEST_S, Pair, answer_of, body

ARGUMENTS = ("--max-model-len", "2048", "--max-num-seqs", "8")
SENTENCE = "A prefill server reads the prompt, and a decode server writes the answer. "


class RunningProxy(AbstractContextManager["RunningProxy"]):
    """The proxy in a thread of this process, at `url`."""

    def __init__(self, prefill: list[str], decode: list[str]) -> None:
        import uvicorn

        from abkt.connect.proxy import Proxy

        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(Proxy(prefill, decode).app(), log_level="warning", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> RunningProxy:
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One prompt. equal: the tokens that are those of one server alone, from the first."""

    tokens: int
    equal: int
    seconds: float


def run(model: Path, folder: Path, bitrate: str, requests: int, tokens: int, python: Path | None) -> dict[str, Any]:
    """The demonstration; returns what it has printed."""
    console = Console()
    console.print(f"starting two vLLM servers with {model.name}, bitrate {bitrate}; their logs are in {folder}")
    rows = []
    with (
        Pair(model, folder, {"bitrate": bitrate}, ARGUMENTS, python=python) as pair,
        RunningProxy([pair.prefill.url], [pair.decode.url]) as proxy,
    ):
        for index in range(requests):
            prompt = f"{index}. " + SENTENCE * (3 + index)
            alone = pair.ask(prompt, tokens, where="prefill")
            start_s = time.monotonic()
            response = httpx2.post(f"{proxy.url}/v1/completions", json=body(prompt, tokens), timeout=REQUEST_S).raise_for_status()
            both = answer_of(response.json())
            rows.append(DemoRow(len(both.tokens), agreeing(alone.tokens, both.tokens), time.monotonic() - start_s))
        found = pair.settle("vllm:abkt_exposed_s_count", requests, within_s=10.0)
    table = Table("prompt", "tokens", "equal to one server alone", "seconds")
    for index, row in enumerate(rows):
        table.add_row(str(index), str(row.tokens), f"{row.equal} of {row.tokens}", f"{row.seconds:.2f}")
    console.print(table)
    loads, sent = found.get("vllm:abkt_exposed_s_count", 0.0), total(found, "vllm:abkt_received_bytes_total")
    raw = total(found, "vllm:abkt_received_raw_bytes_total")
    summary = {
        "loads": loads,
        "external_tokens": external_tokens(found),
        "bytes": sent,
        "ratio": sent / raw if raw else 0.0,
        "mean_distortion": found.get("vllm:abkt_received_distortion_sum", 0.0) / loads if loads else 0.0,
        "mean_exposed_s": found.get("vllm:abkt_exposed_s_sum", 0.0) / loads if loads else 0.0,
    }
    console.print(
        f"{loads:.0f} loads of {summary['external_tokens']:.0f} tokens: {sent / 1e6:.2f} MB, {summary['ratio']:.2f} of the raw KV, "
        f"distortion {summary['mean_distortion']:.4f}, {summary['mean_exposed_s'] * 1e3:.0f} ms until KV was usable"
    )
    return {"model": model.name, "bitrate": bitrate, "rows": [[row.tokens, row.equal, row.seconds] for row in rows], **summary}


def agreeing(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """How many tokens are equal before the first that differs."""
    count = 0
    for a, b in zip(first, second):
        if a != b:
            break
        count += 1
    return count


def total(samples: dict[str, float], name: str) -> float:
    """A counter summed over its peers."""
    return sum(value for key, value in samples.items() if key == name or key.startswith(f"{name}{{"))
