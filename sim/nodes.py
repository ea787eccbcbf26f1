"""The nodes of a cluster, the rankings that routing chooses from, and the pairs of nodes that have been used.

Not modelled: the delay until a node's load is known elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abkt.policy.price import Price
from abkt.policy.routing.ranking import Ranking
from abkt.policy.view import BitratePolicy
from abkt.records import SLO, TransferRecord
from sim.cost import Costs
from sim.job import Job
from sim.network.background import Traffic
from sim.network.flows import Network
from sim.network.link_faults import LinkFaults
from sim.network.nic import NodeNic
from sim.node.memory import KvMemory
from sim.node.node import Node
from sim.node.pace import Pace
from sim.node.prefix import PrefixCache
from sim.specs import ClusterSpec, EngineSpec, NodeSpec
from sim.timers import Timers
from sim.transfer.context import TransferContext
from sim.transfer.pair import NodePair, PairEnd


class Nodes:
    """All nodes of a cluster, with their NICs, links and pairs.

    all: every node, prefill nodes first. prefill, decode: rankings of the nodes that take prompts and of the nodes that take requests to
    decode; a node may be in both.

    done(job): called when a request ends. ended(record): called with each transfer's final record. failed(job, reason): called with a
    request whose transfer has failed. running(): whether some requests have not ended. changed: called when a node may take work that it
    could not take before.
    """

    def __init__(
        self,
        clock: Timers,
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
        self.clock, self.cluster = clock, cluster
        self.engine = cluster.engine or EngineSpec(max_batch=cluster.max_batch)
        self.network = Network(clock)
        self.holders: dict[int, dict[Node, None]] = {}  # prefix block -> nodes that cache it
        specs = (*cluster.prefill, *cluster.decode)
        profiles = {id(spec.profile): spec.profile for spec in specs}  # nodes with equal hardware share a profile
        costs = {key: Costs(profile) for key, profile in profiles.items()}
        paces = {key: Pace(one, self.engine.buckets) for key, one in costs.items()}
        kinds: dict[tuple[int, int], int] = {}

        def made(spec: NodeSpec) -> Node:
            kind = kinds.setdefault((id(spec.profile), spec.kv_tokens), len(kinds))
            blocks = (memory or KvMemory)(spec.kv_tokens, cluster.block_tokens, self._cache())
            cost, pace = costs[id(spec.profile)], paces[id(spec.profile)]
            made = node(clock, spec.name, cost, pace, blocks, spec.usd_per_hour, self.engine, done, kind)
            made.memory_freed = self._memory_freed
            if blocks.cache is not None:
                blocks.cache.owner = made
            return made

        self.all = [made(spec) for spec in specs]
        for index, one in enumerate(self.all):
            one.number = index
            one.role = "prefill" if index < len(cluster.prefill) else "decode"
        self._set_weights()
        self.nics = {spec.name: NodeNic(Price(max(spec.nic.bytes_per_s))) for spec in specs}
        self.links = {spec.name: self.network.link(spec.name, spec.nic) for spec in specs}
        self.inbound = {spec.name: self.network.link(f"{spec.name}, inbound", spec.inbound) for spec in specs if spec.inbound}
        self.fabric = (self.network.link("fabric", cluster.fabric),) if cluster.fabric else ()
        links = {**self.links, **{link.name: link for link in self.fabric}}
        LinkFaults(self.network, links, cluster.link_faults)
        if cluster.background is not None:
            Traffic(self.network, links, cluster.background, running)
        self.context = TransferContext(
            clock, self.network, slo, bitrate, ended, failed, cluster.transport, cluster.usd_per_gb, cluster.delay_s, self.fabric
        )
        self.ends = [self._end(node) for node in self.all]
        self.pairs: dict[int, NodePair] = {}  # by the numbers of their nodes; a pair is made for its first transfer
        self._asked = NodePair(self.context, self.ends[0], self.ends[0])  # stands for the others
        self.changed: Callable[[], None] = _nothing
        self.update_rankings()

    def _cache(self) -> PrefixCache | None:
        tokens = self.engine.hash_tokens
        return PrefixCache(tokens, self.cluster.block_tokens, self.holders, self.engine.host_tokens) if tokens else None

    def _memory_freed(self) -> None:
        self.changed()

    def _set_weights(self) -> None:
        """Set each node's speed relative to the fastest: on a prompt of 1,024 tokens, and on an iteration of 16 such requests."""
        prompts = [node.costs.prefill_s(1024) for node in self.all]
        iterations = [node.costs.iteration_s(16, 16 * 1024) for node in self.all]
        for node, prompt_s, iteration_s in zip(self.all, prompts, iterations):
            node.prefill_weight = min(prompts) / prompt_s if prompt_s > 0 else 1.0
            node.decode_weight = min(iterations) / iteration_s

    def update_rankings(self) -> None:
        """Rebuild the rankings after a node's role has changed."""
        self.prefill = Ranking([node for node in self.all if node.role in ("prefill", "both")], _prompt_kind, self.holders)
        self.decode = Ranking([node for node in self.all if node.role in ("decode", "both")], _kind)
        for node in self.all:
            node.rankings = [ranking.changed for ranking in (self.prefill, self.decode) if node in ranking.place]
        self._least_prompt, self._least_decode = (min((n.memory.tokens for n in side), default=0) for side in (self.prefill, self.decode))

    def that_may_have(self, role: str) -> list[Node]:
        """The nodes that have the role or are changing their role; all nodes if there are none."""
        return [node for node in self.all if node.role in (role, "both", "")] or self.all

    def that_fit(self, prompt_tokens: int, decode_tokens: int) -> tuple[Sequence[Node], Sequence[Node]]:
        """The prefill nodes whose memory can hold the prompt, and the decode nodes whose memory can hold the whole request."""
        prefill: Sequence[Node] = self.prefill  # type: ignore[assignment]  # registered as a sequence
        decode: Sequence[Node] = self.decode  # type: ignore[assignment]
        if prompt_tokens > self._least_prompt:
            prefill = [node for node in prefill if prompt_tokens <= node.memory.tokens]
        if decode_tokens > self._least_decode:
            decode = [node for node in decode if decode_tokens <= node.memory.tokens]
        return prefill, decode

    def pair(self, source: Node, target: Node) -> NodePair:
        key = source.number * len(self.all) + target.number
        pair = self.pairs.get(key)
        if pair is None:
            pair = self.pairs[key] = NodePair(self.context, self.ends[source.number], self.ends[target.number])
        return pair

    def quote_s(self, source: Node, target: Node, tokens: int, arrival_s: float) -> float:
        """NodePair.quote_s of that pair, which need not be made for it."""
        pair = self.pairs.get(source.number * len(self.all) + target.number)
        if pair is None:
            pair = self._asked
            pair.join_ends(self.ends[source.number], self.ends[target.number])
        return pair.quote_s(tokens, arrival_s)

    def _end(self, node: Node) -> PairEnd:
        outbound = self.links[node.name]
        return PairEnd(node, self.nics[node.name], outbound, self.inbound.get(node.name, outbound))

    def state(self) -> str:
        """The state of every queue, for the error message of a run that cannot continue."""
        nodes = [f"{node.name}: {node.gpu.state}, {_queues(node)}, {node.memory}" for node in self.all]
        pairs = [f"{p.source.name} to {p.target.name}: {len(p.queue or ())} to send" for p in self.pairs.values() if not p.idle]
        return "; ".join([*nodes, *pairs])


def _nothing() -> None:
    pass


def _queues(node: Node) -> str:
    return f"{len(node.prompts.waiting)} prompts, {len(node.gpu.batch)} in the batch, {len(node.decoding.waiting)} to expand"


def _kind(node: Node) -> int:
    return node.kind


def _prompt_kind(node: Node) -> int:
    """Nodes that wait for memory are ranked among themselves, because they do not become free just by the passing of time."""
    return 2 * node.kind + (node.prompts.blocked is not None)
