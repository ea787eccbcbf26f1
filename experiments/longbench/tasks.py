"""The tasks: LongBench's 21 and its second version, and retrieval from a known place. Prompts and answer lengths are read with the data.

Source: LongBench (arXiv 2308.14508) and its v2 (arXiv 2412.15204); LongEval's lines (LongChat), key-value retrieval (Lost in the Middle,
arXiv 2307.03172), passkeys as KIVI asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.longbench import metrics

Metric = Callable[[str, str, Sequence[str]], float]


@dataclass(frozen=True, slots=True)
class Task:
    """A task. file: name of the file of its rows, without ending. most_tokens: limit of an answer; 0: read from the data's table.
    first_line: only the first line is scored. plain: no chat template, because the examples are not conversations. line_ends: an answer
    ends with its line, and has at least one token."""

    name: str
    category: str
    metric: Metric
    file: str
    most_tokens: int = 0
    first_line: bool = False
    plain: bool = False
    line_ends: bool = False

    @property
    def family(self) -> str:
        """v1, v2 or retrieval, which decides how its prompts are made."""
        return "v2" if self.name == "v2" else "retrieval" if self.category == "Retrieval" else "v1"

    def score(self, prediction: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
        """The best score over all right answers."""
        if self.first_line:
            prediction = prediction.lstrip("\n").split("\n")[0]
        return max(self.metric(prediction, answer, classes) for answer in answers)


def _v1(name: str, category: str, metric: Metric, **more: bool) -> Task:
    return Task(name, category, metric, name, **more)


SHOWN = {"first_line": True, "plain": True}
V1 = (
    _v1("hotpotqa", "Multi-doc QA", metrics.qa_f1),
    _v1("2wikimqa", "Multi-doc QA", metrics.qa_f1),
    _v1("musique", "Multi-doc QA", metrics.qa_f1),
    _v1("dureader", "Multi-doc QA", metrics.rouge_zh),
    _v1("multifieldqa_en", "Single-doc QA", metrics.qa_f1),
    _v1("multifieldqa_zh", "Single-doc QA", metrics.qa_f1_zh),
    _v1("narrativeqa", "Single-doc QA", metrics.qa_f1),
    _v1("qasper", "Single-doc QA", metrics.qa_f1),
    _v1("gov_report", "Summarization", metrics.rouge),
    _v1("qmsum", "Summarization", metrics.rouge),
    _v1("multi_news", "Summarization", metrics.rouge),
    _v1("vcsum", "Summarization", metrics.rouge_zh),
    _v1("triviaqa", "Few shot", metrics.qa_f1, **SHOWN),
    _v1("samsum", "Few shot", metrics.rouge, **SHOWN, line_ends=True),
    _v1("trec", "Few shot", metrics.classification, **SHOWN),
    _v1("lsht", "Few shot", metrics.classification, **SHOWN),
    _v1("passage_retrieval_en", "Synthetic", metrics.retrieval),
    _v1("passage_count", "Synthetic", metrics.count),
    _v1("passage_retrieval_zh", "Synthetic", metrics.retrieval_zh),
    _v1("lcc", "Code", metrics.code_sim, plain=True),
    _v1("repobench-p", "Code", metrics.code_sim, plain=True),
)
V2 = (Task("v2", "v2", metrics.choice, "data", most_tokens=128),)
RETRIEVAL = (
    Task("longeval_200_lines", "Retrieval", metrics.last_number, "longeval_200_lines", 32),
    Task("longeval_600_lines", "Retrieval", metrics.last_number, "longeval_600_lines", 32),
    Task("kv_retrieval_75", "Retrieval", metrics.contains, "litm_kv-retrieval-75_keys", 64, plain=True),
    Task("passkey", "Retrieval", metrics.contains, "kivi_passkey_examples", 16, plain=True),
)
TASKS = {task.name: task for task in (*V1, *V2, *RETRIEVAL)}
GROUPS = {"v1": V1, "v2": V2, "retrieval": RETRIEVAL}


def chosen(names: Sequence[str], there: Callable[[Task], bool]) -> list[Task]:
    """Tasks by name or group, in the given order. Of a group, and of `all`, the tasks that the data has.

    Raises ValueError, one line, for an unknown name, or if no task is left.
    """
    found: dict[str, Task] = {}
    for name in names:
        group = tuple(TASKS.values()) if name == "all" else GROUPS.get(name)
        if group is None and name not in TASKS:
            raise ValueError(f"task {name} is unknown; there are all, {', '.join([*GROUPS, *TASKS])}")
        found |= {task.name: task for task in (filter(there, group) if group else (TASKS[name],))}
    if not found:
        raise ValueError(f"tasks={','.join(names)}: the data has none of these")
    return list(found.values())
