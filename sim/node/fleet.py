"""The nodes of a cluster, what each of them is given to do now, and the pairs of them that have met.

Not modelled: the time that knowing each other's load takes.
"""

from __future__ import annotations

from collections.abc import Callable

from abkt.policy.price import Price
from abkt.policy.routing.ranking import Ranking
from abkt.policy.view import BitratePolicy
from abkt.records import SLO, TransferRecord
from sim.clock import Clock
from sim.cost import Costs
from sim.network.background import Traffic
from sim.network.flows import Network
from sim.network.link_faults import LinkFaults
from sim.network.nic import NodeNic
from sim.node.job import Job
from sim.node.memory import KvMemory
from sim.node.node import Node
from sim.node.pace import Pace
from sim.node.prefix import PrefixCache
from sim.specs import ClusterSpec, EngineSpec, NodeSpec
from sim.transfer.pair import NodePair, TransferContext


class Nodes:
    """prefill, decode: the nodes that are given prompts, and those that are given requests to decode; some may be both."""

    def __init__(
        self,
        clock: Clock,
        cluster: ClusterSpec,
        bitrate: Callable[[], BitratePolicy],
        slo: SLO,
        node: type[Node],
        done: Callable[[Job], None],
        ended: Callable[[TransferRecord], None],
        failed: Callable[[Job, str], None],
        running: Callable[[], bool] = lambda: True,
        memory: type[KvMemory] | None = None,
    ) -> None:
        self.clock, self.cluster, self.bitrate = clock, cluster, bitrate
        self.engine = cluster.engine or EngineSpec(max_batch=cluster.max_batch)
        self.network = Network(clock)
        self.holders: dict[int, dict[Node, None]] = {}
        specs = (*cluster.prefill, *cluster.decode)
        profiles = {id(spec.profile): spec.profile for spec in specs}  # nodes of a kind share one
        costs = {key: Costs(profile) for key, profile in profiles.items()}
        paces = {key: Pace(one, self.engine.buckets) for key, one in costs.items()}
        kinds: dict[tuple[int, int], int] = {}

        def made(spec: NodeSpec) -> Node:
            kind = kinds.setdefault((id(spec.profile), spec.kv_tokens), len(kinds))
            blocks = (memory or KvMemory)(spec.kv_tokens, cluster.block_tokens, self._cache())
            cost, pace = costs[id(spec.profile)], paces[id(spec.profile)]
            made = node(clock, spec.name, cost, pace, blocks, spec.usd_per_hour, self.engine, done, kind)
            made.freed = self._freed
            if blocks.cache is not None:
                blocks.cache.owner = made
            return made

        self.nodes = [made(spec) for spec in specs]
        for index, one in enumerate(self.nodes):
            one.role = "prefill" if index < len(cluster.prefill) else "decode"
        self._weigh()
        self.nics = {spec.name: NodeNic(Price(max(spec.nic.bytes_per_s))) for spec in specs}
        self.links = {spec.name: self.network.link(spec.name, spec.nic) for spec in specs}
        self.inbound = {spec.name: self.network.link(f"{spec.name}, inbound", spec.inbound) for spec in specs if spec.inbound}
        self.fabric = (self.network.link("fabric", cluster.fabric),) if cluster.fabric else ()
        links = {**self.links, **{link.name: link for link in self.fabric}}
        LinkFaults(self.network, links, cluster.link_faults)
        if cluster.background is not None:
            Traffic(self.network, links, cluster.background, running)
        self.carrier = TransferContext(clock, self.network, slo, ended, failed, cluster.transport, cluster.usd_per_gb, cluster.delay_s)
        self.pairs: dict[tuple[Node, Node], NodePair] = {}
        self.changed: Callable[[], None] = _nobody  # called when some node can be given other work than before
        self.rank()

    def _cache(self) -> PrefixCache | None:
        tokens = self.engine.hash_tokens
        return PrefixCache(tokens, self.cluster.block_tokens, self.holders) if tokens else None

    def _freed(self) -> None:
        self.changed()

    def _weigh(self) -> None:
        """What each node can do, by what the fastest one does: a prompt of 1,024 tokens, an iteration of 16 such requests."""
        prompts = [node.costs.prefill_s(1024) for node in self.nodes]
        iterations = [node.costs.iteration_s(16, 16 * 1024) for node in self.nodes]
        for node, prompt_s, iteration_s in zip(self.nodes, prompts, iterations):
            node.prefill_weight = min(prompts) / prompt_s if prompt_s > 0 else 1.0
            node.decode_weight = min(iterations) / iteration_s

    def rank(self) -> None:
        """Some node has another role."""
        self.prefill = Ranking([node for node in self.nodes if node.role in ("prefill", "both")], _prompt_kind, self.holders)
        self.decode = Ranking([node for node in self.nodes if node.role in ("decode", "both")], _kind)
        for node in self.nodes:
            node.changed = [ranking.changed for ranking in (self.prefill, self.decode) if node in ranking.place]
        self._least_prompt, self._least_decode = (min((n.memory.tokens for n in side), default=0) for side in (self.prefill, self.decode))

    def may_become(self, role: str) -> list[Node]:
        """Who has the role, or may have it again."""
        has = [node for node in self.nodes if node.role in (role, "both", "")]
        return has or self.nodes

    def able(self, prompt_tokens: int, decode_tokens: int) -> tuple[list[Node], list[Node]]:
        """Who can hold the prompt, and who the whole request."""
        prefill: list[Node] = self.prefill
        decode: list[Node] = self.decode
        if prompt_tokens > self._least_prompt:
            prefill = [node for node in prefill if prompt_tokens <= node.memory.tokens]
        if decode_tokens > self._least_decode:
            decode = [node for node in decode if decode_tokens <= node.memory.tokens]
        return prefill, decode

    def pair(self, source: Node, target: Node) -> NodePair:
        pair = self.pairs.get((source, target))
        if pair is None:
            path = (self.links[source.name], *self.fabric, self.inbound.get(target.name, self.links[target.name]))
            nics = self.nics[source.name], self.nics[target.name]
            pair = self.pairs[source, target] = NodePair(self.carrier, source, target, path, nics, self.bitrate())
        return pair

    def state(self) -> str:
        """Of every queue, for whoever has to find out why nothing happens."""
        nodes = [f"{node.name}: {node.state}, {_queues(node)}, {node.memory}" for node in self.nodes]
        pairs = [f"{p.source.name} to {p.target.name}: {len(p.queue or ())} to send" for p in self.pairs.values() if not p.idle]
        return "; ".join([*nodes, *pairs])


def _nobody() -> None:
    pass


def _queues(node: Node) -> str:
    return f"{len(node.prompts)} prompts, {len(node.batch)} in the batch, {len(node.waiting)} to expand"


def _kind(node: Node) -> int:
    return node.kind


def _prompt_kind(node: Node) -> tuple[int, bool]:
    """Nodes that wait for memory do not get free as time passes; they are ordered among themselves."""
    return node.kind, node.blocked is not None
