"""ABKT's KV connector for vLLM: KV travels from prefill to decode servers as an embedded stream that is cut and refined on the way.

`vllm serve` finds it by `"kv_connector": "AbktConnector", "kv_connector_module_path": "abkt.connect.vllm"`; docs/vllm.md has the rest.

Only connector.py and prometheus.py import vLLM. connector.py passes vLLM's calls on to two parts: `SchedulerSide`, which lives in the
engine's process and decides which request loads what, and `WorkerSide`, which lives beside the model and moves bytes. A worker side has an
`Outbox` (prefill: KV that waits to be fetched) and an `Inbox` (decode: KV that is awaited). The decode side asks first: it sends a small
transfer, the ask, which names the request and the address to send its KV to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.connect.vllm.connector import AbktConnector
    from abkt.connect.vllm.settings import Settings

__all__ = ["AbktConnector", "Settings"]
__getattr__ = exporter(__name__, {"AbktConnector": "connector", "Settings": "settings"})
