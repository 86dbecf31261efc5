"""The model in use, from Python: load a checkpoint, then draw, score, answer, caption and edit.

    from srum_jax import api
    bagel = api.load("path/to/BAGEL-7B-MoT")          # or api.load() for the shapes base
    drawing, = bagel.generate("a red circle above a blue square")
    drawing.save("circle.png")
    bagel.score("circle.png", "a red circle above a blue square").score
    bagel.answer("what color is the circle ?", "circle.png").text

Every method takes one request or a list of them, and works through a list in batches: what else is
in a batch does not change a result. Images may be paths, PIL images, drawings or uint8 arrays
[H,W,3].
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Generator, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from srum_jax import description, devices, inputs, reading, scoring
from srum_jax.config import Config, SampleConfig
from srum_jax.core import console, places, sharding
from srum_jax.core.checked import plain
from srum_jax.core.errors import BadInput, quoted
from srum_jax.core.param_tree import Params
from srum_jax.data.schema import Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import (
    context,
    families,
    generation_config,
    image_request,
    image_sampler,
    system_prompts,
    text_stream,
)
from srum_jax.generation.generation_config import GenerationConfig
from srum_jax.generation.image_codec import latent_grid
from srum_jax.generation.image_request import ImageRequest
from srum_jax.generation.step_by_step import DenoisingOptions, DenoisingStep, StepByStep
from srum_jax.generation.text_rows import TextRequest
from srum_jax.inputs import AnyImage, AnyRequest, AnyVideo
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.outputs import Answer, Drawing
from srum_jax.reading import DrawingRequest
from srum_jax.scoring import ImageScore

PRECISIONS = ("float32", "bfloat16", "int8")


def load(
    model: epath.PathLike = Config.model,
    *,
    precision: str | None = None,
    base: epath.PathLike | None = None,
    adapter: epath.PathLike | None = None,
    mesh: jax.sharding.Mesh | str | None = None,
    **options: Any,
) -> "Model":
    """Loads a model: a world's base ("shapes"), a folder in the Hugging Face layout of BAGEL, or by
    its name on the Hugging Face Hub, "org/name" or "org/name@revision".

    precision: of the weights, float32 | bfloat16 | int8 (matrices only; for small hardware);
    default bfloat16, on a CPU float32. base: the folder with what `model` lacks (towers that were
    not trained, autoencoder, JSON files, tokenizer). adapter: a folder of PEFT's with a LoRA, which
    is merged into the weights. mesh: the devices it lies on, or "2x4" for two copies of the weights
    on four devices each; default as `devices.placed`. options: fields of `GenerationConfig` to
    change, for example window=16384.
    Raises BadInput, FileNotFoundError or ValueError naming file and field.
    """
    console.cache_compiled_programs()
    if precision not in (None, *PRECISIONS):
        raise BadInput(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    told = generation_config.updated(
        description.generation_settings(model, base), options, where="api.load"
    )
    folder, base = places.model_folders(model, base)
    if adapter is not None:
        adapter = places.model_folder(adapter, "the adapter")
    family = families.find(folder, base)
    mesh, precision = devices.placed(
        mesh, precision, functools.partial(family.weight_bytes, folder, base)
    )
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    loaded = family.load(
        folder,
        base,
        mesh=mesh,
        dtype=jnp.float32 if precision == "float32" else jnp.bfloat16,
        int8_weights=precision == "int8",
        adapter=adapter,
    )
    # CPUs multiply bfloat16 slowly, and XLA would keep a float32 copy of all weights for it.
    dtype = jnp.float32 if on_cpu or precision == "float32" else jnp.bfloat16
    *sizes_and_weights, tokenizer = loaded
    if told.official:
        tokenizer = tokenizer.with_marks()
    return Model(*sizes_and_weights, tokenizer, told, mesh, precision, dtype, family)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A loaded model: sizes, parameters on the mesh, tokenizer, defaults, dtype of products."""

    cfg: BagelConfig
    params: Params = dataclasses.field(repr=False)
    vae_params: Params = dataclasses.field(repr=False)
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    generation_config: GenerationConfig
    mesh: jax.sharding.Mesh
    precision: str
    dtype: Any
    family: ModuleType = dataclasses.field(repr=False)
    programs: context.Programs = dataclasses.field(default_factory=context.Programs, repr=False)

    def generate(
        self,
        prompts: AnyRequest | Sequence[AnyRequest],
        *,
        negative: str | Sequence[str] | None = None,
        n: int = 1,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        think: bool = False,
        best_of: int | None = None,
        from_image: AnyImage | Sequence[AnyImage] | None = None,
        latents: Sequence[np.ndarray] | None = None,
        start: int = 0,
        trajectory: bool = False,
        callback: Callable[[DenoisingStep], Any] | None = None,
        progress: bool = False,
        sampling: SampleConfig | None = None,
        **sample: Any,
    ) -> list[Drawing]:
        """Draws `n` images of each prompt, a prompt's images one after the other.

        prompts: texts, or conversations with images in them (`inputs.requests`). negative: for all
        prompts or one each, what text guidance compares with in place of no prompt. seeds: one an
        image, in place of those that `seed`, the prompt's place and k give. think: the model first
        writes how it will draw. best_of: so many candidates are drawn for each image, the first
        from its own seed, and the one that `score` puts highest is given. from_image: for all or
        one each, what noise is added to up to step `start`, in place of noise alone; it is drawn
        in its size after the model's resize. latents: float32 [h,w,p·p·Z] an image, what stands
        before step `start`. start: the first step that is done, from 0. trajectory: drawings keep
        what stood before and after every step. callback: called after each step; Interrupted is
        raised where it gives True. progress: a bar of the steps on stderr. sampling: all settings
        in place of the model's own; sample: fields of `SampleConfig` to change: size=(H, W),
        steps, guidance, renorm, … Raises BadInput or ValueError for what does not fit the model.
        """
        several = inputs.requests(prompts, "generate: a prompt")
        settings, think = self._settings("generate", sampling, sample), inputs.flag(think, "think")
        denoising = inputs.denoising(start, settings.steps, callback, trajectory, progress)
        read = {text: self.reader.prompt(text) for text in several if isinstance(text, str)}
        against = self._negatives(negative, prompts, settings)
        own = inputs.seeds(len(several), n, seed, seeds)
        items = [read.get(one) or self.reader.prompt(one) for one in several]
        requests = [
            DrawingRequest(what, str(one), settings.size, *rest)
            for what, one, *rest in zip(items, several, own, against, strict=True)
        ]
        if from_image is not None:
            if latents is not None or "size" in sample:
                raise BadInput("from_image has its size and its latents: leave out size, latents")
            denoising = dataclasses.replace(denoising, clean=True)
            begun = inputs.shared(from_image, prompts, "from_image")
            requests = [self._from(*pair) for pair in zip(requests, begun, strict=True)]
        elif denoising.start and latents is None:
            raise BadInput(f"start = {start} begins midway: give latents or from_image")
        requests = self._begun(requests, latents)
        if best_of is None:
            return self._draw(requests, settings, think, denoising)
        return self._best(requests, settings, think, denoising, inputs.whole(best_of, "best_of", 1))

    def score(
        self, images: AnyImage | Sequence[AnyImage], prompts: str | Sequence[str]
    ) -> ImageScore | list[ImageScore]:
        """How well images fit their prompts by the model's own answers, as a run scores them.

        `images` and `prompts`: one each, or lists of the same length. The judge is the one that
        `score` of the model's `generation_config` describes. Raises BadInput for numbers of images
        and prompts that differ, or a prompt that the model has no words for.
        """
        several = inputs.texts(prompts, "score: a prompt")
        listed = inputs.listed(images)
        shown = [images] if listed is None else listed
        if len(shown) != len(several):
            raise BadInput(f"score: {len(shown)} images, but {len(several)} prompts; give as many")
        said = [self.generation_config.prompt(prompt) for prompt in several]
        scores = self._scorer.score([self.reader.pixels(inputs.Shown(one)) for one in shown], said)
        return scores[0] if isinstance(prompts, str) else scores

    def edit(
        self,
        images: AnyImage | Sequence[AnyImage] | None,
        instructions: AnyRequest | Sequence[AnyRequest],
        *,
        negative: str | Sequence[str] | None = None,
        n: int = 1,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        think: bool = False,
        latents: Sequence[np.ndarray] | None = None,
        start: int = 0,
        trajectory: bool = False,
        callback: Callable[[DenoisingStep], Any] | None = None,
        progress: bool = False,
        sampling: SampleConfig | None = None,
        **sample: Any,
    ) -> list[Drawing]:
        """Draws images changed as told, in the size that each has after the model's resize.

        `images` and `instructions`: one each, or lists of the same length; a list of images in
        place of an image shows several (the last gives the size), None where the instruction is a
        conversation with images in it. Otherwise as `generate`.
        """
        several = inputs.requests(instructions, "edit: an instruction")
        given = inputs.each(images, instructions, "images")
        settings, think = self._settings("edit", sampling, sample), inputs.flag(think, "think")
        denoising = inputs.denoising(start, settings.steps, callback, trajectory, progress)
        if denoising.start and latents is None:
            raise BadInput(f"start = {start} begins midway: give latents")
        if "size" in sample:
            raise BadInput("edit: an image is drawn in its own size; resize it beforehand")
        against = self._negatives(negative, instructions, settings)
        own = inputs.seeds(len(several), n, seed, seeds)
        requests = []
        for shown, instruction, other, some in zip(given, several, against, own, strict=True):
            told = inputs.conversation(instruction, shown, "edit")
            if not told.images:
                raise BadInput(f"edit: no image for {quoted(str(told))}")
            # Latents drawn from the posterior are each image's own, like its noise.
            drawn = self.generation_config.official
            for mine in [[one] for one in some] if drawn else [some]:
                items, size = self.reader.edit(told, mine[0] if drawn else None)
                requests.append(DrawingRequest(items, str(told), size, mine, other))
        return self._draw(self._begun(requests, latents), settings, think, denoising)

    def answer(
        self,
        questions: AnyRequest | Sequence[AnyRequest],
        images: AnyImage | Sequence[AnyImage] | None = None,
        *,
        video: AnyVideo | Sequence[AnyVideo] = None,
        frames: int = 8,
        think: bool = False,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Answer | list[Answer]:
        """Answers a question about no, one or several images, or about a video's frames.

        questions: texts, or conversations with images in them (`inputs.requests`). For a list
        of questions `images` and `video` are lists of the same length (of images, of lists of
        images, of None). video: a file, or its frames as `data.video.frames` gives them. frames: so
        many, taken evenly from the file; their times go into the prompt where the model's settings
        say how. think: it first reasons in writing. temperature 0: the likeliest words.
        """
        how = self._writing(think, max_tokens, temperature, seed)
        contexts = self._asked(questions, images, video, frames)
        answers = [Answer.of(w, think) for w in self._write(contexts, *how)]
        return answers[0] if inputs.single(questions) else answers

    def stream(
        self,
        question: AnyRequest,
        images: AnyImage | Sequence[AnyImage] | None = None,
        *,
        video: AnyVideo = None,
        frames: int = 8,
        think: bool = False,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Generator[str, None, Answer]:
        """Yields the answer to a single question as it is written, in pieces of whole characters.

        Arguments as of `answer`, and the pieces together are its text; with think they begin with
        the thought, up to </think>. Closing the generator stops the writing; at its end it returns
        the Answer. Raises at once what `answer` raises.
        """
        if not inputs.single(question):
            raise BadInput(f"stream: give a single question; got {quoted(question)}")
        system, max_tokens, temperature, seed = self._writing(think, max_tokens, temperature, seed)
        (asked,) = self._asked(question, images, video, frames)
        seed = image_sampler.candidate_seed(seed, 0, 0)
        request = TextRequest((*system, *asked), max_tokens, temperature, seed)
        pieces = text_stream.stream(self.family, self.generator, self.sampler, request)
        return self._pieces(pieces, think)

    def _pieces(self, pieces: Generator, think: bool) -> Generator[str, None, Answer]:
        while True:
            with jax.set_mesh(self.mesh):  # not left set while the caller works
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    return Answer.of(end.value, think)
            yield piece

    def _asked(self, questions, images, video, frames: int) -> list[context.Context]:
        frames = inputs.whole(frames, "frames", 1)
        each = (
            inputs.requests(questions, "answer: a question"),
            inputs.each(images, questions, "images"),
            inputs.each(video, questions, "video"),
        )
        return [self.reader.question(*one, frames) for one in zip(*each, strict=True)]

    def _writing(self, think: bool, max_tokens, temperature, seed) -> tuple:
        """(the request to think, max_tokens, temperature, seed), checked."""
        limits, system = self.generation_config, ()
        if inputs.flag(think, "think"):
            system = (reading.system(self.tokenizer, system_prompts.THINK_UNDERSTANDING),)
        if max_tokens is None:
            max_tokens = limits.max_tokens + (limits.think_tokens if think else 0)
        temperature = plain(temperature)
        if type(temperature) not in (int, float) or not 0 <= temperature <= sys.float_info.max:
            raise BadInput(f"temperature must be a number from 0, got {quoted(temperature)}")
        max_tokens = inputs.whole(max_tokens, "max_tokens", 1)
        return system, max_tokens, temperature, inputs.whole(seed, "seed")

    def caption(
        self, images: AnyImage | Sequence[AnyImage], *, max_tokens: int | None = None
    ) -> Answer | list[Answer]:
        """Describes one image, or each of a list."""
        listed = inputs.listed(images)
        several = [images] if listed is None else listed
        if any(one is None for one in several):
            raise BadInput("caption: give an image, or a list of images; got None")
        request = self.generation_config.caption
        answers = self.answer([request] * len(several), several, max_tokens=max_tokens)
        return answers[0] if listed is None else answers

    def _running(self) -> dict[str, Any]:
        return dict(
            params=self.params,
            model=self.cfg,
            tokenizer=self.tokenizer,
            window=self.generation_config.window,
            min_rows=sharding.row_ways(self.mesh),
            batch_sharding=sharding.batch_sharding(self.mesh),
            dtype=self.dtype,
            programs=self.programs,
        )

    @functools.cached_property
    def sampler(self) -> Any:
        """What draws."""
        settings = self.generation_config.generate
        official = self.generation_config.official
        how = dict(vae_params=self.vae_params, settings=settings, official=official)
        return self.family.ImageSampler(**how, **self._running())

    @functools.cached_property
    def generator(self) -> Any:
        """What writes."""
        return self.family.TextGenerator(batch=self.generation_config.batch, **self._running())

    @functools.cached_property
    def _scorer(self):
        from srum_jax.stages.loading import LoadedModel  # brings what trains: a second to import

        how = dict(family=self.family, programs=self.programs)
        loaded = LoadedModel(self.cfg, self.params, None, self.tokenizer, **how)
        return scoring.Scorer(loaded, self.generation_config.score, self.mesh, self.dtype)

    @functools.cached_property
    def reader(self) -> Any:
        """What reads requests."""
        encoder = self.family.ImageEncoder(self.vae_params, self.cfg, programs=self.programs)
        return reading.Reader(self.generation_config, self.tokenizer, self.cfg.layout, encoder)

    def _write(self, contexts, system, max_tokens, temperature=0.0, seed=0):
        seeds = [image_sampler.candidate_seed(seed, i, 0) for i in range(len(contexts))]
        with jax.set_mesh(self.mesh):
            return self.generator.generate(
                [(*system, *c) for c in contexts],
                max_tokens=max_tokens,
                temperature=temperature,
                seeds=seeds,
                stop="first" if self.generation_config.official else "each",
            )

    def _settings(self, of: str, given: SampleConfig | None, changes: dict) -> SampleConfig:
        """The sampler's settings of a call of `generate` or `edit`."""
        own = getattr(self.generation_config, of)
        return inputs.sampling(given, own, changes, of, self.family.SAMPLER)

    def _from(self, request: DrawingRequest, image: AnyImage) -> DrawingRequest:
        """The request begun from an image, in its size."""
        seen = self.reader.latents(self.reader.pixels(inputs.Shown(image)))
        latents = [seen.tokens] * len(request.seeds)
        return dataclasses.replace(request, size=seen.size, latents=latents)

    def _begun(self, requests: list[DrawingRequest], latents) -> list[DrawingRequest]:
        """The requests with what each image begins from, where that is given."""
        if latents is None:
            return requests
        sizes = [latent_grid(r.size, self.cfg.layout) for r in requests for _ in r.seeds]
        given = iter(inputs.latents(latents, [(*size, self.cfg.token_dim) for size in sizes]))
        return [dataclasses.replace(r, latents=[next(given) for _ in r.seeds]) for r in requests]

    def _negatives(self, negative, requests, settings: SampleConfig) -> list[Text | None]:
        """The negative prompt of each request, or None."""
        if negative is None:
            return [None] * (1 if inputs.single(requests) else len(requests))
        if settings.guidance <= 1:
            raise BadInput(
                f"negative: guidance = {settings.guidance} compares with nothing; give one above 1"
            )
        several = inputs.texts(inputs.shared(negative, requests, "negative"), "negative: a prompt")
        return [self.tokenizer.text(self.generation_config.prompt(one)) for one in several]

    def _draw(
        self, requests: Sequence[DrawingRequest], settings, think: bool, denoising: DenoisingOptions
    ) -> list[Drawing]:
        system, thoughts = None, {}
        if think:
            if why := self.family.ONLY_WORDS:
                raise BadInput(f"think: {why}")
            system = reading.system(self.tokenizer, system_prompts.THINK_GENERATION)
            # Requests that read the same items, for several images, share a thought.
            contexts = {tuple(map(id, r.items)): r.items for r in requests}
            limit = self.generation_config.think_tokens
            written = self._write(contexts.values(), (system,), limit)
            thoughts = dict(zip(contexts, (w.text for w in written), strict=True))
        jobs, drawings = [], []
        for r in requests:
            thought = thoughts.get(tuple(map(id, r.items)), "")
            read = image_request.guidance_contexts(
                r.items,
                system=system,
                thought=self.tokenizer.text(thought) if think else None,
                negative=r.negative,
            )
            for seed in r.seeds:
                jobs.append(ImageRequest(**read, size=r.size, seed=seed))
                drawings.append((r.prompt, seed, thought))
        if any(r.latents for r in requests):
            denoising = dataclasses.replace(
                denoising, latents=[x for r in requests for x in r.latents]
            )
        drawn, paths = self._sampled(jobs, settings, denoising)
        return [
            Drawing(d.image, *what, latents=d.latent, trajectory=tuple(paths.get(i, ())))
            for i, (d, what) in enumerate(zip(drawn, drawings, strict=True))
        ]

    def _sampled(
        self, jobs: Sequence[ImageRequest], settings, denoising: DenoisingOptions
    ) -> tuple:
        """Images of the jobs, and the trajectories that were asked for by the job's place."""
        if denoising.whole:
            with jax.set_mesh(self.mesh):
                return self.sampler.sample(jobs, settings=settings), {}
        grids = [latent_grid(job.size, self.cfg.layout) for job in jobs]
        steps = len(jobs) * (settings.steps - denoising.start)
        how = dict(total=steps, unit="step", desc="drawing", shown=denoising.progress)
        with jax.set_mesh(self.mesh), console.progress(**how) as bar:
            denoiser = StepByStep(denoising, grids, self.programs, bar.update)
            drawn = self.sampler.sample(jobs, settings=settings, denoiser=denoiser)
        return drawn, denoiser.paths

    def _best(
        self,
        requests: Sequence[DrawingRequest],
        settings,
        think: bool,
        denoising: DenoisingOptions,
        count: int,
    ) -> list[Drawing]:
        """Of each image to draw the best of `count` candidates, a full batch of them at a time."""
        if count > 1 and not denoising.clean and any(r.latents for r in requests):
            raise BadInput("best_of: all candidates from the same latents are the same image")
        single = [one for r in requests for one in r.single()]
        self.score([], [])  # a judge that cannot be opened is told of before anything is drawn
        together, chosen = max(1, settings.batch // count), []
        for first in range(0, len(single), together):
            part = [
                dataclasses.replace(
                    r,
                    seeds=scoring.candidate_seeds(*r.seeds, count),
                    latents=[*r.latents] * count,
                )
                for r in single[first : first + together]
            ]
            drawn = self._draw(part, settings, think, denoising)
            scores = self.score(drawn, [one.prompt for one in drawn])
            for i in range(0, len(drawn), count):
                best = i + scoring.best(scores[i : i + count])
                chosen.append(dataclasses.replace(drawn[best], score=scores[best]))
        return chosen
