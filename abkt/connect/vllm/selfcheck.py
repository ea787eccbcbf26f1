"""Which arrangement a backend uses, found out at start: a pattern goes through the backend's own cache write, and we read it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from abkt.connect.vllm.layout import Arrangement, PagedKV

ARRANGEMENTS: tuple[Arrangement, ...] = ("split", "cpu", "latent")
FULL = {"FullAttentionSpec", "MLAAttentionSpec"}  # vLLM's kinds of KV cache that can be sent
LATENT_SIZES = ("kv_lora_rank", "qk_rope_head_dim")  # attributes of an MLA layer


def checked(caches: Mapping[str, torch.Tensor], layers: Mapping[str, Any], name: str) -> PagedKV:
    """The caches of all layers, with the arrangement in which the backend's writes are read back.

    Parameters
    ----------
    caches : layer name -> its cache, as vLLM registers them. No block may be in use. They are 0 where the check has written.
    layers : layer name -> vLLM's attention layer, with its `impl`.
    name : the model's name.

    Raises
    ------
    ValueError : one line, if the layout is not known.
    """
    names = sorted(caches, key=_number)
    tensors = tuple(caches[each] for each in names)
    for arrangement in ARRANGEMENTS:
        try:
            paged = PagedKV(tensors, arrangement, name)
        except ValueError:
            continue
        if all(_reads_back(paged, caches[each], layers[each], index) for index, each in ((0, names[0]), (len(names) - 1, names[-1]))):
            return paged
    backend = type(layers[names[0]].impl).__name__
    isa = getattr(layers[names[0]], "isa", "")
    what = f"{backend}{f' with {isa}' if isa else ''}, caches of {tuple(tensors[0].shape)} {tensors[0].dtype}"
    raise ValueError(f"AbktConnector does not know the KV layout of {what}; use another attention backend, dtype or block size")


def _reads_back(paged: PagedKV, cache: torch.Tensor, layer: Any, index: int) -> bool:
    """Whether what the backend writes into one layer's last two blocks is what `gather` finds there."""
    spec, size = paged.spec, paged.block_tokens
    blocks = [paged.blocks - 1, paged.blocks - 2] if paged.blocks > 1 else [0]
    tokens = len(blocks) * size - 3
    places = torch.arange(tokens, device=cache.device)
    slots = torch.tensor(blocks, device=cache.device)[places // size] * size + places % size
    pattern = torch.arange(tokens * spec.kv_kinds * spec.kv_heads * spec.head_dim, device=cache.device, dtype=torch.float32)
    pattern = (pattern * 0.618034 % 1.0 - 0.5).to(cache.dtype).view(spec.kv_kinds, tokens, spec.kv_heads, spec.head_dim)
    try:
        _backend_write(layer, cache, pattern, slots)
        got = paged.gather(blocks, tokens).data[:, index]  # [pool blocks, kinds, heads, tokens, dim]
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError):  # the arrangement is not this one
        return False
    finally:
        for block in blocks:
            cache[block] = 0
    found = got.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :tokens]
    return torch.equal(found, pattern)


def _backend_write(layer: Any, cache: torch.Tensor, pattern: torch.Tensor, slots: torch.Tensor) -> None:
    if len(pattern) == 2:
        layer.impl.do_kv_cache_update(layer, pattern[0].contiguous(), pattern[1].contiguous(), cache, slots)
        return
    rank = getattr(layer, LATENT_SIZES[0])
    latent = pattern[0, :, 0]
    layer.impl.do_kv_cache_update(
        latent[:, :rank].contiguous(), latent[:, None, rank:].contiguous(), cache, slots, layer.kv_cache_dtype, layer._k_scale
    )


def _number(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(".") if part.isdecimal())


def unknown_groups(groups: Sequence[Any]) -> str:
    """Why a model's KV cache groups cannot be sent; empty if they can. Only full attention keeps the blocks of all tokens."""
    if len(groups) > 1:
        return f"AbktConnector sends one KV cache group; this model has {len(groups)} ({', '.join(sorted(_kinds(groups)))})"
    if unknown := sorted(_kinds(groups) - FULL):
        return (
            f"AbktConnector sends KV of full attention; this model has {', '.join(unknown)}, which does not keep every token's KV in blocks"
        )
    return ""


def _kinds(groups: Sequence[Any]) -> set[str]:
    """Names of the kinds of layers in these groups: a group of equal kinds but several sizes has one spec for each layer."""
    specs = [group.kv_cache_spec for group in groups]
    return {type(each).__name__ for spec in specs for each in getattr(spec, "kv_cache_specs", {"": spec}).values()}
