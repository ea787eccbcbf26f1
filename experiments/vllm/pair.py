"""A prefill and a decode server of vLLM, and requests that go through both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from experiments.vllm.metrics import parsed
from experiments.vllm.server import VllmServer, connector

REQUEST_S = 300.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one prompt. ttft_s: from the request to the decode server's first token, or from the prefill request's start if that is
    `total`. logprobs: of the tokens that were generated."""

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    prefill_s: float
    ttft_s: float
    seconds: float
    finish: str


class Pair(AbstractContextManager["Pair"]):
    """Two servers with the same settings.

    Parameters
    ----------
    model, folder : the model, and a folder for logs.
    transfer : the connector's settings, or a whole kv-transfer-config for each of the two (`producer`, `consumer`).
    arguments : further arguments of both servers' commands.
    """

    def __init__(
        self,
        model: Path,
        folder: Path,
        transfer: Mapping[str, Any] | None = None,
        arguments: Sequence[str] = (),
        policy: str = "recompute",
        python: Path | None = None,
        configs: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        extra = dict(transfer or {})
        p, d = configs or (connector("kv_producer", policy, **extra), connector("kv_consumer", policy, **extra))
        self.prefill = VllmServer("prefill", model, folder / "prefill.log", p, arguments, python=python)
        self.decode = VllmServer("decode", model, folder / "decode.log", d, arguments, python=python)
        self.client = httpx2.Client(timeout=REQUEST_S)

    def __enter__(self) -> Pair:
        try:
            self.prefill.start()
            self.decode.start()
            self.prefill.wait()
            self.decode.wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        ends = [threading.Thread(target=server.stop) for server in (self.prefill, self.decode)]
        for end in ends:
            end.start()
        for end in ends:
            end.join()
        self.client.close()

    def prefilled(self, prompt: str | list[int], **more: Any) -> dict[str, Any] | None:
        """The params of a prompt, computed on the prefill server."""
        asked = {"kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}, **more}
        response = self.client.post(f"{self.prefill.url}/v1/completions", json=body(prompt, 1, **asked)).raise_for_status().json()
        params: dict[str, Any] | None = response.get("kv_transfer_params")
        return params

    def ask(self, prompt: str | list[int], tokens: int, params: Mapping[str, Any] | None = None, where: str = "decode") -> Answer:
        """The answer of one server; params: where the prompt's KV lies."""
        url = (self.decode if where == "decode" else self.prefill).url
        more = {"kv_transfer_params": dict(params)} if params else {}
        response = self.client.post(f"{url}/v1/completions", json=body(prompt, tokens, **more)).raise_for_status().json()
        return answer_of(response)

    def through(self, prompt: str | list[int], tokens: int, between: Callable[[dict[str, Any]], None] = lambda params: None) -> Answer:
        """The answer of the decode server to a prompt that the prefill server has computed. between: is called with the params."""
        params = self.prefilled(prompt)
        if params:
            between(params)
        return self.ask(prompt, tokens, params)

    def metrics(self, where: str = "decode") -> dict[str, float]:
        url = (self.decode if where == "decode" else self.prefill).url
        return parsed(self.client.get(f"{url}/metrics").text)

    def settle(self, name: str, least: float, where: str = "decode", within_s: float = 60.0) -> dict[str, float]:
        """The metrics, once one of them has reached `least`: they come with the step that follows."""
        until_s = time.monotonic() + within_s
        while (found := self.metrics(where)).get(name, 0.0) < least and time.monotonic() < until_s:
            time.sleep(0.2)
        return found


def body(prompt: str | list[int], tokens: int, **more: Any) -> dict[str, Any]:
    """A request for exactly `tokens` tokens, the most probable ones, with their log probabilities."""
    fixed = {"model": "m", "temperature": 0.0, "ignore_eos": True, "logprobs": 1, "seed": 0}
    return {**fixed, "prompt": prompt, "max_tokens": tokens, **more}


def answer_of(response: Mapping[str, Any], prefill_s: float = 0.0, ttft_s: float = 0.0, seconds: float = 0.0) -> Answer:
    choice = response["choices"][0]
    found = choice.get("logprobs") or {"tokens": [], "token_logprobs": []}
    return Answer(
        choice["text"], tuple(found["tokens"]), tuple(found["token_logprobs"]), prefill_s, ttft_s, seconds, choice["finish_reason"] or ""
    )
