"""What a Janus takes: bytes of weights and caches, operations of a training step."""

import math

import jax.numpy as jnp

from srum_jax.core import param_tree
from srum_jax.models import int8
from srum_jax.models.bagel.cost import Memory, RowTokens
from srum_jax.models.janus import model, vq
from srum_jax.models.janus.model_config import JanusConfig


def memory(cfg: JanusConfig, precision: str) -> Memory:
    """What a model takes in a `precision`, float32 | bfloat16 | int8 (matrices; the cache is
    bfloat16); the autoencoder is float32 in all of them."""
    dtype = jnp.dtype("float32" if precision == "float32" else "bfloat16")
    specs, coder = model.specs(cfg), vq.specs(cfg.vq)
    made = int8.specs(specs, dtype) if precision == "int8" else specs
    sizes = {
        path: math.prod(s.shape) * jnp.dtype(s.dtype if precision == "int8" else dtype).itemsize
        for path, s in param_tree.flatten(made).items()
    }
    return Memory(
        weights=sum(sizes.values()) + 4 * param_tree.count(coder),
        token=cached(cfg) * dtype.itemsize,
        writing=sum(size for path, size in sizes.items() if path.startswith("blocks/")),
    )


_LANES = {  # beginning of a matrix's path -> the lanes whose tokens it multiplies
    "blocks/": ("und", "gen"),
    "gen_aligner/": ("gen",),
    "gen_head/": ("gen",),
    "aligner/": ("vit",),
    "vit/": ("vit",),
    "lm_head/": ("labels",),
}


def products(specs: param_tree.Specs, work: RowTokens) -> int:
    """Operations of a row's tokens times those matrices of `specs` that multiply tokens."""
    total = 0
    for path, spec in param_tree.flatten(specs).items():
        lanes = next((lanes for start, lanes in _LANES.items() if path.startswith(start)), ())
        if spec.fan_in:
            total += 2 * math.prod(spec.shape) * sum(getattr(work, lane) for lane in lanes)
    return total


def matrices(cfg: JanusConfig, work: RowTokens) -> int:
    """Numbers in the matrices that some token of a row goes through."""
    total = 0
    for path, spec in param_tree.flatten(model.specs(cfg)).items():
        lanes = next((lanes for start, lanes in _LANES.items() if path.startswith(start)), ())
        if spec.fan_in and any(getattr(work, lane) for lane in lanes):
            total += math.prod(spec.shape)
    return total


def forward(cfg: JanusConfig, work: RowTokens) -> int:
    """Operations of a forward pass of one row, its pictures' scores left out."""
    new = work.und + work.gen
    pairs = 4 * new * (work.keys or new) * cfg.llm.heads * cfg.llm.head_dim * cfg.llm.layers
    return products(model.specs(cfg), work) + pairs


def cached(cfg: JanusConfig) -> int:
    """Numbers that a cache holds of a token: its keys and values."""
    return 2 * cfg.llm.layers * cfg.llm.kv_heads * cfg.llm.head_dim


def decode(cfg: JanusConfig) -> int:
    """Operations of the autoencoder's decoder on one image, its attention left out."""
    last, total = len(cfg.vq.ch_mult) - 1, 0
    for path, spec in param_tree.flatten(vq.specs(cfg.vq)["decoder"]).items():
        if not path.endswith("/w"):
            continue
        part, *rest = path.split("/")  # of levels each but the last doubles behind its blocks
        doubled = int(rest[0]) + (rest[1] == "upsample") if part == "up" else 0
        doubled = last if part == "conv_out" else doubled
        total += 2 * math.prod(spec.shape) * cfg.image_tokens * 4**doubled
    return total


def step(
    cfg: JanusConfig, work: RowTokens, *, trained: param_tree.Specs, remat: str, compared: int
) -> tuple[int, int]:
    """(operations of a training step of one row, those of them that are needed by the mathematics);
    arguments and rules as of BAGEL's `cost.step`."""
    ahead = forward(cfg, work)
    pairs = ahead - products(model.specs(cfg), work)
    back = products(model.specs(cfg), work) + 2 * pairs + products(trained, work)
    needed = (1 + compared) * ahead + back
    again = {"none": 0, "dots": pairs, "full": ahead}[remat]
    return needed + again + pairs // 2, needed
