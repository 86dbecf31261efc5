"""Checkpoint folders in the Hugging Face layout of BAGEL: loading and saving them.

Both go tensor by tensor through the table of names (`hf_table.py`); what a folder holds and whether
it fits is in `hf_folder.py`, the file format in `models/safetensors_io.py`.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from srum_jax.core import console, param_tree
from srum_jax.core.errors import listed
from srum_jax.core.files import write_json, write_text
from srum_jax.models import safetensors_io
from srum_jax.models.bagel import hf_folder, model_card, model_config, vae
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.hf_folder import INDEX_FILE, MODEL_FILES, Parts, Tensors, locate
from srum_jax.models.bagel.hf_table import (
    MODEL_FILE,
    VAE_FILE,
    computed_tables,
    position_table,
    table,
)
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.models.name_table import TableEntry

__all__ = ["MODEL_FILE", "VAE_FILE", "Parts", "computed_tables", "load", "locate", "save", "table"]

DTYPES = {"bfloat16": "BF16", "float32": "F32"}
LAYOUTS = ("official", "sharded")
FILE_LIMIT = 5 * 10**9  # bytes of a file in the layout "sharded"

_IN_FLIGHT = 2  # shards on the host, and leaves waiting for the last of theirs, at a time

Bounds = tuple[tuple[int, int], ...]  # (start, stop) of every axis


def load(
    folder: epath.PathLike,
    cfg: BagelConfig,
    *,
    dtype: Any = np.float32,
    shardings: tuple[Any, Any] | None = None,
    want: Sequence[str] = ("model", "vae"),
    base: epath.PathLike | None = None,
    convert: Callable[[str, Any], dict[str, Any]] | None = None,
) -> tuple[param_tree.Params | None, param_tree.Params | None]:
    """Reads a checkpoint folder, local or in a bucket, whose sizes are `cfg`.

    Returns (model parameters in `dtype`, autoencoder parameters in float32), nested dicts; what
    `want` does not name is None. Without `shardings` the leaves are NumPy arrays. With `shardings`
    (the trees of `jax.sharding.Sharding` of model and autoencoder) they are device arrays, made
    shard by shard from the bytes that each needs: only this process's shards are read, equal ones
    once, and two are on the host at a time.
    `base` is a folder that has what this one lacks: autoencoder, vision tower, connector.
    `convert(path, leaf)` -> {path: array} replaces each leaf of the model as soon as it is there,
    for example by a quantized one; then at most three leaves are in memory as they were stored.
    Raises ValueError naming the file and every missing, unknown, misshapen or unreadable tensor,
    and those with NaN or infinite numbers.
    """
    unknown = set(want) - {"model", "vae"}
    if unknown:
        raise ValueError(f"want may name 'model' and 'vae', not {sorted(unknown)}")
    folder, base = epath.Path(folder), epath.Path(base) if base else None
    entries, problems = table(cfg), []
    model = autoencoder = None
    if "model" in want:
        model = hf_folder.model_tensors(folder, base, cfg, problems)
    if "vae" in want:
        autoencoder = hf_folder.vae_tensors(folder, base, cfg, problems)
    if problems:
        raise ValueError(
            f"{folder}: the checkpoint does not fit its own JSON files:{listed(problems)}\n"
            "Check that weights and JSON files belong together and were copied whole."
        )
    model_at, vae_at = shardings or (None, None)
    return (
        _read(model, entries[MODEL_FILE], model_at, dtype, convert) if model else None,
        _read(autoencoder, entries[VAE_FILE], vae_at, np.float32, None) if autoencoder else None,
    )


def _read(
    tensors: Tensors, entries: Sequence[TableEntry], shardings, dtype, convert
) -> param_tree.Params:
    """Every leaf, in the table's order, by two threads. ValueError for what is not finite."""
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


def save(
    folder: epath.PathLike,
    cfg: BagelConfig,
    params: param_tree.Params,
    vae_params: param_tree.Params,
    dtype: str = "bfloat16",
    *,
    layout: str = "official",
    source: Parts | None = None,
    tokenizer_files: Sequence[epath.PathLike] = (),
    notes: str = "",
    limit: int = FILE_LIMIT,
) -> None:
    """Writes a folder that `load`, and the original code, read.

    params and vae_params: NumPy or device arrays, in any sharding. One official tensor is on the
    host at a time. Where the arrays span several processes every one of them must call this; only
    the first writes. The model is stored in `dtype` ("bfloat16" or "float32"), the autoencoder and
    the position tables in float32.
    `layout` "official" is a single `ema.safetensors`; "sharded" is files of at most `limit` bytes
    (a larger tensor has one for itself) with an index. The JSON files and tokenizer
    files of `source`, the folder that the model came from, go along as they are, and so do
    `tokenizer_files` (paths); JSON files that it lacks are made from `cfg`. README.md is a model
    card with `notes` (Markdown). Each file appears under its name when it is whole, the model last.
    Raises ValueError if the parameters or `source` do not fit `cfg`, or the folder holds a model in
    another layout, FileNotFoundError for a missing tokenizer file; before anything is written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {sorted(DTYPES)}")
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is not one of {LAYOUTS}")
    param_tree.check(params, bagel.specs(cfg), where="export, model")
    param_tree.check(vae_params, vae.specs(cfg.vae), where="export, autoencoder")
    folder, copies = epath.Path(folder), _copies(cfg, source, tokenizer_files)
    model_file = MODEL_FILE if layout == "official" else INDEX_FILE
    others = [str(folder / n) for n in MODEL_FILES if n != model_file and (folder / n).exists()]
    if others:
        raise ValueError(
            f"{', '.join(others)}: a model in another layout than {layout!r} is there already; "
            "remove it or name another folder"
        )
    model, tensors = _model_tensors(cfg, params, dtype)
    autoencoder, vae_tensors = _vae_tensors(cfg, vae_params)
    if jax.process_index() != 0:
        deque(itertools.chain(vae_tensors, tensors), maxlen=0)  # its part in gathering them
        return
    folder.mkdir(parents=True, exist_ok=True)
    hf_folder.write_beside(folder, cfg, copies)
    card = model_card.text(cfg, model_file=model_file, vae_file=VAE_FILE, dtype=dtype, notes=notes)
    write_text(folder / "README.md", card)
    safetensors_io.write(folder / VAE_FILE, autoencoder, vae_tensors)
    if layout == "official":
        safetensors_io.write(folder / MODEL_FILE, model, tensors)
    else:
        _write_sharded(folder, model, tensors, limit)


def save_vae(folder: epath.PathLike, cfg: BagelConfig, vae_params: param_tree.Params) -> None:
    """The autoencoder alone, as `load(…, want=("vae",))` reads it: its sizes, then its values."""
    folder = epath.Path(folder)
    write_json(folder / model_config.VAE_JSON, model_config.to_json(cfg)[model_config.VAE_JSON])
    kinds, values = _vae_tensors(cfg, vae_params)
    safetensors_io.write(folder / VAE_FILE, kinds, values)


def _copies(
    cfg: BagelConfig, source: Parts | None, tokenizer_files: Sequence[epath.PathLike]
) -> list[epath.Path]:
    """Files that go along with a model as they are. Raises as `save`."""
    copies = [epath.Path(path) for path in tokenizer_files]
    for path in copies:
        if not path.exists():
            raise FileNotFoundError(f"tokenizer file {path} is missing")
    if source is None:
        return copies
    if model_config.from_folder(source.sizes) != cfg:
        raise ValueError(f"{source.sizes}: its JSON files are not those of the model to save")
    return copies + source.beside()


def _model_tensors(
    cfg: BagelConfig, params: param_tree.Params, dtype: str
) -> tuple[list, Iterator[np.ndarray]]:
    """What `safetensors_io.write` takes of the model: kinds, tensors."""
    entries = table(cfg)[MODEL_FILE]
    fixed = computed_tables(cfg)  # first, as float32: all then start at multiples of their size
    kinds = [(name, (side**2, dim), "F32") for name, (side, dim) in fixed.items()]
    kinds += [(e.name, e.shape, DTYPES[dtype]) for e in entries]
    tables = (position_table(*sizes) for sizes in fixed.values())
    return kinds, itertools.chain(tables, _official(params, entries))


def _vae_tensors(cfg: BagelConfig, params: param_tree.Params) -> tuple[list, Iterator[np.ndarray]]:
    """What `safetensors_io.write` takes of the autoencoder: kinds, tensors."""
    entries = table(cfg)[VAE_FILE]
    return [(e.name, e.shape, "F32") for e in entries], _official(params, entries)


def _official(params: param_tree.Params, entries: Sequence[TableEntry]) -> Iterator[np.ndarray]:
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


def _write_sharded(folder: epath.Path, kinds, tensors: Iterator[np.ndarray], limit: int) -> None:
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
