"""The HTTP endpoint over a service of made-up workers: answers, refusals and metrics. The server is real, the model is not."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest

from abkt.serve.engine.sampling import Sampling
from abkt.serve.http import BODY_CAP_BYTES, KNOWN, Endpoint, Text, prompt_of
from abkt.serve.metrics import Metrics
from abkt.serve.service import Service
from tests.serve.test_frontend import STOP, FakeWorkers, answer, frontend, started

KEY = "a-key-of-thirty-two-letters-0123"


class Letters:
    """A tokenizer of eleven letters."""

    def encode(self, text: str) -> list[int]:
        return ["abcdefghijk".index(letter) for letter in text]

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return "".join("abcdefghijk"[token] for token in tokens)


TEXT = Text(vocabulary=11, eos=STOP, tokenizer=Letters())


@contextmanager
def server(key: str = "", working: bool = True, most_waiting: int = 256) -> Iterator[tuple[int, FakeWorkers]]:
    """Yields the port of a server. working: whether the made-up workers do any work."""
    import uvicorn

    workers, metrics, stop = started(1, 1), Metrics(), threading.Event()
    front: list[Any] = []

    def make(done: Any) -> Any:
        front.append(frontend(workers, []))
        front[0]._done = done
        return front[0]

    with Service(make, most_waiting, metrics.done) as service:

        def work() -> None:
            while not stop.wait(0.001):
                for worker in list(workers.fakes.values()):
                    if working and not worker.dead:
                        worker.work(workers.fakes, fails=False)

        thread = threading.Thread(target=work)
        thread.start()
        made = uvicorn.Server(uvicorn.Config(Endpoint(service, metrics, "tiny", TEXT, key).app(), port=0, log_level="error"))
        serving = threading.Thread(target=made.run)
        serving.start()
        wait_for(lambda: made.started)
        try:
            yield made.servers[0].sockets[0].getsockname()[1], workers
        finally:
            made.should_exit = made.force_exit = True
            serving.join()
            stop.set()
            thread.join()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for a limited time, so that a hang is a failure."""
    until_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until_s, "it never came"
        time.sleep(0.01)


def ask(port: int, body: object = None, path: str = "/v1/completions", key: str = "") -> tuple[int, Any, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    raw = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    with closing(connection):
        connection.request("GET" if raw is None else "POST", path, raw, {"Authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        data = response.read()
    plain = response.headers["content-type"] == "application/json"
    return response.status, json.loads(data) if plain else data.decode(), response.headers


def events(data: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in data.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_whole_and_streamed_answers_are_the_models_and_are_counted() -> None:
    asked = {"model": "tiny", "prompt": "abca", "max_tokens": 12, "ignore_eos": True, "temperature": 0}
    expected = answer(prompt_of(asked, "tiny", TEXT))
    with server() as (port, _):
        status, whole, _ = ask(port, asked)
        assert status == 200
        assert whole["choices"][0]["token_ids"] == expected
        assert whole["choices"][0]["text"] == Letters().decode(expected, True)
        assert whole["choices"][0]["finish_reason"] == "length"
        assert whole["usage"] == {"prompt_tokens": 4, "completion_tokens": 12, "total_tokens": 16}
        status, data, headers = ask(port, {**asked, "prompt": [0, 1, 2, 0], "stream": True})
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream")
        pieces = events(data)
        assert [token for piece in pieces for token in piece["choices"][0]["token_ids"]] == expected
        assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole["choices"][0]["text"]
        assert [piece["choices"][0]["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
        assert len(pieces) > 3
        _, stopped, _ = ask(port, {"prompt": "abc", "max_tokens": 200})
        assert stopped["choices"][0]["finish_reason"] == "stop"
        assert stopped["choices"][0]["token_ids"][-1] == STOP
        _, text, _ = ask(port, path="/metrics")
        counted = {match[1]: float(match[2]) for match in re.finditer(r"^(abkt\S+) ([0-9.e+-]+)$", text, re.M)}
        made = len(stopped["choices"][0]["token_ids"])
        assert counted['abkt_requests_total{outcome="completed"}'] == 3
        assert counted['abkt_tokens_total{kind="output"}'] == 24 + made
        assert counted['abkt_tokens_total{kind="prompt"}'] == 11
        assert counted["abkt_ttft_seconds_count"] == 3
        assert (counted["abkt_requests_open"], counted['abkt_workers{role="prefill"}'], counted['abkt_kv_used_ratio{worker="d0"}']) == (
            0,
            1,
            0,
        )
        assert ask(port, path="/v1/models")[1]["data"][0]["id"] == "tiny"


def test_health_reports_whether_workers_of_both_roles_are_ready() -> None:
    with server() as (port, workers):
        assert ask(port, path="/health")[:2] == (200, {"status": "ok", "prefill": ["p0"], "decode": ["d0"], "open": 0})
        workers.fakes["d0"].dead = True
        workers.events.put(("d0", None))
        wait_for(lambda: ask(port, path="/health")[0] == 503)
        status, error, _ = ask(port, {"prompt": "abc"})
        assert (status, error["error"]["message"]) == (503, "worker d0 ended")


def test_without_the_key_only_health_is_answered() -> None:
    with server(key=KEY) as (port, _):
        for path, body in (("/v1/completions", {"prompt": "abc"}), ("/metrics", None), ("/v1/models", None)):
            for wrong in ("", "another", KEY[:-1]):
                status, error, _ = ask(port, body, path, wrong)
                assert (status, error["error"]["type"]) == (401, "invalid_request_error")
            assert ask(port, body, path, KEY)[0] == 200
        assert ask(port, path="/health")[0] == 200


def test_a_request_gets_429_when_too_many_wait_and_400_when_it_can_never_fit() -> None:
    with server(working=False, most_waiting=1) as (port, _), ExitStack() as clients:
        big = {"prompt": [1] * 250, "max_tokens": 40}
        for i in range(3):  # two requests have memory, the third waits
            client = clients.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port)))
            client.request("POST", "/v1/completions", json.dumps(big).encode())
            wait_for(lambda open_=i + 1: ask(port, path="/health")[1]["open"] == open_)
        status, error, headers = ask(port, big)
        assert (status, int(headers["retry-after"])) == (429, 1)
        assert "1 requests wait for KV memory already; retry in 1 s" in error["error"]["message"]
    with server() as (port, _):
        status, error, _ = ask(port, {"prompt": [1] * 290, "max_tokens": 40})
        assert (status, error["error"]["message"]) == (400, "290 prompt and 40 output tokens are more than a request can have: 300 at most")


def test_a_client_that_disconnects_frees_its_memory() -> None:
    with server(working=False) as (port, _):
        for stream in (True, False):
            with closing(http.client.HTTPConnection("127.0.0.1", port)) as client:
                client.request("POST", "/v1/completions", json.dumps({"prompt": "abc", "max_tokens": 200, "stream": stream}).encode())
                wait_for(lambda: ask(port, path="/health")[1]["open"] == 1)
            wait_for(lambda: ask(port, path="/health")[1]["open"] == 0)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "the request body is not valid JSON"),
        (b"[" * 100_000, "the request body is not valid JSON"),
        ([], "the request body must be a JSON object"),
        ({}, "prompt must be a non-empty text or a non-empty list of token ids"),
        ({"prompt": ""}, "prompt must be a non-empty text or a non-empty list of token ids"),
        ({"prompt": [11]}, "prompt must be one text or one list of token ids from 0 to 10"),
        ({"prompt": ["a", "b"]}, "prompt must be one text or one list of token ids from 0 to 10"),
        ({"prompt": "a", "model": "gpt"}, "model 'gpt' is not served here; the model is tiny"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens is 0; it must be an integer of at least 1"),
        ({"prompt": "a", "temperature": -1}, "temperature is -1; it must be 0 (greedy), or 0.01 to 100"),
        ({"prompt": "a", "top_p": "x"}, "top_p is 'x'; it must be a number"),
        ({"prompt": "a", "n": 2}, "n is 2; only 1 is supported"),
        ({"prompt": "a", "stop": "x"}, "stop is 'x'; only None is supported"),
        ({"prompt": "a", "stream": 1}, "stream is 1; it must be true or false"),
        ({"prompt": "a", "wishes": 1}, f"unknown field 'wishes'; known are {', '.join(sorted(KNOWN))}"),
    ],
)
def test_a_bad_request_is_refused_in_one_line(body: object, said: str) -> None:
    with one_server() as port:
        status, error, _ = ask(port, body)
    assert (status, error["error"]["message"]) == (400, said)


def test_a_body_above_the_limit_is_not_read() -> None:
    with one_server() as port:
        status, error, _ = ask(port, b" " * (BODY_CAP_BYTES + 1))
    assert (status, error["error"]["message"]) == (413, f"the request body is larger than {BODY_CAP_BYTES} bytes")


@contextmanager
def one_server() -> Iterator[int]:
    with server(working=False) as (port, _):
        yield port


def test_request_fields_become_a_sampling_with_openais_defaults() -> None:
    given = prompt_of({"prompt": [1, 2], "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 7, "ignore_eos": True}, "tiny", TEXT)
    assert (given.tokens, given.osl, given.stop, given.sampling) == ((1, 2), 16, -1, Sampling(0.5, 4, 0.9, 7))
    default = prompt_of({"prompt": [1, 2]}, "tiny", TEXT)
    assert (default.sampling.temperature, default.sampling.top_p, default.stop) == (1.0, 1.0, STOP)
    assert default.sampling.seed != prompt_of({"prompt": [1, 2]}, "tiny", TEXT).sampling.seed
