"""TextVQA: questions about words in pictures, answered by ten people each.

Singh et al., "Towards VQA Models That Can Read" (arXiv 1904.08920). `as_released` is the score of
EvalAI's processor, in [0, 1], as lmms-eval and BAGEL have it. The question is asked as lmms-eval
asks it: its first letter a capital, all others small, without tokens read by another program.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.evals import benchmark, official_files, short_answers
from srum_jax.evals.benchmark import About
from srum_jax.evals.scorers import vqa
from srum_jax.evals.short_answers import SUFFIX, Question, ShortAnswers
from srum_jax.evals.suite import Record, Replies, Requests, Scored

FILE, TEST = "TextVQA_0.5.1_val.json", "TextVQA_0.5.1_test.json"
RESULTS, SUBMISSION = "textvqa_val_results.json", "textvqa_test_submission.json"
SERVER = "EvalAI, the TextVQA challenge"
ABOUT = About(
    title="TextVQA, reading words in pictures",
    needs=f"a folder with {FILE}, the pictures in train_images/; or {TEST}, which has no answers, "
    "and test_images/",
    licence="CC BY 4.0; pictures of Open Images",
    dialect="EvalAI (lmms-eval, BAGEL)",
)
POLICY = "an empty reply is worth 0, and counted in failed"


@dataclasses.dataclass(frozen=True)
class Textvqa(ShortAnswers):
    """The questions of one file."""

    name = "textvqa"
    about = ABOUT

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """The results file that EvalAI takes."""
        name = SUBMISSION if self.server else RESULTS
        files.write_json(folder / name, self.results(replies, "answer"))


def make(cfg: Config, data: str, language: str) -> Textvqa:
    """The questions of the file in the folder `data`. Raises BadInput naming file and item."""
    folder = benchmark.data_folder("textvqa", data)
    path = official_files.file(folder, FILE, TEST)
    questions = read(path)
    server = "" if questions[0].truth else SERVER
    return Textvqa(*short_answers.asked(cfg, questions, folder, path), server=server)


def read(path: epath.Path) -> list[Question]:
    """The questions of a file. Raises BadInput."""
    rows = official_files.json_rows(path, "data")
    ids = short_answers.every(lambda row: row.get("question_id", int), rows, path)
    official_files.distinct(ids, rows, "question_id")
    names = short_answers.every(lambda row: f"{row.get('image_id', str)}.jpg", rows, path)
    places = ("train_images", "val_images", "test_images", "images")
    pictures = official_files.pictures(path, names, rows, *places)
    asked = short_answers.every(lambda row: row.get("question", str), rows, path)
    answers = [None] * len(rows)
    if not short_answers.unanswered(rows, "answers"):
        answers = short_answers.every(lambda row: short_answers.texts(row, "answers"), rows, path)
    return [
        Question(
            id=str(id),
            category=row.get("set_name", str, "val"),
            asked=text.capitalize() + SUFFIX,
            picture=picture,
            truth=said,
            row={"question_id": id},
        )
        for row, id, text, picture, said in zip(rows, ids, asked, pictures, answers, strict=True)
    ]


def score(records: Sequence[Record]) -> Scored:
    """Accuracy in [0, 1]."""
    values = [vqa.eval_ai(r.reply, r.truth) for r in records]
    return short_answers.scored(
        records,
        "accuracy",
        values,
        {"accuracy": float(np.mean(values))} if values else {},
        reasons=[
            "" if value == 1 else short_answers.people_said(r.truth)
            for r, value in zip(records, values, strict=True)
        ],
        policy=POLICY,
    )
