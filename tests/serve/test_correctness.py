"""A lossless transfer changes no bit of the KV and no token, compared with the same batches without a transfer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from abkt.serve.commands import AddPeer
from abkt.serve.engine.attention import SequenceRow
from abkt.serve.engine.engine import Engine, read_spec
from abkt.serve.engine.generation import Sampling
from abkt.serve.engine.sampling import Choice
from abkt.serve.frontend.prompt import Prompt
from abkt.spec import KVLayout
from tests.serve.in_process import Pair, kv_of, pair
from tests.serve.test_engine import generate
from tests.serve.test_real_cluster import INT8, LOSSLESS, RAW

NEAR_TIE = 1e-3


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3. In bfloat16 a request's tokens may depend on its batch, so only the same batches are compared."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(4)
    made = tmp_path_factory.mktemp("correct") / request.param
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen3Config(vocab_size=2048, head_dim=64, max_position_embeddings=1024, eos_token_id=None, dtype=request.param, **sizes)
    Qwen3ForCausalLM(config).to(getattr(torch, request.param)).save_pretrained(made)
    return made


def prompts() -> list[Prompt]:
    drawn = Sampling(1.0, top_p=0.9, seed=11)
    lengths = ((37, 9), (200, 14), (500, 5), (64, 20), (16, 12), (129, 2), (130, 8))
    return [
        Prompt(i, 0.0, tuple((7 * i + 3 * j) % 2048 for j in range(n)), osl, sampling=drawn if i % 3 == 2 else Sampling())
        for i, (n, osl) in enumerate(lengths)
    ]


def without_transfer(folder: Path, run: Pair) -> None:
    """Repeat the same rows in the same iterations over KV that this engine computes itself. Bits and choices must be the same."""
    engine = Engine(folder, KVLayout(read_spec(folder), blocks=256))
    given, rows, free = {p.tokens[0]: p for p in prompts()}, [], iter(range(256))
    for (tokens, kv), first in zip(run.watched.first_kv, (firsts_of(run)), strict=True):
        prompt = next(p for p in given.values() if p.isl == tokens)
        table = [next(free) for _ in range(engine.layout.blocks_for(prompt.isl + prompt.osl))]
        assert engine.begin(prompt.tokens, table, sampling=prompt.sampling).token == first
        assert torch.equal(kv_of(engine, table, tokens), kv)
        rows.append((SequenceRow(table, tokens), prompt.sampling))
    for numbers, last, choices in run.watched.steps:
        assert engine.step([rows[n][0] for n in numbers], last, [rows[n][1] for n in numbers]) == choices


def firsts_of(run: Pair) -> list[int]:
    """The token that went into the first iteration of each row."""
    found: dict[int, int] = {}
    for numbers, last, _ in run.watched.steps:
        for number, token in zip(numbers, last, strict=True):
            found.setdefault(number, token)
    return [found[n] for n in sorted(found)]


@pytest.mark.parametrize("bitrate", [RAW, LOSSLESS], ids=["raw", "lossless"])
def test_kv_arrives_bit_by_bit_and_the_tokens_are_those_of_the_same_batches_without_a_transfer(
    folder: Path, bitrate: dict[str, object]
) -> None:
    with pair(folder, bitrate) as run:
        outputs = run.run(prompts())
        assert max(len(numbers) for numbers, _, _ in run.watched.steps) > 1
        without_transfer(folder, run)
    assert {i: len(tokens) for i, tokens in outputs.items()} == {p.request_id: p.osl for p in prompts()}


def test_the_comparison_above_notices_a_lossy_transfer(folder: Path) -> None:
    with pair(folder, INT8) as run:
        run.run(prompts())
        with pytest.raises(AssertionError):
            without_transfer(folder, run)


def test_in_fp32_the_tokens_equal_those_of_generate_up_to_a_recorded_near_tie(folder: Path) -> None:
    if folder.name != "float32":
        pytest.skip("of fp32 alone")
    with pair(folder, RAW) as run:
        outputs = run.run(prompts())
        steps: dict[int, list[Choice]] = {}
        for numbers, _, choices in run.watched.steps:
            for number, choice in zip(numbers, choices, strict=True):
                steps.setdefault(number, []).append(choice)
        margins = {p.request_id: [c.margin for c in steps[row]] for row, p in rows_of(run).items()}
    for prompt in prompts():
        if prompt.sampling.temperature == 0:
            same_up_to_a_near_tie(outputs[prompt.request_id], margins[prompt.request_id], generate(folder, list(prompt.tokens), prompt.osl))


def rows_of(run: Pair) -> dict[int, Prompt]:
    return {row: next(p for p in prompts() if p.isl == tokens) for row, (tokens, _) in enumerate(run.watched.first_kv)}


def same_up_to_a_near_tie(found: list[int], margins: list[float], expected: list[int]) -> None:
    """margins: score margins of all tokens but the first, which the prefill worker chose."""
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a != b:
            assert margins[i - 1] < NEAR_TIE
            return


def test_a_peer_with_another_layout_is_refused_naming_both_layouts_and_others_are_served(folder: Path, tiny_model: Path) -> None:
    ours = f"{folder.name}: 3 layers, 2 kv heads of 64, {folder.name}, blocks of"
    with pair(folder, RAW) as run:
        for stranger, theirs in (
            (pair(folder, RAW, prefill_block_tokens=32), f"{ours} 32"),
            (pair(tiny_model, RAW), "tiny: 2 layers, 2 kv heads of 64, float32, blocks of 16"),
        ):
            with stranger as other:
                other.prefill.tell(AddPeer("d0", run.decode_worker.receiver.address))
                other.submit(prompts()[0])
                reason = other.failure().reason
                assert reason.endswith(f": p0 has layout '{theirs}', d0 has '{ours} 16'; they must be the same")
                assert "\n" not in reason
            assert run.decode_worker.equipment.segments.free_blocks == 128
        assert len(run.run(prompts()[:2])) == 2
