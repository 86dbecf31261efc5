"""Where arrays live: the mesh, the table from logical axes to mesh axes, and its strict resolver.

Every parameter names its axes in its `ParamSpec`; the table below says which mesh axis cuts each.
Nothing is guessed: an unknown axis, two axes that want the same devices, or a dimension that does
not divide evenly is an error that names the parameter. This is the only place that makes a mesh.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from srum_jax.core import param_tree
from srum_jax.core.errors import BadInput

MESH_AXES = ("data", "fsdp", "tensor", "context")
ROWS = ("data", "fsdp")  # mesh axes that the rows of a batch are cut over
WEIGHTS_SHARE = 0.6  # of a device's memory; the rest is for caches and what programs hold
REPLICAS = ("data", "context")  # mesh axes that no parameter is cut over

# Logical axis -> mesh axes it may be cut over, the first one free in the array; () is never cut.
# Only "embed" has a second choice: some matrices map features to features, and the vision
# connector's input features come first.
RULES: Mapping[str, tuple[str, ...]] = {
    "layers": (),
    "embed": ("fsdp", "tensor"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "codes": ("tensor",),
    "time": (),
    "token": (),
    "vit_embed": ("fsdp",),
    "vit_heads": ("tensor",),
    "vit_mlp": ("tensor",),
    "patch": (),
    "positions": (),
    "conv_in": (),  # the autoencoder is small: every device holds it whole
    "conv_out": (),
}


def mesh_shape(sizes: Any, count: int) -> dict[str, int]:
    """Devices along each of `MESH_AXES` where there are `count`.

    `sizes` has an attribute per axis: devices along it, or -1, at most once, for the rest.
    Raises ValueError where the sizes do not multiply to `count`.
    """
    shape = [getattr(sizes, axis) for axis in MESH_AXES]
    if shape.count(-1) > 1:
        raise ValueError(f"{_named(sizes)}: only one axis may take the rest (-1)")
    fixed = math.prod(s for s in shape if s != -1)
    shape = [count // fixed if s == -1 else s for s in shape]
    if math.prod(shape) != count:
        raise ValueError(f"{_named(sizes)}: these do not fit {count} devices")
    return dict(zip(MESH_AXES, shape, strict=True))


def _named(sizes: Any) -> str:
    return ", ".join(f"mesh.{axis} = {getattr(sizes, axis)}" for axis in MESH_AXES)


def make_mesh(sizes: Any, devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh with axes `MESH_AXES` (size-1 axes kept) over `devices` (default: all).

    sizes: as in `mesh_shape`, which raises. Raises ValueError too where the chips' links allow no
    such mesh.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape, named = tuple(mesh_shape(sizes, len(devices)).values()), _named(sizes)
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
        raise BadInput(f"{named}: the devices lie in several TPU slices, and a run has one")
    try:
        # A row of chips may be split over two axes, as for fsdp 16 x tensor 4 on 8x8 of them.
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (NotImplementedError, AssertionError) as e:  # the latter: chips are missing in between
        raise BadInput(f"{named}: the chips' links form no such mesh: {e}") from e
    # Auto axes: the default (Explicit) would put shardings into types.
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def memory(device: jax.Device) -> int:
    """Bytes that programs may use on a device; of a CPU its share of this machine's memory."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return limit
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def bytes_per_device(tree: Any) -> int:
    """Bytes that the arrays of `tree`, or shapes, take on one device; whole where they have no
    place."""

    def taken(x):
        place = getattr(x, "sharding", None)
        shape = x.shape if place is None else place.shard_shape(x.shape)
        return math.prod(shape) * x.dtype.itemsize

    return sum(map(taken, jax.tree.leaves(tree)))


def inference_mesh(
    devices: Sequence[jax.Device], weights: int, each: int | None = None, cut: int | None = None
) -> Mesh:
    """What a model runs on where nothing is trained: every device has rows of its own, and each
    parameter is whole on all of them where that fits, else cut over as few as hold it.

    weights: bytes of all parameters, of which a device holds WEIGHTS_SHARE of its memory at most ·
    each: bytes a device, default those of the first one · cut: devices that hold one copy, in place
    of as few as do. Raises BadInput where `cut` does not divide the devices.
    """
    count = len(devices)
    if cut is None:
        room = WEIGHTS_SHARE * (memory(devices[0]) if each is None else each)
        fitting = (n for n in range(1, count) if count % n == 0 and weights <= n * room)
        cut = next(fitting, count)
    if count % cut:
        raise BadInput(f"a copy of the parameters on {cut} devices each: there are {count}")
    shape = (count // cut, cut, 1, 1)
    how = dict(axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)
    return jax.make_mesh(shape, MESH_AXES, **how)


def row_mesh(mesh: Mesh) -> Mesh:
    """This host's devices of `mesh`, all along rows: for a model that each of them holds whole."""
    return inference_mesh(here(mesh), weights=0)


def here(mesh: Mesh) -> list[jax.Device]:
    """This host's devices of `mesh`."""
    return [d for d in mesh.devices.flat if d.process_index == jax.process_index()]


def resolve(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, *, where: str = "array"
) -> PartitionSpec:
    """Mesh axis of every dimension of an array with logical `axes`; `where` names it in errors.

    The same on a mesh of size-1 axes, so a table that collides is found on one device already.
    Raises ValueError for an unknown axis, a collision, or a dimension that does not divide.
    """
    if len(axes) != len(shape):
        raise ValueError(f"{where}: axes {axes} and shape {shape} differ in length")
    taken: list[str | None] = []
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and axis not in RULES:
            raise ValueError(f"{where}: axis {axis!r} is not in the table (core/sharding.py)")
        choices = RULES[axis] if axis is not None else ()
        chosen = next((c for c in choices if c not in taken), None)
        if choices and chosen is None:
            raise ValueError(
                f"{where}: axis {axis!r} of {axes} may be cut over {choices}, "
                "which other axes of the same array already use"
            )
        if chosen is not None and size % mesh.shape[chosen]:
            raise ValueError(
                f"{where}: axis {axis!r} has {size} entries, which do not divide over "
                f"mesh.{chosen} = {mesh.shape[chosen]}"
            )
        taken.append(chosen)
    return PartitionSpec(*taken)


def shardings(specs: param_tree.Specs, mesh: Mesh) -> Any:
    """Tree of NamedSharding for a tree of `ParamSpec`."""
    return param_tree.unflatten(
        {
            path: NamedSharding(mesh, resolve(spec.axes, spec.shape, mesh, where=path))
            for path, spec in param_tree.flatten(specs).items()
        }
    )


def over_replicas(x: jax.Array, axis: int) -> jax.Array:
    """`x`, inside jit, with `axis` cut over the mesh axes that no parameter is cut over.

    For work that devices with the same parameters would otherwise all repeat. As it was where there
    is no mesh, or where the axis does not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = tuple(a for a in REPLICAS if mesh.shape.get(a, 1) > 1) if not mesh.empty else ()
    if not free or x.shape[axis] % math.prod(mesh.shape[a] for a in free):
        return x
    where = [PartitionSpec.UNCONSTRAINED] * x.ndim
    where[axis] = free
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*where))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis cut over the `data` and `fsdp` devices, for arrays whose first axis is rows."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def row_ways(mesh: Mesh) -> int:
    """Shards that the rows of a batch lie in."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def placed(tree: Any, at: Any) -> Any:
    """`jax.ShapeDtypeStruct` of every leaf of `tree` with a sharding: nothing is allocated.

    tree: arrays or shapes · at: one sharding for all, or a tree of them.
    """

    def one(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    if isinstance(at, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: one(leaf, at), tree)
    return jax.tree.map(one, tree, at)


def placed_params(specs: param_tree.Specs, dtype: Any, mesh: Mesh) -> Any:
    """`placed` parameters of a tree of `ParamSpec`, in `dtype` (None: each spec's own)."""
    return placed(param_tree.abstract(specs, dtype), shardings(specs, mesh))


def put(x: Any, at: jax.sharding.Sharding | None) -> Any:
    """A tree of host arrays on the devices of `at`, None: on the default device.

    Every process gives the same whole arrays.
    """
    if at is None or at.is_fully_addressable:
        return jax.device_put(x, at)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(
            leaf.shape, at, lambda index: np.asarray(leaf[index])
        ),
        x,
    )


def fetch(x: jax.Array) -> np.ndarray:
    """The whole array on this host; if it is cut over several, all processes must call this."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def optimizer_shardings(tx: Any, abstract: Any, param_shardings: Any, mesh: Mesh) -> Any:
    """Shardings of `tx.init(params)`: moments lie where their parameter lies, scalars everywhere.

    `abstract` is the tree of parameters (or ShapeDtypeStructs) that `tx` updates. Without this,
    jit would put every moment on one device. A transformation that looks at the tree of parameters
    (Muon's dimension numbers, masks) must do so in a function of it, not hold a finished tree.
    Raises ValueError for optimiser state that belongs to a parameter and has another shape.
    """

    def unused(leaf):  # where an optimiser of several parts leaves a parameter to another part
        return isinstance(leaf, optax.MaskedNode)

    def place(leaf, param, sharding):
        if unused(leaf):
            return leaf
        if leaf.shape != param.shape:
            raise ValueError(f"optimiser state {leaf.shape} of a parameter {param.shape}")
        return sharding

    state = jax.eval_shape(tx.init, abstract)
    return optax.tree_utils.tree_map_params(
        tx,
        place,
        state,
        abstract,
        param_shardings,
        is_leaf=unused,
        transform_non_params=lambda _: replicated(mesh),
    )


def axis_size(axis: str) -> int:
    """Devices along a mesh axis of the mesh that is set; 1 outside `with jax.set_mesh(mesh)`."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[axis]


def constrain(x: jax.Array, *mesh_axes: str | tuple[str, ...] | None) -> jax.Array:
    """Asks for `x` to be cut over `mesh_axes`, one entry a dimension, in the mesh that is set.

    Does nothing outside `with jax.set_mesh(mesh)`, so models run unchanged on one device.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*mesh_axes))
