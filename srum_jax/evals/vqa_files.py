"""The two files of a VQA split, questions and annotations, as their authors distribute them.

Owns reading them (VQAv2 and OK-VQA have the same form), the questions alone of a split without
annotations, and writing those of a sample, since the official program refuses results that lack a
question of its files.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from srum_jax.core import files
from srum_jax.core.errors import BadInput
from srum_jax.evals import official_files, short_answers
from srum_jax.evals.official_files import Row
from srum_jax.evals.short_answers import SUFFIX, Question

LISTS = ("questions", "annotations")


@dataclasses.dataclass(frozen=True)
class VqaFiles:
    """paths, heads: of the two files, and what they say beside their lists · rows: a question and
    its annotation each, in the order of the questions."""

    paths: tuple[epath.Path, epath.Path]
    heads: tuple[dict[str, Any], dict[str, Any]]
    rows: list[tuple[Row, Row]]

    @classmethod
    def read(cls, folder: epath.Path, *names: str) -> "VqaFiles":
        """The files of the two names in `folder`.

        Raises BadInput naming file, item and field, and ids that are in one of them alone.
        """
        paths = tuple(official_files.file(folder, name) for name in names)
        heads, several = [], []
        for path, name in zip(paths, LISTS, strict=True):
            head, by_id = _listed(path, name)
            heads.append(head)
            several.append(by_id)
        questions, annotations = several
        official_files.same_ids(questions, annotations, " and ".join(map(str, paths)))
        pairs = [(row, annotations[id]) for id, row in questions.items()]
        for question, annotation in pairs:
            if question.get("image_id", int) != annotation.get("image_id", int):
                raise BadInput(f"{annotation.where}: image_id is not that of {question.where}")
        return cls(paths, tuple(heads), pairs)

    def questions(self, categories: Sequence[str]) -> list[Question]:
        """What is asked, each of its category. Raises BadInput, for missing pictures too."""
        rows = [question for question, _ in self.rows]
        notes = [annotation for _, annotation in self.rows]
        truths = short_answers.every(_truth, notes, self.paths[1])
        return _questions(self.paths[0], rows, "val2014", categories, truths)

    def write(self, folder: epath.Path, asked: Sequence[Question]) -> None:
        """The two files with the rows of what was asked alone."""
        ids = {q.row["question_id"] for q in asked}
        kept = [pair for pair in self.rows if pair[0].value["question_id"] in ids]
        for i, (path, head, name) in enumerate(zip(self.paths, self.heads, LISTS, strict=True)):
            files.write_json(folder / path.name, head | {name: [pair[i].value for pair in kept]})


def unanswered(path: epath.Path, part: str) -> list[Question]:
    """The questions of a file without annotations about pictures of `part`, such as test2015; all
    of one category, `part`. Raises BadInput."""
    rows = list(_listed(path, LISTS[0])[1].values())
    return _questions(path, rows, part, [part] * len(rows), [None] * len(rows))


def question_ids(path: epath.Path) -> list[int]:
    """The ids of a file's questions. Raises BadInput."""
    return list(_listed(path, LISTS[0])[1])


def _listed(path: epath.Path, name: str) -> tuple[dict[str, Any], dict[int, Row]]:
    """(What a file says beside its list `name`, the list's rows by their ids)."""
    head = files.read_object(path)
    rows = official_files.listed(head.pop(name, None), f"{path}, {name}")
    if not rows:
        raise BadInput(f"{path}: holds nothing to ask")
    ids = short_answers.every(_id, rows, path)
    official_files.distinct(ids, rows, "question_id")
    return head, dict(zip(ids, rows, strict=True))


def _questions(
    path: epath.Path,
    rows: Sequence[Row],
    part: str,
    categories: Sequence[str],
    truths: Sequence[Any],
) -> list[Question]:
    """Questions about pictures of a `part` of COCO, which lie beside `path`."""
    names = [f"COCO_{part}_{row.get('image_id', int):012d}.jpg" for row in rows]
    places = official_files.pictures(path, names, rows, part, "images")
    asked = short_answers.every(lambda row: row.get("question", str), rows, path)
    return [
        Question(
            id=str(row.get("question_id", int)),
            category=category,
            asked=text + SUFFIX,
            picture=picture,
            truth=truth,
            row={"question_id": row.get("question_id", int)},
        )
        for row, category, text, picture, truth in zip(
            rows, categories, asked, places, truths, strict=True
        )
    ]


def _id(row: Row) -> int:
    return row.get("question_id", int)


def _truth(row: Row) -> dict[str, Any]:
    """{"answers", "type"}, and "records", what stands beside each answer, where its number does
    not tell it from the others."""
    rows = row.rows("answers")
    if not rows:
        raise BadInput(f"{row.where}: no answers to compare with")
    truth: dict[str, Any] = {
        "answers": [one.get("answer", str) for one in rows],
        "type": row.get("question_type", str),
    }
    ids = [one.value.get("answer_id") for one in rows]
    if len({json.dumps(id) for id in ids if id is not None}) < len(rows):
        truth["records"] = [{k: v for k, v in r.value.items() if k != "answer"} for r in rows]
    return truth
