"""The decorator that makes a function a verb. It composes and checks the configuration, and passes it on with the folder for results."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from experiments.lib import compose as composer
from experiments.lib.compose import Composed
from experiments.lib.config import read
from experiments.lib.out import results
from experiments.lib.paths import conf_dir, split_config_dirs
from experiments.models.resolve import resolve_model

MULTIRUN = ("-m", "--multirun")
SHORT = {"transport": "transport_name"}  # short name -> key, for names that are also a folder of conf/, where Hydra would look for a choice
MODEL_KEY = "model_folder"  # of the verbs that run a model; `model` is short for it
ENGINE_KEYS = {"profile": "served_by", "validate": "compute"}  # verb -> what `engine` is short for
OVERWRITE, ACCEPT_TERMS = "overwrite=", "accept_terms="  # switches of every verb, and of those that run a model; no result depends on them


@dataclass(frozen=True, slots=True)
class VerbCall:
    """One call of a verb.

    Parameters
    ----------
    verb : its name.
    arguments : arguments of the command line, as Hydra overrides.
    config : the resolved configuration as plain values.
    choices : group -> choice, such as bitrate -> embedded.
    out : folder for the results; it is there, and it is empty unless the verb resumes a run. A run that writes nothing leaves no folder.
    """

    verb: str
    arguments: tuple[str, ...]
    config: dict[str, Any]
    choices: dict[str, str]
    out: Path


def verb(
    name: str, positional: tuple[str, ...] = (), resumes: tuple[str, ...] = ()
) -> Callable[[Callable[[Any, VerbCall], None]], Callable[[Sequence[str]], None]]:
    """Decorate `main(config: SomeConfig, run: VerbCall)`, which then takes the arguments of the command line.

    Parameters
    ----------
    name : name of the verb; conf/NAME.yaml is its configuration.
    positional : keys that may be given without their name.
    resumes : patterns of files in `out` by which a run that was stopped is known, such as points.jsonl; empty: the verb cannot resume.

    Returns
    -------
    A decorator. The decorated `main` composes the configuration, reads it as the class that `config` is annotated with, and calls the
    original `main`. `--config-dir DIR` adds YAMLs of the user; `overwrite=true` replaces the results of an earlier run (see
    experiments.lib.out); `-m` goes through Hydra's own application, so that its sweepers and launchers work.

    Raises
    ------
    ValueError
        One line, for bad input; raised by the decorated function.
    """

    def decorate(main: Callable[[Any, VerbCall], None]) -> Callable[[Sequence[str]], None]:
        kind = get_type_hints(main)["config"]
        runs_a_model = MODEL_KEY in kind.__dataclass_fields__

        def start(composed: Composed, arguments: Sequence[str], out: Path, overwrite: bool = False, accept_terms: bool = False) -> None:
            values = {**composed.config, "out": out}
            config = read(kind, values)
            if runs_a_model and getattr(config, MODEL_KEY) is not None:
                folder = resolve_model(str(getattr(config, MODEL_KEY)), accept_terms)
                config, values = replace(config, **{MODEL_KEY: folder}), {**values, MODEL_KEY: str(folder)}
            with results(out, name, overwrite, resumes):
                main(config, VerbCall(name, tuple(arguments), values, composed.choices, out))

        def call(given: Sequence[str]) -> None:
            arguments, config_dirs = split_config_dirs(given)
            arguments, overwrite = switch(arguments, OVERWRITE)
            many, arguments = any(a in MULTIRUN for a in arguments), [a for a in arguments if a not in MULTIRUN]
            extra = composer.config_dir_overrides(config_dirs)
            overrides, arguments = [*longer(named(arguments, positional), kind.__dataclass_fields__), *extra], [*arguments, *extra]
            accept_terms = False
            if runs_a_model:
                overrides, accept_terms = model_overrides(overrides, name)
            if many:
                run_many(name, partial(start, accept_terms=accept_terms), overrides, overwrite, resumes)
            else:
                composed = composer.compose(name, overrides)
                start(composed, arguments, out_folder(composed.config.get("out"), name), overwrite, accept_terms)

        return call

    return decorate


def named(arguments: Sequence[str], positional: tuple[str, ...]) -> list[str]:
    """Arguments as Hydra overrides: those without a key get the positional names in turn."""
    names, overrides = list(positional), []
    for argument in arguments:
        if argument.startswith("-"):
            raise ValueError(
                f"unknown option {argument}; there are --help, --multirun and --config-dir DIR; the rest is group=choice or key=value"
            )
        if "=" not in argument and not argument.startswith("~") and names:
            argument = f"{names.pop(0)}={composer.quoted(argument)}"
        overrides.append(argument)
    composer.check_once(overrides)
    return overrides


def longer(overrides: Sequence[str], fields: Collection[str]) -> list[str]:
    """The overrides with the whole name of each key that has a short one. fields: of the verb's configuration."""
    names = {f"{short}=": f"{name}=" for short, name in SHORT.items() if name in fields}
    return [next((name + text.removeprefix(short) for short, name in names.items() if text.startswith(short)), text) for text in overrides]


def model_overrides(overrides: Sequence[str], name: str = "") -> tuple[list[str], bool]:
    """(the overrides for Hydra, whether the user accepts the model's terms). `model=` becomes `model_folder=`, and `engine=` a key of the
    verb `name`, since `model` and `engine` are also folders of conf/."""
    overrides, accepted = switch(overrides, ACCEPT_TERMS)
    short = {"model": MODEL_KEY} | ({"engine": ENGINE_KEYS[name]} if name in ENGINE_KEYS else {})
    keys = [text.partition("=") for text in overrides]
    return [short.get(key, key) + sign + value for key, sign, value in keys], accepted


def switch(arguments: Sequence[str], prefix: str) -> tuple[list[str], bool]:
    """The arguments without those that begin with prefix, such as `overwrite=`, and its value; the last one counts. Raises ValueError."""
    given = [argument.removeprefix(prefix) for argument in arguments if argument.startswith(prefix)]
    if wrong := [value for value in given if value.lower() not in ("true", "false")]:
        raise ValueError(f"{prefix.removesuffix('=')} is {wrong[0]}; it must be true or false")
    return [a for a in arguments if not a.startswith(prefix)], bool(given) and given[-1].lower() == "true"


def out_folder(out: object, name: str) -> Path:
    """The folder of out=DIR, else outputs/VERB/<time>; it is not made yet. Raises ValueError where a file is in its place."""
    folder = Path(str(out)).expanduser() if out else _free(Path("outputs") / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    standing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not standing.is_dir():
        raise ValueError(f"out={folder}: {standing} is a file")
    return folder


def run_many(
    name: str, start: Callable[[Composed, Sequence[str], Path], None], overrides: Sequence[str], overwrite: bool, resumes: Sequence[str]
) -> None:
    """Run every combination, each in a numbered folder below out=DIR (default outputs/VERB/<time>)."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    given = [text for text in overrides if text.startswith("out=")]
    folder = out_folder(given[-1].removeprefix("out=") if given else None, name)
    sweep = [text for text in overrides if not text.startswith("out=")]

    def job(config: Any) -> None:
        own = HydraConfig.get()
        start(composer.plain(config, own.runtime.choices), own.overrides.task, Path(own.runtime.output_dir))

    composer.register_resolvers()
    if wrong := composer.fault(name, sweep, multirun=True):  # Hydra would report it only after it has made the folder
        raise ValueError(wrong)

    # Without its name in sys.argv and its own logging, Hydra would log to the terminal and leave a .hydra folder in each result.
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null", f"hydra.job.name={name}"]
    argv, environment = sys.argv, dict(os.environ)
    sys.argv = [f"abkt {name}", "--multirun", *quiet, f"hydra.sweep.dir='{folder}'", *sweep]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that exceptions come through; their message is made here
    try:
        with results(folder, name, overwrite, resumes, sign=False):
            hydra.main(version_base=composer.HYDRA_VERSION, config_path=str(conf_dir()), config_name=name.replace("-", "_"))(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(composer.explain(name, sweep, error, multirun=True)) from None
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        os.environ.update(environment)


def _free(folder: Path) -> Path:
    """The folder, or one with a number after it: two runs may begin in the same second."""
    return folder if not folder.exists() else next(p for n in range(2, 1000) if not (p := folder.with_name(f"{folder.name}-{n}")).exists())
