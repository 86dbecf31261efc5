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
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from srum_jax import inputs, reading, scoring
from srum_jax.config import Config, MeshConfig
from srum_jax.core import console, files, places, sharding
from srum_jax.core.checked import plain
from srum_jax.core.errors import BadInput, quoted
from srum_jax.core.param_tree import Params
from srum_jax.data.prompt_reader import PromptReader
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import (
    context,
    families,
    generation_config,
    image_sampler,
    system_prompts,
)
from srum_jax.generation.generation_config import GenerationConfig
from srum_jax.inputs import AnyImage, AnyVideo
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.outputs import Answer, Drawing
from srum_jax.scoring import ImageScore

PRECISIONS = ("float32", "bfloat16", "int8")


def load(
    model: epath.PathLike = Config.model,
    *,
    precision: str | None = None,
    base: epath.PathLike | None = None,
    mesh: jax.sharding.Mesh | None = None,
    **options: Any,
) -> "Model":
    """Loads a model: a world's base ("shapes"), or a folder in the Hugging Face layout of BAGEL.

    precision: of the weights, float32 | bfloat16 | int8 (matrices only; for small hardware);
    default bfloat16, on a CPU float32. base: the folder with what `model` lacks (towers that were
    not trained, autoencoder, JSON files, tokenizer). mesh: where the model lies, default the first
    device. options: fields of `GenerationConfig` to change, for example window=16384.
    Raises BadInput, FileNotFoundError or ValueError naming file and field.
    """
    console.cache_compiled_programs()
    if precision not in (None, *PRECISIONS):
        raise BadInput(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    told = generation_config.updated(generation_settings(model, base), options, where="api.load")
    folder, base = places.model_folders(model, base)
    if mesh is None:
        ones = MeshConfig(**dict.fromkeys(sharding.MESH_AXES, 1))
        mesh = sharding.make_mesh(ones, jax.devices()[:1])
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    if precision is None:
        precision = "float32" if on_cpu else "bfloat16"
    family = families.find(folder, base)
    loaded = family.load(
        folder,
        base,
        mesh=mesh,
        dtype=jnp.float32 if precision == "float32" else jnp.bfloat16,
        int8_weights=precision == "int8",
    )
    # CPUs multiply bfloat16 slowly, and XLA would keep a float32 copy of all weights for it.
    dtype = jnp.float32 if on_cpu or precision == "float32" else jnp.bfloat16
    return Model(*loaded, told, mesh, precision, dtype, family)


@dataclasses.dataclass(frozen=True)
class Description:
    """What a model folder says without its weights: how it wants to be used, its sizes, its words.

    digest: 16 hex digits of the folder's content and its base's, by `core.files.fingerprint`.
    """

    generation_config: GenerationConfig
    cfg: BagelConfig
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    digest: str

    def prompt_reader(self, think: bool) -> PromptReader:
        """What it can draw of a prompt, with `think` of one that it thinks about before."""
        told = self.generation_config
        window = min(told.window, self.cfg.max_text)
        if think:
            system = reading.system(self.tokenizer, system_prompts.THINK_GENERATION)
            window -= context.extent((system,))[0] + told.think_tokens + 1
        return PromptReader(told.language, self.tokenizer, window)


def describe(
    model: epath.PathLike = Config.model, base: epath.PathLike | None = None, **options: Any
) -> Description:
    """What is known of a model before it is loaded; the arguments are those of `load`."""
    told = generation_config.updated(generation_settings(model, base), options, where="options")
    folders = [one for one in places.model_folders(model, base) if one is not None]
    cfg, tokenizer = families.find(*folders).describe(*folders)
    return Description(told, cfg, tokenizer, files.model_fingerprint(*folders))


def generation_settings(
    model: epath.PathLike = Config.model, base: epath.PathLike | None = None
) -> GenerationConfig:
    """How a model wants to be used, and which language it reads, without loading it."""
    return generation_config.from_folder(*places.model_folders(model, base))


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
        prompts: str | Sequence[str],
        *,
        n: int = 1,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        think: bool = False,
        best_of: int | None = None,
        **sample: Any,
    ) -> list[Drawing]:
        """Draws `n` images of each prompt, a prompt's images one after the other.

        sample: keys of the config's `sample` section to change: size=(H, W), steps, guidance,
        renorm, … think: the model first writes how it will draw. seeds: one an image, in place of
        those that `seed`, the prompt's place and k give. best_of: so many candidates are drawn
        for each image, the first from its own seed, and the one that `score` puts highest is
        given. Raises BadInput or ValueError for a setting, a size or a prompt that does not fit
        the model.
        """
        several = inputs.texts(prompts, "generate: a prompt")
        settings = generation_config.changed(
            self.generation_config.generate, sample, where="generate"
        )
        read = {prompt: self._reader.prompt(prompt) for prompt in several}
        requests = [
            _Request(read[prompt], prompt, settings.size, some)
            for prompt, some in zip(
                several, inputs.seeds(len(several), n, seed, seeds), strict=True
            )
        ]
        if best_of is None:
            return self._draw(requests, settings, think)
        return self._best(requests, settings, think, inputs.whole(best_of, "best_of", 1))

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
        scores = self._scorer.score([inputs.pixels(one) for one in shown], said)
        return scores[0] if isinstance(prompts, str) else scores

    def edit(
        self,
        images: AnyImage | Sequence[AnyImage],
        instructions: str | Sequence[str],
        *,
        n: int = 1,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        think: bool = False,
        **sample: Any,
    ) -> list[Drawing]:
        """Draws images changed as told, in the size that each has after the model's resize.

        `images` and `instructions`: one each, or lists of the same length; a list of images in
        place of an image shows several (the last gives the size). Otherwise as `generate`.
        """
        several = inputs.texts(instructions, "edit: an instruction")
        given = inputs.each(images, instructions, "images")
        settings = generation_config.changed(self.generation_config.edit, sample, where="edit")
        if "size" in sample:
            raise BadInput("edit: an image is drawn in its own size; resize it beforehand")
        requests = []
        for shown, instruction, some in zip(
            given, several, inputs.seeds(len(several), n, seed, seeds), strict=True
        ):
            pixels = [inputs.pixels(one) for one in inputs.several(shown)]
            if not pixels:
                raise BadInput(f"edit: no image for {quoted(instruction)}")
            # Latents drawn from the posterior are each image's own, like its noise.
            for mine in (
                [[one] for one in some] if self.generation_config.sample_conditions else [some]
            ):
                noise = mine[0] if self.generation_config.sample_conditions else None
                items, size = self._reader.edit(pixels, instruction, noise)
                requests.append(_Request(items, instruction, size, mine))
        return self._draw(requests, settings, think)

    def answer(
        self,
        questions: str | Sequence[str],
        images: AnyImage | Sequence[AnyImage] | None = None,
        *,
        video: AnyVideo | Sequence[AnyVideo] = None,
        frames: int = 8,
        think: bool = False,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        stop: str = "each",
    ) -> Answer | list[Answer]:
        """Answers a question about no, one or several images, or about a video's frames.

        For a list of questions `images` and `video` are lists of the same length (of images, of
        lists of images, of None). video: a file, or its frames as `data.video.frames` gives them.
        frames: so many, taken evenly from the file; their times go into the prompt where the
        model's settings say how. think: it first reasons in writing. temperature 0: the likeliest
        words. stop: "each" or "first" (see `generation.text_generator.decode`).
        """
        temperature = plain(temperature)
        if type(temperature) not in (int, float) or not 0 <= temperature < float("inf"):
            raise BadInput(f"temperature must be a number from 0, got {quoted(temperature)}")
        frames, seed = inputs.whole(frames, "frames", 1), inputs.whole(seed, "seed")
        each = (
            inputs.texts(questions, "answer: a question"),
            inputs.each(images, questions, "images"),
        )
        system = (
            reading.system(self.tokenizer, system_prompts.THINK_UNDERSTANDING) if think else None
        )
        contexts = [
            self._reader.question(*one, frames)
            for one in zip(*each, inputs.each(video, questions, "video"), strict=True)
        ]
        if max_tokens is None:
            limits = self.generation_config
            max_tokens = limits.max_tokens + (limits.think_tokens if think else 0)
        max_tokens = inputs.whole(max_tokens, "max_tokens", 1)
        written = self._write(contexts, system, max_tokens, temperature, seed, stop)
        answers = [Answer.of(w, think) for w in written]
        return answers[0] if isinstance(questions, str) else answers

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
    def _sampler(self):
        settings = self.generation_config.generate
        how = dict(vae_params=self.vae_params, settings=settings)
        return self.family.ImageSampler(**how, **self._running())

    @functools.cached_property
    def _generator(self):
        return self.family.TextGenerator(batch=self.generation_config.batch, **self._running())

    @functools.cached_property
    def _scorer(self):
        from srum_jax.stages.loading import LoadedModel  # brings what trains: a second to import

        how = dict(family=self.family, programs=self.programs)
        loaded = LoadedModel(self.cfg, self.params, None, self.tokenizer, **how)
        return scoring.Scorer(loaded, self.generation_config.score, self.mesh, self.dtype)

    @functools.cached_property
    def _reader(self):
        encoder = self.family.ImageEncoder(self.vae_params, self.cfg, programs=self.programs)
        return reading.Reader(self.generation_config, self.tokenizer, self.cfg.layout, encoder)

    def _write(self, contexts, system, max_tokens, temperature=0.0, seed=0, stop="each"):
        before = () if system is None else (system,)
        seeds = [image_sampler.candidate_seed(seed, i, 0) for i in range(len(contexts))]
        with jax.set_mesh(self.mesh):
            return self._generator.generate(
                [(*before, *c) for c in contexts],
                max_tokens=max_tokens,
                temperature=temperature,
                seeds=seeds,
                stop=stop,
            )

    def _draw(self, requests: Sequence["_Request"], settings, think: bool) -> list[Drawing]:
        system, thoughts = None, {}
        if think:
            system = reading.system(self.tokenizer, system_prompts.THINK_GENERATION)
            # Requests that read the same items, for several images, share a thought.
            contexts = {tuple(map(id, r.items)): r.items for r in requests}
            written = self._write(contexts.values(), system, self.generation_config.think_tokens)
            thoughts = dict(zip(contexts, (w.text for w in written), strict=True))
        jobs, drawings = [], []
        for r in requests:
            thought = thoughts.get(tuple(map(id, r.items)), "")
            read = image_sampler.guidance_contexts(
                r.items, system=system, thought=self.tokenizer.text(thought) if think else None
            )
            for seed in r.seeds:
                jobs.append(image_sampler.ImageRequest(**read, size=r.size, seed=seed))
                drawings.append((r.prompt, seed, thought))
        with jax.set_mesh(self.mesh):
            drawn = self._sampler.sample(jobs, settings=settings)
        return [Drawing(d.image, *what) for d, what in zip(drawn, drawings, strict=True)]

    def _best(
        self, requests: Sequence["_Request"], settings, think: bool, count: int
    ) -> list[Drawing]:
        """Of each image to draw the best of `count` candidates, a full batch of them at a time."""
        single = [dataclasses.replace(r, seeds=[seed]) for r in requests for seed in r.seeds]
        self.score([], [])  # a judge that cannot be opened is told of before anything is drawn
        together, chosen = max(1, settings.batch // count), []
        for first in range(0, len(single), together):
            part = [
                dataclasses.replace(r, seeds=scoring.candidate_seeds(*r.seeds, count))
                for r in single[first : first + together]
            ]
            drawn = self._draw(part, settings, think)
            scores = self.score(drawn, [one.prompt for one in drawn])
            for i in range(0, len(drawn), count):
                best = i + scoring.best(scores[i : i + count])
                chosen.append(dataclasses.replace(drawn[best], score=scores[best]))
        return chosen


@dataclasses.dataclass(frozen=True)
class _Request:
    """What the model reads, the prompt last, before it draws an image of `size` for each seed."""

    items: context.Context
    prompt: str
    size: tuple[int, int]
    seeds: Sequence[int]
