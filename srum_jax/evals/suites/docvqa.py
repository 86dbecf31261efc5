"""DocVQA: questions about scanned documents.

Mathew et al., "DocVQA" (arXiv 2007.00398). `as_released` is VLMEvalKit's average normalised
Levenshtein similarity (ANLS) in percent, which divides by the lengths of the raw texts.
"""

import dataclasses
import pathlib
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

FILES, TEST = ("val_v1.0_withQT.json", "val_v1.0.json"), "test_v1.0.json"
RESULTS, SUBMISSION = "docvqa_val_results.json", "docvqa_test_submission.json"
SERVER = "the Robust Reading Competition, its challenge DocVQA"
ABOUT = About(
    title="DocVQA, reading documents",
    needs=f"a folder with {FILES[0]}, or {TEST}, which has no answers; the pictures in documents/ "
    "or spdocvqa_images/",
    licence="of the Robust Reading Competition, after registration; documents of UCSF",
    dialect="VLMEvalKit",
    best=100.0,
)
POLICY = (
    "lengths are those of the texts that are compared, runs of spaces as one; an empty reply is "
    "worth 0, and counted in failed"
)


@dataclasses.dataclass(frozen=True)
class Docvqa(ShortAnswers):
    """The questions of one file."""

    name = "docvqa"
    about = ABOUT
    max_tokens = 32

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """The results file that the competition's server takes."""
        name = SUBMISSION if self.server else RESULTS
        files.write_json(folder / name, self.results(replies, "answer"))


def make(cfg: Config, data: str, language: str) -> Docvqa:
    """The questions of the file in the folder `data`. Raises BadInput naming file and item."""
    folder = benchmark.data_folder("docvqa", data)
    path = official_files.file(folder, *FILES, TEST)
    questions = read(path)
    server = "" if questions[0].truth["answers"] else SERVER
    return Docvqa(*short_answers.asked(cfg, questions, folder, path), server=server)


def read(path: epath.Path) -> list[Question]:
    """The questions of a file. Raises BadInput."""
    rows = official_files.json_rows(path, "data")
    ids = short_answers.every(lambda row: row.get("questionId", int), rows, path)
    official_files.distinct(ids, rows, "questionId")
    pictures = official_files.pictures(
        path, short_answers.every(_picture, rows, path), rows, "documents", "spdocvqa_images"
    )
    asked = short_answers.every(lambda row: row.get("question", str), rows, path)
    alone = short_answers.unanswered(rows, "answers")
    truths = short_answers.every(lambda row: _truth(row, alone), rows, path)
    return [
        Question(
            id=str(id),
            category=truth["types"][0],
            asked=text + SUFFIX,
            picture=picture,
            truth=truth,
            row={"questionId": id},
        )
        for id, text, picture, truth in zip(ids, asked, pictures, truths, strict=True)
    ]


def _picture(row: Row) -> str:
    """Its name without the folder that the file gives, which the published archive calls else."""
    return pathlib.PurePosixPath(row.get("image", str)).name


def _truth(row: Row, unanswered: bool) -> dict[str, list[str]]:
    answers = [] if unanswered else short_answers.texts(row, "answers")
    there = bool(row.get("question_types", list, []))
    return {
        "answers": answers,
        "types": short_answers.texts(row, "question_types") if there else ["all"],
    }


def score(records: Sequence[Record]) -> Scored:
    """ANLS in percent, of all and by type of question, of which one may have several."""
    answers = [r.truth["answers"] for r in records]
    replies = [r.reply for r in records]
    released = [answer_match.anls(*pair) for pair in zip(replies, answers, strict=True)]
    values = [
        answer_match.anls(" ".join(reply.split()), [" ".join(one.split()) for one in several])
        for reply, several in zip(replies, answers, strict=True)
    ]
    return short_answers.scored(
        records,
        "anls",
        values,
        {"anls": 100 * float(np.mean(released))} if released else {},
        scale=100,
        groups=[r.truth["types"] for r in records],
        reasons=[
            "" if value == 1 else f"{' or '.join(several[:4])} is right"
            for value, several in zip(values, answers, strict=True)
        ],
        policy=POLICY,
    )
