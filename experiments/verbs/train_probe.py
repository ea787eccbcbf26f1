"""`abkt train-probe`: train the probe on public-domain text and recall tasks; writes a Hugging Face folder with a model card."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from abkt.ranges import bound, check_seed
from experiments.lib.config import MOST_WORKERS, STRICT
from experiments.lib.verb import VerbCall, verb

if TYPE_CHECKING:
    from pydantic import ConfigDict

SAMPLE_TOKENS = 400  # tokens of held-out text whose KV is stored for tests


@dataclass(frozen=True, slots=True)
class RecipeConfig:
    """The fields of experiments.probe.trainer.Recipe that the command line may set. That class needs torch; this one does not."""

    minutes: float
    seed: int
    threads: int

    def __post_init__(self) -> None:
        bound(self, "minutes", least=0)
        bound(self, "threads", least=1, most=MOST_WORKERS)
        check_seed(self)


@dataclass(frozen=True, slots=True)
class TrainProbeConfig:
    """corpus: a folder of .txt or .txt.gz. pattern: pattern of its file names. held_out: parts of the names of books kept for examination.

    An interrupted training resumes from its last checkpoint in `out`. recipe.minutes=0 only examines.
    """

    corpus: Path
    out: Path
    pattern: str
    held_out: tuple[str, ...]
    vocabulary: int
    recipe: RecipeConfig
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        bound(self, "vocabulary", least=300, most=1 << 20)  # 256 bytes, and some tokens
        if not self.corpus.is_dir():
            raise ValueError(f"corpus {self.corpus} is not a folder; give one with .txt or .txt.gz books: corpus=DIR")


@verb("train-probe", resumes=("checkpoint.pt",))
def main(config: TrainProbeConfig, run: VerbCall) -> None:
    from rich.progress import Progress as Bar
    from rich.progress import TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

    from experiments.probe import corpus as text
    from experiments.probe import folder, sample, trainer
    from experiments.probe.examine import examine

    config.out.mkdir(parents=True, exist_ok=True)
    stored = config.out / "tokenizer.json"
    if stored.exists():
        tokenizer = Tokenizer.from_file(str(stored))
    else:
        train, _ = text.read_books(config.corpus, config.pattern, config.held_out)
        tokenizer = text.train_tokenizer([book[:1_000_000] for book in train.values()], config.vocabulary)
        tokenizer.save(str(stored))
    recipe = trainer.Recipe(**asdict(config.recipe))
    books = text.load(config.corpus, config.pattern, config.held_out, tokenizer)
    model_folder = config.out / "model"
    print(f"plan: train {recipe.minutes:.0f} minutes on {len(books.train):,} tokens of {len(books.train_books)} books into {model_folder}")
    with Bar(TextColumn("{task.description}"), *Bar.get_default_columns()[1:2], TimeElapsedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("training", total=recipe.minutes * 60)

        def report(progress: trainer.TrainingProgress, line: str) -> None:
            bar.update(task, completed=progress.elapsed_s, description=f"step {progress.step}: {line}")

        progress = trainer.train(recipe, books, config.out, lambda model, _: folder.write(model, tokenizer, model_folder), report)
    examination = examine(LlamaForCausalLM.from_pretrained(model_folder), books.held_out)
    (model_folder / "README.md").write_text(folder.card(recipe, progress, books, examination))
    (model_folder / "probe.json").write_text(json.dumps(folder.facts(recipe, progress, examination), indent=1))
    sample.write(model_folder, books.held_out[:SAMPLE_TOKENS].tolist())
    shutil.copy(config.out / "progress.json", model_folder / "training_log.json")
    print(json.dumps(asdict(examination), indent=1))
