"""Proposers that need more than pixels: the model itself, Segment Anything, a file of boxes.

Owns how each comes to the one interface of `regions.py` (`Proposer`). The model grounds what the
prompt asks for, in words read strictly; Segment Anything (`sam/`) knows masks and no prompt; a file
names candidates and their boxes, whoever found them.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from absl import logging
from etils import epath

from srum_jax.core.errors import quoted
from srum_jax.core.param_tree import Params
from srum_jax.data import records
from srum_jax.rewards import question_templates
from srum_jax.rewards.boxes.regions import DEFAULT, Box, Limits, PromptedImage, ProposedRegion
from srum_jax.rewards.boxes.sam.automatic import MaskGenerator
from srum_jax.rewards.question_templates import Decomposition
from srum_jax.rewards.written import QuestionRequest, TextSource

VERSION = "1"
GROUND = """\
Find every {noun} in this picture. Write one line for each of them and nothing else: the left, \
top, right and bottom end of the box around it, in thousandths of the picture's width and height.
Box: <left>, <top>, <right>, <bottom>
If there is none, write: none"""
_BOX = re.compile(
    r"\s*box\s*:\s*\[?\s*(\d{1,4})\s*,\s*(\d{1,4})\s*,\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\]?\s*"
)
_PARTS = 1000  # of a side, in which the model says where things are
MOST_NOUNS = 8


# ------------------------------------------------------------------------------- the model itself


def grounding_hash() -> str:
    """Twelve hex digits that change when the question or the version does."""
    return hashlib.blake2b(json.dumps([VERSION, GROUND]).encode(), digest_size=6).hexdigest()


@dataclasses.dataclass(frozen=True)
class ModelProposer:
    """The model finds what the prompt names, one question for every noun.

    scenes: {prompt: what it demands} of prompts that were decomposed before; others are read by the
    grammar, and where it does not reach the model is asked for every object. Answers that cannot
    be read are counted in the log.
    """

    source: TextSource
    scenes: Mapping[str, Decomposition] | None = None
    limits: Limits = DEFAULT
    name: ClassVar[str] = "self"
    separates: ClassVar[bool] = False

    def find(
        self, images: Sequence[PromptedImage], *, params: Params | None = None
    ) -> list[list[ProposedRegion]]:
        nouns = [_nouns(one.prompt, self.scenes) for one in images]
        owners = [(n, noun) for n, of_image in enumerate(nouns) for noun in of_image]
        requests = [QuestionRequest(images[n].image, GROUND.format(noun=x)) for n, x in owners]
        answers = []
        if requests:
            answers = self.source.answer(requests, temperature=0.0, params=params)
        found: list[list[ProposedRegion]] = [[] for _ in images]
        unread = 0
        for (n, _), answer in zip(owners, answers, strict=True):
            height, width = images[n].image.shape[:2]
            try:
                boxes = parse_boxes(answer.text if answer.finished and not answer.failure else "?")
            except ValueError:
                unread += 1
                continue
            found[n] += [
                ProposedRegion(
                    (
                        a * width / _PARTS,
                        b * height / _PARTS,
                        c * width / _PARTS,
                        d * height / _PARTS,
                    )
                )
                for a, b, c, d in boxes
            ]
        if unread:
            logging.warning("score: %d of %d answers name no boxes", unread, len(owners))
        return found


def _nouns(prompt: str, scenes: Mapping[str, Decomposition] | None) -> list[str]:
    scene = (scenes or {}).get(prompt) or question_templates.decompose(prompt)
    nouns = [spec.shape for spec in scene.objects] if scene is not None else []
    return list(dict.fromkeys(nouns))[:MOST_NOUNS] or ["object"]


def parse_boxes(answer: str) -> list[tuple[int, int, int, int]]:
    """Boxes in thousandths from an answer to GROUND; [] for "none".

    Raises ValueError for anything else: other lines, ends outside [0, 1000], empty boxes.
    """
    lines = [line.lower() for line in answer.splitlines() if line.strip()]
    if [line.strip(" .") for line in lines] == ["none"]:
        return []
    found = []
    for line in lines:
        match = _BOX.fullmatch(line)
        if match is None:
            raise ValueError(f"{quoted(line)} is no box")
        x0, y0, x1, y1 = map(int, match.groups())
        if not (x0 < x1 <= _PARTS and y0 < y1 <= _PARTS):
            raise ValueError(f"{quoted(line)} is an empty box, or lies outside the picture")
        found.append((x0, y0, x1, y1))
    if not found:
        raise ValueError("an empty answer")
    return found


# ------------------------------------------------------------------------------- Segment Anything


@dataclasses.dataclass(frozen=True)
class SamProposer:
    """Every mask that Segment Anything finds by itself, with its box."""

    generator: MaskGenerator
    limits: Limits = DEFAULT
    name: ClassVar[str] = "sam"
    separates: ClassVar[bool] = False

    def find(
        self, images: Sequence[PromptedImage], *, params: Params | None = None
    ) -> list[list[ProposedRegion]]:
        return [
            [
                ProposedRegion(tuple(map(float, box)), mask)
                for box, mask in zip(one.boxes, one.masks, strict=True)
            ]
            for one in self.generator.generate([one.image for one in images])
        ]


# ------------------------------------------------------------------------------------------ a file


@dataclasses.dataclass(frozen=True)
class FileProposer:
    """Boxes that are given: {candidate's id: boxes} in pixels, upper ends excluded.

    A candidate that is not named has no regions.
    """

    boxes: Mapping[str, tuple[Box, ...]]
    limits: Limits = DEFAULT
    name: ClassVar[str] = "file"
    separates: ClassVar[bool] = False

    def find(
        self, images: Sequence[PromptedImage], *, params: Params | None = None
    ) -> list[list[ProposedRegion]]:
        return [[ProposedRegion(box) for box in self.boxes.get(one.id, ())] for one in images]


def digest(path: epath.PathLike) -> str:
    """Sixteen hex digits of a file's bytes. Raises FileNotFoundError, ValueError for a folder."""
    _check_boxes_file(path)
    return hashlib.blake2b(epath.Path(path).read_bytes(), digest_size=8).hexdigest()


def _check_boxes_file(path: epath.PathLike) -> None:
    path = epath.Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: a folder; score.boxes names a JSONL file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file of boxes (score.boxes)")


def read_boxes(path: epath.PathLike) -> dict[str, tuple[Box, ...]]:
    """{candidate's id: boxes} of a JSONL file, in pixels of the candidate, upper ends excluded.

    A line is {"id": "<prompt id>-<k>", "boxes": [[x0, y0, x1, y1], …]}.

    Raises FileNotFoundError, or ValueError naming file and line.
    """
    _check_boxes_file(path)
    found: dict[str, tuple[Box, ...]] = {}
    for record in records.JsonLines(path):
        try:
            name, boxes = _record(record.value)
            if name in found:
                raise ValueError(f"the id {quoted(name)} was there before")
        except ValueError as e:
            raise ValueError(str(records.reject(path, record, e))) from e
        found[name] = boxes
    return found


def _record(value: object) -> tuple[str, tuple[Box, ...]]:
    if isinstance(value, ValueError):
        raise value
    if not isinstance(value, dict) or not isinstance(value.get("id"), str):
        raise ValueError('expected an object with a text "id"')
    boxes = value.get("boxes")
    if not isinstance(boxes, list):
        raise ValueError('"boxes" must be a list of [x0, y0, x1, y1]')
    for box in boxes:
        if (
            not isinstance(box, list)
            or len(box) != 4
            or not all(type(v) in (int, float) and 0 <= v < 2**24 for v in box)
            or not (box[0] < box[2] and box[1] < box[3])
        ):
            raise ValueError(f"box {quoted(box)}: four pixels x0 < x1 and y0 < y1, not below 0")
    return value["id"], tuple(tuple(map(float, box)) for box in boxes)
