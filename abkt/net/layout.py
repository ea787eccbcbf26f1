"""Which namespaces, links and shaped egresses a network is made of. Pure: nothing is made here."""

from __future__ import annotations

from dataclasses import dataclass

HUB = "hub"


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """A device inside the namespace of a node."""

    node: str
    device: str


@dataclass(frozen=True, slots=True)
class NamespaceLink:
    """relayed: a process carries its frames from one end to the other, late or not at all; else it is a veth pair."""

    a: LinkEnd
    b: LinkEnd
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """senders p0, p1, … and receivers d0, d1, …. One of each: a link between the two. More: a bridge, whose port towards a node is what all
    who send to it share.

    Every node's own egress is shaped, and behind a bridge its ingress too, so that senders meet at one bottleneck; whichever way it sends,
    as nodes may change their roles. A relayed link is the receiver's, and there is one receiver then.
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
        """All the namespaces, by the name of what lives there."""
        return (*self.nodes, HUB) if self.bridged else self.nodes

    def links(self) -> tuple[NamespaceLink, ...]:
        if not self.bridged:
            return (NamespaceLink(LinkEnd("p0", "eth0"), LinkEnd("d0", "eth0"), self.relayed),)
        ports = tuple(NamespaceLink(LinkEnd(node, "eth0"), LinkEnd(HUB, node)) for node in self.nodes[: self.senders])
        return (*ports, *(NamespaceLink(LinkEnd(HUB, node), LinkEnd(node, "eth0"), self.relayed) for node in self.nodes[self.senders :]))

    def shaped(self) -> tuple[LinkEnd, ...]:
        own = tuple(LinkEnd(node, "eth0") for node in self.nodes)
        return (*own, *(LinkEnd(HUB, node) for node in self.nodes)) if self.bridged else own

    def number(self, node: str) -> int:
        return self.nodes.index(node) + 1

    def address(self, node: str) -> str:
        """The same in every run: nothing outside the namespaces can see it."""
        return f"10.83.0.{self.number(node)}"

    def mac_address(self, node: str) -> str:
        return f"02:83:00:00:00:{self.number(node):02x}"
