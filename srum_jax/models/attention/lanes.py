"""Attention over lanes, on one device or on a mesh whose "context" axis shards long rows.

Each device then holds its part of every lane: an all_gather brings the keys and values of all (few
heads, thanks to grouped queries), and it computes its own queries. The gradients of keys and values
are summed and scattered again on the way back.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from srum_jax.core import sharding
from srum_jax.data.schema import Tokens
from srum_jax.models.attention import chunked, cudnn, dense, splash

# Modules with `prepare(queries, keys)`, which makes tables of tokens once a pass, `run(q, k, v,
# tables)`, attention in every layer, and `read(q, pieces)`, the same of queries that all see the
# same keys (`behind.py`).
BACKENDS = {
    "dense": dense,
    "chunked": chunked,
    "splash": splash,
    "cudnn": cudnn,
}
OPAQUE = ("chunked", "splash", "cudnn")  # the compiler cannot shard these by itself


@dataclasses.dataclass(frozen=True)
class _Sharding:
    """Mesh axes that rows, tokens and heads of arrays [B, S, H, C] lie over (None: whole)."""

    rows: tuple[str, ...] | None
    context: str | None
    mesh: jax.sharding.AbstractMesh

    def heads(self, count: int) -> str | None:
        return "tensor" if count % self.mesh.shape["tensor"] == 0 else None


def cut_by_mesh(rows: int, lengths: Sequence[int]) -> _Sharding | None:
    """How the mesh that is set shards rows of lanes of these lengths; None without a mesh.

    What does not divide evenly is whole on every device: short rows of inference.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.shape.values()) == 1:
        return None
    by_rows = rows % math.prod(mesh.shape[axis] for axis in sharding.ROWS) == 0
    parts = mesh.shape["context"]
    long = parts > 1 and all(length % parts == 0 for length in lengths)
    return _Sharding(sharding.ROWS if by_rows else None, "context" if long else None, mesh)


def shard_tokens(*lanes: jax.Array) -> tuple[jax.Array, ...]:
    """Activations [B, S, ...] of a row's lanes as they lie between layers: every device has its own
    rows, of these the part that attention shards over "context", and all features.

    Left to itself the compiler may shard features as the weights are sharded. Then it sums products
    over the devices, where an all_gather of the weights sends a tenth.
    """
    axes = cut_by_mesh(lanes[0].shape[0], [x.shape[1] for x in lanes])
    if axes is None or (axes.rows is None and axes.context is None):
        return lanes
    return tuple(sharding.constrain(x, axes.rows, axes.context) for x in lanes)


@dataclasses.dataclass(frozen=True, eq=False)
class LaneAttention:
    """Attention of one pass over rows, for every layer: made by `over`.

    backend: one of the modules above · tables: what its `prepare` made · axes: how arrays are
    sharded; None: they are whole, or the compiler shards them.
    """

    backend: ModuleType
    tables: Any
    axes: _Sharding | None

    def __call__(
        self, q: Sequence[jax.Array], k: Sequence[jax.Array], v: Sequence[jax.Array]
    ) -> tuple[jax.Array, ...]:
        """Arrays one a lane, q [B,S,H,C] (`scaled`), k and v [B,S,K,C] -> one a lane, [B,S,H,C]."""
        lanes = tuple(q), tuple(k), tuple(v)
        if self.axes is None:
            return _attend(self.backend, None, self.tables, *lanes)
        heads = PartitionSpec(self.axes.rows, self.axes.context, self.axes.heads(k[0].shape[2]))
        attend = functools.partial(_attend, self.backend, self.axes.context)
        specs = (_table_specs(self.axes), heads, heads, heads)
        return shard_map(attend, in_specs=specs, out_specs=heads)(self.tables, *lanes)


def named(name: str) -> ModuleType:
    """The module of a back-end. Raises ValueError for a name that is none."""
    if name not in BACKENDS:
        raise ValueError(f"attention {name!r} is not known: one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def over(lanes: Sequence[Tokens], name: str) -> LaneAttention:
    """Attention of a pass over rows whose tokens lie in `lanes`, one after the other.

    Every query sees what `mask_rule.seen` says of all lanes; what sees nothing has output 0. `name`
    is a back-end: "dense", "chunked", "splash" or "cudnn". Raises ValueError for another name and
    for what the back-end cannot do.
    """
    backend = named(name)
    axes = cut_by_mesh(lanes[0].segment.shape[0], [lane.segment.shape[1] for lane in lanes])
    if axes is None or (axes.context is None and name not in OPAQUE):
        return LaneAttention(backend, _tables(backend, None, *lanes), None)
    tables = functools.partial(_tables, backend, axes.context)
    by_query, out = PartitionSpec(axes.rows, axes.context), _table_specs(axes)
    return LaneAttention(backend, shard_map(tables, in_specs=by_query, out_specs=out)(*lanes), axes)


shard_map = functools.partial(jax.shard_map, check_vma=False)


def _table_specs(axes: _Sharding) -> tuple[PartitionSpec, PartitionSpec]:
    """Tables of queries lie as the queries, those of keys are whole in every part of a row."""
    return PartitionSpec(axes.rows, axes.context), PartitionSpec(axes.rows)


def _tables(backend: ModuleType, axis: str | None, *lanes: Tokens) -> Any:
    keys = [jax.tree.map(lambda x: _all_gather(x, axis), lane) for lane in lanes]
    return backend.prepare(_joined(lanes), _joined(keys))


def _attend(backend: ModuleType, axis: str | None, tables, q, k, v) -> tuple[jax.Array, ...]:
    ends = [sum(x.shape[1] for x in q[: i + 1]) for i in range(len(q) - 1)]
    k, v = (_joined([_all_gather(x, axis) for x in lanes]) for lanes in (k, v))
    return tuple(jnp.split(backend.run(_joined(q), k, v, tables), ends, axis=1))


def _all_gather(x: jax.Array, axis: str | None) -> jax.Array:
    """The whole second axis of an array whose part is here; `axis` None: it is whole."""
    if axis is None or not x.shape[1]:
        return x
    return jax.lax.all_gather(x, axis, axis=1, tiled=True)


def _joined(lanes):
    """Trees of arrays [B,S,...], one a lane, as one behind the other."""
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *lanes)
