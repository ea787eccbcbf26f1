"""Workers that share a device compute one at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from abkt.serve import LocalCluster, LocalClusterSpec
from abkt.serve.worker.device_lock import DeviceLock
from tests.serve.test_engine import generate
from tests.serve.test_real_cluster import INT8, SLOW_SLO, UNLIMITED, prompts

TAKE = """
import sys, time
from pathlib import Path
from abkt.serve.worker.device_lock import DeviceLock
with DeviceLock(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(600)
"""


def test_one_worker_holds_the_device_at_a_time_and_waits_for_its_enqueued_work(tmp_path: Path) -> None:
    inside: list[str] = []
    most: list[int] = []

    def work(name: str) -> None:
        lock = DeviceLock(tmp_path / "device.lock", finish=lambda: inside.remove(name))  # its work ends only at this point
        for _ in range(50):
            with lock:
                inside.append(name)
                most.append(len(inside))
                time.sleep(0.0005)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 150


def test_a_killed_process_releases_the_lock(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", TAKE, str(tmp_path / "device.lock")], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"mine\n"
        process.kill()
    with DeviceLock(tmp_path / "device.lock"):
        pass


def test_paced_workers_cannot_share_a_device(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shares_device goes with compute=real"):
        LocalClusterSpec(tmp_path, paced=tmp_path / "profile.json", shares_device=True)


@pytest.mark.slow
def test_a_cluster_that_shares_a_device_gives_the_same_first_tokens(tiny_model: Path, tmp_path: Path) -> None:
    given = prompts(lengths=(37, 200, 500, 64), gap_s=0.02)
    with LocalCluster(LocalClusterSpec(tiny_model, pool_tokens=2048, shares_device=True), tmp_path) as cluster:
        run = cluster.run(given, INT8, UNLIMITED, SLOW_SLO)
        assert (tmp_path / "device.lock").exists()
    assert {r.outcome for r in run.requests} == {"completed"}
    for p in given:
        assert run.outputs[p.request_id][0] == generate(tiny_model, list(p.tokens), 1)[0]
