"""VQAv2: open questions about COCO pictures, answered by ten people each.

Goyal et al., "Making the V in VQA Matter" (arXiv 1612.00837). `as_released` is the official
`vqaEval.py`, in percent; beside it lmms-eval and VLMEvalKit, which normalise where the official
program does not. The question is asked as lmms-eval, InternVL and BAGEL ask it. The answers of
test-dev and test are EvalAI's, to which the replies are submitted as LLaVA and lmms-eval do it:
normalised first, and of a part of test with empty answers to the rest.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput
from srum_jax.evals import benchmark, short_answers, vqa_files
from srum_jax.evals.benchmark import About
from srum_jax.evals.scorers import vqa
from srum_jax.evals.short_answers import ShortAnswers
from srum_jax.evals.suite import Record, Replies, Requests, Scored
from srum_jax.evals.vqa_files import VqaFiles

NAMES = ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")
RESULTS = "v2_OpenEnded_mscoco_val2014_model_results.json"
WHOLE_TEST = "v2_OpenEnded_mscoco_test2015_questions.json"
TESTS = ("v2_OpenEnded_mscoco_test-dev2015_questions.json", WHOLE_TEST)
TEST_PICTURES = "test2015"
SERVER = "EvalAI, the VQA challenge"
ABOUT = About(
    title="VQAv2, questions about pictures",
    needs=f"a folder with {NAMES[0]} and {NAMES[1]}, the pictures in val2014/; or, without "
    f"answers, {TESTS[0]} or {TESTS[1]} (both, for a file that EvalAI takes) and test2015/",
    licence="code BSD; annotations CC BY 4.0; COCO pictures under their Flickr terms",
    dialect="official",
    best=100.0,
)
ANSWER_TYPES = ("yes/no", "number", "other")
POLICY = (
    "answers are normalised always, also where all ten people wrote the same; an empty reply is "
    "worth 0, and counted in failed"
)


@dataclasses.dataclass(frozen=True)
class Vqav2(ShortAnswers):
    """source: the files that were read, None of a test split · whole: ids of all questions of test,
    which EvalAI wants an answer to."""

    source: VqaFiles | None
    whole: Sequence[int] = ()
    name = "vqav2"
    about = ABOUT

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """The results file of `vqaEval.py`; of a sample its questions and annotations too. Of a
        test split what is to be submitted."""
        if self.source is not None:
            write_official(folder / RESULTS, self, self.source, replies)
            return
        name = pathlib.PurePath(self.data.file).name.replace("questions", "model_results")
        files.write_json(folder / name, self.submission(replies))

    def submission(self, replies: Replies) -> list[dict[str, Any]]:
        """Normalised replies; empty answers to the questions that are not of the split. Of a sample
        the replies alone: with empty answers beside them a server would count those."""
        rows = self.results(replies, "answer")
        said = {row["question_id"]: vqa.eval_ai_normal(row["answer"]) for row in rows}
        ids = self.whole if self.whole and self.data.n == self.data.total else said
        return [{"question_id": id, "answer": said.get(id, "")} for id in ids]


def make(cfg: Config, data: str, language: str) -> Vqav2:
    """The questions of the files in the folder `data`. Raises BadInput naming file and item."""
    folder = benchmark.data_folder("vqav2", data)
    if path := test_file(folder):
        return unanswered(cfg, path)
    source = VqaFiles.read(folder, *NAMES)
    categories = [note.choice("answer_type", ANSWER_TYPES) for _, note in source.rows]
    some, read = short_answers.asked(cfg, source.questions(categories), folder, *source.paths)
    return Vqav2(some, read, source)


def test_file(folder: epath.Path) -> epath.Path | None:
    """The questions of a test split: the file that was named, or the first one of a folder without
    those of validation."""
    if folder.is_file():
        return folder if folder.name in TESTS else None
    if (folder / NAMES[0]).is_file():
        return None
    return next((folder / name for name in TESTS if (folder / name).is_file()), None)


def unanswered(cfg: Config, path: epath.Path) -> Vqav2:
    """The questions of a test split. Raises BadInput where one is none of the whole of test."""
    questions = vqa_files.unanswered(path, TEST_PICTURES)
    some, read = short_answers.asked(cfg, questions, path, path)
    everything = path.parent / WHOLE_TEST
    whole = vqa_files.question_ids(everything) if everything.is_file() else []
    strange = {int(q.id) for q in questions} - set(whole)
    if whole and strange:
        raise BadInput(f"{path}: question_id {min(strange)} is none of {everything}")
    return Vqav2(some, read, None, whole, server=SERVER)


def write_official(
    path: epath.Path, suite: ShortAnswers, source: VqaFiles, replies: Replies
) -> None:
    """A results file at `path`; beside it the official files of a sample, if it is one."""
    files.write_json(path, suite.results(replies, "answer"))
    if suite.data.n < suite.data.total:
        source.write(path.parent, suite.questions)


def score(records: Sequence[Record]) -> Scored:
    """Accuracy in percent, of all and by type of answer and of question."""
    return scored(records, [r.category for r in records], released(records))


def scored(
    records: Sequence[Record], categories: Sequence[str], released: dict[str, float]
) -> Scored:
    """Records of VQA's form, which also count by the type of their question."""
    normal = vqa.OFFICIAL.normal
    answers = [r.truth["answers"] for r in records]
    values = [
        vqa.agreement(normal(r.reply), [normal(one) for one in said])
        for r, said in zip(records, answers, strict=True)
    ]
    return short_answers.scored(
        records,
        "accuracy",
        values,
        released,
        scale=100,
        groups=[(c, r.truth["type"]) for c, r in zip(categories, records, strict=True)],
        reasons=[
            "" if value == 1 else short_answers.people_said(said)
            for value, said in zip(values, answers, strict=True)
        ],
        policy=POLICY,
    )


def released(records: Sequence[Record]) -> dict[str, float]:
    """The official accuracy of all and by type of answer, percent of two decimals; lmms-eval's in
    [0, 1]; VLMEvalKit's in percent."""
    if not records:
        return {}
    told = [(r.reply, r.truth["answers"], r.truth.get("records")) for r in records]
    types = [r.truth["type"] for r in records], [r.category for r in records]
    official = vqa.official_accuracy([vqa.official(*one) for one in told], *types)
    return {
        "accuracy": official.overall,
        **{f"accuracy {name}": value for name, value in official.by_answer_type.items()},
        "accuracy[lmms-eval]": float(np.mean([vqa.lmms_eval(*one) for one in told])),
        "accuracy[vlmevalkit]": 100 * float(np.mean([vqa.vlmevalkit(*one[:2]) for one in told])),
    }
