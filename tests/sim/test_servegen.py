from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sim.workload.servegen import PERCENTILES, read_servegen

PUBLISHED = Path(__file__).parents[2] / ".." / "shared" / "data" / "traces"


def tables(folder: Path, rates: list[tuple[int, int, float, str, float]], lengths: list[tuple[int, int, str, float, float]]):
    """Write the rate and length tables. Lengths go from low to high in equal steps, so that their mean is half way."""
    names = ("client", "t", "rate", "pattern", "p1")
    pq.write_table(pa.table({name: [row[i] for row in rates] for i, name in enumerate(names)}), folder / "rates.parquet")
    columns: dict[str, list] = {name: [row[i] for row in lengths] for i, name in enumerate(("client", "window", "field"))}
    columns |= {name: [row[3] + (row[4] - row[3]) * i / 100 for row in lengths] for i, name in enumerate(PERCENTILES)}
    pq.write_table(pa.table(columns), folder / "lengths.parquet")
    return folder / "lengths.parquet", folder / "rates.parquet"


BOTH = [(0, 0, "input_tokens", 100, 300), (0, 0, "output_tokens", 10, 10), (1, 0, "input_tokens", 5, 5), (1, 0, "output_tokens", 1, 1)]


def test_each_window_has_its_published_number_of_requests_with_its_clients_lengths(tmp_path) -> None:
    paths = tables(tmp_path, [(0, 0, 5.0, "Gamma", 0.5), (1, 600, 2.0, "Weibull", 0.8), (0, 1200, 5.0, "Gamma", 1.0)], BOTH)
    requests, borrowed = read_servegen(*paths, duration_s=1200.0, seed=1)
    assert borrowed == 0
    first, second = [r for r in requests if r.osl == 10], [r for r in requests if r.osl == 1]
    assert (len(first), len(second)) == (3000, 1200)  # rate x 600 s, and nothing of the window that begins at 1200 s
    assert np.mean([r.isl for r in first]) == pytest.approx(200, rel=0.02)
    assert (min(r.isl for r in first), max(r.isl for r in first)) >= (100, 290)
    assert {r.isl for r in second} == {5}
    start_s = min(r.arrival_s for r in second)
    assert max(r.arrival_s for r in first) <= start_s + 1.0
    times = [r.arrival_s for r in requests]
    assert times == sorted(times)
    assert times[0] == 0.0
    assert (requests, 0) == read_servegen(*paths, duration_s=1200.0, seed=1) != read_servegen(*paths, duration_s=1200.0, seed=2)


def test_a_share_of_the_requests_thins_all_clients_equally(tmp_path) -> None:
    paths = tables(tmp_path, [(0, 0, 5.0, "Gamma", 0.5), (1, 0, 2.0, "Gamma", 0.8)], BOTH)
    requests, _ = read_servegen(*paths, share=0.1)
    assert sum(r.osl == 10 for r in requests) == 300
    assert sum(r.osl == 1 for r in requests) == 120


def test_a_client_without_lengths_borrows_those_of_others_in_proportion_to_their_rates(tmp_path) -> None:
    """Client 0 sends three times as many requests as client 1; client 2 has no published lengths."""
    rates = [(0, 0, 3.0, "Gamma", 1.0), (1, 0, 1.0, "Gamma", 1.0), (2, 0, 4.0, "Gamma", 1.0)]
    requests, borrowed = read_servegen(*tables(tmp_path, rates, BOTH))
    assert borrowed == pytest.approx(0.5)
    assert len(requests) == 4800
    assert sum(r.osl == 10 for r in requests) == pytest.approx(0.75 * 4800, rel=0.03)


def test_missing_data_is_reported(tmp_path) -> None:
    paths = tables(tmp_path, [(0, 0, 5.0, "Gamma", 0.5)], BOTH[2:])
    with pytest.raises(ValueError, match="no lengths of any client"):
        read_servegen(*paths)
    with pytest.raises(ValueError, match="no requests between 600 and 1200 s"):
        read_servegen(*paths, start_s=600.0, duration_s=600.0)
    with pytest.raises(ValueError, match="there is no column window"):
        read_servegen(paths[1], paths[1])
    with pytest.raises(ValueError, match="share"):
        read_servegen(*paths, share=0.0)
    with pytest.raises(ValueError, match="are not a ServeGen window"):
        read_servegen(*tables(tmp_path, [(0, 0, 5.0, "Pareto", 0.5)], BOTH))


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published traces are not here")
def test_the_published_clients_have_the_counted_requests() -> None:
    lengths, rates = (PUBLISHED / f"servegen_deepseek-r1_{name}.parquet" for name in ("lengths", "rates"))
    requests, borrowed = read_servegen(lengths, rates, duration_s=3600.0)
    windows = pq.read_table(rates).to_pandas()
    counted = (windows[windows.t < 3600].rate * 600).sum()
    assert len(requests) == pytest.approx(counted, rel=0.01)
    assert borrowed == 0
