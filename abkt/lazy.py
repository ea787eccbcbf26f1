"""Lazy exports of a package: its public names are imported when they are first used, so that `import abkt.codec` loads nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module


def exporter(package: str, names: Mapping[str, str]) -> Callable[[str], object]:
    """A module `__getattr__` for a package that exports `names`.

    Parameters
    ----------
    package : the `__name__` of the package.
    names : public name -> module below the package that defines it, such as {"Codec": "codec"}.

    Returns
    -------
    A function for the package's `__getattr__`. It raises AttributeError for any other name, as Python does.
    """

    def load(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{names[name]}"), name)

    return load
