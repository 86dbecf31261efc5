"""A thin bridge for users of flax.linen: the same parameters and functions behind `init`/`apply`.

Owns nothing of the model: `variables["params"]` is the nested dict that the rest of the package
uses, and every method is the function of the same name in `models/bagel/model.py`. For shardings
use `core.sharding.shardings(bagel.specs(cfg), mesh)`; the leaves carry no metadata.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from srum_jax.core import param_tree
from srum_jax.data.schema import Batch
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BagelConfig


class BagelModule(nn.Module):
    """BAGEL of sizes `cfg`, the autoencoder excepted.

    `model.init(key, batch, x_t, t)["params"]` equals
    `core.param_tree.init(bagel.specs(cfg), key)` bit for bit (inside another module the key is
    first folded with the module's path), and `model.apply({"params": params}, ...)` equals the
    function on `params`. `dtype` is that of matrix products, `param_dtype` that of fresh
    parameters, `remat` as in `bagel.forward`.
    """

    cfg: BagelConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: str = "full"

    def setup(self) -> None:
        """Declares every sub-tree of `bagel.specs` as a parameter (flax calls it)."""
        # The key as it was given: linen would fold a counter into it.
        root = self.scope.rngs["params"].as_jax_rng() if self.has_rng("params") else None

        def draw(key: jax.Array, name: str, specs: param_tree.Specs) -> param_tree.Params:
            key = key if root is None else root
            return param_tree.init({name: specs}, key, self.param_dtype)[name]

        for name, specs in bagel.specs(self.cfg).items():
            self.param(name, functools.partial(draw, name=name, specs=specs))

    @property
    def _params(self) -> param_tree.Params:
        return self.variables["params"]

    def __call__(
        self, batch: Batch, x_t: jax.Array, t: jax.Array, *, keep: str = "none"
    ) -> tuple[jax.Array, jax.Array, Any]:
        """`bagel.forward`: (und [B,U,D], gen [B,G,D], kept)."""
        return bagel.forward(
            self._params, self.cfg, batch, x_t, t, dtype=self.dtype, remat=self.remat, keep=keep
        )

    def velocity(self, gen: jax.Array) -> jax.Array:
        """`bagel.velocity`: [B,G,D] -> [B,G,p·p·Z] float32."""
        return bagel.velocity(self._params, gen)

    def logits(self, und: jax.Array, slots: jax.Array) -> jax.Array:
        """`bagel.logits`: [B,U,D], [B,Y] -> [B,Y,V] float32."""
        return bagel.logits(self._params, und, slots)
