"""Published transfer times, described by two constants: seconds = alpha x calls + bytes / beta.

* **Point to point**: one call for each size, as Vidur measured NCCL send and receive (MIT).
* **PD transfers**: Mooncake's measurements of two stacks (Apache-2.0), TP8 to TP8 over RoCE, one call for each layer, bytes from the
  models' shapes. alpha and beta are fitted on one stack and checked on the other.

Not modelled: other traffic on the link; how a stack splits a layer into pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

LAYERS = {"Qwen3-8B": 36, "Qwen3-235B-A22B-Instruct-2507 bf16": 94}
# TP8 holds every KV head of Qwen3-8B once (8 heads), and each of Qwen3-235B twice (4 heads).
TOKEN_BYTES = {"Qwen3-8B": 147_456, "Qwen3-235B-A22B-Instruct-2507 bf16": 2 * 192_512}
PD = "mooncake_pd_kv_transfer_measured.csv"


@dataclass(frozen=True, slots=True)
class FittedLink:
    """alpha_s: seconds of a call. beta_bytes_per_s: bandwidth. error: mean relative error over `rows` rows."""

    alpha_s: float
    beta_bytes_per_s: float
    error: float
    rows: int


def fit_link(calls: np.ndarray, sizes: np.ndarray, seconds: np.ndarray) -> FittedLink:
    """The fit of alpha and beta with the least relative error (soft L1)."""
    start = np.log([max(seconds.min() / calls.max(), 1e-9) / 2, (sizes / seconds).max()])

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.log(_seconds(np.exp(x), calls, sizes) / seconds)

    alpha, beta = np.exp(least_squares(residuals, start, loss="soft_l1", f_scale=0.05).x)
    return FittedLink(float(alpha), float(beta), error_of((alpha, beta), calls, sizes, seconds), len(seconds))


def error_of(link: tuple[float, float], calls: np.ndarray, sizes: np.ndarray, seconds: np.ndarray) -> float:
    return float(np.abs(_seconds(link, calls, sizes) / seconds - 1).mean())


def _seconds(link: tuple[float, float] | np.ndarray, calls: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return link[0] * calls + sizes / link[1]


def point_to_point(folder: Path) -> Iterator[tuple[str, FittedLink]]:
    """(machine and place, fit) for each of Vidur's send and receive files."""
    for path in sorted(folder.glob("vidur_net_*_send_recv.parquet")):
        table = pd.read_parquet(path)
        for devices, rows in table.groupby("devices_per_node"):
            place = "between nodes" if devices == 1 else "within a node"
            yield f"{_machine(path)}, {place}", _fit_one_call(rows["size"], rows["time_stats.send_recv.median"])
    for path in sorted(folder.glob("vidur_old_*_p2p_*.parquet")):
        table = pd.read_parquet(path)
        rows = table[(table.num_tokens > 0) & (table.num_tensor_parallel_workers == 1)]
        place = "between nodes" if "inter" in path.name else "within a node"
        yield f"{_machine(path)} (older), {place}", _fit_one_call(rows.n_embd * rows.num_tokens * 2, rows["time_stats.send_recv.median"])


def pd_transfers(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """stack -> (calls, bytes, seconds) of its transfers. Raises ValueError, one line, for a model whose shape is not listed here."""
    path = folder / PD
    if not path.is_file():
        raise ValueError(f"{path} does not exist; it is Mooncake's table of measured PD transfers")
    table = pd.read_csv(path)
    if unknown := set(table.model) - set(LAYERS):
        raise ValueError(f"{path} has the model {min(unknown)}; the shapes of {', '.join(LAYERS)} are known")
    found = {}
    for stack, rows in table.groupby("stack", sort=False):
        calls = rows.model.map(LAYERS).to_numpy(float)
        sizes = rows.model.map(TOKEN_BYTES).to_numpy(float) * rows.prompt_tokens.to_numpy(float)
        found[str(stack)] = (calls, sizes, rows.transfer_ms.to_numpy(float) / 1e3)
    return found


def as_markdown(folder: Path) -> str:
    lines = ["| point to point | alpha, µs | beta, GB/s | mean error | rows |", "|---|---|---|---|---|"]
    for name, link in point_to_point(folder):
        lines.append(f"| {name} | {link.alpha_s * 1e6:.1f} | {link.beta_bytes_per_s / 1e9:.1f} | {link.error:.1%} | {link.rows} |")
    lines += [
        "",
        "| PD transfers: fitted on | calls | alpha, µs | beta, GB/s | own error | error on the other stack |",
        "|---|---|---|---|---|---|",
    ]
    stacks = pd_transfers(folder)
    for counted in ("one a layer", "one a transfer"):
        for stack, (calls, sizes, seconds) in stacks.items():
            link = fit_link(_calls(counted, calls), sizes, seconds)
            fitted = (link.alpha_s, link.beta_bytes_per_s)
            others = [error_of(fitted, _calls(counted, c), b, s) for name, (c, b, s) in stacks.items() if name != stack]
            shown = f"{link.alpha_s * 1e6:.1f} | {link.beta_bytes_per_s / 1e9:.1f} | {link.error:.1%} | {np.mean(others):.1%}"
            lines.append(f"| {stack} | {counted} | {shown} |")
    return "\n".join(lines)


def _calls(counted: str, layers: np.ndarray) -> np.ndarray:
    return layers if counted == "one a layer" else np.ones_like(layers)


def _fit_one_call(sizes: pd.Series, milliseconds: pd.Series) -> FittedLink:
    kept = (milliseconds > 0).to_numpy()
    size, seconds = sizes.to_numpy(float)[kept], milliseconds.to_numpy(float)[kept] / 1e3
    return fit_link(np.ones_like(size), size, seconds)


def _machine(path: Path) -> str:
    return " ".join(path.stem.removesuffix("_send_recv").split("_")[2:]).replace(" p2p intra node", "").replace(" p2p inter node", "")
