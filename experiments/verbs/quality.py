"""`abkt quality`: what compression costs in quality, codec by codec and rate by rate, against KV that was not transferred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from abkt.ranges import bound, check_seed
from experiments.lib.config import STRICT, FilePath
from experiments.lib.verb import VerbCall, verb

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import ConfigDict

    from experiments.quality.gates import Gate
    from experiments.quality.lowbit import LowBitVerdict
    from experiments.quality.samples import QualitySample


@dataclass(frozen=True, slots=True)
class QualityConfig:
    """codecs: names of methods, or all. samples: prompts of each kind. tokens: tokens of a prompt. texts: a folder of held-out text, for
    any model. calibration: a file, or null. calibrate: make a calibration first, from other prompts, and use it. trials: also run the
    retrieval trials at few bits."""

    model_folder: Path
    codecs: tuple[str, ...]
    samples: int
    tokens: int
    tile_tokens: int
    texts: Path | None
    calibration: FilePath | None
    calibrate: bool
    trials: bool
    seed: int
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        bound(self, "samples", least=1, most=1_000_000)
        bound(self, "tokens", least=64, most=1 << 24)
        bound(self, "tile_tokens", least=1, most=1 << 20)
        check_seed(self)


@verb("quality")
def main(config: QualityConfig, run: VerbCall) -> None:
    import pandas as pd

    from abkt.codec.calibration import load
    from abkt.codec.codec import Codec
    from abkt.serve.engine.engine import Engine, read_spec, rope_theta
    from abkt.spec import KVLayout
    from experiments.lib.curves import save_quality
    from experiments.lib.manifest import write_manifest
    from experiments.lib.progress import bar
    from experiments.lib.results import write_json
    from experiments.quality import gates
    from experiments.quality.calibrate import calibrate
    from experiments.quality.choice import check, choose
    from experiments.quality.lowbit import verdicts
    from experiments.quality.measure import Bench, QualityOutcome
    from experiments.quality.methods import ABLATIONS, methods
    from experiments.quality.samples import read_texts, samples

    spec = read_spec(config.model_folder)
    recalls = (config.model_folder / "probe.json").is_file()
    if not recalls and config.texts is None:
        raise ValueError(f"model {spec.name} does not know the probe's recall task; give texts=FOLDER with text")
    texts = read_texts(config.texts, config.model_folder) if config.texts else None
    asked = list(samples(config.samples, config.tokens, config.seed, texts, recalls))
    again = trials(config, recalls) if config.trials else []
    longest = max(len(s.prompt) + len(s.continuation) for s in (*asked, *again))
    if longest > spec.max_tokens:
        raise ValueError(f"tokens={config.tokens}: with their continuation {longest}, and model {spec.name} holds {spec.max_tokens}")
    layout = KVLayout(spec, 2 * -(-longest // 16) + 2)
    calibration = load(config.calibration) if config.calibration else None
    codec = Codec(layout, tile_tokens=config.tile_tokens, rope_theta=rope_theta(config.model_folder), calibration=calibration)
    check(config.codecs, methods(codec, calibration))
    print(f"plan: {len(asked)} prompts of {config.tokens} tokens on {spec.name}, {len(config.codecs)} codecs named")
    bench = Bench(Engine(config.model_folder, layout))
    config.out.mkdir(parents=True, exist_ok=True)
    if config.calibrate:
        others = list(samples(max(2, config.samples // 2), config.tokens, config.seed + 1, texts, recalls))
        with bar("calibrate") as progress:
            calibration = calibrate(bench, codec, others, progress.step)
        calibration.save(config.out / "calibration.json")
        codec = Codec(layout, tile_tokens=config.tile_tokens, rope_theta=codec.rope_theta, calibration=calibration)
    chosen, left_out = choose(config.codecs, methods(codec, calibration), map(bench.prefill, (asked[0], *again)))
    for name, reason in left_out.items():
        print(f"left out: {name}, because {reason}")
    outcomes: list[QualityOutcome] = []
    with bar("prompts", len(asked)) as progress:
        for index, sample in enumerate(asked):
            outcomes += bench.outcomes(index, sample, chosen)
            progress.update(index + 1, len(asked))
    frame = pd.DataFrame([asdict(outcome) for outcome in outcomes])
    frame.to_parquet(config.out / "outcomes.parquet", index=False)
    means = gates.table(frame)
    means.to_csv(config.out / "rates.csv", index=False)
    found = gates.gates(frame)
    write_json(config.out / "gates.json", gates.as_rows(found))
    save_quality(gates.library(frame, calibration.digest if calibration else ""), config.out / "curves.json")
    borne = verdicts(bench, again, [method for method in chosen if method.name not in ABLATIONS])
    write_json(config.out / "trials.json", {"left_out": left_out, "verdicts": [asdict(verdict) for verdict in borne]})
    write_manifest(run, [config.model_folder / "config.json"])
    _show(means, found, borne)
    print(f"quality: {config.out}")


def trials(config: QualityConfig, recalls: bool) -> list[QualitySample]:
    """Three retrieval prompts: the probe's recall task, or numbered lines for a model with a tokenizer."""
    import numpy as np
    from transformers import AutoTokenizer

    from experiments.quality.lowbit import TRIALS, lines
    from experiments.quality.samples import recall

    seeds = [np.random.default_rng((config.seed, 2, i)) for i in range(TRIALS)]
    if recalls:
        return [recall(rng, config.tokens, asks=min(64, config.tokens // 8)) for rng in seeds]
    tokenizer = AutoTokenizer.from_pretrained(config.model_folder)
    return [lines(tokenizer, rng, config.tokens) for rng in seeds]


def _show(means: pd.DataFrame, found: Sequence[Gate], borne: Sequence[LowBitVerdict]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(
        "kind", "codec", "bits", "of raw", "NMSE", "rise in nll [95 %]", "worst", "KL", "answers (raw)", title="quality by codec and rate"
    )
    for row in means.itertuples():
        rise = f"{row.dnll:+.4f} [{row.dnll_low:+.4f}, {row.dnll_high:+.4f}]"
        measures = (f"{row.of_raw:.3f}", f"{row.nmse:.4f}", rise, f"{row.dnll_worst:+.4f}", f"{row.kl:.4f}")
        shown.add_row(row.kind, row.method, row.rate, *measures, f"{row.right:.3f} ({row.raw_right:.3f})")
    laws = Table("gate", "value", "bound", "kept", title="gates")
    for gate in found:
        laws.add_row(gate.name, f"{gate.value:.4f}", f"{gate.bound:.4f}", "yes" if gate.kept else "no")
    console = Console(width=None if Console().is_terminal else 150)
    console.print(shown)
    console.print(laws)
    if borne:
        shown = Table("codec", "bits", "tolerated", "found in each trial (raw)", title="three retrieval trials")
        for verdict in borne:
            each = ", ".join(f"{a:.2f} ({b:.2f})" for a, b in zip(verdict.found, verdict.raw_found, strict=True))
            shown.add_row(verdict.method, verdict.rate, {True: "yes", False: "no", None: "cannot tell"}[verdict.bears], each)
        console.print(shown)
