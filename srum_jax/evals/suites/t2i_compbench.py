"""T2I-CompBench: attributes, relations and numbers in drawn images, by the official protocol.

Huang et al., "T2I-CompBench" (arXiv 2307.06350). Ten images a prompt are drawn and written under
the official names; the official scorers' `vqa_result.json` are read back. Without them BLIP-VQA's
questions are asked of a judge, which is a proxy and is named so. The protocol of SRUM's table 1 is
another one (`compbench_srum.py`).
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput, quoted
from srum_jax.data.prompts import Prompt
from srum_jax.evals import benchmark, drawn, official_files
from srum_jax.evals.benchmark import OK, About, Benchmark, Data, LazySequence
from srum_jax.evals.scorers import metrics, noun_phrases, t2i_compbench, yes_no
from srum_jax.evals.suite import JudgeRequest, Metric, Record, Replies, Requests, Scored

ABOUT = About(
    title="T2I-CompBench, official protocol",
    needs="a folder with color_val.txt, shape_val.txt, texture_val.txt, spatial_val.txt, "
    "3d_spatial_val.txt, numeracy_val.txt, non_spatial_val.txt and complex_val.txt (one of them "
    "is enough)",
    licence="MIT (code and prompts)",
    dialect="official, of its scorers' results; a judge's answers are a proxy",
    unit="prompts",
    judge="optional",
)
# Where the official scorers put the results of each category.
ANNOTATIONS = {
    "color": "annotation_blip",
    "shape": "annotation_blip",
    "texture": "annotation_blip",
    "spatial": "labels/annotation_obj_detection_2d",
    "3d_spatial": "labels/annotation_obj_detection_3d",
    "numeracy": "annotation_num",
    "non_spatial": "annotation_clip",
    "complex": "annotation_3_in_1",
}
ATTRIBUTES = ("color", "shape", "texture")  # BLIP-VQA's questions are their official metric, ...
COMPLEX = "complex"  # ... and one of three parts of this one's
ASKED = (*ATTRIBUTES, COMPLEX)
COMPLEX_PROXY = "complex_attributes_proxy"
RESULT = "vqa_result.json"
REPOSITORY = "examples/dataset"  # where prompts lie in the official repository
IMAGES = t2i_compbench.IMAGES_PER_PROMPT
ID_STEP = 1_000_000  # between the prompts' ids of two categories
SUFFIX = " Answer yes or no."
POLICY = "an image without a result scores 0; the mean is over categories"
PROXY_POLICY = (
    "a proxy of BLIP-VQA: the product over the prompt's noun phrases of the judge's P(yes) among "
    "yes and no (1 or 0 where it gives words alone); a question without a clear answer scores 0; "
    "of complex prompts that is the attributes' part of the official 3-in-1 alone, apart from the "
    "mean"
)


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a category's file: the prompt to draw, and as it stands there."""

    prompt: Prompt
    text: str


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image: the `place` of its request, the line of its prompt, which of the prompt's images
    it is, and its running `index` in the category's folder."""

    place: int
    line: Line
    k: int
    index: int

    @property
    def id(self) -> str:
        """The prompt's id and which of its images this is."""
        return f"{self.line.prompt.id}-{self.k}"

    @property
    def category(self) -> str:
        """Of its prompt."""
        return self.line.prompt.category

    @property
    def name(self) -> str:
        """The file's official name."""
        return t2i_compbench.sample_name(self.line.text, self.index)


@dataclasses.dataclass(frozen=True)
class Question:
    """A noun phrase of an image's prompt, as a question that wants a yes."""

    id: str
    text: str
    sample: Sample


@dataclasses.dataclass(frozen=True)
class T2ICompbench(Benchmark):
    """lines: those whose prompts are drawn · chunker: finds the noun phrases of a prompt."""

    lines: Sequence[Line]
    data: Data
    chunker: noun_phrases.Chunker
    name = "t2i_compbench"

    @property
    def about(self) -> About:
        """Says in the dialect who found the noun phrases."""
        dialect = f"{ABOUT.dialect}, its noun phrases by {self.chunker.name}"
        return dataclasses.replace(ABOUT, dialect=dialect)

    @property
    def prompts(self) -> list[Prompt]:
        """What is drawn."""
        return [line.prompt for line in self.lines]

    @property
    def judged(self) -> bool:
        """Whether BLIP-VQA is the metric of a category that is there, or a part of it."""
        return any(line.prompt.category in ASKED for line in self.lines)

    def requests(self, model: str) -> Requests:
        """Ten images of each prompt."""
        return drawn.several(self.prompts, IMAGES)

    def judge_requests(self, requests: Requests, replies: Replies) -> Sequence[JudgeRequest]:
        """BLIP-VQA's questions about colours, shapes, textures and complex prompts; of a prompt
        without a noun phrase the whole of it is one."""
        asked = [
            Question(f"{sample.id}:{i}", text, sample)
            for sample in self.samples()
            if sample.category in ASKED
            for i, text in enumerate(self._questions(sample.line.text))
        ]
        return LazySequence(asked, _Ask(replies).request)

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """`<category>/samples/<prompt>_<index>.png`, and the prompts that were asked."""
        for sample in self.samples():
            drawn.write(folder / sample.category / "samples" / sample.name, replies, sample.place)
        for category in dict.fromkeys(line.prompt.category for line in self.lines):
            texts = [line.text for line in self.lines if line.prompt.category == category]
            files.write_text(folder / f"{category}_val.txt", "\n".join(texts) + "\n")

    def imported(self, path: epath.Path, requests: Requests) -> list[Record]:
        """The official scorers' results of the categories that have some, in the folder of the
        official layout; with one category, of its own folder or file. Raises BadInput."""
        found = []
        by_category: dict[str, list[Sample]] = {}
        for sample in self.samples():
            by_category.setdefault(sample.category, []).append(sample)
        for category, samples in by_category.items():
            file = _results(epath.Path(path), category, alone=len(by_category) == 1)
            found += _imported(file, samples) if file else []
        if not found:
            wanted = [f"{name}/{ANNOTATIONS[name]}/{RESULT}" for name in by_category]
            raise BadInput(f"{path}: holds no {' or '.join(wanted)}")
        return found

    def samples(self) -> list[Sample]:
        """All images, in the order of the requests."""
        seen: dict[str, int] = {}
        found = []
        for i, line in enumerate(self.lines):
            first = seen.get(line.prompt.category, 0)
            seen[line.prompt.category] = first + IMAGES
            found += [Sample(i * IMAGES + k, line, k, first + k) for k in range(IMAGES)]
        return found

    def _questions(self, prompt: str) -> list[str]:
        phrases = self.chunker.phrases(t2i_compbench.prompt_of(prompt))
        asked = [text for text in t2i_compbench.questions(phrases) if text]
        return asked or [prompt.rstrip(".") + "?"]


@dataclasses.dataclass(frozen=True)
class _Ask:
    """Makes a judge's requests about the images of replies."""

    replies: Replies

    def request(self, q: Question) -> JudgeRequest:
        return JudgeRequest(
            id=q.id,
            category=q.sample.category,
            images=drawn.of(self.replies, q.sample.place),
            text=q.text + SUFFIX,
            max_tokens=4,
            first_token=yes_no.FIRST_TOKENS,
            truth={"prompt": q.sample.line.prompt.id},
        )


# -------------------------------------------------------------------------------------- reading


def make(cfg: Config, data: str, language: str) -> T2ICompbench:
    """The prompts of the files in the folder `data`, or of one file. Raises BadInput."""
    place = benchmark.data_folder("t2i_compbench", data)
    names = {f"{category}_val.txt": category for category in ANNOTATIONS}
    if place.is_dir():
        paths = [folder / name for folder in (place, place / REPOSITORY) for name in names]
    else:
        paths = [place] if place.name in names else []
    there = {path.name: path for path in reversed(paths) if path.is_file()}
    there = [there[name] for name in names if name in there]
    if not there:
        raise BadInput(f"{place}: holds no {' or '.join(names)}")
    lines = [one for path in there for one in read(path, names[path.name], language)]
    c = cfg.evaluate
    asked = benchmark.sampled(lines, [one.prompt.category for one in lines], c.limit, c.seed)
    data_read = Data(str(place), benchmark.sha256(*there), len(asked), len(lines))
    return T2ICompbench(asked, data_read, noun_phrases.chunker())


def read(path: epath.Path, category: str, language: str = "") -> list[Line]:
    """The prompts of one file, one a line. Raises BadInput."""
    texts = official_files.text(path).rstrip().split("\n")
    first = list(ANNOTATIONS).index(category) * ID_STEP
    found = []
    for i, text in enumerate(map(str.strip, texts)):
        where = f"{path}, line {i + 1}"
        name = t2i_compbench.sample_name(text, 0)
        if not text:
            raise BadInput(f"{where}: holds no prompt")
        if "/" in text or "\0" in text or len(name.encode()) > drawn.MAX_NAME:
            raise BadInput(
                f"{where}: {quoted(text)} cannot be a file's name, which the official scorers "
                f"read the prompt from: no '/', at most {drawn.MAX_NAME} bytes"
            )
        found.append(Line(drawn.prompt(language, first + i, text, category, where), text))
    return found


# ------------------------------------------------------------------- the official tools' results


def _results(path: epath.Path, category: str, alone: bool) -> epath.Path | None:
    inside = epath.Path(ANNOTATIONS[category]) / RESULT
    places = [path / category / inside]
    places += [path / inside, path / RESULT, path] if alone else []
    return next((one for one in places if one.is_file()), None)


def _imported(path: epath.Path, samples: Sequence[Sample]) -> list[Record]:
    """A record of each image; one without a result has the status "missing"."""
    rows = official_files.json_rows(path)
    numbers = [row.get("question_id", int) for row in rows]
    official_files.distinct(numbers, rows, "question_id")
    by_index = {sample.index: sample for sample in samples}
    for number, row in zip(numbers, rows, strict=True):
        if number not in by_index:
            raise BadInput(f"{row.where}: question_id {number} is none of the images asked for")
    values = {number: _value(row) for number, row in zip(numbers, rows, strict=True)}
    return [_record(sample, values.get(sample.index)) for sample in samples]


def _value(row: official_files.Row) -> float:
    """A score, which most official scorers write as a text."""
    value = row.value.get("answer")
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise BadInput(f"{row.where}: 'answer' is {quoted(value)}; it must be a number")
    return number


def _record(sample: Sample, value: float | None) -> Record:
    return Record(
        id=sample.id,
        category=sample.category,
        asked=sample.line.text,
        reply="" if value is None else repr(value),
        status="missing" if value is None else OK,
        truth={"prompt": sample.line.prompt.id, "value": value},
    )


# ------------------------------------------------------------------------------ what it is worth


@dataclasses.dataclass(frozen=True)
class Image:
    """What an image is worth; `prompt`: the id of its prompt · failed: there is no full verdict."""

    id: str
    category: str
    prompt: str
    value: float
    failed: bool
    reason: str = ""


def score(records: Sequence[Record]) -> Scored:
    """The official scorers' means; of a judge's answers a proxy of BLIP-VQA."""
    if any("value" in r.truth for r in records):
        images = [_official(r) for r in records]
        there = [one for one in images if not one.failed]
        released = {name: _mean(some) for name, some in _grouped(there, "category").items()}
        return _scored(images, released, False, POLICY)
    answers: dict[str, list[Record]] = {}
    for r in records:
        answers.setdefault(r.id.partition(":")[0], []).append(r)
    return _scored([_judged(id, some) for id, some in answers.items()], {}, True, PROXY_POLICY)


def _official(r: Record) -> Image:
    failed = r.status != OK
    value = 0.0 if failed else float(r.truth["value"])
    return Image(r.id, r.category, str(r.truth["prompt"]), value, failed, r.status * failed)


def _judged(id: str, answers: Sequence[Record]) -> Image:
    shares = [yes_no.yes_share(r) for r in answers]
    failed = any(math.isnan(share) for share in shares)
    told = (
        f"{r.asked.removesuffix(SUFFIX)} {_share(share)}"
        for r, share in zip(answers, shares, strict=True)
    )
    value = 0.0 if failed else math.prod(shares)
    prompt = str(answers[0].truth["prompt"])
    return Image(id, answers[0].category, prompt, value, failed, "; ".join(told))


def _share(share: float) -> str:
    return "no clear answer" if math.isnan(share) else f"{share:.2f}"


def _scored(
    images: Sequence[Image], released: Mapping[str, float], proxy: bool, policy: str
) -> Scored:
    """Numbers over prompts, of which an interval draws."""
    prompts = _grouped(images, "prompt")
    values = [_mean(some) for some in prompts.values()]
    categories = [some[0].category for some in prompts.values()]
    headline = "blip_vqa_proxy" if proxy else "mean_of_categories"
    names = {name: _metric(name, proxy) for name in dict.fromkeys(categories)}
    apart = proxy and COMPLEX in names
    strict: dict[str, Metric] = {}
    if not apart or len(names) > 1:
        whole = [math.nan if apart and c == COMPLEX else v for v, c in _pairs(values, categories)]
        strict[headline] = metrics.mean_of_groups(whole, categories)
    for name, metric in names.items():
        some = [v if c == name else math.nan for v, c in _pairs(values, categories)]
        strict[metric] = metrics.mean(some)
    by_category = _grouped(images, "category")
    return Scored(
        n=len(images),
        failed=sum(one.failed for one in images),
        as_released=released,
        strict=strict,
        units=tuple(prompts),
        by_category={
            name: {"n": len(some), _column(name, proxy): _mean(some)}
            for name, some in by_category.items()
        },
        items=tuple(
            {"id": x.id, "category": x.category, "value": x.value, "reason": x.reason}
            for x in images
        ),
        policy=policy,
    )


def _pairs(values: Sequence[float], categories: Sequence[str]) -> Iterable[tuple[float, str]]:
    return zip(values, categories, strict=True)


def _metric(category: str, proxy: bool) -> str:
    """The name of a category's metric."""
    if not proxy:
        return category
    return COMPLEX_PROXY if category == COMPLEX else f"blip_vqa_proxy_{category}"


def _column(category: str, proxy: bool) -> str:
    """The same where categories have rows of their own."""
    if not proxy:
        return "score"
    return COMPLEX_PROXY if category == COMPLEX else "blip_vqa_proxy"


def _grouped(images: Sequence[Image], field: str) -> dict[str, list[Image]]:
    found: dict[str, list[Image]] = {}
    for one in images:
        found.setdefault(getattr(one, field), []).append(one)
    return found


def _mean(images: Sequence[Image]) -> float:
    return sum(one.value for one in images) / len(images) if images else math.nan
