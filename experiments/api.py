"""ABKT in Python: `import abkt; run = abkt.simulate(bitrate="embedded", workload="mooncake")`. `abkt` offers these functions as its own.

Keywords are the keys and groups of the command line. Two underscores stand for a dot, as in `workload__scaling__requests=100`; any other
spelling can be given as `**{"+hardware@decode_hardware": "h20"}`. A value is what it would be in YAML: a number, a string, None, a list, a
dict. In `sweep` a list, a tuple or a range is an axis.

Nothing is printed unless progress=True. Bad input raises ValueError with the one line that the command line prints. A run that breaks
raises RunError, which is a RuntimeError. With out=DIR the results stay in that folder, exactly as the command leaves them.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ParamSpec, TypeVar

import pandas as pd

from abkt.serve.errors import ClusterError
from experiments.lib import compose as composer
from experiments.lib.config import read
from experiments.lib.errors import RunError, one_line
from experiments.lib.results import read_json, read_records
from experiments.lib.verb import VerbCall
from experiments.study.comparison import compare as compare_folders
from experiments.sweeps.journal import table
from experiments.sweeps.run import SweepConfig
from experiments.sweeps.run import sweep as run_sweep

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Run:
    """A run, simulated or real. requests, transfers: one record in each row (docs/glossary.md). summary: as in summary.json."""

    requests: pd.DataFrame
    transfers: pd.DataFrame
    summary: dict[str, Any]

    def __repr__(self) -> str:
        counts = self.summary["requests"]
        return f"Run({counts['completed']} of {counts['initiated']} requests completed, {len(self.transfers)} transfers)"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search found. verdict: kind, policy, sentence, why. table: one row a policy or choice. runs: one row a simulation."""

    verdict: dict[str, Any]
    table: pd.DataFrame
    runs: pd.DataFrame

    def __repr__(self) -> str:
        return f"Answer({self.verdict['sentence']})"


def one_line_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Bad input that is found while a file is read is a ValueError too, as it has exit code 2 on the command line."""

    @wraps(function)
    def call(*given: P.args, **named: P.kwargs) -> R:
        try:
            return function(*given, **named)
        except OSError as error:
            raise ValueError(one_line(error)) from error
        except ClusterError as error:
            raise RunError(str(error)) from error

    return call


@one_line_errors
def simulate(*, out: str | Path | None = None, progress: bool = False, **keys: Any) -> Run:
    """Run a simulated cluster, as `abkt simulate`."""
    with _ran("simulate", overrides({"progress": progress, **keys}), out, progress) as folder:
        return _run(folder)


@one_line_errors
def replay(*, out: str | Path | None = None, progress: bool = False, **keys: Any) -> Run:
    """Run requests on real prefill and decode processes of this machine, as `abkt replay`. It takes as long as the requests do."""
    with _ran("replay", overrides(keys), out, progress) as folder:
        return _run(folder)


@one_line_errors
def sweep(*, out: str | Path | None = None, progress: bool = False, pool: str = "serial", **keys: Any) -> pd.DataFrame:
    """Run a grid of simulations, as `abkt sweep`: one row for each point.

    Parameters
    ----------
    out : a folder for the results, in which a sweep that was stopped resumes; None: they are kept in memory only.
    progress : show progress.
    pool : `serial`, in this process. `processes`, `ray` and `submitit` are faster; a script that starts processes needs
        `if __name__ == "__main__":` around its code.
    keys : keys and groups; a list, a tuple or a range is an axis.

    Raises
    ------
    ValueError, for bad input. RunError, where a point failed; with `out` the others are in the folder.
    """
    axes = [f"{_key(name)}={','.join(map(text, values))}" for name, values in keys.items() if isinstance(values, AXIS) and len(values)]
    fixed = overrides({name: value for name, value in keys.items() if not (isinstance(value, AXIS) and len(value))} | {"pool": pool})
    if out is not None:
        with _ran("sweep", [*fixed, *axes], out, progress) as folder:
            return pd.read_parquet(folder / "sweep.parquet")
    composed = composer.compose("sweep", fixed)
    with TemporaryDirectory() as made, _shown(progress):
        folder = Path(made)
        config = read(SweepConfig, {**composed.config, "also": [*composed.config["also"], *axes], "out": folder})
        rows = run_sweep(config, VerbCall("sweep", tuple(fixed), composed.config, composed.choices, folder))
    if failed := [row for row in rows if row["error"]]:
        raise RunError(f"{len(failed)} of {len(rows)} points failed, the first because of {failed[0]['error']}")
    return table(rows).to_pandas()


@one_line_errors
def compare(a: Run | str | Path, b: Run | str | Path, *, out: str | Path | None = None) -> pd.DataFrame:
    """Compare the same requests in two runs, stage by stage, as `abkt compare`.

    Parameters
    ----------
    a, b : runs, or folders of runs.

    Returns
    -------
    One row for each stage. For the mean and the 99th percentile: seconds in a and in b, change (b - a) / a, and low and high of its paired
    95 % interval. share_of_e2e: the change of the mean as a share of a's mean end-to-end time.
    """
    with TemporaryDirectory() as made:
        left, right = (_folder(run, Path(made) / name) for run, name in ((a, "a"), (b, "b")))
        if out is not None:
            with _ran("compare", overrides({"a": left, "b": right}), out, False):
                pass
        stages = compare_folders(left, right)["stages"]
    rows = {
        stage: {f"{statistic}_{name}": found[statistic][key] for statistic in ("mean", "p99") for name, key in COMPARED.items()}
        | {"share_of_e2e": found["share_of_e2e"]}
        for stage, found in stages.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("stage")


@one_line_errors
def find_capacity(*, out: str | Path | None = None, progress: bool = False, pool: str = "serial", **keys: Any) -> Answer:
    """Find the highest rate within the SLO for each policy, as `abkt capacity`. pool: as in `sweep`."""
    with _ran("capacity", overrides({"pool": pool, **keys}), out, progress) as folder:
        found = read_json(folder / "capacity.json")
        rows = pd.DataFrame.from_dict(found["policies"], orient="index").rename_axis("policy")
        return Answer(found["verdict"], rows, pd.read_parquet(folder / "runs.parquet"))


@one_line_errors
def plan(*, out: str | Path | None = None, progress: bool = False, pool: str = "serial", **keys: Any) -> Answer:
    """Find the cheapest cluster that meets the SLO, as `abkt plan`. pool: as in `sweep`."""
    with _ran("plan", overrides({"pool": pool, **keys}), out, progress) as folder:
        found = read_json(folder / "plan.json")
        return Answer(found["verdict"], pd.DataFrame(found["choices"]), pd.read_parquet(folder / "runs.parquet"))


AXIS = (list, tuple, range)
PLAIN = re.compile(r"[\w./+-]+")  # what may stand without quotes, unless it is a number or a word such as null
COMPARED = {"a_s": "measured_s", "b_s": "predicted_s", "change": "relative_error", "low": "low", "high": "high"}


def overrides(keys: Mapping[str, Any]) -> list[str]:
    """Keywords as arguments of the command line. config_dir: a folder with YAMLs of the user.

    Raises ValueError for a value that a configuration cannot hold.
    """
    given = dict(keys)
    folder = given.pop("config_dir", None)
    return [*(f"{_key(name)}={text(value)}" for name, value in given.items()), *(["--config-dir", str(folder)] if folder else [])]


def _key(name: str) -> str:
    return name.replace("__", ".")


def text(value: Any) -> str:
    """A value as the command line reads it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float() if math.isfinite(value):
            return repr(value)
        case float():
            return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        case str() | Path():
            return _word(str(value))
        case Mapping():
            return "{" + ", ".join(f"{_word(str(key))}: {text(item)}" for key, item in value.items()) + "}"
        case list() | tuple() | range():
            return "[" + ", ".join(map(text, value)) + "]"
    if hasattr(value, "item"):  # a number of numpy or pandas
        return text(value.item())
    raise ValueError(f"{value!r} is a {type(value).__name__}; give a number, a string, None, a list or a dict")


def _word(word: str) -> str:
    """A string as it stands if the command line reads it as the same string, otherwise in quotes."""
    override = composer.parse(f"key={word}") if PLAIN.fullmatch(word) else None
    return word if override is not None and override.value() == word else composer.quoted(word)


@contextmanager
def _ran(verb: str, arguments: Sequence[str], out: str | Path | None, progress: bool) -> Iterator[Path]:
    """Run a verb. The folder of its results, which is removed at the end of the block if the caller has not named it."""
    with TemporaryDirectory() if out is None else nullcontext(str(out)) as made:
        folder = Path(made) / "run" if out is None else Path(made)
        with _shown(progress):
            import_module(f"experiments.verbs.{verb}").main([*arguments, f"out={_word(str(folder))}"])
        yield folder.expanduser()


@contextmanager
def _shown(progress: bool) -> Iterator[None]:
    with nullcontext() if progress else redirect_stdout(io.StringIO()):
        yield


def _run(folder: Path) -> Run:
    return Run(read_records(folder / "requests.parquet"), read_records(folder / "transfers.parquet"), read_json(folder / "summary.json"))


def _folder(run: Run | str | Path, place: Path) -> Path:
    if not isinstance(run, Run):
        return Path(run).expanduser()
    place.mkdir()
    run.requests.to_parquet(place / "requests.parquet")
    return place
