"""A raw transfer's bytes are the same from the pool's own memory and through the host's, and arrive in the blocks of the receiver."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from abkt.kv.pool import Pool
from abkt.serve.worker import raw
from abkt.spec import KVLayout, ModelSpec

TABLE = [5, 6, 7, 2, 9, 0]
OTHER = [1, 3, 4, 8, 10, 11]
TOKENS = 90


def pool(seed: int) -> Pool:
    made = Pool(KVLayout(ModelSpec("made-up", layers=3, kv_heads=2, head_dim=8, dtype="bfloat16", max_tokens=512), 12, 16))
    made.data.view(torch.int16).copy_(torch.randint(-(2**15), 2**15, made.data.shape, generator=torch.Generator().manual_seed(seed)))
    return made


def sent(source) -> bytes:
    return b"".join(source.buffers(0, source.size))


@pytest.mark.parametrize("arrives", ["in place", "through the host"])
@pytest.mark.parametrize("leaves", ["in place", "through the host"])
def test_every_bit_arrives_in_its_block_and_nothing_else_changes(monkeypatch, leaves, arrives):
    ours, theirs, before = pool(1), pool(2), pool(2)
    monkeypatch.setattr(raw, "in_place", lambda of, transport: (leaves if of is ours else arrives) == "in place")
    source, sink = raw.raw_source(ours, TABLE, TOKENS), raw.raw_sink(theirs, OTHER, TOKENS)
    data = sent(source)
    assert len(data) == sink.size == len(TABLE) * ours.layout.block_bytes
    at = 0
    for piece in sink.buffers(0, sink.size):
        piece[:] = data[at : at + piece.nbytes]
        at += piece.nbytes
    if arrives != "in place":
        assert torch.equal(theirs.data.view(torch.int16), before.data.view(torch.int16))
        raw.put_raw(sink.data, theirs, OTHER, TOKENS)
    check(ours, theirs, before)


def check(ours, theirs, before):
    bits, untouched = theirs.data.view(torch.int16), [b for b in range(12) if b not in OTHER]
    assert torch.equal(bits[OTHER], ours.data.view(torch.int16)[TABLE])
    assert torch.equal(bits[untouched], before.data.view(torch.int16)[untouched])


def test_a_device_pool_is_read_and_written_in_place_with_one_piece_for_each_run():
    """The test uses a CPU pool, whose pieces are the same."""
    ours, theirs, before = pool(1), pool(2), pool(2)
    source, sink = raw.device_pieces(ours, TABLE, TOKENS), raw.device_pieces(theirs, OTHER, TOKENS)
    size = ours.layout.block_bytes
    assert [len(piece) for piece in source.buffers(0, source.size)] == [3 * size, size, size, size]
    assert source.ends == (6 * size,)
    assert sink.size == 6 * size
    at = 0
    for piece in sink.buffers(0, sink.size):
        piece.copy_(torch.cat(source.buffers(at, at + len(piece))))
        at += len(piece)
    check(ours, theirs, before)


def test_only_a_transport_with_gpu_access_reads_device_memory_directly():
    on_gpu = SimpleNamespace(data=SimpleNamespace(device=torch.device("cuda")))
    assert [raw.in_place(on_gpu, transport) for transport in ("tcp", "unix", "shm", "nixl", "cuda_ipc")] == [False] * 4 + [True]
    assert raw.in_place(pool(1), "tcp")
