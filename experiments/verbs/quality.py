"""`abkt quality`: what compression costs in quality, codec by codec and rate by rate, against KV that was not transferred."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from abkt.ranges import bound, check_seed
from experiments.lib.config import STRICT, FilePath
from experiments.lib.verb import VerbCall, verb

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import ConfigDict

    from abkt.codec.baselines.calibrated.kv import CalibrationKV
    from abkt.codec.calibration import Calibration
    from abkt.codec.codec import Codec
    from experiments.quality.gates import Gate
    from experiments.quality.lowbit import LowBitVerdict
    from experiments.quality.measure import Bench
    from experiments.quality.samples import QualitySample


CALIBRATION_SEED = 1 << 40  # apart from the seeds of prompts
COMPUTE_DTYPE = "float32"  # on every machine: what rounding does to the logits would count as the codecs' divergence
COPIES = 8  # received copies of a prompt's KV during a calibration: so many heads share a forward pass


@dataclass(frozen=True, slots=True)
class QualityConfig:
    """The keys are explained in conf/quality.yaml."""

    model_folder: Path
    codecs: tuple[str, ...]
    samples: int
    tokens: int
    tile_tokens: int
    texts: Path | None
    passages: dict[str, Path]
    retrieval: tuple[str, ...]
    calibration_texts: Path | None
    calibration_passages: dict[str, Path]
    calibration_retrieval: tuple[str, ...]
    calibration_prompts: int
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
        bound(self, "calibration_prompts", least=1, most=10_000)
        check_seed(self)
        if self.calibration_retrieval and not self.calibration_passages:
            raise ValueError("calibration_retrieval goes with calibration_passages; give some, as +calibration_passages.books=FOLDER")
        if self.calibration_texts and self.calibration_passages:
            raise ValueError("calibration_texts is one kind of text and calibration_passages names several; give one of them")

    @property
    def calibrates_on_texts(self) -> bool:
        """Whether texts of their own are given for calibrations."""
        return bool(self.calibration_texts or self.calibration_passages)


@verb("quality", resumes=("outcomes.jsonl", "settings.json", "calibration_kv.safetensors"))
def main(config: QualityConfig, run: VerbCall) -> None:
    import pandas as pd

    from abkt.codec.calibration import load
    from abkt.codec.codec import Codec
    from abkt.serve.engine.engine import Engine, read_spec, rope_theta
    from abkt.serve.engine.model_folder import fingerprint
    from abkt.spec import KVLayout
    from experiments.lib.curves import save_quality
    from experiments.lib.manifest import write_manifest
    from experiments.lib.progress import Pace, bar
    from experiments.lib.results import write_json
    from experiments.models.tokenizer import bos_ids, needed_tokenizer, passage_ids
    from experiments.quality import gates
    from experiments.quality.choice import KLT, check, choose
    from experiments.quality.kinds import kinds_of
    from experiments.quality.lowbit import verdicts
    from experiments.quality.measure import Bench
    from experiments.quality.methods import ABLATIONS, methods
    from experiments.quality.rivals import dropping, rivals
    from experiments.quality.samples import read_texts, samples
    from experiments.quality.saved import SavedOutcomes

    spec = read_spec(config.model_folder)
    recalls = (config.model_folder / "probe.json").is_file()
    texts = read_texts(config.texts, config.model_folder) if config.texts else None if recalls else passage_ids(config.model_folder)
    if texts is None and not recalls:
        raise ValueError(f"model {spec.name} has no tokenizer, so it cannot be given text; put its tokenizer into {config.model_folder}")
    before = () if texts is None else bos_ids(needed_tokenizer(config.model_folder))
    asked = list(samples(config.samples, config.tokens, config.seed, texts, recalls, before))
    if config.passages or config.retrieval:
        kinds = kinds_of(config.samples, config.tokens, config.seed, config.passages, config.retrieval, config.model_folder)
        asked = list(kinds)
    wanted = max(2, config.calibration_prompts) if config.calibrates_on_texts or texts is not None else max(2, config.samples // 2)
    if not config.calibrate:
        others = []
    elif config.calibrates_on_texts:
        others = list(calibration_samples(config, wanted))
    else:
        others = list(samples(wanted, config.tokens, config.seed + 1, texts, recalls, before))
    again = trials(config, recalls) if config.trials else []
    longest = max(len(s.prompt) + len(s.continuation) for s in (*asked, *again, *others))
    if longest > spec.max_tokens:
        raise ValueError(f"tokens={config.tokens}: with their continuation {longest}, and model {spec.name} holds {spec.max_tokens}")
    saved = SavedOutcomes(config.out, settings(config))
    copies = COPIES if config.calibrate else 1
    layout = KVLayout(spec, (1 + copies) * (-(-longest // 16) + 1))
    calibration = load(config.calibration) if config.calibration else None
    codec = Codec(layout, tile_tokens=config.tile_tokens, rope_theta=rope_theta(config.model_folder), calibration=calibration)
    if calibration:
        calibration.check_files(fingerprint(config.model_folder))
    fitted = dropping() | (rivals(lambda: calibration_of(config)) if config.calibrates_on_texts else {})
    named = [name for name in config.codecs if not (config.calibrate and name in KLT)]
    check(named, methods(codec, calibration) | fitted)
    left = [index for index in range(len(asked)) if index not in {prompt for prompt, _ in saved.done}]
    first = f"a calibration on {len(others)} others first; " if others else ""
    print(
        f"plan: {len(asked)} prompts of {config.tokens} tokens on {spec.name}, {len(asked) - len(left)} measured already; {first}"
        f"{len(config.codecs)} codecs named; compute in {COMPUTE_DTYPE}, KV in {spec.dtype}; "
        "an estimate of the time follows the first prompt",
        flush=True,
    )
    bench = Bench(Engine(config.model_folder, layout, dtype=COMPUTE_DTYPE), copies)
    saved.begin()
    if config.calibrate:
        calibration = calibrated(config, bench, codec, others)
        codec = Codec(layout, tile_tokens=config.tile_tokens, rope_theta=codec.rope_theta, calibration=calibration)
        check(config.codecs, methods(codec, calibration) | fitted)
    known = methods(codec, calibration) | fitted
    chosen, left_out = choose(config.codecs, known, map(bench.prefill, (asked[0], *again)))
    for name, reason in left_out.items():
        print(f"left out: {name}, because {reason}")
    missing = {index: [m for m in chosen if (index, m.name) not in saved.done] for index in range(len(asked))}
    left = [index for index, methods_left in missing.items() if methods_left]
    pace = Pace(len(left) or 1)
    with bar("prompts", len(left)) as progress:
        for done, index in enumerate(left, 1):
            outcomes = bench.outcomes(index, asked[index], missing[index], answers_only=bool(config.passages))
            for method, found in groupby(outcomes, attrgetter("method")):
                saved.add(index, method, list(found))
            progress.update(done, len(left))
            if said := pace.add(1):
                print(f"{done} of {len(left)} prompts: {said}", flush=True)
    frame = pd.DataFrame([asdict(outcome) for key in sorted(saved.done) for outcome in saved.done[key]])
    frame.to_parquet(config.out / "outcomes.parquet", index=False)
    means = gates.table(frame)
    means.to_csv(config.out / "rates.csv", index=False)
    laws = gates.gates(frame)
    write_json(config.out / "gates.json", gates.as_rows(laws))
    save_quality(gates.library(frame, calibration.digest if calibration else ""), config.out / "curves.json")
    borne = verdicts(bench, again, [method for method in chosen if method.name not in ABLATIONS])
    write_json(config.out / "trials.json", {"left_out": left_out, "verdicts": [asdict(verdict) for verdict in borne]})
    write_manifest(run, [config.model_folder / "config.json"])
    _show(means, laws, borne)
    print(f"quality: {config.out}")


def calibrated(config: QualityConfig, bench: Bench, codec: Codec, others: Sequence[QualitySample]) -> Calibration:
    """The calibration of this run: read where an earlier part of the run has made it, else made now."""
    from abkt.codec.calibration import load
    from abkt.serve.engine.model_folder import fingerprint
    from experiments.lib.progress import Pace, bar
    from experiments.quality.calibrate import calibrate, passes

    for path in (config.out / "calibration.safetensors", config.out / "calibration.json"):
        if path.exists():
            return load(path)
    total = passes(codec.layout.model, others)
    pace, count = Pace(total), 0
    with bar("calibrate", total) as progress:

        def done(scored: int) -> None:
            nonlocal count
            count += scored
            progress.update(count, total)
            if said := pace.add(scored):
                print(f"calibrate: {said}", flush=True)

        made = calibrate(bench, codec, others, done, fingerprint(config.model_folder))
    made.save(config.out / ("calibration.safetensors" if made.basis else "calibration.json"))
    for name, value in made.about.items():
        print(f"calibrate: {name}: {value}")
    return made


def calibration_samples(config: QualityConfig, count: int) -> Iterator[QualitySample]:
    """The first `count` prompts of the calibration texts, the same for every codec that calibrates; of several kinds one after another."""
    import numpy as np

    from experiments.models.tokenizer import bos_ids, needed_tokenizer
    from experiments.quality.kinds import ids_of, kinds_of
    from experiments.quality.samples import AFTER, text

    if config.calibration_passages:
        kinds = kinds_of(
            count, config.tokens, CALIBRATION_SEED, config.calibration_passages, config.calibration_retrieval, config.model_folder
        )
        yield from islice(kinds, count)
        return
    assert config.calibration_texts
    tokenizer = needed_tokenizer(config.model_folder)
    ids = ids_of("calibration", config.calibration_texts, tokenizer)
    for i in range(count):
        yield text(np.random.default_rng((1, i)), ids, config.tokens, AFTER, bos_ids(tokenizer))


def calibration_of(config: QualityConfig) -> CalibrationKV:
    """The KV and Fisher information of the calibration texts: read where an earlier part of the run has made them, else made now."""
    from abkt.codec.baselines.calibrated.kv import load
    from experiments.lib.progress import Pace, bar
    from experiments.quality.calibration_kv import calibration_kv

    path = config.out / "calibration_kv.safetensors"
    if path.exists():
        return load(path)
    count = config.calibration_prompts
    of = list(calibration_samples(config, count))
    pace, made = Pace(count), 0
    with bar("calibration texts", count) as progress:

        def done(texts: int) -> None:
            nonlocal made
            made += texts
            progress.update(made, count)
            if said := pace.add(texts):
                print(f"calibration texts: {said}", flush=True)

        found = calibration_kv(config.model_folder, of, done)
    found.save(path)
    return found


def settings(config: QualityConfig) -> dict[str, str]:
    """All that an outcome depends on. A run can only resume with the same settings; more samples and codecs go beside those there."""
    from experiments.lib.manifest import file_hash

    kept = {key: str(getattr(config, key)) for key in ("tokens", "tile_tokens", "texts", "passages", "retrieval", "calibrate", "seed")}
    kept |= {key: str(getattr(config, key)) for key in ("calibration_texts", "calibration_prompts")}
    if config.calibration_passages:
        kept |= {key: str(getattr(config, key)) for key in ("calibration_passages", "calibration_retrieval")}
    weights = sorted(path.name for path in config.model_folder.glob("*.safetensors"))
    calibration = file_hash(config.calibration) if config.calibration else ""
    return kept | {"model": file_hash(config.model_folder / "config.json"), "weights": ", ".join(weights), "calibration": calibration}


def trials(config: QualityConfig, recalls: bool) -> list[QualitySample]:
    """Three retrieval prompts: the probe's recall task, or numbered lines for a model with a tokenizer."""
    import numpy as np

    from experiments.models.tokenizer import needed_tokenizer
    from experiments.quality.lowbit import TRIALS, lines
    from experiments.quality.samples import recall

    seeds = [np.random.default_rng((config.seed, 2, i)) for i in range(TRIALS)]
    if recalls:
        return [recall(rng, config.tokens, asks=min(64, config.tokens // 8)) for rng in seeds]
    tokenizer = needed_tokenizer(config.model_folder)
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
