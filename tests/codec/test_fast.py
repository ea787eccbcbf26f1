"""Building the compiled path: once, and with a torch oracle in its place where it cannot be built."""

import ctypes
import logging
import subprocess

import pytest
import torch

from abkt.codec import fast
from abkt.codec.cells import Cells
from abkt.codec.centre import value_centres
from abkt.codec.codec import Codec
from abkt.codec.oracle import Oracle


@pytest.fixture
def fresh():
    fast.load.cache_clear()
    yield
    fast.load.cache_clear()


@pytest.mark.parametrize("compiler", [None, "#!/bin/sh\necho 'fatal error: no such header' >&2\nexit 1\n"])
def test_without_a_working_compiler_the_oracle_codes_and_says_so_once(fresh, monkeypatch, tmp_path, caplog, layout_of, compiler):
    if compiler:
        (tmp_path / "g++").write_text(compiler)
        (tmp_path / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    layout = layout_of()
    with caplog.at_level(logging.WARNING, logger="abkt.codec"):
        assert Codec(layout).describe() == Codec(layout).describe() == Oracle().describe()
    assert len(caplog.records) == 1
    assert ("no such header" if compiler else "no g++ on the path") in caplog.text
    with pytest.raises(ValueError, match=r"needs g\+\+"):
        Codec(layout, "compiled").describe()


def test_a_library_is_built_once(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if fast.load() is None:
        pytest.skip("no g++ here")
    (library,) = (tmp_path / "abkt").iterdir()
    built = library.stat().st_mtime_ns
    fast.load.cache_clear()
    assert fast.load() is not None
    assert [p.stat().st_mtime_ns for p in (tmp_path / "abkt").iterdir()] == [built]


@pytest.mark.slow
@pytest.mark.parametrize("machine", [("-mavx2", "-mfma", "-mf16c"), ("-march=x86-64",)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_narrower_machines_give_the_same_bytes(tmp_path, layout_of, filled_pool, table_of, machine, dtype):
    flags = [flag for flag in fast.FLAGS if not flag.startswith("-march")]
    library = tmp_path / "codec.so"
    if subprocess.run(["g++", *flags, *machine, "-o", str(library), str(fast.SOURCE)], check=False).returncode:
        pytest.skip("no g++ for x86-64 here")
    layout = layout_of(dim=80, dtype=dtype)
    pool, table, cells = filled_pool(layout), table_of(layout, 200), Cells(layout, 200, 64, 8)
    narrow = fast.Compiled(ctypes.CDLL(str(library)))
    centres = value_centres(pool.data, cells.coded_table(table), cells)
    a, b = (path.encode(pool.data, cells.coded_table(table), cells, centres) for path in (Oracle(), narrow))
    assert torch.equal(a.body, b.body)
