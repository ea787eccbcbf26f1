"""`abkt check`: what it says of a model, and its exit codes: 0 right, 1 wrong, 2 refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from experiments.cli import dispatch
from tests.serve.families import save_model, small_config


def test_a_model_with_windows_and_sinks_is_described_and_found_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(small_config(CONFIG_MAPPING["gpt_oss"], dtype="float32"), tmp_path / "oss")
    assert dispatch(["check", f"model_folder={tmp_path / 'oss'}"]) == 0
    said = capsys.readouterr().out
    assert "model: oss (gpt_oss), 4 layers, 2 KV heads of 16, float32, 512 token ids, up to 128 tokens" in said
    assert "KV: 1,024 bytes a token" in said
    assert "attention: causal; sliding window of 24 tokens in 2 of 4 layers; attention sinks" in said
    assert "serve: yes, with token ids, since there is no tokenizer; quality: no: it has no tokenizer" in said
    assert "same most likely token at 100.0% of" in said
    assert said.endswith("check: right\n")


def test_a_model_with_a_feature_that_is_not_served_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(CONFIG_MAPPING["qwen3_next"], dtype="float32")
    config.architectures = ["Qwen3NextForCausalLM"]
    config.save_pretrained(tmp_path / "next")
    assert dispatch(["check", f"model_folder={tmp_path / 'next'}"]) == 2
    assert capsys.readouterr().err == "abkt: model next (qwen3_next) has layers of linear_attention; it cannot be served here\n"


@pytest.mark.parametrize("lost", ["sinks", "mask"])
def test_attention_that_leaves_something_out_is_found_wrong(
    lost: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from abkt.serve.engine.attention import LayerAttention
    from abkt.serve.engine.masks import LayerMask

    if lost == "sinks":
        plain = LayerAttention.over
        monkeypatch.setattr(LayerAttention, "over", lambda self, *given: plain(LayerAttention(self.layer, self.scale, self.mask), *given))
    else:
        monkeypatch.setattr(LayerMask, "seen", lambda self, queries, keys: keys[None, :] <= queries[:, None])
        monkeypatch.setattr(LayerMask, "first", lambda self, query: 0)
        monkeypatch.setattr(LayerMask, "check", lambda self: None)
    torch.manual_seed(0)
    save_model(small_config(CONFIG_MAPPING["gpt_oss"], dtype="float32"), tmp_path / "oss")
    assert dispatch(["check", f"model_folder={tmp_path / 'oss'}"]) == 1
    assert "model oss is WRONG on the workers: its logits are not those of transformers" in capsys.readouterr().err
