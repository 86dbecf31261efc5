"""`nft`: token-wise DiffusionNFT, learning from good and bad samples by reflection (bounded)."""

import jax
import jax.numpy as jnp

from srum_jax import flow
from srum_jax.core.loss import Ratio
from srum_jax.data.schema import Batch
from srum_jax.objectives import terms


def nft(
    velocity: jax.Array,
    start: jax.Array,
    batch: Batch,
    draws: flow.Draws,
    mask: jax.Array,
    advantages: jax.Array,
    *,
    beta: float,
) -> Ratio:
    """r‖v⁺ − u‖² + (1 − r)‖v⁻ − u‖² with v± = v₀ ± β(v − v₀) and r = (1 + A)/2 of each token.

    Source: DiffusionNFT (arXiv 2509.16117), there one r an image and a normalised error. A good
    token pulls v to its target u, a bad one pulls v's reflection at v₀ there, so both squares
    stay: the loss is at least 0. `start` is v₀ [B,G,·] (no gradient), `advantages` A [B,G] in
    [−1, 1]. Equals ‖v₀ − u‖² + κ‖v − v₀‖² + 2α⟨v − v₀, v₀ − u⟩ with α = βA, κ = β².
    """
    target = flow.target(batch.latents, draws.noise)
    start = jax.lax.stop_gradient(start)
    step = beta * (velocity - start)
    r = (1 + jax.lax.stop_gradient(advantages)[..., None]) / 2
    good, bad = jnp.square(start + step - target), jnp.square(start - step - target)
    return terms.token_mean(r * good + (1 - r) * bad, mask)
