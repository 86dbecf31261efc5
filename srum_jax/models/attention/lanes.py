"""Attention over lanes, on one device or on a mesh whose "context" axis cuts long rows.

Cut so, each device holds its part of every lane: it gathers the keys and values of all (few heads,
thanks to grouped queries), and computes its own queries. The gradients of keys and values are
summed and cut again on the way back.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from srum_jax.core import sharding
from srum_jax.data.schema import Tokens
from srum_jax.models.attention import chunked, cudnn, dense, mask_rule, splash

_BACKENDS = {  # name -> functions (prepare, run): tables once a pass, attention in every layer
    "dense": (
        lambda queries, keys: (mask_rule.seen(queries, keys), ()),
        lambda q, k, v, tables: dense.attend(q, k, v, tables[0]),
    ),
    "chunked": (chunked.prepare, chunked.run),
    "splash": (splash.prepare, splash.run),
    "cudnn": (cudnn.prepare, cudnn.run),
}
_OPAQUE = ("chunked", "splash", "cudnn")  # the compiler cannot cut these by itself


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Mesh axes that arrays [B, S, H, C] are cut over by rows, tokens and heads; None: whole."""

    rows: tuple[str, ...] | None
    context: str | None
    mesh: jax.sharding.AbstractMesh

    def heads(self, count: int) -> str | None:
        return "tensor" if count % self.mesh.shape["tensor"] == 0 else None


def _cut(rows: int, lengths: Sequence[int]) -> _Cut | None:
    """How the mesh that is set cuts rows of lanes of these lengths; None without a mesh.

    What does not divide evenly is whole on every device: short rows of inference.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.shape.values()) == 1:
        return None
    by_rows = rows % math.prod(mesh.shape[axis] for axis in sharding.ROWS) == 0
    ways = mesh.shape["context"]
    long = ways > 1 and all(length % ways == 0 for length in lengths)
    return _Cut(sharding.ROWS if by_rows else None, "context" if long else None, mesh)


def cut_tokens(*lanes: jax.Array) -> tuple[jax.Array, ...]:
    """Activations [B, S, ...] of a row's lanes as they lie between layers: every device has its own
    rows, of these the part that attention cuts over "context", and all features.

    Left to itself the compiler may cut features as the weights are cut. Then it sums products over
    the devices, where gathering the weights sends a tenth.
    """
    cut = _cut(lanes[0].shape[0], [x.shape[1] for x in lanes])
    if cut is None or (cut.rows is None and cut.context is None):
        return lanes
    return tuple(sharding.constrain(x, cut.rows, cut.context) for x in lanes)


def over(lanes: Sequence[Tokens], name: str) -> Callable:
    """attend(q, k, v) of a pass over rows whose tokens lie in `lanes`, one after the other.

    q, k and v are sequences of arrays, one a lane: [B,S,H,C], [B,S,K,C], [B,S,K,C]; the result is
    a tuple of [B,S,H,C]. Every query sees what `mask_rule.seen` says of all lanes; what sees
    nothing has output 0. `name` is a back-end: "dense", "chunked", "splash" or "cudnn". Raises
    ValueError for another name and for what the back-end cannot do.
    """
    if name not in _BACKENDS:
        raise ValueError(f"attention {name!r} is not known: one of {', '.join(_BACKENDS)}")
    prepare, run = _BACKENDS[name]
    cut = _cut(lanes[0].segment.shape[0], [lane.segment.shape[1] for lane in lanes])
    apart = cut is not None and (cut.context is not None or name in _OPAQUE)

    def gathered(x):
        if not apart or cut.context is None or not x.shape[1]:
            return x
        return jax.lax.all_gather(x, cut.context, axis=1, tiled=True)

    def joined(parts):
        return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)

    def tables(*lanes):
        return prepare(joined(lanes), joined([jax.tree.map(gathered, lane) for lane in lanes]))

    def attend(tables, q, k, v):
        ends = [sum(x.shape[1] for x in q[: i + 1]) for i in range(len(q) - 1)]
        o = run(joined(q), joined(map(gathered, k)), joined(map(gathered, v)), tables)
        return tuple(jnp.split(o, ends, axis=1))

    if not apart:
        return functools.partial(_attend, attend, tables(*lanes))

    share = functools.partial(jax.shard_map, check_vma=False)
    by_query, by_row = PartitionSpec(cut.rows, cut.context), PartitionSpec(cut.rows)
    made = share(tables, in_specs=by_query, out_specs=(by_query, by_row))(*lanes)

    def on_mesh(tables, q, k, v):
        heads = PartitionSpec(cut.rows, cut.context, cut.heads(k[0].shape[2]))
        specs = ((by_query, by_row), heads, heads, heads)
        return share(attend, in_specs=specs, out_specs=heads)(tables, q, k, v)

    return functools.partial(_attend, on_mesh, made)


def _attend(function, tables, q, k, v):
    return function(tables, tuple(q), tuple(k), tuple(v))
