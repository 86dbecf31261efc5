"""What a run computes: the calls of each stage, with their operations and what they read.

Counted from the config and the sizes of the model alone, in a moment: no program is made. What
only a run can know is taken at its most: every image has `score.regions` regions, every written
answer all its tokens; what suites ask is in `evaluation_requests.py`. Left out, as they are a small
part of any run that draws: Segment Anything (about 10 TFLOP an image with ViT-H, where drawing one
of 1024x1024 takes 5,400), the autoencoder's look at pictures to edit, prompts that are taken apart,
answers that are asked for again, `score.compare`.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from srum_jax import programs
from srum_jax.config import Config, SampleConfig, TrainConfig
from srum_jax.core import param_tree
from srum_jax.core.errors import BadInput
from srum_jax.data.images import picture
from srum_jax.data.schema import Branch, Example, Text
from srum_jax.generation import answer_scorer, context, families
from srum_jax.generation.context import bucket, fine_bucket
from srum_jax.generation.guidance import Guidance
from srum_jax.generation.image_codec import latent_grid
from srum_jax.models.bagel import cost, vae
from srum_jax.models.bagel.cost import RowTokens
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.planning import evaluation_requests
from srum_jax.planning.evaluation_requests import Asked

PROMPT = 64  # tokens of a prompt that is drawn
QUESTIONS, QUESTION = 16, 16  # about a picture that is scored, and tokens of each


@dataclasses.dataclass(frozen=True)
class Work:
    """What one call does on all its chips together: operations, and bytes of weights and of caches
    that it reads from their memory."""

    flops: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Calls:
    """Like calls of a program in a whole run.

    chips: that share one call · beside: such groups of chips, which take the calls in turn · dtype:
    of products.
    """

    program: str
    count: int
    work: Work
    chips: int
    beside: int
    dtype: str


@dataclasses.dataclass(frozen=True)
class Team:
    """Chips that work: all of them together in a step, each host's by themselves in the rest."""

    chips: int
    beside: int = 1


# ---------------------------------------------------------------------------- one call of a program


def sampling(
    sizes: BagelConfig,
    settings: SampleConfig,
    *,
    texts: int,
    slots: int,
    tokens: int,
    itemsize: int = 2,
    chips: int = 1,
) -> Work:
    """A call that draws `settings.batch` images: reads the contexts once, then a pass a step for
    each branch of guidance.

    texts: tokens of a context's row · slots: of its cache · tokens: latent ones of an image, both
    padded · itemsize: bytes of a weight · chips: that gather the weights, so that each reads all.
    """
    on = Guidance.of(settings)
    before = RowTokens(texts, 0)
    behind = RowTokens(und=2, gen=tokens, keys=slots + tokens + 2)
    how = dict(branches=1 + on.text + (on.image and not on.text), itemsize=itemsize, chips=chips)
    return _denoised(sizes, settings, before, behind, **how)


def _denoised(
    sizes: BagelConfig,
    settings: SampleConfig,
    before: RowTokens,
    behind: RowTokens,
    *,
    branches: int,
    itemsize: int,
    chips: int,
) -> Work:
    """A call that reads rows of `before` once, then `behind` a step, of guided ones once a
    branch."""
    on = Guidance.of(settings)
    passes = sum((last - first) * (branches if guided else 1) for guided, first, last in on.runs)
    flops = cost.forward(sizes, before) + passes * cost.forward(sizes, behind)
    weights = cost.matrices(sizes, before) + settings.steps * cost.matrices(sizes, behind)
    return Work(settings.batch * flops, chips * itemsize * weights)


def reading(
    sizes: BagelConfig, work: RowTokens, rows: int, *, itemsize: int = 2, chips: int = 1
) -> Work:
    """A call that reads `rows` rows of pictures and questions once."""
    weights = cost.matrices(sizes, work)
    return Work(rows * cost.forward(sizes, work), chips * itemsize * weights)


def writing(
    sizes: BagelConfig,
    first: RowTokens,
    one: RowTokens,
    rows: int,
    limit: int,
    *,
    itemsize: int = 2,
) -> Work:
    """A call that reads `rows` contexts of `first` tokens and writes `limit` tokens behind each.

    one: a written token, with the keys that it sees. Of few tokens products are summed over the
    chips, so that together they read the weights once a token, beside keys and values.
    """
    flops = cost.forward(sizes, first) + limit * cost.forward(sizes, one)
    read = cost.matrices(sizes, one) + rows * one.keys * cost.cached(sizes)
    return Work(rows * flops, itemsize * (cost.matrices(sizes, first) + limit * read))


def to_draw(sizes: BagelConfig, thought: int = 0) -> tuple[Text, ...]:
    """What an image is drawn behind: a prompt of PROMPT tokens or, with a plan of `thought`, the
    text that asks for it, the prompt and the plan."""
    lengths = (PROMPT, PROMPT, thought) if thought else (min(PROMPT, sizes.max_text - 2),)
    return tuple(Text(np.zeros(length, np.int32)) for length in lengths)


def thought(cfg: Config) -> int:
    """The longest plan in words, in tokens, before an image of a run; 0: none is written."""
    examined = {"evaluate", "adjust"} & set(cfg.stages)
    longest = cfg.generate.think_tokens if cfg.generate.think else 0
    return max(longest, cfg.evaluate.think_tokens if examined else 0)


def drawing(
    sizes: BagelConfig,
    settings: SampleConfig,
    *,
    itemsize: int = 2,
    chips: int = 1,
    thought: int = 0,
) -> Work:
    """`sampling` behind `to_draw`; of the branches as much is read as of the longest."""
    height, width = latent_grid(settings.size, sizes.layout)
    texts = bucket(context.extent(to_draw(sizes, thought))[0])
    how = dict(texts=texts, slots=texts, tokens=fine_bucket(height * width))
    return sampling(sizes, settings, **how, itemsize=itemsize, chips=chips)


def asking(
    sizes: BagelConfig, size: tuple[int, int], rows: int, *, itemsize: int = 2, chips: int = 1
) -> Work:
    """A call that reads `rows` pictures of `size` pixels with QUESTIONS about each."""
    return reading(sizes, asked(sizes, size)[1], rows, itemsize=itemsize, chips=chips)


def answering(
    sizes: BagelConfig, size: tuple[int, int], rows: int, limit: int, *, itemsize: int = 2
) -> Work:
    """A call that writes `limit` tokens about each of `rows` pictures of `size` pixels."""
    return writing(sizes, *written_rows(sizes, size, limit), rows, limit, itemsize=itemsize)


def thinking(sizes: BagelConfig, rows: int, limit: int, *, itemsize: int = 2) -> Work:
    """A call that writes plans of at most `limit` tokens behind the text that asks for them and
    `rows` prompts."""
    before = behind(sizes, to_draw(sizes, 1)[:2], limit)
    return writing(sizes, *before, rows, limit, itemsize=itemsize)


def editing(
    sizes: BagelConfig, settings: SampleConfig, *, itemsize: int = 2, chips: int = 1
) -> Work:
    """A call that draws `settings.batch` pictures anew: reads each with its instruction, then three
    passes a guided step, all behind as much as the longest of them."""
    seen = picture(np.zeros((*settings.size, 3), np.uint8), sizes.layout)
    height, width = latent_grid(settings.size, sizes.layout)
    drawn, looked = fine_bucket(height * width), fine_bucket(len(seen.positions))
    words = bucket(QUESTION + 2)
    before = RowTokens(und=looked + words, gen=drawn, vit=looked, times=1)
    behind = RowTokens(und=2, gen=drawn, keys=2 * drawn + looked + words + 2)
    how = dict(branches=3, itemsize=itemsize, chips=chips)
    return _denoised(sizes, settings, before, behind, **how)


def decoding(sizes: BagelConfig, size: tuple[int, int]) -> Work:
    """The autoencoder's decoder on one image of `size` (height, width) pixels, in float32."""
    weights = param_tree.count(vae.specs(sizes.vae)["decoder"])
    return Work(cost.decode(sizes.vae, size), 4 * weights)


def step_row(c: TrainConfig) -> RowTokens:
    """A packed row of the stage `train`."""
    lanes = programs.lanes(c)
    return RowTokens(
        und=lanes.und, gen=lanes.gen, vit=lanes.vit, times=lanes.images, labels=lanes.labels
    )


def step(cfg: Config, sizes: BagelConfig, made: programs.Training) -> tuple[int, int]:
    """(operations of a training step, those of them that the mathematics needs)."""
    flops, needed = families.of(sizes).cost.step(
        sizes,
        step_row(cfg.train),
        trained=made.trained,
        remat=cfg.compute.remat,
        compared=made.compared,
    )
    return cfg.train.rows * flops, cfg.train.rows * needed


def asked(sizes: BagelConfig, size: tuple[int, int]) -> tuple[Example, RowTokens]:
    """(a picture of `size` pixels with the questions that are asked about it by soft answers, its
    row)."""
    seen = picture(np.zeros((*size, 3), np.uint8), sizes.layout)
    question, answer = Text(np.zeros(QUESTION, np.int32)), Text(np.zeros(0, np.int32), loss=True)
    example = Example((seen, *(Branch((question, answer)),) * QUESTIONS))
    lanes = answer_scorer.lanes([example])
    return example, RowTokens(lanes.und, 0, vit=lanes.vit, labels=lanes.labels)


# ----------------------------------------------------------------------------- the calls of a stage


def counting(sizes: Any) -> ModuleType:
    """Who counts the calls of a model of these sizes."""
    return importlib.import_module(families.of(sizes).WORKLOAD)


def in_shards(count: int, shard: int, batch: int) -> int:
    """Calls of `batch` that `count` take where no call serves two shards."""
    whole, rest = divmod(count, shard)
    return whole * -(-shard // batch) + -(-rest // batch)


@dataclasses.dataclass(frozen=True)
class Workload:
    """The calls of a config's stages on `chips` chips that belong to `hosts` hosts.

    sizes: of its model. What cannot be drawn at all (a size the model has no positions for) raises
    ValueError.
    """

    cfg: Config
    sizes: BagelConfig
    chips: int
    hosts: int = 1

    @property
    def own(self) -> Team:
        """Each host's chips by themselves."""
        return Team(self.chips // self.hosts, self.hosts)

    def of(self, stage: str) -> list[Calls] | None:
        """The calls of all rounds of a stage; [] of one that computes next to nothing, None where
        they are not counted: a world or data that is not here decides them."""
        counted: Mapping[str, Callable[[], Sequence[Calls] | None]] = {
            "generate": self._generate,
            "score": self._score,
            "train": self._train,
            "evaluate": lambda: self._examined("evaluate"),
            "adjust": lambda: self._examined("adjust"),
            "export": list,
            "report": list,
        }
        given = stage == "score" and "ingest" in self.cfg.stages
        calls = None if stage not in counted or given else counted[stage]()
        if calls is None:
            return None
        rounds = self.cfg.rounds
        return [dataclasses.replace(c, count=rounds * c.count) for c in calls]

    def _generate(self) -> list[Calls]:
        c = self.cfg.generate
        thought = c.think_tokens if c.think else 0
        how = dict(thought=thought, steps=c.steps)
        drawn = self._drawn(c.count * c.candidates, c.shard_size, self.own, **how)
        plans = [self._thought(c.count, thought, self.cfg.sample.batch)] if thought else []
        edits = self._edited("generate", c.edit_count) if c.edits else []
        return [*plans, *drawn, *edits]

    def _score(self) -> list[Calls]:
        c = self.cfg.generate
        images, shard = c.count * c.candidates, self.cfg.score.shard_size
        return self._judged(images, shard, self.cfg.score.proposers, self.own)

    def _train(self) -> list[Calls]:
        c, remat = self.cfg.train, self.cfg.compute.remat
        made = programs.training(self.cfg, self.sizes)
        flops, _ = step(self.cfg, self.sizes, made)
        # Forward and backward, and what is computed again: the weights each time.
        passes = 2 + (remat != "none") + made.compared
        matrices = families.of(self.sizes).cost.matrices(self.sizes, step_row(c))
        weights = self._itemsize * matrices
        work = Work(flops, passes * c.micro_batches * self.chips * weights)
        steps = Calls("train_step", c.steps, work, self.chips, 1, self.cfg.compute.dtype)
        return [steps, *self._monitored()]

    def _monitored(self) -> list[Calls]:
        """The checks before the first step, every so many, and after the last."""
        c = self.cfg.train
        images, every = c.monitor.prompts * c.monitor.candidates, c.monitor.every
        if not images:
            return []
        together = Team(self.chips)
        once = [
            *self._drawn(images, images, together),
            *self._judged(images, images, self.cfg.score.proposers[:1], together),
        ]
        checks = 1 + -(-c.steps // every)
        return [dataclasses.replace(one, count=checks * one.count) for one in once]

    def asked(self, stage: str) -> Asked:
        """What `evaluate` or `adjust` asks in a round; nothing where it is another stage."""
        return self._asked[stage] if stage in self._asked else Asked()

    @functools.cached_property
    def _asked(self) -> dict[str, Asked]:
        stages = [one for one in ("evaluate", "adjust") if one in self.cfg.stages]
        return {one: evaluation_requests.of_stage(self.cfg, one) for one in stages}

    def _examined(self, stage: str) -> list[Calls] | None:
        """The calls of what is asked; None where nothing of it is known."""
        asked, c, team, calls = self.asked(stage), self.cfg, self.own, []
        if asked == Asked(missing=asked.missing) and asked.missing:
            return None
        if asked.thoughts:
            calls.append(self._thought(asked.thoughts, c.evaluate.think_tokens, c.evaluate.batch))
        if asked.images:
            shard, thought = c.generate.shard_size, c.evaluate.think_tokens
            calls += self._drawn(asked.images, shard, team, thought=thought)
        if asked.scored:
            own = dataclasses.replace(c, score=dataclasses.replace(c.score, judge="self"))
            proposers = c.score.proposers[: 1 if "score" in c.stages else None]
            judging = dataclasses.replace(self, cfg=own)
            calls += judging._judged(asked.scored, c.score.shard_size, proposers, team)
        size, batch, count = c.sample.size, c.evaluate.batch, counting(self.sizes)
        few = dict(itemsize=self._itemsize)
        if asked.answers:
            work = count.asking(self.sizes, size, batch, **few, chips=team.chips)
            calls.append(self._calls("answer", asked.answers, batch, work, team))
        for limit, texts in sorted(asked.texts.items()):
            work = count.answering(self.sizes, size, batch, bucket(limit), **few)
            calls.append(self._calls(f"write {limit}", texts, batch, work, team))
        if asked.edits:
            calls += self._edited(stage, asked.edits)
        return calls

    def _edited(self, stage: str, edits: int) -> list[Calls]:
        """Pictures edited together and decoded one by one."""
        if why := families.of(self.sizes).ONLY_WORDS:
            raise BadInput(f"{stage}: pictures are to be edited: {why}")
        c, team = self.cfg.sample, self.own
        work = editing(self.sizes, c, itemsize=self._itemsize, chips=team.chips)
        decoded, alone = counting(self.sizes).decoding(self.sizes, c.size), team.beside * team.chips
        return [
            self._calls("edit", edits, c.batch, work, team),
            Calls("decode edits", edits, decoded, 1, alone, "float32"),
        ]

    def _drawn(
        self, images: int, shard: int, team: Team, *, thought: int = 0, steps: int = 0
    ) -> list[Calls]:
        """Images drawn together and decoded one by one, each on a device of its own; thought:
        tokens of the plans that they are drawn behind; steps: of each, 0: sample.steps."""
        c, dtype, count = self.cfg.sample, self.cfg.compute.dtype, counting(self.sizes)
        c = dataclasses.replace(c, steps=steps or c.steps)
        how: dict[str, Any] = dict(itemsize=self._itemsize, chips=team.chips)
        how |= {"thought": thought} if thought else {}
        drawn = count.drawing(self.sizes, c, **how)
        calls = in_shards(images, shard, c.batch)
        decoded = count.decoding(self.sizes, c.size)
        return [
            Calls("sample", calls, drawn, team.chips, team.beside, dtype),
            Calls("decode", images, decoded, 1, team.beside * team.chips, "float32"),
        ]

    def _judged(self, images: int, shard: int, proposers: Sequence[str], team: Team) -> list[Calls]:
        """What the model itself is asked about images and the regions of `proposers`."""
        c = self.cfg.score
        if c.judge == "external":
            return []
        found = [c.grid**2 if name == "grid" else c.regions for name in proposers]
        regions = sum(min(c.regions, count) for count in found)
        if c.readout == "written":
            asked_of = 2 + (regions if c.view == "crop" else len(found))
            return [self._written(images * asked_of, team)]
        part = (c.crop, c.crop) if c.crop and c.view == "crop" else self.cfg.sample.size
        return [
            self._soft("score", in_shards(images, shard, c.batch), self.cfg.sample.size, team),
            self._soft(
                "score regions", in_shards(images * regions, shard * regions, c.batch), part, team
            ),
        ]

    def _soft(self, name: str, calls: int, size: tuple[int, int], team: Team) -> Calls:
        """Soft answers about pictures of `size`."""
        rows, how = self.cfg.score.batch, dict(itemsize=self._itemsize, chips=team.chips)
        work = counting(self.sizes).asking(self.sizes, size, rows, **how)
        return Calls(name, calls, work, team.chips, team.beside, self.cfg.compute.dtype)

    def _written(self, answers: int, team: Team) -> Calls:
        """Answers in words, each about a whole picture and as long as it may be."""
        c, limit = self.cfg.score.written, bucket(self.cfg.score.written.max_tokens)
        size, how = self.cfg.sample.size, dict(itemsize=self._itemsize)
        work = counting(self.sizes).answering(self.sizes, size, c.batch, limit, **how)
        return self._calls("write", answers, c.batch, work, team)

    def _thought(self, prompts: int, limit: int, batch: int) -> Calls:
        """Plans of prompts, each as long as it may be."""
        work = thinking(self.sizes, batch, bucket(limit), itemsize=self._itemsize)
        return self._calls("write", prompts, batch, work, self.own)

    def _calls(self, program: str, items: int, batch: int, work: Work, team: Team) -> Calls:
        """Calls for so many items, `batch` of them in each."""
        dtype = self.cfg.compute.dtype
        return Calls(program, -(-items // batch), work, team.chips, team.beside, dtype)

    @property
    def _itemsize(self) -> int:
        return jnp.dtype(self.cfg.compute.dtype).itemsize


def written_rows(
    sizes: BagelConfig, size: tuple[int, int], limit: int
) -> tuple[RowTokens, RowTokens]:
    """(what is read of a picture of `size` pixels before an answer in words, one of at most `limit`
    written tokens)."""
    return behind(sizes, written_context(sizes, size), limit)


def behind(sizes: BagelConfig, read: context.Context, limit: int) -> tuple[RowTokens, RowTokens]:
    """(what is read, one of at most `limit` tokens that are written behind it)."""
    packed = context.pack([read], 1, sizes.layout)
    first = RowTokens(packed.und.segment.shape[1], 0, vit=packed.vit_positions.shape[1])
    return first, RowTokens(1, 0, keys=context.capacity(packed, limit + 1) + 1, labels=1)


def written_context(sizes: BagelConfig, size: tuple[int, int]) -> context.Context:
    """A picture of `size` pixels, and as many words as the questions of soft answers have."""
    seen = picture(np.zeros((*size, 3), np.uint8), sizes.layout)
    return (seen, *(Text(np.zeros(QUESTION, np.int32)),) * QUESTIONS)
