"""The scores of LongBench (arXiv 2308.14508) and of the retrieval tasks, each of a prediction against one answer, in [0, 1].

ROUGE-L comes from rouge-score (summary level: LCS by sentence, F1), with words between blanks and sentences that end with full stops.
Edit similarity comes from rapidfuzz; jieba cuts Chinese into words. The published scores were made with other packages: `rouge`, whose F
leans to the smaller of precision and recall, and `fuzzywuzzy`, which rounds to whole percents. So a ROUGE-L of ABKT may be higher than a
published one, but two runs of ABKT are comparable.
"""

from __future__ import annotations

import re
import string
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
INSTALL = "install it with `pip install abkt[longbench]`"


def qa_f1(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """F1 of the words, without case, punctuation and articles."""
    return _f1(_english(prediction), _english(answer))


def qa_f1_zh(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """F1 of Chinese words, without punctuation and blanks."""
    return _f1(*([word for part in _words(text) if (word := _chinese(part))] for text in (prediction, answer)))


def rouge(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """ROUGE-L of English."""
    return float(_rouge().score(_sentences(answer), _sentences(prediction))["rougeLsum"].fmeasure)


def rouge_zh(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """ROUGE-L of Chinese words."""
    return rouge(" ".join(_words(prediction)), " ".join(_words(answer)))


def classification(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """1 / (number of classes named) if the right class is among them, else 0. A class whose name is part of the right one's name does not
    count as named."""
    named = [name for name in classes if name in prediction and (name == answer or name not in answer)]
    return 1 / len(named) if answer in named else 0.0


def retrieval(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Share of the numbers in the prediction that are the number of the right paragraph."""
    return _share(prediction, re.search(r"Paragraph (\d+)", answer))


def retrieval_zh(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    return _share(prediction, re.search(r"段落(\d+)", answer))


def count(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Share of the numbers in the prediction that are right."""
    return _share(prediction, re.search(r"(\d+)", answer))


def code_sim(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Edit similarity of the first line that is not a comment and not a code fence."""
    try:
        from rapidfuzz import fuzz
    except ImportError:
        raise ValueError(f"edit similarity needs rapidfuzz; {INSTALL}") from None
    lines = prediction.lstrip("\n").split("\n")
    return fuzz.ratio(next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), ""), answer) / 100


def choice(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """LongBench v2: the letter after the requested phrase; one in brackets is preferred."""
    said = prediction.replace("*", "")
    found = re.search(r"The correct answer is \(([A-D])\)", said) or re.search(r"The correct answer is ([A-D])", said)
    return float(found is not None and found.group(1) == answer)


def last_number(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """LongEval's lines: the last number of the prediction must be the right one."""
    numbers = re.findall(r"\d+", prediction)
    return float(bool(numbers) and int(numbers[-1]) == int(answer))


def contains(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Key-value retrieval and passkeys: the prediction must contain the answer."""
    return float(answer.lower() in prediction.lower())


def _share(prediction: str, wanted: re.Match[str] | None) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(wanted.group(1)) / len(numbers) if wanted and numbers else 0.0


def _english(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def _chinese(text: str) -> str:
    return "".join(c for c in text.lower() if c not in string.punctuation + CHINESE_PUNCTUATION and not c.isspace())


def _f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    same = (Counter(prediction) & Counter(answer)).total()
    return 2 * same / (len(prediction) + len(answer)) if same else 0.0


def _sentences(text: str) -> str:
    return "\n".join(" ".join(sentence.split()) for sentence in text.split("."))


class _Blanks:
    """Splits words at blanks. rouge-score's own tokenizer would drop all letters but a to z."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


@cache
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ValueError(f"ROUGE-L needs rouge-score; {INSTALL}") from None
    return RougeScorer(["rougeLsum"], tokenizer=_Blanks())


def _words(text: str) -> list[str]:
    return [str(word) for word in _jieba().cut(text, cut_all=False)]


@cache
def _jieba() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and pkg_resources, because jieba is old
            import jieba
    except ImportError:
        raise ValueError(f"Chinese words need jieba; {INSTALL}") from None
    jieba.setLogLevel("ERROR")
    return jieba
