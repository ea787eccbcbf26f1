"""The command line `abkt VERB …`. Each verb is a module of its own and is imported only when it runs, so that help answers at once."""

from __future__ import annotations

import gc
import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

import abkt
from abkt.compiled import use_compiled_for
from abkt.console import check_packages
from experiments.lib import usage
from experiments.lib.errors import BAD_INPUT, exit_code
from experiments.lib.paths import split_config_dirs

VERBS = {  # verb -> its module in experiments.verbs, in the order of the help
    "study": "study",
    "profile": "costs.profile",
    "simulate": "simulate",
    "sweep": "sweep",
    "capacity": "capacity",
    "plan": "plan",
    "replay": "replay",
    "serve": "serve",
    "pd-proxy": "pd_proxy",
    "vllm-demo": "vllm_demo",
    "adaptation": "adaptation",
    "compare": "compare",
    "validate": "validate",
    "reproduce": "reproduce",
    "check": "check",
    "quality": "quality",
    "longbench": "longbench",
    "bench": "bench",
    "fit-hardware": "costs.fit_hardware",
    "import-profile": "costs.import_profile",
    "published": "costs.published",
    "train-probe": "train_probe",
}
HELP = ("-h", "--help")
COLLECTIONS = (100_000, 20, 20)  # gc's thresholds: imports and configurations make many objects, which live as long as the process


def main(argv: list[str] | None = None) -> None:
    """Run a verb and exit with its code: 0 done, 1 broken while running, 2 bad input, 130 interrupted.

    The current folder is added to the end of Python's path, so that a configuration may name a class of the user's own file there, such as
    `_target_: my_policy.HalfTheTime`. Processes that a verb starts find it in the same way.
    """
    gc.set_threshold(*COLLECTIONS)
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    sys.exit(dispatch(sys.argv[1:] if argv is None else argv))


def dispatch(argv: list[str]) -> int:
    """The exit code of one command line."""
    if not argv or argv[0] in HELP:
        print(usage.overview(VERBS))
        return 0 if argv else BAD_INPUT
    verb, rest = argv[0], argv[1:]
    if verb == "--version":
        print(f"abkt {abkt.__version__}")
        return 0
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, 1)
        print(f"abkt: no verb {verb}{f', did you mean {near[0]}?' if near else ';'} The verbs are {', '.join(VERBS)}", file=sys.stderr)
        return BAD_INPUT
    if any(flag in rest for flag in HELP):
        return exit_code(lambda: print(usage.describe(verb, split_config_dirs(rest)[1])))
    return exit_code(lambda: run(verb, rest))


def run(verb: str, arguments: list[str]) -> None:
    check_packages()
    use_compiled_for(" ".join([verb, *arguments[:1]]) if verb == "bench" else verb)
    import_module(f"experiments.verbs.{VERBS[verb]}").main(arguments)


if __name__ == "__main__":
    main()
