"""Rows as questions: the published prompt around each row, its answers, and the cut in the middle of a prompt that is too long."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from experiments.longbench.data import Example, Source
from experiments.longbench.tasks import Task

SHRINKS = 16
KEY_VALUES = 'Here is a JSON object with keys and values:\n{object}\nThe value of the key "{key}" in it is:'  # ours


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as token ids. whole_tokens: length of the prompt before it was cut. most_tokens: limit of the answer."""

    task: Task
    example: Example
    tokens: tuple[int, ...]
    whole_tokens: int
    most_tokens: int

    @property
    def truncated(self) -> bool:
        return len(self.tokens) < self.whole_tokens


def examples(task: Task, source: Source, most: int | None) -> Iterator[Example]:
    """The first `most` questions of a task. Raises ValueError, one line, for a row that lacks a field of the task."""
    build: Callable[[Mapping[str, Any]], Example]
    if task.family == "v1":
        prompts = json.loads(source.text("v1", "dataset2prompt.json"))
        if task.name not in prompts:
            raise ValueError(f"dataset2prompt.json has no prompt for {task.name}")
        build = partial(v1, template=prompts[task.name])
    elif task.family == "v2":
        build = partial(v2, template=source.text("v2", "0shot.txt"))
    else:
        build = BUILDERS[task.name]
    for number, row in enumerate(source.rows(task)):
        if number == most:
            return
        try:
            made = build({"_id": str(number), **row})
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"task {task.name}, row {number + 1} is not one of its rows: {error!r}") from None
        if not made.answers:
            raise ValueError(f"task {task.name}, row {number + 1} has no answer")
        yield made


def most_tokens(task: Task, source: Source) -> int:
    """The most tokens that an answer may have."""
    if task.family != "v1":
        return task.most_tokens
    lengths = json.loads(source.text("v1", "dataset2maxlen.json"))
    if task.name not in lengths:
        raise ValueError(f"dataset2maxlen.json has no length for {task.name}")
    return int(lengths[task.name])


def v1(row: Mapping[str, Any], template: str) -> Example:
    prompt = template.format(context=row["context"], input=row["input"])
    return Example(str(row["_id"]), prompt, tuple(row["answers"]), tuple(row["all_classes"] or ()))


def v2(row: Mapping[str, Any], template: str) -> Example:
    marks = {"$DOC$": row["context"], "$Q$": row["question"], **{f"$C_{c}$": row[f"choice_{c}"] for c in "ABCD"}}
    prompt = template
    for mark, text in marks.items():
        prompt = prompt.replace(mark, text.strip())
    return Example(str(row["_id"]), prompt, (row["answer"],), splits=(row["difficulty"], row["length"]))


def longeval(row: Mapping[str, Any]) -> Example:
    return Example(str(row["_id"]), row["prompt"], (str(row["expected_number"]),))


def key_values(row: Mapping[str, Any]) -> Example:
    held = json.dumps(dict(row["ordered_kv_records"]), indent=0)
    return Example(str(row["_id"]), KEY_VALUES.format(object=held, key=row["key"]), (row["value"],))


def passkey(row: Mapping[str, Any]) -> Example:
    return Example(str(row["_id"]), row["input"], (str(row["target"]),))


BUILDERS = {"longeval_200_lines": longeval, "longeval_600_lines": longeval, "kv_retrieval_75": key_values, "passkey": passkey}


def ask(task: Task, example: Example, tokenizer: Any, limit: int, most: int, chat: bool) -> Asked:
    """The question with a prompt of at most `limit` tokens, its chat template included.

    A longer prompt is cut in its middle, before the template is put around it. Decoding the cut ids and encoding the text again may give
    more tokens; then more is cut. most: limit of the answer's tokens. Raises ValueError if the template alone is longer than `limit`.
    """
    templated = chat and not task.plain and bool(getattr(tokenizer, "chat_template", None))

    def ids(text: str) -> list[int]:
        if not templated:
            return tokenizer(text).input_ids
        said = [{"role": "user", "content": text}]
        return tokenizer(
            tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True), add_special_tokens=False
        ).input_ids

    whole = ids(example.prompt)
    if len(whole) <= limit:
        return Asked(task, example, tuple(whole), len(whole), most)
    plain = tokenizer(example.prompt).input_ids
    room = limit - (len(ids("")) if templated else 0)
    for _ in range(SHRINKS):
        if room < 2:
            break
        cut = ids(middle_out(plain, room, tokenizer))
        if len(cut) <= limit:
            return Asked(task, example, tuple(cut), len(whole), most)
        room = min(room - 1, room * limit // len(cut))
    raise ValueError(f"task {task.name}: a prompt does not fit {limit} tokens, however much is cut out of it; give a larger max_tokens")


def middle_out(ids: list[int], room: int, tokenizer: Any) -> str:
    """The first and the last half of `room` tokens, as text, as LongBench does: the question is at either end."""
    half = room // 2
    return tokenizer.decode(ids[:half], skip_special_tokens=True) + tokenizer.decode(ids[-half:], skip_special_tokens=True)
