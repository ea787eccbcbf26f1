"""The measurement: two vLLM servers in network namespaces, a shaped link between them, and each way to get a prompt's KV across.

Time to first token is that of the decode request; the prefill before it is the same for all ways. NixlConnector goes over UCX's TCP.
A prompt that a way has sent is different for each cell only in its text, so no cache helps; prefix caching is off.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from abkt.net.namespaces import Namespaces
from experiments.vllm.agent import Agent
from experiments.vllm.demo import agreeing, total
from experiments.vllm.metrics import parsed
from experiments.vllm.plan import OURS, MeasureConfig, MeasuredCell, cells, read_rows, token_ids
from experiments.vllm.server import VllmServer, connector

PORT = 8100
NIXL_PORT = 5600
DROP_S = 0.3
REMOTE = {"do_remote_decode": True, "do_remote_prefill": False}
LOWEST_MBIT_S = 5.0


class Bench(AbstractContextManager["Bench"]):
    """Two servers with one connector, in namespaces p0 and d0, and a client in d0."""

    def __init__(self, config: MeasureConfig, net: Namespaces, nixl: bool) -> None:
        self._net, self._stack = net, ExitStack()
        servers = []
        key = config.out / "key"
        if not key.exists():
            key.touch(0o600)
            key.write_bytes(os.urandom(32))
        for node, role in (("p0", "kv_producer"), ("d0", "kv_consumer")):
            host = net.address(node)
            settings: dict[str, Any] = {
                "bitrate": "embedded",
                "host": host,
                "key_file": str(key),
                "deadline_s": config.deadline_s,
                "timeout_s": 300.0,
            }
            transfer = connector(role, name="NixlConnector") if nixl else connector(role, **settings)
            if nixl:
                transfer["kv_buffer_device"] = "cpu"
            environment = {
                "VLLM_NIXL_SIDE_CHANNEL_HOST": host, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(NIXL_PORT), "UCX_TLS": "tcp,self",
                "UCX_NET_DEVICES": "eth0", "VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
            }  # fmt: skip
            arguments = ("--max-model-len", "2048", "--max-num-seqs", "4", "--no-enable-prefix-caching")
            name = f"{'nixl' if nixl else 'abkt'}-{node}"
            log = config.out / f"{name}.log"
            servers.append(
                VllmServer(name, config.model_folder, log, transfer, arguments, host, PORT, net.command(node), config.python, environment)
            )
        self.prefill, self.decode = servers
        self.agent = Agent(net.command("d0"), str(config.python))
        self._stack.enter_context(self.agent)

    def __enter__(self) -> Bench:
        self.shape(math.inf)
        try:
            for server in (self.prefill, self.decode):
                self._stack.callback(server.stop)
                server.start()
            for server in (self.prefill, self.decode):
                server.wait()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def shape(self, mbit_s: float) -> None:
        self._net.shape(mbit_s * 1e6 / 8)

    def metrics(self) -> dict[str, float]:
        return parsed(self.agent.ask("get", f"{self.decode.url}/metrics")["text"])

    def params(self, tokens: Sequence[int], bitrate: str) -> tuple[dict[str, Any], float]:
        """(where the KV of a prompt lies, seconds of its prefill). bitrate: empty with another connector."""
        done = self.agent.ask("post", self.prefill.url, request(tokens, 1, kv_transfer_params=REMOTE))
        params = done["response"]["kv_transfer_params"]
        return ({**params, "abkt_bitrate": bitrate} if bitrate else params), done["seconds"]


def request(tokens: Sequence[int], count: int, **more: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": list(tokens), "max_tokens": count, "temperature": 0.0, "ignore_eos": True, "logprobs": 1, **more}


def measure(config: MeasureConfig) -> dict[str, dict[str, Any]]:
    """All rows; those that are in rows.jsonl already are not measured again."""
    config.out.mkdir(parents=True, exist_ok=True)
    path, prompts = config.out / "rows.jsonl", token_ids(config)
    rows = read_rows(path)
    for nixl, ways in ((False, ("local", *OURS)), (True, ("nixl",))):
        left = [cell for cell in cells(config, ways) if cell.key not in rows]
        if not left:
            continue
        with Namespaces(lowest_bytes_per_s=LOWEST_MBIT_S * 1e6 / 8) as net, Bench(config, net, nixl) as bench, path.open("a") as lines:
            for way in ways:  # the first use of everything takes longer
                one(bench, config, MeasuredCell(way, (math.inf,), 0), prompts[0][::-1])
            for cell in left:
                row = {"key": cell.key, **one(bench, config, cell, prompts[cell.prompt])}
                rows[cell.key] = row
                print(json.dumps(row), file=lines, flush=True)
                print(f"{cell.key}: {row['ttft_s']:.2f} s, {row['bytes'] / 1e6:.2f} MB", flush=True)
    return rows


def one(bench: Bench, config: MeasureConfig, cell: MeasuredCell, tokens: Sequence[int]) -> dict[str, Any]:
    """The row of a cell."""
    context, bitrate = tokens[: config.context], cell.way if cell.way in OURS else ""
    bench.shape(math.inf)
    params, prefill_s = ({}, 0.0) if cell.way == "local" else bench.params(context, bitrate)
    before = bench.metrics()
    bench.shape(cell.link[0])
    drop = threading.Timer(DROP_S, bench.shape, cell.link[1:])
    if len(cell.link) > 1:
        drop.start()
    done = bench.agent.ask(
        "stream", bench.decode.url, request(context, config.answer, **({"kv_transfer_params": params} if params else {}))
    )
    if len(cell.link) > 1:
        drop.join()
    time.sleep(0.3)  # the counts come with a later step
    after = bench.metrics()
    grown = {
        name: total(after, name) - total(before, name) for name in ("vllm:abkt_received_bytes_total", "vllm:nixl_bytes_transferred_sum")
    }
    grown |= {
        name: after.get(name, 0.0) - before.get(name, 0.0) for name in ("vllm:abkt_exposed_s_sum", "vllm:abkt_received_distortion_sum")
    }
    row = {
        "way": cell.way, "link_mbit_s": [rate if math.isfinite(rate) else "inf" for rate in cell.link], "prompt": cell.prompt,
        "context": len(context), "prefill_s": prefill_s, "ttft_s": done["ttft_s"], "seconds": done["seconds"], "tokens": done["tokens"],
        "bytes": grown["vllm:nixl_bytes_transferred_sum" if cell.way == "nixl" else "vllm:abkt_received_bytes_total"],
        "exposed_s": grown["vllm:abkt_exposed_s_sum"], "distortion": grown["vllm:abkt_received_distortion_sum"],
        "load": os.getloadavg()[0],
    }  # fmt: skip
    return row


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a page: medians over prompts, for each link and way."""
    timed = list(rows.values())
    by: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in timed:
        by.setdefault((" > ".join(map(str, row["link_mbit_s"])), row["way"]), []).append(row)
    local = {row["prompt"]: row for row in timed if row["way"] == "local"}
    lines = [
        "| link, Mbit/s | way | n | TTFT, s | exposed, s | MB | tokens equal to local | distortion |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (link, way), found in by.items():
        equal = [agreeing(tuple(row["tokens"]), tuple(local[row["prompt"]]["tokens"])) for row in found if row["prompt"] in local]
        ours = way not in ("local", "nixl")
        shown = [
            link, way, str(len(found)), f"{median(row['ttft_s'] for row in found):.2f}",
            f"{median(row['exposed_s'] for row in found):.2f}" if ours else "",
            f"{median(row['bytes'] for row in found) / 1e6:.2f}",
            f"{sum(equal)} of {sum(len(row['tokens']) for row in found if row['prompt'] in local)}" if equal else "",
            f"{median(row['distortion'] for row in found):.4f}" if ours else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(shown) + " |")
    load = [row["load"] for row in rows.values()]
    ends = f"Load average of the machine while it was measured: {min(load):.1f} to {max(load):.1f}."
    return "\n".join([*lines, "", ends, ""])


def median(values: Any) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if len(ordered) % 2 else sum(ordered[len(ordered) // 2 - 1 : len(ordered) // 2 + 1]) / 2


def default_python() -> Path:
    here = Path(".venv-vllm/bin/python").absolute()
    return here if here.exists() else Path(sys.executable)
