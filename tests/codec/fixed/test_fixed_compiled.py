"""The compiled backend gives the oracle's bytes and is built once. Where it cannot be built, the oracle runs instead."""

import ctypes
import logging
import subprocess

import numpy as np
import pytest
import torch

from abkt.codec.cells import Cells
from abkt.codec.codec import Codec
from abkt.codec.coder import VERBATIM
from abkt.codec.fixed import compiled
from abkt.codec.fixed.backend import Arrived
from abkt.codec.fixed.centre import value_centres
from abkt.codec.fixed.oracle import OracleBackend
from abkt.kv.pool import Pool

SHAPES = [  # tokens, layers, heads, head_dim, block tokens, tile tokens
    (300, 2, 2, 64, 16, 128),
    (77, 1, 1, 64, 4, 12),
    (130, 1, 3, 80, 16, 64),
    (145, 1, 2, 96, 8, 32),
    (200, 1, 2, 128, 16, 48),
    (64, 2, 1, 256, 16, 32),
    (60, 1, 2, 16, 3, 9),
    (23, 1, 2, 32, 1, 5),
    (100, 1, 1, 576, 16, 32),
    (16, 1, 1, 32, 16, 128),
]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("tokens", "layers", "heads", "dim", "block_tokens", "tile"), SHAPES)
def test_the_compiled_backend_gives_the_oracles_bytes_and_values(
    layout_of, filled_pool, table_of, tokens, layers, heads, dim, block_tokens, tile, dtype
):
    if compiled.load() is None:
        pytest.skip("no g++ here: nothing to compare the oracle with")
    layout = layout_of(layers, heads, dim, dtype, blocks=-(-tokens // block_tokens) + 5, block_tokens=block_tokens)
    pool, table, target = filled_pool(layout), table_of(layout, tokens), table_of(layout, tokens, seed=9)
    for depth in (1, 2, 3, 4, 6, 8):
        cells = Cells(layout, tokens, tile, depth)
        if cells.count > 2:
            last = cells.coded_table(table)[-1]
            pool.data[last, 0, 1, 0, 0, 3] = float("nan")
        slow, quick = OracleBackend(), compiled.load()
        centres = value_centres(pool.data, cells.coded_table(table), cells)
        a, b = (path.encode(pool.data, cells.coded_table(table), cells, centres) for path in (slow, quick))
        assert np.array_equal(a.classes, b.classes)
        assert torch.equal(a.body, b.body)
        assert (a.classes == VERBATIM).sum() == (cells.count > 2)
        assert np.allclose(a.errors, b.errors, rtol=1e-4, atol=1e-9)
        assert np.allclose(a.deviation, b.deviation, rtol=1e-4)
        assert np.array_equal(*(path.checksums(a.body.numpy(), cells.offsets, cells.sizes) for path in (slow, quick)))
        for present in range(cells.passes + 1) if depth == 8 else (cells.passes,):
            arrived = Arrived(a.body.numpy(), cells.offsets, np.full(cells.count, present, dtype=np.int8), a.classes, centres)
            results = []
            for path in (slow, quick):
                out = Pool(layout)
                path.expand(arrived, out.data, cells.coded_table(target), cells)
                results.append(out.data)
            assert torch.equal(*results)


@pytest.fixture
def fresh():
    compiled.load.cache_clear()
    yield
    compiled.load.cache_clear()


@pytest.mark.parametrize("compiler", [None, "#!/bin/sh\necho 'fatal error: no such header' >&2\nexit 1\n"])
def test_without_a_working_compiler_the_oracle_codes_and_warns_once(fresh, monkeypatch, tmp_path, caplog, layout_of, compiler):
    if compiler:
        (tmp_path / "g++").write_text(compiler)
        (tmp_path / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    layout = layout_of()
    with caplog.at_level(logging.WARNING, logger="abkt.codec"):
        assert Codec(layout).describe() == Codec(layout).describe() == OracleBackend().describe()
    assert len(caplog.records) == 1
    assert ("no such header" if compiler else "no g++ on the path") in caplog.text
    with pytest.raises(ValueError, match=r"needs a working g\+\+"):
        Codec(layout, "compiled").describe()


def test_the_compiled_library_is_built_once(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("abkt.codec.compile.FLAGS", ("-std=c++17", "-O0", "-march=native", "-fPIC", "-shared"))  # four times as quick
    if compiled.load() is None:
        pytest.skip("no g++ here")
    (library,) = (tmp_path / "abkt").iterdir()
    built = library.stat().st_mtime_ns
    compiled.load.cache_clear()
    assert compiled.load() is not None
    assert [p.stat().st_mtime_ns for p in (tmp_path / "abkt").iterdir()] == [built]


@pytest.mark.slow
@pytest.mark.parametrize("machine", [("-mavx2", "-mfma", "-mf16c"), ("-march=x86-64",)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_machines_with_narrower_vectors_give_the_same_bytes(tmp_path, layout_of, filled_pool, table_of, machine, dtype):
    flags = [flag for flag in compiled.FLAGS if not flag.startswith("-march")]
    library = tmp_path / "codec.so"
    if subprocess.run(["g++", *flags, *machine, "-o", str(library), str(compiled.SOURCE)], check=False).returncode:
        pytest.skip("no g++ for x86-64 here")
    layout = layout_of(dim=80, dtype=dtype)
    pool, table, cells = filled_pool(layout), table_of(layout, 200), Cells(layout, 200, 64, 8)
    narrow = compiled.CompiledBackend(ctypes.CDLL(str(library)))
    centres = value_centres(pool.data, cells.coded_table(table), cells)
    a, b = (path.encode(pool.data, cells.coded_table(table), cells, centres) for path in (OracleBackend(), narrow))
    assert torch.equal(a.body, b.body)
