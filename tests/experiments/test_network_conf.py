"""Networks of conf/: what their capacities are, and a drive's recording."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import pytest

from experiments.lib import usage
from experiments.lib.compose import compose
from experiments.lib.config import read
from experiments.lib.network import DriveConfig, NetworkConfig, read_drive
from experiments.lib.paths import conf_dir
from experiments.lib.simulation import SimulateConfig, build_simulation
from experiments.lib.workload import read_workload
from experiments.verbs.replay import ReplayConfig

ROWS = """app,file,t_s,dl_kbps
Netflix/Driving/x,a.csv,0,8000
Download/Driving,b.csv,0.0,8000
Download/Driving,b.csv,1.0,16000
Download/Driving,b.csv,1.5,24000
Download/Driving,b.csv,3.0,0
Download/Static,c.csv,0,800
Download/Static,c.csv,1,1600
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "drive.csv"
    path.write_text(ROWS)
    return path


def network(*overrides: str) -> NetworkConfig | DriveConfig:
    values = {**compose("replay", overrides).config, "out": "out"}
    return read(ReplayConfig, values).network


@pytest.mark.parametrize("choice", sorted(set(usage.choices("network")) - {"wan_5g"}))
def test_a_replay_has_the_network_that_it_names(choice: str) -> None:
    """Nothing in the verb's own file changes what the network's file says."""
    made = network(f"network={choice}")
    assert isinstance(made, NetworkConfig)
    own = {key: value for key, value, _ in usage.keys(conf_dir() / "network" / f"{choice}.yaml")}
    assert own.keys() == {field.name for field in fields(made)}
    assert float(own["gbps"].removeprefix(".")) == made.gbps


@pytest.mark.parametrize(
    ("choice", "mbits"),
    [
        ("2m", {0: 2}),
        ("10m", {0: 10}),
        ("1g", {0: 1000}),
        ("5g", {0: 5000}),
        ("unlimited", {0: math.inf}),
        ("wan_drop", {0: 100, 15: 2, 29: 2, 30: 100, 75: 2}),
        ("wan_gradual", {0: 50, 10: 40, 40: 10, 70: 40, 80: 50}),
        ("wan_oscillating", {0: 50, 5: 5, 10: 50}),
        ("wan_40ms", {0: 200}),
    ],
)
def test_scenarios_have_the_rates_of_their_names(choice: str, mbits: dict[int, float]) -> None:
    capacity = network(f"network={choice}").capacity()
    assert {at_s: capacity.at(at_s + 1e-6)[0] * 8e-6 for at_s in mbits} == pytest.approx(mbits)


def test_conditions_beyond_bandwidth() -> None:
    assert network("network=wan_loss").loss == 0.01
    assert network("network=wan_40ms").delay_s == 0.04
    edge = network("network=edge")
    assert (edge.gbps, edge.delay_s, edge.egress_usd_per_gb) == (0.02, 0.03, 0.09)
    assert network("network=incast").senders == 4


def test_a_drive_is_a_second_by_second_link_of_the_given_mean(table: Path) -> None:
    """8, then (16 + 24) / 2, the same for the second that is missing, and a floor where nothing came: 12 Mbit/s on average."""
    capacity = read_drive(table, "", mean_bytes_per_s=1.2e6, floor=0.01)
    assert capacity.starts_s == (0.0, 1.0, 2.0, 3.0)
    assert capacity.period_s == 4.0
    assert capacity.bytes_per_s == pytest.approx((0.8e6, 2e6, 2e6, 12e3))
    assert read_drive(table, "c.csv", 1.0, 0.01).bytes_per_s == pytest.approx((2 / 3, 4 / 3))


def test_a_drive_through_the_configuration(table: Path) -> None:
    made = network("network=wan_5g", f"network.path={table}", "network.gbps=0.0096")
    assert isinstance(made, DriveConfig)
    assert made.capacity().bytes_per_s[1] == pytest.approx(2e6)


@pytest.mark.parametrize(
    ("text", "drive", "said"),
    [
        (ROWS.replace("dl_kbps", "speed"), "", "lacks the column dl_kbps"),
        (ROWS, "z.csv", "has no drive 'z.csv'"),
        (ROWS.replace("Download/Driving", "Download/Static"), "", "has no drive ''"),
        ("app,file,t_s,dl_kbps\nDownload/Driving,a.csv,0,0\n", "", "nothing was downloaded in drive a.csv"),
        ("", "", "cannot be read as a table"),
    ],
)
def test_a_missing_drive_is_one_line(tmp_path: Path, text: str, drive: str, said: str) -> None:
    path = tmp_path / "drive.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        read_drive(path, drive, 1.0, 0.01)
    assert "\n" not in str(caught.value)


def test_a_lone_simulated_transfer_takes_three_delays(curves: Path) -> None:
    """The offer's, the grant's, and the last byte's; the acknowledgement's holds up the next transfer alone."""
    exposed = []
    for delay_s in (0.0, 0.03):
        overrides = ["network=edge", f"network.delay_s={delay_s}", "workload=poisson", "workload.requests=1", f"curves={curves}"]
        config = read(SimulateConfig, {**compose("simulate", [*overrides, "bitrate=int4"]).config, "out": "out"})
        requests, _ = read_workload(config.workload, config.seed)
        (record,) = build_simulation(config, requests).run().requests
        exposed.append(record.wire_exposed_s)
    assert exposed[1] - exposed[0] == pytest.approx(0.09)


def test_the_simulated_cost_of_a_request_includes_egress(curves: Path) -> None:
    costs = []
    for price in (0.0, 0.09):
        overrides = ["network=edge", f"network.egress_usd_per_gb={price}", "workload=poisson", "workload.requests=3", f"curves={curves}"]
        config = read(SimulateConfig, {**compose("simulate", overrides).config, "out": "out"})
        requests, _ = read_workload(config.workload, config.seed)
        costs.append(build_simulation(config, requests).run().requests)
    for free, priced in zip(*costs, strict=True):
        assert priced.cost_usd - free.cost_usd == pytest.approx(priced.wire_bytes * 0.09e-9)
