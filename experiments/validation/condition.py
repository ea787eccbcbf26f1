"""A condition of a validation: the link, the load, the cluster and its role changes. All policies run under it in both worlds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from abkt.net.bucket import payload_share
from abkt.net.namespaces import MTU, Namespaces
from abkt.policy.build import build
from abkt.ranges import bound
from abkt.serve.frontend.roles import WorkerLoad, WorkerRoles
from experiments.lib.config import MOST_WORKERS, BitrateConfig, RolesConfig
from experiments.lib.network import Network

if TYPE_CHECKING:
    from abkt.serve import LocalClusterSpec

STATIC = {"_target_": "abkt.policy.roles.static.Static"}


@dataclass(frozen=True, slots=True)
class Condition:
    """speedup, isl_scale, skip: scaling of the trace. prefill, decode: numbers of workers; 0: as many as the validation sets for all
    conditions. roles: configuration of a roles policy. utilisation: of the prefill workers; 0: that of the given speedup, else the speedup
    follows from the profile (load.py). link_utilisation: by raw KV; 0: that of the given link, else the link's rate follows from it.
    kernel: the link is one between network namespaces.

    Senders that share the receiver's link, and propagation delay, need network namespaces.
    """

    network: Network
    speedup: float
    isl_scale: float
    skip: int
    prefill: int = 0
    decode: int = 0
    roles: RolesConfig = field(default_factory=lambda: dict(STATIC))
    utilisation: float = 0.0
    link_utilisation: float = 0.0
    kernel: bool = False

    def __post_init__(self) -> None:
        bound(self, "prefill", "decode", least=0, most=MOST_WORKERS)
        bound(self, "speedup", "isl_scale", above=0)
        bound(self, "skip", least=0)
        bound(self, "utilisation", least=0, most=1)
        bound(self, "link_utilisation", least=0, most=10)

    def sized(self, prefill: int, decode: int) -> Condition:
        """The condition with these numbers of workers, unless it sets its own. Senders that share a link are as many as the network has."""
        mine = self.network.senders if self.shared else prefill
        return replace(self, prefill=self.prefill or mine, decode=self.decode or decode)

    def check(self, name: str) -> None:
        """Check a sized condition. Raises ValueError, one line, where it cannot be run, or roles name a worker that does not exist."""
        if self.network.loss:
            raise ValueError(
                f"condition {name}: network.loss is {self.network.loss}; the simulator loses no packets, so the two cannot be compared"
            )
        if self.shared and self.prefill != self.network.senders:
            raise ValueError(f"condition {name}: {self.prefill} prefill workers are not the {self.network.senders} senders of its network")
        workers = {f"p{i}": "prefill" for i in range(self.prefill)} | {f"d{i}": "decode" for i in range(self.decode)}
        try:
            moves = self.moves
            build(self.roles).decide(0.0, [WorkerLoad(worker, role) for worker, role in workers.items()])
        except ValueError as error:
            raise ValueError(f"condition {name}: {error}") from None
        if self.network.delay_s and (self.decode > 1 or moves):
            raise ValueError(f"condition {name}: a delay needs one decode worker and roles that do not change")

    def check_namespaces(self, name: str) -> None:
        """Raises ValueError, one line, if it needs network namespaces and this machine allows none."""
        if self.namespaces and (why := Namespaces.why_not()):
            raise ValueError(f"condition {name}: a shared link, a delay or kernel=true needs network namespaces: {why}")

    def spec(self, common: LocalClusterSpec) -> LocalClusterSpec:
        return replace(common, prefill=self.prefill, decode=self.decode)

    def estimated(self, bitrate: BitrateConfig) -> BitrateConfig:
        """A bitrate policy whose first estimate of the link is that of the planned link, where the link's rate was planned."""
        link = bitrate.get("link")
        if not self.link_utilisation or not isinstance(link, Mapping) or "initial_bytes_per_s" not in link:
            return bitrate
        return {**bitrate, "link": {**link, "initial_bytes_per_s": self.network.gbps * 1e9 / 8}}

    @property
    def shared(self) -> bool:
        """Whether senders share the receiver's link."""
        return self.network.senders > 1

    @property
    def namespaces(self) -> bool:
        """Whether it needs network namespaces."""
        return self.kernel or self.shared or self.network.delay_s > 0

    @property
    def moves(self) -> bool:
        """Whether a worker may change its role."""
        return WorkerRoles(self.roles).moves

    @property
    def payload_share(self) -> float:
        """Share of the link's bytes that is payload and not packet headers. A link emulated in user space counts payload alone."""
        return payload_share(MTU) if self.namespaces else 1.0

    @property
    def cluster(self) -> str:
        return f"{self.prefill}P{self.decode}D"

    def words(self) -> str:
        capacity = self.network.capacity()
        low, high = (rate * 8 / 1e6 for rate in (min(capacity.bytes_per_s), max(capacity.bytes_per_s)))
        link = f"a link of {high:.3g} Mbit/s" if low == high else f"a link between {high:.3g} and {low:.3g} Mbit/s"
        where = " each way for every worker, so that senders share the receiver's" if self.shared else ""
        delay = f", {self.network.delay_s * 1e3:g} ms each way" if self.network.delay_s else ""
        pace = f"arrivals {self.speedup:.3g} times as fast as the trace's"
        lengths = f"its lengths times {self.isl_scale:g}, from request {self.skip} on"
        return f"{self.cluster}, {link}{where}{delay}, {pace}, {lengths}{_role_words(self.roles)}"


def _role_words(roles: Mapping[str, Any]) -> str:
    name = str(roles.get("_target_", "")).rpartition(".")[2]
    changes = [f"{c['worker']} to {c['role']} at {c['at_s']:g} s" for c in roles.get("changes", ())]
    return "" if name == "Static" else f"; roles {name.lower()}" + (f": {', '.join(changes)}" if changes else "")
