"""The specification of a cluster: its nodes, their links, and the settings of their engines.

Not modelled: nodes that join or leave for good while it runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.capacity import Capacity
from abkt.profile.schema import Profile
from abkt.ranges import bound
from sim.network.background import Background
from sim.network.link_faults import LinkFault
from sim.transfer.transport import TransportModel


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """How a node's engine batches its work and takes its memory.

    Parameters
    ----------
    max_batch : most requests in one decode iteration.
    prefill_tokens : token budget of one iteration, used first for decode tokens and then for prompts; 0: one whole prompt at a time.
    prompts_first : decoding stops while prompts wait, and the budget is theirs alone; otherwise prompts are computed beside decode steps.
    planned_ahead : a pass is planned while the one before it runs, so a prompt that comes meanwhile waits for the one after.
    chunked : prompts are cut to fill that budget; otherwise an iteration takes whole prompts, and always at least one.
    grow_tokens : memory for decoding is taken for this many tokens at a time, and the newest request is recomputed when no memory is left;
        0: memory for the whole answer is taken before the KV is sent.
    hash_tokens : prompt tokens that one hash of the prefix cache stands for; 0: no cache.
    reuse_distortion : a request may use cached blocks with at most this distortion.
    host_tokens : tokens of KV that a node's host memory caches: prefixes that left the GPU's cache and can be copied back; 0: none.
    host_bytes_per_s : rate of that copy.
    buckets : sizes that a decode batch is padded to; empty: it is not padded.

    Raises
    ------
    ValueError : a value is out of range.
    """

    max_batch: int = 64
    prefill_tokens: int = 0
    chunked: bool = False
    prompts_first: bool = False
    planned_ahead: bool = False
    grow_tokens: int = 0
    hash_tokens: int = 0
    reuse_distortion: float = 0.0
    buckets: tuple[int, ...] = ()
    host_tokens: int = 0
    host_bytes_per_s: float = 25e9

    def __post_init__(self) -> None:
        bound(self, "max_batch", "buckets", least=1)
        bound(self, "prefill_tokens", "grow_tokens", "hash_tokens", "reuse_distortion", "host_tokens", least=0)
        bound(self, "host_bytes_per_s", above=0)
        if self.chunked and self.prefill_tokens <= self.max_batch:
            raise ValueError(
                f"prefill_tokens is {self.prefill_tokens}; chunks need more than max_batch, {self.max_batch}, to get on beside decoding"
            )


@dataclass(frozen=True)
class NodeSpec:
    """One instance of the engine.

    Parameters
    ----------
    name : name of the node in records; unique in the cluster.
    profile : costs of its work.
    kv_tokens : KV memory, in tokens.
    nic : bytes/s of the link that it sends and receives over.
    usd_per_hour : price of the whole instance.
    inbound : bytes/s of a separate link that it receives over; None: it receives over `nic`.
    """

    name: str
    profile: Profile
    kv_tokens: int
    nic: Capacity
    usd_per_hour: float = 0.0
    inbound: Capacity | None = None


@dataclass(frozen=True)
class ClusterSpec:
    """A cluster of prefill and decode nodes.

    Parameters
    ----------
    prefill, decode : the nodes, by the role that they begin with; without a prefill node, every node must take both roles.
    max_batch : most requests in one decode iteration, if no engine is given.
    block_tokens : tokens of one KV block.
    fabric : bytes/s of a link that all transfers share; None: no such link.
    usd_per_gb : price of 10^9 wire bytes between nodes.
    delay_s : propagation between nodes, each way, in seconds.
    engine : settings of every node's engine; None: the default with max_batch.
    rebuild_s : seconds that a drained node needs to take another role.
    transport : calls, layer groups and losses of transfers.
    link_faults, background : faults and other traffic on links; a link is named by its node, or "fabric".

    Raises
    ------
    ValueError : a role has no node, names repeat, a node holds less than a block, or the profiles are of models with different KV.
    """

    prefill: tuple[NodeSpec, ...]
    decode: tuple[NodeSpec, ...]
    max_batch: int = 64
    block_tokens: int = 16
    fabric: Capacity | None = None
    usd_per_gb: float = 0.0
    delay_s: float = 0.0
    engine: EngineSpec | None = None
    rebuild_s: float = 0.007
    transport: TransportModel = TransportModel()  # noqa: RUF009  # frozen
    link_faults: tuple[LinkFault, ...] = ()
    background: Background | None = None

    def __post_init__(self) -> None:
        if not self.decode:
            raise ValueError("the cluster has no decode node; it needs at least one")
        bound(self, "max_batch", "block_tokens", least=1)
        bound(self, "usd_per_gb", "delay_s", "rebuild_s", least=0)
        nodes = (*self.prefill, *self.decode)
        if len({node.name for node in nodes}) < len(nodes):
            raise ValueError("two nodes of the cluster have the same name")
        for node in nodes:
            if node.kv_tokens < self.block_tokens:
                raise ValueError(f"node {node.name} holds {node.kv_tokens} tokens of KV, less than one block of {self.block_tokens}")
        if len({(m.layers, m.kv_heads, m.head_dim, m.dtype) for m in (node.profile.model for node in nodes)}) > 1:
            raise ValueError("the nodes' profiles are of models with different KV; prefill and decode must run the same model")
