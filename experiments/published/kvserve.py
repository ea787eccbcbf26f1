"""KVServe's published curves (MIT; SIGCOMM 2026, arXiv 2605.13734): job completion time of a request by link rate, for KV in BF16 and under
three codecs, reproduced by the simulator.

One request runs on a prefill and a decode node with H100s, and its KV is sent layer by layer beside the pass. Two scalars for each model
are fitted to the BF16 rows: the prompt's tokens, which set prefill, and how many transfers share the link. The rows with a codec are then
predicted: with the codec speeds that the same authors measured on H100 (the seconds of a call are shared by the layers), and with these
ratios of BF16's bytes to the codec's:

* KIVI: 16 / 3 (2 bits, and a 16-bit scale and zero for 32 values).
* CacheGen: 7.8 (its authors: 3.5 to 4.3 times smaller than 8 bits).
* KVServe: 15.6 (assumption: half of CacheGen's bytes, as the authors' transmission times on 2WikiMQA are).

Not modelled: the load of other requests on the GPUs, and the mix of prompt lengths behind a published mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from abkt.capacity import Capacity
from abkt.policy.bitrate.fixed import Fixed, Raw
from abkt.policy.routing.round_robin import RoundRobin
from abkt.policy.view import Curve
from abkt.profile.roofline import CodecSpeed, GpuSpec, profile_of
from abkt.profile.schema import RateCurve
from abkt.records import SLO
from abkt.spec import ModelSpec
from experiments.published.rows import gpu_of
from sim.cluster import Simulation
from sim.specs import ClusterSpec, NodeSpec
from sim.transfer.transport import TransportModel
from sim.workload.requests import Request

RATIOS = {"kivi": 16 / 3, "cachegen": 7.8, "kvserve": 15.6}
SPEEDS = {"kivi": "quantizer", "cachegen": "cachegen", "kvserve": "cachegen"}  # codec of codec_speed.csv; KVServe's is a coder too
MODELS = {  # model of the table -> shape, GPUs of an instance
    "Llama-3.1-8B-Instruct": (
        ModelSpec("llama-3.1-8b", 32, 8, 128, hidden=4096, heads=32, inner=14336, vocabulary=128256, parameters=8e9, active_parameters=8e9),
        1,
    ),
    "Qwen2.5-32B-Instruct": (
        ModelSpec(
            "qwen2.5-32b", 64, 8, 128, hidden=5120, heads=40, inner=27648, vocabulary=152064, parameters=32.5e9, active_parameters=32.5e9
        ),
        2,
    ),
}
ANSWER = 2  # tokens; decoding is short beside prefill in the published breakdown
START = (20_000.0, 2.0)  # tokens, transfers


@dataclass(frozen=True, slots=True)
class Curves:
    """Measured and predicted seconds of each row, and the fitted tokens and transfers of each model."""

    rows: pd.DataFrame
    fits: Mapping[str, tuple[float, float]]


def codec_speeds(path: Path, gpu: str) -> dict[str, CodecSpeed]:
    """Codec -> speed on a GPU of codec_speed.csv: seconds = call + bytes / rate, fitted to lengths from 1k to 32k tokens."""
    table = pd.read_csv(path)
    found = {}
    for codec, t in table[table.gpu == gpu].groupby("codec"):
        size = t.tokens.to_numpy(float) * 131_072  # bytes of a token of Llama-3.1-8B
        (encode_call, encode), (expand_call, expand) = (_line(size, size / (t[f"{side}_gb_s"] * 1e9)) for side in ("encode", "decode"))
        found[str(codec)] = CodecSpeed(encode, expand, encode_call, expand_call)
    if not found:
        raise ValueError(f"{path} has no speed on {gpu}")
    return found


def _line(size: np.ndarray, seconds: pd.Series) -> tuple[float, float]:
    """(seconds of a call, bytes per second) with the least relative error."""
    design = np.stack([np.ones_like(size), size], axis=1) / seconds.to_numpy()[:, None]
    call_s, byte_s = np.linalg.lstsq(design, np.ones(len(size)), rcond=None)[0]
    return max(0.0, float(call_s)), 1 / float(byte_s)


def reproduce(folder: Path) -> Curves:
    """Fit the BF16 rows of jct_by_bandwidth.csv and predict the others. folder: has that file and codec_speed.csv.

    Raises ValueError, one line, if a file is missing.
    """
    for name in ("jct_by_bandwidth.csv", "codec_speed.csv"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} does not exist; it is of KVServe's published figures")
    table = pd.read_csv(folder / "jct_by_bandwidth.csv")
    speeds = codec_speeds(folder / "codec_speed.csv", "h100_sxm")
    fits, predicted = {}, np.zeros(len(table))
    for name, (model, gpus) in MODELS.items():
        gpu = replace(gpu_of("h100_sxm", "vllm", "vllm"), gpus=gpus, codecs={}, first_token_s=0.0)
        mine = (table.model == name).to_numpy()
        plain = table[mine & (table.method == "bf16").to_numpy()]

        def misses(x: np.ndarray, plain: pd.DataFrame = plain, gpu: GpuSpec = gpu, model: ModelSpec = model) -> np.ndarray:
            tokens, sharing = x * START
            return np.array([completion_s(gpu, model, tokens, sharing, r.gbps) / (r.jct_ms / 1e3) - 1 for r in plain.itertuples()])

        tokens, sharing = least_squares(misses, (0.5, 1.0), bounds=(0.05, 50), diff_step=0.02).x * START
        fits[name] = (float(tokens), float(sharing))
        for i in np.flatnonzero(mine):
            row = table.iloc[i]
            coded = replace(gpu, codecs={"8": of_layer(speeds[SPEEDS[row.method]], model)}) if row.method in RATIOS else gpu
            predicted[i] = completion_s(coded, model, tokens, sharing, row.gbps, RATIOS.get(row.method, 0.0))
    return Curves(table.assign(seconds=table.jct_ms / 1e3, predicted=predicted, error=predicted / (table.jct_ms / 1e3) - 1), fits)


def of_layer(speed: CodecSpeed, model: ModelSpec) -> CodecSpeed:
    """The measured calls coded all layers; the simulator codes one layer at a time."""
    return replace(speed, encode_call_s=speed.encode_call_s / model.layers, expand_call_s=speed.expand_call_s / model.layers)


def completion_s(gpu: GpuSpec, model: ModelSpec, tokens: float, sharing: float, gbps: float, ratio: float = 0.0) -> float:
    """Seconds until one request is answered. ratio: of raw bytes to coded bytes; 0: raw."""
    share = 1 / ratio if ratio else 1.0
    curve = Curve((share / 2, share), (0.5, 0.001), (1.0, 8.0))
    profile = profile_of(gpu, model, (RateCurve(1024, curve, curve),))
    nic = Capacity.constant(gbps * 1e9 / 8 / sharing)
    nodes = [NodeSpec(name, profile, round(2 * tokens) + 64, nic) for name in ("one", "two")]
    simulation = Simulation(
        ClusterSpec((nodes[0],), (nodes[1],), transport=TransportModel(layer_groups=model.layers)),
        [Request(0, 0.0, round(tokens), ANSWER)],
        bitrate=lambda: Fixed(8) if ratio else Raw(),
        routing=RoundRobin(),
        slo=SLO(10.0, 1.0),
    )
    return simulation.run().requests[0].e2e_s


def as_markdown(curves: Curves) -> str:
    rows = curves.rows
    lines = ["| model | prompt, tokens | transfers on the link |", "|---|---|---|"]
    lines += [f"| {name} | {tokens:,.0f} | {sharing:.2f} |" for name, (tokens, sharing) in curves.fits.items()]
    lines += ["", "| model | method | mean error | bias | by link rate, Gbit/s: predicted / published, s |", "|---|---|---|---|---|"]
    for (model, method), t in rows.groupby(["model", "method"], sort=False):
        each = ", ".join(f"{r.gbps:g}: {r.predicted:.2f} / {r.seconds:.2f}" for r in t.itertuples())
        kind = "fitted" if method == "bf16" else "predicted"
        lines.append(f"| {model} | {method}, {kind} | {t.error.abs().mean():.1%} | {t.error.mean():+.1%} | {each} |")
    coded = rows[rows.method != "bf16"].error
    lines += ["", f"Mean error of the {len(coded)} predicted rows: {coded.abs().mean():.1%}."]
    return "\n".join(lines)
