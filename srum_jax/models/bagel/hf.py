"""Checkpoint folders in the Hugging Face layout of BAGEL: loading and saving them.

Both go tensor by tensor through the table of names (`hf_table.py`); what a folder holds and whether
it fits is in `hf_folder.py`, the file format in `models/safetensors_io.py`.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from srum_jax.core import param_tree
from srum_jax.core.errors import listed
from srum_jax.core.files import write_json, write_text
from srum_jax.models import safetensors_io, tensor_trees
from srum_jax.models.bagel import hf_folder, model_card, model_config, vae
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.hf_folder import INDEX_FILE, MODEL_FILES, Parts, locate
from srum_jax.models.bagel.hf_table import (
    MODEL_FILE,
    VAE_FILE,
    computed_tables,
    position_table,
    table,
)
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.models.tensor_trees import DTYPES, FILE_LIMIT

__all__ = ["MODEL_FILE", "VAE_FILE", "Parts", "computed_tables", "load", "locate", "save", "table"]

LAYOUTS = ("official", "sharded")


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
        tensor_trees.read(model, entries[MODEL_FILE], model_at, dtype, convert) if model else None,
        tensor_trees.read(autoencoder, entries[VAE_FILE], vae_at, np.float32, None)
        if autoencoder
        else None,
    )


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
        tensor_trees.write_sharded(folder, model, tensors, limit)


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
    return kinds, itertools.chain(tables, tensor_trees.official(params, entries))


def _vae_tensors(cfg: BagelConfig, params: param_tree.Params) -> tuple[list, Iterator[np.ndarray]]:
    """What `safetensors_io.write` takes of the autoencoder: kinds, tensors."""
    entries = table(cfg)[VAE_FILE]
    return [(e.name, e.shape, "F32") for e in entries], tensor_trees.official(params, entries)
