"""MMMU: college questions about pictures, in 30 subjects, with options or open.

Yue et al., "MMMU: A Massive Multi-discipline Multimodal Understanding and Reasoning Benchmark for
Expert AGI" (arXiv 2311.16502). `as_released` follows the official parser; where that draws a letter
at random, "accuracy" counts the reply as wrong, and the number with the draws stands beside it.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput, quoted
from srum_jax.data import images
from srum_jax.evals import benchmark, official_files, official_tables
from srum_jax.evals.benchmark import About, Benchmark, Data, LazySequence
from srum_jax.evals.official_files import Row
from srum_jax.evals.official_tables import Cell
from srum_jax.evals.scorers import letters, metrics
from srum_jax.evals.scorers import mmmu as rules
from srum_jax.evals.suite import Record, Replies, Requests, Scored, TextRequest

ABOUT = About(
    title="MMMU, college questions in 30 subjects",
    needs="the validation files as on the Hugging Face Hub, a folder a subject with "
    'validation-*.parquet (needs the extra "parquet"), or validation.jsonl with the same fields, '
    "pictures named in image_1 … image_7",
    licence="Apache-2.0 (code and data)",
    dialect="MMMU",
)
CHOICE, OPEN = "multiple-choice", "open"
ASK = {
    CHOICE: "Answer with the option's letter from the given choices directly.",
    OPEN: "Answer the question using a single word or phrase.",
}
MAX_TOKENS = 10
IMAGES = tuple(f"image_{i}" for i in range(1, 8))
DRAWN = "accuracy [random draws, seed 42]"  # as the official code has it
OLD_LMMS = "accuracy [lmms-eval before 0.7.3]"  # which counts no open answer
POLICY = (
    "a reply that names no single option, or that is empty, is wrong, and counted in failed; open "
    "answers by the official rule"
)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question; `answer`: a letter, or all texts that are right of an open one."""

    id: str
    category: str
    text: str
    options: Mapping[str, str]
    answer: str | Sequence[str]
    pictures: Sequence["Picture"]

    @property
    def kind(self) -> str:
        """ "multiple-choice" or "open"."""
        return CHOICE if self.options else OPEN


@dataclasses.dataclass(frozen=True)
class Picture:
    """Where a picture lies; `doubled`: shown at twice its size, as BAGEL's evaluation does with
    `image_1`."""

    source: epath.Path | Cell
    doubled: bool

    def load(self) -> np.ndarray:
        """uint8 [H,W,3]. Raises ValueError naming the file, row and column."""
        found = self.source.load() if isinstance(self.source, Cell) else images.load(self.source)
        if not self.doubled:
            return found
        height, width = found.shape[:2]
        twice = Image.fromarray(found).resize((2 * width, 2 * height), Image.Resampling.BILINEAR)
        return np.asarray(twice)


@dataclasses.dataclass(frozen=True)
class Mmmu(Benchmark):
    """questions: those that are asked."""

    questions: Sequence[Question]
    data: Data
    name = "mmmu"
    about = ABOUT

    def requests(self, model: str) -> Requests:
        """The pictures, then the question with its marks "<image k>", as BAGEL's evaluation."""
        return Requests(texts=[_request(q) for q in self.questions])

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """<Subject>/output.json, which main_parse_and_eval.py reads."""
        by_subject: dict[str, list[dict[str, Any]]] = {}
        for q, reply in zip(self.questions, replies.texts, strict=True):
            row = {"id": q.id, "question_type": q.kind, "answer": q.answer}
            if q.options:
                row |= {"all_choices": list(q.options), "index2ans": dict(q.options)}
            else:
                row |= {"question_type": "short-answer"}
            by_subject.setdefault(q.category, []).append(row | {"response": reply})
        for subject, rows in by_subject.items():
            (folder / subject).mkdir(parents=True, exist_ok=True)
            files.write_json(folder / subject / "output.json", rows)


def make(cfg: Config, data: str, language: str) -> Mmmu:
    """The questions of the files that `data` names. Raises BadInput naming file, row and field."""
    folder = benchmark.data_folder("mmmu", data)
    paths = _paths(folder)
    questions, rows = [], []
    for path in paths:
        some = official_tables.parquet(path) if _is_parquet(path) else _json_lines(path)
        questions += [_question(row, path, i) for i, row in enumerate(some)]
        rows += [Row({}, row.where) for row in some]  # without the bytes of pictures
    official_files.distinct([q.id for q in questions], rows, "id")
    c = cfg.evaluate
    asked = benchmark.sampled(questions, [q.category for q in questions], c.limit, c.seed)
    digest = benchmark.sha256(*paths)
    return Mmmu(asked, Data(str(folder), digest, len(asked), len(questions)))


def _is_parquet(path: epath.Path) -> bool:
    return path.suffix == ".parquet"


def _paths(folder: epath.Path) -> list[epath.Path]:
    if folder.is_file():
        return [folder]
    for pattern in ("*/validation-*.parquet", "validation-*.parquet", "*.jsonl"):
        if found := sorted(folder.glob(pattern)):
            return found
    raise BadInput(f"{folder}: holds no <Subject>/validation-*.parquet and no validation.jsonl")


def _json_lines(path: epath.Path) -> list[Row]:
    """Rows in which names of pictures are their paths. Raises BadInput."""
    rows = official_files.json_lines(path)
    named = [
        (row, name) for row in rows for name in IMAGES if row.value.get(name) not in (None, "")
    ]
    found = official_files.pictures(
        path, [row.get(name, str) for row, name in named], [row for row, _ in named], "images"
    )
    for (row, name), picture in zip(named, found, strict=True):
        row.value[name] = picture
    return rows


def _question(row: Row, path: epath.Path, place: int) -> Question:
    id = row.get("id", str)
    try:
        subject = rules.subject(id)
    except ValueError as e:
        raise BadInput(f"{row.where}: {e}") from e
    kind = row.choice("question_type", (CHOICE, OPEN))
    options = [text.strip() for text in official_tables.texts(row, "options")]
    if (kind == CHOICE) != (len(options) > 1):
        raise BadInput(f'{row.where}: {quoted(kind)} with {len(options)} options in "options"')
    lettered = letters.lettered(options)
    lines = [row.get("question", str).strip()]
    lines += [f"{letter}. {text}" for letter, text in lettered.items()]
    text = "\n".join([*lines, ASK[kind]])
    pictures = tuple(
        Picture(source, doubled=name == IMAGES[0])
        for name in IMAGES
        if (source := _source(row, name, path, place)) is not None
    )
    _check_marks(row, text)
    return Question(id, subject, text, lettered, _answer(row, lettered), pictures)


def _source(row: Row, name: str, path: epath.Path, place: int) -> epath.Path | Cell | None:
    if not _is_parquet(path):
        return row.value.get(name) or None
    return Cell(path, place, name) if official_tables.picture_bytes(row.value.get(name)) else None


def _check_marks(row: Row, text: str) -> None:
    """Raises BadInput where the text speaks of a picture that the row lacks."""
    for mark in re.findall(r"<image (\d+)>", text):
        value = row.value.get(f"image_{mark}")
        if not (official_tables.picture_bytes(value) or isinstance(value, epath.Path)):
            raise BadInput(
                f'{row.where}: speaks of <image {mark}>, and "image_{mark}" is no picture'
            )


def _answer(row: Row, options: Mapping[str, str]) -> str | list[str]:
    answer = row.get("answer", str).strip()
    if options:
        if answer not in options:
            raise BadInput(
                f'{row.where}: "answer" is {quoted(answer)}, no letter of {len(options)} options'
                + ("; answers of the test split are hidden" if answer == "?" else "")
            )
        return answer
    if not answer.startswith("["):
        return [answer]
    return official_tables.texts(row, "answer")


def _request(q: Question) -> TextRequest:
    truth = {"answer": q.answer, "options": dict(q.options)}
    pictures = LazySequence(q.pictures, Picture.load)
    return TextRequest(q.id, q.category, pictures, q.text, MAX_TOKENS, truth)


def score(records: Sequence[Record]) -> Scored:
    """Accuracy over all questions, and of those with options and the open ones apart."""
    said = [_said(r) for r in records]
    right = {r.id: _right(r, one) for r, one in zip(records, said, strict=True)}
    is_choice = [bool(r.truth["options"]) for r in records]
    values = [float(one) for one in right.values()]
    apart = {
        name: metrics.mean(
            [v if c == of else np.nan for v, c in zip(values, is_choice, strict=True)]
        )
        for name, of in (("multiple_choice", True), ("open", False))
        if of in is_choice
    }
    shares = rules.accuracies(right)
    return Scored(
        n=len(records),
        failed=sum(not one for one in said),
        as_released=_released(records),
        strict={"accuracy": metrics.mean(values), **apart},
        units=tuple(right),
        by_category=_by_category(records, shares),
        items=tuple(
            {"id": r.id, "category": r.category, "right": right[r.id], "reason": _reason(r, one)}
            for r, one in zip(records, said, strict=True)
        ),
        policy=POLICY,
    )


def _said(record: Record) -> str:
    """The letter that is meant, or an open answer as it is; "" for none."""
    options = record.truth["options"]
    return letters.clear(record.reply, options) if options else record.reply.strip()


def _right(record: Record, said: str) -> bool:
    answer = record.truth["answer"]
    if record.truth["options"]:
        return said == answer
    return bool(said) and rules.open_right(rules.open_answers(said), answer)


def _reason(record: Record, said: str) -> str:
    answer = record.truth["answer"]
    if record.truth["options"]:
        return letters.reason(said, answer)
    if _right(record, said):
        return ""
    return f"{'says' if said else 'empty; not'} nothing of {' or '.join(map(repr, answer))}"


def _released(records: Sequence[Record]) -> dict[str, float]:
    """The accuracy as MMMU parses, without and with its draws; as BAGEL and lmms-eval do."""
    if not records:
        return {}
    # Subject by subject, as the official program goes through them: so do its draws.
    asked = sorted((r for r in records if r.truth["options"]), key=lambda r: r.category)
    options = [r.truth["options"] for r in asked]
    chosen = [rules.choice(r.reply, of) for r, of in zip(asked, options, strict=True)]
    handed_in = [rules.bagel_choice(r.reply, of) for r, of in zip(asked, options, strict=True)]
    by_lmms = [rules.choice_lmms(r.reply, of) for r, of in zip(asked, options, strict=True)]
    answered = [
        (rules.open_answers(r.reply), r.truth["answer"]) for r in records if not r.truth["options"]
    ]
    open_right = sum(rules.open_right(*one) for one in answered)

    def accuracy(said: Sequence[str], of_open: int) -> float:
        right = sum(x == r.truth["answer"] for x, r in zip(said, asked, strict=True))
        return (right + of_open) / len(records)

    return {
        "accuracy": accuracy(chosen, open_right),
        DRAWN: accuracy(rules.drawn_at_random(chosen, options), open_right),
        "accuracy [BAGEL]": accuracy(handed_in, open_right),
        "accuracy [lmms-eval]": accuracy(by_lmms, sum(_open_right_lmms(*x) for x in answered)),
        OLD_LMMS: accuracy(by_lmms, sum(rules.open_right_lmms(*x) for x in answered)),
    }


def _open_right_lmms(said: Sequence[rules.Answer], gold: Sequence[str]) -> bool:
    """As lmms-eval 0.7.3: several right answers are one text for it, the list as it is written."""
    return rules.open_right(said, gold[0] if len(gold) == 1 else repr(list(gold)))


def _by_category(
    records: Sequence[Record], shares: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    subjects = [r.category for r in records]
    groups = {f"Overall-{name}": of for name, of in rules.DOMAINS.items()}
    groups |= {name: (name,) for name in dict.fromkeys(subjects)}
    return {
        name.removeprefix("Overall-"): {
            "n": sum(one in of for one in subjects),
            "accuracy": shares[name],
        }
        for name, of in groups.items()
        if name in shares
    }
