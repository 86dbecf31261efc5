"""WISE_Verified: does a model draw what a prompt means, not what it says? 1000 prompts, 0 or 1.

Niu et al., "WISE" (arXiv 2503.07265), the verified prompts of 2026. One image a prompt; a judge
that knows what is meant says 1 (right and usable) or 0. `as_released` follows `vllm_eval.py` and
`calculate_verified.py`: a reply without a score is left out, and overall is refused where one of
the 1000 is. `strict` counts it 0. Published numbers are of Qwen3.5-35B-A3B; they are not those of
legacy WISE (`wise_legacy.py`).
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from etils import epath

from srum_jax.config import Config
from srum_jax.core.errors import BadInput, quoted
from srum_jax.data.prompts import Prompt
from srum_jax.evals import benchmark, drawn, judge_texts, official_files
from srum_jax.evals.benchmark import OK, About, Benchmark, Data, LazySequence
from srum_jax.evals.judge_texts import JudgeText, Script
from srum_jax.evals.scorers import metrics, wise
from srum_jax.evals.scorers.wise import Version
from srum_jax.evals.suite import JudgeRequest, Metric, Record, Replies, Requests, Scored

FILES = (
    "cultural_common_sense_verified.json",
    "spatio-temporal_reasoning_verified.json",
    "natural_science_verified.json",
)
PLACES = ("", "data_verified")  # where they lie in the official repository
ABOUT = About(
    title="WISE_Verified, knowledge behind prompts",
    needs=f"a folder with {', '.join(FILES)} (one of them is enough), or a clone of the official "
    "repository, whose vllm_eval.py then gives the judge's question",
    licence="no licence in the official repository: for your own use",
    dialect="official, the image before the text",
    unit="images",
    judge="words",
)
POLICY = "a reply that does not say one of 0 and 1 counts 0; wiscore weights the six categories"
MISSING = "missing"
SCRIPT = Script(
    "vllm_eval.py", {"prompt_data['Prompt']": "prompt", "prompt_data['Explanation']": "explanation"}
)
ASKED = JudgeText(
    "An image was drawn for the prompt below. The prompt hints at something that the image must "
    "show; the explanation says what that is, and it decides.\n\n"
    "Prompt: {prompt}\nExplanation: {explanation}\n\n"
    "Give 1 only if the image shows what the explanation asks for, with the objects, states and "
    "relations that matter, and is drawn well enough to tell. Give 0 if anything of that is "
    "missing or wrong, if it follows the prompt's words but not its meaning, if it is badly "
    "deformed, or if you are in doubt. Beauty and style do not count.\n\n"
    "Reply with one line, either\nScore: 0\nor\nScore: 1",
    "You check strictly whether drawn images are right.",
)


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt to draw, as it stands in the file, and what it means; its id is the file's."""

    prompt: Prompt
    text: str
    explanation: str
    subcategory: str


@dataclasses.dataclass(frozen=True)
class Wise(Benchmark):
    """items: those whose prompts are drawn · asked: the judge's question."""

    items: Sequence[Item]
    data: Data
    asked: JudgeText
    name = "wise"
    official_about = ABOUT
    max_tokens = 500

    @property
    def about(self) -> About:
        """Says in the dialect whose words the judge reads."""
        of = self.official_about
        return dataclasses.replace(of, dialect=f"{of.dialect}; {self.asked.wording}")

    @property
    def prompts(self) -> list[Prompt]:
        """What is drawn."""
        return [item.prompt for item in self.items]

    def requests(self, model: str) -> Requests:
        """One image of each prompt."""
        return drawn.several(self.prompts, 1)

    def judge_requests(self, requests: Requests, replies: Replies) -> Sequence[JudgeRequest]:
        """One question an image."""
        return LazySequence(list(enumerate(self.items)), _Ask(self, replies).request)

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """`images/<id>.png`, the official IMAGE_DIR."""
        for place, item in enumerate(self.items):
            drawn.write(folder / "images" / f"{item.prompt.id}.png", replies, place)

    @property
    def dialect_imported(self) -> str:
        """The official judge was asked as it is, and in its own words."""
        return "official"

    def imported(self, path: epath.Path, requests: Requests) -> list[Record]:
        """The official judge's replies, of the `*_full_results.json` in the folder `path` or of one
        such file. An image that they do not speak of is "missing". Raises BadInput."""
        path = epath.Path(path)
        paths = [path] if path.is_file() else sorted(path.glob("*_full_results.json"))
        if not paths:
            raise BadInput(f"{path}: holds no *_full_results.json")
        wanted = {item.prompt.id for item in self.items}
        said: dict[int, str] = {}
        for one in paths:
            for row in official_files.json_rows(one):
                id = row.get("prompt_id", int)
                if id not in wanted or id in said:
                    why = "stands here twice" if id in said else "is none of those asked for"
                    raise BadInput(f"{row.where}: prompt_id {id} {why}")
                said[id] = row.get("evaluation", str)
        return [self._record(item, said.get(item.prompt.id)) for item in self.items]

    def _record(self, item: Item, said: str | None) -> Record:
        id, status = f"{item.prompt.id}-0", MISSING if said is None else OK
        asked, truth = question(self.asked, item), truth_of(item)
        return Record(id, item.prompt.category, asked, said or "", status, truth)


def question(asked: JudgeText, item: Item) -> str:
    """What the judge reads behind the image."""
    return asked.filled(prompt=item.text, explanation=item.explanation)


def truth_of(item: Item) -> dict[str, int | str]:
    """What scoring needs beside a reply, and what the image should show."""
    of = {"prompt_id": item.prompt.id, "subcategory": item.subcategory}
    return of | {"explanation": item.explanation}


@dataclasses.dataclass(frozen=True)
class _Ask:
    """Makes a judge's requests about the images of replies."""

    suite: Wise
    replies: Replies

    def request(self, placed: tuple[int, Item]) -> JudgeRequest:
        place, item = placed
        return JudgeRequest(
            id=f"{item.prompt.id}-0",
            category=item.prompt.category,
            images=drawn.of(self.replies, place),
            text=question(self.suite.asked, item),
            system=self.suite.asked.system,
            max_tokens=self.suite.max_tokens,
            truth=truth_of(item),
        )


# -------------------------------------------------------------------------------------- reading


def make(cfg: Config, data: str, language: str) -> Wise:
    """The prompts of the files in the folder `data`, or of one file. Raises BadInput."""
    place = benchmark.data_folder("wise", data)
    paths = found_files(place, PLACES, FILES)
    items, read_data = sampled(cfg, place, paths, wise.VERIFIED, language)
    return Wise(items, read_data, judge_texts.find(place, "wise", ASKED, SCRIPT))


def found_files(
    place: epath.Path, folders: Sequence[str], *sets: Sequence[str]
) -> list[epath.Path]:
    """Those of the first set of files that are there, in the first folder that has any of them; a
    file is itself.

    Raises BadInput naming what was looked for.
    """
    if place.is_file():
        return [place]
    for names, folder in itertools.product(sets, folders):
        inside = place / folder if folder else place
        if found := [inside / name for name in names if (inside / name).is_file()]:
            return found
    raise BadInput(f"{place}: holds no {' or '.join(name for names in sets for name in names)}")


def sampled(
    cfg: Config, place: epath.Path, paths: Sequence[epath.Path], version: Version, language: str
) -> tuple[list[Item], Data]:
    """The items that are asked of those of the files, and what the data say. Raises BadInput."""
    items = read(paths, version, language)
    c = cfg.evaluate
    asked = benchmark.sampled(items, [one.prompt.category for one in items], c.limit, c.seed)
    rewritten = any(path.name.endswith("_rewrite.json") for path in paths)
    variant = "rewritten prompts" if rewritten else "original prompts"
    digest = benchmark.sha256(*paths)
    return asked, Data(str(place), digest, len(asked), len(items), variant)


def read(paths: Sequence[epath.Path], version: Version, language: str = "") -> list[Item]:
    """The items of files, their categories by their ids as the official totals have them."""
    rows = [row for path in paths for row in official_files.json_rows(path)]
    ids = [row.get("prompt_id", int) for row in rows]
    official_files.distinct(ids, rows, "prompt_id")
    found = []
    for id, row in zip(ids, rows, strict=True):
        category, text = version.category(id), row.get("Prompt", str)
        if category is None:
            raise BadInput(f"{row.where}: 'prompt_id' is {quoted(id)}; it must be from 1 to 1000")
        found.append(
            Item(
                drawn.prompt(language, id, text, category, row.where),
                text,
                row.get("Explanation", str),
                row.get("Subcategory", str, ""),
            )
        )
    return found


# ------------------------------------------------------------------------------ what it is worth


def score(records: Sequence[Record]) -> Scored:
    """The weighted score of the six categories and the plain mean, in [0, 1]."""
    ok = [r.status == OK for r in records]
    texts = [wise.without_thinking(r.reply) for r in records]
    released = [wise.verified_score(t) if good else None for t, good in zip(texts, ok, strict=True)]
    strict = [
        wise.strict_verified_score(r.reply) if good else None
        for r, good in zip(records, ok, strict=True)
    ]
    values = [x or 0.0 for x in strict]
    return Scored(
        n=len(records),
        failed=sum(x is None for x in strict),
        as_released=official_totals(records, released, wise.VERIFIED),
        strict={
            "wiscore": weighted(values, records, wise.VERIFIED),
            "accuracy": metrics.mean(values),
        },
        units=tuple(r.id for r in records),
        by_category=by_category(records, {"accuracy": values}),
        items=tuple(
            {"id": r.id, "category": r.category, "right": x == 1, "reason": _reason(r, x)}
            for r, x in zip(records, strict, strict=True)
        ),
        policy=POLICY,
    )


def official_totals(
    records: Sequence[Record], found: Sequence[object], version: Version
) -> dict[str, float]:
    """Category means and, where all 1000 have a score, overall; a score of None is no line."""
    pairs = zip(records, found, strict=True)
    lines = [(r.truth["prompt_id"], score) for r, score in pairs if score is not None]
    totals = wise.totals(lines, version)
    whole = {} if totals.overall is None else {"overall": totals.overall}
    return whole | {name: mean for name, (mean, _) in totals.categories.items()}


def weighted(values: Sequence[float], records: Sequence[Record], version: Version) -> Metric:
    """The metric with the official weights of the categories that are there."""
    weights = dict(zip(wise.CATEGORIES, version.weights, strict=True))
    return metrics.mean_of_groups(values, [r.category for r in records], weights=weights)


def by_category(
    records: Sequence[Record], columns: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, float]]:
    """{category: {"n", name: mean}} of columns of a value a record."""
    found = {}
    for category in wise.CATEGORIES:
        at = [i for i, r in enumerate(records) if r.category == category]
        if at:
            means = {name: sum(some[i] for i in at) / len(at) for name, some in columns.items()}
            found[category] = {"n": len(at), **means}
    return found


def _reason(r: Record, value: float | None) -> str:
    if value is None:
        return no_score(r)
    return "" if value else f"judged 0; it should show: {r.truth['explanation']}"


def no_score(r: Record) -> str:
    """Why an item has no score."""
    return r.status if r.status != OK else "no clear score in the reply"
