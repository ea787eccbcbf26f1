"""`python -m experiments.figures.collect NAME=FOLDER …`: the data of a figure from a folder of results, as a small table in data/figures.

NAME is bandwidth, routing, roles, cost, scale (folders of `abkt sweep`), quality, kernels (of `abkt bench kernels`), adaptation (a folder
with one of `abkt replay` for each policy), validation (of `abkt validate`) or layout (of `abkt reproduce flowkv`). data=DIR: folder of the
tables.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from experiments.lib.errors import exit_code
from experiments.lib.paths import ROOT
from experiments.lib.results import read_json, read_records
from experiments.lib.stamps import write_table_stamped

if TYPE_CHECKING:
    import pandas as pd

Found = tuple["pd.DataFrame", dict[str, Any], dict[str, Any]]  # rows, manifest, facts
CODED = re.compile(r"^(?P<verb>encode|expand)_(?P<bits>\d+)bit_gbps/(?P<tokens>\d+)x(?P<block>\d+)$")
LINE_BITS = "4"  # bits per value of the break-even line


def sweep(folder: Path) -> Found:
    """The table of a sweep, without the quantiles that no figure shows."""
    rows = read_records(folder / "sweep.parquet")
    kept = [name for name in rows if not name.endswith((".p50", ".p90")) and name != "point"]
    return rows[kept], read_json(folder / "manifest.json"), {}


def bandwidth(folder: Path) -> Found:
    rows, manifest, _ = sweep(folder)
    return rows, manifest, {"break_even_gbps": break_even_gbps(rows, read_json(Path(manifest["config"]["hardware"]["profile"])))}


def break_even_gbps(rows: pd.DataFrame, profile: Mapping[str, Any]) -> float:
    """The bandwidth (1 - 1/r) S, in Gbit/s, below which a serial codec wins.

    r: raw bytes / wire bytes of int4 in the sweep. 1/S: extra seconds per raw byte to encode and expand at that depth instead of copying,
    from the profile's cost of a token.
    """
    done = rows[(rows.bitrate == f"int{LINE_BITS}") & (rows.error == "")]
    model = profile["model"]
    kv_bytes = 2 * model["layers"] * model["kv_heads"] * model["head_dim"] * 2

    def token_s(stage: str) -> float:
        fit = profile["fits"][stage]
        return float(dict(zip(fit["features"], fit["coefficients"], strict=True)).get("tokens", 0.0))

    longer_s = sum(token_s(f"{side}/{LINE_BITS}") - token_s(f"{side}/raw") for side in ("encode", "expand"))
    return float((1 - done.wire_bytes.sum() / done.raw_bytes.sum()) * kv_bytes / longer_s * 8 / 1e9)


def quality(folder: Path) -> Found:
    import pandas as pd

    path = folder / "rates.csv"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; {folder} is not a folder of `abkt quality`")
    columns = ["kind", "method", "rate", "samples", "of_raw", "dnll", "dnll_low", "dnll_high", "nmse"]
    return pd.read_csv(path, dtype={"rate": str})[columns], read_json(folder / "manifest.json"), {}


def kernels(folder: Path) -> Found:
    import pandas as pd

    data = read_json(folder / "kernels.json")
    rows = [
        {"verb": m["verb"], "bits": int(m["bits"]), "tokens": int(m["tokens"]), "gbps": row["value"], "copy_gbps": row["yardstick"]}
        for row in data["rows"]
        if (m := CODED.match(row["name"])) and m["block"] == "16"
    ]
    about = data["facts"]
    device = about["gpu"] if about["gpu"] != "none" else f"{about['cpu']}, one core"
    return pd.DataFrame(rows), {"verb": "bench", "command": "abkt bench kernels", "versions": {"torch": about["torch"]}}, {"device": device}


def adaptation(folder: Path) -> Found:
    import pandas as pd

    parts, manifest = [], {}
    for path in sorted(folder.glob("*/transfers.parquet")):
        rows = read_records(path)
        rows = rows[rows.outcome == "completed"]
        columns = [
            "request_id",
            "start_s",
            "finish_s",
            "wire_bytes",
            "raw_bytes",
            "bits_per_value",
            "estimate_bytes_per_s",
            "distortion_final",
        ]
        parts.append(rows[columns].assign(policy=path.parent.name))
        manifest = read_json(path.parent / "manifest.json")
    if not parts:
        raise ValueError(f"{folder} has no folder with a transfers.parquet; run `abkt replay bitrate=NAME out={folder}/NAME`")
    network = manifest["config"]["network"]
    rates = [network["gbps"] * share * 1e9 / 8 for share in network["share"]]
    return pd.concat(parts), manifest, {"link": {"starts_s": network["starts_s"], "bytes_per_s": rates, "period_s": network["period_s"]}}


def stored(name: str) -> Callable[[Path], Found]:
    """A table that is stored as the verb has written it."""
    return lambda folder: (read_records(folder / f"{name}.parquet"), read_json(folder / "manifest.json"), {})


KINDS: dict[str, Callable[[Path], Found]] = {
    "bandwidth": bandwidth,
    "routing": sweep,
    "roles": sweep,
    "cost": sweep,
    "scale": sweep,
    "quality": quality,
    "kernels": kernels,
    "adaptation": adaptation,
    "validation": stored("validation"),
    "layout": stored("layout"),
}


def collect(name: str, folder: Path, data: Path) -> Path:
    """Write the table of a name; returns its path. Raises ValueError, one line, for an unknown name or a folder of another kind."""
    if name not in KINDS:
        raise ValueError(f"no table {name}; there are {', '.join(KINDS)}")
    rows, manifest, facts = KINDS[name](folder)
    write_table_stamped(
        data / f"{name}.parquet", pa.Table.from_pandas(rows.reset_index(drop=True), preserve_index=False), manifest, **facts
    )
    return data / f"{name}.parquet"


def main(given: Sequence[str]) -> int:
    def work() -> None:
        pairs = dict(argument.partition("=")[::2] for argument in given)
        data = Path(pairs.pop("data", ROOT / "data" / "figures"))
        if not pairs or not all(pairs.values()):
            raise ValueError(f"give NAME=FOLDER; NAME is one of {', '.join(KINDS)}")
        for name, folder in pairs.items():
            print(collect(name, Path(folder), data))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
