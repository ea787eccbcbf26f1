"""Which namespaces, links and shaped egresses a network is made of. Pure: nothing is made here."""

from __future__ import annotations

from dataclasses import dataclass

HUB = "hub"


@dataclass(frozen=True, slots=True)
class End:
    """A device inside the namespace of a node."""

    node: str
    device: str


@dataclass(frozen=True, slots=True)
class Link:
    """relayed: a process carries its frames from one end to the other, late or not at all; else it is a veth pair."""

    a: End
    b: End
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """senders p0, p1, … and one receiver d0. One sender: a link between the two. More: a bridge, whose port towards d0 they share.

    Every node's own egress is shaped, and with several senders the receiver's ingress, so that they meet at one bottleneck.
    """

    senders: int = 1
    relayed: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.senders <= 200:
            raise ValueError(f"{self.senders} senders; there must be 1 to 200")

    @property
    def nodes(self) -> tuple[str, ...]:
        return (*(f"p{i}" for i in range(self.senders)), "d0")

    @property
    def bridged(self) -> bool:
        return self.senders > 1

    @property
    def rooms(self) -> tuple[str, ...]:
        """All the namespaces, by the name of what lives there."""
        return (*self.nodes, HUB) if self.bridged else self.nodes

    def links(self) -> tuple[Link, ...]:
        if not self.bridged:
            return (Link(End("p0", "eth0"), End("d0", "eth0"), self.relayed),)
        ports = tuple(Link(End(node, "eth0"), End(HUB, node)) for node in self.nodes[:-1])
        return (*ports, Link(End(HUB, "d0"), End("d0", "eth0"), self.relayed))

    def shaped(self) -> tuple[End, ...]:
        own = tuple(End(node, "eth0") for node in self.nodes)
        return (*own, End(HUB, "d0")) if self.bridged else own

    def number(self, node: str) -> int:
        return self.nodes.index(node) + 1

    def address(self, node: str) -> str:
        """The same in every run: nothing outside the namespaces can see it."""
        return f"10.83.0.{self.number(node)}"

    def hardware(self, node: str) -> str:
        return f"02:83:00:00:00:{self.number(node):02x}"
