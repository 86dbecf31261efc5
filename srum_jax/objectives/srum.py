"""The self-reward family around one formula, and the choice among its members.

With v the model's velocity, u = noise − x_0, v₀ the velocity of the starting model, all but `dpo`
are L = κ‖v − v₀‖² + 2α⟨v − v₀, v₀ − u⟩ up to a constant:

    sft              α = 1                     κ = 1
    srum_release     α = R + λ_c               κ = R + λ_c            R in [0, 1], x_gt = x_bad
    srum_positive    α = M                     κ = M                  M in [0, 1]
    srum_paper       α = max(R, −cap) + λ_c    κ = max(R, 0) + λ_c    R in [−1, 1]
    srum_advantage   α = 1 + s·A               κ = 1                  A in [−1, 1]
    nft              α = βA                    κ = β²                 A in [−1, 1]

`dpo` compares pairs of images (`dpo.py`); where training starts its gradient is that of α = ±β, by
the side, if every token counts. The anchor λ adds λ‖v − v₀‖², that is λ to κ. A token with α < 0 is
repelled from its own image; κ > 0 keeps that bounded below, by −α²‖v₀ − u‖²/κ, with the minimum at
v = v₀ − α(v₀ − u)/κ.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from srum_jax import flow
from srum_jax.config import TrainConfig
from srum_jax.core.loss import LossOut, Ratio, ratio
from srum_jax.core.param_tree import Params
from srum_jax.data.schema import Batch, Rewards, Sampling
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.objectives import terms
from srum_jax.objectives.dpo import dpo, pull, sides
from srum_jax.objectives.flow_grpo import FlowGrpo
from srum_jax.objectives.nft import nft
from srum_jax.rewards import maps
from srum_jax.rewards.maps import WeightRule

BY_ADVANTAGE = ("srum_advantage", "nft", "dpo", "flow_grpo")  # read these, the others scores
STEPWISE = ("flow_grpo",)  # read steps of trajectories, the others noised latents


def sft(velocity: jax.Array, batch: Batch, draws: flow.Draws, mask: jax.Array) -> Ratio:
    """Plain flow matching: ‖v − (noise − x_0)‖², mean over trained tokens and channels."""
    return terms.squared_error(velocity, flow.target(batch.latents, draws.noise), mask)


def release(
    velocity: jax.Array,
    batch: Batch,
    draws: flow.Draws,
    mask: jax.Array,
    weights: jax.Array,
) -> tuple[Ratio, Ratio]:
    """(L_reward, L_con) of the released code (`bagel.py` 185-297; specification section 6).

    L_reward = mean R‖v − (noise − x_bad)‖² with token weights R [B,G]; L_con = the same without
    R towards `batch.targets` (x_gt), or towards x_bad where there is none. The loss is
    L_reward + λ·L_con.
    """
    good = batch.latents if batch.targets is None else batch.targets
    return (
        terms.squared_error(
            velocity,
            flow.target(batch.latents, draws.noise),
            mask,
            jax.lax.stop_gradient(weights),
        ),
        terms.squared_error(velocity, flow.target(good, draws.noise), mask),
    )


def paper(
    velocity: jax.Array,
    start: jax.Array,
    batch: Batch,
    draws: flow.Draws,
    mask: jax.Array,
    weights: jax.Array,
    *,
    cap: float,
) -> tuple[Ratio, Ratio]:
    """(L_r, L_ref) of the paper (its equations 1 to 3), with a repulsion that is bounded.

    The paper writes L_r = mean R‖v − u‖² with signed token weights R [B,G] in [−1, 1], L_ref as
    `release`'s second term, and L_r + λ_c·L_ref, which falls without end where R < −λ_c. Here a
    negative R counts as at least −cap, and multiplies in place of ‖v − u‖² its tangent at v₀,
    ‖v₀ − u‖² + 2⟨v − v₀, v₀ − u⟩. A square lies above its tangent, so this bounds the paper's
    (capped) loss from above, meets it in value and gradient at v₀, and is bounded below for
    λ_c > 0. Where R ≥ 0 it is the paper's loss exactly. `start` is v₀ [B,G,·] (no gradient).
    """
    target = flow.target(batch.latents, draws.noise)
    start = jax.lax.stop_gradient(start)
    weights = jax.lax.stop_gradient(weights)[..., None]
    error = start - target
    tangent = jnp.square(error) + 2 * (velocity - start) * error
    attraction = jnp.maximum(weights, 0.0) * jnp.square(velocity - target)
    repulsion = jnp.clip(weights, -cap, 0.0) * tangent
    good = batch.latents if batch.targets is None else batch.targets
    return (
        terms.token_mean(attraction + repulsion, mask),
        terms.squared_error(velocity, flow.target(good, draws.noise), mask),
    )


def advantage(
    velocity: jax.Array,
    start: jax.Array,
    batch: Batch,
    draws: flow.Draws,
    mask: jax.Array,
    advantages: jax.Array,
    *,
    scale: float,
) -> Ratio:
    """‖v − v₀‖² + 2α⟨v − v₀, v₀ − u⟩ with α = 1 + scale·A: sft modulated by the advantage.

    `start` is v₀ [B,G,·] (no gradient), `advantages` A [B,G] in [−1, 1]. Bounded below by
    −(1 + scale)²‖v₀ − u‖²; its minimum is v = v₀ − α(v₀ − u).
    """
    start = jax.lax.stop_gradient(start)
    step = velocity - start
    error = start - flow.target(batch.latents, draws.noise)
    alpha = 1 + scale * jax.lax.stop_gradient(advantages)[..., None]
    return terms.token_mean(jnp.square(step) + 2 * alpha * step * error, mask)


# ----------------------------------------------------------------- from scores to token weights


def acting(r: Rewards, rewards: str, *, neutral: float) -> Rewards:
    """Of scores those that act: "both", "image" (no region) or "regions".

    Of regions alone every image's score is `neutral`.
    """
    if rewards == "image":
        return r.replace(valid=jnp.zeros_like(r.valid))
    if rewards == "regions":
        return r.replace(image_score=jnp.full_like(r.image_score, neutral))
    return r


def _scores(batch: Batch) -> Rewards:
    """The batch's scores; raises ValueError where it holds advantages."""
    if batch.rewards.scores is None:
        raise ValueError("the objective reads scores, and the batch holds advantages made of them")
    return batch.rewards


def _advantages(batch: Batch) -> Rewards:
    """The batch's advantages in place of scores: weight rules read either.

    Raises ValueError where it holds scores.
    """
    r = batch.rewards
    if r.advantages is None:
        raise ValueError("the objective reads advantages, and the batch holds scores")
    return r.replace(
        scores=r.advantages, image_score=r.image_advantage, advantages=None, image_advantage=None
    )


def _token_weights(rule: WeightRule, rewards: Rewards, batch: Batch) -> jax.Array:
    """Token weights [B,G] of rewards by `rule`."""
    return jax.vmap(functools.partial(maps.token_weights, rule))(
        rewards, batch.sizes, batch.grids, batch.latent_images, batch.latent_cells
    )


def release_weights(
    batch: Batch, rewards: str = "both", sampling: Sampling = "centre"
) -> jax.Array:
    """Token weights R [B,G] of the released rule from the batch's regions and scores.

    Of the image alone all of it weighs what lies in no region, of regions alone the image's score
    is 1.
    """
    rule = dataclasses.replace(maps.RELEASED, sampling=sampling)
    return _token_weights(rule, acting(_scores(batch), rewards, neutral=1.0), batch)


def positive_weights(
    batch: Batch, rewards: str = "both", sampling: Sampling = "centre"
) -> jax.Array:
    """Token weights M [B,G] in [0, 1]: the scores of right regions, 0 of wrong ones.

    What lies in no region weighs max(image score, 0). Of the image alone all of it weighs that, of
    regions alone what lies in none weighs 0.
    """
    rule = dataclasses.replace(maps.POSITIVE, sampling=sampling)
    return _token_weights(rule, acting(_scores(batch), rewards, neutral=0.0), batch)


def paper_weights(batch: Batch, rewards: str = "both", sampling: Sampling = "centre") -> jax.Array:
    """Signed token weights R [B,G] in [−1, 1]: (image score + 1)/2 times the region's score.

    What lies in no region weighs 0. Of regions alone the first factor is 1; of the image alone its
    signed score is the weight of every token.
    """
    rule = dataclasses.replace(maps.PAPER, sampling=sampling)
    if rewards == "image":
        rule = dataclasses.replace(rule, background="image", image="ignore")
    return _token_weights(rule, acting(_scores(batch), rewards, neutral=1.0), batch)


def advantage_weights(
    batch: Batch, rewards: str = "both", sampling: Sampling = "centre"
) -> jax.Array:
    """Token advantages A [B,G] of the batch's regions and their advantages.

    Of the image alone there is no resolution in space; of regions alone they count in full, and
    what lies in no region has advantage 0.
    """
    share = 1.0 if rewards == "regions" else maps.ADVANTAGE.region_share
    rule = dataclasses.replace(maps.ADVANTAGE, region_share=share, sampling=sampling)
    return _token_weights(rule, acting(_advantages(batch), rewards, neutral=0.0), batch)


def preference_weights(
    batch: Batch, rewards: str = "both", sampling: Sampling = "centre"
) -> jax.Array:
    """How much each token counts for its side of a pair, [B,G] in [0, 1].

    A token of the better image its advantage, of the worse one minus its advantage, 0 below that:
    what is right in the one and wrong in the other. Of the image alone every token counts 1.
    """
    side = sides(batch)
    if rewards == "image":
        _advantages(batch)
        return jnp.abs(side)
    return jnp.maximum(side * advantage_weights(batch, rewards, sampling), 0.0)


def attraction(cfg: TrainConfig, batch: Batch) -> jax.Array:
    """How strongly a token is drawn to its own image, float32 [B,G]: α of the table above, after
    caps; below 0 it is repelled. Padding's value means nothing. Of `flow_grpo`, which is drawn to
    the steps that it took, its advantage.

    Where `batch.targets` are other images, λ_c draws to those, and is not counted.
    """
    constraint = cfg.lambda_constraint if batch.targets is None else 0.0
    how = (batch, cfg.rewards, cfg.map_sampling)
    if cfg.objective == "srum_release":
        return release_weights(*how) + constraint
    if cfg.objective == "srum_positive":
        return positive_weights(*how)
    if cfg.objective == "srum_paper":
        return jnp.maximum(paper_weights(*how), -cfg.repulsion_cap) + constraint
    if cfg.objective == "srum_advantage":
        return 1 + cfg.advantage_scale * advantage_weights(*how)
    if cfg.objective == "nft":
        return cfg.nft_beta * advantage_weights(*how)
    if cfg.objective == "dpo":
        return cfg.dpo_beta * pull(preference_weights(*how), batch, terms.trained(batch))
    if cfg.objective == "flow_grpo":
        return advantage_weights(*how)
    return jnp.ones(batch.latents.shape[:2], jnp.float32)


# -------------------------------------------------------------------- through the model, by name


def _masked(values: jax.Array, mask: jax.Array) -> Ratio:
    mask = mask.astype(jnp.float32)
    return ratio(jnp.sum(values * mask), jnp.sum(mask))


def _sft(out: terms.Predicted, start, batch: Batch, draws: flow.Draws, cfg) -> LossOut:
    mse = sft(out.velocity, batch, draws, out.trained)
    return LossOut(terms={"mse": mse}, coefficients=(("mse", 1.0),))


def _srum_release(out: terms.Predicted, start, batch: Batch, draws: flow.Draws, cfg) -> LossOut:
    weights = release_weights(batch, cfg.rewards, cfg.map_sampling)
    reward, constraint = release(out.velocity, batch, draws, out.trained, weights)
    return LossOut(
        terms={"reward": reward, "constraint": constraint},
        metrics={"token_weight": _masked(weights, out.trained)},
        coefficients=(("reward", 1.0), ("constraint", cfg.lambda_constraint)),
    )


def _srum_positive(out: terms.Predicted, start, batch: Batch, draws: flow.Draws, cfg) -> LossOut:
    weights = positive_weights(batch, cfg.rewards, cfg.map_sampling)
    target = flow.target(batch.latents, draws.noise)
    metrics = {"token_weight": _masked(weights, out.trained)}
    reward = terms.squared_error(out.velocity, target, out.trained, weights)
    return LossOut({"reward": reward}, metrics, (("reward", 1.0),))


def _srum_paper(out: terms.Predicted, start, batch: Batch, draws: flow.Draws, cfg) -> LossOut:
    weights = paper_weights(batch, cfg.rewards, cfg.map_sampling)
    reward, constraint = paper(
        out.velocity, start, batch, draws, out.trained, weights, cap=cfg.repulsion_cap
    )
    alpha = jnp.maximum(weights, -cfg.repulsion_cap) + cfg.lambda_constraint
    return LossOut(
        terms={"reward": reward, "constraint": constraint},
        metrics={
            "token_weight": _masked(weights, out.trained),
            "repelled": _masked(alpha < 0, out.trained),
        },
        coefficients=(("reward", 1.0), ("constraint", cfg.lambda_constraint)),
    )


def _srum_advantage(out: terms.Predicted, start, batch: Batch, draws: flow.Draws, cfg) -> LossOut:
    a = advantage_weights(batch, cfg.rewards, cfg.map_sampling)
    value = advantage(out.velocity, start, batch, draws, out.trained, a, scale=cfg.advantage_scale)
    return LossOut(
        terms={"advantage": value},
        metrics=_advantage_metrics(a, 1 + cfg.advantage_scale * a, batch, out.trained),
        coefficients=(("advantage", 1.0),),
    )


def _nft(out: terms.Predicted, start, batch: Batch, draws: flow.Draws, cfg) -> LossOut:
    a = advantage_weights(batch, cfg.rewards, cfg.map_sampling)
    value = nft(out.velocity, start, batch, draws, out.trained, a, beta=cfg.nft_beta)
    return LossOut(
        terms={"nft": value},
        metrics=_advantage_metrics(a, a, batch, out.trained),
        coefficients=(("nft", 1.0),),
    )


def _dpo(out: terms.Predicted, start, batch: Batch, draws: flow.Draws, cfg) -> LossOut:
    weights = preference_weights(batch, cfg.rewards, cfg.map_sampling)
    found = dpo(out.velocity, start, batch, draws, out.trained, weights, beta=cfg.dpo_beta)
    return LossOut(
        terms={"dpo": found.loss},
        metrics={
            "margin": found.margin,
            "preferred": found.preferred,
            "token_weight": _masked(weights, out.trained),
        },
        coefficients=(("dpo", 1.0),),
    )


def within_image_variance(values: jax.Array, batch: Batch, mask: jax.Array) -> Ratio:
    """The share of the variance of token advantages [B,G] that lies within images: 0 if all tokens
    of an image have one, which is credit that tells no place from another; 1 if no image is better
    than another. Over the masked tokens: (Σ (a − ā_image)², Σ a²), as advantages are centred."""
    mask = mask.astype(jnp.float32)
    mine = jax.nn.one_hot(batch.latent_images, batch.noisy.shape[1]) * mask[..., None]
    count = jnp.maximum(jnp.sum(mine, axis=1), 1.0)
    means = jnp.einsum("bgn,bg->bn", mine, values) / count
    within = values - jnp.einsum("bgn,bn->bg", mine, means)
    return ratio(jnp.sum(jnp.square(within) * mask), jnp.sum(jnp.square(values) * mask))


def _advantage_metrics(
    a: jax.Array, alpha: jax.Array, batch: Batch, mask: jax.Array
) -> dict[str, Ratio]:
    return {
        "within_image_variance": within_image_variance(a, batch, mask),
        "token_advantage": _masked(a, mask),
        "token_advantage_size": _masked(jnp.abs(a), mask),
        "repelled": _masked(alpha < 0, mask),
    }


OBJECTIVES = {
    "sft": _sft,
    "srum_release": _srum_release,
    "srum_positive": _srum_positive,
    "srum_paper": _srum_paper,
    "srum_advantage": _srum_advantage,
    "nft": _nft,
    "dpo": _dpo,
}
_AROUND_START = ("srum_paper", "srum_advantage", "nft", "dpo")  # read v₀ themselves


def needs_reference(objective: str, pull: float) -> bool:
    """Whether a loss compares with the velocity of the starting model; `pull`: train.anchor and
    train.replay together."""
    return pull > 0 or objective in _AROUND_START


def loss(
    cfg: TrainConfig, sizes: BagelConfig, *, dtype: DTypeLike, remat: str
) -> "SrumLoss | FlowGrpo":
    """What a config trains a model of these sizes by."""
    kind = FlowGrpo if cfg.objective in STEPWISE else SrumLoss
    return kind(cfg, terms.Predictor(sizes, dtype, remat))


@dataclasses.dataclass(frozen=True)
class SrumLoss(terms.Objective):
    """The objective that `cfg.objective` names, anchored by `cfg.anchor`, as a loss function; with
    `cfg.replay` rows of own edits are held to the starting model's velocity instead.

    cfg is the train section: objective, rewards, anchor, replay, the timestep distribution and the
    objectives' own numbers.
    """

    cfg: TrainConfig
    predict: terms.Predictor

    def __call__(
        self,
        params: Params,
        reference: Params | None,
        batch: Batch,
        key: jax.Array,
        first: Params | None = None,
    ) -> LossOut:
        """Terms and metrics of a batch; `reference`: the model the round started from, where
        `needs_reference`; `first`: the model that the anchor pulls to, where it is another one.

        Reports "mse" and, where there is one of the two, "drift" (‖v − v₀‖² to the model that the
        anchor pulls to) and "relative_drift" (the same in units of ‖u‖²; `train.max_drift` bounds
        it). Raises ValueError for a batch that holds advantages where the objective reads scores,
        or the other way round.
        """
        cfg = self.cfg
        draws = flow.draw(
            batch, key, mean=cfg.timestep_mean, std=cfg.timestep_std, shift=cfg.timestep_shift
        )
        start = None
        if needs_reference(cfg.objective, (cfg.anchor if first is None else 0.0) + cfg.replay):
            start = jax.lax.stop_gradient(self.predict(reference, batch, draws).velocity)
        origin = start
        if first is not None:
            origin = jax.lax.stop_gradient(self.predict(first, batch, draws).velocity)
        out = self.predict(params, batch, draws)
        if cfg.replay:
            edits = terms.edited(batch) & out.trained
            out = out.replace(trained=out.trained & ~edits)
        found = OBJECTIVES[cfg.objective](out, start, batch, draws, cfg)
        metrics = {"mse": sft(out.velocity, batch, draws, out.trained)}
        if origin is not None:
            drift = terms.squared_error(out.velocity, origin, out.trained)
            target = flow.target(batch.latents, draws.noise)
            size = terms.squared_error(target, jnp.zeros_like(target), out.trained)
            metrics |= {"drift": drift, "relative_drift": (drift[0], size[0])}
            if cfg.anchor:
                found = found.replace(
                    terms=found.terms | {"anchor": drift},
                    coefficients=(*found.coefficients, ("anchor", cfg.anchor)),
                )
            if cfg.replay:
                kept = terms.squared_error(out.velocity, start, edits)
                share = cfg.replay / (1 - cfg.replay)  # a row of edits counts as one of candidates
                found = found.replace(
                    terms=found.terms | {"replay": kept},
                    coefficients=(*found.coefficients, ("replay", share)),
                )
        return found.replace(metrics=metrics | found.metrics)
