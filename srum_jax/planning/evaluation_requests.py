"""How much the stages `evaluate` and `adjust` ask of models, counted from their suites.

At most: `adjust` tries all that it may and measures what it chose, and what is asked about several
pictures counts once a picture. Prompts that are not here yet count as many as the config asks for;
a suite whose official files are not here is named and not counted. Judges that are not the model
itself compute elsewhere.
"""

import collections
import dataclasses
import os

from etils import epath

from srum_jax.config import Config, EvaluateConfig
from srum_jax.core import registry
from srum_jax.evals import choosing, suite_cost
from srum_jax.evals.suite import AnswerRequest, JudgeRequest, Suite, TextRequest
from srum_jax.generation import generation_config
from srum_jax.models.bagel.hf_folder import GENERATION_FILE

BASE, TRAINED = "base", "trained"


@dataclasses.dataclass(frozen=True)
class Asked:
    """What models are asked in a round: images drawn, those of them that the model's judge scores,
    pictures that a first token answers about, texts written by their limit of tokens, pictures
    edited, plans in words before these two. missing: suites that are not counted."""

    images: int = 0
    scored: int = 0
    answers: int = 0
    texts: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    edits: int = 0
    thoughts: int = 0
    missing: tuple[str, ...] = ()

    def __add__(self, other: "Asked") -> "Asked":
        pairs = ((getattr(self, f), getattr(other, f)) for f in _FIELDS)
        return Asked(*(a + b for a, b in pairs), tuple(dict.fromkeys(self.missing + other.missing)))

    def times(self, count: int) -> "Asked":
        """The same asked of so many models."""
        texts = collections.Counter({limit: count * n for limit, n in self.texts.items()})
        of = {f: count * getattr(self, f) for f in _FIELDS if f != "texts"}
        return dataclasses.replace(self, **of, texts=texts)


_FIELDS = [field.name for field in dataclasses.fields(Asked)][:-1]


def of_stage(cfg: Config, stage: str) -> Asked:
    """What the stage `evaluate` or `adjust` of a config asks in a round."""
    trains = "train" in cfg.stages
    if stage == "evaluate":
        models = (BASE, TRAINED) if trains else (BASE,)
        return _of_models(cfg, models)
    c = cfg.adjust
    section = choosing.asked(c, cfg.evaluate, c.prompts)
    found = _of_models(dataclasses.replace(cfg, evaluate=section), (TRAINED,))
    found = found.times(1 + choosing.tried(c))
    return found + _of_models(cfg, (TRAINED,)) if "evaluate" in cfg.stages else found


def _of_models(cfg: Config, models: tuple[str, ...]) -> Asked:
    found = Asked()
    for entry in cfg.evaluate.suites:
        suite = _made(cfg, entry)
        if suite is None:
            found += Asked(missing=(entry.partition(":")[0],))
            continue
        for model in models:
            found += _of_suite(suite, model, cfg.evaluate)
    return found


def _made(cfg: Config, entry: str) -> Suite | None:
    """A suite of `evaluate.suites`; None where its data cannot be read here."""
    name, _, data = entry.partition(":")
    try:
        return registry.load(registry.SUITES, name).make(_with_prompts(cfg), data, _language(cfg))
    except (OSError, ValueError):
        return None


def _with_prompts(cfg: Config) -> Config:
    """`cfg` with prompts that are there: as many others in place of a file that is not."""
    given = cfg.evaluate.prompts
    if given.partition(":")[0] in registry.WORLDS or os.path.exists(given):
        return cfg
    others = dataclasses.replace(cfg.evaluate, prompts=EvaluateConfig.prompts, first=0)
    return dataclasses.replace(cfg, evaluate=others)


def _language(cfg: Config) -> str:
    """The language that the config's model reads, as its folder says where that is here."""
    folders = [cfg.weights] if cfg.weights else []
    folders += [registry.base_folder(cfg.model)] if cfg.model in registry.WORLDS else []
    for folder in map(epath.Path, folders):
        if (folder / GENERATION_FILE).exists():
            return generation_config.from_folder(folder).language
    return ""


def _of_suite(suite: Suite, model: str, c: EvaluateConfig) -> Asked:
    requests, more = suite.requests(model), c.think_tokens
    texts: collections.Counter[int] = collections.Counter()
    for one in requests.texts:
        texts[one.max_tokens + more] += _pictures(one)
    answers = sum(_pictures(one) for one in requests.answers)
    if suite.judged and "self" in c.judges:
        for one in suite.judge_requests(requests, suite_cost.blank(requests)):
            if one.first_token:
                answers += _pictures(one)
            else:
                texts[one.max_tokens] += _pictures(one)
    images, edits = len(requests.images), len(requests.edits)
    thoughts = images + edits if more else 0
    return Asked(images, requests.scored, answers, texts, edits, thoughts)


def _pictures(one: AnswerRequest | TextRequest | JudgeRequest) -> int:
    return max(1, len(one.images))
