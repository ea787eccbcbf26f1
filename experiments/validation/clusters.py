"""The real clusters that the conditions of a validation run on. Each is started when it is first needed and runs until the end."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from abkt.serve import LocalCluster, LocalClusterSpec
from experiments.lib.network import Network
from experiments.lib.profiling import cluster_of
from experiments.lib.real_network import real_network
from experiments.validation.condition import Condition

Key = tuple[int, int, Network | None]


class Clusters:
    """A context manager that ends the processes and namespaces of all clusters. spec: settings of every cluster, without its numbers of
    workers.

    Idle workers wait for their frontend. They use memory, but no core.
    """

    def __init__(self, spec: LocalClusterSpec, folder: Path, seed: int) -> None:
        self._spec, self._folder, self._seed = spec, folder, seed
        self._made: dict[Key, LocalCluster] = {}
        self._resources = ExitStack()

    def __enter__(self) -> Clusters:
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._resources.__exit__(*error)  # type: ignore[arg-type]

    def of(self, condition: Condition) -> LocalCluster:
        """The cluster of a condition, with every worker in its first role."""
        key = (condition.prefill, condition.decode, condition.network if condition.namespaces else None)
        if key not in self._made:
            self._made[key] = self._start(condition)
        self._made[key].restore()
        return self._made[key]

    def _start(self, condition: Condition) -> LocalCluster:
        logs = self._folder / "logs" / f"{len(self._made)}-{condition.cluster.lower()}"
        logs.mkdir(parents=True, exist_ok=True)
        spec = condition.spec(self._spec)
        if not condition.namespaces:
            return self._resources.enter_context(cluster_of(spec, logs))
        over = self._resources.enter_context(real_network(condition.network, "tbf", self._seed, spec.prefill, spec.decode))
        return self._resources.enter_context(cluster_of(replace(spec, key_file=over.key_file), logs, over.namespaces, over.pacing))
