"""Text of a growing answer: equal to the whole text for every kind of tokenizer, in a time that grows linearly, cut at stop strings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from abkt.serve.api.choice import GrowingChoice, Piece
from abkt.serve.api.detokenizer import MOST_HELD, Detokenizer
from abkt.serve.api.error import ApiError
from abkt.serve.api.stop_strings import StopStrings
from abkt.serve.api.text import Text, stop_tokens

PROBE = Path(__file__).parents[3] / "data" / "probe"
WORDS = ["▁Hello", "▁the", "re", "▁", "日", "é", ","]


def byte_fallback() -> Any:
    """A tokenizer like Llama 2's: words with a space in front, and a token for each byte."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True, unk_token="<unk>"))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level() -> Any:
    """A tokenizer like GPT-2's: a token for each byte, and two words."""
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġthe", "Hello"]
    made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


TOKENIZERS = {"byte fallback": byte_fallback(), "byte level": byte_level()}


def grown(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(Text(len(tokenizer), (), tokenizer))
    return [*(detokenizer.add(token) for token in tokens), detokenizer.end()]


@pytest.mark.parametrize("name", list(TOKENIZERS))
@given(data=st.data())
def test_the_pieces_are_the_whole_text(name: str, data: st.DataObject) -> None:
    """Texts of whole characters, in the tokens of single bytes and of words."""
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.get_vocab()
    alphabet = {byte: ids[f"<0x{byte:02X}>"] for byte in range(256)} if name == "byte fallback" else None
    words = [ids[word] for word in (WORDS if name == "byte fallback" else ["Ġthe", "Hello"])]
    tokens: list[int] = []
    for part in data.draw(st.lists(st.one_of(st.sampled_from(words), st.sampled_from(["日", "é", "😀", "a", " "])), max_size=30)):
        if isinstance(part, int):
            tokens.append(part)
        elif alphabet:
            tokens += [alphabet[byte] for byte in part.encode()]
        else:
            shown = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(part)
            tokens += [ids[letter] for piece, _ in shown for letter in piece]
    assert "".join(grown(tokenizer, tokens)) == tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", list(TOKENIZERS))
@given(tokens=st.lists(st.integers(0, 255), max_size=60))
def test_damaged_text_comes_too_and_no_character_waits_for_long(name: str, tokens: list[int]) -> None:
    """Any tokens: what is streamed is the same for any split, and an answer holds back at most a few tokens."""
    pieces = grown(TOKENIZERS[name], tokens)
    special = set(TOKENIZERS[name].all_special_ids)
    silent = 0
    for token, piece in zip(tokens, pieces, strict=False):
        silent = 0 if piece else silent + (token not in special)
        assert silent < MOST_HELD


def test_a_character_that_max_tokens_cut_is_the_same_streamed_and_whole() -> None:
    """The case of a byte-fallback tokenizer that damages the whole run of bytes: 日 is kept, and the cut 本 is marked."""
    tokenizer = TOKENIZERS["byte fallback"]
    ids = tokenizer.get_vocab()
    tokens = [ids["▁Hello"], *(ids[f"<0x{byte:02X}>"] for byte in "日本".encode()[:5])]
    text = Text(300, (), tokenizer)
    streamed, whole = (GrowingChoice(0, text, (), ()) for _ in range(2))
    pieces = [streamed.add([token], []) for token in tokens]
    both = ["".join(piece.text for piece in (*pieces, streamed.end()) if piece), f"{text_of(whole.add(tokens, []))}{whole.end().text}"]
    assert both == ["Hello日\ufffd\ufffd"] * 2


def text_of(piece: Piece | None) -> str:
    assert piece is not None
    return piece.text


def test_the_work_grows_linearly() -> None:
    """The tokens that are decoded, counted: a few for each token, however long the answer."""

    class Counting:
        all_special_ids = ()
        decoded = 0

        def decode(self, tokens: list[int], **options: bool) -> str:
            self.decoded += len(tokens)
            return "".join(chr(97 + token % 26) for token in tokens)

    counting = Counting()
    grown_text = Detokenizer(Text(100, (), counting))
    for token in range(4000):
        grown_text.add(token)
    assert counting.decoded <= 4 * 4000


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.lists(st.text("abc", max_size=3), max_size=20))
def test_a_stop_string_is_found_wherever_the_pieces_end(stops: list[str], pieces: list[str]) -> None:
    finder, given_ = StopStrings(tuple(stops)), ""
    for piece in pieces:
        given_ += finder.add(piece)
    given_ += finder.end()
    whole = "".join(pieces)
    ends = [(at + len(stop), at) for stop in stops if (at := whole.find(stop)) >= 0]
    assert finder.found == bool(ends)
    assert given_ == (whole[: min(ends)[1]] if ends else whole) or given_ == whole[: min(at for _, at in ends)]


def test_text_is_held_back_only_while_it_could_be_a_stop_string() -> None:
    finder = StopStrings(("END",))
    assert [finder.add(piece) for piece in ("the E", "N", "T EN", "D and", "more")] == ["the ", "", "ENT ", "", ""]
    assert finder.found


def test_all_end_tokens_of_both_configs_count(tmp_path: Path) -> None:
    """As in Llama 3.1: config.json has three, generation_config.json the same and one more."""
    assert stop_tokens(tmp_path, None) == ()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [128001, 128008, 128009]}))
    assert stop_tokens(tmp_path, 128001) == (128001, 128008, 128009)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert stop_tokens(tmp_path, [5, 6]) == (5, 6, 7)


def test_a_chat_template_runs_in_a_sandbox_and_its_refusal_is_one_line() -> None:
    tokenizer = AutoTokenizer.from_pretrained(PROBE)
    text = Text(len(tokenizer), (), tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokens = text.chat([{"role": "user", "content": "hello"}])
    assert list(tokens) == tokenizer.encode("<user>hello<assistant>", add_special_tokens=False)
    for template, said in (
        ("{{ raise_exception('Conversation roles must alternate') }}", "Conversation roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "access to attribute '__class__' of 'list' object is unsafe."),
    ):
        tokenizer.chat_template = template
        with pytest.raises(ApiError, match=f"the model's chat template does not take these messages: {said}"):
            text.chat([{"role": "user", "content": "hello"}])
