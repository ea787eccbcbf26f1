"""Published servers and links: made-up tables with known scalars, and the real tables where they are available."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from abkt.policy.view import Curve
from abkt.profile.kernels import ModelCosts
from abkt.profile.roofline import GpuSpec
from abkt.profile.schema import RateCurve
from abkt.spec import ModelSpec
from experiments.cli import dispatch
from experiments.lib.compose import compose
from experiments.lib.config import read
from experiments.published.links import error_of, fit_link, pd_transfers
from experiments.published.loop import as_engines_run, tpot_s
from experiments.published.servers import SPLITS, as_markdown, read_servers
from experiments.verbs.published import MODELS


def made_up_curves() -> tuple[RateCurve, ...]:
    curve = Curve((0.1, 0.5), (0.5, 0.001), (1.0, 8.0))
    return (RateCurve(1024, curve, curve),)


DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "profiles"
NAME = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture(scope="module")
def gpu() -> GpuSpec:
    return read(GpuSpec, compose("simulate", ["hardware=h100"]).config["hardware"])


@pytest.fixture(scope="module")
def models() -> dict[str, ModelSpec]:
    return {path: read(ModelSpec, compose("simulate", [f"model={name}"]).config["model"]) for path, name in MODELS.items()}


def made_up(path: Path, gpu: GpuSpec, model: ModelSpec, noise: float = 0.0) -> Path:
    """Servers with 1 ms an iteration, 20 us a request and six tenths of the others' prompts, written out here once more."""
    rows, random = [], np.random.default_rng(0)
    for isl in (1024, 2048, 4096):
        for tp in (1, 2, 4):
            costs = ModelCosts(model, gpu.kernels, tp, gpu.memory_bytes_per_s, overhead_s=0.001, request_s=20e-6)
            for clients in (1, 8, 32):
                kv = isl + 100
                step_s = costs.iteration_s(clients, clients * kv)
                with_prompt_s = costs.iteration_s(clients - 1, (clients - 1) * kv, isl) - costs.iteration_s(clients - 1, (clients - 1) * kv)
                tpot_s = step_s + 0.6 * (clients - 1) / 199 * with_prompt_s
                rows.append((NAME, "made", None, isl, 200, tp, clients, 1e3 * tpot_s * np.exp(noise * random.standard_normal())))
    columns = ("model_path", "backend", "precision", "isl", "osl", "tp_size", "concurrency", "silicon_tpot_ms")
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return path


def test_known_scalars_are_found_and_predict_what_was_held_out(tmp_path: Path, gpu: GpuSpec, models: dict[str, ModelSpec]) -> None:
    servers = read_servers(made_up(tmp_path / "s.csv", gpu, models[NAME]), models, gpu)
    assert servers.fit() == pytest.approx((0.001, 20e-6, 0.6), rel=1e-3)
    for column in SPLITS:
        assert np.abs(servers.held_out(column)).max() < 1e-3
    assert "| made: 27 rows, Llama-3.1-8B-Instruct | 1.00 ms, 20 µs, 0.60 | 0.0% |" in as_markdown(servers)


def test_the_held_out_error_is_of_rows_that_the_fit_has_not_seen(tmp_path: Path, gpu: GpuSpec, models: dict[str, ModelSpec]) -> None:
    """Rows of one concurrency twice as slow: held out, they are missed by half; the others' errors do not hide it."""
    path = made_up(tmp_path / "s.csv", gpu, models[NAME])
    table = pd.read_csv(path)
    table.loc[table.concurrency == 32, "silicon_tpot_ms"] *= 2
    table.to_csv(path, index=False)
    errors = read_servers(path, models, gpu).held_out("concurrency")
    assert errors[table.concurrency == 32] == pytest.approx(-0.5, abs=1e-3)


def test_simulated_clients_take_as_long_as_the_kernels_predict(gpu: GpuSpec, models: dict[str, ModelSpec]) -> None:
    """Alone, a client has nobody's prompts beside its steps. With eight, steps take as long as eight together; their prompts of 2,000
    tokens do not all fit into one iteration of 8,192, so some come on top, and not more than all of the others'. Those of 1,024 do."""
    model, isl, osl = models[NAME], 2000, 101
    costs = ModelCosts(model, gpu.kernels, 1, gpu.memory_bytes_per_s, gpu.overhead_s, gpu.request_s)
    alone = tpot_s(gpu, model, made_up_curves(), isl, osl, clients=1)
    assert alone == pytest.approx(costs.iteration_s(1, isl + osl / 2), rel=0.01)
    steps_s = costs.iteration_s(8, 8 * (isl + osl / 2))
    prompts_s = 7 / (osl - 1) * costs.iteration_s(0, 0, isl)
    assert steps_s + 0.2 * prompts_s < tpot_s(gpu, model, made_up_curves(), isl, osl, clients=8) < steps_s + prompts_s
    in_step = tpot_s(gpu, model, made_up_curves(), 1024, osl, clients=8)
    assert in_step == pytest.approx(costs.iteration_s(8, 8 * (1024 + osl / 2)), rel=0.01)


def test_prompts_in_waves_come_half_after_ones_own(tmp_path: Path, gpu: GpuSpec, models: dict[str, ModelSpec]) -> None:
    """SGLang: 32 prompts of 1,024 tokens are four batches, of which one and a half come later: three eighths of all."""
    path = made_up(tmp_path / "s.csv", gpu, models[NAME])
    table = pd.read_csv(path).assign(backend="sglang")
    table.to_csv(path, index=False)
    servers = read_servers(path, models, gpu)
    run = as_engines_run(servers, models, gpu, made_up_curves())
    row = ((servers.rows.isl == 1024) & (servers.rows.concurrency == 32)).to_numpy()
    assert run.prompts_s[row] == pytest.approx(3 / 8 * servers.prompts_s[row])
    assert (run.prompts_s[(servers.rows.concurrency == 1).to_numpy()] == 0).all()
    twice = replace(run, rows=run.rows.assign(silicon_tpot_ms=1e3 * (1.5 * run.alone_s + 0.002 + 1e-5 * run.rows.together + run.prompts_s)))
    assert twice.fit() == pytest.approx((0.002, 1e-5, 1.5), rel=1e-3)
    assert "a, b, factor" in as_markdown(servers, run)


def test_a_link_is_fitted_and_checked_on_the_other_stack() -> None:
    calls, sizes = np.array([36.0] * 4), np.array([1e6, 1e7, 1e8, 1e9])
    link = fit_link(calls, sizes, 1e-5 * calls + sizes / 1e11)
    assert (link.alpha_s, link.beta_bytes_per_s) == pytest.approx((1e-5, 1e11), rel=1e-3)
    assert link.error < 1e-3
    assert error_of((1e-5, 1e11), calls, sizes, 2 * (1e-5 * calls + sizes / 1e11)) == pytest.approx(0.5)


def test_bad_input_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str], gpu: GpuSpec, models: dict[str, ModelSpec]) -> None:
    assert dispatch(["published", f"data={tmp_path}", f"out={tmp_path / 'out'}"]) == 2
    assert "measured H100 servers" in capsys.readouterr().err
    (tmp_path / "s.csv").write_text("isl,osl\n1,2\n")
    with pytest.raises(ValueError, match="no column model_path"):
        read_servers(tmp_path / "s.csv", models, gpu)
    with pytest.raises(ValueError, match="has no kernels"):
        read_servers(made_up(tmp_path / "t.csv", gpu, models[NAME]), models, replace(gpu, kernels=None))
    with pytest.raises(ValueError, match="measured PD transfers"):
        pd_transfers(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_lone_value_cannot_be_held_out(tmp_path: Path, gpu: GpuSpec, models: dict[str, ModelSpec]) -> None:
    servers = read_servers(made_up(tmp_path / "s.csv", gpu, models[NAME]), models, gpu)
    with pytest.raises(ValueError, match="nothing is left to fit"):
        replace(servers, rows=servers.rows.assign(isl=7)).held_out("isl")


@pytest.mark.skipif(not DATA.is_dir(), reason="the published tables are not here")
def test_published_servers_are_met_on_rows_that_were_held_out(gpu: GpuSpec, models: dict[str, ModelSpec]) -> None:
    """Within 10 % on average for each engine and split, with three scalars an engine."""
    servers = read_servers(DATA / "measured_serving_h100.csv.gz", models, gpu)
    assert len(servers.rows) == 351
    for engine in ("sglang", "trtllm", "vllm"):
        part = servers.where((servers.rows.backend == engine).to_numpy())
        for column in SPLITS:
            assert np.abs(part.held_out(column)).mean() < 0.1


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the published tables are not here")
def test_one_set_of_scalars_is_enough_where_prompts_run_as_the_engines_run_them(gpu: GpuSpec, models: dict[str, ModelSpec]) -> None:
    servers = read_servers(DATA / "measured_serving_h100.csv.gz", models, gpu)
    run = as_engines_run(servers, models, gpu, made_up_curves())
    for column in SPLITS:
        assert np.abs(run.held_out(column)).mean() < 0.1
