"""Who does the work that `loop.py` measures: ours, and the same in plain PyTorch."""

import dataclasses
import functools
import itertools
import types
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import inference
import jax
import numpy as np
import our_step
import scoring

from srum_jax import config, flow, programs
from srum_jax.configs import shapes
from srum_jax.core import sharding
from srum_jax.data import packing, sources
from srum_jax.data.images import picture
from srum_jax.data.schema import Batch, Lanes, Regions
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import denoising
from srum_jax.generation.bagel import load
from srum_jax.generation.system_prompts import THINK_UNDERSTANDING
from srum_jax.rewards import maps, parsing, written
from srum_jax.rewards.boxes.regions import PromptedImage, Proposals, ProposedRegion
from srum_jax.rewards.judge import OK, Judgement
from srum_jax.rewards.logits import LogitJudge
from srum_jax.stages.loading import LoadedModel
from srum_jax.training import step
from srum_jax.training.state import FrozenParams, create

RELEASED, BATCHED = "PyTorch as released", "PyTorch batched"
SIDES = ("ours", "ours, written", RELEASED, BATCHED)


@dataclasses.dataclass(frozen=True)
class Work:
    """A turn: images drawn, scored and trained on; rows of a training step; steps and pixels of an
    image; think: tokens before a written answer; devices: as compute.cpu_devices."""

    folder: str
    size: tuple[int, int]
    images: int = 16
    rows: int = 4
    steps: int = 16
    think: int = 250
    devices: int = 2

    @property
    def drawing(self) -> inference.Work:
        return inference.Work(self.folder, "cpu", self.steps, self.size, 0, "default")

    @property
    def prompts(self) -> list[str]:
        return self.drawing.prompts(self.images)

    @property
    def parts(self) -> list[slice]:
        """The images of each training step."""
        return [slice(i, i + self.rows) for i in range(0, self.images, self.rows)]

    @property
    def boxes(self) -> np.ndarray:
        """The quarters of an image, [4,4] (x0, y0, x1, y1) in pixels."""
        height, width = self.size
        ys, xs = ((0, side // 2, side) for side in (height, width))
        pairs = itertools.product(itertools.pairwise(ys), itertools.pairwise(xs))
        return np.array([(x0, y0, x1, y1) for (y0, y1), (x0, x1) in pairs], np.float32)

    @property
    def answers(self) -> dict[str, int]:
        """Tokens of a written answer of each kind, thinking included."""
        words = scoring.Lengths(1)
        said = {"whole": 1, "layout": 1, "regions": len(self.boxes)}
        return {k: self.think + len(words.encode(scoring.answer(k, n))) for k, n in said.items()}

    @functools.cached_property
    def config(self) -> config.Config:
        """The demo's config with this work, every image trained on by the released loss."""
        c = config.load(shapes.get_config())
        sample = dataclasses.replace(c.sample, **self.drawing.sample, batch=self.images)
        how = dict(objective="srum_release", optim=our_step.settings().optim)
        train = dataclasses.replace(c.train, **how)
        return dataclasses.replace(c, sample=sample, train=train)


class Drawn(NamedTuple):
    """images uint8 [N,H,W,3], latents float32 [N,h,w,p·p·Z]."""

    images: np.ndarray
    latents: np.ndarray


class Side(Protocol):
    """Who does the work. Training leaves the weights that draw and score as they are."""

    def generate(self) -> Drawn: ...

    def score(self, images: np.ndarray) -> list[Regions]: ...

    def train(self, drawn: Drawn, scored: Sequence[Regions]) -> list[float]:
        """The loss of every step."""


# -------------------------------------------------------------------------------------------- ours


class Ours:
    """The package's own samplers, judges and training step, on the mesh of the demo's config."""

    def __init__(self, work: Work, in_words: bool):
        self.work, self.in_words, c = work, in_words, work.config
        self.mesh = sharding.make_mesh(c.mesh, jax.devices()[: work.devices])
        want = dict(mesh=self.mesh, dtype=np.dtype(np.float32), want=("model", "vae"))
        self.model = LoadedModel(*load(work.folder, "", **want))
        self.sampler = self.model.image_sampler(c, self.mesh)
        self.judge = self._written() if in_words else self._logits()
        at = sharding.batch_sharding(self.mesh)
        lanes = self.lanes
        sizes = programs.attending(c, self.model.cfg, self.mesh, tokens=lanes.und + lanes.gen)
        program = programs.training(c, sizes)
        how = dict(ema=c.train.ema, micro_batches=1)
        self.step = step.program(program.loss_fn, program.tx, **how)
        self.state = create(self.model.params, program.tx, program.trained, self.mesh)
        self.put = functools.partial(jax.device_put, device=at)

    @property
    def seeds(self) -> list[int]:
        return list(range(self.work.images))

    @property
    def lanes(self) -> Lanes:
        """Of a row with one image."""
        grid = tuple(side // self.model.cfg.token_pixels for side in self.work.size)
        latent = np.zeros((*grid, self.model.cfg.token_dim), np.float32)
        need = np.max([packing.size(self._example(p, latent, 0)) for p in self.work.prompts], 0)
        sizes = dict(zip(packing.LANES, need.tolist(), strict=True))
        return Lanes(**{**sizes, "regions": len(self.work.boxes)})

    def _example(self, prompt: str, latent: np.ndarray, number: int, regions=None):
        how = dict(size=self.work.size, noise_id=number, regions=regions)
        return sources.text_to_image(self.model.tokenizer, prompt, latent, **how)

    def _logits(self) -> LogitJudge:
        batch = self.work.config.score.batch
        ask = self.model.answer_scorer(self.work.config, self.mesh, batch=batch).probabilities

        def possible(images, questions, tokens, params=None):  # to small models most are not
            return [[np.ones_like(p) for p in row] for row in ask(images, questions, tokens)]

        return LogitJudge(types.SimpleNamespace(probabilities=possible), self.model.tokenizer)

    def _written(self) -> written.WrittenJudge:
        cfg = dataclasses.replace(self.model.cfg, eos=-1, max_text=scoring.WINDOW)  # to the limit
        words, longest = scoring.Lengths(cfg.llm.vocab), max(self.work.answers.values())
        endless = dataclasses.replace(self.model, cfg=cfg, tokenizer=words)
        batch = dict(batch=2 * self.work.images, window=scoring.WINDOW)
        writer = endless.text_generator(self.work.config, self.mesh, **batch)
        how = dict(window=scoring.WINDOW, max_text=scoring.WINDOW, max_tokens=longest)
        source = written.ModelText(writer, cfg.layout, words, **how)
        return written.WrittenJudge(source, scoring.SETTINGS)

    def generate(self) -> Drawn:
        with jax.set_mesh(self.mesh):
            return Drawn(*self.sampler.sample_prompts(self.work.prompts, self.seeds))

    def score(self, images: np.ndarray) -> list[Regions]:
        prompted = [
            PromptedImage(i, p, str(n))
            for n, (i, p) in enumerate(zip(images, self.work.prompts, strict=True))
        ]
        quarters = tuple(ProposedRegion(tuple(box)) for box in self.work.boxes.tolist())
        with jax.set_mesh(self.mesh):
            proposals = Proposals(prompted, [quarters] * len(images), "quarters", False)
            return [self._scored(one) for one in self.judge.judge(proposals)]

    def _scored(self, one: Judgement) -> Regions:
        if self.in_words:  # what a small model writes holds no scores
            return answered(self.work)
        if {one.image_status, *(r.status for r in one.regions)} != {OK}:
            raise RuntimeError(f"not all was asked: {one}")
        scores = np.array([r.score for r in one.regions], np.float32)
        return Regions(self.work.boxes, scores, one.image_score)

    def batch(self, drawn: Drawn, scored: Sequence[Regions], part: slice) -> Batch:
        """The rows of a training step, an image a row."""
        rows = []
        for n in range(*part.indices(len(scored))):
            one = self._example(self.work.prompts[n], drawn.latents[n], n, scored[n])
            rows.append([one])
        return packing.pack(rows, self.lanes, self.model.cfg.layout, rewards=True)

    def train(self, drawn: Drawn, scored: Sequence[Regions]) -> list[float]:
        losses, key = [], jax.random.key(0)
        with jax.set_mesh(self.mesh):
            for part in self.work.parts:
                data = self.put(self.batch(drawn, scored, part))
                self.state, metrics = self.step(self.state, FrozenParams({}, None), data, key)
                losses.append(metrics["loss"])
            jax.block_until_ready(self.state)
        return [float(loss) for loss in losses]

    # What it draws at random, for PyTorch to be compared with.

    def noise(self) -> np.ndarray:
        """Of its images, [N,G,p·p·Z]."""
        grids = [tuple(side // self.model.cfg.token_pixels for side in self.work.size)]
        grid = denoising.empty_grid(grids * self.work.images, self.work.images, self.layout)
        noise = denoising.start_noise(np.array(self.seeds, np.uint32), grid)
        return np.array(noise[:, : np.prod(grids[0])])

    @property
    def layout(self):
        return self.model.cfg.layout

    def draws(self, drawn: Drawn, scored: Sequence[Regions]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(times [rows], noise [rows·G,p·p·Z]) of its first steps."""
        c, found = self.work.config.train, []
        rule = dict(mean=c.timestep_mean, std=c.timestep_std, shift=c.timestep_shift)
        for number, part in enumerate(self.work.parts):
            key = jax.random.fold_in(jax.random.key(0), number)
            one = flow.draw(self.batch(drawn, scored, part), key, **rule)
            noise = np.array(one.noise)
            found.append((np.asarray(one.t)[:, 0], noise.reshape(-1, noise.shape[-1])))
        return found


def answered(work: Work) -> Regions:
    """The scores in answers of the form that is asked for."""
    numbers = tuple(range(1, len(work.boxes) + 1))
    regions = parsing.parse(scoring.answer("regions", len(numbers)), numbers).scores
    whole = parsing.parse(scoring.answer("whole"), (parsing.WHOLE,)).scores
    scores = np.array([regions[n][0] for n in numbers], np.float32)
    return Regions(work.boxes, scores, whole[parsing.WHOLE][0])


# ----------------------------------------------------------------------------------------- PyTorch


class Theirs:
    """The model in plain PyTorch (`torch_bagel.py`, `torch_train.py`), `together` images a call."""

    def __init__(self, work: Work, together: int):
        import torch
        import torch_bagel
        import torch_train

        self.work, self.together, self.rng = work, together, np.random.default_rng(0)
        self.model, self.decoder = torch_bagel.load(work.folder)
        self.cfg = self.model.cfg
        self.words = Tokenizer.from_folder(work.folder)
        how = dict(device="cpu", dtype=torch.float32)
        optim = work.config.train.optim
        self.pack = functools.partial(torch_train.pack, cfg=self.cfg, **how)
        self.step = torch_train.trainer(
            self.cfg,
            torch_train.used(self.model.state_dict()),
            optim,
            **how,
            remat=False,
            compiled=False,
        )

    def _groups(self, items: Sequence) -> list[Sequence]:
        return [items[i : i + self.together] for i in range(0, len(items), self.together)]

    def _marked(self, ids: Sequence[int]) -> np.ndarray:
        return np.array([self.cfg.bos, *ids, self.cfg.eos])

    def generate(self, noise: np.ndarray | None = None) -> Drawn:
        import torch
        import torch_bagel

        grid = tuple(side // self.cfg.token_pixels for side in self.work.size)
        how = {k: v for k, v in self.work.drawing.sample.items() if k != "size"}
        settings, found = torch_bagel.Settings(**how), []
        texts = [self._marked(self.words.encode(p)) for p in self.work.prompts]
        if noise is None:
            shape = (len(texts), grid[0] * grid[1], self.cfg.token_dim)
            noise = torch.randn(shape).numpy()
        with torch.inference_mode():
            for read, x in zip(self._groups(texts), self._groups(noise), strict=True):
                context = self.model.read_text(self.model.empty(len(read)), read)
                latents = self.model.latents(context, torch.as_tensor(x), grid, settings)[-1]
                pixels = torch_bagel.pixels(self.decoder, self.cfg, latents, grid)
                found.append((pixels.numpy(), latents.numpy()))
        images, latents = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return Drawn(images, latents.reshape(len(texts), *grid, -1))

    def score(self, images: np.ndarray) -> list[Regions]:
        boxes = {n: tuple(box) for n, box in enumerate(self.work.boxes.tolist(), start=1)}
        for part in self._groups(list(zip(images, self.work.prompts, strict=True))):
            self._write([written.whole_request(*one, "layout") for one in part], "layout")
            asked = [written.regions_request(*one, boxes, "coordinates") for one in part]
            self._write(asked, "regions")
        return [answered(self.work) for _ in images]

    def _write(self, requests: Sequence[written.QuestionRequest], kind: str) -> None:
        import torch

        model, lengths = self.model, scoring.Lengths(self.cfg.llm.vocab)
        shown = [picture(one.image, self.cfg.layout) for one in requests]
        think = self._marked(lengths.encode(THINK_UNDERSTANDING))
        texts = [self._marked(lengths.encode(one.text)) for one in requests]
        with torch.inference_mode():
            context = model.read_text(model.empty(len(requests)), [think] * len(requests))
            patches, ids = [p.patches for p in shown], [p.positions for p in shown]
            context = model.read_text(model.read_pictures(context, patches, ids), texts)
            model.greedy(context, self.work.answers[kind])

    def train(
        self, drawn: Drawn, scored: Sequence[Regions], draws: Sequence[tuple] | None = None
    ) -> list[float]:
        """draws: times and noise of every step; its own if None."""
        import torch

        losses, samples = [], [self.words.encode(p) for p in self.work.prompts]
        for number, part in enumerate(self.work.parts):
            texts, latents = samples[part], drawn.latents[part]
            if draws is None:
                times, noise = 1 / (1 + np.exp(-self.rng.standard_normal(len(texts)))), None
            else:
                times, noise = draws[number][0], torch.as_tensor(draws[number][1])
            weights = np.concatenate([self._weights(one, latents[0]) for one in scored[part]])
            weights = weights + self.work.config.train.lambda_constraint
            data = self.pack(list(zip(texts, latents, strict=True)), times, weights=weights)
            losses.append(self.step(data, noise)[0])
        return [float(loss) for loss in losses]

    def _weights(self, one: Regions, latent: np.ndarray) -> np.ndarray:
        """The released map of an image at its tokens, [h·w]."""
        import torch

        valid = np.ones(len(one.scores), bool)
        dense = maps.release_map(one.boxes, one.scores, valid, one.image_score, self.work.size)
        at, resized = torch.as_tensor(dense)[None, None], torch.nn.functional.interpolate
        return resized(at, latent.shape[:2], mode="bilinear").numpy().ravel()


def side(name: str, work: Work) -> Side:
    if name.startswith("ours"):
        return Ours(work, in_words=name.endswith("written"))
    return Theirs(work, 1 if name == RELEASED else work.images)
