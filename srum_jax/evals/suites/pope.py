"""POPE: does a model see objects that are not there? Yes-or-no questions about COCO pictures.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models" (arXiv 2305.10355).
Three files, one a way of choosing the objects that are absent. `as_released` follows LLaVA's
`eval_pope.py`, which BAGEL has too: whatever holds no "no" is a yes; beside it lmms-eval's numbers
and VLMEvalKit's, of all files together. `strict` counts a reply without a clear yes or no as wrong.
"""

import dataclasses
import json
from collections.abc import Sequence

from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput
from srum_jax.data import images
from srum_jax.evals import benchmark, official_files
from srum_jax.evals.benchmark import About, Benchmark, Data, LazySequence
from srum_jax.evals.scorers import metrics, yes_no
from srum_jax.evals.suite import Record, Replies, Requests, Scored, TextRequest

ABOUT = About(
    title="POPE, objects that are not there",
    needs="a folder with coco_pope_random.json, coco_pope_popular.json and "
    "coco_pope_adversarial.json (one of them is enough), the pictures in it or in val2014/",
    licence="MIT (code and questions); COCO pictures under their Flickr terms",
    dialect="LLaVA",
)
FILES = ("random", "popular", "adversarial")
SUFFIX = "\nAnswer the question using a single word or phrase."
MAX_TOKENS = 16
POLICY = "a reply that holds no clear yes or no is wrong, and counted in failed"


@dataclasses.dataclass(frozen=True)
class Question:
    """A line of a file: `number` is its question_id there."""

    id: str
    category: str
    number: int
    text: str
    label: str
    picture: epath.Path


@dataclasses.dataclass(frozen=True)
class Pope(Benchmark):
    """questions: those that are asked."""

    questions: Sequence[Question]
    data: Data
    name = "pope"
    about = ABOUT

    def requests(self, model: str) -> Requests:
        """The question as it is, and a request for a short answer."""
        return Requests(texts=[_request(q) for q in self.questions])

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """An answers file for each of the three, as the evaluation of LLaVA reads them."""
        for category in FILES:
            lines = [
                json.dumps({"question_id": q.number, "prompt": q.text + SUFFIX, "text": reply})
                for q, reply in zip(self.questions, replies.texts, strict=True)
                if q.category == category
            ]
            if lines:
                path = folder / f"coco_pope_{category}_answers.jsonl"
                files.write_text(path, "\n".join(lines) + "\n")


def make(cfg: Config, data: str, language: str) -> Pope:
    """The questions of the files in the folder `data`. Raises BadInput naming file and line."""
    folder = benchmark.data_folder("pope", data)
    paths = {name: folder / f"coco_pope_{name}.json" for name in FILES}
    paths = {name: path for name, path in paths.items() if path.is_file()}
    if not paths:
        raise BadInput(f"{folder}: holds no coco_pope_NAME.json, NAME one of {', '.join(FILES)}")
    questions = [one for name, path in paths.items() for one in read(path, name)]
    c = cfg.evaluate
    asked = benchmark.sampled(questions, [q.category for q in questions], c.limit, c.seed)
    digest = benchmark.sha256(*paths.values())
    return Pope(asked, Data(str(folder), digest, len(asked), len(questions)))


def read(path: epath.Path, category: str) -> list[Question]:
    """The questions of one file. Raises BadInput."""
    rows = official_files.json_lines(path)
    numbers = [row.get("question_id", int) for row in rows]
    official_files.distinct(numbers, rows, "question_id")
    names = [row.get("image", str) for row in rows]
    pictures = official_files.pictures(path, names, rows, "val2014", "images")
    return [
        Question(
            id=f"{category}-{number}",
            category=category,
            number=number,
            text=row.get("text", str),
            label=row.choice("label", ("yes", "no")),
            picture=picture,
        )
        for row, number, picture in zip(rows, numbers, pictures, strict=True)
    ]


def _request(q: Question) -> TextRequest:
    pictures = LazySequence((q.picture,), images.load)
    return TextRequest(q.id, q.category, pictures, q.text + SUFFIX, MAX_TOKENS, q.label)


def score(records: Sequence[Record]) -> Scored:
    """Accuracy, precision, recall, F1 and the share of yes, each the mean over the files."""
    replies, truth = [r.reply for r in records], [r.truth for r in records]
    groups = [r.category for r in records]
    by_file, released = yes_no.pope(replies, truth, groups)
    clear = [yes_no.clear(reply) for reply in replies]
    right = [said == label for said, label in zip(clear, truth, strict=True)]
    said_yes, is_yes = ([x == "yes" for x in several] for several in (clear, truth))
    return Scored(
        n=len(records),
        failed=sum(c is None for c in clear),
        as_released=released | _harnesses(replies, truth) if records else {},
        strict={"accuracy": metrics.mean(right), "f1": yes_no.mean_f1(said_yes, is_yes, groups)},
        units=tuple(r.id for r in records),
        by_category={
            name: {"n": groups.count(name), **numbers} for name, numbers in by_file.items()
        },
        items=tuple(
            {
                "id": r.id,
                "category": r.category,
                "right": ok,
                "reason": yes_no.reason(said, r.truth),
            }
            for r, ok, said in zip(records, right, clear, strict=True)
        ),
        policy=POLICY,
    )


def _harnesses(replies: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """lmms-eval's numbers in [0, 1], VLMEvalKit's in percent."""
    lmms_eval = yes_no.lmms_eval_pope(replies, labels)
    vlmevalkit = yes_no.vlmevalkit_pope(replies, labels)
    return {f"{name}[lmms-eval]": value for name, value in lmms_eval.items()} | {
        f"{name}[vlmevalkit]": value for name, value in vlmevalkit.items()
    }
