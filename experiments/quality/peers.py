"""KV codecs of other projects: quanto and HQQ through transformers' QuantizedCache, and LMCache's CacheGen with its real bytes.

A cache gets the prompt's KV as from prefill. The KV that it returns for the next token counts as the received KV. Its bytes are those of
the tensors that it holds: codes, scales and zeros. A codec is available if its package is installed (`pip install abkt[peers]`; LMCache is
installed separately).
Not modelled: their residual windows, which a cache fills only with decoded tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from experiments.quality.methods import Held, Method, RatePoint


@dataclass(frozen=True)
class Cached:
    """backend, bits, axis: arguments of transformers' QuantizedCache; the axis is that of keys and of values. Groups of 64."""

    name: str
    backend: str
    bits: int
    axis: int

    def points(self, held: Held) -> Iterator[RatePoint]:
        model = held.pool.layout.model
        cache = self._cache(model.layers)
        layers, wire_bytes = [], 0
        for layer in range(model.layers):
            keys, values = (part[None].contiguous() for part in held.pool.read(held.table, layer, held.tokens))
            cache.update(keys, values, layer)
            wire_bytes += sum(_bytes(part) for part in (cache.layers[layer]._quantized_keys, cache.layers[layer]._quantized_values))
            back = cache.update(keys[:, :, :1], values[:, :, :1], layer)
            layers.append([part[0, :, : held.tokens] for part in back])
        yield RatePoint("", wire_bytes, lambda table: _write(held, table, layers))

    def _cache(self, layers: int) -> Any:
        from transformers import LlamaConfig, QuantizedCache

        shape = LlamaConfig(num_hidden_layers=layers)  # the cache reads only the number and kinds of layers
        return QuantizedCache(self.backend, shape, nbits=self.bits, axis_key=self.axis, axis_value=self.axis)


@dataclass(frozen=True)
class LmCacheMethod:
    """LMCache's CacheGen, with its real bytes, chunk by chunk."""

    name: str = "lmcache"

    def points(self, held: Held) -> Iterator[RatePoint]:
        from abkt.bench.peer_codecs import LmCachePeer

        codec = LmCachePeer()
        x = torch.stack([torch.stack(held.pool.read(held.table, layer, held.tokens)) for layer in range(held.pool.layout.model.layers)])
        coded = codec.encode(x.contiguous())
        back = codec.decode(coded)
        yield RatePoint("", codec.wire_bytes(coded), lambda table: _write(held, table, [list(layer) for layer in back]))


PEERS: tuple[tuple[Method, str, str], ...] = (
    (Cached("quanto4", "quanto", 4, 0), "optimum.quanto", "optimum-quanto"),
    (Cached("quanto2", "quanto", 2, 0), "optimum.quanto", "optimum-quanto"),
    (Cached("quanto4-channels", "quanto", 4, -1), "optimum.quanto", "optimum-quanto"),
    (Cached("hqq4", "hqq", 4, 1), "hqq", "hqq"),
    (Cached("hqq2", "hqq", 2, 1), "hqq", "hqq"),
    (LmCacheMethod(), "lmcache", "lmcache"),
)
"""(method, the module that it needs, the distribution that has the module)."""


def peers() -> dict[str, Method]:
    """The methods whose package is installed, by name."""
    return {method.name: method for method, module, _ in PEERS if _there(module)}


def reasons() -> dict[str, str]:
    """Why each of the other methods is not available, by name."""
    return {method.name: f"{distribution} is not installed" for method, module, distribution in PEERS if not _there(module)}


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def _bytes(part: Any) -> int:
    """Bytes of one quantised tensor, as quanto or HQQ holds it."""
    if isinstance(part, tuple):
        codes, meta = part
        return codes.nbytes + meta["scale"].nbytes + meta["zero"].nbytes
    return part._data._data.nbytes + part._scale.nbytes + part._shift.nbytes


def _write(held: Held, table: list[int], layers: list[list[torch.Tensor]]) -> None:
    for layer, (keys, values) in enumerate(layers):
        held.pool.write(table, layer, 0, keys.to(held.pool.dtype), values.to(held.pool.dtype))


def failure(method: Method, held: Held) -> str:
    """Why a method fails on this KV, in one line; empty if it does not. Code of other projects may raise any of these errors."""
    try:
        list(method.points(held))
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""
