"""Costs from kernel tables, compared with servers that others have measured: TPOT of colocated continuous batching under a closed loop, on
H100.

    TPOT = iteration(C, context) + a + b C + share (C - 1) / (osl - 1) x (seconds that one prompt adds to an iteration)

C is the number of clients, or the number that fits in memory (the others wait). The context is C (isl + osl / 2). Three scalars are fitted:

* a: seconds that every iteration takes besides its kernels.
* b: seconds that each request adds to that.
* share: share of the other clients' prompts that run while a request decodes. It is 1 if clients are out of step, and about 0.5 if they
  start together.

The held-out error of a row comes from a fit without all rows of the same isl, then of the same tp, then of the same concurrency. Engines
differ in their overheads and in when they run prompts. So the first table fits three scalars for each engine, and then one set for all
engines, which is worse.

In the second table no scalar describes the prompts, because they run as each engine runs them. vLLM and TensorRT-LLM run up to 8,192 prompt
tokens together with a decode step; the simulator runs this as a closed loop on colocated nodes. SGLang stops decoding while prompts wait,
and runs them in batches of 8,192 tokens. If clients that start together form n batches, on average (n - 1) / 2 of them run after a client's
own. The third scalar is a factor on the time of the decode kernels. One set of three scalars is then enough for all three engines on this
GPU.

These errors are those of scalars that are fitted to the other rows. conf/hardware/h100.yaml has scalars of its own; with that file as it
ships the mean error was 16.3 % (measured outside the stored results; an open question of costs).

The largest errors have likely causes that were not tested. TensorRT-LLM on 4 and 8 GPUs has its own all-reduce and attention, but the
tables have those of vLLM. vLLM on 2 GPUs with 128 clients and SGLang on one GPU have little memory for KV, and its size is estimated here.
SGLang on one GPU is another release (0.5.8) than the rest (0.5.1).

Source: ai-dynamo/aiconfigurator (Apache-2.0), silicon samples of aggregated H100 servers.

Not modelled: speculative decoding, the first wave of a run, prompts in chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from abkt.profile.kernels import ModelCosts
from abkt.profile.roofline import GpuSpec, kv_tokens
from abkt.spec import ModelSpec

COLUMNS = ("model_path", "backend", "precision", "isl", "osl", "tp_size", "concurrency", "silicon_tpot_ms")
SPLITS = ("isl", "tp_size", "concurrency")
START = (1e-3, 2e-5, 1.0)


@dataclass(frozen=True, slots=True)
class Servers:
    """Measured rows of some engines, with the times that the kernels predict.

    alone_s: seconds of an iteration without prompts. prompts_s: seconds that the prompts of all other clients would add to it; with as_run,
    seconds that the prompts add when they run as the engine runs them.
    """

    rows: pd.DataFrame
    alone_s: np.ndarray
    prompts_s: np.ndarray
    as_run: bool = False

    def where(self, mask: np.ndarray) -> Servers:
        return Servers(self.rows[mask], self.alone_s[mask], self.prompts_s[mask], self.as_run)

    @property
    def measured_s(self) -> np.ndarray:
        return self.rows.silicon_tpot_ms.to_numpy() / 1e3

    def predicted_s(self, scalars: Sequence[float]) -> np.ndarray:
        iteration_s, request_s, third = scalars
        factor, share = (third, 1.0) if self.as_run else (1.0, third)
        return factor * self.alone_s + iteration_s + request_s * self.rows.together.to_numpy() + share * self.prompts_s

    def errors(self, scalars: Sequence[float]) -> np.ndarray:
        return self.predicted_s(scalars) / self.measured_s - 1

    def fit(self) -> tuple[float, float, float]:
        """(a, b, share), or with as_run (a, b, factor), with the least relative error, fitted robustly."""
        found = least_squares(self.errors, START, bounds=(0, (1, 1, 2)), x_scale=START, loss="soft_l1", f_scale=0.05).x
        return float(found[0]), float(found[1]), float(found[2])

    def held_out(self, column: str) -> np.ndarray:
        """Error of each row by a fit without the rows of the same value of `column`."""
        errors = np.full(len(self.rows), np.nan)
        values = self.rows[column].to_numpy()
        for value in np.unique(values):
            out = values == value
            if out.all():
                raise ValueError(f"all rows have {column} {value}; nothing is left to fit")
            errors[out] = self.where(out).errors(self.where(~out).fit())
        return errors


def read_servers(path: Path, models: dict[str, ModelSpec], gpu: GpuSpec) -> Servers:
    """The rows of these models in bfloat16. models: name in the table's column model_path -> shape.

    Raises ValueError, one line, if the file is not this table or the GPU has no kernels.
    """
    try:
        table = pd.read_csv(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; it is aiconfigurator's table of measured H100 servers") from None
    if missing := [name for name in COLUMNS if name not in table]:
        raise ValueError(f"{path} has no column {missing[0]}")
    rows = table[table.model_path.isin(models) & table.precision.isna()].reset_index(drop=True)
    if gpu.kernels is None:
        raise ValueError(f"hardware {gpu.name} has no kernels; published servers are compared with those of hardware=h100")
    if rows.empty:
        raise ValueError(f"{path} has no row in bfloat16 of {', '.join(models)}")
    alone, prompts, together = [], [], []
    for row in rows.itertuples():
        model, gpus = models[row.model_path], int(row.tp_size)
        costs = ModelCosts(model, gpu.kernels, gpus, gpu.memory_bytes_per_s)
        room = kv_tokens(replace(gpu, gpus=gpus), model) // int(row.isl + row.osl)
        clients, each = min(int(row.concurrency), max(1, room)), row.isl + row.osl / 2
        together.append(clients)
        alone.append(costs.iteration_s(clients, clients * each))
        others = clients - 1
        adds_s = costs.iteration_s(others, others * each, int(row.isl)) - costs.iteration_s(others, others * each) if others else 0.0
        prompts.append(others / (row.osl - 1) * adds_s)
    return Servers(rows.assign(together=together), np.array(alone), np.array(prompts))


def as_markdown(servers: Servers, as_run: Servers | None = None) -> str:
    """The tables: error by engine and split, and signed errors. as_run: the same rows with prompts as the engines run them."""
    lines = _table(servers, "share")
    if as_run is not None:
        lines += ["", *_table(as_run, "factor")]
    for name in sorted(servers.rows.backend.unique()):
        part = servers.where((servers.rows.backend == name).to_numpy())
        lines += ["", *_misses(name, part, part.fit())]
    return "\n".join(lines)


def _table(servers: Servers, third: str) -> list[str]:
    lines = [
        f"| rows | a, b, {third} | fit on all | held out by isl | by tp | by concurrency | held out, mean |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (*sorted(servers.rows.backend.unique()), "all engines"):
        part = servers if name == "all engines" else servers.where((servers.rows.backend == name).to_numpy())
        scalars = part.fit()
        out = {column: part.held_out(column) for column in SPLITS}
        shown = " | ".join(f"{_mean(out[column]):.1%}" for column in SPLITS)
        overall = _mean(np.concatenate(list(out.values())))
        models = ", ".join(sorted({path.rpartition("/")[2] for path in part.rows.model_path}))
        lines.append(
            f"| {name}: {len(part.rows)} rows, {models} | {scalars[0] * 1e3:.2f} ms, {scalars[1] * 1e6:.0f} µs, {scalars[2]:.2f} "
            f"| {_mean(part.errors(scalars)):.1%} | {shown} | {overall:.1%} |"
        )
    return lines


def _misses(name: str, part: Servers, scalars: Sequence[float]) -> list[str]:
    """Signed error by tp and concurrency, of the fit on all rows of one engine."""
    errors = part.rows.assign(error=part.errors(scalars)).pivot_table(index="tp_size", columns="concurrency", values="error")
    lines = [f"{name}, mean signed error by GPUs (rows) and clients (columns):", ""]
    lines += ["| tp | " + " | ".join(f"{clients:.0f}" for clients in errors.columns) + " |", "|---" * (len(errors.columns) + 1) + "|"]
    for tp, row in errors.iterrows():
        lines.append(f"| {tp} | " + " | ".join("" if np.isnan(value) else f"{value:+.0%}" for value in row) + " |")
    return lines


def _mean(errors: np.ndarray) -> float:
    return float(np.abs(errors).mean())
