"""The receiving side: a `Receiver` for a node, and a `Received` for each transfer that its peers send.

Used by decode workers, benchmarks and tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.transfer.receive.received import Received
    from abkt.transfer.receive.receiver import Receiver

__all__ = ["Received", "Receiver"]
__getattr__ = exporter(__name__, {"Received": "received", "Receiver": "receiver"})
