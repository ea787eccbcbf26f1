"""`abkt longbench`: LongBench answers with transferred KV, with raw KV, and without a transfer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from abkt.ranges import bound, check_seed
from experiments.lib.config import STRICT, BitrateConfig, FilePath
from experiments.lib.network import Network
from experiments.lib.verb import VerbCall, verb

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import ConfigDict

    from experiments.longbench.data import Source
    from experiments.longbench.models import Model
    from experiments.longbench.questions import Asked
    from experiments.longbench.tasks import Task

LEAST_TOKENS = 64  # least max_tokens of a prompt


@dataclass(frozen=True, slots=True)
class LongBenchConfig:
    """The keys are explained in conf/longbench.yaml."""

    model_folder: Path
    data: str
    tasks: tuple[str, ...]
    samples: int | None
    max_tokens: int | None
    chat: bool
    network: Network
    bitrate: BitrateConfig
    transfer_s: float
    beside: tuple[str, ...]
    coder: Literal["fixed", "entropy", "klt"]
    tile_tokens: int
    calibration: FilePath | None
    device: str
    seed: int
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        bound(self, "samples", least=1)
        bound(self, "max_tokens", least=LEAST_TOKENS)
        bound(self, "transfer_s", above=0)
        bound(self, "tile_tokens", least=1, most=1 << 20)
        check_seed(self)
        if self.network.delay_s or self.network.loss:
            raise ValueError("the link of longbench is loopback at the network's rate; choose a network without delay and loss")


@verb("longbench", resumes=("rows.jsonl",))
def main(config: LongBenchConfig, run: VerbCall) -> None:
    from abkt.codec.baselines import ALL
    from abkt.codec.calibration import load
    from abkt.codec.codec import Codec
    from abkt.policy.build import build
    from abkt.serve.engine.compute_dtype import compute_dtype
    from abkt.serve.engine.engine import Engine
    from abkt.serve.engine.model_folder import fingerprint
    from abkt.spec import KVLayout
    from experiments.lib.manifest import write_manifest
    from experiments.lib.progress import Pace, bar
    from experiments.lib.results import write_json
    from experiments.longbench.answer import Method, answer, room
    from experiments.longbench.data import DatasetFolder, Hub
    from experiments.longbench.models import read_model
    from experiments.longbench.pair import TransferPair
    from experiments.longbench.report import table
    from experiments.longbench.rows import Rows
    from experiments.longbench.tasks import chosen

    build(config.bitrate)
    codecs = {codec.name: codec for codec in ALL}
    if unknown := [name for name in config.beside if name not in codecs]:
        raise ValueError(f"beside={unknown[0]}: there are {', '.join(codecs)}")
    policy = run.choices["bitrate"]
    source = Hub() if config.data == "hub" else DatasetFolder(Path(config.data))
    tasks = chosen(config.tasks, source.has)
    folder = config.model_folder
    model = read_model(folder)
    calibration = load(config.calibration) if config.calibration else None
    if calibration:
        calibration.check_files(fingerprint(folder))
    if config.coder == "klt" and not (calibration and calibration.basis):
        raise ValueError("coder=klt needs calibration=FILE with a klt basis; make one with `abkt quality calibrate=true`")
    rows = Rows(config.out, settings(config, run, folder))
    names = (policy, *config.beside)
    with bar("read", len(tasks)) as progress:
        of_task = []
        for task in tasks:
            of_task.append(list(questions(task, source, model, config)))
            progress.update(len(of_task), len(tasks))
    asked = in_turn(of_task)
    left = [question for question in asked if any((question.task.name, question.example.id, name) not in rows.done for name in names)]
    cut = sum(question.truncated for question in asked)
    dtype = compute_dtype(model.spec.dtype, config.device)
    print(
        f"plan: {len(asked)} questions of {len(tasks)} tasks on {model.spec.name}, {len(asked) - len(left)} answered already; "
        f"{cut} are too long for it and are cut in the middle; KV raw, and by {', '.join(names)}; {dtype.words(model.spec.dtype)}; "
        "an estimate of the time follows the first question",
        flush=True,
    )
    layout = KVLayout(model.spec, max((-(-room(question) // 16) for question in left), default=1))
    codec = Codec(layout, tile_tokens=config.tile_tokens, rope_theta=model.rope_theta, calibration=calibration)
    if left:
        engine = Engine(folder, layout, config.device, dtype.dtype)
        rows.begin()
        pair = TransferPair(engine, codec, config.bitrate, config.network.capacity(), config.coder)
        methods: dict[str, Method] = {policy: partial(pair.coded, deadline_s=config.transfer_s)}
        methods |= {name: partial(pair.message, codec=codecs[name]) for name in config.beside}
        pace = Pace(sum(work(question, len(methods)) for question in left))
        with pair, bar("questions", len(left)) as progress:
            for done, question in enumerate(left, 1):
                for row in answer(question, pair, model.tokenizer, model.stops, methods):
                    rows.add(row)
                progress.update(done, len(left))
                if said := pace.add(work(question, len(methods))):
                    print(f"{done} of {len(left)} questions: {said}", flush=True)
    frame = rows.frame()
    found = table(frame)
    frame.to_parquet(config.out / "rows.parquet", index=False)
    found.to_csv(config.out / "table.csv", index=False)
    write_json(config.out / "summary.json", {"bitrate": policy, "beside": list(config.beside), "table": found.to_dict("records")})
    write_manifest(run, [folder / "config.json"])
    for name in names:
        show(found[found.method == name], f"LongBench, KV by {name} against raw KV")
    print(f"longbench: {config.out}")


def in_turn(of_task: Sequence[Sequence[Asked]]) -> list[Asked]:
    """The first question of every task, then the second of every task, …, so that a run that is stopped has asked something of each."""
    return [question for turn in zip_longest(*of_task) for question in turn if question is not None]


def work(question: Asked, methods: int) -> float:
    """About what a question costs, in tokens of prefill: a decoded token counts twice, and answers as long as they may be."""
    return len(question.tokens) + 2.0 * (2 + methods) * question.most_tokens


def questions(task: Task, source: Source, model: Model, config: LongBenchConfig) -> Iterator[Asked]:
    """The questions of a task, each as the model's token ids."""
    from experiments.longbench.questions import ask, examples, most_tokens

    most = most_tokens(task, source)
    limit = min(model.spec.max_tokens - max(most, 2), config.max_tokens or model.spec.max_tokens)
    if limit < LEAST_TOKENS:
        raise ValueError(
            f"task {task.name}: answers have up to {most} tokens, and model {model.spec.name} holds {model.spec.max_tokens} in all"
        )
    for example in examples(task, source, config.samples):
        yield ask(task, example, model.tokenizer, limit, most, config.chat)


def settings(config: LongBenchConfig, run: VerbCall, folder: Path) -> dict[str, str]:
    """All that a row depends on. A run can only resume with the same settings."""
    from experiments.lib.manifest import file_hash

    kept = ("data", "max_tokens", "chat", "network", "bitrate", "transfer_s", "coder", "tile_tokens", "device")
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    found = {key: json.dumps(run.config[key], default=str, sort_keys=True) for key in kept} | {
        "model": file_hash(folder / "config.json"),
        "weights": ", ".join(weights),
    }
    found["calibration"] = file_hash(config.calibration) if config.calibration else ""
    return found


def show(found: pd.DataFrame, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    heads = (
        "n",
        "cut",
        "raw",
        "score",
        "Δ [95 %]",
        "Δ nll [95 %]",
        "same tokens",
        "of raw",
        "raw, wire",
        "codec + wire",
        "first token: raw",
        "colocated",
    )
    shown = Table(
        "",
        *heads,
        title=title,
        caption="times in seconds; last two: speedup of the decode side's first token",
    )
    for row in found.itertuples():
        count = f"{row.samples}" + (f" (+{row.failed} failed)" if row.failed else "")
        delta = f"{row.delta:+.2f} [{row.delta_low:+.2f}, {row.delta_high:+.2f}]"
        rise = f"{row.dnll:+.4f} [{row.dnll_low:+.4f}, {row.dnll_high:+.4f}]"
        seconds = (f"{row.raw_wire_s:.3f}", f"{row.encode_s + row.wire_s + row.expand_s:.3f}")
        speed = (f"{row.raw_speedup:.2f}x", f"{row.colocated_speedup:.2f}x")
        scores = (f"{row.raw_score:.2f}", f"{row.score:.2f}")
        shown.add_row(
            row.name, count, f"{row.truncated}", *scores, delta, rise, f"{row.agreement:.3f}", f"{row.of_raw:.3f}", *seconds, *speed
        )
    Console(width=None if Console().is_terminal else 170).print(shown)
