"""OK-VQA: questions about COCO pictures that ask for knowledge beside them.

Marino et al., "OK-VQA" (arXiv 1906.00067). The files and the official program are VQA's; lmms-eval
scores by EvalAI's processor. The question is asked as InternVL and BAGEL ask it; lmms-eval adds a
sentence on unanswerable ones.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from srum_jax.config import Config
from srum_jax.evals import benchmark, short_answers
from srum_jax.evals.benchmark import About
from srum_jax.evals.scorers import vqa
from srum_jax.evals.short_answers import ShortAnswers
from srum_jax.evals.suite import Record, Replies, Requests, Scored
from srum_jax.evals.suites import vqav2
from srum_jax.evals.vqa_files import VqaFiles

NAMES = ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json")
RESULTS = "OpenEnded_mscoco_val2014_model_results.json"
ABOUT = About(
    title="OK-VQA, questions that need knowledge",
    needs=f"a folder with {NAMES[0]} and {NAMES[1]} of OK-VQA, the pictures in val2014/",
    licence="annotations CC BY 4.0; COCO pictures under their Flickr terms",
    dialect="official",
    best=100.0,
)


@dataclasses.dataclass(frozen=True)
class Okvqa(ShortAnswers):
    """source: the files that were read."""

    source: VqaFiles
    name = "okvqa"
    about = ABOUT

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """The results file of VQA's program; of a sample its questions and annotations too."""
        vqav2.write_official(folder / RESULTS, self, self.source, replies)


def make(cfg: Config, data: str, language: str) -> Okvqa:
    """The questions of the files in the folder `data`. Raises BadInput naming file and item."""
    folder = benchmark.data_folder("okvqa", data)
    source = VqaFiles.read(folder, *NAMES)
    names = source.heads[1].get("question_types")
    names = names if isinstance(names, Mapping) else {}
    types = [note.get("question_type", str) for _, note in source.rows]
    categories = [str(names.get(one, one)) for one in types]
    some, read = short_answers.asked(cfg, source.questions(categories), folder, *source.paths)
    return Okvqa(some, read, source)


def score(records: Sequence[Record]) -> Scored:
    """Accuracy in percent, of all and by kind of knowledge."""
    kinds = [r.category for r in records]
    released = vqav2.released(records)
    released = {name: value for name, value in released.items() if name == "accuracy"}
    if records:
        values = [vqa.eval_ai(r.reply, r.truth["answers"]) for r in records]
        released["accuracy[lmms-eval]"] = float(np.mean(values))
    return vqav2.scored(records, kinds, released)
