"""A small stand-in for the parts of vLLM that the connector imports, used where vLLM is not installed. test_stub.py compares the two."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

BASE = "vllm.distributed.kv_transfer.kv_connector.v1.base"
METRICS = "vllm.distributed.kv_transfer.kv_connector.v1.metrics"
PARALLEL = "vllm.distributed.parallel_state"


class KVConnectorRole(Enum):
    SCHEDULER = 0
    WORKER = 1


class KVConnectorMetadata(ABC):  # noqa: B024
    pass


class KVConnectorHandshakeMetadata(ABC):  # noqa: B024
    pass


@dataclass
class KVConnectorTransferResults:
    finished_sending: set[str] = field(default_factory=set)
    finished_recving: set[str] = field(default_factory=set)
    failed_recving: set[str] = field(default_factory=set)


class KVConnectorBase_V1(ABC):
    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        self._connector_metadata: Any = None
        self._vllm_config = vllm_config
        self._kv_transfer_config = vllm_config.kv_transfer_config
        self._kv_cache_config = kv_cache_config
        self._kv_cache_manager: Any = None
        self._role = role

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        self._kv_cache_manager = kv_cache_manager

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        self._connector_metadata = connector_metadata

    def clear_connector_metadata(self) -> None:
        self._connector_metadata = None

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], Any]) -> None:
        self.set_xfer_handshake_metadata({tp: one for (_, tp), one in metadata.items()})

    def set_xfer_handshake_metadata(self, metadata: dict[int, Any]) -> None:
        return

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return None, None

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        sent, received = self.get_finished(finished_req_ids)
        return KVConnectorTransferResults(sent or set(), received or set())

    def get_block_ids_with_load_errors(self) -> set[int]:
        return set()

    @abstractmethod
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None: ...

    @abstractmethod
    def wait_for_layer_load(self, layer_name: str) -> None: ...

    @abstractmethod
    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None: ...

    @abstractmethod
    def wait_for_save(self) -> None: ...

    @abstractmethod
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]: ...

    @abstractmethod
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None: ...

    @abstractmethod
    def build_connector_meta(self, scheduler_output: Any) -> Any: ...


@dataclass
class KVConnectorStats:
    data: dict[str, Any] = field(default_factory=dict)


class KVConnectorPromMetrics:
    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: Any) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._gauge_cls, self._counter_cls, self._histogram_cls = (metric_types[kind] for kind in (Gauge, Counter, Histogram))
        self._labelnames, self.per_engine_labelvalues = labelnames, per_engine_labelvalues


def is_real() -> bool:
    """Whether vLLM itself is installed."""
    spec = find_spec("vllm") if "vllm" not in sys.modules else sys.modules["vllm"].__spec__
    return spec is not None


def modules() -> dict[str, ModuleType]:
    """The stand-in's modules by name."""
    found: dict[str, ModuleType] = {}
    for name in (BASE, METRICS, PARALLEL):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            found.setdefault(".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    for kind in (KVConnectorRole, KVConnectorMetadata, KVConnectorHandshakeMetadata, KVConnectorTransferResults, KVConnectorBase_V1):
        setattr(found[BASE], kind.__name__, kind)
    for kind in (KVConnectorStats, KVConnectorPromMetrics):
        setattr(found[METRICS], kind.__name__, kind)
    found[PARALLEL].get_tensor_model_parallel_rank = lambda: 0  # type: ignore[attr-defined]
    return found


def connector_class() -> Any:
    """AbktConnector, over vLLM or over the stand-in. Both stay imported, and this process is the only TP rank."""
    if not is_real() and "vllm" not in sys.modules:
        sys.modules.update(modules())
    import_module(PARALLEL).get_tensor_model_parallel_rank = lambda: 0  # type: ignore[attr-defined]
    from abkt.connect.vllm import AbktConnector

    return AbktConnector
