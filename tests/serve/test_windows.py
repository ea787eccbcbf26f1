"""KV before the window of a layer is not sent, raw or coded, and the answers are those of the whole KV."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from abkt.codec.codec import Codec
from abkt.codec.importance import weights_of
from abkt.kv.pool import Pool
from abkt.serve.engine.attention import SequenceRow
from abkt.serve.engine.engine import Engine, read_spec
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.worker import raw
from abkt.serve.worker.layered import RawSink, raw_group, spans
from abkt.spec import KVLayout, ModelSpec
from tests.serve.families import SERVED, eager_logits, prompts, save_model, small_config
from tests.serve.in_process import pair
from tests.serve.test_real_cluster import INT8, LOSSLESS, RAW

TOKENS = 100  # with windows of 24: tokens 0 to 76 are seen by no later token
MODEL = ModelSpec("made-up", layers=4, kv_heads=2, head_dim=16, dtype="float32", window=24, window_layers=3, layer_windows=(24, 24, 0, 24))
LAYOUT = KVLayout(MODEL, blocks=12)


def filled(seed: int, layout: KVLayout = LAYOUT) -> Pool:
    pool = Pool(layout)
    pool.data.copy_(torch.randn(pool.data.shape, generator=torch.Generator().manual_seed(seed)))
    return pool


def test_a_hand_solved_case_of_what_is_kept() -> None:
    """100 tokens are 7 blocks. The next token is number 100, and with a window of 24 it sees tokens 77 to 100: blocks 4, 5 and 6."""
    assert [MODEL.first_kept(layer, TOKENS) for layer in range(4)] == [77, 77, 0, 77]
    assert LAYOUT.kept_layers(TOKENS) == [[(2, 3)]] * 4 + [[(0, 4)]] * 3
    assert LAYOUT.kept_bytes(TOKENS) == (4 * 1 + 3 * 4) * LAYOUT.block_bytes // 4
    assert LAYOUT.kept_bytes(TOKENS, 0, 2) == 3 * 2 * LAYOUT.block_bytes // 4
    assert MODEL.kv_bytes(TOKENS) == MODEL.kv_bytes_per_token // 4 * (100 + 3 * 24)


@given(
    windows=st.lists(st.sampled_from([0, 1, 5, 24, 100]), min_size=1, max_size=5),
    tokens=st.integers(1, 150),
    block_tokens=st.sampled_from([1, 8, 16]),
)
def test_a_layers_block_is_kept_exactly_where_a_later_token_sees_it(windows: list[int], tokens: int, block_tokens: int) -> None:
    model = replace(
        MODEL,
        layers=len(windows),
        window=max(windows),
        window_layers=sum(w > 0 for w in windows),
        layer_windows=tuple(windows) if any(windows) else (),
    )
    kept = KVLayout(model, blocks=200, block_tokens=block_tokens).kept_layers(tokens)
    for block, found in enumerate(kept):
        for layer, window in enumerate(windows):
            last = min(tokens, (block + 1) * block_tokens) - 1
            seen = not window or any(key > tokens - window for key in range(block * block_tokens, last + 1))
            held = any(first <= layer < stop for first, stop in found)
            assert held or not seen
            assert seen or not held or last + 1 < (block + 1) * block_tokens  # only the last block may be kept for tokens it has not got


def checked(target: Pool, before: Pool, source: Pool, table: list[int], other: list[int]) -> None:
    for block, kept in enumerate(LAYOUT.kept_layers(TOKENS)):
        for layer in range(MODEL.layers):
            sent = any(first <= layer < stop for first, stop in kept)
            assert torch.equal(target.data[other[block], layer], (source.data[table[block]] if sent else before.data[other[block]])[layer])


@pytest.mark.parametrize("place", ["in place", "through the host"])
def test_a_raw_transfer_moves_what_is_kept_and_nothing_else(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    table, other = [5, 6, 7, 2, 9, 0, 1], [1, 3, 4, 8, 10, 11, 2]
    source, target, before = filled(1), filled(2), filled(2)
    monkeypatch.setattr(raw, "in_place", lambda pool, transport: place == "in place")
    out, into = raw.raw_source(source, table, TOKENS), raw.raw_sink(target, other, TOKENS)
    data, at = b"".join(out.buffers(0, out.ends[-1])), 0
    assert len(data) == into.size == LAYOUT.kept_bytes(TOKENS) < 7 * LAYOUT.block_bytes
    for piece in into.buffers(0, into.size):
        piece[:] = data[at : at + len(piece)]
        at += len(piece)
    if place != "in place":
        raw.put_raw(into.data, target, other, TOKENS)
    checked(target, before, source, table, other)


def test_raw_groups_of_layers_move_what_is_kept_and_nothing_else() -> None:
    table, other = [5, 6, 7, 2, 9, 0, 1], [1, 3, 4, 8, 10, 11, 2]
    source, target, before = filled(1), filled(2), filled(2)
    data = b"".join(bytes(piece) for span in spans(4, 3) for piece in raw_group(source, table, TOKENS, span))
    sink, at = RawSink(target, other, TOKENS, spans(4, 3)), 0
    for piece in sink.buffers(0, sink.size):
        piece[:] = data[at : at + len(piece)] or bytes(len(piece))
        at += len(piece)
    assert len(data) == LAYOUT.kept_bytes(TOKENS)
    checked(target, before, source, table, other)


@pytest.mark.parametrize("coder", ["fixed", "entropy"])
@pytest.mark.parametrize("order", ["slope", "uniform"])
def test_a_stream_leaves_out_the_cells_before_a_window(coder: str, order: str) -> None:
    """The cells that are sent expand to the same values as in the whole stream; the others keep what the pool held."""
    table, other = [5, 6, 7, 2, 9, 0, 1], [1, 3, 4, 8, 10, 11, 2]
    source, before = filled(1), filled(2)
    whole, cut = (Codec(LAYOUT, tile_tokens=16, cut_windows=flag) for flag in (False, True))
    found = {}
    for name, codec in (("whole", whole), ("cut", cut)):
        stream = codec.encode(source, table, TOKENS, order=order, coder=coder)  # type: ignore[arg-type]
        pool = filled(2)
        found[name] = pool, stream, codec.expand(stream.prefix(len(stream.ends) - 1), pool, other)
    sent = np.array([[tile >= 3 or layer == 2 for tile in range(5)] for layer in range(4)])  # tile 3 is block 4, tokens 64 to 79
    for layer in range(4):
        for tile in range(5):
            block = other[1 + tile]
            wanted = found["whole"][0] if sent[layer, tile] else before
            assert torch.equal(found["cut"][0].data[block, layer], wanted.data[block, layer])
    whole_bytes, cut_bytes = (found[name][1].ends[-1] for name in ("whole", "cut"))
    assert cut_bytes < 0.8 * whole_bytes  # 9 of 20 tiles are left out; edges, statistics and tables stay
    assert found["cut"][2].distortion < 1e-3
    for prefix in range(len(found["cut"][1].ends)):
        codec_cut = found["cut"][1]
        assert cut.expand(codec_cut.prefix(prefix), filled(3), other).distortion == pytest.approx(
            codec_cut.curve.distortion[prefix], rel=1e-5
        )


def test_distortion_of_a_cut_stream_is_that_of_the_cells_sent() -> None:
    """As of a sequence that has only the kept tiles. The centres of V are those of all tiles, so it is not exactly the same."""
    model = replace(MODEL, layers=1, window_layers=1, layer_windows=(24,))
    layout = KVLayout(model, blocks=12)
    stream = Codec(layout, tile_tokens=16, cut_windows=True).encode(filled(1, layout), list(range(7)), TOKENS)
    alone = Codec(layout, tile_tokens=16).encode(filled(1, layout), [0, 4, 5, 6], 52)  # the first block, then the kept blocks and the tail
    assert stream.curve.distortion[0] == pytest.approx(alone.curve.distortion[0], rel=0.05)
    assert stream.curve.distortion[-1] == pytest.approx(alone.curve.distortion[-1], rel=0.1)


def test_importance_looks_only_into_the_window() -> None:
    generator = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn((2, n, 16), generator=generator) for n in (8, 60, 60))
    inside = weights_of(query, key[:, -31:], value[:, -31:], 0.25, 24).tokens
    found = weights_of(query, key, value, 0.25, 24).tokens
    assert (found[..., :29] == 0).all()  # the first of the last 8 queries is number 52 and sees from 29 on
    assert torch.allclose(found[1, :, 29:], inside[1], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "gpt_oss", "llama4_text"])
@pytest.mark.parametrize("coder", ["fixed", "entropy"])
def test_decoding_from_what_was_sent_never_reads_what_was_not(family: str, coder: str, tmp_path: Path) -> None:
    """The decode side's pool is full of NaN where nothing was sent. Its logits are those of eager attention but for coding to 8 bits."""
    save_model(small_config(CONFIG_MAPPING[family], **SERVED[family]), tmp_path)
    spec = read_spec(tmp_path)
    prefill, decode = (Engine(tmp_path, KVLayout(spec, blocks=8)) for _ in range(2))
    row, table, other = prompts(1)[0], [4, 1, 2, 0], [7, 3, 5, 6]
    want = eager_logits(tmp_path, row[None])[0, 52:]
    prefill.prefill(row[:52].tolist(), table)
    decode.pool.data.fill_(torch.nan)
    codec = Codec(prefill.layout, tile_tokens=16, cut_windows=True)
    stream = codec.encode(prefill.pool, table, 52, coder=coder)  # type: ignore[arg-type]
    codec.expand(stream.prefix(len(stream.ends) - 1), decode.pool, other)
    held = SequenceRow(other, 52)
    logits = torch.cat([decode.score(row[52:55].tolist(), held), *(decode.score([token], held) for token in row[55:].tolist())])
    assert torch.allclose(logits, want, atol=0.05 * float(want.std()))


@pytest.mark.parametrize(
    ("bitrate", "groups"),
    [(RAW, 1), (RAW, 2), (LOSSLESS, 1), (INT8, 1), (INT8, 2)],
    ids=["raw", "raw in groups", "lossless", "int8", "int8 in groups"],
)
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt_oss", "llama4_text"])
def test_workers_give_the_tokens_of_generate_from_the_kv_that_was_sent(
    family: str, bitrate: dict[str, object], groups: int, tmp_path: Path
) -> None:
    """The decode worker's pool is NaN before the transfers. int8 may change a token, but no answer contains NaN's."""
    folder = tmp_path / family
    save_model(small_config(CONFIG_MAPPING[family], **SERVED[family]), folder)
    rows = prompts(3, tokens=70)
    asked = [Prompt(i, 0.0, tuple(row[:isl].tolist()), 8) for i, (row, isl) in enumerate(zip(rows, (70, 41, 30), strict=True))]
    with pair(folder, bitrate, layer_groups=groups) as run:
        run.watched.engine.pool.data.fill_(torch.nan)
        outputs = run.run(asked)
        margins = [choice.margin for _, _, choices in run.watched.steps for choice in choices]
    assert all(margin >= 0 for margin in margins)  # false for NaN
    if bitrate is not INT8:
        assert outputs == {prompt.request_id: greedy(folder, prompt.tokens) for prompt in asked}


def greedy(folder: Path, prompt: tuple[int, ...]) -> list[int]:
    """The next 8 tokens by transformers' eager attention over the whole sequence at each step."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    row = list(prompt)
    with torch.no_grad():
        for _ in range(8):
            row.append(int(model(torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
    return row[len(prompt) :]
