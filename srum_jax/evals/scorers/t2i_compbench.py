"""T2I-CompBench: order of sample files, BLIP-VQA's questions and products, 3-in-1, positions.

Owns the official arithmetic and text rules. Source: Karine-Huang/T2I-CompBench at 1b70949
(`BLIPvqa_eval/BLIP_vqa.py`, `3_in_1_eval/3_in_1.py`, `UniDet_eval/2D_spatial_eval.py`,
`CLIPScore_eval/CLIP_similarity.py`). Noun phrases and parts of speech come from outside: officially
from spaCy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from srum_jax.evals.scorers.metrics import added

QUESTIONS = 8
NOT_ASKED = ("top", "the side", "the left", "the right")
LOCALITIES = (
    "on side of",
    "next to",
    "near",
    "on the left of",
    "on the right of",
    "on the bottom of",
    "on the top of",
    "on top of",
)
NEAR_PIXELS = 150
MOST_OVERLAP = 0.1
IMAGES_PER_PROMPT = 10


def index_of(file: str) -> int:
    """The running index at the end of a sample's name, `<prompt>_<6 digits>.png`."""
    found = re.search(r"_(\d+)\.\w+$", file)
    if found is None:
        raise ValueError(f"{file}: a sample is named <prompt>_<6 digits>.png")
    return int(found[1])


def ordered(files: Iterable[str]) -> list[str]:
    """Samples by running index; a sample's place is its `question_id` in the results."""
    return sorted(files, key=index_of)


def prompt_of(file: str) -> str:
    """What the official programs take for a sample's prompt: what is before the first `_`."""
    return file.split("_")[0]


def sample_name(prompt: str, index: int) -> str:
    """The official name of an image of a prompt."""
    return f"{prompt}_{index:06d}.png"


def questions(noun_phrases: Sequence[str]) -> list[str]:
    """BLIP-VQA's eight questions, "" for one that is not asked: each noun phrase of the prompt with
    `?` behind it, without four phrases that name a place."""
    asked = [f"{phrase}?" for phrase in noun_phrases if phrase not in NOT_ASKED][:QUESTIONS]
    return asked + [""] * (QUESTIONS - len(asked))


def product(asked: Sequence[str], yes: Sequence[float]) -> float:
    """The score of an image: the product of P(yes), [n], over the questions that are asked; in
    float32, as officially."""
    p = np.asarray(yes, np.float32)[[bool(question) for question in asked]]
    return float(np.prod(p, dtype=np.float32))


def answer(score: float) -> str:
    """A score as `vqa_result.json` keeps it."""
    return f"{score:.4f}"


def score_text(answers: Sequence[str]) -> str:
    """What `blip_vqa_score.txt` says of the answers."""
    return f"BLIP-VQA score:{added(float(one) for one in answers) / len(answers)}"


def without_adjectives(words: Sequence[str], is_adjective: Sequence[bool]) -> str:
    """The text that CLIP is asked about for complex prompts: words and punctuation marks without
    the adjectives, a space between any two."""
    return " ".join(
        word for word, adjective in zip(words, is_adjective, strict=True) if not adjective
    )


def three_in_one(
    prompts: Sequence[str],
    spatial: Iterable[str],
    action: Iterable[str],
    scores: Mapping[str, Sequence[float]],
) -> list[float]:
    """The scores of complex prompts, one an image, 10 images a prompt in the prompts' order.

    Args:
      prompts: lines of `complex_val.txt`; spatial, action: of `complex_val_spatial.txt` and
        `complex_val_action.txt`. Prompts are compared in lower case, up to the first full stop.
      scores: {"attribute", "spatial", "action": [10 len(prompts)]}; the last is CLIP's.

    Returns:
      (spatial + attribute) / 2 for a spatial prompt, else (action + attribute) / 2 for one of
      action, else the mean of all three.

    Raises:
      ValueError: a list of another length.
    """
    wanted = IMAGES_PER_PROMPT * len(prompts)
    for name, values in scores.items():
        if len(values) != wanted:
            raise ValueError(f"3-in-1: {len(values)} scores of {name!r}, need {wanted}")
    near, acting = {_plain(one) for one in spatial}, {_plain(one) for one in action}
    return [
        _mixed(_plain(prompts[i // IMAGES_PER_PROMPT]), near, acting, *triple)
        for i, triple in enumerate(
            zip(scores["attribute"], scores["spatial"], scores["action"], strict=True)
        )
    ]


def _plain(prompt: str) -> str:
    return prompt.lower().split(".")[0].strip()


def _mixed(
    prompt: str, near: set[str], acting: set[str], attribute: float, spatial: float, action: float
) -> float:
    if prompt in near:
        return (spatial + attribute) * 0.5
    if prompt in acting:
        return (action + attribute) * 0.5
    return (attribute + spatial + action) / 3


def three_in_one_text(scores: Sequence[float]) -> str:
    """What the official program writes of the complex category."""
    return f"score avg:{added(scores) / len(scores)}"


def position(
    locality: str | None, first: Mapping[str, float], second: Mapping[str, float]
) -> float:
    """How well the first box stands to the second as a locality says, 0 to 1.

    Boxes are {"x_min", "y_min", "x_max", "y_max"} in pixels, y downwards. "near", "next to" and "on
    side of" hold when the centres are within 150 pixels on EITHER axis. The four sides want their
    axis to be the longer one and boxes that overlap by less than .1. "on top of" is known to the
    official list of localities but has no rule: 0.
    """
    dx = (second["x_min"] + second["x_max"] - first["x_min"] - first["x_max"]) / 2
    dy = (second["y_min"] + second["y_max"] - first["y_min"] - first["y_max"]) / 2
    if locality in ("near", "next to", "on side of"):
        close = abs(dx) < NEAR_PIXELS or abs(dy) < NEAR_PIXELS
        return 1.0 if close else NEAR_PIXELS / max(abs(dx), abs(dy))
    held = {
        "on the right of": dx < 0 and abs(dx) > abs(dy),
        "on the left of": dx > 0 and abs(dx) > abs(dy),
        "on the bottom of": dy < 0 and abs(dy) > abs(dx),
        "on the top of": dy > 0 and abs(dy) > abs(dx),
    }
    if not held.get(locality, False):
        return 0.0
    overlap = _iou(first, second)
    return 1.0 if overlap < MOST_OVERLAP else MOST_OVERLAP / overlap


def _iou(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    width = max(0, min(a["x_max"], b["x_max"]) - max(a["x_min"], b["x_min"]))
    height = max(0, min(a["y_max"], b["y_max"]) - max(a["y_min"], b["y_min"]))
    union = _area(a) + _area(b) - width * height
    return width * height / union if union else 0.0


def _area(box: Mapping[str, float]) -> float:
    return (box["x_max"] - box["x_min"]) * (box["y_max"] - box["y_min"])
