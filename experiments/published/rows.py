"""The rows of aiconfigurator's table of measured servers (Apache-2.0), as instances of the simulator.

A row's system, engine, model and types choose conf/hardware, conf/kernels, conf/overheads and conf/model. KV is in FP8 where TensorRT-LLM
serves a checkpoint quantised by tensor (fp8, nvfp4), because such checkpoints ask for it; otherwise in 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from abkt.policy.view import Curve
from abkt.profile.roofline import GpuSpec, kv_tokens, profile_of
from abkt.profile.schema import RateCurve
from abkt.spec import ModelSpec
from experiments.lib.compose import compose
from experiments.lib.config import read
from experiments.published.closed_loop import REQUESTS, Overheads, Server, lengths
from sim.cost import Costs
from sim.specs import EngineSpec

SYSTEMS = {  # system of the table -> conf/hardware, conf/kernels
    "a100_sxm": ("a100", "a100_sxm"),
    "b200_sxm": ("b200", "b200_sxm"),
    "b300_sxm": ("b300", "b300_sxm"),
    "gb200": ("gb200", "gb200"),
    "gb200_sxm": ("gb200", "gb200"),
    "gb300": ("gb300", "gb300"),
    "h100_sxm": ("h100", "h100_sxm"),
    "h200_sxm": ("h200", "h200_sxm"),
    "l40s": ("l40s", "l40s"),
    "rtx_pro_6000_server": ("rtx_pro_6000", "rtx_pro_6000_server"),
}
MODELS = {  # part of a model's path, in lower case -> conf/model; the first that fits counts
    "llama-3.1-8b": "llama-3.1-8b",
    "llama-3.1-70b": "llama-3.1-70b",
    "llama-3.3-70b": "llama-3.1-70b",
    "qwen3-235b": "qwen3-235b-a22b",
    "qwen3-30b": "qwen3-30b-a3b",
    "qwen3-32b": "qwen3-32b",
    "qwen3-8b": "qwen3-8b",
    "gpt-oss-120b": "gpt-oss-120b",
    "gpt-oss-20b": "gpt-oss-20b",
    "minimax-m2": "minimax-m2.5",
    "mixtral-8x7b": "mixtral-8x7b",
    "deepseek-v3.2": "",  # sparse attention is not modelled
    "deepseek-v3": "deepseek-v3",
    "deepseek-r1": "deepseek-v3",
    "kimi-k2": "kimi-k2",
}
TYPES = {"fp8": "float8_e4m3fn", "fp8_block": "fp8_block", "nvfp4": "nvfp4", "fp4": "nvfp4"}
ENGINE = {"vllm": "planned_ahead", "trtllm": "planned_ahead", "sglang": "prompts_first"}  # conf/engine
SWEPT, SHORTEST = ((1024, 1024), (1024, 8192), (8192, 1024)), 0.8  # lengths of InferenceMAX, whose client draws 80 to 100 % of them
CURVE = RateCurve(1024, Curve((0.1, 0.5), (0.5, 0.001), (1.0, 8.0)), Curve((0.1, 0.5), (0.5, 0.001), (1.0, 8.0)))  # nothing is coded
COLUMNS = ("model_path", "system", "backend", "isl", "osl", "tp_size", "silicon_tpot_ms", "silicon_ttft_ms")
ENGINES = ("vllm", "trtllm", "sglang")
MOST_CLIENTS = 256  # vLLM's default limit of running requests
ALIKE = 0.05  # relative difference of figures that are taken as the same measurement


@dataclass(frozen=True, slots=True)
class Row:
    """One measured server. gpus: of the instance. clients: in the closed loop. disaggregated: prefill and decode on their own workers."""

    system: str
    engine: str
    version: str
    model: str
    types: str
    isl: int
    osl: int
    gpus: int
    expert_parallel: int
    attention_data_parallel: int
    clients: int
    ttft_s: float
    tpot_s: float
    workers: tuple[int, int] = (0, 0)  # prefill and decode workers of a PD server; 0: colocated
    decode_gpus: int = 0
    decode_expert_parallel: int = 1

    @property
    def disaggregated(self) -> bool:
        return self.workers != (0, 0)

    @property
    def requests(self) -> list[tuple[int, int]]:
        """(prompt tokens, answer tokens) of each request that its clients send."""
        swept = not self.version and (self.isl, self.osl) in SWEPT
        return lengths(self.isl, self.osl, SHORTEST if swept else 1.0, REQUESTS * self.clients)

    @property
    def a_slot_short(self) -> bool:
        """Whether the engine ran one request fewer than there were clients, so one always waited: these rows of TensorRT-LLM show it."""
        return (self.engine, self.version, self.model) == ("trtllm", "1.0.0rc3", "llama-3.1-8b")

    @property
    def release(self) -> str:
        """Name of conf/overheads for this engine and version. vLLM schedules the next step beside the running one since 0.13."""
        old = self.engine == "vllm" and self.version.startswith(("0.10", "0.11", "0.12"))
        return "vllm_0.12" if old else self.engine


def read_rows(paths: Iterable[Path]) -> tuple[list[Row], dict[str, int]]:
    """The rows whose model and system are known, and how many others there are, by reason.

    Raises ValueError, one line, if a file is not such a table.
    """
    rows: list[Row] = []
    left: dict[str, int] = {}
    for path in paths:
        try:
            table = pd.read_csv(path)
        except FileNotFoundError:
            raise ValueError(f"{path} does not exist; it is a table of measured servers of aiconfigurator") from None
        if missing := [name for name in COLUMNS if name not in table]:
            raise ValueError(f"{path} has no column {missing[0]}")
        for values in table.to_dict("records"):
            model = _model(values["model_path"])
            reason = ""
            if values["system"] not in SYSTEMS:
                reason = f"system {values['system']}"
            elif not model:
                reason = f"model {values['model_path']}"
            elif values["backend"] not in ENGINES:
                reason = f"engine {values['backend']}"
            elif _number(values, "pp_size", 1) > 1:
                reason = "pipeline parallelism"
            elif not _number(values, "concurrency", 0) and values.get("mode") != "disagg":
                reason = "number of clients not given"
            elif _number(values, "concurrency", 0) > MOST_CLIENTS:
                reason = f"more than {MOST_CLIENTS} clients; how many requests the engine runs at once is not given"
            elif math.isnan(values["silicon_tpot_ms"]) or math.isnan(values["silicon_ttft_ms"]):
                reason = "no TPOT or TTFT"
            if reason:
                left[reason] = left.get(reason, 0) + 1
            else:
                rows.append(_row(values, model))
    repeated = _repeats(rows)
    if repeated:
        rows = [row for row in rows if id(row) not in repeated]
        left["attention data parallelism, with the figures of the row without"] = len(repeated)
    if not rows:
        raise ValueError(f"no row of {', '.join(map(str, paths))} has a known model, system and engine")
    return rows, left


def _repeats(rows: list[Row]) -> set[int]:
    """Ids of rows with attention data parallelism whose TPOT is that of the row without: they cannot have run on so many GPUs more."""
    plain = {_same(row): row for row in rows if row.attention_data_parallel == 1}
    found = set()
    for row in rows:
        other = plain.get(_same(row))
        if row.attention_data_parallel > 1 and other is not None and abs(row.tpot_s / other.tpot_s - 1) < ALIKE:
            found.add(id(row))
    return found


def _same(row: Row) -> tuple[object, ...]:
    gpus = row.gpus // row.attention_data_parallel
    return row.system, row.engine, row.version, row.model, row.types, row.isl, row.osl, gpus, row.clients, row.workers


def _model(path: str) -> str:
    return next((name for part, name in MODELS.items() if part in str(path).lower()), "")


def _row(values: dict[str, Any], model: str) -> Row:
    disaggregated = values.get("mode") == "disagg"
    side = "prefill_" if disaggregated else ""
    dp = max(1, _number(values, f"{side}attention_dp_size", 1))
    version = values.get("backend_version")
    workers = (_number(values, "prefill_num_workers", 1), _number(values, "decode_num_workers", 1)) if disaggregated else (0, 0)
    gpus = _number(values, f"{side}tp_size", 1) * dp
    batch = _number(values, "batch_size", 0) or _number(values, "decode_batch_size", 1) * workers[1]
    moe = bool(_spec(model).experts)

    def groups(name: str, gpus: int) -> int:
        return min(gpus, max(1, _number(values, name, 1))) if moe else 1

    decode_gpus = _number(values, "decode_tp_size", 1) * max(1, _number(values, "decode_attention_dp_size", 1)) if disaggregated else 0
    quantised = values.get("gemm_quant_mode")
    types = quantised if isinstance(quantised, str) else ""
    if types == "fp8" and (str(values["model_path"]).endswith("-FP8") or _spec(model).weights == "fp8_block"):
        types = "fp8_block"  # such checkpoints have a scale for each block
    return Row(
        system=values["system"],
        engine=values["backend"],
        version="" if not isinstance(version, str) else version,
        model=model,
        types=types,
        isl=int(values["isl"]),
        osl=int(values["osl"]),
        gpus=gpus,
        expert_parallel=groups(f"{side}moe_ep_size", gpus),
        attention_data_parallel=dp,
        clients=_number(values, "concurrency", 0) or batch,
        ttft_s=values["silicon_ttft_ms"] / 1e3,
        tpot_s=values["silicon_tpot_ms"] / 1e3,
        workers=workers,
        decode_gpus=decode_gpus,
        decode_expert_parallel=groups("decode_moe_ep_size", decode_gpus) if decode_gpus else 1,
    )


def _number(values: dict[str, Any], name: str, otherwise: int) -> int:
    value = values.get(name)
    return otherwise if value is None or (isinstance(value, float) and math.isnan(value)) else int(value)


@lru_cache
def _spec(model: str) -> ModelSpec:
    return read(ModelSpec, compose("simulate", [f"model={model}"]).config["model"])


def model_of(row: Row) -> ModelSpec:
    """The model in the row's types."""
    spec = _spec(row.model)
    weights = TYPES.get(row.types, "bfloat16")
    kv = "float8_e4m3fn" if row.engine == "trtllm" and row.types in ("fp8", "nvfp4") and spec.kv_kinds == 2 else "bfloat16"
    if spec.expert_dtype == "mxfp4":  # gpt-oss: only the experts are quantised, whatever the row calls it
        return replace(spec, dtype=kv)
    return replace(spec, weight_dtype=weights, expert_dtype=weights, weight_bytes=0.0, dtype=kv)


@lru_cache(maxsize=256)
def gpu_of(system: str, engine: str, release: str) -> GpuSpec:
    """One GPU of the system as conf/ ships it, with the engine's kernels and overheads."""
    hardware, kernels = SYSTEMS[system]
    chosen = [f"hardware={hardware}", f"kernels@hardware.kernels={engine}/{kernels}", f"overheads@hardware={release}"]
    return read(GpuSpec, compose("simulate", chosen).config["hardware"])


def overheads_of(row: Row) -> Overheads:
    """The overheads that conf/ ships for the row's engine and version."""
    gpu = gpu_of(row.system, row.engine, row.release)
    return Overheads(gpu.overhead_s, gpu.request_s, gpu.first_token_s)


def split_gpu(row: Row, decode: bool = False) -> GpuSpec:
    """The GPU of the row as conf/ ships it, and how the instance's GPUs share the model. decode: the decode worker of a PD server."""
    return _split(*_instance(row, decode))


def server_of(row: Row, decode: bool = False) -> Server:
    """The row's instance without overheads. Raises ValueError if the model does not fit on it."""
    costs, room = _costs(model_of(row), *_instance(row, decode))
    places = row.clients - 1 if row.a_slot_short else MOST_CLIENTS
    return Server(costs, room, replace(engine_of(row.engine), max_batch=places))


@lru_cache
def engine_of(engine: str) -> EngineSpec:
    """How the engine batches, as conf/engine has it."""
    return read(EngineSpec, compose("simulate", [f"engine={ENGINE[engine]}"]).config["engine"])


def _instance(row: Row, decode: bool) -> tuple[str, str, str, int, int, int]:
    gpus, experts = (row.decode_gpus, row.decode_expert_parallel) if decode else (row.gpus, row.expert_parallel)
    return row.system, row.engine, row.release, gpus, experts, row.attention_data_parallel


def _split(system: str, engine: str, release: str, gpus: int, experts: int, attention_dp: int) -> GpuSpec:
    dp = attention_dp if gpus % attention_dp == 0 else 1
    one = gpu_of(system, engine, release)
    return replace(one, gpus=gpus, expert_parallel=experts if gpus % experts == 0 else 1, attention_data_parallel=dp)


@lru_cache(maxsize=4096)
def _costs(model: ModelSpec, *instance: Any) -> tuple[Costs, int]:
    """Costs without overheads, and KV tokens that fit."""
    gpu = _split(*instance)
    bare = replace(gpu, overhead_s=0.0, request_s=0.0, first_token_s=0.0)
    return Costs(profile_of(bare, model, (CURVE,))), kv_tokens(gpu, model)
