"""The namespaces, links and shaped egresses that a network consists of. Pure data: nothing is created here."""

from __future__ import annotations

from dataclasses import dataclass

HUB = "hub"


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """One end of a link: a network device in the namespace of a node."""

    node: str
    device: str


@dataclass(frozen=True, slots=True)
class NamespaceLink:
    """A link between two devices: a veth pair, or, if `relayed`, two TAP devices and a relay process that delays and drops frames."""

    a: LinkEnd
    b: LinkEnd
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """The nodes of a network and the links between them.

    The nodes are senders p0, p1, … and receivers d0, d1, …. With one of each there is a link between the two. With more nodes there is a
    bridge in a namespace of its own (the hub), with one port for each node. Every node's egress is shaped. With a bridge, so is the port
    towards each node, where all traffic to that node meets. So both directions are shaped, and nodes may change their roles.

    Parameters
    ----------
    senders, receivers : int
        Number of nodes of each kind; at most 250 together.
    relayed : bool
        The link of the receiver has delay and loss. There can be only one receiver then.

    Raises
    ------
    ValueError
        If the numbers are out of range.
    """

    senders: int = 1
    relayed: bool = False
    receivers: int = 1

    def __post_init__(self) -> None:
        if min(self.senders, self.receivers) < 1 or self.senders + self.receivers > 250:
            raise ValueError(f"{self.senders} senders and {self.receivers} receivers; there must be one of each, and at most 250 nodes")
        if self.relayed and self.receivers > 1:
            raise ValueError(f"delay and loss are those of one receiver's link, and there are {self.receivers} receivers")

    @property
    def nodes(self) -> tuple[str, ...]:
        return (*(f"p{i}" for i in range(self.senders)), *(f"d{i}" for i in range(self.receivers)))

    @property
    def bridged(self) -> bool:
        return len(self.nodes) > 2

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Names of all namespaces: the nodes and, with a bridge, the hub."""
        return (*self.nodes, HUB) if self.bridged else self.nodes

    def links(self) -> tuple[NamespaceLink, ...]:
        if not self.bridged:
            return (NamespaceLink(LinkEnd("p0", "eth0"), LinkEnd("d0", "eth0"), self.relayed),)
        ports = tuple(NamespaceLink(LinkEnd(node, "eth0"), LinkEnd(HUB, node)) for node in self.nodes[: self.senders])
        return (*ports, *(NamespaceLink(LinkEnd(HUB, node), LinkEnd(node, "eth0"), self.relayed) for node in self.nodes[self.senders :]))

    def shaped(self) -> tuple[LinkEnd, ...]:
        """The devices whose egress is shaped."""
        own = tuple(LinkEnd(node, "eth0") for node in self.nodes)
        return (*own, *(LinkEnd(HUB, node) for node in self.nodes)) if self.bridged else own

    def number(self, node: str) -> int:
        return self.nodes.index(node) + 1

    def address(self, node: str) -> str:
        """The node's IP address. It is the same in every run, since it is visible only inside the namespaces."""
        return f"10.83.0.{self.number(node)}"

    def mac_address(self, node: str) -> str:
        return f"02:83:00:00:00:{self.number(node):02x}"
