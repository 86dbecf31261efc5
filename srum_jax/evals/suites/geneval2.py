"""GenEval2: are all atoms of a compositional prompt drawn? Soft-TIFA by a judge's probabilities.

Kamath et al., "GenEval 2" (2025). One image a prompt; each of its questions is asked of a judge,
and the probability of the right answer as the reply's first token is its score. `as_released` sums
over all accepted replies as the official code does, where two may share a token; `strict` leaves
out those of a space and a digit, whose first token is the space, and counts a token once. Where a
score passes 1, as with a judge of few words that has one token for several spellings, or a question
has none, there is no number as released. VQAScore, which the official program has for comparison,
is asked beside them: one question an image.
Published numbers are of Qwen3-VL-8B-Instruct as the judge.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence

from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput, quoted
from srum_jax.data.prompts import Prompt
from srum_jax.evals import benchmark, drawn, official_files
from srum_jax.evals.benchmark import OK, About, Benchmark, Data, LazySequence
from srum_jax.evals.scorers import geneval2, metrics
from srum_jax.evals.suite import JudgeRequest, Record, Replies, Requests, Scored

ABOUT = About(
    title="GenEval2, atoms of compositional prompts",
    needs="geneval2_data.jsonl, or a folder with it",
    licence="CC BY-NC 4.0 (code and data): not for commercial use",
    dialect="official; accepted replies by their first token",
    unit="prompts",
    best=100.0,
    judge="first token",
)
FILE = "geneval2_data.jsonl"
VQASCORE = "vqascore"  # in the place of a skill
POLICY = (
    "a question without first-token probabilities scores 0; a token counts once, and the space "
    "before a digit does not count as the digit"
)


@dataclasses.dataclass(frozen=True)
class Item:
    """A line of the data file: the prompt to draw and as it stands there, the number of its atoms,
    and (question, answer, skill) of each question."""

    prompt: Prompt
    text: str
    atoms: int
    questions: tuple[tuple[str, str, str], ...]

    @property
    def asked(self) -> list[tuple[str, str, str]]:
        """As the judge reads the questions."""
        return [(text + geneval2.IN_ONE_WORD, *rest) for text, *rest in self.questions]

    @property
    def whole(self) -> tuple[str, str, str]:
        """VQAScore's question."""
        return geneval2.vqascore_question(self.text), "Yes", VQASCORE


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about the image at `place` among the requests."""

    id: str
    place: int
    item: Item
    text: str
    answer: str
    skill: str


@dataclasses.dataclass(frozen=True)
class Geneval2(Benchmark):
    """items: those whose prompts are drawn."""

    items: Sequence[Item]
    data: Data
    name = "geneval2"
    about = ABOUT

    @property
    def prompts(self) -> list[Prompt]:
        """What is drawn."""
        return [item.prompt for item in self.items]

    def requests(self, model: str) -> Requests:
        """One image of each prompt."""
        return drawn.several(self.prompts, 1)

    def judge_requests(self, requests: Requests, replies: Replies) -> Sequence[JudgeRequest]:
        """Every question of every image, to be answered in one word, and VQAScore's."""
        asked = [
            Question(f"{item.prompt.id}-0:{i}", place, item, *question)
            for place, item in enumerate(self.items)
            for i, question in enumerate((*item.asked, item.whole))
        ]
        return LazySequence(asked, _Ask(replies).request)

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """The images, and `image_paths.json`: {prompt: path of its image}."""
        paths = {}
        for place, item in enumerate(self.items):
            path = folder / "images" / f"{item.prompt.id:05d}.png"
            drawn.write(path, replies, place)
            paths[item.text] = str(path)
        text = json.dumps(paths, ensure_ascii=False, indent=1)
        files.write_text(folder / "image_paths.json", text + "\n")


@dataclasses.dataclass(frozen=True)
class _Ask:
    """Makes a judge's requests about the images of replies."""

    replies: Replies

    def request(self, q: Question) -> JudgeRequest:
        truth = {"answer": q.answer, "skill": q.skill, "atoms": q.item.atoms}
        return JudgeRequest(
            id=q.id,
            category=q.item.prompt.category,
            images=drawn.of(self.replies, q.place),
            text=q.text,
            max_tokens=1,
            first_token=geneval2.accepted(q.answer),
            truth={"prompt": q.item.prompt.id, **truth},
        )


# -------------------------------------------------------------------------------------- reading


def make(cfg: Config, data: str, language: str) -> Geneval2:
    """The prompts of the file `data`, or of the one in that folder. Raises BadInput."""
    path = official_files.file(benchmark.data_folder("geneval2", data), FILE)
    items = read(path, language)
    c = cfg.evaluate
    asked = benchmark.sampled(items, [one.atoms for one in items], c.limit, c.seed)
    return Geneval2(asked, Data(str(path), benchmark.sha256(path), len(asked), len(items)))


def read(path: epath.Path, language: str = "") -> list[Item]:
    """The items of a data file; a prompt stands in it once. Raises BadInput."""
    rows = official_files.json_lines(path)
    official_files.distinct([row.get("prompt", str) for row in rows], rows, "the prompt")
    found = []
    for place, row in enumerate(rows):
        text, atoms = row.get("prompt", str), row.get("atom_count", int)
        prompt = drawn.prompt(language, place, text, f"{atoms} atoms", row.where)
        found.append(Item(prompt, text, atoms, _questions(row)))
    return found


def _questions(row: official_files.Row) -> tuple[tuple[str, str, str], ...]:
    pairs, skills = row.get("vqa_list", list), row.get("skills", list)
    if not pairs or len(pairs) != len(skills):
        raise BadInput(
            f"{row.where}: 'vqa_list' has {len(pairs)} questions and 'skills' {len(skills)}; they "
            "must be as many, and at least one"
        )
    found = []
    for pair, skill in zip(pairs, skills, strict=True):
        match pair, skill:
            case [str(question), str(answer)], str(kind):
                found.append((question, answer, kind))
            case _:
                raise BadInput(
                    f"{row.where}: 'vqa_list' must hold pairs of a question and its answer, and "
                    f"'skills' words; got {quoted(pair)} and {quoted(skill)}"
                )
    return tuple(found)


# ------------------------------------------------------------------------------ what it is worth


def score(records: Sequence[Record]) -> Scored:
    """Soft-TIFA, its headline the geometric mean, TIFA and VQAScore; native scale 0 to 100."""
    wholes = [r for r in records if r.truth["skill"] == VQASCORE]
    by_prompt: dict[str, list[Record]] = {}
    for r in records:
        if r.truth["skill"] != VQASCORE:
            by_prompt.setdefault(str(r.truth["prompt"]), []).append(r)
    strict = [_prompt(several, _strict) for several in by_prompt.values()]
    released = [_prompt(several, _released) for several in by_prompt.values()]
    gm = [geneval2.geometric(one.soft) for one in strict]
    found = {
        "soft_tifa_gm": metrics.mean(gm, 100),
        "soft_tifa_am": metrics.mean([geneval2.arithmetic(p.soft) for p in strict], 100),
        "tifa": metrics.mean([geneval2.arithmetic(p.hard) for p in strict], 100),
    }
    if wholes:
        found[VQASCORE] = metrics.mean([_strict(r) for r in wholes], 100)
    asked = [r for several in by_prompt.values() for r in several]
    of_wholes = {VQASCORE: 100 * geneval2.arithmetic([geneval2.vqascore(r.p) for r in wholes])}
    return Scored(
        n=len(records),
        failed=sum(not _usable(r) for r in records),
        as_released=(_totals(released) if _comparable(asked) else {})
        | (of_wholes if wholes and _comparable(wholes) else {}),
        strict=found,
        units=tuple(by_prompt),
        by_category=_by_category(strict),
        items=tuple(
            {
                "id": f"{id}-0",
                "category": several[0].category,
                "value": value,
                "reason": _reason(several),
            }
            for (id, several), value in zip(by_prompt.items(), gm, strict=True)
        ),
        policy=POLICY,
    )


def _prompt(records: Sequence[Record], soft) -> geneval2.Prompt:
    return geneval2.Prompt(
        atoms=records[0].truth["atoms"],
        soft=tuple(soft(r) for r in records),
        hard=tuple(geneval2.tifa(r.truth["answer"], r.reply) if _usable(r) else 0 for r in records),
        skills=tuple(r.truth["skill"] for r in records),
    )


def _comparable(records: Sequence[Record]) -> bool:
    """Whether the official program's number of them is one: all replied, and none passes 1."""
    return all(_usable(r) and _released(r) <= 1 + 1e-6 for r in records)


def _usable(r: Record) -> bool:
    return r.status == OK and bool(r.p)


def _released(r: Record) -> float:
    return geneval2.soft_score(r.truth["answer"], r.p)


def _strict(r: Record) -> float:
    if not _usable(r):
        return 0.0
    spaced = {text for text in r.p if text[:1] == " " and text.strip().isdigit()}
    # A vocabulary of words has one token for several spellings, of the very same probability.
    tokens = {
        (text.strip().lower(), r.p[text]): text
        for text in geneval2.accepted(r.truth["answer"])
        if text in r.p and text not in spaced
    }
    return min(1.0, sum(r.p[text] for text in tokens.values()))


def _totals(prompts: Sequence[geneval2.Prompt]) -> dict[str, float]:
    return {
        "soft_tifa_gm": geneval2.soft_tifa_gm(prompts),
        "soft_tifa_am": geneval2.soft_tifa_am(prompts),
        "tifa": geneval2.total_tifa(prompts),
    }


def _by_category(prompts: Sequence[geneval2.Prompt]) -> dict[str, Mapping[str, float]]:
    skills = [skill for one in prompts for skill in one.skills]
    found: dict[str, Mapping[str, float]] = {
        skill: {"n": skills.count(skill), "soft_tifa_am": value}
        for skill, value in geneval2.per_skill(prompts).items()
    }
    for atoms, one in geneval2.per_atomicity(prompts).items():
        found[f"{atoms} atoms"] = {"n": one["total"], "soft_tifa_gm": one["accuracy"]}
    return found


def _reason(records: Sequence[Record]) -> str:
    """The question that went worst."""
    worst = min(records, key=_strict)
    value = _strict(worst)
    if math.isclose(value, 1, abs_tol=0.05):
        return ""
    asked = worst.asked.removesuffix(geneval2.IN_ONE_WORD)
    return f"{asked} {worst.truth['answer']}: {value:.2f}"
