"""Folders of Janus-Pro weights: which files hold them, loading, and saving in both layouts.

A folder is in the Hugging Face layout (`model.safetensors`, or several under an index) or in the
original one (`pytorch_model.bin`, several under an index, or safetensors with its names). Of both
the table of `models/janus/names.py` is read; how the original's names follow from it is in
`original.py`.
"""

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from srum_jax.core import files, param_tree
from srum_jax.core.errors import listed
from srum_jax.models import safetensors_io, tensor_trees
from srum_jax.models.janus import model as janus
from srum_jax.models.janus import model_config, original, vq
from srum_jax.models.janus.model_config import JanusConfig
from srum_jax.models.janus.names import table
from srum_jax.models.name_table import misfits, without_prefix
from srum_jax.models.safetensors_index import INDEX_FILE
from srum_jax.models.safetensors_io import StoredTensor

__all__ = [
    "LAYOUTS",
    "load",
    "save",
    "settings",
    "stored_dtype",
    "table",
    "tensors",
    "weights_file",
]

MODEL_FILE = "model.safetensors"
MODEL_FILES = (MODEL_FILE, INDEX_FILE, *original.BIN_FILES)  # in the order they are looked for
LAYOUTS = ("janus", "multi_modality")  # of what is written: Hugging Face's, the original's
_WORDS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_LEAST = 14  # pixels of a picture's shorter side in its square
_EMBED, _HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


def weights_file(folder: epath.PathLike) -> epath.Path:
    """The file, or index, that holds a folder's weights, or would."""
    folder = epath.Path(folder)
    names = (name for name in MODEL_FILES if (folder / name).exists())
    return folder / next(names, MODEL_FILE)


def tensors(
    folder: epath.PathLike, cfg: JanusConfig, problems: list[str]
) -> dict[str, StoredTensor]:
    """Where every tensor of a folder lies, by its Hugging Face name; headers alone are read.

    Without a language head of its own the embedding is it, whatever a flag says. Adds a line to
    `problems` for everything that is missing, unknown or does not fit `cfg`.
    """
    file, entries = weights_file(folder), [e for part in table(cfg).values() for e in part]
    if not file.exists():
        problems.append(f"{file}: the file is missing; weights are {', '.join(MODEL_FILES)}")
        return {}
    found = original.read(file, problems)
    if found is None:
        return {}
    if any(name.startswith("language_model.") for name in found) and "gen_embed.weight" in found:
        found = original.as_huggingface(found, entries)
    else:
        found = _with_model(without_prefix(file, found, entries))
    if _HEAD not in found and _EMBED in found:
        found[_HEAD] = found[_EMBED]
    problems += misfits(file, found, entries)
    return found


def _with_model(found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Names as this version of transformers has them: older ones lack what stands before."""
    if any(name.startswith("model.") for name in found):
        return found
    return {name if name == _HEAD else f"model.{name}": x for name, x in found.items()}


def load(
    folder: epath.PathLike,
    cfg: JanusConfig,
    *,
    dtype: Any = np.float32,
    shardings: tuple[Any, Any] | None = None,
    want: Sequence[str] = ("model", "vae"),
    convert: Callable[[str, Any], dict[str, Any]] | None = None,
) -> tuple[param_tree.Params | None, param_tree.Params | None]:
    """(parameters in `dtype`, the autoencoder's in float32) of a folder whose sizes are `cfg`.

    What `want` does not name is None; shardings and convert are as of `tensor_trees.read`. Raises
    ValueError naming the file and every tensor that is missing, unknown, misshapen, unreadable or
    not finite.
    """
    problems: list[str] = []
    found = tensors(folder, cfg, problems)
    if problems:
        raise ValueError(f"{folder}: the weights do not fit its config.json:{listed(problems)}")
    model_at, vq_at = shardings or (None, None)
    entries = table(cfg)
    return (
        tensor_trees.read(found, entries["model"], model_at, dtype, convert)
        if "model" in want
        else None,
        tensor_trees.read(found, entries["vq"], vq_at) if "vae" in want else None,
    )


def stored_dtype(found: dict[str, StoredTensor]) -> str:
    """The dtype that keeps every value: "bfloat16" or "float32"."""
    return "bfloat16" if {x.dtype for x in found.values()} == {"BF16"} else "float32"


def save(
    folder: epath.PathLike,
    cfg: JanusConfig,
    params: param_tree.Params,
    vq_params: param_tree.Params,
    dtype: str = "bfloat16",
    *,
    layout: str = "janus",
    source: epath.PathLike | None = None,
    limit: int = tensor_trees.FILE_LIMIT,
) -> None:
    """Writes a folder that `load` reads, and transformers or the original's class.

    layout "janus": config.json and safetensors files of at most `limit` bytes. "multi_modality":
    `model.safetensors` under the original's names, with the pooling of `source`'s vision tower,
    which its class wants and nothing computes. source: the folder that the model came from, whose
    tokenizer, processor and, of the same layout, config files go along. Where arrays span several
    processes every one must call this; the first writes. Raises ValueError for what does not fit,
    before anything is written.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is not one of {LAYOUTS}")
    if dtype not in tensor_trees.DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {sorted(tensor_trees.DTYPES)}")
    param_tree.check(params, janus.specs(cfg), where="export, model")
    param_tree.check(vq_params, vq.specs(cfg.vq), where="export, autoencoder")
    kind, both = tensor_trees.DTYPES[dtype], params | {"_vq": vq_params}
    entries = [
        *table(cfg)["model"],
        *(dataclasses.replace(e, path=f"_vq/{e.path}") for e in table(cfg)["vq"]),
    ]
    aside = _pooling(source) if layout == "multi_modality" else {}
    if layout == "multi_modality":
        entries = original.ordered(entries)
    made = tensor_trees.official(both, entries)
    if jax.process_index() != 0:
        deque(made, maxlen=0)  # its part in gathering them
        return
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _beside(folder, cfg, source, layout)
    if layout == "janus":
        _write(folder, [(e.name, e.shape, kind) for e in entries], made, limit)
        return
    kinds = [*original.kinds(entries, kind), *((n, x.shape, kind) for n, x in aside.items())]
    values = itertools.chain(original.fused(entries, made), map(_whole, aside.values()))
    safetensors_io.write(folder / MODEL_FILE, kinds, values)


def _write(folder: epath.Path, kinds, values: Iterator[np.ndarray], limit: int) -> None:
    if sum(safetensors_io.size(*kind) for kind in kinds) <= limit:
        safetensors_io.write(folder / MODEL_FILE, kinds, values)
    else:
        tensor_trees.write_sharded(folder, kinds, values, limit)


def _pooling(source: epath.PathLike | None) -> dict[str, StoredTensor]:
    """What the original's vision tower holds besides. ValueError where no source has it."""
    problems: list[str] = []
    found = original.read(weights_file(source), problems) if source else None
    pooling = {n: x for n, x in (found or {}).items() if n.startswith(original.POOLING)}
    if not pooling:
        raise ValueError(
            f"{source}: it has no tensors {original.POOLING}*, which the original's class wants: "
            "name the original folder, or write the layout 'janus'"
        )
    return pooling


def _whole(tensor: StoredTensor) -> np.ndarray:
    with tensor.path.open("rb") as file:
        rows = tensor.shape[0] if tensor.shape else 1
        flat = dataclasses.replace(tensor, shape=(rows, math.prod(tensor.shape) // rows))
        blocks = [block for _, block in safetensors_io.rows(file, flat, 0, rows)]
    return np.concatenate(blocks).reshape(tensor.shape)


def _beside(
    folder: epath.Path, cfg: JanusConfig, source: epath.PathLike | None, layout: str
) -> None:
    """Every small file of a source of the same layout; of another one its tokenizer alone, with new
    files of the sizes, of how pictures are read and of how the model is sampled."""
    same = source is not None and model_config.model_type(source) == layout
    if not same and layout == "janus":
        for name, content in settings(cfg).items():
            files.write_json(folder / name, content)
    if source is None:
        return
    for path in sorted(epath.Path(source).iterdir()):
        small = path.suffix in (".json", ".jinja") and "index" not in path.name
        if small and (same or path.name in _WORDS) and path != folder / path.name:
            files.write_bytes(folder / path.name, [path.read_bytes()])


def settings(cfg: JanusConfig) -> dict[str, Any]:
    """The files beside the weights that transformers' classes read."""
    marks = {f"{mark}_token_id": getattr(cfg, mark) or None for mark in ("bos", "eos", "pad")}
    return {
        model_config.CONFIG: model_config.to_json(cfg),
        "preprocessor_config.json": {
            "image_processor_type": "JanusImageProcessor",
            "processor_class": "JanusProcessor",
            "size": {"height": cfg.vit_side, "width": cfg.vit_side},
            "min_size": _LEAST,
            "resample": 3,
            "do_resize": True,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
        "generation_config.json": {
            **marks,
            "generation_kwargs": {"boi_token_id": cfg.start_of_image},
            "guidance_scale": janus.GUIDANCE,
        },
    }
