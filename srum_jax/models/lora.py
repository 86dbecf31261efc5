"""Low-rank adapters (LoRA, arXiv 2106.09685): y = x·w + b + scale · (x·a)·b of chosen projections.

Owns which matrices are adapted (`Projections`), the factors' specs and how factors and weights
become one matrix. A map {"w", "b"} at `path` is adapted by a sub-tree {"lora": {"a", "b"}} beside
it, which `layers.linear` reads; so adapters and base are two trees that `param_tree.merge` puts
together, and the model without its adapters is the base itself: no copy is kept of it.

Factors are applied, not merged, while they are trained. Merging would write every adapted matrix
anew and take the gradient of the whole matrix before that of its factors: two more copies of what
is adapted, for one expert of BAGEL-7B-MoT 13 GB of bfloat16 each (measured on a compiled step of 8
layers of width 512: 239 MB more for 122 MB of weights). Applied, rank 16 adds 1 % to the products.
"""

import dataclasses
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

from srum_jax.core import param_tree

EXPERTS = {"gen": "gen", "all": "und|gen"}  # by name, as regular expressions


@dataclasses.dataclass(frozen=True)
class Projections:
    """Whether a parameter path is a projection of attention or MLP in `experts`: "gen" | "all".

    A model without experts has its projections in "blocks" itself: they count as either."""

    experts: str

    def __call__(self, path: str) -> bool:
        pattern = rf"blocks/(({EXPERTS[self.experts]})/)?(q|k|v|o|gate|up|down)/w"
        return re.fullmatch(pattern, path) is not None


def specs(base: param_tree.Specs, rank: int, accepts: Callable[[str], bool]) -> param_tree.Specs:
    """The factors of every matrix [L, in…, out…] of `base` whose path ("…/w") `accepts` takes.

    {"lora": {"a": [L, in…, rank], "b": [L, rank, out…]}} beside each "w", float32, cut over the
    mesh as the matrix is. a is drawn with deviation 1/√in, b is zero, so adapters change nothing at
    first. Raises ValueError where the rank is not below the matrix's own.
    """
    flat = {}
    for path, spec in param_tree.flatten(base).items():
        if not accepts(path):
            continue
        lead, axes = spec.fan_in[0], spec.axes
        first = spec.fan_in[-1] + 1  # of the outputs
        inputs, outputs = spec.shape[lead:first], spec.shape[first:]
        smaller = min(math.prod(inputs), math.prod(outputs))
        if rank >= smaller:
            raise ValueError(
                f"{path}: adapters of rank {rank} for a matrix of rank {smaller}: the rank must be "
                "below that"
            )
        where = path.removesuffix("w") + "lora"
        flat[f"{where}/a"] = param_tree.ParamSpec(
            (*spec.shape[:first], rank), (*axes[:first], None), fan_in=spec.fan_in
        )
        flat[f"{where}/b"] = dataclasses.replace(
            spec,
            shape=(*spec.shape[:lead], rank, *outputs),
            axes=(*axes[:lead], None, *axes[first:]),
            init="zeros",
            fan_in=(lead,),
        )
    return param_tree.unflatten(flat)


def scaled(params: param_tree.Params, scale: float) -> param_tree.Params:
    """`params` whose adapters count `scale` times: their a is multiplied by it."""
    return param_tree.unflatten(
        {
            p: scale * x if p.endswith("/lora/a") else x
            for p, x in param_tree.flatten(params).items()
        }
    )


def lessened(adapters: param_tree.Params, share: float) -> param_tree.Params:
    """Adapters that change the model by `share` times as much: their b is multiplied by it."""
    flat = param_tree.flatten(adapters)
    return param_tree.unflatten(
        {p: share * x if p.endswith("/lora/b") else x for p, x in flat.items()}
    )


@dataclasses.dataclass(frozen=True)
class AdaptedLoss:
    """`loss(params, …)` of a model whose adapters count `scale` times."""

    loss: Callable
    scale: float

    def __call__(self, params: param_tree.Params, *rest):
        return self.loss(scaled(params, self.scale), *rest)


@jax.jit
def merged_matrix(w: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """w + scale · a·b in w's dtype, of w [L, in…, out…], a [L, in…, r], b [L, r, out…]."""

    def one(layer):  # alone: of all layers the sums in float32 would take twice their bfloat16
        w, a, b = layer
        a, b = rearrange(a, "... r -> (...) r"), rearrange(b, "r ... -> r (...)")
        # HIGHEST: what is exported must not be rounded to bfloat16 on the way.
        product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        return (w.astype(jnp.float32) + scale * product.reshape(w.shape)).astype(w.dtype)

    return jax.lax.map(one, (w, a, b))


def merge(
    params: param_tree.Params, adapters: param_tree.Params, scale: float
) -> param_tree.Params:
    """`params` with w + scale · a·b in place of every adapted w, in w's dtype and without adapters.

    Raises ValueError if an adapter has no matrix in `params`.
    """
    flat, factors = param_tree.flatten(params), param_tree.flatten(adapters)
    for path in factors:
        where, _, which = path.rpartition("/lora/")
        if f"{where}/w" not in flat:
            raise ValueError(f"{path}: the model has no {where}/w that this adapts")
        if which == "a":
            w, b = flat[f"{where}/w"], factors[f"{where}/lora/b"]
            flat[f"{where}/w"] = merged_matrix(w, factors[path], b, scale)
    return param_tree.unflatten(flat)
