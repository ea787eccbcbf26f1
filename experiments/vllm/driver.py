"""The proxy before two servers, and the clients of a run, in a process of their own: they may live in another network namespace.

Each line on stdin is a run: {"origin_s", "requests": [{"id", "arrival_s", "body"}, …]}. Each finished request gives a line on stdout: its
id, the times of time.monotonic at which it was sent, had its first and its last token, and the number of tokens, or its error.

    python -m experiments.vllm.driver PREFILL_URL DECODE_URL
"""

from __future__ import annotations

import asyncio
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import httpx2

from abkt.serve.errors import ClusterError
from experiments.vllm.demo import RunningProxy
from experiments.vllm.server import ROOT

REQUEST_S = 600.0


async def served(client: httpx2.AsyncClient, url: str, request: Mapping[str, Any], origin_s: float) -> dict[str, Any]:
    """One request at its time."""
    await asyncio.sleep(max(0.0, origin_s + request["arrival_s"] - time.monotonic()))
    told: dict[str, Any] = {"id": request["id"], "sent_s": time.monotonic(), "tokens": 0}
    asked = client.stream("POST", f"{url}/v1/completions", json=request["body"], headers={"X-Request-Id": request["id"]})
    try:
        async with asked as response:
            if response.status_code != 200:
                return {**told, "error": (await response.aread()).decode(errors="replace")[:300]}
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                told["last_s"] = time.monotonic()
                told.setdefault("first_s", told["last_s"])
                told["tokens"] += 1
                if "choices" not in json.loads(line[6:]):
                    return {**told, "error": line[:300]}
    except httpx2.HTTPError as error:
        return {**told, "error": f"{type(error).__name__}: {error}"}
    return told if told["tokens"] else {**told, "error": "the answer is empty"}


async def run(url: str, asked: Mapping[str, Any]) -> None:
    async with httpx2.AsyncClient(timeout=REQUEST_S, limits=httpx2.Limits(max_connections=None)) as client:
        for done in asyncio.as_completed([served(client, url, request, asked["origin_s"]) for request in asked["requests"]]):
            print(json.dumps(await done), flush=True)


class Driver(AbstractContextManager["Driver"]):
    """That process. prefix: what its command begins with, such as `ip netns exec NAME`."""

    def __init__(self, prefix: Sequence[str], prefill: str, decode: str) -> None:
        command = [*prefix, sys.executable, "-m", "experiments.vllm.driver", prefill, decode]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(self, origin_s: float, requests: Sequence[Mapping[str, Any]], silence_s: float) -> Iterator[dict[str, Any]]:
        """The requests' answers as they come. Raises ClusterError if none comes for silence_s, or the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"origin_s": origin_s, "requests": list(requests)}).encode() + b"\n")
        self._process.stdin.flush()
        waiting_s = origin_s + max((request["arrival_s"] for request in requests), default=0.0)
        for _ in requests:  # one answer at a time: nothing is read ahead, so select tells the truth
            if not select.select([self._process.stdout], [], [], max(0.0, waiting_s - time.monotonic()) + silence_s)[0]:
                raise ClusterError(f"vLLM's servers answered nothing for {silence_s:.0f} s")
            line = _line(self._process.stdout)
            if not line:
                raise ClusterError("the process with the proxy of vLLM's servers has ended")
            answer: dict[str, Any] = json.loads(line)
            yield answer


def _line(stdout: Any) -> bytes:
    """A line, read byte by byte from below the buffer."""
    found = b""
    while not found.endswith(b"\n") and (byte := stdout.raw.read(1)):
        found += byte
    return found


def main(prefill: str, decode: str) -> None:
    with RunningProxy([prefill], [decode]) as proxy:
        for line in sys.stdin:
            asyncio.run(run(proxy.url, json.loads(line)))


if __name__ == "__main__":
    main(*sys.argv[1:])
