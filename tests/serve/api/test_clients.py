"""Usual clients against the endpoint: the openai package, guidellm and aiperf. Each is skipped where it is not installed (extra clients).

guidellm and aiperf are run as commands: they may live in an environment of their own, which ABKT_GUIDELLM and ABKT_AIPERF name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.test_replay import abkt
from tests.serve.api.served import Letters, server
from tests.serve.test_frontend import STOP, answer
from tests.serve.test_frontend import Prompt as Asked

PROBE = Path(__file__).parents[3] / "data" / "probe"
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


def expected(prompt: str, osl: int, stop: tuple[int, ...] = (STOP,)) -> str:
    return Letters().decode(answer(Asked(0, 0.0, tuple(Letters().encode(prompt)), osl, stop=stop)), True)


@pytest.fixture
def client() -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    with server() as (port, _), openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_lists_models_completes_and_chats(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    done = client.completions.create(model="tiny", prompt="abc", max_tokens=9, n=2, temperature=0, extra_body={"ignore_eos": True})
    assert [choice.text for choice in done.choices] == [expected("abc", 9, ())] * 2
    assert done.usage.completion_tokens == 18
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "abc"}], max_completion_tokens=200, seed=1, presence_penalty=0, user="me"
    )
    assert (chat.choices[0].message.content, chat.choices[0].finish_reason) == (expected("abc", 200), "stop")


def test_openai_streams_with_usage_and_stop_strings(client: Any) -> None:
    whole = expected("abc", 60, ())
    stop = whole[30:33]
    events = list(
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "abc"}],
            max_completion_tokens=60,
            stop=stop,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
    )
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == whole[: whole.index(stop)]
    assert events[-1].usage.prompt_tokens == 3
    assert events[-2].choices[0].finish_reason == "stop"


def test_openai_raises_its_own_errors(client: Any) -> None:
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.NotFoundError, match="model 'gpt' is not served here"):
        client.completions.create(model="gpt", prompt="a")
    with pytest.raises(openai.BadRequestError, match="presence_penalty is 1; only 0 is supported"):
        client.completions.create(model="tiny", prompt="a", presence_penalty=1)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URL of `abkt serve` on the probe with a chat template, and the model's folder."""
    folder = tmp_path_factory.mktemp("clients")
    model = folder / "probe"
    shutil.copytree(PROBE, model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    process = abkt("serve", f"model_folder={model}", "port=0", f"out={folder / 'out'}")
    assert process.stdout is not None
    where = re.search(r"http://\S+:\d+", process.stdout.readline())
    assert where is not None
    yield where[0], model
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def command(name: str) -> str:
    found = os.environ.get(f"ABKT_{name.upper()}") or shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def run(tmp_path: Path, *arguments: str, **variables: str) -> None:
    done = subprocess.run(arguments, cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_guidellm_measures_completions(serving: tuple[str, Path], tmp_path: Path) -> None:
    url, model = serving
    arguments = ["--target", url, "--model", "probe", "--processor", str(model), "--data", "prompt_tokens=64,output_tokens=32"]
    limits = ["--rate-type", "throughput", "--max-requests", "10", "--disable-progress", "--output-path", "report.json"]
    run(tmp_path, command("guidellm"), "benchmark", *arguments, *limits, HF_HUB_OFFLINE="1")
    (report,) = json.loads((tmp_path / "report.json").read_text())["benchmarks"]
    totals = report["run_stats"]["requests_made"]
    assert (totals["successful"], totals["errored"]) == (10, 0)
    assert report["metrics"]["output_token_count"]["successful"]["mean"] == 32


@pytest.mark.slow
def test_aiperf_measures_chats(serving: tuple[str, Path], tmp_path: Path) -> None:
    url, model = serving
    arguments = ["-m", "probe", "--tokenizer", str(model), "--url", url, "--endpoint-type", "chat", "--streaming"]
    limits = ["--concurrency", "4", "--request-count", "10", "--isl", "64", "--osl", "32", "--extra-inputs", "ignore_eos:true"]
    run(tmp_path, command("aiperf"), "profile", *arguments, *limits, "--ui", "none", "--output-artifact-dir", "report")
    report = json.loads((tmp_path / "report" / "profile_export_aiperf.json").read_text())
    assert report["request_count"]["avg"] == 10
    assert "error_request_count" not in report or report["error_request_count"]["avg"] == 0
    assert report["usage_completion_tokens"]["avg"] == 32
