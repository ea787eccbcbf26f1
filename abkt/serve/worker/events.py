"""Events that a worker's own threads post to its main loop. They never leave the process. Messages to and from the frontend are defined in
`abkt.serve.commands` and `abkt.serve.reports`."""

from __future__ import annotations

from dataclasses import dataclass

from abkt.transfer.receive.received import Received


@dataclass(frozen=True, slots=True)
class FrontendGone:
    """The frontend has closed the connection; the worker must end."""


@dataclass(frozen=True, slots=True)
class KVArrived:
    """A transfer is committed; its KV may be expanded and decoded."""

    received: Received


@dataclass(frozen=True, slots=True)
class RefinementSettled:
    """The refinement of a transfer has ended; no more bytes follow."""

    received: Received


@dataclass(frozen=True, slots=True)
class TransferEnded:
    """The sender has finished a transfer; the blocks in `table` can be freed."""

    attempt_id: int
    table: list[int]


WorkerEvent = FrontendGone | KVArrived | RefinementSettled | TransferEnded
