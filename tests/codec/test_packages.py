"""The packages of the codec and of KV export their public names lazily: importing one loads neither torch nor numpy."""

import importlib
import subprocess
import sys

import pytest

PACKAGES = [
    "abkt.codec", "abkt.codec.fixed", "abkt.codec.entropy", "abkt.codec.entropy.gpu", "abkt.codec.lossless", "abkt.codec.rans",
    "abkt.codec.baselines", "abkt.kv", "abkt.bench",
]  # fmt: skip


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_there_and_unknown_ones_are_refused(name):
    package = importlib.import_module(name)
    assert package.__doc__
    for public in getattr(package, "__all__", ()):
        assert getattr(package, public) is not None
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        package.nothing_of_this_name  # noqa: B018


def test_importing_the_packages_loads_nothing_heavy():
    code = f"import sys, {', '.join(PACKAGES)}; print({{'torch', 'numpy', 'triton'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
