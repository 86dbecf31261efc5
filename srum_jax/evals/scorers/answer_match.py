"""Short answers compared with one right answer or a few: GQA, DocVQA, ChartQA.

Owns exact match, the average normalised Levenshtein similarity (ANLS) and relaxed accuracy.
"""

import string
from collections.abc import Sequence

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LEAST_SIMILARITY = 0.5
_MOST_RELATIVE_ERROR = 0.05


def exact_match(prediction: str, answer: str) -> bool:
    """Whether both are the same letters and spaces, cases and ASCII punctuation aside.

    Source: lmms-eval's `exact_match` with `ignore_case`, `ignore_punctuation`, which GQA uses.
    """
    return _letters(prediction) == _letters(answer)


def _letters(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)


def levenshtein(a: str, b: str) -> int:
    """The least number of letters inserted, deleted or replaced that make `a` into `b`."""
    short, long = sorted((a, b), key=len)
    row = list(range(len(short) + 1))
    for i, letter in enumerate(long, 1):
        above, row = row, [i]
        for j, other in enumerate(short, 1):
            replaced = above[j - 1] + (letter != other)
            row.append(min(replaced, above[j] + 1, row[-1] + 1))
    return row[-1]


def anls(prediction: str, answers: Sequence[str]) -> float:
    """The similarity to the nearest answer, 0 or in [0.5, 1].

    Cases and runs of spaces do not count in the distance, but in the lengths it is divided by.

    Raises:
      ValueError: no answers.
    Source: VLMEvalKit `anls_compute`, `hit_calculate('DocVQA')`.
    """
    if not answers:
        raise ValueError("anls: no answers to compare with")
    similarity = 1 - min(_distance(prediction, answer) for answer in answers)
    return similarity if similarity >= _LEAST_SIMILARITY else 0.0


def _distance(a: str, b: str) -> float:
    """Of 0 to 1; the upper-case forms give the lengths, as some letters become two."""
    length = max(len(a.upper()), len(b.upper()))
    apart = levenshtein(" ".join(a.lower().split()), " ".join(b.lower().split()))
    return apart / length if length else 0.0


def relaxed(prediction: str, target: str) -> bool:
    """Whether a number is within 5 % of the target, or another text the same, cases aside.

    "5%" is 0.05; "$5" and "1,200" are texts, and so is a target of 0. Nothing is stripped:
    VLMEvalKit strips the prediction beforehand, lmms-eval does not.

    Source: pix2struct `relaxed_correctness`, as VLMEvalKit and lmms-eval have it.
    """
    value, right = _number(prediction), _number(target)
    if value is None or not right:
        return prediction.lower() == target.lower()
    return abs(value - right) / abs(right) <= _MOST_RELATIVE_ERROR


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
