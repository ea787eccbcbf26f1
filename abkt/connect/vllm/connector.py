"""The class that vLLM loads. It passes vLLM's calls on to a `SchedulerSide` or a `WorkerSide`. Checked against vLLM 0.32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
)

from abkt.connect.vllm import selfcheck, stats
from abkt.connect.vllm.handshake import Handshake
from abkt.connect.vllm.metadata import StepWork
from abkt.connect.vllm.prometheus import AbktPromMetrics, AbktStats
from abkt.connect.vllm.scheduler import SchedulerSide
from abkt.connect.vllm.settings import Settings
from abkt.connect.vllm.worker import WorkerSide, rope_theta_of

if TYPE_CHECKING:
    import torch

KVConnectorMetadata.register(StepWork)
KVConnectorHandshakeMetadata.register(Handshake)


class AbktConnector(KVConnectorBase_V1):
    """ABKT's KV connector; see the package. kv_connector_extra_config: the fields of Settings."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        self.settings = Settings.of(transfer.kv_connector_extra_config or {})
        if reason := selfcheck.unknown_groups(kv_cache_config.kv_cache_groups):
            raise ValueError(reason)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        if role == KVConnectorRole.SCHEDULER:
            block = vllm_config.cache_config.block_size
            self._scheduler = SchedulerSide(self.settings, block, transfer.is_kv_producer, transfer.is_kv_consumer)

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None:
        return Settings.of(vllm_config.kv_transfer_config.kv_connector_extra_config or {}).kv_cache_layout or None

    # The scheduler's side.

    @property
    def scheduler_side(self) -> SchedulerSide:
        assert self._scheduler is not None, "vLLM called the scheduler's part of a worker's connector"
        return self._scheduler

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        self.scheduler_side.hash_tokens = kv_cache_manager.block_pool.hash_block_size

    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> None:
        self.scheduler_side.introduce(metadata)  # type: ignore[arg-type]

    def get_loaded_kv_cache_group_ids(self, request: Any) -> tuple[int, ...]:
        return tuple(self._kv_cache_config.transfer_group_ids)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        return self.scheduler_side.matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self.scheduler_side.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> StepWork:
        return self.scheduler_side.step(scheduler_output)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.scheduler_side.finished(request, block_ids)

    # The worker's side.

    @property
    def worker_side(self) -> WorkerSide:
        assert self._worker is not None, "vLLM called the connector before it registered the KV caches"
        return self._worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

        config = self._vllm_config
        model = config.model_config
        name = self.settings.model_name or Path(str(model.model)).name
        paged = selfcheck.checked(kv_caches, config.compilation_config.static_forward_context, name)
        theta = rope_theta_of(model.hf_text_config.to_dict())
        parallel = config.parallel_config
        self._worker = WorkerSide(self.settings, paged, get_tensor_model_parallel_rank(), parallel.tensor_parallel_size, theta)

    def get_handshake_metadata(self) -> Handshake:  # type: ignore[override]
        return self.worker_side.handshake

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """Begins the step's work. vLLM calls start_load_kv behind the model's pass, when others have waited for all of it."""
        super().bind_connector_metadata(connector_metadata)
        assert isinstance(connector_metadata, StepWork)
        self.worker_side.step(connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Loads have begun with the step."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """KV is loaded beside steps, never inside one."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """KV is copied when its request has finished."""

    def wait_for_save(self) -> None:
        """Nothing is saved inside a step."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        sent, loaded, self._bad_blocks = self.worker_side.poll()
        return sent or None, loaded or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    _bad_blocks: set[int] = set()  # noqa: RUF012  # always replaced, never changed

    def get_kv_connector_stats(self) -> AbktStats | None:
        data = self._worker.counters.take() if self._worker else None
        return AbktStats(data=data) if data else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> AbktStats:
        return AbktStats(data=data or stats.empty())

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Mapping[Any, Any], labelnames: list[str], per_engine_labelvalues: dict[int, list[object]]
    ) -> AbktPromMetrics:
        return AbktPromMetrics(vllm_config, dict(metric_types), labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        if self._worker:
            self._worker.close()
            self._worker = None
