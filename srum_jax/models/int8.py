"""Weight-only int8: the large matrices as int8 with a float32 scale per output channel.

Owns which leaves become int8 (`chosen`), how (`quantize_leaf`) and what the tree then looks like
(`specs`). A quantized map {"w", "b"} is {"w": int8, "scale": float32, "b"}, and `layers.linear`
multiplies the product by the scale, so the model's own functions run on either tree. BAGEL-7B-MoT
takes 15.2 GB so instead of 29.2 GB in bfloat16: 1.04 bytes a parameter. For inference: `jax.grad`
refuses int8 leaves.
"""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp

from srum_jax.core import param_tree

LEVELS = 127  # symmetric: -128 is not used
# Matrices that hidden states are multiplied with. Embeddings are looked up, and what reads and
# writes patches, latents and times is small: they stay as they are.
_CHOSEN = re.compile(r"((vit/)?blocks/.*|(connector|aligner|gen_head)/.*|lm_head)/w")


def chosen(path: str) -> bool:
    """Whether the parameter at `path` ("blocks/und/q/w") becomes int8."""
    return _CHOSEN.fullmatch(path) is not None


def _scale_path(path: str) -> str:
    return path.removesuffix("w") + "scale"


@functools.partial(jax.jit, static_argnames="inputs")
def _round(w: jax.Array, inputs: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    w = w.astype(jnp.float32)
    scale = jnp.max(jnp.abs(w), axis=inputs, keepdims=True) / LEVELS
    scale = jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)  # a channel of zeros
    return jnp.round(w / scale).astype(jnp.int8), jnp.squeeze(scale, inputs)


def quantize_leaf(path: str, spec: param_tree.ParamSpec, leaf: jax.Array) -> dict[str, jax.Array]:
    """One parameter -> what replaces it, by full path: {path: array}.

    A chosen matrix gives two leaves, its int8 values under its own path and their scale beside it
    ("blocks/und/q/w" and "blocks/und/q/scale"); any other leaf comes back as it is, alone.

    `spec` is the leaf's in the model's tree; its `fan_in` are the axes that share a scale. Values
    are round(w / scale) in [-127, 127], scale = max|w| / 127 per output channel and layer, so
    |w - values · scale| <= scale / 2. Pure, may be traced; cut arrays stay cut.
    """
    if not chosen(path):
        return {path: leaf}
    values, scale = _round(leaf, spec.fan_in)
    return {path: values, _scale_path(path): scale}


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """`quantize_leaf` for a model of `specs`, leaf by leaf.

    For a loader that fills a flat dict as leaves arrive: `flat.update(quantizer(path, leaf))` never
    holds more of the model in full than the leaf at hand.
    """

    specs: param_tree.Specs

    @functools.cached_property
    def _flat(self) -> dict[str, param_tree.ParamSpec]:
        return param_tree.flatten(self.specs)

    def __call__(self, path: str, leaf: jax.Array) -> dict[str, jax.Array]:
        return quantize_leaf(path, self._flat[path], leaf)


def quantize(params: param_tree.Params, specs: param_tree.Specs) -> param_tree.Params:
    """The whole tree of a model of `specs`, by `quantize_leaf`; the other leaves keep their dtype.

    Raises ValueError if `params` is not a tree of `specs` (a quantized one is not).
    """
    param_tree.check(params, specs, where="int8")
    quantizer = Quantizer(specs)
    found = [quantizer(path, leaf) for path, leaf in param_tree.flatten(params).items()]
    return param_tree.unflatten({path: leaf for part in found for path, leaf in part.items()})


def specs(model_specs: param_tree.Specs, dtype: Any = jnp.float32) -> param_tree.Specs:
    """The specs of `quantize`'s tree: shapes, axes, and dtypes, `dtype` for what stays as it is.

    For shapes, shardings and byte counts; a quantized tree has no initialiser of its own.
    """
    flat = {}
    for path, spec in param_tree.flatten(model_specs).items():
        if not chosen(path):
            flat[path] = dataclasses.replace(spec, dtype=dtype)
            continue
        outputs = [i for i in range(len(spec.shape)) if i not in spec.fan_in]
        flat[path] = dataclasses.replace(spec, init="zeros", dtype=jnp.int8)
        flat[_scale_path(path)] = param_tree.ParamSpec(
            tuple(spec.shape[i] for i in outputs),
            tuple(spec.axes[i] for i in outputs),
            init="ones",
        )
    return param_tree.unflatten(flat)
