"""Settings of every test: no test has a deadline, because the machine may be busy. Also the model that real runs need."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import logging_state

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests run beside each other, and its threads would wait for each other
os.environ.setdefault("ABKT_COMPILED", "0")  # before abkt: tests put classes of their own in place of the simulator's

# A job in the background inherits an ignored SIGINT, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

gc.set_threshold(100_000, 20, 20)  # as the command line does: modules and configurations are many objects that stay
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported by now is never garbage, and need not be looked at again


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    with logging_state.kept():
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama in fp32, so that a request's tokens do not depend on its batch."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
