"""The sending side: a `Sender` for one peer, an `Outgoing` for one transfer, and its results (`Sent`, `RefinementResult`).

Used by prefill workers, benchmarks and tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.transfer.send.outgoing import Outgoing, RefinementResult, Sent
    from abkt.transfer.send.sender import Sender

__all__ = ["Outgoing", "RefinementResult", "Sender", "Sent"]
__getattr__ = exporter(__name__, {"Outgoing": "outgoing", "RefinementResult": "outgoing", "Sender": "sender", "Sent": "outgoing"})
