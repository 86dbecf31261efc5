"""GQA: questions made from scene graphs, each with one right answer.

Hudson and Manning, "GQA" (arXiv 1902.09506). `as_released` is lmms-eval's exact match in [0, 1]:
cases and punctuation do not count, an article or a space does.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.evals import benchmark, official_files, short_answers
from srum_jax.evals.benchmark import About
from srum_jax.evals.official_files import Row
from srum_jax.evals.scorers import answer_match
from srum_jax.evals.short_answers import SUFFIX, Question, ShortAnswers
from srum_jax.evals.suite import Record, Replies, Requests, Scored

FILE = "testdev_balanced_questions.json"
RESULTS = "testdev_balanced_predictions.json"
ABOUT = About(
    title="GQA, questions from scene graphs",
    needs=f"a folder with {FILE}, the pictures in images/",
    licence="CC BY 4.0; pictures of Visual Genome",
    dialect="lmms-eval",
)
POLICY = (
    "spaces at the ends, cases and punctuation do not count; an empty reply is wrong, and counted "
    "in failed"
)


@dataclasses.dataclass(frozen=True)
class Gqa(ShortAnswers):
    """The questions of one file."""

    name = "gqa"
    about = ABOUT

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """The predictions that the authors' `eval.py` reads, which compares letter by letter: in
        lower case and without a full stop at the end, as evaluations of LLaVA's kind write them."""
        rows = self.results(replies, "prediction")
        rows = [row | {"prediction": row["prediction"].lower().rstrip(".")} for row in rows]
        files.write_json(folder / RESULTS, rows)


def make(cfg: Config, data: str, language: str) -> Gqa:
    """The questions of the file in the folder `data`. Raises BadInput naming file and item."""
    folder = benchmark.data_folder("gqa", data)
    path = official_files.file(folder, FILE)
    return Gqa(*short_answers.asked(cfg, read(path), folder, path))


def read(path: epath.Path) -> list[Question]:
    """The questions of a file. Raises BadInput."""
    ids, rows = zip(*official_files.json_items(path), strict=True)
    names = short_answers.every(lambda row: f"{row.get('imageId', str)}.jpg", rows, path)
    pictures = official_files.pictures(path, names, rows, "images")
    asked = short_answers.every(lambda row: row.get("question", str), rows, path)
    answers = short_answers.every(lambda row: row.get("answer", str), rows, path)
    kinds = short_answers.every(_kind, rows, path)
    return [
        Question(id, kind, text + SUFFIX, picture, answer, {"questionId": id})
        for id, kind, text, picture, answer in zip(
            ids, kinds, asked, pictures, answers, strict=True
        )
    ]


def _kind(row: Row) -> str:
    """The structure of the question: verify, query, choose, logical, compare."""
    types = Row(row.get("types", dict, {}), f"{row.where}, types")
    return types.get("structural", str, "all")


def score(records: Sequence[Record]) -> Scored:
    """Exact match in [0, 1], of all and by the structure of the question.

    lmms-eval strips every reply before a task sees it (`api/task.py`), the answers not.
    """
    released = [answer_match.exact_match(r.reply.strip(), r.truth) for r in records]
    values = [answer_match.exact_match(r.reply.strip(), r.truth.strip()) for r in records]
    return short_answers.scored(
        records,
        "exact_match",
        values,
        {"exact_match": float(np.mean(released))} if released else {},
        reasons=[
            "" if right else f"{r.truth} is right" for r, right in zip(records, values, strict=True)
        ],
        policy=POLICY,
    )
