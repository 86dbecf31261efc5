"""ChartQA: questions about charts, by people and made by a program.

Masry et al., "ChartQA" (arXiv 2203.10244). `as_released` is lmms-eval's relaxed accuracy in [0, 1],
which strips nothing; beside it VLMEvalKit's, in percent. The question is asked as lmms-eval asks
it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput
from srum_jax.evals import benchmark, official_files, short_answers
from srum_jax.evals.benchmark import About
from srum_jax.evals.scorers import answer_match
from srum_jax.evals.short_answers import Question, ShortAnswers
from srum_jax.evals.suite import Record, Replies, Requests, Scored

PARTS = ("human", "augmented")
SUFFIX = "\nAnswer the question with a single word."
ABOUT = About(
    title="ChartQA, questions about charts",
    needs="a folder with test_human.json and test_augmented.json (one of them is enough), or its "
    "parent, the pictures in png/ beside them",
    licence="GPL-3.0; charts under the terms of their publishers",
    dialect="lmms-eval",
)
POLICY = (
    "spaces at the ends and cases do not count, a number may be 5 % off; an empty reply is wrong, "
    "and counted in failed"
)


@dataclasses.dataclass(frozen=True)
class Chartqa(ShortAnswers):
    """The questions of both files."""

    name = "chartqa"
    about = ABOUT

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """A results file a part, as the evaluations of InternVL and BAGEL read them."""
        rows = self.results(replies, "answer")
        for part in PARTS:
            pairs = zip(self.questions, rows, strict=True)
            if some := [row for q, row in pairs if q.category == part]:
                files.write_json(folder / f"chartqa_test_{part}_results.json", some)


def make(cfg: Config, data: str, language: str) -> Chartqa:
    """The questions of the files in the folder `data`. Raises BadInput naming file and item."""
    folder = benchmark.data_folder("chartqa", data)
    inside = folder / "test" if (folder / "test").is_dir() else folder
    paths = {part: inside / f"test_{part}.json" for part in PARTS}
    paths = {part: path for part, path in paths.items() if path.is_file()}
    if not paths:
        raise BadInput(f"{folder}: holds no test_human.json and no test_augmented.json")
    questions = [one for part, path in paths.items() for one in read(path, part)]
    return Chartqa(*short_answers.asked(cfg, questions, folder, *paths.values()))


def read(path: epath.Path, part: str) -> list[Question]:
    """The questions of one file, whose ids are their places, from 0. Raises BadInput."""
    rows = official_files.json_rows(path)
    names = short_answers.every(lambda row: row.get("imgname", str), rows, path)
    pictures = official_files.pictures(path, names, rows, "png")
    asked = short_answers.every(lambda row: row.get("query", str), rows, path)
    labels = short_answers.every(lambda row: row.get("label", str), rows, path)
    told = zip(names, asked, labels, pictures, strict=True)
    return [
        Question(
            id=f"{part}-{i}",
            category=part,
            asked=text + SUFFIX,
            picture=picture,
            truth=label,
            row={"imgname": name, "question": text, "annotation": label},
        )
        for i, (name, text, label, picture) in enumerate(told)
    ]


def score(records: Sequence[Record]) -> Scored:
    """Relaxed accuracy in [0, 1], of all and of both parts."""
    values = [answer_match.relaxed(r.reply.strip(), r.truth.strip()) for r in records]
    return short_answers.scored(
        records,
        "relaxed_accuracy",
        values,
        released(records),
        reasons=[
            "" if right else f"{r.truth} is right" for r, right in zip(records, values, strict=True)
        ],
        policy=POLICY,
    )


def released(records: Sequence[Record]) -> dict[str, float]:
    """lmms-eval's numbers in [0, 1] and VLMEvalKit's in percent; both strip the reply before."""
    if not records:
        return {}
    right = np.array([answer_match.relaxed(r.reply.strip(), r.truth) for r in records])
    found = {"relaxed_overall": float(right.mean())}
    for part, some in short_answers.places([(r.category,) for r in records]).items():
        found[f"relaxed_{part}_split"] = float(right[some].mean())
    return found | {"Overall[vlmevalkit]": 100 * float(right.mean())}
