"""Network namespaces of one run: made, shaped while it goes on, and removed on any way out.

Nothing outside of them is touched: every device is made inside one, and the host's interfaces, routes and settings stay as they are.
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
GSO_FRAMES = 64  # at most 64 KiB, the kernel's own limit, is about 45

_count = itertools.count()


class Namespaces(AbstractContextManager["Namespaces"]):
    """One namespace a node: senders p0, p1, … and receivers d0, d1, …, with one shaped link each (see Layout).

    delay_s: propagation, each way. loss: share of packets lost, each way. Both need a relay process of their own, as netem is not
    everywhere. lowest_bytes_per_s: what `shape` will set them to at the least. Raises NetworkError, one line, where namespaces cannot be
    had; `Namespaces.why_not()` asks first.
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
        """Why there can be none on this machine; empty if there can."""
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
        if self._relay:
            self._relay.close()
            self._relay = None
        for room in self.layout.namespaces:
            if (FOLDER / self.name(room)).exists():
                run("ip", "netns", "del", self.name(room))

    def name(self, room: str) -> str:
        return f"{self._run}-{room}"

    def address(self, node: str) -> str:
        return self.layout.address(node)

    def command(self, node: str) -> tuple[str, ...]:
        """What to put in front of a command, so that it runs there. The process that is started becomes the command's."""
        return ("ip", "netns", "exec", self.name(node))

    def shape(self, bytes_per_s: float) -> None:
        """Every shaped egress passes that much from now on, frames and all; inf: whatever it can. What is queued stays queued.

        Raises ValueError below the lowest rate that was announced.
        """
        if bytes_per_s < self._lowest_bytes_per_s:
            raise ValueError(f"{bytes_per_s:g} bytes/s is below the {self._lowest_bytes_per_s:g} that were announced for this network")
        for end in self.layout.shaped():
            device = ("-n", self.name(end.node), "qdisc")
            if math.isinf(bytes_per_s):
                with suppress(NetworkError):  # there may have been none
                    run("tc", *device, "del", "dev", end.device, "root")
            else:  # of the same kind it is changed in place
                run("tc", *device, "replace", "dev", end.device, "root", *TokenBucket.of(bytes_per_s, self.mtu).tc_arguments())

    def facts(self) -> dict[str, object]:
        """For the summary of a run. payload_share: of the shaped bytes, what TCP's users see."""
        relay: dict[str, object] = {"relay": self._relay.report()} if self._relay else {}
        link = {"delay_s": self.delay_s, "loss": self.loss, "mtu": self.mtu, "payload_share": payload_share(self.mtu)}
        nodes = {"senders": self.layout.senders, "receivers": self.layout.receivers}
        return {**nodes, **link, "congestion_control": self._congestion_control(), **relay}

    def _make(self) -> None:
        layout = self.layout
        for room in layout.namespaces:
            name = self.name(room)
            run("ip", "netns", "add", name)
            # No router is looked for and no neighbour asked: only what the workers send is on the link.
            run("ip", "netns", "exec", name, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6 || true")
            run("ip", "-n", name, "link", "set", "lo", "up")
        if layout.bridged:
            run("ip", "-n", self.name(HUB), "link", "add", "name", "bridge", "type", "bridge")
            run("ip", "-n", self.name(HUB), "link", "set", "bridge", "up")
        for link in layout.links():
            self._connect(link)
        for node in layout.nodes:
            self._settle(node)

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
        """How many frames TCP may hand down as one. One that is larger than the bucket's burst when the rate has fallen would stay
        at the head of the queue for good, and everything behind it."""
        if math.isinf(self._lowest_bytes_per_s):
            return GSO_FRAMES
        return min(GSO_FRAMES, TokenBucket.of(self._lowest_bytes_per_s, self.mtu).burst_bytes // (self.mtu + ETHERNET_BYTES))

    def _settle(self, node: str) -> None:
        """Its address, and where the others are: asking for that would be the first packet to be late or lost."""
        room = ("ip", "-n", self.name(node))
        run(*room, "address", "add", f"{self.address(node)}/24", "dev", "eth0")
        for other in self._neighbours(node):
            run(*room, "neighbour", "add", self.address(other), "lladdr", self.layout.mac_address(other), "dev", "eth0", "nud", "permanent")

    def _neighbours(self, node: str) -> Iterable[str]:
        return (other for other in self.layout.nodes if other != node)

    def _congestion_control(self) -> str:
        return run("ip", "netns", "exec", self.name("p0"), "cat", "/proc/sys/net/ipv4/tcp_congestion_control").strip()


def remove_stale() -> None:
    """Namespaces of runs whose process has ended without removing them."""
    for path in FOLDER.glob(f"{PREFIX}-*"):
        pid = path.name.split("-")[1]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            with suppress(NetworkError):  # somebody else may be as quick
                run("ip", "netns", "del", path.name)
