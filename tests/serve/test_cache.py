"""PoolCache against transformers' DynamicCache and against the workers' attention, on tiny models of four families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from abkt.kv.pool import Pool
from abkt.serve.engine.attention import SequenceRow
from abkt.serve.engine.cache import PoolCache
from abkt.serve.engine.engine import Engine, read_spec
from abkt.spec import KVLayout

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "dtype": "float32",
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"num_key_value_heads": 2},
    "Qwen2": {"num_key_value_heads": 4},  # multi-head
    "Qwen3": {"num_key_value_heads": 1, "head_dim": 32},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 48},
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    torch.manual_seed(1)
    config = getattr(transformers, f"{request.param}Config")(**SHAPE, **FAMILIES[request.param])
    made = tmp_path_factory.mktemp("families") / request.param
    getattr(transformers, f"{request.param}ForCausalLM")(config).save_pretrained(made)
    return made


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def tokens(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 512, (1, n), generator=torch.Generator().manual_seed(seed))


def test_generate_over_the_pool_gives_the_tokens_and_the_kv_of_generate(folder: Path) -> None:
    """A prompt of 77 tokens and 9 new ones go beyond Mistral's window and across scattered blocks."""
    from transformers import DynamicCache

    model, prompt = load(folder), tokens(77)
    pool, plain = Pool(KVLayout(read_spec(folder), blocks=32)), DynamicCache()
    table = [9, 2, 30, 7, 11, 4]
    options = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompt, past_key_values=plain, **options)
    cache = PoolCache(pool, [table])
    assert torch.equal(model.generate(prompt, past_key_values=cache, **options), expected)
    assert cache.get_seq_length() == 85  # the last token has no KV
    for layer in range(3):
        for found, kept in zip(pool.read(table, layer, 85), (plain.layers[layer].keys[0], plain.layers[layer].values[0]), strict=True):
            assert torch.equal(found, kept)


def test_the_workers_attention_writes_the_same_kv_and_gives_the_same_scores(folder: Path) -> None:
    model, prompt, more = load(folder), tokens(60), [5, 6, 7]  # longer than Mistral's window
    engine = Engine(folder, KVLayout(read_spec(folder), blocks=32))
    fast, slow = [3, 8, 1, 5], [20, 4, 17, 2]
    engine.prefill(prompt[0].tolist(), fast)
    scored = engine.score(more, SequenceRow(fast, 60))
    cache = PoolCache(engine.pool, [slow])
    with torch.no_grad():
        model(prompt, past_key_values=cache)
        logits = torch.cat([model(torch.tensor([[token]]), past_key_values=cache).logits[0] for token in more])
    assert torch.allclose(scored, logits, atol=1e-4)
    for layer in range(3):
        for found, kept in zip(engine.pool.read(fast, layer, 63), engine.pool.read(slow, layer, 63), strict=True):
            assert torch.allclose(found, kept, atol=1e-5)


def test_generate_continues_after_transferred_kv_and_never_writes_it_again(folder: Path) -> None:
    """The KV of the prompt is changed a little, as by a lossy codec. generate must read exactly that and leave it unchanged."""
    from transformers import DynamicCache

    model, prompt = load(folder), tokens(40)
    engine = Engine(folder, KVLayout(read_spec(folder), blocks=32))
    table = [3, 8, 1, 12]
    engine.prefill(prompt[0].tolist(), table)
    engine.pool.data.mul_(1.01)
    before = engine.pool.data.clone()
    damaged = DynamicCache()
    for layer in range(3):
        keys, values = engine.pool.read(table, layer, 39)
        damaged.update(keys[None], values[None], layer)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompt, past_key_values=damaged, **options)
    assert torch.equal(model.generate(prompt, past_key_values=PoolCache(engine.pool, [table], tokens=39), **options), expected)
    changed = (engine.pool.data != before).any(-1).nonzero()
    positions = {(table.index(block), token) for block, _, _, _, token in changed.tolist()}
    assert min(positions) >= (2, 7)  # generate computes the KV from the 40th token on
    assert max(positions) == (2, 12)


def test_a_padded_batch_gives_the_tokens_of_transformers(folder: Path) -> None:
    model = load(folder)
    prompt = torch.cat([tokens(20, 1), torch.cat([torch.zeros(1, 7, dtype=torch.long), tokens(13, 2)], 1)])
    mask = torch.ones_like(prompt)
    mask[1, :7] = 0
    pool = Pool(KVLayout(read_spec(folder), blocks=16))
    options = {"attention_mask": mask, "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    cache = PoolCache(pool, [[5, 2], [9, 3]])
    assert torch.equal(model.generate(prompt, past_key_values=cache, **options), model.generate(prompt, **options))


def guessing(model: Any, guess: str) -> dict[str, Any]:
    """Options of generate for 30 tokens. The assistant is another random model, so most of its guesses are wrong."""
    options: dict[str, Any] = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    if guess == "prompt lookup":
        return {**options, "prompt_lookup_num_tokens": 3}
    torch.manual_seed(9)
    return {**options, "assistant_model": type(model)(model.config).eval()}


@pytest.mark.parametrize("guess", ["prompt lookup", "assistant model"])
def test_guessed_tokens_that_are_wrong_are_taken_back(folder: Path, guess: str) -> None:
    """The prompt repeats itself, so prompt lookup guesses."""
    model, prompt = load(folder), torch.tensor([[5, 6, 7, 8, 9] * 4])
    expected = model.generate(prompt, max_new_tokens=30, min_new_tokens=30, do_sample=False, pad_token_id=0)
    cache = PoolCache(Pool(KVLayout(read_spec(folder), blocks=8)), [[3, 1, 2, 6]])
    assert torch.equal(model.generate(prompt, past_key_values=cache, **guessing(model, guess)), expected)


@pytest.mark.parametrize("guess", ["prompt lookup", "assistant model"])
@pytest.mark.parametrize("folder", ["Llama"], indirect=True)
def test_guessing_over_received_kv_is_refused(folder: Path, guess: str) -> None:
    model, prompt = load(folder), torch.tensor([[5, 6, 7, 8, 9] * 4])
    cache = PoolCache(Pool(KVLayout(read_spec(folder), blocks=8)), [[3, 1, 2, 6]], tokens=15)
    with pytest.raises(ValueError, match="began with the KV of 15 tokens; prompt lookup and assistant models need an empty one"):
        model.generate(prompt, past_key_values=cache, **guessing(model, guess))


@pytest.mark.parametrize("folder", ["Llama"], indirect=True)
def test_unsupported_use_is_refused_in_one_line(folder: Path) -> None:
    model, pool = load(folder), Pool(KVLayout(read_spec(folder), blocks=8))
    with pytest.raises(ValueError, match="two rows share a block"):
        PoolCache(pool, [[1, 2], [2, 3]])
    with pytest.raises(ValueError, match="cannot hold 33 tokens; 3 blocks are needed"):
        PoolCache(pool, [[1, 2]], tokens=33)
    with pytest.raises(ValueError, match="cannot hold 17 tokens"):
        model(tokens(17), past_key_values=PoolCache(pool, [[1]]))
    with pytest.raises(ValueError, match="a batch of 1 rows, but the cache has 2 tables"):
        model(tokens(5), past_key_values=PoolCache(pool, [[1], [2]]))
    with pytest.raises(ValueError, match="no beams; give num_beams=1"):
        model.generate(tokens(5), past_key_values=PoolCache(pool, [[1], [2]]), num_beams=2, max_new_tokens=4, pad_token_id=0)
