"""SRUM's CompBench: T2I-CompBench's prompts, one image each, scored 0 to 100 by a judge.

The protocol of the paper's table 1 (WayneJin0918/SRUM, Apache-2.0): the text that the judge reads
is theirs. `as_released` averages a reply without a score in as -1; `strict` counts it 0, and a
score outside 0 to 100 too. Published numbers are of Qwen2.5-VL-32B or -72B as the judge, with 50
steps.
The official protocol of T2I-CompBench is another one (`t2i_compbench.py`).
"""

import dataclasses
import json
from collections.abc import Sequence

from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput, quoted
from srum_jax.data.prompts import Prompt
from srum_jax.evals import benchmark, drawn, official_files, official_tables
from srum_jax.evals.benchmark import OK, About, Benchmark, Data, LazySequence
from srum_jax.evals.judge_texts import JudgeText
from srum_jax.evals.scorers import compbench_srum, metrics
from srum_jax.evals.scorers.statements import json_object
from srum_jax.evals.suite import JudgeRequest, Metric, Record, Replies, Requests, Scored

ABOUT = About(
    title="SRUM's CompBench, 0 to 100 by a judge",
    needs="val_comp.json, or a folder with it",
    licence="Apache-2.0 (code); MIT (prompts of T2I-CompBench)",
    dialect="SRUM's qwen_eval.py",
    unit="images",
    best=100.0,
    judge="words",
)
FILE = "val_comp.json"
CATEGORIES = (*compbench_srum.BASE, *compbench_srum.COMPLEX)
STEPS = 50  # of the sampler, which the official folders are named by
THINK, NO_THINK = "think", "no_think"
MISSING = "missing"
POLICY = (
    "a reply without one clear score from 0 to 100 counts 0; overall is the mean of the seven base "
    "categories and the mean of the three complex ones"
)
ASKED = JudgeText(
    "You are my assistant to evaluate the correspondence of the image to a given text prompt. "
    "Focus on the objects in the image and their attributes (such as color, shape, texture), "
    "spatial layout and action relationships. According to the image, evaluate how well the image "
    'aligns with the text prompt: "{prompt}" Give a score from 0 to 100, according the criteria: \n'
    "81-100: the image perfectly matches the content of the text prompt, with no discrepancies. \n"
    "61-80: the image portrayed most of the actions, events and relationships but with minor "
    "discrepancies. \n"
    "41-60: the image depicted some elements in the text prompt, but ignored some key parts or "
    "details. \n"
    "21-40: the image did not depict any actions or events that match the text. \n"
    "1-20: the image failed to convey the full scope in the text prompt. \n"
    "Provide your analysis and explanation in JSON format with the following keys: score (e.g., "
    "2), explanation (within 20 words)."
)


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt to draw, and as it stands in the file."""

    prompt: Prompt
    text: str

    @property
    def name(self) -> str:
        """The image's file."""
        return f"{self.prompt.id}.png"


@dataclasses.dataclass(frozen=True)
class SrumCompbench(Benchmark):
    """items: those whose prompts are drawn · variant: THINK where the model thinks first, as
    published numbers are told apart, else NO_THINK."""

    items: Sequence[Item]
    data: Data
    variant: str = NO_THINK
    name = "srum_compbench"
    think_named = True

    @property
    def about(self) -> About:
        """Says in the dialect which variant it is."""
        how = "after thinking" if self.variant == THINK else "without thinking"
        return dataclasses.replace(ABOUT, dialect=f"{ABOUT.dialect}; drawn {how}")

    @property
    def prompts(self) -> list[Prompt]:
        """What is drawn."""
        return [item.prompt for item in self.items]

    def requests(self, model: str) -> Requests:
        """One image of each prompt."""
        return drawn.several(self.prompts, 1)

    def judge_requests(self, requests: Requests, replies: Replies) -> Sequence[JudgeRequest]:
        """One question an image."""
        return LazySequence(list(enumerate(self.items)), _Ask(replies).request)

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """`<category>_50_<variant>/samples/<id>.png`, and the prompts in `<category>_50_think/
        output.jsonl`, where the official judge looks for those of either variant."""
        rows: dict[str, list[str]] = {}
        for place, item in enumerate(self.items):
            path = folder / _folder(item.prompt.category, self.variant) / "samples" / item.name
            drawn.write(path, replies, place)
            row = {"prompt_id": item.prompt.id, "image_file": item.name}
            line = json.dumps(row | {"original_prompt": item.text}, ensure_ascii=False)
            rows.setdefault(item.prompt.category, []).append(line)
        for category, lines in rows.items():
            place = folder / _folder(category, THINK)
            place.mkdir(parents=True, exist_ok=True)
            files.write_text(place / "output.jsonl", "\n".join(lines) + "\n")

    def imported(self, path: epath.Path, requests: Requests) -> list[Record]:
        """The official judge's replies, of `<category>_<variant>_results.csv` in the folder `path`,
        or of one such file. An image that they do not speak of is "missing". Raises BadInput."""
        path = epath.Path(path)
        names = [f"{_underscored(c)}_{self.variant}_results.csv" for c in CATEGORIES]
        paths = [path] if path.is_file() else [path / n for n in names if (path / n).is_file()]
        if not paths:
            raise BadInput(f"{path}: holds no {' or '.join(names)}")
        said: dict[int, str] = {}
        wanted = {item.prompt.id for item in self.items}
        for one in paths:
            for row in official_tables.comma_separated(one, "question_id", "full_evaluation_text"):
                number = row.get("question_id", str)
                if not number.isdecimal() or int(number) not in wanted or int(number) in said:
                    raise BadInput(
                        f"{row.where}: question_id {quoted(number)} is none of the images asked "
                        "for, or stands here twice"
                    )
                said[int(number)] = row.get("full_evaluation_text", str, "")
        return [_record(item, said.get(item.prompt.id)) for item in self.items]


def _record(item: Item, said: str | None) -> Record:
    id, category = f"{item.prompt.id}-0", item.prompt.category
    asked = ASKED.filled(prompt=item.text)
    return Record(id, category, asked, said or "", MISSING if said is None else OK)


def _underscored(category: str) -> str:
    return category.replace(" ", "_")


def _folder(category: str, variant: str) -> str:
    return f"{_underscored(category)}_{STEPS}_{variant}"


@dataclasses.dataclass(frozen=True)
class _Ask:
    """Makes a judge's requests about the images of replies."""

    replies: Replies

    def request(self, placed: tuple[int, Item]) -> JudgeRequest:
        place, item = placed
        return JudgeRequest(
            id=f"{item.prompt.id}-0",
            category=item.prompt.category,
            images=drawn.of(self.replies, place),
            text=ASKED.filled(prompt=item.text),
            max_tokens=512,
        )


# -------------------------------------------------------------------------------------- reading


def make(cfg: Config, data: str, language: str) -> SrumCompbench:
    """The prompts of the file `data`, or of the one in that folder. Raises BadInput."""
    path = official_files.file(benchmark.data_folder("srum_compbench", data), FILE)
    items = read(path, language)
    c = cfg.evaluate
    asked = benchmark.sampled(items, [one.prompt.category for one in items], c.limit, c.seed)
    read_data = Data(str(path), benchmark.sha256(path), len(asked), len(items))
    return SrumCompbench(asked, read_data, THINK if c.think_tokens else NO_THINK)


def read(path: epath.Path, language: str = "") -> list[Item]:
    """The prompts of a file, their categories as the summary names them. Raises BadInput."""
    rows = official_files.json_rows(path)
    ids = [row.get("Question_id", int) for row in rows]
    official_files.distinct(ids, rows, "Question_id")
    found = []
    for id, row in zip(ids, rows, strict=True):
        text = row.get("Question", str)
        category = row.get("Category", str).replace("_", " ")
        if category not in CATEGORIES or id < 0:
            raise BadInput(
                f"{row.where}: 'Category' {quoted(category)} must be one of "
                f"{', '.join(CATEGORIES)}, and 'Question_id' at least 0"
            )
        found.append(Item(drawn.prompt(language, id, text, category, row.where), text))
    return found


# ------------------------------------------------------------------------------ what it is worth


def score(records: Sequence[Record]) -> Scored:
    """Category means, their composite and overall; native scale 0 to 100."""
    strict = [
        compbench_srum.strict_score(r.reply) if r.status in (OK, benchmark.EMPTY) else None
        for r in records
    ]
    values = [0.0 if x is None else x for x in strict]
    groups = [r.category for r in records]
    hard = sum(c in compbench_srum.COMPLEX for c in dict.fromkeys(groups))
    weights = {c: 1 / hard if c in compbench_srum.COMPLEX else 1.0 for c in groups}
    overall = metrics.mean_of_groups(values, groups, weights=weights)
    return Scored(
        n=len(records),
        failed=sum(x is None for x in strict),
        as_released=_released(records),
        strict={"overall": overall, **_by_group(values, groups)},
        units=tuple(r.id for r in records),
        by_category={
            name: {"n": groups.count(name), "score": metric.number}
            for name, metric in _by_group(values, groups).items()
        },
        items=tuple(
            {"id": r.id, "category": r.category, "value": v, "reason": _reason(r, s)}
            for r, v, s in zip(records, values, strict, strict=True)
        ),
        policy=POLICY,
    )


def _by_group(values: Sequence[float], groups: Sequence[str]) -> dict[str, Metric]:
    names = [c for c in CATEGORIES if c in groups]
    of = {
        name: [v if g == name else float("nan") for v, g in zip(values, groups, strict=True)]
        for name in names
    }
    return {name: metrics.mean(some) for name, some in of.items()}


def _released(records: Sequence[Record]) -> dict[str, float]:
    """As the summary has them: category means with four decimals, and what is made of these. A
    request that failed counts -1, an image that was never judged is left out."""
    scores: dict[str, list[int]] = {}
    for r in records:
        if r.status != MISSING:
            found = compbench_srum.released_score(r.reply) if r.status == OK else -1
            scores.setdefault(r.category, []).append(found)
    means = {
        c: float(f"{compbench_srum.released_mean(scores[c]):.4f}")
        for c in CATEGORIES
        if c in scores
    }
    of_hard, overall = compbench_srum.composite(means)
    return {"overall": overall, "complex composite": of_hard, **means} if means else {}


def _reason(r: Record, value: float | None) -> str:
    if r.status != OK:
        return r.status
    if value is None:
        return "no clear score from 0 to 100"
    said = (json_object(r.reply) or {}).get("explanation", "")
    return said if isinstance(said, str) else ""
