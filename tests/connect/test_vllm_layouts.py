"""Gathering from and scattering into each layout of vLLM, against writes that do what that backend's kernel does, token by token."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abkt.connect.vllm.layout import CODEC_TOKENS, MOST_RUNS, PagedKV
from abkt.connect.vllm.selfcheck import checked, unknown_groups

BLOCKS, LAYERS = 9, 3


class Cpu:
    """The CPU backend's `vec` and `vec16`: K transposed inside a block and head, then V."""

    def do_kv_cache_update(self, layer: Any, key: Any, value: Any, cache: Any, slots: Any) -> None:
        blocks, heads, tokens, content = cache.shape
        flat, half = cache.view(blocks, heads, tokens * content), tokens * content // 2
        for at, slot in enumerate(slots.tolist()):
            block, place = divmod(slot, tokens)
            for dim in range(content // 2):
                flat[block, :, dim * tokens + place] = key[at, :, dim]
                flat[block, :, half + place * (content // 2) + dim] = value[at, :, dim]


class Split:
    """FlashAttention, FlashInfer, Triton: K in the first half of a token's content, V in the second."""

    def do_kv_cache_update(self, layer: Any, key: Any, value: Any, cache: Any, slots: Any) -> None:
        tokens, width = cache.shape[2], cache.shape[3] // 2
        for at, slot in enumerate(slots.tolist()):
            cache[slot // tokens, :, slot % tokens, :width] = key[at]
            cache[slot // tokens, :, slot % tokens, width:] = value[at]


class Latent:
    """MLA: the latent of a token, then its rotary part."""

    def do_kv_cache_update(self, latent: Any, rope: Any, cache: Any, slots: Any, dtype: str, scale: Any) -> None:
        for at, slot in enumerate(slots.tolist()):
            cache[slot // cache.shape[1], slot % cache.shape[1]] = torch.cat((latent[at], rope[at, 0]))


class Unknown:
    """Packs values in pairs, as AMX does."""

    def do_kv_cache_update(self, layer: Any, key: Any, value: Any, cache: Any, slots: Any) -> None:
        Split().do_kv_cache_update(layer, key.flip(-1), value.flip(-1), cache, slots)


# Physical order of the axes of [layer, block, head, token, content], as vLLM's KVCacheLayout names them.
ORDERS = {"LBHNC": (0, 1, 2, 3, 4), "LBNHC": (0, 1, 3, 2, 4), "LHBNC": (0, 2, 1, 3, 4), "BLHNC": (1, 0, 2, 3, 4), "BLNHC": (1, 0, 3, 2, 4),
          "BHLNC": (1, 2, 0, 3, 4)}  # fmt: skip


def caches(order: str, heads: int, tokens: int, dim: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The views that vLLM registers, one for each layer, over one memory of the given order."""
    shape, axes = (LAYERS, BLOCKS, heads, tokens, 2 * dim), ORDERS[order]
    memory = torch.zeros([shape[axis] for axis in axes], dtype=dtype)
    logical = memory.permute(*(axes.index(axis) for axis in range(5)))
    return {f"model.layers.{index}.self_attn.attn": logical[index] for index in (1, 0, 2)}


CASES = {
    "CPU vec": (Cpu(), lambda: caches("LBHNC", 3, 32, 64)),
    "CPU vec16": (Cpu(), lambda: caches("LBHNC", 2, 16, 48)),
    "FlashAttention HND": (Split(), lambda: caches("LBHNC", 2, 16, 64, torch.bfloat16)),
    "FlashAttention NHD": (Split(), lambda: caches("LBNHC", 2, 16, 64, torch.float16)),
    "FlashInfer across layers": (Split(), lambda: caches("BLHNC", 4, 32, 32, torch.bfloat16)),
    "BLNHC": (Split(), lambda: caches("BLNHC", 2, 16, 32)),
    "BHLNC": (Split(), lambda: caches("BHLNC", 2, 16, 32)),
    "LHBNC": (Split(), lambda: caches("LHBNC", 2, 16, 32)),
    "MLA": (Latent(), lambda: {f"l.{i}": torch.zeros(BLOCKS, 64, 576, dtype=torch.bfloat16) for i in range(LAYERS)}),
}


def found(impl: Any, tensors: dict[str, torch.Tensor]) -> PagedKV:
    extra = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "kv_cache_dtype": "auto", "_k_scale": None}
    return checked(tensors, {name: SimpleNamespace(impl=impl, **extra) for name in tensors}, "m")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tokens", [1, 16, 47, 100])
def test_what_a_backend_has_written_is_gathered_and_scattered_back(case: str, tokens: int) -> None:
    impl, make = CASES[case]
    tensors = make()
    paged = found(impl, tensors)
    spec, size = paged.spec, paged.block_tokens
    assert all(bool((each == 0).all()) for each in tensors.values()), "the self-check has left something behind"
    assert [each.data_ptr() for each in paged.layers] == [tensors[name].data_ptr() for name in sorted(tensors)]
    ids = [7, 2, 5, 0, 8, 3, 1][: -(-tokens // size)]
    torch.manual_seed(tokens)
    values = torch.randn(LAYERS, spec.kv_kinds, tokens, spec.kv_heads, spec.head_dim).to(paged.layers[0].dtype)
    slots = torch.tensor(ids)[torch.arange(tokens) // size] * size + torch.arange(tokens) % size
    for index, layer in enumerate(paged.layers):
        write(impl, layer, values[index], slots)
    pool = paged.gather(ids, tokens)
    for index in range(LAYERS):
        for kind, held in enumerate(pool.read(range(len(pool.data)), index, tokens)):
            assert torch.equal(held.transpose(0, 1), values[index, kind])
    assert bool((pool.data[-1, :, :, :, tokens - (len(pool.data) - 1) * CODEC_TOKENS :] == 0).all())

    before = {name: each.clone() for name, each in tensors.items()}
    other = [6, 4, 8, 2, 0, 5, 3][: len(ids)]
    for each in tensors.values():
        each.fill_(3.0)
    paged.scatter(pool.data, other, tokens)
    expected = {name: torch.full_like(each, 3.0) for name, each in before.items()}
    slots = torch.tensor(other)[torch.arange(tokens) // size] * size + torch.arange(tokens) % size
    for index, name in enumerate(sorted(tensors)):
        write(impl, expected[name], values[index], slots)
        assert torch.equal(tensors[name], expected[name]), "another token, block or layer was written, or this one was not"


def write(impl: Any, cache: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
    if len(values) == 2:
        impl.do_kv_cache_update(None, values[0], values[1], cache, slots)
    else:
        impl.do_kv_cache_update(values[0, :, 0, :512], values[0, :, :, 512:], cache, slots, "auto", None)


@given(st.data())
def test_scatter_undoes_gather_for_any_blocks(data: st.DataObject) -> None:
    impl, make = CASES[data.draw(st.sampled_from(["CPU vec", "FlashAttention NHD", "FlashInfer across layers"]))]
    paged = found(impl, make())
    for layer in paged.layers:
        layer.copy_(torch.randn(layer.shape))
    before = [layer.clone() for layer in paged.layers]
    ids = data.draw(st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=BLOCKS, unique=True))
    tokens = data.draw(st.integers(1, len(ids) * paged.block_tokens))
    paged.scatter(paged.gather(ids, tokens).data, ids, tokens)
    assert all(torch.equal(layer, was) for layer, was in zip(paged.layers, before))


@pytest.mark.parametrize("arrangement", ["cpu", "split"])
def test_many_runs_of_blocks_are_copied_like_few(arrangement: Any) -> None:
    """Blocks that lie apart take another path than runs of adjacent ones; a token's place must not depend on it."""
    torch.manual_seed(0)
    paged = PagedKV((torch.randn(80, 2, 32, 64), torch.randn(80, 2, 32, 64)), arrangement)
    apart, tokens = [*range(1, 80, 2)], 40 * 32 - 5
    assert len(apart) > 2 * MOST_RUNS
    one_by_one = [paged.gather([block], 32).data for block in apart]
    pool = paged.gather(apart, tokens)
    assert torch.equal(pool.data[:-1], torch.cat(one_by_one)[:-1])
    copied = PagedKV(tuple(torch.zeros_like(layer) for layer in paged.layers), arrangement)
    copied.scatter(pool.data, apart, tokens)
    assert torch.equal(copied.gather(apart, tokens).data, pool.data)


def test_an_unknown_layout_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"does not know the KV layout of Unknown, caches of \(9, 2, 16, 64\) torch.float32; use another"):
        found(Unknown(), caches("LBHNC", 2, 16, 32))


@pytest.mark.parametrize(
    ("layers", "arrangement", "line"),
    [
        ((torch.zeros(2, 2, 16, 64), torch.zeros(2, 3, 16, 64)), "split", "2 different shapes"),
        ((torch.zeros(2, 2, 24, 64),), "split", "blocks of 24 tokens; AbktConnector needs a multiple of 16"),
        ((torch.zeros(2, 16, 64),), "split", r"\(2, 16, 64\) are not the split layout"),
    ],
)
def test_caches_that_cannot_be_sent_are_refused_in_one_line(layers: Any, arrangement: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        PagedKV(layers, arrangement)


def group(kind: str, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(kv_cache_spec=type(kind, (), more)())


@pytest.mark.parametrize(
    ("groups", "line"),
    [
        ([group("FullAttentionSpec")], ""),
        ([group("MLAAttentionSpec")], ""),
        ([group("UniformTypeKVCacheSpecs", kv_cache_specs={"a": group("FullAttentionSpec").kv_cache_spec})], ""),
        ([group("FullAttentionSpec"), group("MambaSpec")], "sends one KV cache group; this model has 2 (FullAttentionSpec, MambaSpec)"),
        ([group("MambaSpec")], "this model has MambaSpec, which does not keep every token's KV in blocks"),
        ([group("SlidingWindowSpec")], "this model has SlidingWindowSpec, which"),
        ([group("UniformTypeKVCacheSpecs", kv_cache_specs={"a": group("SlidingWindowSpec").kv_cache_spec})], "has SlidingWindowSpec"),
    ],
)
def test_kv_of_other_than_full_attention_is_refused_in_one_line(groups: Any, line: str) -> None:
    found = unknown_groups(groups)
    assert bool(found) == bool(line)
    assert line in found
    assert "\n" not in found


def test_blocks_outside_of_the_cache_are_refused() -> None:
    paged = PagedKV(tuple(caches("LBHNC", 2, 16, 32).values()), "split")
    with pytest.raises(ValueError, match="cannot hold 17 tokens"):
        paged.gather([1], 17)
    with pytest.raises(ValueError, match="outside of the 9"):
        paged.gather([9], 3)
