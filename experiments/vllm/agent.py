"""A client that lives in another network namespace: it takes requests as JSON lines on stdin, and answers with JSON lines on stdout.

`ip netns exec NAME python -m experiments.vllm.agent` starts it; `Agent` is its other end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import httpx2

from experiments.vllm.server import ROOT

REQUEST_S = 150.0


def completed(client: httpx2.Client, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a completion, streamed: log probabilities, the likeliest token at each place, seconds to the first and the last."""
    logprobs: list[float] = []
    best: list[str] = []
    start_s, first_s, text = time.monotonic(), 0.0, ""
    with client.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}) as response:
        if response.status_code != 200:
            response.read()
            return {"error": response.text[:500]}
        for line in response.iter_lines():
            if line.startswith("data: {"):
                first_s = first_s or time.monotonic() - start_s
                message = json.loads(line[6:])
                if "choices" not in message:
                    return {"error": line[:500]}
                choice = message["choices"][0]
                text += choice["text"]
                told = choice.get("logprobs") or {}
                logprobs += told.get("token_logprobs") or []
                best += [max(each, key=each.__getitem__) for each in told.get("top_logprobs") or []]
    return {"ttft_s": first_s, "seconds": time.monotonic() - start_s, "text": text, "logprobs": logprobs, "best": best}


def posted(client: httpx2.Client, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The whole answer to a completion, and its seconds."""
    start_s = time.monotonic()
    response = client.post(f"{url}/v1/completions", json=body)
    return {"status": response.status_code, "seconds": time.monotonic() - start_s, "response": response.json()}


def serve() -> None:
    with httpx2.Client(timeout=REQUEST_S) as client:
        for line in sys.stdin:
            asked = json.loads(line)
            try:
                match asked["do"]:
                    case "stream":
                        answer = completed(client, asked["url"], asked["body"])
                    case "post":
                        answer = posted(client, asked["url"], asked["body"])
                    case _:
                        answer = {"text": client.get(asked["url"]).text}
            except httpx2.HTTPError as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), flush=True)


class Agent(AbstractContextManager["Agent"]):
    """The client process. prefix: what its command begins with. python: its interpreter."""

    def __init__(self, prefix: Sequence[str], python: str) -> None:
        command = [*prefix, python, "-m", "experiments.vllm.agent"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def ask(self, do: str, url: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"do": do, "url": url, "body": body}), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        if "error" in answer or answer.get("status", 200) != 200:
            raise RuntimeError(f"{url}: {answer.get('error') or answer['response']}")
        return answer


if __name__ == "__main__":
    serve()
