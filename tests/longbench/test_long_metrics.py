"""LongBench's scores on cases solved by hand."""

from __future__ import annotations

import csv
import json

import pytest

from experiments.longbench import metrics
from experiments.longbench.tasks import RETRIEVAL, TASKS, V1, V2, chosen


@pytest.mark.parametrize(
    ("metric", "prediction", "answer", "score"),
    [
        # words: {cat, sat} of 3 and of 2 -> P 2/3, R 1; articles, case and punctuation do not count
        (metrics.qa_f1, "The cat sat, quietly.", "a cat SAT", 2 * (2 / 3) / (2 / 3 + 1)),
        (metrics.qa_f1, "cat cat", "cat", 2 * 0.5 / 1.5),
        (metrics.qa_f1, "dog", "cat", 0.0),
        (metrics.qa_f1, "", "cat", 0.0),
        # 北京 | 大学 against 北京 | 大学 with a full stop, and against half of it
        (metrics.qa_f1_zh, "北京大学", "北京大学。", 1.0),
        (metrics.qa_f1_zh, "厦门", "上海", 0.0),
        # LCS of "a b c d" and "a c": 2 -> P 2/4, R 2/2
        (metrics.rouge, "a b c d", "a c", 2 * 0.5 / 1.5),
        # by sentence: each of the reference's finds its own, whatever their order -> all 4 words
        (metrics.rouge, "c d. a b.", "a b. c d.", 1.0),
        (metrics.rouge, "", "a b", 0.0),
        (metrics.rouge_zh, "我们 今天", "今天", 2 / 3),
        (metrics.rouge_zh, "我们", "今天", 0.0),
        (metrics.retrieval, "Paragraph 3, or 4", "Paragraph 3", 0.5),
        (metrics.retrieval, "Paragraph 13", "Paragraph 3", 0.0),
        (metrics.retrieval, "none", "Paragraph 3", 0.0),
        (metrics.retrieval_zh, "段落27", "段落27", 1.0),
        (metrics.retrieval_zh, "段落2，段落27，段落27", "段落27", 2 / 3),
        (metrics.count, "7 or 8 or 7", "7", 2 / 3),
        (metrics.count, "seven", "7", 0.0),
        # the fence and the comment are passed over; 2 of 3 letters in order on both sides: indel similarity 1 - 2/6
        (metrics.code_sim, "\n```python\n# a\nabc\nxyz", "abd", 2 / 3),
        (metrics.code_sim, "x = 1  # c\n// d", "x = 1", 0.0),
        (metrics.choice, "The correct answer is (B)", "B", 1.0),
        (metrics.choice, "**The correct answer is C**", "C", 1.0),
        (metrics.choice, "It is B", "B", 0.0),
        (metrics.choice, "The correct answer is (A) or (B)", "B", 0.0),
        (metrics.choice, "The correct answer is A, so: The correct answer is (B)", "B", 1.0),
        (metrics.last_number, "line 7 has <2416>", "2416", 1.0),
        (metrics.last_number, "2416 or 7", "2416", 0.0),
        (metrics.last_number, "none", "2416", 0.0),
        (metrics.contains, "it is BB3BA-1.", "bb3ba-1", 1.0),
        (metrics.contains, "it is bb3b", "bb3ba-1", 0.0),
    ],
)
def test_scores_by_hand(metric, prediction, answer, score):
    assert metric(prediction, answer) == pytest.approx(score)


def test_a_class_counts_less_the_more_are_named():
    classes = ["Number of something", "Number", "Date"]
    assert metrics.classification("Date", "Date", classes) == 1
    assert metrics.classification("Date or Number", "Date", classes) == 0.5
    assert metrics.classification("Number of something", "Number of something", classes) == 1, "its part is not named by it"
    assert metrics.classification("Number of something", "Number", classes) == 0.5, "but a longer name is named"
    assert metrics.classification("Date", "Number", classes) == 0


def test_the_best_answer_counts_and_of_shown_tasks_the_first_line():
    assert TASKS["qasper"].score("no idea", ["yes", "no idea"]) == 1
    assert TASKS["triviaqa"].score("\n\nParis\nRome Berlin", ["Paris"]) == 1
    assert TASKS["qasper"].score("Paris\nRome Berlin", ["Paris"]) == pytest.approx(0.5)


def test_the_protocol_is_the_published_one(real):
    """The table compiled from LongBench's own task.md, eval.py and pred.py."""
    rows = {row["task"]: row for row in csv.DictReader((real / "v1_tasks.csv").read_text().splitlines())}
    assert {task.name for task in V1} == set(rows)
    for task in V1:
        row = rows[task.name]
        assert (task.category, task.metric.__name__) == (row["type"], row["metric_fn"])
        assert (str(task.first_line), str(task.plain)) == (row["first_line_only"], row["no_chat_template"])
    assert set(json.loads((real / "v1_dataset2prompt.json").read_text())) == set(rows)
    assert [task.name for task in V1 if task.line_ends] == ["samsum"]


def test_tasks_by_name_and_by_group():
    there = {"trec", "v2", "passkey"}
    assert [task.name for task in chosen(["all"], lambda task: task.name in there)] == ["trec", "v2", "passkey"]
    assert [task.name for task in chosen(["retrieval", "qasper"], lambda task: task.name in there)] == ["passkey", "qasper"]
    assert chosen(["v2"], lambda task: True) == list(V2)
    assert {task.family for task in V1} == {"v1"}
    assert {task.family for task in RETRIEVAL} == {"retrieval"}
    with pytest.raises(ValueError, match="task qaspar is unknown; there are all, v1, v2, retrieval, hotpotqa"):
        chosen(["qaspar"], lambda task: True)
    with pytest.raises(ValueError, match="the data has none of these"):
        chosen(["v1"], lambda task: False)
