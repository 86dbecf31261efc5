"""Floating-point operations and bytes of the model, counted from its matrices and its lanes.

Compilers count the body of a loop once, so nothing is asked of them. A multiply-add is 2; norms,
activations and softmax, below a percent, are left out. Attention counts every pair of tokens of a
row, or as many keys as `RowTokens` says; back-ends that leave hidden blocks out compute less.
"""

import dataclasses
import math

import jax.numpy as jnp

from srum_jax.core import param_tree
from srum_jax.models import int8
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import vae
from srum_jax.models.bagel.model_config import BagelConfig, VAEConfig

_LANE = {  # beginning of a matrix's path -> the lane whose tokens it multiplies
    "blocks/und/": "und",
    "blocks/gen/": "gen",
    "vae2llm/": "gen",
    "llm2vae/": "gen",
    "time/": "times",
    "connector/": "vit",
    "vit/": "vit",
    "lm_head/": "labels",
}


@dataclasses.dataclass(frozen=True)
class RowTokens:
    """Tokens of one row: lanes und and gen, `keys` each of them sees (0: those of both lanes), ViT
    patches, embedded times, label slots."""

    und: int
    gen: int
    keys: int = 0
    vit: int = 0
    times: int = 0
    labels: int = 0


def products(specs: param_tree.Specs, work: RowTokens) -> int:
    """Operations of a row's tokens times those matrices of `specs` that multiply tokens."""
    total = 0
    for path, spec in param_tree.flatten(specs).items():
        lane = next((lane for start, lane in _LANE.items() if path.startswith(start)), None)
        if lane and spec.fan_in:
            total += 2 * math.prod(spec.shape) * getattr(work, lane)
    return total


def matrices(cfg: BagelConfig, work: RowTokens) -> int:
    """Numbers in the matrices that some token of a row goes through."""
    once = {field.name: min(1, getattr(work, field.name)) for field in dataclasses.fields(work)}
    return products(bagel.specs(cfg), RowTokens(**once)) // 2


def attention(cfg: BagelConfig, work: RowTokens) -> int:
    """Operations of a row's scores and sums of values, of the stack and of the vision tower."""
    new = work.und + work.gen
    stack = 4 * new * (work.keys or new) * cfg.llm.hidden * cfg.llm.layers
    return stack + 4 * work.vit**2 * cfg.vit.hidden * cfg.vit.layers


def forward(cfg: BagelConfig, work: RowTokens) -> int:
    """Operations of a forward pass of one row."""
    return products(bagel.specs(cfg), work) + attention(cfg, work)


def step(
    cfg: BagelConfig, work: RowTokens, *, trained: param_tree.Specs, remat: str, compared: int
) -> tuple[int, int]:
    """(operations of a training step of one row, those of them that are needed by the mathematics).

    trained: specs of what is optimised · remat: a name of `layers.REMAT` · compared: models
    that predict too. The backward pass of a product is one product for its input and, where the
    matrix is trained, one for the matrix; of attention it is 2 of its forward pass, and 1/2 to
    compute the scores again.
    """
    ahead = forward(cfg, work)
    pairs = attention(cfg, work)
    back = products(bagel.specs(cfg), work) + 2 * pairs + products(trained, work)
    needed = (1 + compared) * ahead + back
    again = {"none": 0, "dots": pairs, "full": ahead}[remat]
    return needed + again + pairs // 2, needed


def cached(cfg: BagelConfig) -> int:
    """Numbers that a cache holds of a token: its keys and values."""
    return 2 * cfg.llm.layers * cfg.llm.kv_heads * cfg.llm.head_dim


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a model: `weights` with the autoencoder's, a `token` of a cache, and those that
    `writing` takes besides: the layers of what writes once more, apart; spared: whether it also
    writes without these, where a device lacks them."""

    weights: int
    token: int
    writing: int
    spared: bool = False

    @property
    def least(self) -> int:
        """Bytes without which it does not write, caches apart."""
        return self.weights + (0 if self.spared else self.writing)


def memory(cfg: BagelConfig, precision: str) -> Memory:
    """What a model takes in a `precision`, float32 | bfloat16 | int8 (matrices; the cache is
    bfloat16); the autoencoder is float32 in all of them."""
    dtype = jnp.dtype("float32" if precision == "float32" else "bfloat16")
    specs, coder = bagel.specs(cfg), vae.specs(cfg.vae)
    if precision == "int8":
        leaves = param_tree.flatten(int8.specs(specs, dtype)).items()
        sizes = {path: math.prod(s.shape) * jnp.dtype(s.dtype).itemsize for path, s in leaves}
    else:
        leaves = param_tree.flatten(specs).items()
        sizes = {path: math.prod(s.shape) * dtype.itemsize for path, s in leaves}
    return Memory(
        weights=sum(sizes.values()) + 4 * param_tree.count(coder),
        token=cached(cfg) * dtype.itemsize,
        writing=sum(size for path, size in sizes.items() if path.startswith("blocks/und/")),
        spared=True,
    )


def decode(cfg: VAEConfig, size: tuple[int, int]) -> int:
    """Operations of the autoencoder's decoder on an image of `size` (height, width) pixels."""
    last = len(cfg.ch_mult) - 1
    least = math.prod(side // cfg.downsample for side in size)  # places of a latent
    total = 4 * least**2 * cfg.ch * cfg.ch_mult[-1]  # attention, in the middle
    for path, spec in param_tree.flatten(vae.specs(cfg)["decoder"]).items():
        if path.endswith("/w"):
            total += 2 * math.prod(spec.shape) * least * 4 ** _doublings(path, last)
    return total


def _doublings(path: str, last: int) -> int:
    """How often the sides of a latent were doubled where a kernel of the decoder is applied."""
    part, *rest = path.split("/")
    if part == "up":  # levels count down; each but level 0 doubles behind its blocks
        return last - int(rest[0]) + (rest[1] == "upsample")
    return last if part == "conv_out" else 0
