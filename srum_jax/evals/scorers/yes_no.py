"""Yes-or-no answers read out of replies, and what they are worth against labels.

`llava` is the rule of LLaVA's `eval_pope.py`, which BAGEL's evaluation has too; `clear` is ours,
for strict scores: it never takes silence for a yes.
"""

import dataclasses
import re
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from srum_jax.evals.suite import Metric

YES = ("Yes", "yes", " yes", " Yes")
NO = ("No", "no", " no", " No")
FIRST_TOKENS = (*YES, *NO)


def llava(reply: str) -> str:
    """ "yes" or "no" of any reply: "no" if a word before the first full stop is "No", "not" or "no"
    as written, commas left out; otherwise "yes", of an empty reply too."""
    words = reply.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def clear(reply: str) -> str | None:
    """ "yes" or "no" where one of them, and not the other, is a word of the reply in any case; None
    otherwise."""
    said = {"yes", "no"} & set(re.findall(r"[^\W_]+", reply.lower()))
    return said.pop() if len(said) == 1 else None


def yes_share(p: Mapping[str, float], reply: str) -> float:
    """P(yes) / (P(yes) + P(no)) of a reply's first-token probabilities `p`, whose keys are texts
    of FIRST_TOKENS; without them 1 or 0 by `clear` of the reply, NaN where that is None."""
    yes, no = (sum(p.get(text, 0.0) for text in several) for several in (YES, NO))
    if yes + no > 0:
        return yes / (yes + no)
    return {"yes": 1.0, "no": 0.0}.get(clear(reply) or "", float("nan"))


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


def counts(said: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and the share of yes among the answers, "yes" positive; NaN
    where the official code divides by zero."""
    yes, truth = (np.array([x == "yes" for x in several], bool) for several in (said, labels))
    tp, fp, fn = (int(x.sum()) for x in (yes & truth, yes & ~truth, ~yes & truth))
    precision, recall = _share(tp, tp + fp), _share(tp, tp + fn)
    return {
        "accuracy": float((yes == truth).mean()),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": float(yes.mean()),
    }


def pope(
    replies: Sequence[str], labels: Sequence[str], files: Sequence[str]
) -> tuple[Mapping[str, Mapping[str, float]], dict[str, float]]:
    """POPE by `llava`: ({file: `counts`}, the plain mean of each over the files)."""
    by_file = {}
    for name in dict.fromkeys(files):
        some = [i for i, one in enumerate(files) if one == name]
        by_file[name] = counts([llava(replies[i]) for i in some], [labels[i] for i in some])
    first = next(iter(by_file.values()), {})
    return by_file, {key: float(np.mean([c[key] for c in by_file.values()])) for key in first}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
