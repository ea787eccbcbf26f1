"""Other projects' 4-bit KV quantisers that run on a CPU, behind one interface.

Each is called as its own documentation or transformers' `QuantizedCache` calls it, with K and V of each layer separately. Each keeps its
result as tensors in memory, except LMCache, which returns bytes. A project is imported when its peer is made, so none of them has to be
installed.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Protocol

import torch

GROUP = 64


class PeerCodec(Protocol):
    """A peer. Its constructor takes no arguments, and imports the project. distribution: the package that has to be installed."""

    name: str
    distribution: str

    def encode(self, x: torch.Tensor) -> Any:
        """x: [layers, kinds, heads, tokens, head_dim], contiguous."""
        ...

    def decode(self, coded: Any) -> torch.Tensor:
        """Values of the shape and dtype of x."""
        ...

    def wire_bytes(self, coded: Any) -> int:
        """Bytes of everything that decode needs, except shapes."""
        ...


class Quanto:
    """Quanto as transformers' quanto cache uses it by default: groups of 64 neighbours along the channels."""

    name, distribution, axis = "quanto", "optimum-quanto", 0

    def __init__(self) -> None:
        from optimum.quanto import MaxOptimizer, qint4, quantize_weight

        self.optimizer, self.qtype, self.quantize = MaxOptimizer(), qint4, quantize_weight

    def encode(self, x: torch.Tensor) -> Any:
        return [[self._quantized(part[None]) for part in layer] for layer in x]

    def _quantized(self, part: torch.Tensor) -> Any:
        scale, shift = self.optimizer(part, self.qtype, self.axis, GROUP)
        return self.quantize(part, self.qtype, self.axis, scale, shift, GROUP)

    def decode(self, coded: Any) -> torch.Tensor:
        return torch.stack([torch.cat([part.dequantize() for part in layer]) for layer in coded])

    def wire_bytes(self, coded: Any) -> int:
        return sum(part._data._data.nbytes + part._scale.nbytes + part._shift.nbytes for layer in coded for part in layer)


class QuantoChannels(Quanto):
    """Quanto along the other axis, which keeps channels apart: groups of 64 tokens of one channel."""

    name, axis = "quanto_channels", -1


class Hqq:
    """HQQ as in transformers' HQQ cache with axis 1, as documented there: Quanto's groups, with zeros that are refined step by step."""

    name, distribution, optimize = "hqq", "hqq", True

    def __init__(self) -> None:
        from hqq.core.quantize import Quantizer

        self.quantizer = Quantizer

    def encode(self, x: torch.Tensor) -> Any:
        return [[self._quantized(part[None]) for part in layer] for layer in x]

    def _quantized(self, part: torch.Tensor) -> Any:
        given = {"nbits": 4, "group_size": GROUP, "axis": 1, "device": "cpu", "compute_dtype": part.dtype}
        codes, meta = self.quantizer.quantize(part, optimize=self.optimize, **given)
        meta["compute_dtype"] = part.dtype
        return self.quantizer.cuda(codes, meta, "cpu")  # moves to any device, despite its name; rounds scales and zeros to compute_dtype

    def decode(self, coded: Any) -> torch.Tensor:
        return torch.stack([torch.cat([self.quantizer.dequantize(*part) for part in layer]) for layer in coded])

    def wire_bytes(self, coded: Any) -> int:
        return sum(codes.nbytes + meta["scale"].nbytes + meta["zero"].nbytes for layer in coded for codes, meta in layer)


class HqqUnrefined(Hqq):
    """HQQ without refinement: a plain affine code, which is much faster."""

    name, optimize = "hqq_unrefined", False


class TorchAo:
    """torchao's affine primitives, with groups of 64 channels of a token. Two codes are packed into a byte here, in the fastest way:
    torchao's own int4 tensors need an accelerator, and its packing for a CPU is a prototype that takes longer."""

    name, distribution = "torchao", "torchao"

    def __init__(self) -> None:
        from torchao.quantization import quant_primitives

        self.ao = quant_primitives

    def encode(self, x: torch.Tensor) -> Any:
        block, limits = (*[1] * (x.dim() - 1), GROUP), (torch.uint8, 0, 15)
        scale, zero = self.ao.choose_qparams_affine(x, self.ao.MappingType.ASYMMETRIC, block, *limits, zero_point_dtype=torch.int8)
        low, high = self.ao.quantize_affine(x, block, scale, zero, *limits).chunk(2, -1)
        return low | (high << 4), scale, zero

    def decode(self, coded: Any) -> torch.Tensor:
        packed, scale, zero = coded
        codes = torch.cat((packed & 15, packed >> 4), -1)
        block = (*[1] * (codes.dim() - 1), GROUP)
        return self.ao.dequantize_affine(codes, block, scale, zero, torch.uint8, 0, 15, output_dtype=scale.dtype)

    def wire_bytes(self, coded: Any) -> int:
        return sum(part.nbytes for part in coded)


class LmCachePeer:
    """CacheGen as LMCache serialises it, chunks of 256 tokens, with the bins of the first layers of Llama-3.1-8B (32). Its coder for a CPU
    is Python compiled by numba. Its layout, [layers, kinds, tokens, heads, head_dim], is made within, in less than 1 % of its time."""

    name, distribution = "lmcache_cachegen", "lmcache"

    CHUNK = 256

    def __init__(self) -> None:
        from lmcache.storage_backend.serde.cachegen_decoder import CacheGenDeserializer
        from lmcache.storage_backend.serde.cachegen_encoder import CacheGenSerializer

        config, model = SimpleNamespace(chunk_size=self.CHUNK), SimpleNamespace(model_name="meta-llama/Llama-3.1-8B-Instruct")
        self.serializer, self.deserializer = CacheGenSerializer(config, model), CacheGenDeserializer(config, model, torch.bfloat16)
        self.bins = self.serializer.key_bins, self.serializer.value_bins

    def encode(self, x: torch.Tensor) -> Any:
        for side in (self.serializer, self.deserializer):
            side.key_bins, side.value_bins = (bins[: len(x)] for bins in self.bins)
        return [self.serializer.to_bytes(chunk.contiguous()) for chunk in x.transpose(2, 3).split(self.CHUNK, 2)]

    def decode(self, coded: Any) -> torch.Tensor:
        return torch.cat([self.deserializer.from_bytes(chunk) for chunk in coded], 2).transpose(2, 3)

    def wire_bytes(self, coded: Any) -> int:
        return sum(map(len, coded))


PEERS: tuple[type[PeerCodec], ...] = (Quanto, QuantoChannels, Hqq, HqqUnrefined, TorchAo, LmCachePeer)
