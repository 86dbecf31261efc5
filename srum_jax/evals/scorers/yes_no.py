"""Yes or no read out of replies, and what POPE makes of it.

Owns how three programs read a reply, "llava" (also BAGEL's), "lmms-eval" and "vlmevalkit", and
POPE's numbers in each; and `clear`, ours, for strict scores: it never takes silence for a yes.
"""

import dataclasses
import re
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from srum_jax.evals.scorers import vqa
from srum_jax.evals.suite import NO_LOGPROBS, Metric, Record

YES = ("Yes", "yes", " yes", " Yes")
NO = ("No", "no", " no", " No")
FIRST_TOKENS = (*YES, *NO)


def clear(reply: str) -> str | None:
    """ "yes" or "no" where one of them, and not the other, is a word of the reply in any case; None
    otherwise."""
    said = {"yes", "no"} & set(re.findall(r"[^\W_]+", reply.lower()))
    return said.pop() if len(said) == 1 else None


def reason(said: str | None, label: str) -> str:
    """Why what `clear` reads is wrong, "" where it is right."""
    if said == label:
        return ""
    return f"{f'said {said}' if said else 'neither yes nor no'}; {label} is right"


def yes_share(record: Record) -> float:
    """P(yes) / (P(yes) + P(no)) of a judge's reply to a request with FIRST_TOKENS; of a judge that
    gives words alone 1 or 0 by `clear`; NaN where there is no reply, or neither in it."""
    if record.status not in ("ok", NO_LOGPROBS):
        return float("nan")
    yes, no = (sum(record.p.get(text, 0.0) for text in several) for several in (YES, NO))
    if yes + no > 0:
        return yes / (yes + no)
    return {"yes": 1.0, "no": 0.0}.get(clear(record.reply) or "", float("nan"))


def llava(reply: str) -> str:
    """ "yes" or "no", never neither: "no" if one of the words No, not, no, just so written and
    between spaces, stands before the first full stop; commas are taken out first.

    Source: `eval_pope.py` of LLaVA, InternVL and BAGEL.
    """
    words = reply.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def lmms_eval(reply: str) -> str:
    """The reply in lower case without spaces at its ends; right if it is then the very label."""
    return reply.lower().strip()


def vlmevalkit(reply: str) -> str:
    """ "Yes" or "No", the one of them that is among the words, else "Unknown".

    Source: VLMEvalKit `YOrN_Extraction`.
    """
    words = vqa.VLMEVALKIT.punctuation(reply.lower()).split()
    if ("yes" in words) == ("no" in words):
        return "Unknown"
    return "Yes" if "yes" in words else "No"


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Counts of readings by labels, "yes" being positive: true and false positives, true and false
    negatives. Numbers are in [0, 1], and NaN where the official program divides by 0."""

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def n(self) -> int:
        """All."""
        return self.tp + self.fp + self.tn + self.fn

    @property
    def accuracy(self) -> float:
        """Right ones of all."""
        return _quotient(self.tp + self.tn, self.n)

    @property
    def precision(self) -> float:
        """True ones of those read as yes."""
        return _quotient(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Those found of what is labelled yes."""
        return _quotient(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return _quotient(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        """Those read as yes of all."""
        return _quotient(self.tp + self.fp, self.n)

    def numbers(self) -> dict[str, float]:
        """accuracy, precision, recall, f1, yes_ratio."""
        names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
        return {name: getattr(self, name) for name in names}

    def message(self) -> str:
        """What LLaVA's and BAGEL's program prints of a file of questions."""
        numbers = self.f1, self.accuracy, self.precision, self.recall, self.yes_ratio
        return (
            f"TP\tFP\tTN\tFN\t\n{self.tp}\t{self.fp}\t{self.tn}\t{self.fn}\n"
            f"Accuracy: {self.accuracy}\nPrecision: {self.precision}\nRecall: {self.recall}\n"
            f"F1 score: {self.f1}\nYes ratio: {self.yes_ratio}\n"
            f"{', '.join(f'{number:.3f}' for number in numbers)}\n"
        )


def _quotient(above: float, below: float) -> float:
    return above / below if below else float("nan")


def confusion(answers: Sequence[str], labels: Sequence[str]) -> Confusion:
    """Counts of answers "yes" or else against labels "yes" or "no", [N] each."""
    pairs = list(zip((a == "yes" for a in answers), (b == "yes" for b in labels), strict=True))
    kinds = (True, True), (True, False), (False, False), (False, True)
    return Confusion(*(pairs.count(kind) for kind in kinds))


def pope(
    replies: Sequence[str], labels: Sequence[str], files: Sequence[str]
) -> tuple[Mapping[str, Mapping[str, float]], dict[str, float]]:
    """POPE by `llava`: ({file: `Confusion.numbers`}, the plain mean of each over the files)."""
    by_file = {}
    for name in dict.fromkeys(files):
        some = [i for i, one in enumerate(files) if one == name]
        answers = [llava(replies[i]) for i in some]
        by_file[name] = confusion(answers, [labels[i] for i in some]).numbers()
    first = next(iter(by_file.values()), {})
    return by_file, {key: float(np.mean([c[key] for c in by_file.values()])) for key in first}


def lmms_eval_pope(replies: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """POPE's numbers in lmms-eval, in [0, 1]: accuracy, precision, recall, f1_score, yes_ratio.

    Recall leaves out replies that are neither word, and the ratio is of the labels.
    """
    pairs = list(zip(map(lmms_eval, replies), labels, strict=True))
    tp, fp = pairs.count(("yes", "yes")), pairs.count(("yes", "no"))
    precision, recall = _or_0(tp, tp + fp), _or_0(tp, tp + pairs.count(("no", "yes")))
    return {
        "accuracy": _or_0(sum(answer == label for answer, label in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1_score": _or_0(2 * precision * recall, precision + recall),
        "yes_ratio": _or_0(sum(label == "yes" for label in labels), len(labels)),
    }


def vlmevalkit_pope(replies: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """POPE's numbers in VLMEvalKit without a judge, in percent: Overall (F1), acc, precision,
    recall. A reply that is neither is wrong, and no "yes"."""
    answers = [vlmevalkit(reply).lower() for reply in replies]
    counts = confusion(answers, labels)
    right = sum(answer == label for answer, label in zip(answers, labels, strict=True))
    precision = _or_0(counts.tp, counts.tp + counts.fp)
    recall = _or_0(counts.tp, counts.tp + counts.fn)
    return {
        "Overall": 100 * _or_0(2 * precision * recall, precision + recall),
        "acc": 100 * _or_0(right, len(answers)),
        "precision": 100 * precision,
        "recall": 100 * recall,
    }


@dataclasses.dataclass(frozen=True)
class MeanF1:
    """The plain mean of the F1 of G groups from sums [..., 3 G]: true positives, false positives,
    false negatives of each; a group without any is left out."""

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """Sums to [...]."""
        true, false, missed = np.split(sums, 3, axis=-1)
        whole = 2 * true + false + missed
        there = whole > 0
        each = np.divide(2 * true, whole, out=np.zeros_like(whole), where=there)
        count = there.sum(axis=-1)
        out = np.full(count.shape, np.nan)
        return np.divide(each.sum(axis=-1), count, out=out, where=count > 0)


def mean_f1(said: Sequence[bool], truth: Sequence[bool], groups: Sequence[Hashable]) -> Metric:
    """The mean over groups of F1 with yes as the positive class, [N] each."""
    said, truth = np.asarray(said, bool), np.asarray(truth, bool)
    names = list(dict.fromkeys(groups))
    member = np.array([[group == name for name in names] for group in groups], float)
    member = member.reshape(len(groups), len(names))
    kinds = (said & truth, said & ~truth, ~said & truth)
    return Metric(np.concatenate([member * kind[:, None] for kind in kinds], axis=1), MeanF1())


def _or_0(above: float, below: float) -> float:
    return above / below if below else 0.0
