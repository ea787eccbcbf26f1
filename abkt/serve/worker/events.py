"""What a worker's own threads post to its main loop. These never leave the process; messages that do are in `abkt.serve.commands`."""

from __future__ import annotations

from dataclasses import dataclass

from abkt.transfer.receive.received import Received


@dataclass(frozen=True, slots=True)
class FrontendGone:
    """No command will come any more: end."""


@dataclass(frozen=True, slots=True)
class KVArrived:
    """A transfer is committed: its KV may be expanded and decoded."""

    received: Received


@dataclass(frozen=True, slots=True)
class RefinementSettled:
    """Nothing follows a refinable transfer any more."""

    received: Received


@dataclass(frozen=True, slots=True)
class TransferEnded:
    """The sender is done with a transfer, so the blocks of `table` can be freed."""

    attempt_id: int
    table: list[int]


WorkerEvent = FrontendGone | KVArrived | RefinementSettled | TransferEnded
