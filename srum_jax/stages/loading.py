"""Loading the model of a round: its folder, its parameters on the mesh, its samplers.

Every stage that runs the model comes through here, so that all agree which weights a round starts
from and which of them it trained.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from srum_jax import programs
from srum_jax.config import Config, SampleConfig, TrainConfig
from srum_jax.core import compiling, device_clock, param_tree, registry, sharding
from srum_jax.core.files import model_fingerprint as fingerprint  # noqa: F401 (stages ask here)
from srum_jax.data.prompt_reader import PromptReader
from srum_jax.data.sources import Prompts
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import bagel as bagel_family
from srum_jax.generation import families, generation_config
from srum_jax.generation.bagel import AnswerScorer, ImageEncoder, ImageSampler, TextGenerator
from srum_jax.generation.context import Programs
from srum_jax.generation.generation_config import GenerationConfig
from srum_jax.models import lora
from srum_jax.models.bagel import hf
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.stages.manifest import Manifest, Workdir
from srum_jax.training import checkpoint


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to run, its parameters on the mesh; what was not wanted is None.

    Its samplers run as a config's `sample` section and `compute.dtype` say, rows cut over the mesh.
    """

    cfg: BagelConfig
    params: param_tree.Params | None = dataclasses.field(repr=False)
    vae_params: param_tree.Params | None = dataclasses.field(repr=False)
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    source: hf.Parts | None = None
    family: ModuleType = bagel_family
    programs: Programs = dataclasses.field(default_factory=Programs, repr=False)
    settings: GenerationConfig | None = None

    @functools.cached_property
    def generation_config(self) -> GenerationConfig:
        """How it is best used: `settings`, or what its folder or the base says."""
        if self.settings or self.source is None:
            return self.settings or GenerationConfig()
        return settings(self.source)

    @functools.cached_property
    def hash(self) -> str:
        """The fingerprint of the folders that were loaded."""
        return fingerprint(*self.source.folders)

    def image_sampler(self, cfg: Config, mesh: jax.sharding.Mesh) -> ImageSampler:
        """Draws `sample.batch` rows a call always: a shard made again is the same to the bit."""
        return self.family.ImageSampler(
            vae_params=self.vae_params,
            settings=cfg.sample,
            window=self.cfg.max_text,
            min_rows=cfg.sample.batch,
            attention=cfg.compute.attention,
            **self._running(cfg, mesh),
        )

    def answer_scorer(self, cfg: Config, mesh: jax.sharding.Mesh, *, batch: int) -> AnswerScorer:
        """Answers questions about `batch` images a compiled call."""
        return self.family.AnswerScorer(batch=batch, **self._running(cfg, mesh))

    def text_generator(
        self,
        cfg: Config,
        mesh: jax.sharding.Mesh,
        *,
        batch: int,
        window: int,
        min_rows: int | None = None,
    ) -> TextGenerator:
        """Writes behind up to `batch` contexts a compiled call.

        window: tokens of a context with what is written; min_rows: of a call, default as many as
        there are devices that rows are cut over.
        """
        return self.family.TextGenerator(
            batch=batch,
            window=window,
            min_rows=min_rows or sharding.row_ways(mesh),
            **self._running(cfg, mesh),
        )

    def encoder(self, batch: int = 1, mesh: jax.sharding.Mesh | None = None) -> ImageEncoder:
        """Encodes pictures, with a mesh `batch` at a time with rows cut over it."""
        at = None if mesh is None else sharding.batch_sharding(mesh)
        return self.family.ImageEncoder(self.vae_params, self.cfg, batch, at, self.programs)

    def _running(self, cfg: Config, mesh: jax.sharding.Mesh) -> dict[str, Any]:
        return dict(
            params=self.params,
            model=self.cfg,
            tokenizer=self.tokenizer,
            batch_sharding=sharding.batch_sharding(mesh),
            dtype=jnp.dtype(cfg.compute.dtype),
            programs=self.programs,
        )


def source(cfg: Config, work: Workdir) -> hf.Parts:
    """Where the weights lie that this round starts from.

    What the round before exported; in the first round what `pretrain` made, if the run has that
    stage, otherwise the folder the config names, with its base. Raises FileNotFoundError naming
    what is missing.
    """
    if work.round:
        return _made_by(dataclasses.replace(work, round=work.round - 1).stage("export"))
    if "pretrain" in cfg.stages:
        return _made_by(work.stage("pretrain"))
    if not cfg.weights:
        return located(registry.base_folder(cfg.model))
    return located(cfg.weights, cfg.weights_base)


def located(folder: epath.PathLike, base: epath.PathLike | None = None) -> hf.Parts:
    """Where the parts of a model of any family lie. Raises FileNotFoundError."""
    return families.find(folder, base or None).locate(folder, base or None)


def described(parts: hf.Parts) -> tuple[Any, Tokenizer]:
    """(sizes, words) of a model without its weights. Raises as its family's `describe`."""
    return families.find(parts.folder, parts.base).describe(parts.folder, parts.base)


def prompts(parts: hf.Parts) -> Prompts:
    """How a model reads prompts before images that it learns to draw."""
    return families.find(parts.folder, parts.base).Prompts(described(parts)[1])


def language(parts: hf.Parts) -> str:
    """The language that a model reads (`data/languages.py`), as its folder or its base says."""
    return settings(parts).language


def settings(parts: hf.Parts) -> GenerationConfig:
    """How a model is best used, as its folder or its base says."""
    return generation_config.from_folder(parts.folder, parts.base)


def editing(told: GenerationConfig, cfg: Config) -> SampleConfig:
    """How a model edits whose folder says `told`: as the run draws, or as its folder has it, in the
    run's steps and calls, where that is not how it draws."""
    if told.edit == told.generate:
        return cfg.sample
    return dataclasses.replace(told.edit, steps=cfg.sample.steps, batch=cfg.sample.batch)


def prompt_reader(parts: hf.Parts) -> PromptReader:
    """What a model can read, without its weights. Raises ValueError naming the file."""
    sizes, tokenizer = described(parts)
    return PromptReader(language(parts), tokenizer, sizes.max_text)


def _made_by(stage: epath.Path) -> hf.Parts:
    return located(stage / Manifest.read(stage).outputs["model"])


def base(
    cfg: Config,
    work: Workdir,
    mesh: jax.sharding.Mesh,
    want: Sequence[str] = ("model", "vae"),
    dtype: Any = None,
) -> LoadedModel:
    """The model that this round starts from, in `dtype` (default: the config's compute.dtype).

    `want` is as in `hf.load`. The autoencoder is float32. Raises FileNotFoundError or ValueError
    naming the file, the tensor or the field.
    """
    found = source(cfg, work)
    family = families.find(found.folder, found.base)
    dtype = jnp.dtype(dtype or cfg.compute.dtype)
    loaded = family.load(found.folder, found.base, mesh=mesh, dtype=dtype, want=want)
    return LoadedModel(*loaded, source=found, family=family)


def own_mesh(
    cfg: Config, work: Workdir, mesh: jax.sharding.Mesh, models: int = 1
) -> jax.sharding.Mesh:
    """What this host draws and judges on, apart from others: its devices of `mesh`, the parameters
    whole on each or cut over as few as hold so many models of this round's sizes.

    Raises FileNotFoundError or ValueError for weights that are not there.
    """
    parts = source(cfg, work)
    family = families.find(parts.folder, parts.base)
    weights = family.weight_bytes(parts.folder, parts.base, cfg.compute.dtype)
    return sharding.inference_mesh(sharding.here(mesh), models * weights)


def made_by_training(
    loaded: LoadedModel, cfg: Config, work: Workdir, mesh: jax.sharding.Mesh, stage: str = "train"
) -> param_tree.Params:
    """The leaves, float32, that this round's `train` stage made: adapters, or parts of the model;
    of the stage "adjust" as much of them as that one chose.

    Raises as `trained`.
    """
    folder = work.stage(stage)
    Manifest.read(folder)
    return checkpoint.load_params(folder / "params", trained_places(loaded, cfg, mesh))


def trained_places(loaded: LoadedModel, cfg: Config, mesh: jax.sharding.Mesh) -> param_tree.Params:
    """The leaves that the stage `train` makes as shapes in their places, float32."""
    specs = programs.training(cfg, loaded.cfg).trained
    return sharding.placed_params(specs, jnp.float32, mesh)


def trained(
    loaded: LoadedModel, cfg: Config, work: Workdir, mesh: jax.sharding.Mesh
) -> LoadedModel:
    """`loaded` with the leaves that this round's `train` stage made in place of its own.

    Adapters are merged. Raises FileNotFoundError if that stage is not finished, BadInput if its
    files are damaged.
    """
    return with_made(loaded, cfg, made_by_training(loaded, cfg, work, mesh))


def with_made(loaded: LoadedModel, cfg: Config, made: param_tree.Params) -> LoadedModel:
    """`loaded` with leaves that training made in place of its own, adapters merged."""
    if cfg.train.trainable == "lora":
        merged = lora.merge(loaded.params, made, programs.lora_scale(cfg.train))
        places = jax.tree.map(lambda leaf: leaf.sharding, loaded.params)
        return dataclasses.replace(loaded, params=jax.device_put(merged, places))
    old, frozen = param_tree.split(loaded.params, programs.Trainable.of(cfg.train, loaded.cfg))
    made = _cast(made, jax.tree.map(lambda leaf: leaf.dtype, old))
    return dataclasses.replace(loaded, params=param_tree.merge(made, frozen))


def shared(
    loaded: LoadedModel, cfg: Config, made: param_tree.Params, share: float
) -> param_tree.Params:
    """Leaves like `made` that change the model `loaded` by `share` times as much.

    base + share (made - base), float32; of adapters, which are a change by themselves, the second
    factor times `share`.
    """
    if cfg.train.trainable == "lora":
        return lora.lessened(made, share)
    old, _ = param_tree.split(loaded.params, programs.Trainable.of(cfg.train, loaded.cfg))
    return _mixed(old, made, share)


@jax.jit
def _mixed(old: param_tree.Params, made: param_tree.Params, share: float) -> param_tree.Params:
    return jax.tree.map(lambda a, b: (1 - share) * a.astype(jnp.float32) + share * b, old, made)


def _cast(params: param_tree.Params, dtypes: param_tree.Params) -> param_tree.Params:
    """Every leaf in its own dtype, laid as it was: one program, not one a leaf."""
    places = jax.tree.map(lambda leaf: leaf.sharding, params)
    return jax.jit(
        lambda leaves: jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), leaves, dtypes),
        out_shardings=places,
    )(params)


def in_training(
    made: param_tree.Params, frozen: param_tree.Params, c: TrainConfig, dtype: Any
) -> param_tree.Params:
    """The model in training: trained leaves `made` in `dtype`, adapters scaled, `frozen` ones."""
    if c.trainable == "lora":
        return lora.scaled(param_tree.merge(made, frozen), programs.lora_scale(c))
    return param_tree.merge(jax.tree.map(lambda x: x.astype(dtype), made), frozen)


def answers_stay(c: TrainConfig, family: ModuleType) -> bool:
    """Whether no trained leaf is read where the model answers: the generation side alone learns."""
    if not family.APART:
        return False
    return c.trainable == "gen" or (c.trainable == "lora" and c.lora.experts == "gen")


@dataclasses.dataclass
class Spent:
    """Seconds of a stage: in which programs were compiled, and in which devices had work."""

    compile_seconds: float = 0.0
    device_seconds: float = 0.0


@contextlib.contextmanager
def measured() -> Iterator[Spent]:
    """Yields what is spent inside the block, known where it has ended."""
    spent = Spent()
    with compiling.recorded() as events, device_clock.measuring() as clock:
        yield spent
    spent.compile_seconds, spent.device_seconds = events.seconds, clock.seconds
