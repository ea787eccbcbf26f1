"""The measurement: two vLLM servers in network namespaces, a shaped link between them, and each way to get a prompt's KV across.

Time to first token is that of the decode request; the prefill before it is the same for all ways. NixlConnector goes over UCX's TCP.
The answer is the text that follows the prompt (forced.py), so its likelihood can be compared. Prefix caching is off.
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

from abkt.net.command import run
from abkt.net.namespaces import Namespaces
from experiments.vllm.agent import Agent
from experiments.vllm.demo import total
from experiments.vllm.metrics import parsed
from experiments.vllm.plan import OURS, MeasureConfig, MeasuredCell, cells, read_rows, token_ids
from experiments.vllm.server import VllmServer, connector

PORT = 8100
NIXL_PORT = 5600
DROP_S = 0.3
REMOTE = {"do_remote_decode": True, "do_remote_prefill": False}
FORCED = "experiments.vllm.forced:Forced"
BYTES = {"nixl": "vllm:nixl_bytes_transferred_sum"}
PARTS = ("exposed_s", "offer_s", "arrive_s", "write_s", "report_s", "received_distortion")
HELD = ("held_s", "encode_s")


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
            arguments = ("--max-model-len", "2048", "--max-num-seqs", "4", "--no-enable-prefix-caching", "--logits-processors", FORCED)
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

    def metrics(self, server: VllmServer | None = None) -> dict[str, float]:
        """The counts of a server; of the decode server by default."""
        return parsed(self.agent.ask("get", f"{(server or self.decode).url}/metrics")["text"])

    def params(self, tokens: Sequence[int], bitrate: str) -> tuple[dict[str, Any], float]:
        """(where the KV of a prompt lies, seconds of its prefill). bitrate: empty with another connector."""
        done = self.agent.ask("post", self.prefill.url, request(tokens, 1, kv_transfer_params=REMOTE))
        params = done["response"]["kv_transfer_params"]
        return ({**params, "abkt_bitrate": bitrate} if bitrate else params), done["seconds"]


def request(tokens: Sequence[int], count: int, **more: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": list(tokens), "max_tokens": count, "temperature": 0.0, "ignore_eos": True, "logprobs": 1, **more}


def measure(config: MeasureConfig) -> dict[str, dict[str, Any]]:
    """All rows; those that are in rows.jsonl already are not measured again.

    The link without a limit has servers of its own: on shaped ones TCP's segments are small, so that they fit the bucket."""
    config.out.mkdir(parents=True, exist_ok=True)
    path, prompts = config.out / "rows.jsonl", token_ids(config)
    rows = read_rows(path)
    for shaped in (False, True):
        for nixl, ways in ((False, ("local", *OURS)), (True, ("nixl",))):
            left = [cell for cell in cells(config, ways) if cell.key not in rows and (min(cell.link) < math.inf) is shaped]
            if not left:
                continue
            lowest_mbit_s = min(min(cell.link) for cell in left)
            with Namespaces(lowest_bytes_per_s=lowest_mbit_s * 1e6 / 8) as net, path.open("a") as lines:
                set_reno(net)
                with Bench(config, net, nixl) as bench:
                    for way in ways:  # the first use of everything takes longer
                        one(bench, config, MeasuredCell(way, (math.inf,), 0), prompts[0][::-1])
                    for cell in left:
                        row = {"key": cell.key, **attempt(bench, config, cell, prompts[cell.prompt])}
                        print(json.dumps(row), file=lines, flush=True)
                        if "error" in row:
                            print(f"{cell.key}: failed: {row['error']}", flush=True)
                            continue
                        rows[cell.key] = row
                        print(f"{cell.key}: {row['ttft_s']:.2f} s, {row['bytes'] / 1e6:.2f} MB", flush=True)
    return rows


def set_reno(net: Namespaces) -> None:
    """Let TCP in the namespaces use Reno, for all ways. BBR, the default of some hosts, goes on with the rate of the last cell when the
    link has changed, and paces badly over links without any delay: it needed three times as long, and stalled for seconds now and then."""
    for node in ("p0", "d0"):
        run(*net.command(node), "sh", "-c", "echo reno > /proc/sys/net/ipv4/tcp_congestion_control")


def attempt(bench: Bench, config: MeasureConfig, cell: MeasuredCell, tokens: Sequence[int]) -> dict[str, Any]:
    """The row of a cell, or its error: it is measured again by the next run."""
    try:
        return one(bench, config, cell, tokens)
    except RuntimeError as error:
        return {"error": str(error)}


def one(bench: Bench, config: MeasureConfig, cell: MeasuredCell, tokens: Sequence[int]) -> dict[str, Any]:
    """The row of a cell."""
    context, answer = tokens[: config.context], tokens[config.context :]
    bench.shape(math.inf)
    both = bench.decode, bench.prefill
    before = [bench.metrics(server) for server in both]
    params, prefill_s = ({}, 0.0) if cell.way == "local" else bench.params(context, cell.way if cell.way in OURS else "")
    bench.shape(cell.link[0])
    drop = threading.Timer(DROP_S, bench.shape, cell.link[1:])
    if len(cell.link) > 1:
        drop.start()
    more = {"vllm_xargs": {"forced": answer}, "return_tokens_as_token_ids": True, **({"kv_transfer_params": params} if params else {})}
    try:
        done = bench.agent.ask("stream", bench.decode.url, request(context, len(answer), **more))
    finally:
        if len(cell.link) > 1:
            drop.join()
    time.sleep(0.3)  # the counts come with a later step
    after = [bench.metrics(server) for server in both]
    grown = lambda name, at=0: total(after[at], name) - total(before[at], name)  # noqa: E731
    return {
        "way": cell.way, "link_mbit_s": [rate if math.isfinite(rate) else "inf" for rate in cell.link], "prompt": cell.prompt,
        "context": len(context), "prefill_s": prefill_s, "ttft_s": done["ttft_s"], "seconds": done["seconds"],
        "logprobs": done["logprobs"], "best": done["best"], "bytes": grown(BYTES.get(cell.way, "vllm:abkt_received_bytes_total")),
        **{name: grown(f"vllm:abkt_{name}_sum") for name in PARTS}, **{name: grown(f"vllm:abkt_{name}_sum", 1) for name in HELD},
        "load": os.getloadavg()[0],
    }  # fmt: skip


def default_python() -> Path:
    here = Path(".venv-vllm/bin/python").absolute()
    return here if here.exists() else Path(sys.executable)
