"""Clients that ask the same questions again and again, and compare each answer with the undisturbed one."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

TIMEOUT_S = 120.0
LEAST_GAP = 0.01  # of the two likeliest tokens' log-probabilities: nearer ones may be decided by the order of a sum


def post(port: int, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as client:
        client.request("POST", "/v1/completions", json.dumps(body).encode())
        response = client.getresponse()
        return response.status, json.loads(response.read())


def get(port: int, path: str) -> str:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as client:
        client.request("GET", path)
        return client.getresponse().read().decode()


def questions(port: int, count: int, seed: int) -> list[tuple[dict[str, Any], list[int]]]:
    """(body, token ids of the undisturbed answer): greedy answers without a near-tie."""
    dice, found = Random(seed), []
    while len(found) < count:
        prompt = [dice.randrange(3, 2048) for _ in range(dice.randint(20, 250))]
        body = {"prompt": prompt, "max_tokens": dice.randint(8, 60), "temperature": 0, "ignore_eos": True}
        _, answer = post(port, {**body, "logprobs": 2})
        (choice,) = answer["choices"]
        tops = [sorted(top.values()) for top in choice["logprobs"]["top_logprobs"]]
        if all(len(top) == 2 and top[1] - top[0] >= LEAST_GAP for top in tops):
            found.append((body, choice["token_ids"]))
    return found


@dataclass
class Clients:
    """`count` clients in threads. outcomes: how often each thing happened. wrong: the answers that were not the undisturbed ones."""

    port: int
    count: int
    asked: list[tuple[dict[str, Any], list[int]]]
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Clients:
        self._threads = [threading.Thread(target=self._work, args=(Random(i),)) for i in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, dice: Random) -> None:
        while not self.stop.is_set():
            body, expected = dice.choice(self.asked)
            kind = dice.choices(["streamed", "whole", "vanished", "stop string"], [6, 2, 1, 1])[0]
            try:
                self._ask(dice, kind, body, expected)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.outcomes[f"{kind}: {type(error).__name__}"] += 1
                self.stop.wait(0.5)

    def _ask(self, dice: Random, kind: str, body: dict[str, Any], expected: list[int]) -> None:
        if kind == "stop string":  # some text of the answer, so that it ends early
            _, whole = post(self.port, body)
            if "choices" not in whole:
                raise ValueError(whole)
            text = whole["choices"][0]["text"]
            stop = text[len(text) // 2 :][:4]
            if not stop:
                return
            _, cut = post(self.port, {**body, "stop": stop})
            self._compare(kind, cut["choices"][0]["text"] if "choices" in cut else cut, text[: text.index(stop)])
        elif kind == "whole":
            _, whole = post(self.port, body)
            self._compare(kind, whole["choices"][0]["token_ids"] if "choices" in whole else whole, expected)
        else:
            self._stream(dice, kind, body, expected)

    def _stream(self, dice: Random, kind: str, body: dict[str, Any], expected: list[int]) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)) as client:
            client.request("POST", "/v1/completions", json.dumps({**body, "stream": True}).encode())
            if kind == "vanished":
                with suppress(TimeoutError):
                    client.sock.settimeout(dice.uniform(0.01, 3.0))
                    client.sock.recv(dice.choice([1, 500, 5000]))
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
                self.outcomes[kind] += 1
                return
            response, tokens = client.getresponse(), list[int]()
            if response.status != 200:
                self._compare(kind, json.loads(response.read()), expected)
                return
            for line in response:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        self._compare(kind, event, expected)
                        return
                    tokens += event["choices"][0]["token_ids"]
            self._compare(kind, tokens, expected)

    def _compare(self, kind: str, given: Any, expected: Any) -> None:
        if isinstance(given, dict):
            self.outcomes[f"{kind}: refused"] += 1
            reason = given.get("error", {}).get("message", "?")
            self.outcomes["reason: " + reason[:80]] += 1
            time.sleep(0.5)
        elif given == expected:
            self.outcomes[f"{kind}: equal"] += 1
        else:
            self.outcomes[f"{kind}: WRONG"] += 1
            self.wrong.append(f"{kind}: {given} is not {expected}")
