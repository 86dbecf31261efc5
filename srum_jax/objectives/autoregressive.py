"""Objectives of models that draw token by token: cross-entropy of the tokens that were drawn.

`sft` takes every token alike, `release` by the reward where it lies, `bounded` pushes towards and
away from tokens by their signed advantage with a clipped ratio, which the plain negative
cross-entropy, without a lower bound, must not. All of them are sums over tokens and counts.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from srum_jax.core.loss import Ratio, ratio
from srum_jax.core.param_tree import Params
from srum_jax.models.janus import model as janus
from srum_jax.models.janus.model_config import JanusConfig

_FARTHEST = 5.0  # a difference of log-probabilities that counts
_DUAL = 3.0  # times the advantage: the least that a bad token's term may be


@struct.dataclass
class TokenBatch:
    """Rows of one drawing each.

    prompts int32 [B,P] padded on the left, the last id the mark that begins an image · real bool
    [B,P] · codes int32 [B,n] in raster order · weights float32 [B,n] or advantages float32 [B,n],
    as the objective reads · counted float32 [B,n]: 0 at tokens that show nothing (None: all count).
    """

    prompts: jax.Array
    real: jax.Array
    codes: jax.Array
    weights: jax.Array | None = None
    advantages: jax.Array | None = None
    counted: jax.Array | None = None


@struct.dataclass
class Predicted:
    """log_probs float32 [B,n] of the tokens that were drawn, entropy float32 [B,n] of what might
    have been."""

    log_probs: jax.Array
    entropy: jax.Array


def log_probs(logits: jax.Array, codes: jax.Array) -> jax.Array:
    """log softmax(logits)[code], float32 [B,n], of logits [B,n,V]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """The model as an objective asks it: dtype of matrix products, `remat` what is kept for the
    backward pass."""

    model: JanusConfig
    dtype: DTypeLike
    remat: str

    def __call__(
        self, params: Params, batch: TokenBatch, without_words: jax.Array | None = None
    ) -> Predicted:
        """One pass; without_words bool [B]: rows whose prompts say nothing, as guidance asks."""
        prompts = batch.prompts
        if without_words is not None:
            plain = janus.unconditional(prompts, batch.real, self.model.pad)
            prompts = jnp.where(without_words[:, None], plain, prompts)
        how = dict(dtype=self.dtype, remat=self.remat)
        logits, _ = janus.predict_image_tokens(
            params, self.model, prompts, batch.real, batch.codes, **how
        )
        log_p = jax.nn.log_softmax(logits, axis=-1)
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
        return Predicted(log_probs(logits, batch.codes), entropy)


def token_mean(values: jax.Array, batch: TokenBatch, weights: jax.Array | None = None) -> Ratio:
    """Of values [B,n], optionally times weights [B,n]; the ratio's weight counts tokens and ignores
    `weights`."""
    counted = jnp.ones_like(values) if batch.counted is None else batch.counted
    summed = values * counted if weights is None else values * counted * weights
    return ratio(jnp.sum(summed), jnp.sum(counted))
