"""Attention: the mask rule, and back-ends that compute attention under it behind one interface.

`over` is what a model calls: lanes of tokens and a back-end's name give a function of queries, keys
and values. Queries come `scaled`; scores and softmax are float32. `mask_rule` owns the mask,
`dense` the reference and inference behind a cache, `one_token` that of a single token there,
`behind` that of new tokens that all see each other, in `keys` that need no mask, `chunked`,
`splash` and `cudnn` the others,
`intervals` masks as intervals of packed order, `lanes` what a mesh cuts, `choice` which back-end a
run takes, `trial` a kernel on the device at hand before it is taken.
"""

from srum_jax.models.attention.behind import Past, behind
from srum_jax.models.attention.choice import choose
from srum_jax.models.attention.dense import attend, scaled
from srum_jax.models.attention.lanes import over, shard_tokens
from srum_jax.models.attention.mask_rule import mask, seen
from srum_jax.models.attention.one_token import attend_new, attend_one
from srum_jax.models.attention.trial import passes

__all__ = [
    "Past",
    "attend",
    "attend_new",
    "attend_one",
    "behind",
    "choose",
    "mask",
    "over",
    "passes",
    "scaled",
    "seen",
    "shard_tokens",
]
