"""Published servers, links and curves: made-up tables with known overheads, and the real tables where they are available."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.cli import dispatch
from experiments.published import comparison, servers
from experiments.published.closed_loop import CLIENT_S, Overheads, closed_loop
from experiments.published.codecs import break_even_gbps
from experiments.published.kvserve import codec_speeds, reproduce
from experiments.published.links import error_of, fit_link, pd_transfers
from experiments.published.misses import OTHER, cause, is_short_of_memory
from experiments.published.rows import Row, gpu_of, model_of, overheads_of, read_rows, server_of
from experiments.published.simulated import simulate, spread

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
ROW = Row("h100_sxm", "vllm", "0.18.0", "llama-3.1-8b", "", 1024, 65, 1, 1, 1, 8, 1.0, 1.0)
TRUE = Overheads(0.002, 4e-5, 0.0)


def measured(row: Row, overheads: Overheads = TRUE) -> Row:
    one = servers.predict(row, overheads)
    return replace(row, ttft_s=one.ttft_s, tpot_s=one.tpot_s)


def made_up(path: Path, overheads: Overheads = TRUE, **columns: object) -> Path:
    """Two engines and two models on one and two GPUs, with overheads that are known."""
    rows = []
    for engine in ("vllm", "trtllm"):
        for model, name in (("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"), ("Qwen/Qwen3-8B", "qwen3-8b")):
            for gpus, clients, isl in ((1, 2, 512), (1, 16, 1024), (2, 32, 1024), (2, 4, 2048)):
                row = measured(replace(ROW, engine=engine, model=name, gpus=gpus, clients=clients, isl=isl), overheads)
                rows.append((model, "h100_sxm", engine, isl, row.osl, gpus, clients, 1e3 * row.tpot_s, 1e3 * row.ttft_s))
    names = ("model_path", "system", "backend", "isl", "osl", "tp_size", "concurrency", "silicon_tpot_ms", "silicon_ttft_ms")
    pd.DataFrame(rows, columns=names).assign(**columns).to_csv(path, index=False)
    return path


def test_known_overheads_are_found_and_predict_what_was_held_out(tmp_path: Path) -> None:
    rows, left = read_rows([made_up(tmp_path / "s.csv")])
    assert (len(rows), left) == (16, {})
    response = servers.response(rows)
    found = response.fit()
    assert (found.pass_s, found.request_s) == pytest.approx((0.002, 4e-5), rel=0.1)
    rows, _ = read_rows([made_up(tmp_path / "t.csv", replace(TRUE, request_s=0.0))])  # an engine that nobody measured has no request_s
    response = servers.response(rows)
    for of, engines in ((lambda row: row.engine, True), (lambda row: row.model, False)):
        predicted, _ = servers.held_out(response, of, engines)
        assert np.abs(predicted.errors[:, 1]).mean() < 0.02
        assert np.median(np.abs(predicted.errors[:, 0])) < 0.02


def test_throughput_is_that_of_the_loop() -> None:
    """Little's law on mean latencies against the tokens that the loop counts, which also has the clients' pauses and the last answers."""
    rows = [replace(ROW, clients=clients, isl=isl, osl=257) for clients, isl in ((1, 512), (8, 1024), (32, 2048))]
    run = [servers.predict(row, TRUE) for row in rows]
    found = servers.Predicted(tuple(rows), np.array([(one.ttft_s, one.tpot_s) for one in run])).tokens_per_s
    assert found == pytest.approx([one.tokens_per_s for one in run], rel=0.03)


def test_throughput_errors_by_hand() -> None:
    """Two clients, answers of 11 tokens: 2 x 11 tokens in 1 + 10 x 0.1 s; predicted with half the TPOT, 2 x 11 in 1.5 s."""
    row = replace(ROW, clients=2, osl=11, ttft_s=1.0, tpot_s=0.1)
    one = servers.Predicted((row,), np.array([(1.0, 0.05)]))
    assert one.tokens_per_s == pytest.approx(22 / 1.5)
    assert one.throughput_errors == pytest.approx(2 / 1.5 - 1)


def test_an_engine_that_is_held_out_does_not_lend_its_overheads(tmp_path: Path) -> None:
    """TensorRT-LLM's tokens take twice as long here: held out, they are missed by half, and its own fit does not hide it."""
    path = made_up(tmp_path / "s.csv")
    table = pd.read_csv(path)
    table.loc[table.backend == "trtllm", "silicon_tpot_ms"] *= 2
    table.to_csv(path, index=False)
    rows, _ = read_rows([path])
    predicted, _ = servers.held_out(servers.response(rows), lambda row: row.engine, True)
    errors = predicted.errors[[row.engine == "trtllm" for row in rows], 1]
    assert errors == pytest.approx(-0.5, abs=0.07)


def test_rows_that_cannot_be_compared_are_counted_by_reason(tmp_path: Path) -> None:
    path = made_up(tmp_path / "s.csv")
    table = pd.read_csv(path)
    table.loc[0, "model_path"], table.loc[1, "concurrency"], table.loc[2, "concurrency"] = "unknown/model", np.nan, 512
    twin = table.iloc[[3]].assign(attention_dp_size=2.0)
    pd.concat([table, twin]).to_csv(path, index=False)
    rows, left = read_rows([path])
    assert len(rows) == 13
    assert sum(left.values()) == 4
    assert any("figures of the row without" in reason for reason in left)


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        replace(ROW, engine="trtllm", version="1.0.0rc3", gpus=2, clients=4),  # one client fewer in the engine
        replace(ROW, model="qwen3-32b", engine="sglang", version="0.5.1", gpus=2, osl=128, clients=16),
        replace(ROW, model="gpt-oss-120b", version="", isl=1024, osl=1024, gpus=4, clients=4),  # lengths that vary
    ],
    ids=["mixed", "a slot short", "prompts first", "lengths that vary"],
)
@pytest.mark.parametrize("first_token_s", [0.0, 0.03])
def test_sim_gives_what_the_stepped_loop_gives(row: Row, first_token_s: float) -> None:
    overheads = Overheads(0.001, 1e-5, first_token_s)
    stepped, run = servers.predict(row, overheads), simulate(row, overheads)
    assert run.ttft_s == pytest.approx(stepped.ttft_s, rel=0.005)
    assert run.tpot_s == pytest.approx(stepped.tpot_s, rel=0.005)
    assert run.tokens_per_s == pytest.approx(stepped.tokens_per_s, rel=0.005)


def test_a_lone_client_waits_for_its_own_prompt_alone() -> None:
    server, none = server_of(ROW), Overheads(0.0, 0.0, 0.0)
    one = closed_loop(server, [(1024, 65)] * 10, 1, none)
    assert one.ttft_s == pytest.approx(server.iteration_s(0, 0, [1024], none))
    assert one.tpot_s == pytest.approx(server.iteration_s(1, 1024 + 65 / 2, [], none), rel=0.01)
    late = closed_loop(server, [(1024, 65)] * 10, 1, replace(none, first_token_s=0.02))
    assert late.ttft_s == pytest.approx(one.ttft_s + 0.02)


def test_a_prompt_that_comes_during_a_planned_pass_waits_for_the_one_after() -> None:
    """One client has a long answer; the other's second prompt comes CLIENT_S into one of its iterations, and runs with the next; where
    passes are planned ahead, with the one after."""
    none, server = Overheads(0.0, 0.0, 0.0), server_of(ROW)
    at_once = replace(server, engine=replace(server.engine, planned_ahead=False, prefill_tokens=0))
    ahead = replace(at_once, engine=replace(at_once.engine, planned_ahead=True))
    waited, longer = (3 * closed_loop(one, [(1024, 1000), (1024, 65), (1024, 65)], 2, none).ttft_s for one in (at_once, ahead))
    first_s, beside_s = server.iteration_s(0, 0, [1024], none), server.iteration_s(1, 1025, [1024], none)
    step_s = server.iteration_s(1, 1024 + 66, [], none)
    assert step_s > CLIENT_S
    assert waited == pytest.approx(first_s + (first_s + beside_s) + (step_s - CLIENT_S + beside_s), rel=0.01)
    assert longer - waited == pytest.approx(step_s, rel=0.01)


def test_clients_of_a_full_engine_wait_for_an_answer() -> None:
    """Two clients and one place: each prompt but the first waits for the other's whole answer."""
    none, server = Overheads(0.0, 0.0, 0.0), server_of(ROW)
    full = replace(server, engine=replace(server.engine, max_batch=1, planned_ahead=False))
    got = closed_loop(full, [(1024, 65)] * 20, 2, none)
    prompt_s = server.iteration_s(0, 0, [1024], none)
    assert got.ttft_s == pytest.approx(2 * prompt_s + 64 * got.tpot_s, rel=0.06)


def test_only_rows_of_inferencemax_have_lengths_that_vary() -> None:
    swept = replace(ROW, model="llama-3.1-70b", version="", isl=1024, osl=8192)
    prompts, answers = zip(*swept.requests, strict=True)
    assert len(prompts) == 10 * swept.clients
    assert (min(prompts) >= 0.8 * 1024, max(prompts) <= 1024, max(answers) <= 8192) == (True, True, True)
    assert np.mean(prompts) == pytest.approx(0.9 * 1024, rel=0.03)
    assert set(replace(swept, version="0.12.0").requests) == {(1024, 8192)}
    assert set(replace(swept, osl=512).requests) == {(1024, 512)}


def test_an_engine_that_runs_prompts_first_keeps_clients_in_step() -> None:
    """Sixteen prompts of 1,024 tokens are two batches: the first half waits for one, the second for two, and then all decode together."""
    server, none = server_of(replace(ROW, engine="sglang")), Overheads(0.0, 0.0, 0.0)
    both = closed_loop(server, [(1024, 65)] * 160, 16, none)
    batch_s = server.iteration_s(0, 0, [1024] * 8, none)
    assert both.ttft_s == pytest.approx(1.5 * batch_s, rel=0.05)


def test_pd_servers_prefill_and_decode_on_their_own_workers() -> None:
    """One client: no prompt runs beside its steps. Many: one prefill worker is the limit, and two do nearly twice as much."""
    pd_row = replace(ROW, workers=(1, 1), decode_gpus=1, clients=1)
    none = Overheads(0.0, 0.0, 0.0)
    alone = servers.predict(pd_row, none)
    assert alone.ttft_s == pytest.approx(server_of(ROW).iteration_s(0, 0, [1024], none), rel=0.01)
    assert alone.tpot_s == pytest.approx(server_of(ROW).iteration_s(1, 1024 + 65 / 2, [], none), rel=0.01)
    busy, twice = (servers.predict(replace(pd_row, clients=256, workers=(n, 4)), none) for n in (1, 2))
    assert busy.tokens_per_s == pytest.approx(65 / alone.ttft_s, rel=0.02)
    assert 1.7 < twice.tokens_per_s / busy.tokens_per_s < 2.01


def test_picks_are_judged_by_what_was_measured() -> None:
    """Two loads, SLOs of 10 to 50 ms: where the faster row is predicted to keep 15 ms and does not, the pick misses."""
    rows = tuple(replace(ROW, clients=c, tpot_s=t) for c, t in ((8, 0.012), (64, 0.016)))
    right = servers.Predicted(rows, np.array([(1.0, 0.012), (1.0, 0.016)]))
    wrong = servers.Predicted(rows, np.array([(1.0, 0.012), (1.0, 0.0149)]))
    assert comparison.missed_picks(right, 0.0)[:2] == (0, 1)
    assert comparison.missed_picks(wrong, 0.0)[:2] == (1, 1)
    assert comparison.missed_picks(wrong, 0.1)[:2] == (0, 1)  # the margin keeps away from the edge


def test_every_row_is_in_the_table_with_what_sim_gave(tmp_path: Path) -> None:
    rows, _ = read_rows([made_up(tmp_path / "s.csv")])
    compared = comparison.compare(rows, sampled=3)
    table = comparison.as_table(compared)
    assert len(table) == len(rows)
    run = table.dropna(subset="ttft_s_sim")
    assert len(run) == 3
    assert run.ttft_s_sim.to_numpy() == pytest.approx(run.ttft_s_as_it_ships.to_numpy(), rel=0.005)
    assert {"cause", "ttft_s_engine_held_out", "tpot_s_model_held_out"} <= set(table)
    assert "rows run through sim itself" in comparison.as_markdown(compared, {})


def test_misses_have_a_cause_and_rows_that_are_met_have_none() -> None:
    assert cause(ROW, (0.1, -0.05)) == ""
    assert cause(ROW, (0.2, 0.0)) == OTHER
    assert "front end" in cause(replace(ROW, engine="trtllm", gpus=4, clients=128), (-0.6, 0.0))
    crowded = replace(ROW, model="qwen3-32b", isl=8192, clients=200)
    assert is_short_of_memory(crowded)
    assert "memory" in cause(crowded, (3.0, 0.0))


def test_a_link_is_fitted_and_checked_on_the_other_stack() -> None:
    calls, sizes = np.array([36.0] * 4), np.array([1e6, 1e7, 1e8, 1e9])
    link = fit_link(calls, sizes, 1e-5 * calls + sizes / 1e11)
    assert (link.alpha_s, link.beta_bytes_per_s) == pytest.approx((1e-5, 1e11), rel=1e-3)
    assert link.error < 1e-3
    assert error_of((1e-5, 1e11), calls, sizes, 2 * (1e-5 * calls + sizes / 1e11)) == pytest.approx(0.5)


def test_bad_input_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["published", f"data={tmp_path}", f"out={tmp_path / 'out'}"]) == 2
    assert "table of measured servers" in capsys.readouterr().err
    (tmp_path / "s.csv").write_text("isl,osl\n1,2\n")
    with pytest.raises(ValueError, match="no column model_path"):
        read_rows([tmp_path / "s.csv"])
    with pytest.raises(ValueError, match="no row of"):
        read_rows([made_up(tmp_path / "t.csv", model_path="unknown/model")])
    with pytest.raises(ValueError, match="measured PD transfers"):
        pd_transfers(tmp_path)
    with pytest.raises(ValueError, match="KVServe's published figures"):
        reproduce(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_lone_engine_cannot_be_held_out() -> None:
    rows = [measured(replace(ROW, clients=c)) for c in (2, 8)]
    with pytest.raises(ValueError, match="nothing is left to fit"):
        servers.held_out(servers.response(rows), lambda row: row.engine, True)


def test_the_break_even_rate_is_bytes_saved_by_the_codecs_seconds() -> None:
    gpu = replace(gpu_of("h100_sxm", "vllm", "vllm"), codecs={}, codec_efficiency=0.01, call_s=0.0, memory_bytes_per_s=1e12)
    model = model_of(ROW)
    size = model.kv_bytes(1000)
    seconds = 2 * size * (1 + 4.25 / 16) / 1e10
    assert break_even_gbps(gpu, model, "4", 1000) == pytest.approx(8e-9 * size * (1 - 4.25 / 16) / seconds)


needs_data = pytest.mark.skipif(not (DATA / "kvserve").is_dir(), reason="the published tables are not here")


@needs_data
def test_conf_has_the_codec_speeds_that_were_published() -> None:
    for system in ("h100_sxm", "rtx_pro_6000"):
        gpu = gpu_of("rtx_pro_6000_server" if system == "rtx_pro_6000" else system, "vllm", "vllm")
        found = codec_speeds(DATA / "kvserve" / "codec_speed.csv", system)
        for stage, codec in (("4", "quantizer"), ("lossless", "ans")):
            assert gpu.codecs[stage].encode_bytes_per_s == pytest.approx(found[codec].encode_bytes_per_s, rel=0.01)
            assert gpu.codecs[stage].expand_bytes_per_s == pytest.approx(found[codec].expand_bytes_per_s, rel=0.01)
            assert gpu.codecs[stage].encode_call_s == pytest.approx(found[codec].encode_call_s, rel=0.02)


@pytest.mark.slow
@needs_data
def test_kvserves_curves_are_predicted_within_an_eighth() -> None:
    rows = reproduce(DATA / "kvserve").rows
    assert rows[rows.method == "bf16"].error.abs().mean() < 0.06
    assert rows[rows.method != "bf16"].error.abs().mean() < 0.125


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "profiles").is_dir(), reason="the published tables are not here")
def test_published_servers_are_met_as_conf_ships() -> None:
    """Every fifth row: TPOT within 8 % on average, the median TTFT within 15 %."""
    rows, _ = read_rows([DATA / "profiles" / "measured_serving_h100.csv.gz"])
    errors = np.abs(servers.shipped(servers.fitting(rows)[0][::5]).errors)
    assert errors[:, 1].mean() < 0.08
    assert np.median(errors[:, 0]) < 0.15


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "profiles").is_dir(), reason="the published tables are not here")
def test_sim_gives_the_published_table() -> None:
    """Twelve rows over engines, models, GPUs and clients: within 2 % of what the loop steps, which the table reports."""
    rows, _ = read_rows([DATA / "profiles" / "measured_serving_h100.csv.gz"])
    chosen = spread([row for row in rows if not is_short_of_memory(row)], 12)
    for row in chosen:
        stepped, run = (of(row, overheads_of(row)) for of in (servers.predict, simulate))
        assert (run.ttft_s, run.tpot_s) == pytest.approx((stepped.ttft_s, stepped.tpot_s), rel=0.02)
