"""The serde for LMCache's stores: chunks come back within their precision, in bytes whose size is known before."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from abkt.connect.lmcache.codec import ChunkCodec


def chunk(kinds: int = 2, layers: int = 3, tokens: int = 256, hidden: int = 128, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    torch.manual_seed(tokens)
    place = torch.arange(hidden) * 0.3
    smooth = torch.sin(torch.arange(tokens)[:, None] * 0.05 + place) + 0.2 * torch.randn(kinds, layers, tokens, hidden)
    return smooth.to(dtype)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(2, 3, 256, 128), (2, 1, 100, 64), (2, 2, 16, 64), (1, 2, 128, 576)])
def test_a_chunk_comes_back_and_its_size_was_known(bits: int, shape: tuple[int, int, int, int]) -> None:
    codec, one, other = ChunkCodec(bits, 64), chunk(*shape), torch.zeros(shape, dtype=torch.bfloat16)
    data = codec.encode(one)
    assert len(data) == codec.size(shape, torch.bfloat16)
    assert codec.encode(one.clone()) == data, "equal chunks must be equal bytes"
    codec.decode(data, other)
    error = float(((other.float() - one.float()) ** 2).sum() / (one.float() ** 2).sum())
    assert error <= {2: 0.15, 4: 0.01, 8: 1e-4}[bits]
    assert torch.equal(other[:, :, 0], one[:, :, 0]), "the first tokens travel verbatim"


@pytest.mark.parametrize(
    ("fields", "line"),
    [({"coder": "entropy"}, "LMCache's stores need coder fixed"), ({"bits": 5}, "bits is 5; one of"), ({"head_dim": 0}, "head_dim is 0")],
)
def test_what_cannot_be_stored_is_refused(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        ChunkCodec(**fields)


def test_wrong_chunks_and_bytes_are_one_line() -> None:
    codec = ChunkCodec(4, 64)
    with pytest.raises(ValueError, match=r"\(3, 4\) is not \[kinds, layers, tokens, hidden\]"):
        codec.size((3, 4), torch.bfloat16)
    with pytest.raises(ValueError, match="hidden size of 100 is not a multiple of head_dim 64"):
        codec.size((2, 1, 16, 100), torch.bfloat16)
    bad = chunk(2, 1, 64, 64)
    bad[0, 0, 30, 3] = float("nan")
    with pytest.raises(ValueError, match="cannot be coded, such as values that are not finite"):
        codec.encode(bad)
    with pytest.raises(ValueError, match="stream"):
        codec.decode(b"\0" * 400, chunk(2, 1, 64, 64))


def test_the_plugin_registers_a_serde(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over stand-ins for LMCache's modules, which have the signatures of version 0.5."""
    registered: dict[str, Any] = {}
    names = {"async_processor": ["AsyncSerdeProcessor"], "base": ["Serializer", "Deserializer"], "factory": []}
    for parent in ("lmcache", "lmcache.v1", "lmcache.v1.distributed", "lmcache.v1.distributed.serde"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    for name, kinds in names.items():
        module = ModuleType(f"lmcache.v1.distributed.serde.{name}")
        for kind in kinds:
            setattr(module, kind, type(kind, (), {}))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    sys.modules["lmcache.v1.distributed.serde.factory"].register_serde_factory = registered.__setitem__  # type: ignore[attr-defined]
    made = SimpleNamespace()
    sys.modules["lmcache.v1.distributed.serde.async_processor"].AsyncSerdeProcessor = (  # type: ignore[attr-defined]
        lambda serializer, deserializer, max_workers: made.__dict__.update(s=serializer, d=deserializer) or made
    )
    monkeypatch.delitem(sys.modules, "abkt.connect.lmcache.plugin", raising=False)
    import_module("abkt.connect.lmcache.plugin")

    monkeypatch.delitem(sys.modules, "abkt.connect.lmcache.plugin")
    registered["abkt"]({"type": "abkt", "bits": 8, "head_dim": 64})
    one = chunk()
    layout = SimpleNamespace(shapes=[one.shape], dtypes=[one.dtype])
    buffer, back = torch.zeros(made.s.estimate_serialized_size(layout), dtype=torch.uint8), torch.zeros_like(one)
    written = made.s.serialize(SimpleNamespace(tensor=one), SimpleNamespace(tensor=buffer), "key")
    assert written == len(buffer)
    made.d.deserialize(SimpleNamespace(tensor=buffer), SimpleNamespace(tensor=back), "key")
    assert torch.allclose(back.float(), one.float(), atol=0.05)
    with pytest.raises(ValueError, match="serde abkt has no bit; it may have bits"):
        registered["abkt"]({"type": "abkt", "bit": 8})
