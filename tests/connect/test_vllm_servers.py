"""Two real vLLM servers on a tiny Llama, with the proxy: `make test-vllm` runs this. No time is asserted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from experiments.vllm import server, tiny
from experiments.vllm.demo import RunningProxy, agreeing, total
from experiments.vllm.metrics import external_tokens
from experiments.vllm.pair import Answer, Pair, answer_of, body

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(server.why_not()), reason="vLLM is not installed here; `make test-vllm` runs this"),
]
ARGUMENTS = ("--max-model-len", "2048", "--max-num-seqs", "24", "--no-enable-prefix-caching")
TOKENS = 24
LAYERS, KV_HEADS, HEAD_DIM = 2, 2, 32


def prompt_of(index: int, tokens: int = 300) -> list[int]:
    return [3 + (index * 31 + 7 * k * k + k) % 250 for k in range(tokens)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("models") / "tiny-llama", LAYERS, 4, KV_HEADS, HEAD_DIM)


class Served:
    """A pair and what it has counted since the last look."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.seen = pair.metrics()

    def since(self, name: str, least: float = 0.0) -> float:
        """How much a counter of the decode server has grown; waits until it has grown by `least`."""
        until_s = time.monotonic() + 60.0
        while (grown := total(found := self.pair.metrics(), name) - total(self.seen, name)) < least and time.monotonic() < until_s:
            time.sleep(0.2)
        self.now = found
        return grown

    def external(self) -> float:
        return external_tokens(self.pair.metrics()) - external_tokens(self.seen)


@pytest.fixture(scope="module")
def raw(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    settings = {"bitrate": "raw", "lease_s": 20.0, "timeout_s": 10.0}
    with Pair(model, tmp_path_factory.mktemp("raw"), settings, ARGUMENTS) as pair:
        yield pair


@pytest.fixture
def served(raw: Pair) -> Served:
    return Served(raw)


def same(a: Answer, b: Answer) -> bool:
    return a.tokens == b.tokens and len(a.tokens) == TOKENS


@pytest.mark.parametrize("tokens", [5, 32, 33, 300, 1500])
def test_raw_gives_the_tokens_of_one_server_alone_and_exact_counts(raw: Pair, served: Served, tokens: int) -> None:
    prompt = prompt_of(tokens, tokens)
    alone = raw.ask(prompt, TOKENS, where="prefill")
    assert same(raw.through(prompt, TOKENS), alone)
    assert served.external() == tokens
    assert served.since("vllm:abkt_received_raw_bytes_total", 1.0) == tokens * LAYERS * 2 * KV_HEADS * HEAD_DIM * 4


def test_the_proxy_gives_the_same_tokens_also_streamed(raw: Pair, served: Served) -> None:
    prompt = prompt_of(1)
    alone = raw.ask(prompt, TOKENS, where="prefill")
    with RunningProxy([raw.prefill.url], [raw.decode.url]) as proxy:
        plain = httpx2.post(f"{proxy.url}/v1/completions", json=body(prompt, TOKENS), timeout=120.0)
        assert same(answer_of(plain.json()), alone)
        text = ""
        with httpx2.stream("POST", f"{proxy.url}/v1/completions", json=body(prompt, TOKENS, stream=True), timeout=120.0) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    text += httpx2.Response(200, content=line[6:]).json()["choices"][0]["text"]
        assert text == alone.text
        assert httpx2.get(f"{proxy.url}/v1/models").json()["data"][0]["id"] == "m"
        assert httpx2.post(f"{proxy.url}/v1/completions", content=b"{").status_code == 400
    assert served.external() == 2 * len(prompt)


def test_twenty_requests_at_once(raw: Pair, served: Served) -> None:
    prompts = [prompt_of(index, 60 + 37 * index % 400) for index in range(20)]
    alone = [raw.ask(prompt, TOKENS, where="prefill") for prompt in prompts]
    with RunningProxy([raw.prefill.url], [raw.decode.url]) as proxy, ThreadPoolExecutor(20) as pool:
        ask = lambda prompt: httpx2.post(f"{proxy.url}/v1/completions", json=body(prompt, TOKENS), timeout=300.0)  # noqa: E731
        answers = [answer_of(response.json()) for response in pool.map(ask, prompts)]
    # A batch of another size rounds differently, so a late token may differ where two are nearly as probable.
    assert sum(same(a, b) for a, b in zip(answers, alone)) >= 18
    assert all(agreeing(a.tokens, b.tokens) >= 1 for a, b in zip(answers, alone))
    assert served.external() == sum(map(len, prompts))
    assert served.since("vllm:abkt_failed_loads_total") == 0


def test_params_of_another_request_and_no_params_are_computed_here(raw: Pair, served: Served) -> None:
    prompt = prompt_of(2)
    alone = raw.ask(prompt, TOKENS, where="prefill")
    params = raw.prefilled(prompt)
    assert params is not None
    assert same(raw.ask(prompt, TOKENS, {**params, "remote_request_id": "cmpl-unknown"}), alone)
    assert same(raw.ask(prompt, TOKENS), alone)
    assert served.external() == 0
    assert raw.decode.lines("came without kv_transfer_params")
    assert raw.decode.lines("is not here; it was fetched, or its lease has expired")


def test_a_refused_connection_is_computed_here(raw: Pair, served: Served) -> None:
    prompt = prompt_of(4)
    alone = raw.ask(prompt, TOKENS, where="prefill")
    params = raw.prefilled(prompt)
    assert params is not None
    assert same(raw.ask(prompt, TOKENS, {**params, "abkt_addresses": ["127.0.0.1:9"]}), alone)
    assert served.since("vllm:abkt_failed_loads_total", 1.0) == 1
    assert served.external() == 0


def test_clients_that_leave_free_everything(raw: Pair, served: Served) -> None:
    """Some leave while the prompt is computed, some while KV comes, some while the answer is decoded; both servers are idle afterwards."""
    with RunningProxy([raw.prefill.url], [raw.decode.url]) as proxy:
        for index in range(8):
            with pytest.raises(httpx2.TimeoutException):
                httpx2.post(f"{proxy.url}/v1/completions", json=body(prompt_of(index, 1500), 500), timeout=0.05 + 0.15 * index)
        prompt = prompt_of(5)
        after = answer_of(httpx2.post(f"{proxy.url}/v1/completions", json=body(prompt, TOKENS), timeout=120.0).json())
        assert same(after, raw.ask(prompt, TOKENS, where="prefill"))
    for where in ("prefill", "decode"):
        until_s = time.monotonic() + 60.0
        while (found := raw.metrics(where))["vllm:kv_cache_usage_perc"] > 0 and time.monotonic() < until_s:
            time.sleep(0.5)
        assert found["vllm:kv_cache_usage_perc"] == 0, f"{where} has leaked blocks"
        assert found["vllm:num_requests_running"] == 0


@pytest.mark.parametrize(("bitrate", "bits", "most"), [("int8", 8, 2e-4), ("int4", 4, 0.03)])
def test_coded_kv_has_the_bytes_and_the_distortion_that_were_promised(
    model: Path, tmp_path: Path, bitrate: str, bits: int, most: float, record_property: Any
) -> None:
    prompts, agreed = [prompt_of(index, 1000) for index in range(4)], []
    with Pair(model, tmp_path, {"bitrate": bitrate}, ARGUMENTS) as pair:
        served = Served(pair)
        for prompt in prompts:
            alone = pair.ask(prompt, TOKENS, where="prefill")
            agreed.append(agreeing(pair.through(prompt, TOKENS).tokens, alone.tokens))
        assert served.external() == sum(map(len, prompts))
        assert served.since("vllm:abkt_exposed_s_count", 4) == 4
        raw_bytes = served.since("vllm:abkt_received_raw_bytes_total")
        ratio = served.since("vllm:abkt_received_bytes_total") / raw_bytes
        mean = served.since("vllm:abkt_received_distortion_sum") / 4
    # Nearly all tokens have `bits` bits; steps and offsets, 6 bytes for each channel of K in a tile and for each token of V, come on top.
    assert bits / 32 < ratio < bits / 32 * 1.15 + 0.06
    assert 0 < mean <= most
    record_property("agreement", sum(agreed) / (4 * TOKENS))
    assert sum(agreed) > 0


def test_a_prefill_server_that_is_killed_fails_or_recomputes_by_policy(model: Path, tmp_path: Path) -> None:
    settings = {"bitrate": "int8", "timeout_s": 10.0}
    with Pair(model, tmp_path, settings, ARGUMENTS, policy="fail") as pair:
        prompt = prompt_of(6)
        params = pair.prefilled(prompt)
        assert pair.ask(prompt, TOKENS, params).finish == "length"
        lost = pair.prefilled(prompt)
        pair.prefill.kill()
        response = pair.client.post(f"{pair.decode.url}/v1/completions", json=body(prompt, TOKENS, kv_transfer_params=lost))
        assert response.status_code == 500 or answer_of(response.json()).finish == "error"
        assert pair.decode.lines("its KV could not be loaded")
        with RunningProxy([pair.prefill.url], [pair.decode.url]) as proxy:  # the proxy goes on without it
            alone = answer_of(httpx2.post(f"{proxy.url}/v1/completions", json=body(prompt, TOKENS), timeout=120.0).json())
        assert len(alone.tokens) == TOKENS
        assert pair.decode.process is not None
        assert pair.decode.process.poll() is None


def test_the_prefix_cache_is_not_fed_with_lossy_kv(model: Path, tmp_path: Path) -> None:
    """With prefix caching, a second request of the same prompt finds exact blocks only."""
    arguments = [each for each in ARGUMENTS if each != "--no-enable-prefix-caching"]
    with Pair(model, tmp_path, {"bitrate": "int2"}, arguments) as pair:
        served, prompt = Served(pair), prompt_of(7, 320)
        alone = pair.ask(prompt, TOKENS, where="prefill")
        pair.through(prompt, TOKENS)
        assert same(pair.ask(prompt, TOKENS), alone), "the decode server reused lossy KV"
        assert served.external() == len(prompt)
        assert same(pair.ask(prompt, TOKENS), alone)
        reused = pair.through(prompt, TOKENS)  # now exact blocks are there, and only the rest is fetched
        assert served.external() < 2 * len(prompt)
        assert len(reused.tokens) == TOKENS


def test_a_wrong_setting_is_one_line_and_no_server(model: Path, tmp_path: Path) -> None:
    one = server.VllmServer("wrong", model, tmp_path / "log", server.connector(bitrate="int5"), ARGUMENTS)
    one.start()
    with pytest.raises(RuntimeError, match="vLLM server wrong did not start"):
        one.wait()
    one.stop()
    assert one.lines("ValueError: bitrate is 'int5'; it must be one of embedded")
