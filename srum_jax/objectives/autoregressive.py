"""Objectives of models that draw token by token, by the log-probabilities of what was drawn.

With ℓ the model's log-probability of a drawn token and ℓ₀ the starting model's, a token's loss is

    sft              −ℓ
    srum_release     −(R + λ_c)·ℓ                              R in [0, 1]
    srum_advantage   −J(ρ, A) or unlikelihood, ρ = exp(ℓ − ℓ₀)  A in [−1, 1]

A plain −A·(−ℓ) has no lower bound for A < 0; J is clipped on both sides (PPO, arXiv 1707.06347,
and the dual clip of arXiv 1912.09729). The anchor λ adds λ times the k3 estimate of the
Kullback-Leibler distance to the starting model. One language model draws and answers: whoever
judges must be the starting model.

A base is pretrained by `JointLoss`: cross-entropy of words and of codes, in rows of their own.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.typing import DTypeLike

from srum_jax.config import TrainConfig
from srum_jax.core.errors import BadInput
from srum_jax.core.loss import LossOut, Ratio, ratio
from srum_jax.core.param_tree import Params
from srum_jax.data.schema import CAUSAL, PAD_SEGMENT, Batch, Tokens
from srum_jax.models.janus import llama
from srum_jax.models.janus import model as janus
from srum_jax.models.janus.model_config import JanusConfig
from srum_jax.objectives import srum, terms

BY_ADVANTAGE = ("srum_advantage",)  # read advantages, the others scores
_FARTHEST = 5.0  # of ℓ and ℓ₀ from each other, beyond which a difference counts no more
_DUAL = 3.0  # a bad token's J is at least so many times its advantage
_TINY = 1e-6  # of 1 − p under a logarithm


@struct.dataclass
class Predicted:
    """Of each drawn token, float32 [B,G]: the log-probability of its code, and the entropy of all
    codes there; trained: which tokens of the lane count, bool [B,G]; wordless: of these, which
    stand behind a prompt without its words, bool [B,G]."""

    log_probs: jax.Array
    entropy: jax.Array
    trained: jax.Array
    wordless: jax.Array


def log_probs(logits: jax.Array, codes: jax.Array) -> jax.Array:
    """log softmax(logits)[code], float32 [...,G], of logits [...,G,V]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """The model as an objective asks it: dtype of matrix products, `remat` what is kept for the
    backward pass.

    A packed row of prompts and noisy images is read as its sequences are drawn: each token has a
    position of its own and sees what stands before it; what packing puts behind a text and behind
    an image is left out.
    """

    model: JanusConfig
    dtype: DTypeLike
    remat: str

    def __call__(self, params: Params, batch: Batch) -> Predicted:
        """One pass over the rows of a batch, whose latents are codes."""
        codes = batch.latents[..., 0].astype(jnp.int32)
        logits = self.logits(params, batch, codes)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
        trained = terms.trained(batch)
        wordless = trained & _of_segments_with(batch, self.model.pad)
        return Predicted(log_probs(logits, codes), entropy, trained, wordless)

    def logits(self, params: Params, batch: Batch, codes: jax.Array) -> jax.Array:
        """Logits float32 [B,G,codes] of each token of the lane of images, given those before it."""
        x = jnp.concatenate(
            [
                janus.embed_text(params, batch.text_ids, self.dtype),
                janus.embed_image_tokens(params, codes, self.dtype),
            ],
            axis=1,
        )
        how = dict(remat=self.remat, backend=self.model.attention)
        hidden, _ = llama.stack(params, self.model.llm, x, self.lane(batch), **how)
        before = self._before(batch)
        return janus.image_logits(params, jnp.take_along_axis(hidden, before[..., None], axis=1))

    def lane(self, batch: Batch) -> Tokens:
        """The tokens of both lanes as sequences: [B,U+G]."""
        segment, index = (
            jnp.concatenate([getattr(lane, name) for lane in (batch.und, batch.gen)], axis=1)
            for name in ("segment", "index")
        )
        ends = (batch.text_ids == self.model.eos) | (batch.text_ids == self.model.end_of_image)
        ends = jnp.pad(ends, ((0, 0), (0, batch.gen.segment.shape[1])))
        real = (segment != PAD_SEGMENT) & ~ends
        same = segment[:, :, None] == segment[:, None, :]
        earlier = index[:, None, :] < index[:, :, None]
        position = jnp.sum(same & earlier & real[:, None, :], axis=2, dtype=jnp.int32)
        zero = jnp.zeros_like(segment)
        return Tokens(
            segment=jnp.where(real, segment, PAD_SEGMENT),
            split=zero,
            mode=zero + CAUSAL,
            position=jnp.where(real, position, 0),
            index=jnp.where(real, index, -1),
        )

    def _before(self, batch: Batch) -> jax.Array:
        """The place in the joined lanes of what each image token follows, int32 [B,G]: the token
        before it, or the mark that begins its image."""
        und, gen = batch.text_ids.shape[1], batch.latents.shape[1]
        begins = (batch.text_ids == self.model.start_of_image) & (batch.und.segment != PAD_SEGMENT)
        number = jnp.cumsum(begins, axis=1) - 1  # of the image that a mark begins
        images = jnp.arange(batch.noisy.shape[1])[None, None]
        mine = begins[:, :, None] & (number[:, :, None] == images)
        mark = jnp.take_along_axis(jnp.argmax(mine, axis=1), batch.latent_images, axis=1)
        first = jnp.all(batch.latent_cells == 0, axis=-1)
        place = und + jnp.maximum(jnp.arange(gen) - 1, 0)[None]
        return jnp.where(first, mark, place).astype(jnp.int32)


def _of_segments_with(batch: Batch, token: int) -> jax.Array:
    """Which tokens of the lane of images belong to a sample whose text holds `token`."""
    here = (batch.text_ids == token) & (batch.und.segment != PAD_SEGMENT)
    same = batch.gen.segment[:, :, None] == batch.und.segment[:, None, :]
    return jnp.any(same & here[:, None, :], axis=2)


def token_mean(values: jax.Array, mask: jax.Array, weights: jax.Array | None = None) -> Ratio:
    """Of values [B,G] over masked tokens, optionally times weights [B,G]; the ratio's weight counts
    tokens and ignores `weights`."""
    mask = mask.astype(jnp.float32)
    summed = values * mask if weights is None else values * mask * weights
    return ratio(jnp.sum(summed), jnp.sum(mask))


def clipped(
    log_p: jax.Array, start: jax.Array, advantages: jax.Array, *, clip: float
) -> tuple[jax.Array, jax.Array]:
    """(−J, whether J is clipped) of each token, from ℓ, ℓ₀ and A in [−1, 1], all of one shape.

    J = min(ρA, clip(ρ, 1 − ε, 1 + ε)A), and for A < 0 at least 3A; ρ = exp(clip(ℓ − ℓ₀, ±5)). In
    [−1 − ε, 3]. A token that is good and likelier by ε, or bad and rarer by ε, has no gradient.
    """
    start, advantages = map(jax.lax.stop_gradient, (start, advantages))
    rho = jnp.exp(jnp.clip(log_p - start, -_FARTHEST, _FARTHEST))
    plain, held = rho * advantages, jnp.clip(rho, 1 - clip, 1 + clip) * advantages
    least = jnp.where(advantages < 0, _DUAL * advantages, -jnp.inf)
    value = jnp.maximum(jnp.minimum(plain, held), least)
    return -value, value != plain


def unlikelihood(log_p: jax.Array, advantages: jax.Array) -> jax.Array:
    """A·(−ℓ) of good tokens, |A|·(−log(1 − p)) of bad ones: bounded below by 0, and its push away
    fades with p."""
    advantages = jax.lax.stop_gradient(advantages)
    away = -jnp.log(1 - jnp.exp(log_p) + _TINY)
    return jnp.where(advantages < 0, -advantages * away, -advantages * log_p)


def k3(log_p: jax.Array, start: jax.Array) -> jax.Array:
    """exp(Δ) − Δ − 1 of Δ = clip(ℓ₀ − ℓ, ±5): an estimate of the distance to the starting model
    that is never negative, and 0 at it (Schulman, "Approximating KL divergence")."""
    delta = jnp.clip(jax.lax.stop_gradient(start) - log_p, -_FARTHEST, _FARTHEST)
    return jnp.exp(delta) - delta - 1


# -------------------------------------------------------------------- through the model, by name


def _sft(out: Predicted, start, batch: Batch, cfg: TrainConfig) -> LossOut:
    return LossOut({"reward": token_mean(-out.log_probs, out.trained)}, {}, (("reward", 1.0),))


def _srum_release(out: Predicted, start, batch: Batch, cfg: TrainConfig) -> LossOut:
    weights = srum.release_weights(batch, cfg.rewards, cfg.map_sampling)
    ce = token_mean(-out.log_probs, out.trained)
    return LossOut(
        terms={"reward": token_mean(-out.log_probs, out.trained, weights), "constraint": ce},
        metrics={"token_weight": token_mean(weights, out.trained)},
        coefficients=(("reward", 1.0), ("constraint", cfg.lambda_constraint)),
    )


def _srum_advantage(out: Predicted, start, batch: Batch, cfg: TrainConfig) -> LossOut:
    advantages = srum.advantage_weights(batch, cfg.rewards, cfg.map_sampling)
    if cfg.repulsion == "ratio":
        loss, held = clipped(out.log_probs, start, advantages, clip=cfg.clip)
    else:
        loss, held = unlikelihood(out.log_probs, advantages), jnp.zeros_like(out.trained)
    return LossOut(
        terms={"advantage": token_mean(loss, out.trained)},
        metrics={
            "token_advantage": token_mean(advantages, out.trained),
            "token_advantage_size": token_mean(jnp.abs(advantages), out.trained),
            "repelled": token_mean((advantages < 0).astype(jnp.float32), out.trained),
            "clip_fraction": token_mean(held.astype(jnp.float32), out.trained),
        },
        coefficients=(("advantage", 1.0),),
    )


OBJECTIVES = {"sft": _sft, "srum_release": _srum_release, "srum_advantage": _srum_advantage}


def needs_reference(objective: str, anchor: float) -> bool:
    """Whether a loss compares with the log-probabilities of the starting model."""
    return anchor > 0 or objective in BY_ADVANTAGE


@dataclasses.dataclass(frozen=True)
class TokenLoss(terms.Objective):
    """The objective that `cfg.objective` names, anchored by `cfg.anchor`, as a loss function."""

    cfg: TrainConfig
    predict: Predictor

    def __post_init__(self):
        if self.cfg.objective not in OBJECTIVES:
            raise BadInput(
                f'train.objective = "{self.cfg.objective}" is of models that draw by flow '
                f"matching; one that draws token by token has {', '.join(OBJECTIVES)}"
            )
        if self.cfg.anchor_to == "first":
            raise BadInput(
                'train.anchor_to = "first" is of models that draw by flow matching; one that draws '
                'token by token is anchored to the model of its "round"'
            )

    def __call__(
        self, params: Params, reference: Params | None, batch: Batch, key: jax.Array
    ) -> LossOut:
        """Terms and metrics of a batch; `reference`: the model the run started from, where
        `needs_reference`.

        Reports "ce" of prompts, "ce_wordless" of those without their words (0 where a batch has
        none; the gap between them is what guidance lives on), "entropy" and, where there is a
        reference, "drift" (the k3 estimate in nats a token) and "relative_drift" (the same in units
        of ln(codes); `train.max_drift` bounds it).
        """
        cfg, start = self.cfg, None
        if needs_reference(cfg.objective, cfg.anchor):
            start = jax.lax.stop_gradient(self.predict(reference, batch).log_probs)
        out = self.predict(params, batch)
        found = OBJECTIVES[cfg.objective](out, start, batch, cfg)
        metrics = {
            "ce": token_mean(-out.log_probs, out.trained & ~out.wordless),
            "ce_wordless": token_mean(-out.log_probs, out.wordless),
            "entropy": token_mean(out.entropy, out.trained),
        }
        if start is not None:
            drift = token_mean(k3(out.log_probs, start), out.trained)
            most = float(np.log(self.predict.model.vq.codes))
            metrics |= {"drift": drift, "relative_drift": (drift[0], drift[1] * most)}
            if cfg.anchor:
                found = found.replace(
                    terms=found.terms | {"anchor": drift},
                    coefficients=(*found.coefficients, ("anchor", cfg.anchor)),
                )
        return found.replace(metrics=metrics | found.metrics)


def loss(cfg: TrainConfig, sizes: JanusConfig, *, dtype: DTypeLike, remat: str) -> TokenLoss:
    """What a config trains such a model by. Raises BadInput for an objective of other families."""
    return TokenLoss(cfg, Predictor(sizes, dtype, remat))


# ------------------------------------------------------------------ pretraining of both sides


@struct.dataclass
class ReadRows:
    """Pictures with what is asked about them, B rows of S tokens.

    ids int32 [B,S] and their `lane` [B,S] · patches float32 [N,P,p·p·3] of the pictures, as
    `models/janus/model.py`, embed, reads them · slots int32 [B,Y]: places whose next token is the
    target `labels` int32 [B,Y], with `weights` float32 [B,Y] (0: padding)
    """

    ids: jax.Array
    lane: Tokens
    patches: jax.Array
    slots: jax.Array
    labels: jax.Array
    weights: jax.Array


@struct.dataclass
class DrawnRows:
    """prompts int32 [B,P] padded on the left, real bool [B,P], and codes int32 [B,n] behind."""

    prompts: jax.Array
    real: jax.Array
    codes: jax.Array


@struct.dataclass
class JointRows:
    """A step's rows of both kinds."""

    read: ReadRows
    drawn: DrawnRows


@dataclasses.dataclass(frozen=True)
class JointLoss:
    """L = text_weight·CE(words) + CE(codes), each a mean over its targets."""

    model: JanusConfig
    dtype: DTypeLike
    remat: str
    text_weight: float

    def __call__(
        self, params: Params, reference: Params | None, batch: JointRows, key: jax.Array
    ) -> LossOut:
        """Terms and metrics of a batch; nothing is drawn, and there is no reference."""
        words, labels = self.words(params, batch.read), batch.read.labels
        weights, total = batch.read.weights, jnp.sum(batch.read.weights)
        ce = optax.softmax_cross_entropy_with_integer_labels(words, labels)
        right = (jnp.argmax(words, axis=-1) == labels).astype(jnp.float32)
        drawn = batch.drawn
        how = dict(dtype=self.dtype, remat=self.remat)
        logits, _ = janus.predict_image_tokens(
            params, self.model, drawn.prompts, drawn.real, drawn.codes, **how
        )
        codes = optax.softmax_cross_entropy_with_integer_labels(logits, drawn.codes)
        return LossOut(
            terms={
                "ce": ratio(jnp.sum(ce * weights), total),
                "image_ce": ratio(jnp.sum(codes), codes.size),
            },
            metrics={"accuracy": ratio(jnp.sum(right * weights), total)},
            coefficients=(("ce", self.text_weight), ("image_ce", 1.0)),
        )

    def words(self, params: Params, rows: ReadRows) -> jax.Array:
        """Logits float32 [B,Y,V] at the slots."""
        x = janus.embed(params, self.model, rows.ids, rows.patches, dtype=self.dtype)
        how = dict(remat=self.remat, backend=self.model.attention)
        hidden, _ = llama.stack(params, self.model.llm, x, rows.lane, **how)
        return janus.logits(params, jnp.take_along_axis(hidden, rows.slots[..., None], axis=1))
