"""Stage `autoencoder` of the small Janus: the world's pictures to codes and back.

Trained and gated as the world's other autoencoder. The codes are learned: a code and the vectors
that are nearest to it draw each other, gradients pass the choice by (straight through), and an
entropy term keeps all codes in use. Leaves `vq.safetensors` under `model/`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from etils import epath

from srum_jax.config import Config
from srum_jax.core import registry
from srum_jax.core.errors import listed
from srum_jax.core.loss import LossOut, ratio
from srum_jax.core.param_tree import Params, Specs
from srum_jax.models import safetensors_io, tensor_trees
from srum_jax.models.autoencoder_blocks import to_uint8
from srum_jax.models.janus import hf, model_config, vq
from srum_jax.models.janus.model_config import JanusConfig
from srum_jax.stages.manifest import Manifest, Workdir
from srum_jax.worlds.shapes import autoencoder
from srum_jax.worlds.shapes.autoencoder import check
from srum_jax.worlds.shapes.autoencoder_objective import PIXELS, pixels

__all__ = ["Coder", "QuantisedLoss", "check", "load", "run"]

FILE = "vq.safetensors"
COMMITMENT = 0.25  # of the vectors to their codes, beside 1 of the codes to their vectors
ENTROPY = 0.1  # of the two entropies: a vector is sure of its code, all vectors use all codes
TEMPERATURE = 0.1  # of cosines, as logits of the entropy term


@dataclasses.dataclass(frozen=True)
class QuantisedLoss:
    """Errors of the pictures made anew (`pixels`), the pull between vectors and codes, and the
    entropy of the choice: mean over vectors − entropy of the mean, in nats."""

    model: JanusConfig

    def __call__(
        self, params: Params, reference: Params | None, batch: dict, key: jax.Array
    ) -> LossOut:
        """Terms and metrics of {"images": float32 [B, H, W, 3] in [-1, 1]}; nothing is drawn, and
        there is no reference to compare with."""
        images = batch["images"]
        found = vq.unit(vq.features(params, self.model.vq, images)[1])
        codes = vq.nearest(params, found)
        chosen = vq.vectors(params, codes)
        made = vq.picture(params, found + jax.lax.stop_gradient(chosen - found))
        pull = jnp.square(jax.lax.stop_gradient(found) - chosen)
        keep = jnp.square(found - jax.lax.stop_gradient(chosen))
        logits = (
            rearrange(found, "b h w e -> (b h w) e") @ vq.unit(params["quantize"]["embedding"]).T
        )
        log_p = jax.nn.log_softmax(logits / TEMPERATURE)
        each = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
        mean = jnp.mean(jnp.exp(log_p), axis=0)
        spread = -jnp.sum(mean * jnp.log(mean + 1e-9))
        used = jnp.zeros(self.model.vq.codes).at[codes.reshape(-1)].set(1.0)
        return LossOut(
            terms=pixels(made - images, images)
            | {
                "codebook": ratio(pull.sum(), pull.size),
                "commitment": ratio(keep.sum(), keep.size),
                "entropy": ratio(jnp.sum(each - spread), each.size),
            },
            metrics={
                "pixel_error": ratio(jnp.abs(made - images).sum(), images.size),
                "codes_used": ratio(used.sum(), 1),  # of one batch
            },
            coefficients=(
                *PIXELS,
                ("codebook", 1.0),
                ("commitment", COMMITMENT),
                ("entropy", ENTROPY),
            ),
        )


@dataclasses.dataclass(frozen=True)
class Coder:
    """The quantised autoencoder of a Janus of these sizes."""

    model: JanusConfig

    @property
    def specs(self) -> Specs:
        """Its parameters."""
        return vq.specs(self.model.vq)

    @property
    def loss_fn(self) -> QuantisedLoss:
        """Its loss."""
        return QuantisedLoss(self.model)

    def there_and_back(self, params: Params, images: jax.Array) -> jax.Array:
        """uint8 pictures of their codes."""
        sizes = self.model.vq
        return to_uint8(vq.decode(params, sizes, vq.encode(params, sizes, images)))

    def save(self, folder: epath.Path, params: Params, seed: int) -> None:
        """Writes the parameters, float32."""
        entries = hf.table(self.model)["vq"]
        made = tensor_trees.official(params, entries)
        kinds = [(e.name, e.shape, tensor_trees.DTYPES["float32"]) for e in entries]
        folder.mkdir(parents=True, exist_ok=True)
        safetensors_io.write(folder / FILE, kinds, made)


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Trains the autoencoder of this run; goes on from the newest checkpoint.

    Raises Diverged if the trained one spoils more clean pictures than the gate allows.
    """
    sizes = model_config.from_folder(registry.base_folder(cfg.model))
    return autoencoder.trained(cfg, mesh, work, Coder(sizes))


def load(folder: epath.Path, sizes: JanusConfig) -> Params:
    """The parameters in a folder, float32: what `Coder.save` wrote, or those of a whole model.

    Raises ValueError naming the file for one that cannot be used.
    """
    if not (folder / FILE).exists():
        return hf.load(folder, sizes, want=("vae",))[1]
    problems: list[str] = []
    found = safetensors_io.read_header(folder / FILE, problems)
    if problems:
        raise ValueError(listed(problems, 5).strip())
    return tensor_trees.read(found, hf.table(sizes)["vq"])
