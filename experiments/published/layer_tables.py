"""Layer tables that others have measured, as a Profile: LLMServingSim 2's profiler (MIT).

A folder tpN has one CSV of microseconds for each family: dense.csv (layer, tokens), per_sequence.csv (layer, sequences: lm_head, sampler)
and attention.csv (prefill_chunk, kv_prefill, n_decode, kv_decode). In a mixture, moe.csv has (tokens, activated_experts). A pass is

    overhead + layers x (dense layers at its tokens + attention) + per-sequence layers
from straight lines between the measured numbers of tokens. kv_decode is the context of each decoding request.

The error of each fit is measured on every fifth row of attention.csv, and for the dense layers at every second number of tokens, from the
others.

Not modelled: requests of unequal context (skew.csv), collectives where the tables have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from abkt.profile.kernels import touched_experts
from abkt.profile.model_costs import PassCosts
from abkt.spec import ModelSpec

ONCE = {"embedding", "final_layernorm"}  # layers that a pass has once, not in each block
TWICE = {"layernorm"}  # layers that a block has before attention and before the MLP
HELD_OUT = 5
COLUMNS = {
    "dense": ("layer", "tokens", "time_us"),
    "per_sequence": ("layer", "sequences", "time_us"),
    "attention": ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"),
}


@dataclass(frozen=True, eq=False)
class LayerTables(PassCosts):
    """The tables as seconds of a pass.

    block, once: (tokens, seconds) of all dense layers of one block, and of those that a pass has once. sequence: (sequences, seconds) of
    the lm_head and the sampler. prompt, decode: coefficients of attention. experts: a mixture's layer, as (experts touched, seconds) at few
    tokens, and (tokens, further seconds) with all experts touched. errors: mean relative error of each fit on rows held out.
    """

    model: ModelSpec
    overhead_s: float
    block: tuple[np.ndarray, np.ndarray]
    once: tuple[np.ndarray, np.ndarray]
    sequence: tuple[np.ndarray, np.ndarray]
    prompt: np.ndarray
    decode: np.ndarray
    experts: tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None
    errors: dict[str, float]

    def iteration_s(self, batch: int, context: float, chunk: int = 0, before: int = 0) -> float:
        attention_s = float(self.decode @ _decode_work(batch, context / batch)) if batch else 0.0
        attention_s += float(self.prompt @ _prompt_work(chunk, before)) if chunk else 0.0
        return self.pass_s(batch + chunk) + self.model.layers * attention_s + _line(self.sequence, batch + (1 if chunk else 0))

    def pass_s(self, tokens: float) -> float:
        seconds = self.overhead_s + self.model.layers * _line(self.block, tokens) + _line(self.once, tokens)
        if self.experts is not None:
            m = self.model
            touched_s = _line(self.experts[0], touched_experts(m.experts, m.experts_active, tokens))
            seconds += (m.layers - m.dense_layers) * (touched_s + _line(self.experts[1], tokens))
        return seconds

    @property
    def error(self) -> float:
        return max(self.errors.values())


def read_layer_tables(folder: Path, model: ModelSpec, overhead_s: float = 0.0) -> LayerTables:
    """The tables in a folder. overhead_s: seconds of a pass besides its layers, which such tables do not have.

    Raises ValueError, one line, if a file or a column is missing.
    """
    tables = {name: _read(folder / f"{name}.csv", columns) for name, columns in COLUMNS.items()}
    dense, sequence, attention = tables["dense"], tables["per_sequence"], tables["attention"]
    once = dense.layer.isin(ONCE)
    block = _sum(dense[~once], "tokens")
    prompts = attention[(attention.n_decode == 0) & (attention.prefill_chunk > 0)]
    decodes = attention[(attention.prefill_chunk == 0) & (attention.n_decode > 0)]
    prompt, prompt_error = _fit(prompts, np.stack(_prompt_work(*_floats(prompts, "prefill_chunk", "kv_prefill")), axis=1))
    decode, decode_error = _fit(decodes, np.stack(_decode_work(*_floats(decodes, "n_decode", "kv_decode")), axis=1))
    moe = folder / "moe.csv"
    if moe.is_file() != bool(model.experts):
        has = "has" if moe.is_file() else "has no"
        raise ValueError(
            f"{folder} {has} moe.csv, and model {model.name} has {model.experts} experts; choose the tables' model with model="
        )
    return LayerTables(
        model,
        overhead_s,
        block,
        _sum(dense[once], "tokens"),
        _sum(sequence, "sequences"),
        prompt,
        decode,
        _experts(_read(moe, ("tokens", "activated_experts", "time_us"))) if moe.is_file() else None,
        {"dense": _interpolation_error(block), "prompt attention": prompt_error, "decode attention": decode_error},
    )


def _read(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} does not exist; a folder of layer tables has dense.csv, per_sequence.csv and attention.csv") from None
    if missing := [name for name in columns if name not in table]:
        raise ValueError(f"{path} has no column {missing[0]}")
    if len(table) < HELD_OUT:
        raise ValueError(f"{path} has {len(table)} rows; at least {HELD_OUT} are needed")
    return table


def _sum(table: pd.DataFrame, variable: str) -> tuple[np.ndarray, np.ndarray]:
    """(values, seconds of all layers together at each), at the values that every layer has."""
    counted = table.assign(time_us=table.time_us * np.where(table.layer.isin(TWICE), 2, 1))
    wide = counted.pivot_table(index=variable, columns="layer", values="time_us").dropna()
    if wide.empty:
        return np.array([0.0, 1.0]), np.zeros(2)
    return wide.index.to_numpy(float), wide.sum(axis=1).to_numpy() / 1e6


def _experts(table: pd.DataFrame) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    first = table.sort_values("tokens").groupby("activated_experts").time_us.first() / 1e6
    everything = table[table.activated_experts == table.activated_experts.max()].sort_values("tokens")
    grown = everything.time_us.to_numpy() / 1e6 - first.iloc[-1]
    return (first.index.to_numpy(float), first.to_numpy()), (everything.tokens.to_numpy(float), grown)


def _line(points: tuple[np.ndarray, np.ndarray], at: float) -> float:
    """A straight line between two points; the last one continues beyond them, and below the first it is flat."""
    x, y = points
    if at <= x[-1] or len(x) < 2:
        return float(np.interp(at, x, y))
    return float(y[-1] + (y[-1] - y[-2]) / (x[-1] - x[-2]) * (at - x[-1]))


def _floats(table: pd.DataFrame, *names: str) -> list[np.ndarray]:
    return [table[name].to_numpy(float) for name in names]


def _prompt_work(chunk: np.ndarray | float, before: np.ndarray | float) -> list[np.ndarray]:
    """Of one layer: 1, prompt tokens, tokens before them, query-key pairs of the causal mask."""
    chunk, before = np.asarray(chunk, float), np.asarray(before, float)
    return [np.ones_like(chunk), chunk, before, chunk * (before + chunk / 2)]


def _decode_work(requests: np.ndarray | float, context: np.ndarray | float) -> list[np.ndarray]:
    """Of one layer: 1, requests, tokens of KV."""
    requests = np.asarray(requests, float)
    return [np.ones_like(requests), requests, requests * np.asarray(context, float)]


def _fit(table: pd.DataFrame, work: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients >= 0 in seconds with the least relative error on four rows of five, and the mean error on the fifth."""
    from scipy.optimize import nnls

    seconds = table.time_us.to_numpy() / 1e6
    rows = np.arange(len(seconds))
    held, kept = rows % HELD_OUT == HELD_OUT - 1, rows % HELD_OUT != HELD_OUT - 1
    scale = np.abs(work).max(axis=0)
    found = nnls(work[kept] / scale / seconds[kept, None], np.ones(kept.sum()))[0] / scale
    return found, float(np.abs(work[held] @ found / seconds[held] - 1).mean())


def _interpolation_error(points: tuple[np.ndarray, np.ndarray]) -> float:
    """Mean relative error of every second point, from a line between its neighbours."""
    x, y = points
    inner = np.arange(1, len(x) - 1, 2)
    if not len(inner):
        return 0.0
    rest = np.setdiff1d(np.arange(len(x)), inner)
    return float(np.abs(np.interp(x[inner], x[rest], y[rest]) / y[inner] - 1).mean())
