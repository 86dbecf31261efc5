"""Parameter trees out of the tensors of files, and back, through a table of names.

Reading fills each leaf, or each device's part of it, from the bytes that it needs; writing gives
one official tensor after another. Which tensors there are is a family's table
(`models/name_table.py`), where they lie a header's (`models/safetensors_io.py`).
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from srum_jax.core import console, param_tree
from srum_jax.core.files import write_json
from srum_jax.models import safetensors_io
from srum_jax.models.name_table import TableEntry
from srum_jax.models.safetensors_index import INDEX_FILE

DTYPES = {"bfloat16": "BF16", "float32": "F32"}
FILE_LIMIT = 5 * 10**9  # bytes of a file of several

_IN_FLIGHT = 2  # shards on the host, and leaves waiting for the last of theirs, at a time

Bounds = tuple[tuple[int, int], ...]  # (start, stop) of every axis
Tensors = Mapping[str, safetensors_io.StoredTensor]


def read(
    tensors: Tensors,
    entries: Sequence[TableEntry],
    shardings: Any = None,
    dtype: Any = np.float32,
    convert: Callable[[str, Any], dict[str, Any]] | None = None,
) -> param_tree.Params:
    """The tree of every leaf in `entries`, read in their order by two threads, in `dtype`.

    Without `shardings` (a tree of `jax.sharding.Sharding`) leaves are NumPy arrays. `convert(path,
    leaf)` -> {path: array} replaces each as soon as it is there. Raises ValueError naming the
    tensors that are not finite.
    """
    broken: set[str] = set()  # names of tensors
    dtype, at = np.dtype(dtype), param_tree.flatten(shardings) if shardings else {}
    leaves, waiting = {}, deque()
    total = sum(math.prod(e.shape) for e in entries) * dtype.itemsize
    quiet = jax.process_index() != 0
    bar = console.progress(
        total=total, desc="load", unit="B", unit_scale=True, delay=5, shown=not quiet
    )

    def finish():
        path, size, leaf = waiting.popleft()
        whole = leaf.result()
        leaves.update(convert(path, whole) if convert else {path: whole})
        bar.update(size)

    pool = concurrent.futures.ThreadPoolExecutor(_IN_FLIGHT, "load")
    try:
        for path, group in itertools.groupby(entries, key=lambda e: e.path):
            group = list(group)
            size = sum(math.prod(e.shape) for e in group) * dtype.itemsize
            leaf = _begin(pool, tensors, group, dtype, at.get(path), broken)
            waiting.append((path, size, leaf))
            if len(waiting) > _IN_FLIGHT:
                finish()
        while waiting:
            finish()
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    safetensors_io.check_finite(tensors[entries[0].name].path.parent, broken)
    return param_tree.unflatten(leaves)


@dataclasses.dataclass(frozen=True)
class _PendingLeaf:
    """A leaf of `shape` that threads read, each a part: without a sharding the whole on the host,
    otherwise an array for each device that has it."""

    parts: Sequence[concurrent.futures.Future]
    shape: tuple[int, ...]
    sharding: jax.sharding.Sharding | None

    def result(self) -> np.ndarray | jax.Array:
        """The leaf, when all of it is there."""
        if self.sharding is None:
            return self.parts[0].result()
        arrays = [array for part in self.parts for array in part.result()]
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, arrays)


def _begin(
    pool, tensors: Tensors, entries: Sequence[TableEntry], dtype, sharding, broken: set[str]
) -> "_PendingLeaf":
    """Starts to read a leaf."""
    shape = tuple(size for _, size in entries[0].sizes)
    if entries[0].layer is not None:
        shape = (len(entries), *shape)
    if sharding is None:
        whole = tuple((0, size) for size in shape)
        return _PendingLeaf(
            [pool.submit(_part, tensors, entries, whole, dtype, broken)], shape, None
        )
    devices: dict[Bounds, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
        devices.setdefault(bounds, []).append(device)

    def place(bounds: Bounds) -> list[jax.Array]:
        buffer = _part(tensors, entries, bounds, dtype, broken)
        return jax.block_until_ready([jax.device_put(buffer, d) for d in devices[bounds]])

    return _PendingLeaf([pool.submit(place, bounds) for bounds in devices], shape, sharding)


def _part(
    tensors: Tensors, entries: Sequence[TableEntry], bounds: Bounds, dtype, broken: set[str]
) -> np.ndarray:
    """The part of a leaf inside `bounds`, on the host; `entries` are all layers of a stack.

    Adds the names of tensors that are not finite to `broken`.
    """
    out = np.empty([stop - start for start, stop in bounds], dtype)
    stacked = entries[0].layer is not None
    with contextlib.ExitStack() as stack:
        files = {}  # a sharded checkpoint may have a leaf's layers in several
        for i in range(*bounds[0]) if stacked else (0,):
            tensor = tensors[entries[i].name]
            if tensor.path not in files:
                files[tensor.path] = stack.enter_context(tensor.path.open("rb"))
            target, inside = (out[i - bounds[0][0]], bounds[1:]) if stacked else (out, bounds)
            if not _fill(target, files[tensor.path], tensor, entries[i], inside):
                broken.add(entries[i].name)
    return out


def _fill(
    out: np.ndarray, file, tensor: safetensors_io.StoredTensor, entry: TableEntry, bounds: Bounds
) -> bool:
    """Reads the part of one tensor that is ours inside `bounds` into `out`; whether it is finite.

    An official axis that holds several of ours, "(h c)", is cut at its outermost one while reading;
    cuts of the others are made on our side.
    """
    sizes = dict(entry.sizes)
    axes = dict(zip(sizes, bounds, strict=True))
    inner = [math.prod(sizes[axis] for axis in group[1:]) for group in entry.groups]
    cuts = [tuple(i * n for i in axes[g[0]]) for g, n in zip(entry.groups, inner, strict=True)]
    (start, stop), others = cuts[0], tuple(slice(*cut) for cut in cuts[1:])
    outermost = {group[0] for group in entry.groups}
    within = tuple(slice(None) if a in outermost else slice(*cut) for a, cut in axes.items())
    first, finite = list(axes).index(entry.groups[0][0]), True
    for row, block in safetensors_io.rows(file, tensor, start, stop, multiple=inner[0]):
        values = entry.to_ours(block[:, *others])[within]
        done = (row - start) // inner[0]
        into = [slice(None)] * out.ndim
        into[first] = slice(done, done + values.shape[first])
        safetensors_io.assign(out[tuple(into)], values)
        finite = finite and safetensors_io.finite(block)
    return finite


def official(params: param_tree.Params, entries: Sequence[TableEntry]) -> Iterator[np.ndarray]:
    """The official tensors in the table's order, one on the host at a time."""
    leaves = param_tree.flatten(params)
    for entry in entries:
        leaf = leaves[entry.path]
        if isinstance(leaf, jax.Array):
            # A copy even of a whole leaf: an array keeps what was fetched from it.
            leaf = leaf.copy() if entry.layer is None else _layer(leaf, entry.layer)
            if not leaf.is_fully_addressable:
                leaf = multihost_utils.process_allgather(leaf, tiled=True)
        elif entry.layer is not None:
            leaf = leaf[entry.layer]
        yield entry.to_official(np.asarray(leaf))


@jax.jit
def _layer(leaf: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)


def write_sharded(
    folder: epath.Path,
    kinds: Sequence[tuple[str, tuple[int, ...], str]],
    tensors: Iterator[np.ndarray],
    limit: int = FILE_LIMIT,
) -> None:
    """Files model-00001-of-0000N.safetensors, then their index."""
    files, filled = [[]], 64  # bytes before the first entry of a header
    for kind in kinds:
        size = safetensors_io.size(*kind)
        if files[-1] and filled + size > limit:
            files.append([])
            filled = 64
        files[-1].append(kind)
        filled += size
    (folder / INDEX_FILE).unlink(missing_ok=True)  # an older one would list a mixture meanwhile
    names = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    for name, part in zip(names, files, strict=True):
        safetensors_io.write(folder / name, part, itertools.islice(tensors, len(part)))
    total = sum(math.prod(shape) * safetensors_io.DTYPES[kind].itemsize for _, shape, kind in kinds)
    places = {kind[0]: name for name, part in zip(names, files, strict=True) for kind in part}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / INDEX_FILE, index)
