"""A worker process: it prefills prompts and sends their KV, or receives KV and decodes. The frontend starts it as `abkt.serve.worker.main`;
only tests import this package otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.serve.worker.decode import DecodeWorker
    from abkt.serve.worker.prefill import PrefillWorker

__all__ = ["DecodeWorker", "PrefillWorker"]
__getattr__ = exporter(__name__, {"DecodeWorker": "decode", "PrefillWorker": "prefill"})
