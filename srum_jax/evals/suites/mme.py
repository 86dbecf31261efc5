"""MME: two questions a picture, one whose answer is yes and one no, in 14 categories.

Fu et al., "MME" (arXiv 2306.13394). `as_released` is lmms-eval's sum over the categories of
perception (at most 2000) and of cognition (at most 800); beside it BAGEL's and VLMEvalKit's. The
question is asked as lmms-eval asks it, its last sentence replaced.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput, quoted
from srum_jax.evals import benchmark, official_files
from srum_jax.evals.benchmark import About, Data
from srum_jax.evals.official_files import Row
from srum_jax.evals.scorers import metrics, mme, yes_no
from srum_jax.evals.short_answers import SUFFIX, Question, ShortAnswers
from srum_jax.evals.suite import Record, Replies, Requests, Scored

ABOUT = About(
    title="MME, perception and cognition by yes or no",
    needs="a folder with the 14 folders of the release, pictures and texts of their questions in "
    "them, or with a list CATEGORY.txt of each (picture, question and answer, tabs between)",
    licence="on request from the authors; pictures under the terms of their sources",
    dialect="lmms-eval",
    best=200.0,
)
ASKED = " Please answer yes or no."  # what the suffix replaces
PICTURES = (".jpg", ".png", ".jpeg")
POLICY = "a reply that holds no clear yes or no is wrong, and counted in failed"
DIALECTS: Mapping[str, Callable[[Sequence[mme.Answer]], dict[str, float]]] = {
    "": mme.lmms_eval_scores,
    "[bagel]": mme.bagel_scores,
    "[vlmevalkit]": mme.vlmevalkit_scores,
}
SUMS = {"perception": mme.PERCEPTION, "cognition": mme.COGNITION}


@dataclasses.dataclass(frozen=True)
class Mme(ShortAnswers):
    """The questions, the two of a picture one after the other."""

    name = "mme"
    about = ABOUT

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """A list a category, as MME's and BAGEL's programs read it: picture, question, answer and
        reply, tabs between. BAGEL's leaves out a line whose reply has a tab."""
        lines = collections.defaultdict(list)
        for q, reply in zip(self.questions, replies.texts, strict=True):
            written = mme.bagel_written(reply).replace("\r", " ")
            fields = (*(q.row[key] for key in ("image", "question", "answer")), written)
            lines[q.category].append("\t".join(fields) + "\n")
        for category, some in lines.items():
            files.write_text(folder / f"{category}.txt", "".join(some))


def make(cfg: Config, data: str, language: str) -> Mme:
    """The questions of the categories that are in the folder `data`; `evaluate.limit` takes whole
    pictures. Raises BadInput naming file and line."""
    folder = benchmark.data_folder("mme", data)
    c, pairs, paths = cfg.evaluate, [], []
    for category in mme.CATEGORIES:
        sources = [folder / f"{category}.txt"]
        if not sources[0].is_file():
            sources = _texts(folder / category)
        paths += sources
        pairs += [pair for path in sources for pair in read(path, category, folder)]
    if not pairs:
        raise BadInput(f"{folder}: holds none of MME's categories, {', '.join(mme.CATEGORIES)}")
    _distinct(pairs)
    some = benchmark.sampled(pairs, [q.category for q, _ in pairs], -(-c.limit // 2), c.seed)
    read_in = Data(str(folder), benchmark.sha256(*paths), 2 * len(some), 2 * len(pairs))
    return Mme([q for pair in some for q in pair], read_in)


def _texts(folder: epath.Path) -> list[epath.Path]:
    """The texts of a category's folder, in the order of their names, one a picture."""
    inside = folder / "questions_answers_YN"
    inside = inside if inside.is_dir() else folder
    return sorted(inside.glob("*.txt")) if inside.is_dir() else []


def read(path: epath.Path, category: str, root: epath.Path) -> list[tuple[Question, Question]]:
    """The pairs of questions of a text: of one picture, which has its name, or a list of many.

    Raises BadInput naming file and line.
    """
    is_list = path.parent == root and path.name == f"{category}.txt"
    rows = [_row(line, path, is_list) for line in _lines(path)]
    if not rows or len(rows) % 2:
        raise BadInput(f"{path}: {len(rows)} questions; every picture has two")
    if is_list:
        names = [row.value["image"] for row in rows]
        places = (category, f"{category}/images", "images")
        pictures = official_files.pictures(root, names, rows, *places)
    else:
        pictures = [_beside(root / category, path)] * len(rows)
    asked = [
        _question(row, category, picture, i % 2)
        for i, (row, picture) in enumerate(zip(rows, pictures, strict=True))
    ]
    for first, second, row in zip(asked[::2], asked[1::2], rows[1::2], strict=True):
        if first.picture != second.picture:
            raise BadInput(f"{row.where}: not the picture of the line before; every one has two")
    return list(zip(asked[::2], asked[1::2], strict=True))


def _lines(path: epath.Path) -> list[tuple[str, str]]:
    """(text, where it stands) of the lines that are not empty."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise BadInput(f"{path}: not UTF-8 from byte {e.start}") from e
    lines = enumerate(text.replace("\r\n", "\n").split("\n"), 1)
    return [(line, f"{path}, line {i}") for i, line in lines if line.strip()]


def _row(line: tuple[str, str], path: epath.Path, is_list: bool) -> Row:
    """{"image", "question", "answer"} of a line; the image of no list is the text's own."""
    text, where = line
    fields = text.strip().split("\t")
    wanted = ("image", "question", "answer") if is_list else ("question", "answer")
    if len(fields) != len(wanted):
        raise BadInput(f"{where}: {quoted(text)} is not {' TAB '.join(wanted)}")
    return Row({"image": path.stem} | dict(zip(wanted, fields, strict=True)), where)


def _beside(folder: epath.Path, text: epath.Path) -> epath.Path:
    """The picture of a text's name. Raises BadInput."""
    for place in (folder / "images", folder):
        for ending in PICTURES:
            if (path := place / f"{text.stem}{ending}").is_file():
                return path
    raise BadInput(f"{text}: no picture {text.stem} with {', '.join(PICTURES)} in {folder}")


def _question(row: Row, category: str, picture: epath.Path, which: int) -> Question:
    text, label = row.get("question", str).strip(), row.choice("answer", ("Yes", "No"))
    image = f"{category}/{picture.name}"
    return Question(
        id=f"{image}#{which + 1}",
        category=category,
        asked=text.replace(ASKED, "") + SUFFIX,
        picture=picture,
        truth={"image": image, "label": label.lower()},
        row={"image": picture.name, "question": text, "answer": label},
    )


def _distinct(pairs: Sequence[tuple[Question, Question]]) -> None:
    seen = set()
    for first, _ in pairs:
        if first.id in seen:
            raise BadInput(f"{first.picture}: its two questions stand in the data twice")
        seen.add(first.id)


def score(records: Sequence[Record]) -> Scored:
    """The scores of categories in 0..200: their sums as released; strictly their mean, and the sums
    whose categories are all there."""
    said = [yes_no.clear(r.reply) for r in records]
    right = [one == r.truth["label"] for one, r in zip(said, records, strict=True)]
    images: dict[str, list[int]] = {}
    for i, r in enumerate(records):
        images.setdefault(r.truth["image"], []).append(i)
    values = [100 * np.mean([right[i] for i in two]) for two in images.values()]
    values = [value + 100 * (value == 100) for value in values]
    groups = [records[two[0]].category for two in images.values()]
    there = set(groups)
    strict = {"score": metrics.mean_of_groups(values, groups)}
    for name, categories in SUMS.items():
        if there >= set(categories):
            some = [v if g in categories else np.nan for v, g in zip(values, groups, strict=True)]
            strict[name] = metrics.mean_of_groups(some, groups, scale=len(categories))
    return Scored(
        n=len(records),
        failed=sum(one is None for one in said),
        as_released=released(records),
        strict=strict,
        units=tuple(images),
        by_category={
            name: {
                "n": sum(r.category == name for r in records),
                "score": float(
                    np.mean([v for v, g in zip(values, groups, strict=True) if g == name])
                ),
            }
            for name in dict.fromkeys(groups)
        },
        items=tuple(
            {"id": r.id, "category": r.category, "right": ok, "reason": yes_no.reason(one, label)}
            for r, ok, one in zip(records, right, said, strict=True)
            for label in (r.truth["label"],)
        ),
        policy=POLICY,
    )


def released(records: Sequence[Record]) -> dict[str, float]:
    """perception and cognition in each dialect; of one whose categories are not all there nothing,
    where lmms-eval would add up fewer."""
    answers = [mme.Answer(r.category, r.truth["image"], r.truth["label"], r.reply) for r in records]
    found: dict[str, Any] = {}
    for dialect, scores_of in DIALECTS.items():
        scores = scores_of(answers)
        for name, categories in SUMS.items():
            if set(categories) <= set(scores):
                found[name + dialect] = mme.total(scores, categories)
    return found
