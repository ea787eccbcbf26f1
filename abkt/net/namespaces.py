"""The network namespaces of one run: they are created, shaped while the run goes on, and removed however it ends.

Every device is created inside a namespace. The host's interfaces, routes and settings are not changed.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from abkt.net.bucket import ETHERNET_BYTES, TokenBucket, payload_share
from abkt.net.command import NetworkError, run, why_not
from abkt.net.layout import HUB, Layout, NamespaceLink
from abkt.net.relay_process import RelayProcess

FOLDER = Path("/run/netns")
PREFIX = "abkt"
MTU = 1500
GSO_FRAMES = 64  # no limit in effect: the kernel's own limit of 64 KiB is about 45 frames

_count = itertools.count()


class Namespaces(AbstractContextManager["Namespaces"]):
    """A context in which each node has a network namespace of its own, and a shaped link (see Layout).

    Parameters
    ----------
    senders, receivers : int
        Number of nodes p0, p1, … and d0, d1, ….
    delay_s : float
        Propagation delay in each direction. Delay and loss need a relay process, since not every kernel has netem.
    loss : float
        Share of packets that are lost, in each direction.
    lowest_bytes_per_s : float
        The lowest rate that `shape` will be called with.
    seed : int
        Seed of the random losses.
    mtu : int
        Largest IP packet in bytes.

    Raises
    ------
    NetworkError
        On entering, one line, if namespaces cannot be made here. `Namespaces.why_not()` tells that beforehand.
    """

    def __init__(
        self,
        senders: int = 1,
        delay_s: float = 0.0,
        loss: float = 0.0,
        lowest_bytes_per_s: float = math.inf,
        seed: int = 0,
        mtu: int = MTU,
        receivers: int = 1,
    ) -> None:
        self.layout = Layout(senders, delay_s > 0 or loss > 0, receivers)
        self.delay_s, self.loss, self.mtu = delay_s, loss, mtu
        self._lowest_bytes_per_s = lowest_bytes_per_s
        self._seed = seed
        self._relay: RelayProcess | None = None
        self._run = f"{PREFIX}-{os.getpid()}-{next(_count)}"

    @staticmethod
    def why_not() -> str:
        """The reason why namespaces cannot be made on this machine; empty if they can."""
        return why_not(f"{PREFIX}-{os.getpid()}-try")

    def __enter__(self) -> Namespaces:
        remove_stale()
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove all namespaces and end the relay."""
        if self._relay:
            self._relay.close()
            self._relay = None
        for namespace in self.layout.namespaces:
            if (FOLDER / self.name(namespace)).exists():
                run("ip", "netns", "del", self.name(namespace))

    def name(self, namespace: str) -> str:
        """The full name of a node's namespace, which is unique to this run."""
        return f"{self._run}-{namespace}"

    def address(self, node: str) -> str:
        return self.layout.address(node)

    def command(self, node: str) -> tuple[str, ...]:
        """The prefix that runs a command in the namespace of a node. It is replaced by the command (exec), so the started process is the
        command."""
        return ("ip", "netns", "exec", self.name(node))

    def shape(self, bytes_per_s: float) -> None:
        """Set the rate of every shaped egress. Queued packets stay queued.

        Parameters
        ----------
        bytes_per_s : float
            Rate with all headers and Ethernet frames; inf removes the limit.

        Raises
        ------
        ValueError
            If the rate is below lowest_bytes_per_s.
        """
        if bytes_per_s < self._lowest_bytes_per_s:
            raise ValueError(f"{bytes_per_s:g} bytes/s is below the lowest_bytes_per_s={self._lowest_bytes_per_s:g} of this network")
        for end in self.layout.shaped():
            device = ("-n", self.name(end.node), "qdisc")
            if math.isinf(bytes_per_s):
                with suppress(NetworkError):  # there may be no qdisc to delete
                    run("tc", *device, "del", "dev", end.device, "root")
            else:  # a qdisc of the same kind is changed in place
                run("tc", *device, "replace", "dev", end.device, "root", *TokenBucket.of(bytes_per_s, self.mtu).tc_arguments())

    def facts(self) -> dict[str, object]:
        """What the summary of a run records. payload_share: share of the shaped bytes that are TCP payload."""
        relay: dict[str, object] = {"relay": self._relay.report()} if self._relay else {}
        link = {"delay_s": self.delay_s, "loss": self.loss, "mtu": self.mtu, "payload_share": payload_share(self.mtu)}
        nodes = {"senders": self.layout.senders, "receivers": self.layout.receivers}
        return {**nodes, **link, "congestion_control": self._congestion_control(), **relay}

    def _make(self) -> None:
        layout = self.layout
        for namespace in layout.namespaces:
            name = self.name(namespace)
            run("ip", "netns", "add", name)
            # Without IPv6 there is no neighbour or router discovery: only the workers' packets are on the link.
            run("ip", "netns", "exec", name, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6 || true")
            run("ip", "-n", name, "link", "set", "lo", "up")
        if layout.bridged:
            run("ip", "-n", self.name(HUB), "link", "add", "name", "bridge", "type", "bridge")
            run("ip", "-n", self.name(HUB), "link", "set", "bridge", "up")
        for link in layout.links():
            self._connect(link)
        for node in layout.nodes:
            self._assign_address(node)

    def _connect(self, link: NamespaceLink) -> None:
        a, b = link.a, link.b
        near, far = self.name(a.node), self.name(b.node)
        if link.relayed:
            self._relay = RelayProcess(self.command(a.node), self.mtu, self.delay_s, self.loss, self._seed)
            for made, end in zip(self._relay.devices, (a, b), strict=True):
                into = ("netns", self.name(end.node)) if end is b else ()
                run("ip", "-n", near, "link", "set", made, *into, "name", end.device)
        else:
            run("ip", "-n", near, "link", "add", "name", a.device, "type", "veth", "peer", "name", b.device, "netns", far)
        for end in (a, b):
            device = ("ip", "-n", self.name(end.node), "link", "set", end.device)
            run(*device, "mtu", str(self.mtu), "gso_max_segs", str(self._gso_frames()))
            if end.node == HUB:
                run(*device, "master", "bridge")
            else:
                run(*device, "address", self.layout.mac_address(end.node))
            run(*device, "up")

    def _gso_frames(self) -> int:
        """How many frames TCP may pass down as one large segment.

        A segment that is larger than the bucket's burst, after the rate was lowered, would block the head of the queue forever.
        """
        if math.isinf(self._lowest_bytes_per_s):
            return GSO_FRAMES
        return min(GSO_FRAMES, TokenBucket.of(self._lowest_bytes_per_s, self.mtu).burst_bytes // (self.mtu + ETHERNET_BYTES))

    def _assign_address(self, node: str) -> None:
        """Set the node's address and its static neighbours: an ARP request would be delayed, lost or queued like any packet."""
        ip = ("ip", "-n", self.name(node))
        run(*ip, "address", "add", f"{self.address(node)}/24", "dev", "eth0")
        for other in self._neighbours(node):
            run(*ip, "neighbour", "add", self.address(other), "lladdr", self.layout.mac_address(other), "dev", "eth0", "nud", "permanent")

    def _neighbours(self, node: str) -> Iterable[str]:
        return (other for other in self.layout.nodes if other != node)

    def _congestion_control(self) -> str:
        return run("ip", "netns", "exec", self.name("p0"), "cat", "/proc/sys/net/ipv4/tcp_congestion_control").strip()


def remove_stale() -> None:
    """Remove the namespaces of runs whose process ended without removing them."""
    for path in FOLDER.glob(f"{PREFIX}-*"):
        pid = path.name.split("-")[1]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            with suppress(NetworkError):  # another process may have removed it meanwhile
                run("ip", "netns", "del", path.name)
