"""The console script `abkt VERB …`. Each verb is a module of its own and is imported only when it runs, so that help answers at once."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module

import abkt
from experiments.lib import usage
from experiments.lib.errors import BAD_INPUT, exit_code

VERBS = (
    "study",
    "profile",
    "simulate",
    "sweep",
    "replay",
    "serve",
    "adaptation",
    "compare",
    "validate",
    "reproduce",
    "quality",
    "longbench",
    "bench",
    "fit-hardware",
    "published",
    "train-probe",
)
HELP = ("-h", "--help")


def main(argv: list[str] | None = None) -> None:
    """Exits with the verb's code: 0 done, 1 broken while running, 2 bad input, 130 interrupted."""
    sys.exit(dispatch(sys.argv[1:] if argv is None else argv))


def dispatch(argv: list[str]) -> int:
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
        print(usage.describe(verb))
        return 0
    return exit_code(lambda: import_module(f"experiments.verbs.{verb.replace('-', '_')}").main(rest))


if __name__ == "__main__":
    main()
