from __future__ import annotations

import gzip
import json
from collections import Counter
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.workload.requests import Request
from sim.workload.traces import read_trace, spread

PUBLISHED = Path(__file__).parents[2] / ".." / "shared" / "data" / "traces"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109\r\n"


def mooncake(*rows: tuple[int, int, int]) -> str:
    return "".join(json.dumps({"timestamp": t, "input_length": i, "output_length": o, "hash_ids": [0, t]}) + "\n" for t, i, o in rows)


def written(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a"])
def test_azure_traces_are_read(tmp_path, name) -> None:
    first, second = read_trace(written(tmp_path / name, AZURE))
    assert first == Request(0, 0.0, 374, 44)
    assert (second.isl, second.osl) == (396, 109)
    assert second.arrival_s == pytest.approx(4.3145790, abs=1e-9)


def test_azure_times_keep_their_seventh_digit_and_time_zone(tmp_path) -> None:
    text = "ContextTokens,GeneratedTokens,TIMESTAMP\n1,2,2024-05-10 23:59:59.0000001+00:00\n3,4,2024-05-11 00:00:00.0000009+00:00\n"
    assert read_trace(written(tmp_path / "a.csv", text))[1].arrival_s == pytest.approx(1.0000008, abs=1e-9)


@pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz"])
def test_mooncake_times_that_all_differ_are_kept(tmp_path, name) -> None:
    trace = read_trace(written(tmp_path / name, mooncake((500, 7, 3), (1250, 9, 1))))
    assert trace == [Request(0, 0.0, 7, 3, (0, 500)), Request(1, 0.75, 9, 1, (0, 1250))]


def test_mooncake_requests_at_the_same_time_are_spread_over_the_step(tmp_path) -> None:
    path = written(tmp_path / "m.jsonl", mooncake(*[(step * 3000, 10 + i, 5) for step in (0, 1, 2, 9) for i in range(20)]))
    trace = read_trace(path, seed=5)
    assert [r.isl for r in trace] == [10 + i for _ in range(4) for i in range(20)]  # order kept
    assert [int(r.arrival_s // 3) for r in trace] == [step for step in (0, 1, 2, 9) for _ in range(20)]  # each in its own step
    assert len({r.arrival_s for r in trace}) == 80
    assert trace == read_trace(path, seed=5) != read_trace(path, seed=6)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60).map(sorted), st.integers(0, 9))
def test_spreading_keeps_each_request_in_its_step_and_their_order(steps, seed) -> None:
    times = [3.0 * step for step in steps]
    moved = spread(times, seed)
    assert moved == sorted(moved)
    assert len(moved) == len(times)
    starts = sorted(set(times))
    for before, after in zip(times, moved):
        later = [start for start in starts if start > before]
        assert before <= after
        assert not (later and after >= later[0])


BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,7,2,9,x\n"
LENGTHS = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n74,918,992,0.08\n290,905,1195,0.32\n"
LONGBENCH = '{"input": "", "length": 2099, "dataset": "multi_news"}\n{"length": 31, "dataset": "trec"}\n'


BAD = {
    "line 2: input_length is 0; a length must be at least 1": mooncake((0, 1, 1), (0, 0, 1)),
    "line 2: its time is before": mooncake((5, 1, 1), (4, 1, 1)),
    "line 2: not JSON": mooncake((0, 1, 1)) + "{oops\n",
    "line 1: output_length is missing": '{"timestamp": 0, "input_length": 3}\n',
    "line 1: input_length is 2.5; a length must be a whole number": '{"timestamp": 0, "input_length": 2.5, "output_length": 3}\n',
    "line 1: input_length is True": '{"timestamp": 0, "input_length": true, "output_length": 3}\n',
    "line 1: timestamp is 'now'": '{"timestamp": "now", "input_length": 2, "output_length": 3}\n',
    "line 1: timestamp is nan": '{"timestamp": NaN, "input_length": 2, "output_length": 3}\n',
    "line 2: .* is not a JSON object": mooncake((0, 1, 1)) + "[1]\n",
    "line 1: hash_ids": '{"timestamp": 0, "input_length": 2, "output_length": 3, "hash_ids": ["a"]}\n',
    "line 3: GeneratedTokens is -3; a length must be at least 1": AZURE.replace(",109", ",-3"),
    "line 3: ContextTokens is 'many'": AZURE.replace("396", "many"),
    "line 2: 2 values for 3 columns": AZURE.replace(",44", ""),
    "line 2: TIMESTAMP is 'noon'": AZURE.replace("2023-11-16 18:15:46.6805900", "noon"),
    "line 3: its time is before": AZURE.replace("18:15:50", "18:15:40"),
    "line 1: there is no column GeneratedTokens": AZURE.replace("GeneratedTokens", "Tokens"),
    "line 3: TIMESTAMP is '2023-11-16 18:15:50.9951690[+]00:00'": AZURE.replace("50.9951690", "50.9951690+00:00"),
    "is empty": AZURE.splitlines()[0],
    "line 3: Response tokens is 0; a length must be at least 1": BURSTGPT.replace("7,2,9", "7,0,7"),
    "line 3: Timestamp is 'soon'; it must be a number of seconds": BURSTGPT.replace("45,", "soon,"),
    "line 3: its time is before that": BURSTGPT.replace("45,", "4,"),
    "line 2: num_decode_tokens is '9.5'": LENGTHS.replace("918", "9.5"),
    "line 2: dataset is 'cooking'": LONGBENCH.replace("trec", "cooking"),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, message) -> None:
    path = written(tmp_path / "bad.txt", BAD[message])
    with pytest.raises(ValueError, match=message) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_reported(tmp_path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_trace(tmp_path / "none.csv")
    for name, data in (
        ("cut.parquet", b"PAR1" + bytes(40)),
        ("cut.csv.gz", gzip.compress(AZURE.encode() * 50)[:-30]),
        ("bytes.csv", b"\xff\xfe\x00"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="cannot be read"):
            read_trace(tmp_path / name)
    with pytest.raises(ValueError, match="is empty"):
        read_trace(written(tmp_path / "empty.csv", ""))
    with pytest.raises(ValueError, match="are no trace's; there must be"):
        read_trace(written(tmp_path / "other.csv", "a,b\n1,2\n"))
    with pytest.raises(ValueError, match="JSON objects are needed"):
        read_trace(written(tmp_path / "a.csv", AZURE), format="mooncake")
    with pytest.raises(ValueError, match="auto, mooncake, bailian, longbench, azure"):
        read_trace(written(tmp_path / "a.csv", AZURE), format="vidurs")


def test_burstgpt_traces_are_read(tmp_path) -> None:
    assert read_trace(written(tmp_path / "b.csv", BURSTGPT)) == [Request(0, 0.0, 472, 18), Request(1, 40.0, 7, 2)]


@pytest.mark.parametrize(("text", "expected"), [(LENGTHS, [(74, 918), (290, 905)]), (LONGBENCH, [(2099, 512), (31, 64)])])
def test_lengths_without_times_need_arrivals(tmp_path, text, expected) -> None:
    path = written(tmp_path / "lengths", text)
    assert read_trace(path, arrivals=lambda n: [float(i) for i in range(n)]) == [
        Request(i, float(i), *pair) for i, pair in enumerate(expected)
    ]
    with pytest.raises(ValueError, match="lengths but no times"):
        read_trace(path)


def test_configured_arrivals_replace_those_of_a_trace(tmp_path) -> None:
    assert [r.arrival_s for r in read_trace(written(tmp_path / "b.csv", BURSTGPT), arrivals=lambda n: [0.0, 0.5])] == [0.0, 0.5]


def test_a_trace_may_be_a_parquet_file(tmp_path) -> None:
    """The file has the same rows, with Parquet's types. Its name does not end in .parquet."""
    columns = {"Timestamp": [5.0, 45.0], "Model": ["ChatGPT", "GPT-4"], "Request tokens": [472, 7], "Response tokens": [18, 2]}
    pq.write_table(pa.table(columns), tmp_path / "b")
    assert read_trace(tmp_path / "b") == read_trace(written(tmp_path / "b.csv.gz", BURSTGPT))
    moments = [datetime(2023, 11, 16, 18, 15, 46), datetime(2023, 11, 16, 18, 15, 50, 500_000)]
    pq.write_table(pa.table({"TIMESTAMP": moments, "ContextTokens": [3, 4], "GeneratedTokens": [5, 6]}), tmp_path / "a")
    assert read_trace(tmp_path / "a") == [Request(0, 0.0, 3, 5), Request(1, 4.5, 4, 6)]
    pq.write_table(pa.table({**columns, "Request tokens": [472, 0]}), tmp_path / "bad")
    with pytest.raises(ValueError, match="row 2: Request tokens is 0"):
        read_trace(tmp_path / "bad")


def test_the_records_of_a_run_can_be_read_as_a_trace(tmp_path) -> None:
    pq.write_table(pa.table({"isl": [3, 4], "arrival_s": [1.0, 2.5], "osl": [5, 6], "outcome": ["a", "b"]}), tmp_path / "r.parquet")
    assert read_trace(tmp_path / "r.parquet") == [Request(0, 0.0, 3, 5), Request(1, 1.5, 4, 6)]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published traces are not here")
def test_the_published_traces_have_their_published_figures() -> None:
    trace = read_trace(PUBLISHED / "mooncake_conversation_trace.jsonl.gz")
    assert len(trace) == 12_031
    assert sum(r.isl for r in trace) / len(trace) == pytest.approx(12_035, abs=1)
    assert Counter(type(r.hash_ids) for r in trace) == {tuple: 12_031}
    assert max(r.arrival_s for r in trace) < 3_600
    assert len(read_trace(PUBLISHED / "azure2023_conv.csv.gz")) == 19_366
    sharegpt = read_trace(PUBLISHED / "lengths_sharegpt_8k_etalon.csv.gz", arrivals=lambda n: [0.0] * n)
    assert (len(sharegpt), sharegpt[0]) == (30_731, Request(0, 0.0, 74, 918))
    assert len(read_trace(PUBLISHED / "lengths_arxiv_summarization_vidur.csv.gz", arrivals=lambda n: [0.0] * n)) == 28_257
    longbench = read_trace(PUBLISHED.parent / "longbench" / "v1_multi_news.jsonl.gz", arrivals=lambda n: [0.0] * n)
    assert sum(r.isl for r in longbench) / len(longbench) == pytest.approx(2_113, abs=1)  # in words, as LongBench's own table counts
    assert {r.osl for r in longbench} == {512}
