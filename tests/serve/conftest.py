from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cluster(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    from abkt.serve import LocalCluster, LocalClusterSpec

    with LocalCluster(LocalClusterSpec(tiny_model, pool_tokens=1024, max_batch=4), tmp_path_factory.mktemp("logs")) as running:
        yield running
