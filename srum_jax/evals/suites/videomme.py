"""Video-MME: multiple-choice questions about films of a minute to an hour, without subtitles.

Fu et al., "Video-MME: The First-Ever Comprehensive Evaluation Benchmark of Multi-modal LLMs in
Video Analysis" (arXiv 2405.21075). `as_released` follows lmms-eval, whose rule finds a letter in
almost any reply. Three questions share a film: intervals draw films.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput, quoted
from srum_jax.evals import benchmark, clips, official_files, official_tables
from srum_jax.evals.benchmark import About, Benchmark, Data
from srum_jax.evals.clips import Clip
from srum_jax.evals.official_files import Row
from srum_jax.evals.scorers import letters, metrics
from srum_jax.evals.scorers import video_choice as rules
from srum_jax.evals.scorers.video_choice import VideoQuestion
from srum_jax.evals.suite import Record, Replies, Requests, Scored, TextRequest

ABOUT = About(
    title="Video-MME, questions about films",
    needs="a folder with the list, videomme/test-*.parquet as on the Hugging Face Hub (needs the "
    'extra "parquet"), Video-MME.tsv, test.jsonl or a JSON file of films with "questions", and '
    'data/<videoID>.mp4 (needs the extra "video") or a folder of frames a film',
    licence="research use only (data); code of the authors",
    dialect="lmms-eval",
    best=100.0,
)
LISTS = ("videomme/test-*.parquet", "test-*.parquet", "*.parquet", "*.tsv", "*.jsonl", "*.json")
PLACES = ("data", "video", "videos", "")
SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".gif", "")
FRAMES = 8  # of a film, unless the config says otherwise
MAX_TOKENS = 16
GROUPS = ("duration", "domain", "sub_category", "task_type")
POLICY = "a reply that names no single option is wrong, and counted in failed"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a film; its category is the film's duration."""

    id: str
    video: str
    groups: Mapping[str, str]
    text: str
    options: Mapping[str, str]
    answer: str
    clip: Clip
    row: Row

    @property
    def category(self) -> str:
        """short, medium or long."""
        return self.groups["duration"]


@dataclasses.dataclass(frozen=True)
class VideoMME(Benchmark):
    """questions: those that are asked · frames: of a film, at most."""

    questions: Sequence[Question]
    data: Data
    frames: int = FRAMES
    name = "videomme"
    about = ABOUT

    @property
    def settings(self) -> Mapping[str, Any]:
        """Frames of a film; subtitles are never read."""
        return {"frames": self.frames, "subtitles": False}

    def requests(self, model: str) -> Requests:
        """The frames of the film, then the question with its options, as lmms-eval puts them."""
        return Requests(texts=[_request(q) for q in self.questions])

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """videomme.json: a list of films with their questions and "response", as the authors'
        eval_your_results.py reads it."""
        films: dict[str, dict[str, Any]] = {}
        for q, reply in zip(self.questions, replies.texts, strict=True):
            head = {"video_id": str(q.row.value.get("video_id", q.video))}
            head |= {name: q.groups[name] for name in GROUPS[:3]}
            film = films.setdefault(q.video, head | {"questions": []})
            film["questions"].append(
                {
                    **{"question_id": q.id, "task_type": q.groups["task_type"]},
                    **{"question": q.row.value["question"], "options": _options(q.row)},
                    **{"answer": q.answer, "response": reply},
                }
            )
        files.write_json(folder / "videomme.json", list(films.values()))


def make(cfg: Config, data: str, language: str) -> VideoMME:
    """The questions of the list that `data` holds. Raises BadInput naming row and field."""
    folder = benchmark.data_folder("videomme", data)
    path = _list(folder)
    rows = _rows(path)
    ids = [row.get("question_id", str) for row in rows]
    official_files.distinct(ids, rows, "question_id")
    videos = [row.get("videoID", str) for row in rows]
    around = folder if folder.is_dir() else folder.parent
    found = clips.found(around, videos, rows, PLACES, SUFFIXES)
    c = cfg.evaluate
    frames = c.frames or FRAMES
    questions = [
        _question(id, video, row, Clip(clip, frames))
        for id, video, row, clip in zip(ids, videos, rows, found, strict=True)
    ]
    asked = benchmark.sampled(questions, [q.category for q in questions], c.limit, c.seed)
    digest = benchmark.sha256(path)
    return VideoMME(asked, Data(str(path), digest, len(asked), len(questions)), frames)


def _list(folder: epath.Path) -> epath.Path:
    if folder.is_file():
        return folder
    for pattern in LISTS:
        if found := sorted(folder.glob(pattern)):
            if len(found) > 1:
                raise BadInput(f"{folder}: holds {len(found)} lists {pattern}; name one")
            return found[0]
    raise BadInput(f"{folder}: holds no list of questions: {' or '.join(LISTS)}")


def _rows(path: epath.Path) -> list[Row]:
    """A row a question, with the fields of the Hub's list. Raises BadInput."""
    if path.suffix == ".parquet":
        return official_tables.parquet(path)
    if path.suffix == ".jsonl":
        return official_files.json_lines(path)
    if path.suffix == ".tsv":  # VLMEvalKit's
        rows = official_tables.tsv(path, "index", "video", "question", "candidates", "answer")
        return [
            Row(
                row.value
                | {"videoID": row.value.get("video"), "options": row.value.get("candidates")}
                | {"question_id": row.value.get("index")},
                row.where,
            )
            for row in rows
        ]
    return [one for film in official_files.json_rows(path) for one in _of_film(film)]


def _of_film(film: Row) -> list[Row]:
    """The questions of a film, each with the film's fields; a question alone is one."""
    if "questions" not in film.value:
        return [film]
    head = {name: value for name, value in film.value.items() if name != "questions"}
    head.setdefault("videoID", head.get("video_id"))
    return [Row(head | one.value, one.where) for one in film.rows("questions")]


def _question(id: str, video: str, row: Row, clip: Clip) -> Question:
    options = _options(row)
    lettered = {}
    for letter, text in zip("ABCD", options, strict=False):
        marked = re.fullmatch(rf"\(?{letter}[.):]\s*(.*)", text.strip(), re.DOTALL)
        if not marked:
            raise BadInput(f'{row.where}: an option in "options" does not begin with "{letter}."')
        lettered[letter] = marked[1]
    if not 2 <= len(options) <= 4:
        raise BadInput(f'{row.where}: {len(options)} options in "options"; they are A to D')
    text = rules.videomme_prompt(row.get("question", str), options)
    answer = row.choice("answer", tuple(lettered))
    return Question(id, video, _groups(row), text, lettered, answer, clip, row)


def _options(row: Row) -> list[str]:
    return official_tables.texts(row, "options")


def _groups(row: Row) -> dict[str, str]:
    known = (rules.DURATIONS, rules.DOMAINS, rules.SUB_CATEGORIES, rules.TASKS)
    found = {}
    for name, names in zip(GROUPS, known, strict=True):
        value = row.get(name, str)
        if value not in names:
            raise BadInput(f"{row.where}: {quoted(name)} is {quoted(value)}; it is one of {names}")
        found[name] = value
    return found


def _request(q: Question) -> TextRequest:
    truth = {"answer": q.answer, "options": dict(q.options), "video": q.video, **q.groups}
    return TextRequest(q.id, q.category, q.clip, q.text, MAX_TOKENS, truth)


def score(records: Sequence[Record]) -> Scored:
    """Accuracy in percent over all questions; the units are films."""
    said = [letters.clear(r.reply, r.truth["options"]) for r in records]
    right = [one == r.truth["answer"] for one, r in zip(said, records, strict=True)]
    by_lmms = [rules.videomme_letter(r.reply) == r.truth["answer"] for r in records]
    films: dict[str, list[bool]] = {}
    for r, ok in zip(records, right, strict=True):
        films.setdefault(r.truth["video"], []).append(ok)
    counts = [len(one) for one in films.values()]
    accuracy = metrics.ratio([sum(one) for one in films.values()], counts, scale=100)
    strict, released = (_accuracies(records, one) for one in (right, by_lmms))
    return Scored(
        n=len(records),
        failed=sum(not one for one in said),
        as_released={"accuracy": released["Overall"]},
        strict={"accuracy": accuracy},
        units=tuple(films),
        by_category=_by_category(records, strict, released),
        items=tuple(
            {
                **{"id": r.id, "category": r.category, "right": ok},
                "reason": letters.reason(one, r.truth["answer"]),
            }
            for r, ok, one in zip(records, right, said, strict=True)
        ),
        policy=POLICY,
    )


def _asked(record: Record, right: bool) -> VideoQuestion:
    return VideoQuestion(*(record.truth[name] for name in GROUPS), right=right)


def _accuracies(records: Sequence[Record], right: Sequence[bool]) -> dict[str, float]:
    pairs = zip(records, right, strict=True)
    return rules.videomme_accuracies([_asked(r, ok) for r, ok in pairs])


def _by_category(
    records: Sequence[Record], strict: Mapping[str, float], released: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    keys = [_asked(r, False).key for r in records]
    return {
        name: {
            "n": sum(name in key for key in keys),
            "accuracy": strict[name],
            "as_released": released[name],
        }
        for name in strict
        if name != "Overall"
    }
