"""GenEval: are objects, counts, colours and positions drawn as the prompt says?

Ghosh, Hajishirzi and Schmidt, "GenEval" (arXiv 2310.11513). Four images a prompt are drawn and
written as the official detector reads them; its `results.jsonl` is read back. Without a detector a
judge is asked a yes-or-no question a condition, which is a proxy and is named so. Published numbers
hold for one variant of the prompts: original or rewritten.
"""

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput, quoted
from srum_jax.data.prompts import Prompt
from srum_jax.evals import benchmark, drawn, official_files
from srum_jax.evals.benchmark import OK, About, Benchmark, Data, LazySequence
from srum_jax.evals.scorers import geneval, metrics, yes_no
from srum_jax.evals.scorers.geneval import Result
from srum_jax.evals.scorers.geneval2 import WORDS
from srum_jax.evals.suite import JudgeRequest, Record, Replies, Requests, Scored

ABOUT = About(
    title="GenEval, objects and what is said of them",
    needs="evaluation_metadata.jsonl (original prompts) or evaluation_metadata_long.jsonl "
    "(rewritten), or a folder with one of them",
    licence="MIT (code and prompts)",
    dialect="official, of the detector's results.jsonl; a judge's answers are a proxy",
    unit="prompts",
    judge="optional",
)
NAMES = ("evaluation_metadata.jsonl", "evaluation_metadata_long.jsonl")
NAMES += tuple(f"prompts/{name}" for name in NAMES)
RESULTS = "results.jsonl"
IMAGES = 4  # of a prompt
LONGEST_ORIGINAL = 14  # words of an original prompt
RELATIONS = ("left of", "right of", "above", "below")
SUFFIX = " Answer yes or no."
POLICY = "an image without a verdict is wrong; overall is the mean of the tags"
PROXY_POLICY = (
    "a proxy: an image is right if the judge says yes to every question about it, one a condition "
    "of the prompt; a question without a clear answer makes it wrong"
)
PLURALS = {"person": "people", "sheep": "sheep", "mouse": "mice", "knife": "knives"}
PLURALS |= {"scissors": "scissors", "skis": "skis"}


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the metadata file: the prompt to draw, whose id is the line's place from 0, and the
    object that stands there."""

    prompt: Prompt
    metadata: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """The prompt's folder in the official layout."""
        return f"{self.prompt.id:05d}"


@dataclasses.dataclass(frozen=True)
class Question:
    """A condition of an image, as a question that wants a yes; `place`: of the image's request."""

    id: str
    place: int
    text: str
    line: Line


@dataclasses.dataclass(frozen=True)
class Geneval(Benchmark):
    """lines: those whose prompts are drawn."""

    lines: Sequence[Line]
    data: Data
    name = "geneval"
    about = ABOUT

    @property
    def prompts(self) -> list[Prompt]:
        """What is drawn."""
        return [line.prompt for line in self.lines]

    def requests(self, model: str) -> Requests:
        """Four images of each prompt."""
        return drawn.several(self.prompts, IMAGES)

    def judge_requests(self, requests: Requests, replies: Replies) -> Sequence[JudgeRequest]:
        """Every condition of every image, as a yes-or-no question."""
        by_id = {line.prompt.id: line for line in self.lines}
        asked = [
            Question(f"{one.prompt.id}-{one.k}:{i}", place, text, by_id[one.prompt.id])
            for place, one in enumerate(requests.images)
            for i, text in enumerate(questions(by_id[one.prompt.id].metadata))
        ]
        return LazySequence(asked, _Ask(replies).request)

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """`00000/metadata.jsonl` and `00000/samples/0000.png` … of each prompt."""
        by_id = {line.prompt.id: line for line in self.lines}
        for place, one in enumerate(requests.images):
            line = by_id[one.prompt.id]
            drawn.write(folder / line.folder / "samples" / f"{one.k:04d}.png", replies, place)
            if not one.k:
                text = json.dumps(dict(line.metadata))
                files.write_text(folder / line.folder / "metadata.jsonl", text)

    def imported(self, path: epath.Path, requests: Requests) -> list[Record]:
        """The official detector's `results.jsonl`, or a folder that holds it. An image that it does
        not speak of is a record with the status "missing". Raises BadInput."""
        by_id = {line.prompt.id: line for line in self.lines}
        wanted = {(one.prompt.id, one.k): by_id[one.prompt.id] for one in requests.images}
        rows = official_files.json_lines(official_files.file(path, RESULTS))
        found = {place: row for row in rows for place in [_place(row, wanted)]}
        official_files.distinct([_place(row, wanted) for row in rows], rows, "the image")
        return [_record(line, k, found.get((id, k))) for (id, k), line in wanted.items()]


@dataclasses.dataclass(frozen=True)
class _Ask:
    """Makes a judge's requests about the images of replies."""

    replies: Replies

    def request(self, q: Question) -> JudgeRequest:
        prompt = q.line.prompt
        return JudgeRequest(
            id=q.id,
            category=prompt.category,
            images=drawn.of(self.replies, q.place),
            text=q.text + SUFFIX,
            max_tokens=4,
            first_token=yes_no.FIRST_TOKENS,
            truth={"prompt": prompt.id},
        )


# -------------------------------------------------------------------------------------- reading


def make(cfg: Config, data: str, language: str) -> Geneval:
    """The prompts of the file `data`, or of the one in that folder. Raises BadInput."""
    path = official_files.file(benchmark.data_folder("geneval", data), *NAMES)
    lines = read(path, language)
    c = cfg.evaluate
    asked = benchmark.sampled(lines, [one.prompt.category for one in lines], c.limit, c.seed)
    name = variant([one.metadata["prompt"] for one in lines])
    return Geneval(
        asked, Data(str(path), benchmark.sha256(path), len(asked), len(lines), f"{name} prompts")
    )


def read(path: epath.Path, language: str = "") -> list[Line]:
    """The lines of a metadata file. Raises BadInput."""
    found = []
    for place, row in enumerate(official_files.json_lines(path)):
        tag, text = row.get("tag", str), row.get("prompt", str)
        for i, clause in enumerate(_clauses(row, "include")):
            _check_position(clause, i)
        _clauses(row, "exclude", needed=False)
        found.append(Line(drawn.prompt(language, place, text, tag, row.where), row.value))
    return found


def _clauses(
    row: official_files.Row, name: str, needed: bool = True
) -> Sequence[official_files.Row]:
    if not needed and name not in row.value:
        return ()
    clauses = row.rows(name)
    for clause in clauses:
        clause.get("class", str)
        if clause.get("count", int) < 1:
            raise BadInput(f"{clause.where}: 'count' must be at least 1")
        if "color" in clause.value:
            clause.get("color", str)
    if needed and not clauses:
        raise BadInput(f"{row.where}: {name!r} holds no clause")
    return clauses


def _check_position(clause: official_files.Row, place: int) -> None:
    if "position" not in clause.value:
        return
    match clause.get("position", list):
        case [str(relation), int(target)] if relation in RELATIONS and 0 <= target < place:
            return
        case other:
            raise BadInput(
                f"{clause.where}: 'position' is {quoted(other)}; it must be one of "
                f"{', '.join(RELATIONS)} and the number, from 0, of a clause before this one"
            )


def variant(prompts: Sequence[str]) -> str:
    """Which prompts these are, by their words: "original" ("a photo of …", short), "rewritten" by a
    language model (long), or "other"."""
    lengths = [len(text.split()) for text in prompts]
    short = max(lengths) <= LONGEST_ORIGINAL
    if short and all(text.startswith("a photo of ") for text in prompts):
        return "original"
    return "rewritten" if statistics.median(lengths) > LONGEST_ORIGINAL else "other"


# -------------------------------------------------------------------------------- what is asked


def questions(metadata: Mapping[str, Any]) -> list[str]:
    """A question a condition of the prompt; yes to all of them makes an image right."""
    include, left = metadata["include"], list(metadata.get("exclude", []))
    asked = []
    for clause in include:
        more = {"class": clause["class"], "count": clause["count"] + 1}
        exactly = more in left
        left = [one for one in left if one != more]
        asked.append(_how_many(clause, exactly))
    for clause in include:
        if "position" in clause:
            relation, target = clause["position"]
            other = _named(include[target])
            asked.append(f"Is the {_named(clause)} {relation} the {other} in the image?")
    for clause in left:
        how = f"fewer than {_word(clause['count'])}" if clause["count"] > 1 else "no"
        asked.append(f"Does the image show {how} {_plural(clause['class'])}?")
    return asked


def _how_many(clause: Mapping[str, Any], exactly: bool) -> str:
    name, count = _named(clause), clause["count"]
    if count == 1 and not exactly:
        article = "an" if name[0].lower() in "aeiou" else "a"
        return f"Is there {article} {name} in the image?"
    many = _plural(name) if count > 1 else name
    how = "exactly" if exactly else "at least"
    return f"Does the image show {how} {_word(count)} {many}?"


def _named(clause: Mapping[str, Any]) -> str:
    return f"{clause['color']} {clause['class']}" if "color" in clause else clause["class"]


def _plural(name: str) -> str:
    *before, last = name.split(" ")
    ending = "es" if last.endswith(("s", "x", "sh", "ch")) else "s"
    return " ".join([*before, PLURALS.get(last, last + ending)])


def _word(number: int) -> str:
    return WORDS[number - 1] if number <= len(WORDS) else str(number)


# -------------------------------------------------------------------- the official tool's results


def _place(row: official_files.Row, wanted: Mapping[tuple[int, int], Line]) -> tuple[int, int]:
    """(prompt, image) that a line of results speaks of. Raises BadInput."""
    name = row.get("filename", str)
    parts = name.replace("\\", "/").split("/")[-3:]
    if geneval.scanned(["/".join(parts)]):
        place = int(parts[0]), int(re.match(r"\d+", parts[2])[0])
        if place in wanted:
            return place
    raise BadInput(f"{row.where}: {quoted(name)} is none of the images that are asked for")


def _record(line: Line, k: int, row: official_files.Row | None) -> Record:
    prompt = line.prompt
    truth = {"prompt": prompt.id, "metadata": json.dumps(dict(line.metadata))}
    fields = dict(id=f"{prompt.id}-{k}", category=prompt.category, asked=line.metadata["prompt"])
    if row is None:
        return Record(**fields, reply="", status="missing", truth=truth | {"correct": None})
    if row.get("tag", str) != line.metadata["tag"] or _metadata(row) != line.metadata:
        raise BadInput(
            f"{row.where}: its prompt is not the one of the metadata file, {prompt.where}"
        )
    correct = row.get("correct", bool)
    reply = row.get("reason", str, "") or ("correct" if correct else "incorrect")
    truth = truth | {"correct": correct}
    return Record(**fields, reply=reply, truth=truth)


def _metadata(row: official_files.Row) -> Any:
    try:
        return json.loads(row.get("metadata", str))
    except json.JSONDecodeError as e:
        raise BadInput(f"{row.where}: 'metadata' holds no JSON: {e}") from e


# ------------------------------------------------------------------------------ what it is worth


def score(records: Sequence[Record]) -> Scored:
    """The official numbers of a detector's verdicts; of a judge's answers a proxy of them."""
    if any("correct" in r.truth for r in records):
        images = {r.id: _detected(r) for r in records}
        failed = {r.id for r in records if r.status != OK}
        seen = [one for id, one in images.items() if id not in failed]
        released = {
            "overall": geneval.overall(seen),
            "correct_images": metrics.mean([one.correct for one in seen]).number,
            "correct_prompts": geneval.correct_prompts(seen),
        }
        return _scored(images, failed, released, "", POLICY)
    answers: dict[str, list[Record]] = {}
    for r in records:
        answers.setdefault(r.id.partition(":")[0], []).append(r)
    images = {id: _answered(id, several) for id, several in answers.items()}
    failed = {
        id
        for id, several in answers.items()
        if any(math.isnan(yes_no.yes_share(r)) for r in several)
    }
    return _scored(images, failed, {}, "proxy_", PROXY_POLICY)


def _detected(r: Record) -> Result:
    right = bool(r.truth["correct"])
    reason = "" if right else r.reply or r.status
    return Result(r.id, r.category, str(r.truth["prompt"]), right, r.truth["metadata"], reason)


def _answered(id: str, answers: Sequence[Record]) -> Result:
    shares = {r.asked.removesuffix(SUFFIX): yes_no.yes_share(r) for r in answers}
    no = [
        f"{asked} {'no clear answer' if math.isnan(share) else 'no'}"
        for asked, share in shares.items()
        if not share > 0.5
    ]
    prompt = str(answers[0].truth["prompt"])
    return Result(id, answers[0].category, prompt, not no, metadata=prompt, reason="; ".join(no))


def _scored(
    images: Mapping[str, Result],
    failed: set[str],
    released: Mapping[str, float],
    mark: str,
    policy: str,
) -> Scored:
    """Numbers over prompts, of which an interval draws; `mark` before every metric's name."""
    prompts: dict[str, list[Result]] = {}
    for one in images.values():
        prompts.setdefault(one.prompt, []).append(one)
    shares = [metrics.mean([x.correct for x in some]).number for some in prompts.values()]
    tags = [some[0].tag for some in prompts.values()]
    any_right = [any(x.correct for x in some) for some in prompts.values()]
    by_tag = geneval.tag_means(list(images.values()))
    return Scored(
        n=len(images),
        failed=len(failed),
        as_released=released,
        strict={
            f"{mark}overall": metrics.mean_of_groups(shares, tags),
            f"{mark}correct_images": metrics.mean(shares),
            f"{mark}correct_prompts": metrics.mean(any_right),
        },
        units=tuple(prompts),
        by_category={
            tag: {"n": sum(x.tag == tag for x in images.values()), f"{mark}correct_images": mean}
            for tag, mean in by_tag.items()
        },
        items=tuple(
            {"id": id, "category": x.tag, "right": x.correct, "reason": x.reason}
            for id, x in images.items()
        ),
        policy=policy,
    )
