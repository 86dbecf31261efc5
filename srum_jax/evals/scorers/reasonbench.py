"""T2I-ReasonBench: lists of marks out of a judge's replies, accuracy and quality.

Owns the rules of the official scorers (KaiyueSun98/T2I-ReasonBench, `evaluation/Qwen2.5-VL/
eval_*.py`). An image is asked about in two or three parts, whose questions are marked 0, 0.5 or 1:
of an idiom or a textual image what correct reasoning must show, and quality; of an entity or a
scientific prompt also other details, which make 0.3 of accuracy.
"""

import json
import math
from collections.abc import Mapping, Sequence

from srum_jax.evals.scorers.statements import is_number, json_object

DIMENSIONS = ("idiom", "textual_image", "entity", "scientific")
PARTS = {  # {dimension: {part: its weight in accuracy}}; quality stands for itself
    "idiom": {"reason": 1.0},
    "textual_image": {"reason": 1.0},
    "entity": {"entity": 0.7, "other_details": 0.3},
    "scientific": {"scientific": 0.7, "other_details": 0.3},
}
QUALITY = "quality"


def released_marks(reply: str) -> list[float] | None:
    """The marks that the official parser reads, any numbers; None where the official script ends.

    It takes the text from the first "{" to the first "}" behind it for JSON, and what `score` holds
    there for numbers or texts of numbers. Source: `extract_json` and what follows it.
    """
    start = reply.find("{")
    end = reply.find("}", start)
    if start < 0 or end < 0:
        return None
    try:
        marks = [float(x) for x in json.loads(reply[start : end + 1])["score"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return marks if marks and all(map(math.isfinite, marks)) else None


def strict_marks(reply: str, questions: int) -> list[float] | None:
    """One mark of 0, 0.5 or 1 for each of so many questions; None where it says anything else."""
    found = json_object(reply)
    marks = None if found is None else found.get("score")
    if not isinstance(marks, list) or len(marks) != questions:
        return None
    return (
        [float(x) for x in marks] if all(is_number(x) and x in (0, 0.5, 1) for x in marks) else None
    )


def accuracy(marks: Mapping[str, Sequence[float]], dimension: str) -> float:
    """Accuracy of an image in [0, 1]: means of its parts' marks, weighted as PARTS says."""
    return sum(w * sum(marks[p]) / len(marks[p]) for p, w in PARTS[dimension].items())


def released_score(values: Sequence[float]) -> float:
    """100 x mean of accuracies or qualities of images, two decimals, as it is printed."""
    return round(sum(values) / len(values) * 100, 2)
