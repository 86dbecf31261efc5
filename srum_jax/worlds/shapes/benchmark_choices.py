"""The shapes world's questions in the official files of multiple-choice benchmarks.

Owns MMBench, MMMU, MVBench and Video-MME. The options are words that the question could be answered
with, shuffled; the base answers with the word, not with its letter.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence

import numpy as np

from srum_jax.data import images
from srum_jax.worlds.shapes import rendering as render
from srum_jax.worlds.shapes.benchmark_folder import OfficialFolder, sentence
from srum_jax.worlds.shapes.changes import WAYS, several_question
from srum_jax.worlds.shapes.language import FEW, NUMBERS
from srum_jax.worlds.shapes.question_forms import ShapesQuestion
from srum_jax.worlds.shapes.questions import scene_questions, stream_rng
from srum_jax.worlds.shapes.rendering import COLORS, SHAPES, SIZES

CHOSEN, FILMED, SHUFFLED = 27, 28, 29  # streams of random numbers
LETTERS = "ABCD"
CLIP_FRAMES = 8  # as many as a benchmark's harness takes of a clip
ROTATED = 1_000_000  # what MMBench adds to the index of each rotation
_INSTANCE = "finegrained_perception (instance-level)"
MMBENCH = {  # kind of question: MMBench's category and its parent
    "color": ("attribute_recognition", _INSTANCE),
    "shape": ("attribute_recognition", _INSTANCE),
    "size": ("attribute_comparison", "finegrained_perception (cross-instance)"),
    "count": ("object_localization", _INSTANCE),
    "position": ("object_localization", _INSTANCE),
    "relation_choice": ("spatial_relationship", "finegrained_perception (cross-instance)"),
}
SUBJECTS = {"color": "Art", "shape": "Design", "count": "Math", "position": "Geography"}  # of MMMU
TASKS = {  # of MVBench, which are named as here, and the kinds of questions of each
    "moving_direction": ("clip_way",),
    "moving_count": ("clip_count",),
    "moving_attribute": ("clip_color", "clip_shape"),
}
TASK_TYPES = {  # of Video-MME
    "clip_way": "Action Recognition",
    "clip_count": "Counting Problem",
    "clip_color": "Attribute Perception",
    "clip_shape": "Object Recognition",
}


def options(rng: random.Random, question: ShapesQuestion) -> list[str]:
    """Two to four words that the question could be answered with, the right one among them."""
    kind, answer = question.kind.removeprefix("clip_"), question.answer
    sides = ["left", "right"] if "left" in question.text else ["above", "below"]
    words: Sequence[str] = {
        "color": COLORS,
        "shape": SHAPES,
        "count": NUMBERS[: FEW + 1],
        "size": tuple(SIZES),
        "way": tuple(WAYS),
        "position": sides,
        "relation_choice": [*sides, "neither"],
    }[kind]
    others = render.shuffled(rng, [word for word in words if word != answer])
    return render.shuffled(rng, [answer, *others[: len(LETTERS) - 1]])


def mmbench(out: OfficialFolder, split: str, count: int) -> None:
    """MMBench_DEV_EN.tsv: `count` questions, each once for every rotation of its options."""
    rows = []
    asked = scene_questions(split, tuple(MMBENCH), count, CHOSEN)
    for number, (scene, question) in enumerate(asked):
        words = options(stream_rng(0, number, SHUFFLED), question)
        picture = base64.b64encode(images.encode_png(render.draw(scene))).decode()
        category, parent = MMBENCH[question.kind]
        for turn in range(len(words)):
            turned = words[turn:] + words[:turn]
            places = dict(zip(LETTERS, turned + [""] * len(LETTERS), strict=False))
            rows.append(
                {
                    "index": number + turn * ROTATED,
                    "question": sentence(question.text),
                    "hint": "",
                    **places,
                    "answer": LETTERS[turned.index(question.answer)],
                    "category": category,
                    "image": picture,
                    "source": "shapes",
                    "l2-category": parent,
                    "comment": "",
                    "split": "dev",
                }
            )
    rows.sort(key=lambda row: row["index"])
    out.table("MMBench_DEV_EN.tsv", rows, "\t")


def mmmu(out: OfficialFolder, split: str, count: int) -> None:
    """validation.jsonl with the fields of the published set, and the pictures it names: half of the
    questions have options, the others are open."""
    rows = []
    for number, (scene, question) in enumerate(
        scene_questions(split, tuple(SUBJECTS), count, CHOSEN)
    ):
        subject, place = SUBJECTS[question.kind], number // len(SUBJECTS) + 1
        id = f"validation_{subject}_{place}"
        words = options(stream_rng(0, number, SHUFFLED), question) if place % 2 else []
        rows.append(
            {
                "id": id,
                "question": f"<image 1> {sentence(question.text)}",
                "options": str(words),
                "explanation": "",
                "image_1": f"images/{id}_1.png",
                "img_type": "['Geometric Shapes']",
                "answer": LETTERS[words.index(question.answer)] if words else question.answer,
                "topic_difficulty": "Easy",
                "question_type": "multiple-choice" if words else "open",
                "subfield": question.kind,
            }
        )
        out.picture(rows[-1]["image_1"], render.draw(scene))
    out.lines("validation.jsonl", rows)


def mvbench(out: OfficialFolder, split: str, count: int) -> None:
    """json/<task>.json of the three tasks about movement, and their clips in MVBench's place."""
    for task, kinds in TASKS.items():
        rows = []
        for i in range(max(count // len(TASKS), 1)):
            frames, question = filmed(split, kinds[i % len(kinds)], i)
            video = f"{task}_{i:05d}.gif"
            words = options(stream_rng(2, i, SHUFFLED), question)
            rows.append(
                {
                    "video": video,
                    "question": sentence(question.text),
                    "candidates": words,
                    "answer": question.answer,
                }
            )
            out.clip(f"video/clevrer/video_validation/{video}", frames)
        out.json(f"json/{task}.json", rows)


def videomme(out: OfficialFolder, split: str, count: int) -> None:
    """test.jsonl with the fields of the published set, and data/<videoID>.gif."""
    rows = []
    for i in range(count):
        kind = tuple(TASK_TYPES)[i % len(TASK_TYPES)]
        frames, question = filmed(split, kind, 10_000 + i)
        words = options(stream_rng(3, i, SHUFFLED), question)
        video = f"shapes{i:05d}"
        rows.append(
            {
                "video_id": f"{i + 1:03d}",
                "duration": "short",
                "domain": "Knowledge",
                "sub_category": "Geography",
                "url": "",
                "videoID": video,
                "question_id": f"{i + 1:03d}-1",
                "task_type": TASK_TYPES[kind],
                "question": sentence(question.text),
                "options": [f"{a}. {word}." for a, word in zip(LETTERS, words, strict=False)],
                "answer": LETTERS[words.index(question.answer)],
            }
        )
        out.clip(f"data/{video}.gif", frames)
    out.lines("test.jsonl", rows)


def filmed(split: str, kind: str, index: int) -> tuple[tuple[np.ndarray, ...], ShapesQuestion]:
    """Clip `index` of a kind, its question last: eight frames of which no two in turn are alike,
    as a GIF keeps no frame like the one before it. So something always moves."""
    rng = stream_rng(index, list(TASK_TYPES).index(kind), FILMED)
    while True:
        frames, question = several_question(rng, split, kind)
        pairs = zip(frames, frames[1:], strict=False)
        if len(frames) == CLIP_FRAMES and not any(np.array_equal(*pair) for pair in pairs):
            return frames, question
