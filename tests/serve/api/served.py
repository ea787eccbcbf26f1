"""A real HTTP server over a service of made-up workers, and a client. The server is real, the model is not."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from abkt.serve.api import Endpoint, HttpServer, Text
from abkt.serve.api.listening import listen
from abkt.serve.metrics import Metrics
from abkt.serve.service import Service
from tests.serve.test_frontend import STOP, FakeWorkers, frontend, started


class Letters:
    """A tokenizer of eleven letters."""

    chat_template = "a template"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return ["abcdefghijk".index(letter) for letter in text]

    def decode(self, tokens: list[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool = False) -> str:
        return "".join("abcdefghijk"[token] for token in tokens)

    def apply_chat_template(self, messages: list[dict[str, Any]], tokenize: bool, add_generation_prompt: bool) -> str:
        return "k".join(message["content"] for message in messages)


TEXT = Text(vocabulary=11, stop=(STOP,), tokenizer=Letters())


@contextmanager
def server(
    key: str = "", working: bool = True, most_waiting: int = 256, text: Text = TEXT, connections: int | None = None
) -> Iterator[tuple[int, FakeWorkers]]:
    """Yields the port of a server. working: whether the made-up workers do any work."""
    workers, metrics, stop = started(1, 1), Metrics(), threading.Event()

    def make(done: Any) -> Any:
        front = frontend(workers, [])
        front._done = done
        return front

    with Service(make, most_waiting, metrics.done) as service, listen("127.0.0.1", 0) as listening:

        def work() -> None:
            while not stop.wait(0.001):
                for worker in list(workers.fakes.values()):
                    if working and not worker.dead:
                        worker.work(workers.fakes, fails=False)

        endpoint = Endpoint(service, metrics, "tiny", text, key, most_tokens=300)
        made = HttpServer(endpoint.app(), connections)
        port = listening.getsockname()[1]
        threads = [threading.Thread(target=work), threading.Thread(target=made.run, args=([listening],))]
        for thread in threads:
            thread.start()
        wait_for(lambda: made.started)
        try:
            yield port, workers
        finally:
            made.should_exit = made.force_exit = True
            threads[1].join()
            stop.set()
            threads[0].join()
            endpoint.close()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for a limited time, so that a hang is a failure."""
    until_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until_s, "it never came"
        time.sleep(0.01)


def ask(
    port: int, body: object = None, path: str = "/v1/completions", key: str = "", headers: dict[str, str] | None = None
) -> tuple[int, Any, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    raw = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    with closing(connection):
        sent = {"Authorization": f"Bearer {key}"} if key else {}
        connection.request("GET" if raw is None else "POST", path, raw, sent | (headers or {}))
        response = connection.getresponse()
        data = response.read()
    plain = response.headers["content-type"] == "application/json"
    return response.status, json.loads(data) if plain else data.decode(), response.headers


def events(data: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in data.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
