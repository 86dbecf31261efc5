"""Stage `pretrain` of the small Janus: questions, captions and drawings in one run, from nothing.

Cross-entropy of answers and of codes of pictures that were encoded once. Leaves the averaged model
in the Hugging Face layout under `model/`, rewritten at every evaluation, so that a run that was
stopped is usable.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from srum_jax.config import Config, OptimConfig, PackedConfig
from srum_jax.core import console, param_tree, registry, sharding
from srum_jax.data import pipeline
from srum_jax.generation import janus as family
from srum_jax.generation.janus.image_encoder import ImageEncoder
from srum_jax.models.janus import hf
from srum_jax.models.janus import model as janus
from srum_jax.objectives.autoregressive import JointLoss, JointRows
from srum_jax.stages import loading
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, run_stage
from srum_jax.worlds.shapes import pretrain
from srum_jax.worlds.shapes.examples import generation_example
from srum_jax.worlds.shapes.from_scratch import FromScratch
from srum_jax.worlds.shapes.janus import autoencoder
from srum_jax.worlds.shapes.janus.rows import Maker
from srum_jax.worlds.shapes.pretrain import ENCODE_BATCH, check
from srum_jax.worlds.shapes.quick_evaluation import Exam, QuickEvaluation

__all__ = ["RECIPE", "check", "run"]

RECIPE = PackedConfig(
    optim=OptimConfig(learning_rate=2e-3, adam_learning_rate=2e-3, warmup=100, schedule="cosine"),
    ema=0.998,
    text_dropout=0.1,
)
TEXT_WEIGHT = 0.5  # of the cross-entropy of words beside that of codes
READ = 0.5  # rows that are read for each one that is drawn
EXAM = Exam(several=0, edits=0)  # it was trained on single pictures, and cannot edit


@dataclasses.dataclass(frozen=True)
class Pool:
    """Pictures encoded once: captions and their codes int16 [N,n]."""

    captions: list[str]
    codes: np.ndarray

    @classmethod
    def of(
        cls, folder: epath.Path, encoder: ImageEncoder, *, seed: int, scenes: int, malformed: float
    ) -> "Pool":
        """The generation stream's first scenes; kept in `folder` for the next start of as many."""
        make = functools.partial(_encoded, encoder, seed, scenes, malformed)
        found = pretrain.kept(folder / "codes.npz", {"captions": scenes}, make)
        return cls(found["captions"].tolist(), found["codes"])


def _encoded(
    encoder: ImageEncoder, seed: int, scenes: int, malformed: float
) -> dict[str, np.ndarray]:
    """The fields of a Pool as arrays."""
    captions, codes = [], []
    for first in console.progress(range(0, scenes, ENCODE_BATCH), desc="encode", unit="batch"):
        numbers = range(first, min(first + ENCODE_BATCH, scenes))
        made = [generation_example(seed, i, malformed=malformed) for i in numbers]
        words, images = zip(*made, strict=True)
        captions += words
        codes.append(encoder.means(images).reshape(len(images), -1).astype(np.int16))
    return {"captions": np.array(captions), "codes": np.concatenate(codes)}


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Trains the base of this run; goes on from the newest checkpoint."""
    if "autoencoder" in cfg.stages:
        made = work.stage("autoencoder")
        coder = made / Manifest.read(made).outputs["model"]
    else:
        coder = epath.Path(cfg.weights) if cfg.weights else registry.base_folder(cfg.model)
    inputs = {"autoencoder": loading.fingerprint(coder)}

    def body(folder: epath.Path) -> Outcome:
        return train(cfg, mesh, folder, coder)

    sections = ("model", "seed", "pretrain", "compute.dtype")
    return run_stage("pretrain", cfg, work, sections=sections, inputs=inputs, body=body)


def _untrained(shipped: epath.Path, coder: epath.Path) -> loading.LoadedModel:
    """The sizes and words of the base in `shipped`, the autoencoder of `coder`."""
    sizes, tokenizer = family.describe(shipped)
    return loading.LoadedModel(
        sizes, None, autoencoder.load(coder, sizes), tokenizer, family=family
    )


def _begun(base: loading.LoadedModel, model: epath.Path | None, seed: int) -> param_tree.Params:
    """The values of the model in a folder; random ones without one, where image tokens are read as
    the autoencoder's codes at first."""
    if model:
        return jax.tree.map(jnp.asarray, hf.load(model, base.cfg, want=("model",))[0])
    codes = np.asarray(base.vae_params["quantize"]["embedding"])
    codes = codes / np.linalg.norm(codes, axis=-1, keepdims=True) * codes.shape[-1] ** 0.5
    values = param_tree.init(janus.specs(base.cfg), jax.random.key(seed))
    return values | {"gen_embed": jnp.asarray(codes)}


def train(cfg: Config, mesh: jax.sharding.Mesh, folder: epath.Path, coder: epath.Path) -> Outcome:
    """The stage's work: see the module."""
    own, c = cfg.pretrain, pretrain.paced(RECIPE, cfg)
    shipped = registry.base_folder(cfg.model)
    base = _untrained(shipped, coder)
    sizes, at = base.cfg, sharding.batch_sharding(mesh)
    counts = dict(scenes=own.latents, malformed=own.malformed)
    pool = Pool.of(folder, base.encoder(ENCODE_BATCH), seed=cfg.seed, **counts)
    specs = janus.specs(sizes)
    maker = Maker(sizes, base.tokenizer, cfg.seed)

    def make(step: int) -> JointRows:
        drawn = pipeline.local_rows(step, c.rows, at)
        places = [pretrain.place(cfg.seed, 2, i, len(pool.captions)) for i in drawn]
        captions = [pool.captions[i] for i in places]
        return JointRows(
            maker.read(pipeline.local_rows(step, max(1, int(READ * c.rows)), at)),
            maker.drawn(drawn, captions, pool.codes[places], c.text_dropout),
        )

    save = functools.partial(
        hf.save, folder / "model", sizes, vq_params=base.vae_params, source=shipped
    )
    loss_fn = JointLoss(sizes, jnp.dtype(cfg.compute.dtype), cfg.compute.remat, TEXT_WEIGHT)
    whole = bool(cfg.weights) and not (coder / autoencoder.FILE).exists()
    first = _begun(base, coder if whole else None, cfg.seed)
    training = FromScratch("pretrain", cfg, c, specs, loss_fn, first)
    evaluator = QuickEvaluation(cfg, mesh, base, folder, save, EXAM)
    how = dict(evaluator=evaluator, evaluate_every=own.evaluate_every)
    return training.run(mesh, folder, make, **how)[1]
