"""The current run of a prefill worker: its clock, its link, and the decode workers to which it may send."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from abkt.capacity import Capacity
from abkt.policy.build import build
from abkt.policy.view import TransferView
from abkt.profile.schema import Profile
from abkt.serve.commands import StartPrefillRun, WorkerConfig
from abkt.serve.expect import serving_view
from abkt.serve.pacing import Pacing
from abkt.serve.worker.nic import WorkerNic
from abkt.serve.worker.peer import DecodePeer
from abkt.serve.worker.raw import fingerprint
from abkt.spec import KVLayout
from abkt.transfer.protocol.key import find_key
from abkt.transfer.protocol.messages import Hello
from abkt.transfer.send.sender import Sender


class PrefillRun:
    """One run. It has its own policies, link schedule and connections. device: device of this worker's pool."""

    def __init__(self, config: WorkerConfig, layout: KVLayout, device: str) -> None:
        self._config, self._layout, self._device = config, layout, device
        self._key = find_key(config.key_file, config.encrypt)
        self._bitrate: Mapping[str, Any] = {}
        self._profile: Profile | None = None
        self.nic = WorkerNic()
        self.pacing = Pacing("userspace", Capacity.constant(math.inf), 0.0, config.transport)
        self.peers: dict[str, DecodePeer] = {}
        self.origin_s = 0.0

    def start(self, run: StartPrefillRun) -> None:
        self.close()
        self.origin_s, self._profile, self._bitrate = run.origin_s, run.profile, run.bitrate
        self.pacing = Pacing(run.pacing, run.network, run.origin_s, self._config.transport)
        self.nic.reset(max(run.network.bytes_per_s))
        for name, address in run.peers.items():
            self.add_peer(name, address)

    def add_peer(self, name: str, address: str) -> None:
        """Add a decode worker that accepts KV at this address."""
        self.remove_peer(name)
        hello = Hello(self._config.name, fingerprint(self._layout))
        sender = Sender(self.pacing.transport, address, hello, self.pacing.link, key=self._key)
        self.peers[name] = DecodePeer(build(self._bitrate), sender, self.pacing.name, self.nic, self.origin_s)

    def remove_peer(self, name: str) -> None:
        """Remove a decode worker that has left; unfinished transfers to it fail."""
        if peer := self.peers.pop(name, None):
            peer.sender.close()

    def close(self) -> None:
        for name in list(self.peers):
            self.remove_peer(name)
        self.pacing.close()

    def now_s(self) -> float:
        return time.monotonic() - self.origin_s

    def prefill_s(self, tokens: int) -> float:
        """Expected time of a prompt's prefill; 0 without a profile."""
        return self._profile.fit("prefill").seconds(tokens=tokens) if self._profile else 0.0

    def view(self, peer: DecodePeer, tokens: int, deadline_s: float, now_s: float) -> TransferView:
        """The view of a transfer before encoding: that of the frontend's quote, with the current price."""
        view = serving_view(self._profile, self._layout.model, tokens, deadline_s, self._device)
        return replace(view, price=peer.price_per_byte(now_s))
