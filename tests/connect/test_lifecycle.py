"""The connector in two small engines: from prefill to decode, with every end that a request can have, each reported once."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.connect.conftest import Make
from tests.connect.engine import BLOCK, Engine, FullAttentionSpec, Request, Status, kv_of
from tests.connect.flapping import Flapping
from tests.connect.stub import connector_class

PROMPT = [(7 * i * i + 3 * i) % 97 for i in range(150)]
REMOTE = {"do_remote_decode": True, "do_remote_prefill": False}


def prefilled(engine: Engine, prompt: list[int], name: str = "p0", until_free: bool = True) -> dict[str, Any]:
    """The params of a prompt, and what it leaves at the prefill side."""
    request = engine.add(Request(name, prompt, 1, dict(REMOTE)))
    engine.steps(lambda: request.params is not None)
    if until_free:
        engine.steps(lambda: not engine.requests)
    assert request.params is not None
    return request.params


def loaded(
    engine: Engine, prompt: list[int], params: dict[str, Any] | None, name: str = "d0", tokens: int = 10**6, local: int = 0
) -> Request:
    """A decode request that runs."""
    request = engine.add(Request(name, prompt, tokens, params), local)
    engine.steps(lambda: request.status is Status.RUNNING or request.status.finished)
    return request


def error_of(request: Request, engine: Engine) -> float:
    """Relative squared error of the KV that a request reads."""
    truth = kv_of(request.prompt_token_ids)
    return float(((engine.kv(request) - truth) ** 2).sum() / ((truth - truth.mean(2, keepdim=True)) ** 2).sum())


@pytest.mark.parametrize("bitrate", ["raw", "lossless"])
@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 150])
def test_kv_arrives_bit_by_bit(make: Make, bitrate: str, tokens: int) -> None:
    p, d = make("kv_producer", bitrate=bitrate), make("kv_consumer", bitrate=bitrate)
    request = loaded(d, PROMPT[:tokens], prefilled(p, PROMPT[:tokens]))
    assert torch.equal(d.kv(request), kv_of(PROMPT[:tokens]))
    assert (request.external, request.recomputed) == (tokens, 1)
    assert request.block_hashes == Request("x", PROMPT[:tokens]).block_hashes, "exact KV may be shared"
    d.abort("d0")
    for engine in (p, d):
        engine.steps(lambda engine=engine: not engine.requests)
        engine.check()
    assert p.reports == [("sent", "p0")]
    assert d.reports == [("received", "d0")]


@pytest.mark.parametrize(("bitrate", "most"), [("int8", 2e-4), ("int4", 0.02), ("int2", 0.4), ("embedded", 0.02)])
@pytest.mark.parametrize("coder", ["fixed", "entropy"])
def test_coded_kv_arrives_within_its_distortion(make: Make, bitrate: str, most: float, coder: str) -> None:
    p, d = make(bitrate=bitrate, coder=coder, refine=False), make(bitrate=bitrate, coder=coder, refine=False)
    request = loaded(d, PROMPT, prefilled(p, PROMPT))
    stats = d.worker.get_kv_connector_stats().data
    assert request.recomputed == 1
    assert 0 < error_of(request, d) <= most
    assert error_of(request, d) == pytest.approx(stats["received_distortion"][0], rel=0.5, abs=1e-5)
    assert stats["received_bytes"][0] < 0.8 * stats["received_raw_bytes"][0]
    parts = [stats[name] for name in ("offer_s", "arrive_s", "write_s", "report_s")]
    assert all(len(part) == 1 and part[0] >= 0 for part in parts)
    assert sum(part[0] for part in parts[:3]) == pytest.approx(stats["exposed_s"][0])


def test_lossy_blocks_are_never_found_by_others_unless_shared(make: Make) -> None:
    p = make(bitrate="int4")
    private, shared = make(bitrate="int4"), make(bitrate="int4", share_lossy=True)
    honest = Request("x", PROMPT).block_hashes
    request = loaded(private, PROMPT, prefilled(p, PROMPT, "a"), local=2 * BLOCK)
    assert request.block_hashes[:2] == honest[:2]
    assert not set(request.block_hashes[2:]) & set(honest)
    assert len(set(request.block_hashes)) == len(honest)
    assert loaded(shared, PROMPT, prefilled(p, PROMPT, "b")).block_hashes == honest


@pytest.mark.parametrize("bitrate", ["raw", "int8"])
def test_only_what_the_prefix_cache_lacks_is_sent(make: Make, bitrate: str) -> None:
    p, d = make(bitrate=bitrate), make(bitrate=bitrate)
    request = loaded(d, PROMPT, prefilled(p, PROMPT), local=3 * BLOCK)
    truth = kv_of(PROMPT)
    assert request.external == len(PROMPT) - 3 * BLOCK
    assert torch.equal(d.kv(request)[:, :, : 3 * BLOCK], truth[:, :, : 3 * BLOCK]), "blocks of the prefix cache were written"
    assert torch.allclose(d.kv(request), truth, atol=0.0 if bitrate == "raw" else 0.1)
    raw = d.worker.get_kv_connector_stats().data["received_raw_bytes"][0]
    assert raw == (len(PROMPT) - 3 * BLOCK) * 2 * 2 * 2 * 32 * 4


@pytest.mark.parametrize("server", ["raw", "int4", "embedded"])
def test_a_request_may_ask_for_its_own_bitrate(make: Make, server: str) -> None:
    p, d, ratios = make(bitrate=server), make(bitrate=server), {}
    for bitrate in ("raw", "int2", "int8"):
        request = loaded(d, PROMPT, {**prefilled(p, PROMPT, bitrate), "abkt_bitrate": bitrate}, bitrate)
        assert request.recomputed == 1
        assert (request.block_hashes == Request("x", PROMPT).block_hashes) == (bitrate == "raw")
        stats = d.worker.get_kv_connector_stats().data
        ratios[bitrate] = stats["received_bytes"][0] / stats["received_raw_bytes"][0]
        assert error_of(request, d) <= {"raw": 0.0, "int8": 2e-4, "int2": 0.4}[bitrate]
    assert ratios["int2"] < ratios["int8"] < 0.8 < ratios["raw"]


def test_a_prompt_may_go_on_after_the_prefilled_one(make: Make) -> None:
    p, d = make(bitrate="raw"), make(bitrate="raw")
    request = loaded(d, PROMPT, {**prefilled(p, PROMPT[:70]), "abkt_prefix": True})
    assert (request.external, request.recomputed) == (70, 80)
    assert torch.equal(d.kv(request), kv_of(PROMPT))


def test_a_full_local_hit_loads_nothing_and_frees_the_prefill_side(make: Make) -> None:
    p, d = make(bitrate="raw"), make(bitrate="raw")
    prompt = PROMPT[: 2 * BLOCK]
    request = loaded(d, prompt, prefilled(p, prompt), local=2 * BLOCK)
    assert (request.external, request.recomputed) == (0, 0)
    wait_until(lambda: not p.worker.worker_side._outbox._shelf)


def test_refinement_comes_between_steps_and_ends(make: Make) -> None:
    p, d = make(bitrate="embedded", target_distortion=0.002), make(bitrate="embedded")
    request = loaded(d, PROMPT, prefilled(p, PROMPT))
    first = error_of(request, d)
    refined = 0
    for _ in range(2000):
        d.step()
        stats = d.worker.get_kv_connector_stats()
        refined += stats.data["refined_cuts"] if stats else 0
        if refined and not d.worker.worker_side._inbox._loadings:
            break
        time.sleep(0.01)
    assert refined
    assert error_of(request, d) <= min(first, 6e-4), "the target is 0.002, and refinement goes to a quarter of it"
    assert torch.equal(d.kv(request)[:, :, -1], kv_of(PROMPT)[:, :, -1]), "the last token's KV is the one computed here"
    assert not d.worker.worker_side._inbox._loadings, "the refinement has not ended"
    wait_until(lambda: not p.worker.worker_side._outbox._shelf)


def test_shared_lossy_blocks_are_not_refined(make: Make) -> None:
    p, d = make(bitrate="embedded"), make(bitrate="embedded", share_lossy=True)
    request = loaded(d, PROMPT, prefilled(p, PROMPT))
    before = d.kv(request)
    for _ in range(30):
        d.step()
        time.sleep(0.01)
    assert torch.equal(d.kv(request), before)


def test_prefill_frees_its_blocks_before_anybody_asks(make: Make) -> None:
    p = make(bitrate="int4")
    prefilled(p, PROMPT)
    p.check()
    assert p.reports == [("sent", "p0")]


def test_kv_that_nobody_fetches_is_dropped_once_and_a_late_decode_server_computes(make: Make, caplog: Any) -> None:
    p, d = make(bitrate="raw", lease_s=0.2), make(bitrate="raw")
    params = prefilled(p, PROMPT)
    wait_until(lambda: not p.worker.worker_side._outbox._shelf)
    assert "nobody fetched its KV within 0.2 s" in caplog.text
    request = loaded(d, PROMPT, params)
    assert request.recomputed == len(PROMPT)
    assert torch.equal(d.kv(request), kv_of(PROMPT))
    assert "its lease has expired" in caplog.text
    assert p.worker.get_kv_connector_stats().data["expired"] == 1


def test_the_memory_for_waiting_kv_is_bounded(make: Make) -> None:
    """Room for one prompt: the second keeps its blocks until the first one's lease ends."""
    size = len(PROMPT) * 2 * 2 * 2 * 32 * 4
    p = make(bitrate="raw", memory_gib=1.2 * size / 2**30, lease_s=0.5)
    prefilled(p, PROMPT, "a")
    prefilled(p, PROMPT, "b", until_free=False)
    assert p.requests, "the second prompt's KV was copied though there is no room"
    p.steps(lambda: not p.requests)
    p.check()


@pytest.mark.parametrize("policy", ["recompute", "fail"])
@pytest.mark.parametrize("failure", ["refused", "expired", "dies", "damaged", "silent"])
def test_a_load_that_fails_is_reported_once_with_its_blocks(make: Make, monkeypatch: Any, policy: str, failure: str) -> None:
    p, d = make(bitrate="int8", lease_s=60.0), make(bitrate="int8", policy=policy, timeout_s=0.5)
    params = prefilled(p, PROMPT)
    if failure == "refused":
        p.close()
    elif failure == "expired":
        params = {**params, "remote_request_id": "another"}
        p.worker.worker_side._outbox._shelf._gone.append("another")
    elif failure == "dies":
        d.worker.worker_side._inbox.accept = lambda offer: (p.worker.worker_side._data.close(), 1 / 0)  # type: ignore[assignment]
    elif failure == "damaged":
        monkeypatch.setattr(
            d.worker.worker_side._codec, "expand", lambda *_: (_ for _ in ()).throw(ValueError("a checksum does not match"))
        )
    elif failure == "silent":
        p.worker.worker_side._outbox._serve = lambda ask: None  # type: ignore[method-assign]
    request = loaded(d, PROMPT, params, tokens=3)
    if policy == "fail":
        assert request.status is Status.FINISHED_ERROR
    else:
        assert request.recomputed == len(PROMPT)
        assert torch.equal(d.kv(request), kv_of(PROMPT))
        assert d.worker.get_kv_connector_stats().data["failed_loads"] == 1
    d.steps(lambda: not d.requests)
    d.check()
    assert d.reports == [("received", "d0")]


@pytest.mark.parametrize("state", ["waiting", "asked", "loaded", "running"])
def test_an_abort_in_every_state_frees_all(make: Make, state: str) -> None:
    p, d = make(bitrate="embedded"), make(bitrate="embedded")
    params = prefilled(p, PROMPT)
    request = d.add(Request("d0", PROMPT, 50, params))
    if state != "waiting":
        d.step()
    if state == "loaded":
        d.steps(lambda: ("received", "d0") in d.reports)
    if state == "running":
        d.steps(lambda: request.status is Status.RUNNING)
    d.abort("d0")
    d.steps(lambda: not d.requests)
    for _ in range(5):  # what still arrives is for nobody
        d.step()
        time.sleep(0.02)
    d.check()
    assert d.reports.count(("received", "d0")) == (state != "waiting")
    wait_until(lambda: not p.worker.worker_side._outbox._shelf)


def test_a_preempted_request_is_not_refined_and_computes_again(make: Make) -> None:
    p, d = make(bitrate="embedded"), make(bitrate="embedded")
    request = loaded(d, PROMPT, prefilled(p, PROMPT))
    d.preempt("d0")
    d.steps(lambda: request.status is Status.RUNNING)
    for _ in range(20):
        d.step()
        time.sleep(0.01)
    assert request.external == 0
    assert torch.equal(d.kv(request), kv_of(PROMPT))


def test_an_aborted_prefill_hands_nothing_off(make: Make) -> None:
    p = make()
    request = p.add(Request("p0", PROMPT, 5, dict(REMOTE)))
    p.step()
    p.abort("p0")
    assert request.params is None
    p.check()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"abkt_addresses": None}, "kv_transfer_params lack abkt_addresses"),
        ({"remote_num_tokens": 7}, "has a prompt of 7 tokens, this server one of 150"),
        ({"abkt_bitrate": "int5"}, "abkt_bitrate must be one of embedded, int8"),
        ({"abkt_fingerprint": "another: 1 layers"}, "the prefill server has another: 1 layers"),
        ({"abkt_addresses": ["127.0.0.1:1", "127.0.0.1:2"]}, "has 2 TP ranks, this server 1"),
    ],
)
def test_params_that_do_not_fit_are_computed_here_and_logged_once(make: Make, caplog: Any, change: dict[str, Any], line: str) -> None:
    p, d = make(bitrate="raw"), make(bitrate="raw")
    for name in ("a", "b"):
        request = loaded(d, PROMPT, {**prefilled(p, PROMPT, name), **change}, name)
        assert (request.external, request.recomputed) == (0, len(PROMPT))
        assert torch.equal(d.kv(request), kv_of(PROMPT))
    assert caplog.text.count(line) == 1


def test_dropped_params_are_logged_once_and_computed_here(make: Make, caplog: Any) -> None:
    d = make("kv_consumer")
    for name in ("a", "b"):
        assert loaded(d, PROMPT, None, name).recomputed == len(PROMPT)
    assert caplog.text.count("came without kv_transfer_params") == 1


def test_another_model_is_refused_at_the_handshake_too(make: Make, caplog: Any) -> None:
    """Params can be made up; the connection's own handshake compares again."""
    p, d = make(bitrate="raw"), make(bitrate="raw", name="other")
    params = prefilled(p, PROMPT) | {"abkt_fingerprint": d.worker.get_handshake_metadata().fingerprint}
    assert loaded(d, PROMPT, params).recomputed == len(PROMPT)
    assert "m: 2 layers" in caplog.text
    assert "other: 2 layers" in caplog.text


def test_keys(make: Make, tmp_path: Path, caplog: Any) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    p, d, stranger = (
        make(bitrate="raw", key_file=str(key), encrypt=True),
        make(bitrate="raw", key_file=str(key), encrypt=True),
        make(bitrate="raw"),
    )
    assert loaded(d, PROMPT, prefilled(p, PROMPT, "a")).recomputed == 1
    assert loaded(stranger, PROMPT, prefilled(p, PROMPT, "b")).recomputed == len(PROMPT)
    with pytest.raises(ValueError, match=r"address '0\.0\.0\.0:0' is not loopback, so it needs a key: give key_file"):
        Engine(host="0.0.0.0")


def test_a_flapping_link_is_resumed(make: Make) -> None:
    """A relay breaks the first connections in the middle of the transfer; it goes on where it was."""
    p, d = make(bitrate="raw"), make(bitrate="raw")
    prompt = [(i * i) % 83 for i in range(1900)]
    params = prefilled(p, prompt)
    with Flapping(d.worker.get_handshake_metadata().address, breaks=2, after_bytes=600_000) as relay:
        d.worker.worker_side._inbox.address = relay.address
        request = loaded(d, prompt, params)
        assert torch.equal(d.kv(request), kv_of(prompt))
    assert request.recomputed == 1
    time.sleep(0.1)
    assert p.worker.get_kv_connector_stats().data["resumes"] >= 1


def test_idle_steps_wait_instead_of_spinning(make: Make) -> None:
    p, d = make(bitrate="raw"), make(bitrate="raw", timeout_s=1.0)
    p.worker.worker_side._outbox._serve = lambda ask: None  # type: ignore[method-assign]
    request, steps = d.add(Request("d0", PROMPT, 2, prefilled(p, PROMPT))), 0
    d.step()
    start_s = time.monotonic()
    while request.status is Status.WAITING_FOR_REMOTE_KVS and not d.promoted:
        d.step()
        steps += 1
    assert steps <= 300 * (time.monotonic() - start_s) + 5


def test_stats_reach_the_log_and_prometheus(make: Make) -> None:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

    p, d = make(bitrate="int8"), make(bitrate="int8")
    loaded(d, PROMPT, prefilled(p, PROMPT))
    kind = type(d.worker)
    stats = d.worker.get_kv_connector_stats()
    assert d.worker.get_kv_connector_stats() is None
    line = kind.build_kv_connector_stats(stats.data).aggregate(kind.build_kv_connector_stats()).reduce()
    assert line["loads"] == 1
    assert 0.2 < line["ratio"] < 0.8
    assert ":1" in line["peers"]
    registry = CollectorRegistry()
    kinds = {each: lambda each=each, **fields: each(registry=registry, **fields) for each in (Counter, Gauge, Histogram)}
    metrics = kind.build_prom_metrics(d.worker._vllm_config, kinds, ["engine"], {0: ["0"]})
    metrics.observe(stats.data)
    page = generate_latest(registry).decode()
    assert "vllm:abkt_exposed_s_count" in page
    assert f'vllm:abkt_received_bytes_total{{engine="0",peer="{p.worker.get_handshake_metadata().address}"}}' in page


@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_interleaving_leaks_or_reports_twice(data: st.DataObject) -> None:
    """Random prompts, aborts, preemptions and steps of both engines in any order; then all blocks are free, and every KV was right."""
    logging.getLogger("vllm").setLevel(logging.ERROR)
    bitrate = data.draw(st.sampled_from(["raw", "embedded", "int4"]))
    p, d = Engine("kv_producer", bitrate=bitrate, lease_s=1.0), Engine("kv_consumer", blocks=24, bitrate=bitrate, timeout_s=2.0)
    prompts = {f"r{i}": [(i + 3 * k * k) % 89 for k in range(data.draw(st.integers(1, 120)))] for i in range(data.draw(st.integers(1, 5)))}
    requests = {name: p.add(Request(name, prompt, 1, dict(REMOTE))) for name, prompt in prompts.items()}
    sent: set[str] = set()
    try:
        for _ in range(data.draw(st.integers(5, 60))):
            name = data.draw(st.sampled_from(sorted(prompts)))
            match data.draw(st.sampled_from(["p", "d", "d", "hand over", "hand over", "abort p", "abort d", "preempt", "wait"])):
                case "p":
                    p.step()
                case "d":
                    d.step()
                case "hand over" if requests[name].params and name not in sent:
                    sent.add(name)
                    d.add(Request(name, prompts[name], data.draw(st.integers(1, 8)), requests[name].params))
                case "abort p":
                    p.abort(name)
                case "abort d":
                    d.abort(name)
                case "preempt":
                    d.preempt(name)
                case "wait":
                    time.sleep(0.01)
        p.steps(lambda: not p.requests)
        d.steps(lambda: not d.requests)
        for _ in range(3):
            p.step()
            d.step()
        wait_until(lambda: not p.worker.worker_side._outbox._shelf)
        p.check()
        d.check()
        for engine in (p, d):
            assert len(engine.reports) == len(set(engine.reports)), engine.reports
        assert not d.worker.worker_side._inbox._loadings
    finally:
        d.close()
        p.close()


def wait_until(true: Any, most_s: float = 20.0) -> None:
    until_s = time.monotonic() + most_s
    while not true():
        assert time.monotonic() < until_s, "it did not happen"
        time.sleep(0.01)


def test_a_hybrid_model_is_refused_in_one_line_when_the_server_starts() -> None:
    """Both roles refuse it before any thread or port exists."""
    kind = connector_class()
    roles = kind.__init__.__globals__["KVConnectorRole"]
    group = SimpleNamespace(kv_cache_spec=FullAttentionSpec())
    mamba = SimpleNamespace(kv_cache_spec=type("MambaSpec", (), {})())
    config = SimpleNamespace(kv_transfer_config=SimpleNamespace(kv_connector_extra_config={}))
    before = set(threading.enumerate())
    for groups, line in (
        ([group, mamba], "sends one KV cache group; this model has 2"),
        ([mamba], "KV of full attention; this model has MambaSpec"),
    ):
        for role in (roles.SCHEDULER, roles.WORKER):
            with pytest.raises(ValueError, match=line) as raised:
                kind(config, role, SimpleNamespace(kv_cache_groups=groups, transfer_group_ids=(0,)))
            assert "\n" not in str(raised.value)
    assert set(threading.enumerate()) == before
