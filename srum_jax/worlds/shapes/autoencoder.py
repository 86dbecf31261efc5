"""Stage `autoencoder`: the shapes world's pictures to latents and back, from random weights.

Leaves the averaged parameters under `model/` as `ae.safetensors` and `ae_config.json`, which the
stage `pretrain` reads; the latents' scale and shift are measured. Nothing is left there unless the
exact verifier still reads clean pictures after encode and decode. Another autoencoder (`Coder`) is
trained in the same way.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from srum_jax.config import Config, LoopConfig, OptimConfig
from srum_jax.core import param_tree, registry, sharding
from srum_jax.core.errors import Diverged
from srum_jax.data import pipeline
from srum_jax.data.images import to_float
from srum_jax.models.bagel import hf, model_config, vae
from srum_jax.models.bagel.model_config import BagelConfig, VAEConfig
from srum_jax.stages import preflight
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, run_stage
from srum_jax.stages.preflight import Checks
from srum_jax.worlds.shapes import autoencoder_objective as objective
from srum_jax.worlds.shapes import exam, examples
from srum_jax.worlds.shapes.from_scratch import FromScratch

RECIPE = LoopConfig(
    optim=OptimConfig(
        optimizer="adamw", learning_rate=2e-3, warmup=100, schedule="cosine", b2=0.99, eps=1e-8
    ),
    ema=0.999,
)
KL_WEIGHT = 1e-5  # of the KL term beside the pixel error
CLEAN_IMAGES = 1536  # never trained on: the gate's, and what scale and shift are measured on
GATE = 0.99  # share of them that the verifier must still call right
CLEAN_BATCH = 128


def check(cfg: Config, work: Workdir, found: Checks) -> None:
    """Where the checkpoints go, and what writes the metrics."""
    preflight.check_training(cfg, work, found)


class Coder(Protocol):
    """An autoencoder to be trained: its parameters and its loss."""

    specs: param_tree.Specs
    loss_fn: Callable

    def there_and_back(self, params: param_tree.Params, images: jax.Array) -> jax.Array:
        """uint8 pictures after encode and decode, of float32 [N, H, W, 3] in [-1, 1]."""

    def save(self, folder: epath.Path, params: param_tree.Params, seed: int) -> None:
        """Writes what the stage `pretrain` reads."""


@dataclasses.dataclass(frozen=True)
class FluxCoder:
    """The autoencoder of a BAGEL of these sizes, but for the latents' scale and shift: they are
    known only afterwards, from clean pictures of the seed."""

    model: BagelConfig

    @property
    def sizes(self) -> VAEConfig:
        """Its own, latents as they come."""
        return dataclasses.replace(self.model.vae, scale=1.0, shift=0.0)

    @property
    def specs(self) -> param_tree.Specs:
        """Its parameters."""
        return vae.specs(self.sizes)

    @property
    def loss_fn(self) -> objective.AutoencoderLoss:
        """Its loss."""
        return objective.AutoencoderLoss(self.sizes, KL_WEIGHT)

    def there_and_back(self, params: param_tree.Params, images: jax.Array) -> jax.Array:
        """As `Coder`."""
        return vae.to_uint8(vae.decode(params, self.sizes, vae.encode(params, self.sizes, images)))

    def save(self, folder: epath.Path, params: param_tree.Params, seed: int) -> None:
        """Measures scale and shift, and writes the parameters and the sizes."""
        images = (to_float(pictures) for pictures, _ in clean(seed))
        found = objective.latent_statistics(params, self.sizes, images)
        scale, shift = (round(x, 4) for x in found)
        logging.info("autoencoder: scale %.4f, shift %.4f", scale, shift)
        measured = dataclasses.replace(self.sizes, scale=scale, shift=shift)
        if jax.process_index() == 0:
            hf.save_vae(folder, dataclasses.replace(self.model, vae=measured), params)


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Trains the autoencoder of this run; goes on from the newest checkpoint.

    Raises Diverged if the trained one spoils more clean pictures than `GATE` allows.
    """
    sizes = model_config.from_folder(registry.base_folder(cfg.model))
    return trained(cfg, mesh, work, FluxCoder(sizes))


def trained(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir, coder: Coder) -> Manifest:
    """The stage with this autoencoder."""

    def body(folder: epath.Path) -> Outcome:
        return train(cfg, mesh, folder, coder)

    sections = ("model", "seed", "autoencoder")
    return run_stage("autoencoder", cfg, work, sections=sections, inputs={}, body=body)


def train(cfg: Config, mesh: jax.sharding.Mesh, folder: epath.Path, coder: Coder) -> Outcome:
    """The stage's work: see the module."""
    own = cfg.autoencoder
    c = dataclasses.replace(
        RECIPE, steps=own.steps, checkpoint_every=own.checkpoint_every, log_every=own.log_every
    )
    at = sharding.batch_sharding(mesh)

    def make(step: int):
        return batch(pipeline.local_rows(step, own.batch, at), seed=cfg.seed)

    training = FromScratch("autoencoder", cfg, c, coder.specs, coder.loss_fn)
    state, outcome = training.run(mesh, folder, make)
    share = verified(state.ema, coder, seed=cfg.seed)
    logging.info("autoencoder: %.2f %% of clean pictures pass the verifier", 100 * share)
    if share < GATE:
        raise Diverged(
            f"autoencoder: {share:.2%} of {CLEAN_IMAGES} clean pictures are still right after "
            f"encode and decode, at least {GATE:.0%} must be. Train it longer "
            "(autoencoder.steps), in another workdir"
        )
    coder.save(folder / "model", state.ema, cfg.seed)
    return outcome


def batch(numbers: Sequence[int], *, seed: int) -> dict[str, np.ndarray]:
    """The pictures with these numbers in the endless stream, and the numbers."""
    pictures = np.stack([examples.autoencoder_image(seed, i) for i in numbers])
    return {"images": to_float(pictures), "numbers": np.array(numbers, np.uint32)}


def clean(seed: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Batches of clean pictures uint8 [N, 32, 32, 3] with the captions they must still fit."""
    for first in range(0, CLEAN_IMAGES, CLEAN_BATCH):
        numbers = range(first, min(first + CLEAN_BATCH, CLEAN_IMAGES))
        captions, pictures = zip(*(examples.clean_image(seed, i) for i in numbers), strict=True)
        yield np.stack(pictures), list(captions)


def verified(params: param_tree.Params, coder: Coder, *, seed: int) -> float:
    """Share of clean pictures that the verifier calls right after encode and decode, in [0, 1]."""
    there_and_back = jax.jit(coder.there_and_back)
    right = [
        exam.right_drawings(
            np.asarray(there_and_back(params, jnp.asarray(to_float(pictures)))), captions
        )
        for pictures, captions in clean(seed)
    ]
    return float(np.concatenate(right).mean())
