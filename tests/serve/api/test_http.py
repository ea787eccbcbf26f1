"""The HTTP endpoint over a service of made-up workers: answers, refusals and metrics. The server is real, the model is not."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import select
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from abkt.serve.api import HttpServer, guard
from abkt.serve.api import server as api_server
from abkt.serve.api.asked import Asked, chat, completion
from abkt.serve.api.fields import COMPLETION
from abkt.serve.api.guard import BODY_CAP_BYTES, is_loopback, parsed
from abkt.serve.api.listening import listen
from abkt.serve.api.text import Text
from abkt.serve.engine.generation import Sampling
from tests.serve.api.served import TEXT, Letters, ask, events, server, wait_for
from tests.serve.test_frontend import STOP, answer

HUGE = f"1{'0' * 56}..."  # of 10**400
KEY = "a-key-of-thirty-two-letters-0123"


def test_whole_and_streamed_answers_are_the_models_and_are_counted() -> None:
    asked = {"model": "tiny", "prompt": "abca", "max_tokens": 12, "ignore_eos": True, "temperature": 0}
    expected = answer(completion(asked, "tiny", TEXT).prompts[0])
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
        ({"prompt": ["a", 1]}, "prompt must be one text or one list of token ids from 0 to 10"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens is 0; it must be an integer from 1 to 16777216"),
        ({"prompt": "a", "temperature": -1}, "temperature is -1.0; it must be 0 (greedy), or 0.01 to 100"),
        ({"prompt": "a", "top_p": "x"}, "top_p is 'x'; it must be a number"),
        ({"prompt": "a", "n": 17}, "n is 17; it must be an integer from 1 to 16"),
        ({"prompt": "a", "stop": [""]}, "stop is ['']; it must be a text, or a list of at most 16 texts, of 1 to 256 letters"),
        ({"prompt": "a", "presence_penalty": 0.5}, "presence_penalty is 0.5; only 0 is supported"),
        ({"prompt": "a", "prompt_logprobs": 1}, "prompt_logprobs is 1; it is not supported"),
        ({"prompt": "a", "best_of": 2}, "best_of is 2; only the value of n, 1, is supported"),
        (
            {"prompt": "a", "max_tokens": 10**400},
            f"max_tokens is {HUGE}; it must be an integer from 1 to 16777216",
        ),
        (
            {"prompt": "a", "temperature": 10**400},
            f"temperature is {HUGE}; it must be a number",
        ),
        (
            {"prompt": "a", "seed": 1 << 64},
            f"seed is {1 << 64}; it must be an integer from {-(1 << 63)} to {(1 << 63) - 1}",
        ),
        ({"prompt": "a", "n": True}, "n is True; it must be an integer from 1 to 16"),
        ({"prompt": "a", "stream_options": {}, "stream": False, "logprobs": 21}, "logprobs is 21; it must be an integer from -1 to 20"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options needs stream: true"),
        (b'{"prompt": "a", "temperature": NaN}', "the request body is not valid JSON"),
        (
            b'{"prompt":"a\\ud800b","max_tokens":4}',
            "the request body has half of a surrogate pair, which is no character; send valid Unicode",
        ),
        ({"prompt": "a", "stream": 1}, "stream is 1; it must be true or false"),
        ({"prompt": "a", "wishes": 1}, f"unknown field 'wishes'; known are {', '.join(sorted(COMPLETION))}"),
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


def only(body: dict[str, Any], text: Text = TEXT) -> Any:
    """The prompt that a completion body with one choice asks for."""
    (prompt,) = completion(body, "tiny", text).prompts
    return prompt


def test_request_fields_become_a_sampling_with_openais_defaults() -> None:
    given = only({"prompt": [1, 2], "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 7, "ignore_eos": True})
    assert (given.tokens, given.osl, given.stop, given.sampling) == ((1, 2), 16, (), Sampling(0.5, 4, 0.9, 7))
    default = only({"prompt": [1, 2]})
    assert (default.sampling.temperature, default.sampling.top_p, default.stop) == (1.0, 1.0, (STOP,))
    assert default.sampling.seed != only({"prompt": [1, 2]}).sampling.seed
    assert only({"prompt": [1], "seed": -1}).sampling.seed == (1 << 31) - 1
    assert only({"prompt": [1], "stop_token_ids": [5]}).stop == (STOP, 5)
    assert only({"prompt": [1], "max_tokens": 9, "max_completion_tokens": 5}).osl == 5


NEUTRAL = {
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "best_of": 1,
    "n": 1,
    "echo": False,
    "suffix": "",
    "logit_bias": {},
    "min_p": 0,
    "min_tokens": 0,
    "top_k": -1,
    "use_beam_search": False,
    "skip_special_tokens": True,
    "tools": [],
    "response_format": {"type": "text"},
    "tool_choice": "none",
    "user": "me",
    "metadata": {"a": "b"},
    "service_tier": "auto",
}


def test_neutral_values_and_nulls_mean_the_defaults() -> None:
    plain = only({"prompt": [1], "seed": 3})
    assert only({"prompt": [1], "seed": 3, **NEUTRAL}) == plain
    assert only({"prompt": [1], "seed": 3, **dict.fromkeys([*NEUTRAL, *COMPLETION - {"prompt", "seed"}])}) == plain


def test_choices_have_seeds_of_their_own() -> None:
    asked = completion({"prompt": [[1], [2, 2]], "n": 2, "seed": 5}, "tiny", TEXT)
    assert [(prompt.tokens, prompt.sampling.seed) for prompt in asked.prompts] == [((1,), 5), ((1,), 6), ((2, 2), 5), ((2, 2), 6)]
    assert asked.prompt_tokens == 3


def asked_chat(body: dict[str, Any]) -> Asked:
    return chat({"messages": [{"role": "user", "content": "abc"}], **body}, "tiny", TEXT, 300)


def test_a_chat_becomes_a_prompt_through_the_template() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = asked_chat({"messages": [{"role": "system", "content": parts}, {"role": "user", "content": "cd"}]})
    assert asked.prompts[0].tokens == (0, 1, 10, 2, 3)
    assert asked.prompts[0].osl == 295  # what is left of 300 tokens
    assert asked_chat({"max_completion_tokens": 7}).prompts[0].osl == 7
    assert asked_chat({"logprobs": True, "top_logprobs": 3}).prompts[0].sampling.logprobs == 3
    assert asked_chat({"logprobs": True}).prompts[0].sampling.logprobs == 0
    assert asked_chat({"logprobs": False}).prompts[0].sampling.logprobs == -1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": []}, "messages must be a non-empty list of objects with role and content"),
        ({"messages": [{"role": "user"}]}, "messages[0]: content is None; it must be a text, or a list of text parts"),
        ({"messages": [{"role": "user", "content": "a", "x": 1}]}, "messages[0] has 'x'; only role, content and name are supported"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0]: a part of content must be an object with type text and a text",
        ),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs: true"),
        ({"logprobs": 2}, "logprobs is 2; it must be true or false"),
        ({"prompt": "a"}, "unknown field 'prompt'"),
        ({"tools": [{"type": "function"}]}, "tools is [{'type': 'function'}]; only [] is supported"),
    ],
)
def test_a_bad_chat_is_refused_in_one_line(body: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        asked_chat(body)


def test_a_model_without_a_template_takes_no_chat() -> None:
    with pytest.raises(ValueError, match="the model has no chat template; use /v1/completions"):
        chat({"messages": [{"role": "user", "content": "a"}]}, "tiny", Text(11))


def test_chats_whole_and_streamed_are_the_models_answer() -> None:
    asked = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 9, "ignore_eos": True, "temperature": 0}
    expected = Letters().decode(answer(only({"prompt": "abc", "max_tokens": 9, "ignore_eos": True})), True)
    with server() as (port, _):
        status, whole, _ = ask(port, asked, "/v1/chat/completions")
        assert (status, whole["object"], whole["choices"][0]["message"]["role"]) == (200, "chat.completion", "assistant")
        assert whole["choices"][0]["message"]["content"] == expected
        assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
        _, data, _ = ask(port, {**asked, "stream": True, "stream_options": {"include_usage": True}}, "/v1/chat/completions")
        *pieces, usage = events(data)
        assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == expected
        assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}
        assert {piece["usage"] for piece in pieces} == {None}
        assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
        _, data, _ = ask(port, {**asked, "stream": True}, "/v1/chat/completions")
        assert not any("usage" in piece for piece in events(data))
        in_each = {"include_usage": True, "continuous_usage_stats": True}
        _, data, _ = ask(port, {**asked, "stream": True, "stream_options": in_each}, "/v1/chat/completions")
        assert [piece["usage"]["completion_tokens"] for piece in events(data)][-1] == 9


def test_a_stop_string_ends_the_answer_and_frees_its_memory() -> None:
    """The answer to abc begins fixed letters; a stop string that spans two tokens is found in both forms."""
    asked = {"prompt": "abc", "max_tokens": 150, "ignore_eos": True, "temperature": 0}
    text = Letters().decode(answer(only(asked)), True)
    stop = text[20:22]
    expected = text[: text.index(stop)]
    with server() as (port, _):
        for more in ({"stop": stop}, {"stop": ["never", stop]}):
            status, whole, _ = ask(port, {**asked, **more})
            assert (status, whole["choices"][0]["text"], whole["choices"][0]["finish_reason"]) == (200, expected, "stop")
            assert whole["usage"]["completion_tokens"] == len(expected) + len(stop)
            _, data, _ = ask(port, {**asked, **more, "stream": True})
            pieces = [piece["choices"][0] for piece in events(data)]
            assert ("".join(piece["text"] for piece in pieces), pieces[-1]["finish_reason"]) == (expected, "stop")
        wait_for(lambda: ask(port, path="/health")[1]["open"] == 0)
        _, text_, _ = ask(port, path="/metrics")
        assert 'abkt_requests_total{outcome="completed"} 4.0' in text_
        assert 'abkt_requests_total{outcome="failed"} 0.0' in text_


def test_several_choices_and_prompts_are_answered_in_order() -> None:
    asked = {"prompt": ["abc", "d"], "n": 2, "max_tokens": 5, "ignore_eos": True, "temperature": 0}
    expected = [Letters().decode(answer(only({**asked, "prompt": prompt, "n": 1})), True) for prompt in ("abc", "abc", "d", "d")]
    with server() as (port, _):
        _, whole, _ = ask(port, asked)
        assert [(choice["index"], choice["text"]) for choice in whole["choices"]] == list(enumerate(expected))
        assert whole["usage"] == {"prompt_tokens": 4, "completion_tokens": 20, "total_tokens": 24}
        _, data, _ = ask(port, {**asked, "stream": True})
        pieces = [piece["choices"][0] for piece in events(data)]
        assert ["".join(piece["text"] for piece in pieces if piece["index"] == i) for i in range(4)] == expected
        assert sorted(piece["index"] for piece in pieces if piece["finish_reason"]) == [0, 1, 2, 3]


def test_an_unknown_model_or_path_is_404_in_json() -> None:
    with server() as (port, _):
        status, error, _ = ask(port, {"prompt": "a", "model": "gpt"})
        assert (status, error["error"]["message"]) == (404, "model 'gpt' is not served here; the model is tiny")
        assert error["error"]["code"] == "model_not_found"
        assert ask(port, path="/v1/models/tiny")[1]["id"] == "tiny"
        assert ask(port, path="/v1/models/gpt")[0] == 404
        assert ask(port, path="/v1/nothing")[1]["error"]["message"] == "GET /v1/nothing: Not Found"
        assert ask(port, path="/v1/completions")[0] == 405


# Strangers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:3000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
    ],
)
def test_without_a_key_only_names_of_this_host_are_served(headers: dict[str, str], status: int) -> None:
    with server() as (port, _):
        assert ask(port, {"prompt": "abc"}, headers=headers)[0] == status
        assert ask(port, path="/health", headers=headers)[0] == status


def test_with_a_key_the_host_may_have_any_name() -> None:
    with server(key=KEY) as (port, _):
        assert ask(port, {"prompt": "abc"}, key=KEY, headers={"Host": "models.example"})[0] == 200


@pytest.mark.parametrize(("address", "expected"), [("//127.0.0.2:1", True), ("//localhost.evil.example", False), ("//[::1", False)])
def test_names_of_this_host(address: str, expected: bool) -> None:
    assert is_loopback(address) == expected


def test_a_body_that_does_not_come_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.3)
    with server(working=False) as (port, _), closing(socket.create_connection(("127.0.0.1", port), timeout=60)) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        said = b""
        while data := client.recv(4096):  # the server ends the connection
            said += data
    assert said.startswith(b"HTTP/1.1 408")
    assert b"did not come within 0.3 s" in said


def test_idle_connections_keep_no_client_out() -> None:
    """Ten times as many connections as are allowed: the oldest idle ones are closed, and those with a request stay."""
    with server(working=False, connections=20) as (port, workers), ExitStack() as opened:
        busy = opened.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)))
        busy.request("POST", "/v1/completions", json.dumps({"prompt": "abc", "max_tokens": 3, "ignore_eos": True}).encode())
        wait_for(lambda: ask(port, path="/health")[1]["open"] == 1)
        idle = [opened.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=60))) for _ in range(200)]
        for half in idle[::2]:
            half.sendall(b"POST /v1/comp")
        for _ in range(5):
            assert ask(port, path="/health")[0] == 200
        assert idle[1].recv(1) == b""  # it was closed
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.001):
                for worker in list(workers.fakes.values()):
                    worker.work(workers.fakes, fails=False)

        thread = threading.Thread(target=work)
        thread.start()
        assert busy.getresponse().status == 200
        stop.set()
        thread.join()


def test_where_all_connections_have_a_request_the_next_gets_503() -> None:
    with server(working=False, connections=3) as (port, workers), ExitStack() as opened:
        for i in range(3):
            busy = opened.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)))
            busy.request("POST", "/v1/completions", b'{"prompt": "abc"}')
            wait_for(lambda begun=i + 1: len(workers.fakes["p0"].jobs) == begun)
        assert ask(port, path="/health")[0] == 503


def test_connections_without_a_request_are_closed_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_server, "IDLE_S", 0.2)
    monkeypatch.setattr(api_server, "SWEEP_S", 0.1)
    with server() as (port, _), closing(socket.create_connection(("127.0.0.1", port), timeout=60)) as idle:
        idle.sendall(b"GET /hea")
        with suppress(ConnectionResetError):
            assert idle.recv(1) == b""


def test_a_client_that_stops_reading_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_server, "UNREAD_S", 0.3)
    monkeypatch.setattr(api_server, "SWEEP_S", 0.1)
    ended = threading.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65_536
                await asyncio.sleep(0)
        finally:
            ended.set()

    app = Starlette(routes=[Route("/", lambda request: StreamingResponse(endless()))])
    with listen("127.0.0.1", 0) as listening, closing(socket.create_connection(listening.getsockname(), timeout=60)) as client:
        made = HttpServer(app)
        thread = threading.Thread(target=made.run, args=([listening],))
        thread.start()
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert ended.wait(60)
        made.should_exit = made.force_exit = True
        thread.join()


def test_the_limit_of_waiting_requests_is_exact_in_a_burst() -> None:
    """Two requests have memory, two may wait, so 36 of 40 at the same time are refused."""
    with server(working=False, most_waiting=2) as (port, _), ExitStack() as clients:
        body = json.dumps({"prompt": [1] * 250, "max_tokens": 40}).encode()
        made = [clients.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60))) for _ in range(40)]
        for client in made:
            client.connect()
        for client in made:
            client.request("POST", "/v1/completions", body)
        wait_for(lambda: ask(port, path="/health")[1]["open"] == 4)
        answered: list[socket.socket] = []

        def readable() -> bool:
            answered[:] = select.select([client.sock for client in made], [], [], 0.05)[0]
            return len(answered) >= 36

        wait_for(readable)
        statuses = [client.getresponse().status for client in made if client.sock in answered]
    assert statuses == [429] * 36


def test_a_slow_tokenizer_does_not_stop_the_event_loop() -> None:
    class Slow(Letters):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            if len(text) > 5:
                gate.wait(60)
            return super().encode(text)

    gate = threading.Event()
    with server(text=Text(11, (STOP,), Slow())) as (port, _), closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as client:
        client.request("POST", "/v1/completions", json.dumps({"prompt": "a" * 50, "max_tokens": 2}).encode())
        assert ask(port, path="/health")[0] == 200
        gate.set()
        assert client.getresponse().status == 200


def test_a_parsed_body_has_no_lone_surrogate() -> None:
    assert parsed(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}
