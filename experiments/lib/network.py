"""The network of a run, from conf/network/: a schedule of rates, or a recording of a phone's link.

`abkt simulate` does not model loss, and it takes the number of prefill nodes from conf/cluster instead of senders.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Discriminator, Tag

from abkt.capacity import Capacity
from abkt.ranges import bound
from experiments.lib.config import kind_of

if TYPE_CHECKING:
    import pandas as pd

LEAST_GBPS, MOST_GBPS = 1e-6, 1e6  # 1 kbit/s, and a thousand times the fastest NIC


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """delay_s: propagation delay, each way. loss: share of packets lost, each way. egress_usd_per_gb: price of 10^9 wire bytes.

    senders: prefill nodes of a replay; with more than one they share the decode node's link.
    """

    delay_s: float = 0.0
    loss: float = 0.0
    egress_usd_per_gb: float = 0.0
    senders: int = 1

    def __post_init__(self) -> None:
        bound(self, "delay_s", least=0, below=60)
        bound(self, "loss", least=0, below=1)
        bound(self, "egress_usd_per_gb", least=0)
        bound(self, "senders", least=1, most=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig(Conditions):
    """The link of every node: gbps (10^9 bits per second) times share[i] from starts_s[i] on, repeated after period_s."""

    gbps: float
    share: tuple[float, ...]
    starts_s: tuple[float, ...]
    period_s: float

    def __post_init__(self) -> None:
        Conditions.__post_init__(self)
        bound(self, "gbps", least=LEAST_GBPS, most=MOST_GBPS, infinite=True)
        bound(self, "share", least=1e-6, most=1e6)
        bound(self, "starts_s", least=0)
        bound(self, "period_s", above=0, infinite=True)
        self.capacity()

    def capacity(self) -> Capacity:
        return Capacity(self.starts_s, tuple(self.gbps * share * 1e9 / 8 for share in self.share), self.period_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveConfig(Conditions):
    """The rate of a phone's downloads in each second of a recording, scaled to a mean of gbps; see read_drive."""

    gbps: float
    path: Path
    drive: str
    floor: float

    def __post_init__(self) -> None:
        Conditions.__post_init__(self)
        bound(self, "gbps", least=LEAST_GBPS, most=MOST_GBPS)
        bound(self, "floor", above=0, below=1)

    def capacity(self) -> Capacity:
        return read_drive(self.path.expanduser(), self.drive, self.gbps * 1e9 / 8, self.floor)


Network = Annotated[
    Annotated[NetworkConfig, Tag("NetworkConfig")] | Annotated[DriveConfig, Tag("DriveConfig")],
    Discriminator(lambda value: kind_of(value, "path", "DriveConfig", "NetworkConfig")),
]


def network_files(network: NetworkConfig | DriveConfig) -> list[Path]:
    """The files that the network reads."""
    return [network.path.expanduser()] if isinstance(network, DriveConfig) else []


def read_drive(path: Path, drive: str, mean_bytes_per_s: float, floor: float) -> Capacity:
    """A recording as a capacity over time, second by second, repeated after its end.

    Parameters
    ----------
    path : Parquet or CSV with the columns app, file, t_s and dl_kbps.
    drive : name of the recording in the column `file`; empty: the first download while driving.
    mean_bytes_per_s : mean that the recording is scaled to.
    floor : least share of the mean in any second, because a link of no bytes cannot be simulated.

    A second with several rows has their mean; a second without rows is like the one before.

    Raises
    ------
    ValueError
        One line, if the table or the recording cannot be read.
    """
    import numpy as np

    table = _table(path)
    if not drive:
        table = table[table["app"].astype(str).str.startswith("Download/Driving")]
        drive = str(table["file"].iloc[0]) if len(table) else ""
    rows = table[table["file"].astype(str) == drive]
    if rows.empty:
        raise ValueError(f"{path} has no drive {drive!r}; network.drive is a name of its column `file`, or empty for the first download")
    kbps = rows["dl_kbps"].astype(float).groupby(rows["t_s"].astype(float).floordiv(1)).mean()
    seconds = range(int(kbps.index.min()), int(kbps.index.max()) + 1)
    kbps = kbps.reindex(seconds).ffill()
    if not kbps.mean() > 0:
        raise ValueError(f"{path}: nothing was downloaded in drive {drive}")
    rates = np.maximum(kbps.to_numpy() / kbps.mean(), floor) * mean_bytes_per_s
    return Capacity(tuple(float(i) for i in range(len(rates))), tuple(rates.tolist()), float(len(rates)))


def _table(path: Path) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        raise ValueError(f"network.path: {path} does not exist; it is the table of a drive, which does not come with abkt")
    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a table: {' '.join(str(error).split())}") from None
    if missing := {"app", "file", "t_s", "dl_kbps"} - set(table.columns):
        raise ValueError(f"{path} lacks the column {min(missing)}; a drive has app, file, t_s and dl_kbps")
    return table
