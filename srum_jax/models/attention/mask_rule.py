"""The BAGEL mask as a rule on two tokens' segment, split, mode and position.

Tokens may come in any order. The rule is plain operators, so it takes NumPy and JAX arrays alike.
"""

import jax

from srum_jax.data.schema import BRANCH, FULL, NOISE, PAD_SEGMENT, Tokens


def mask(queries: Tokens, keys: Tokens) -> jax.Array:
    """Which query may see which key: bool [B, S, T].

    Same segment, and (an earlier split, or the own split: causally by position in causal modes),
    and not a hidden split (noisy image or question branch) other than the own one.
    """

    def q(x):
        return x[:, :, None]

    def k(x):
        return x[:, None, :]

    own = q(queries.split) == k(keys.split)
    full = (queries.mode == FULL) | (queries.mode == NOISE)
    within = own & (q(full) | (k(keys.position) <= q(queries.position)))
    hidden = (keys.mode == NOISE) | (keys.mode == BRANCH)
    return (
        (q(queries.segment) == k(keys.segment))
        & ((k(keys.split) < q(queries.split)) | within)
        & ~(k(hidden) & ~own)
    )


def seen(queries: Tokens, keys: Tokens) -> jax.Array:
    """`mask` for the rows that a model trains on: padding sees nothing. bool [B, S, T]."""
    return mask(queries, keys) & (queries.segment != PAD_SEGMENT)[:, :, None]
