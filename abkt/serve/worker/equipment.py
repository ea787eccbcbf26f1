"""What a worker uses in both roles: the model with its KV pool, the codec, and the block allocator. All of them are warmed up."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from abkt.codec.calibration import load
from abkt.codec.codec import Codec
from abkt.codec.lossless import stream as lossless_stream
from abkt.kv.segments import Segments
from abkt.profile import schema
from abkt.serve.commands import WorkerConfig
from abkt.serve.engine.attention import SequenceRow
from abkt.serve.engine.engine import Engine, read_spec, rope_theta
from abkt.serve.engine.model_folder import fingerprint
from abkt.serve.worker.device_lock import DeviceLock
from abkt.serve.worker.paced import PacedEngine
from abkt.spec import KVLayout


@dataclass(frozen=True, slots=True)
class Equipment:
    """The parts of a worker. segments: the allocator of the pool's blocks. device_lock: held while the device computes."""

    engine: Engine | PacedEngine
    codec: Codec
    segments: Segments
    device_lock: AbstractContextManager[object] = field(default_factory=nullcontext)

    def prepare(self, tokens: Sequence[int]) -> None:
        """With compute=paced: compute and keep the KV of this prompt; the pool must be empty. With compute=real: do nothing."""
        if isinstance(self.engine, PacedEngine):
            if self.segments.free_blocks < self.segments.blocks:
                raise ValueError("a prompt cannot be prepared while the pool holds the KV of others")
            self.engine.prepare(tokens)


def equip(config: WorkerConfig) -> Equipment:
    """Load and warm up all that a worker needs. Raises ValueError if the model folder, the profile or the calibration cannot be read, or if
    they do not fit together."""
    folder = Path(config.model_folder)
    layout = KVLayout(read_spec(folder), config.blocks, config.block_tokens)
    calibration = load(Path(config.calibration)) if config.calibration else None
    if calibration:
        calibration.check_files(fingerprint(folder))
    engine, codec = (
        Engine(folder, layout, config.device, config.dtype),
        Codec(layout, rope_theta=rope_theta(folder), calibration=calibration, cut_windows=True),
    )
    _warm_up(engine, codec)
    paced = PacedEngine(engine, schema.load(Path(config.paced))) if config.paced else engine
    return Equipment(paced, codec, Segments(config.blocks), _device_lock(config))


def _device_lock(config: WorkerConfig) -> AbstractContextManager[object]:
    if not config.device_lock:
        return nullcontext()
    return DeviceLock(Path(config.device_lock), torch.cuda.synchronize if config.device == "cuda" else lambda: None)


def _warm_up(engine: Engine, codec: Codec) -> None:
    """Use the model and the codec once, since the first use of each takes longer than later ones."""
    tokens = min(256, engine.layout.model.max_tokens - 1, engine.layout.blocks * engine.layout.block_tokens - 1)
    table = list(range(engine.layout.blocks_for(tokens + 1)))
    engine.prefill(list(range(tokens)), table)
    for depth_bits in (2, 4, 8):
        stream = codec.encode(engine.pool, table, tokens, depth_bits=depth_bits, order="slope")
        codec.expand(b"".join(stream.buffers(0, stream.ends[-1])), engine.pool, table)
    if engine.pool.data.device.type == "cpu":
        stream = codec.encode(engine.pool, table, tokens, coder="entropy")
        codec.expand(b"".join(stream.buffers(0, stream.ends[-1])), engine.pool, table)
        if codec.calibration and codec.calibration.basis:
            codec.expand(codec.encode(engine.pool, table, tokens, coder="klt").prefix(-1), engine.pool, table)
        lossless_stream.expand(lossless_stream.encode(engine.pool, table, tokens), engine.pool, table)
    engine.decode([SequenceRow(table, tokens)], [0])
