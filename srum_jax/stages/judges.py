"""Who scores, as a run's `score` section says: proposers, read-outs and judges put together.

Owns that wiring alone. A `JudgePanel` looks at candidates and gives their judgements; the stages
`score` and `evaluate` share it, so that both judge alike.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from tqdm import tqdm

from srum_jax.config import Config, ScoreConfig
from srum_jax.core.files import read_json, write_json
from srum_jax.generation import context
from srum_jax.generation.text_generator import GeneratedText, TextGenerator
from srum_jax.rewards import decompose, ensemble, external, judge, question_templates, written
from srum_jax.rewards.boxes import proposers, regions
from srum_jax.rewards.boxes.regions import Limits, PromptedImage, Proposer
from srum_jax.rewards.boxes.sam import automatic as sam_automatic
from srum_jax.rewards.boxes.sam import weights as sam_weights
from srum_jax.rewards.judge import Judgement, RegionJudgement
from srum_jax.rewards.question_templates import Decomposition
from srum_jax.stages import loading
from srum_jax.stages.loading import LoadedModel

WINDOW = 8192  # tokens of a context that is written about
TOLD = 192  # tokens of a prompt taken apart
AT_ONCE = 64  # prompts between two writes of those taken apart

# judge(seen, proposer, whole) -> judgements; whole False leaves out the image's own score.
Judge = Callable[..., list[Judgement]]
Scenes = Mapping[str, Decomposition]


@dataclasses.dataclass(frozen=True)
class JudgePanel:
    """A judge, `proposers`, the first of which makes the image's score, `other`, name and judge
    that some candidates are compared by, or None, and `counts` of what was met on the way."""

    judge: Judge
    proposers: tuple[Proposer, ...]
    other: tuple[str, Judge] | None
    counts: collections.Counter


def bench(
    opened: LoadedModel,
    cfg: Config,
    mesh: jax.sharding.Mesh,
    *,
    scenes: Scenes | None = None,
    seed: int = 0,
) -> JudgePanel:
    """Judges and proposers of a run. `opened` needs no autoencoder; scenes: prompts taken apart.

    Raises FileNotFoundError or ValueError for weights, boxes or an endpoint that cannot be used.
    """
    c = cfg.score
    counts: collections.Counter = collections.Counter()
    write = _speaker(opened, cfg, mesh)
    how = written.Readout(
        view=c.view,
        margin=c.margin,
        attempts=c.written.attempts,
        temperature=c.written.temperature,
        seed=seed,
    )
    ask = opened.answer_scorer(cfg, mesh, batch=c.batch).probabilities

    def reads(
        seen: Sequence[PromptedImage], proposer: Proposer, whole: bool = True
    ) -> list[Judgement]:
        known = dict(margin=c.margin, side=c.crop, view=c.view, verify=c.verify, scenes=scenes)
        if whole:
            return judge.judge_images(ask, opened.tokenizer, seen, proposer, **known)
        return _regions(judge.judge_regions(ask, opened.tokenizer, seen, proposer, **known))

    def writing(write: written.Write) -> Judge:
        def writes(seen: Sequence[PromptedImage], proposer: Proposer, whole: bool = True):
            if whole:
                return written.judge_images(write, seen, proposer, how, counts=counts)
            return _regions(written.judge_regions(write, seen, proposer, how, counts=counts))

        return writes

    own, second = (reads, writing(write)) if c.readout == "logits" else (writing(write), reads)
    chosen = own
    if c.judge != "self" or (c.compare and c.external.url):
        outside = writing(external.writer(endpoint(c), counts=counts))
    if c.judge == "external":
        chosen = outside
    other = None
    if c.compare and c.external.url and c.judge == "self":
        other = (f"{c.external.model}, an external judge", outside)
    elif c.compare:
        other = (
            "its other read-out, in words"
            if second is not reads
            else "its other read-out, soft answers",
            second,
        )
    if c.judge == "ensemble":

        def chosen(seen: Sequence[PromptedImage], proposer: Proposer, whole: bool = True):
            views = [one(seen, proposer, whole) for one in (own, outside)]
            return [one.judgement for one in ensemble.combine(views, least=c.min_judges)]

    return JudgePanel(
        judge=chosen,
        proposers=tuple(proposer(name, c, write, scenes) for name in c.proposers),
        other=other,
        counts=counts,
    )


def _regions(found: Sequence[tuple[RegionJudgement, ...]]) -> list[Judgement]:
    """Judgements of regions alone."""
    return [Judgement(one, float("nan"), judge.NOT_ASKED, {}) for one in found]


def _speaker(opened: LoadedModel, cfg: Config, mesh: jax.sharding.Mesh) -> written.Write:
    c = cfg.score.written
    return written.speaker(
        _generator(opened, cfg, mesh, c.batch).generate,
        opened.cfg,
        opened.tokenizer,
        window=WINDOW,
        max_tokens=c.max_tokens,
        think=c.think,
    )


def _generator(
    loaded: LoadedModel, cfg: Config, mesh: jax.sharding.Mesh, batch: int
) -> TextGenerator:
    return loaded.text_generator(cfg, mesh, batch=batch, window=WINDOW)


def endpoint(c: ScoreConfig) -> external.Endpoint:
    """The external judge's."""
    e = c.external
    return external.Endpoint(
        base_url=e.url,
        model=e.model,
        key_env=e.key_env,
        timeout=e.timeout,
        attempts=e.attempts,
        concurrency=e.concurrency,
        max_tokens=c.written.max_tokens,
    )


def limits(c: ScoreConfig) -> Limits:
    """What is kept of every proposer's regions."""
    return Limits(c.min_area, c.max_area, c.overlap, c.regions)


def proposer(name: str, c: ScoreConfig, write: written.Write, scenes: Scenes | None) -> Proposer:
    """The named proposer of a run."""
    kept = limits(c)
    make = {
        "components": lambda: regions.components(kept),
        "grid": lambda: regions.grid(c.grid, kept),
        "self": lambda: proposers.grounded(write, scenes, kept),
        "file": lambda: proposers.listed(c.boxes, kept),
        "sam": lambda: proposers.segmented(_sam(c), kept),
    }
    return make[name]()


def simple(c: ScoreConfig) -> Proposer:
    """The first proposer if it needs nothing but pixels, otherwise the grid: for pictures that are
    only looked at on the way."""
    kept = limits(c)
    components = c.proposers[0] == "components"
    return regions.components(kept) if components else regions.grid(c.grid, kept)


def _sam(c: ScoreConfig) -> sam_automatic.Automatic:
    settings = sam_automatic.Settings(
        points_per_side=c.sam.points,
        points_per_batch=c.sam.batch,
        pred_iou=c.sam.min_iou,
        stability=c.sam.min_stability,
    )
    return sam_automatic.automatic(*sam_weights.load(c.sam.weights), settings)


def fingerprints(cfg: Config) -> dict[str, str]:
    """Hashes of what judging depends on beside the candidates and the config: the wording of the
    read-outs in use, and the files of proposers."""
    c, found = cfg.score, {}
    logits = c.judge != "external" and c.readout == "logits"
    if logits or c.compare:
        found["protocol"] = question_templates.protocol_hash()
        found["decompose"] = decompose.decompose_hash()
    if not logits or c.compare or c.judge == "ensemble":
        found["written"] = written.protocol_hash()
    if "sam" in c.proposers:
        found["sam"] = loading.fingerprint(epath.Path(c.sam.weights))
    if "file" in c.proposers:
        found["boxes"] = proposers.digest(c.boxes)
    if "self" in c.proposers:
        found["grounding"] = proposers.grounding_hash()
    return found


# --------------------------------------------------------------------------- prompts taken apart


def scenes(
    prompts: Sequence[str],
    opened: LoadedModel,
    cfg: Config,
    mesh: jax.sharding.Mesh,
    path: epath.PathLike,
) -> dict[str, Decomposition] | None:
    """{prompt: what it demands}, kept in the JSON file `path` and made once.

    None for a model of few words, whose prompts the grammar reads: nothing is asked.
    """
    if opened.tokenizer.word_level:
        return None
    path = epath.Path(path)
    found = {p: _from_json(s) for p, s in read_json(path).items()} if path.exists() else {}
    left = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
    generator = _generator(opened, cfg, mesh, cfg.score.written.batch)
    tell = teller(generator, opened)
    first = jax.process_index() == 0
    with tqdm(total=len(left), desc="score, prompts", dynamic_ncols=True, disable=not first) as bar:
        for start in range(0, len(left), AT_ONCE):
            part = left[start : start + AT_ONCE]
            found |= decompose.take_apart(part, tell)
            if first:
                write_json(path, {p: dataclasses.asdict(s) for p, s in found.items()})
            bar.update(len(part))
    counts = collections.Counter(scene.source for scene in found.values())
    logging.info("score: prompts taken apart by %s", dict(counts))
    return found


def teller(generator: TextGenerator, opened: LoadedModel) -> decompose.Tell:
    """The model continuing texts, without a picture; nothing where one is too long for it."""

    def fits(one: context.Context) -> bool:
        try:
            context.check_window(one, TOLD + 1, opened.cfg, WINDOW)
        except ValueError:
            return False
        return True

    def tell(texts: Sequence[str]) -> list[GeneratedText]:
        contexts = [(opened.tokenizer.text(one),) for one in texts]
        able = [place for place, one in enumerate(contexts) if fits(one)]
        said = [GeneratedText("", (), False)] * len(texts)
        if able:
            told = generator.generate([contexts[i] for i in able], max_tokens=TOLD)
            for place, one in zip(able, told, strict=True):
                said[place] = one
        return said

    return tell


def _from_json(value: Mapping[str, Any]) -> Decomposition:
    relation = value["relation"]
    return Decomposition(
        caption=value["caption"],
        objects=tuple(question_templates.ObjectSpec(**one) for one in value["objects"]),
        relation=question_templates.Relation(**relation) if relation else None,
        open=value["open"],
        source=value["source"],
    )


def look(made: JudgePanel, seen: Sequence[PromptedImage]) -> list[Judgement]:
    """Judgements by the first proposer, with the regions of the others behind its own."""
    main, *others = made.proposers
    judged = made.judge(seen, main, True)
    more = [made.judge(seen, how, False) for how in others]
    return [
        dataclasses.replace(
            one, regions=(*one.regions, *(region for view in extra for region in view.regions))
        )
        for one, *extra in zip(judged, *more, strict=True)
    ]
