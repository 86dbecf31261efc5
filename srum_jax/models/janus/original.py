"""The original layout of Janus-Pro (`model_type` "multi_modality"): its names and its files.

Its tensors are read as those of the Hugging Face layout: renamed, and cut where they are fused. The
original fuses queries, keys and values of the vision tower, gives positions an axis of one, and has
what nothing reads: the tower's pooling (`attn_pool`) and a record of the codes in use.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from srum_jax.core.errors import quoted
from srum_jax.core.files import read_json
from srum_jax.models import safetensors_index, torch_file
from srum_jax.models.name_table import TableEntry
from srum_jax.models.safetensors_io import DTYPES, StoredTensor

BIN_FILES = ("pytorch_model.bin.index.json", "pytorch_model.bin")
_TOWER = "vision_model.vision_tower."
POOLING = _TOWER + "attn_pool."
_UNUSED = (POOLING, "gen_vision_model.quantize.codebook_used")

# (pattern of a Hugging Face name, the original's), the first that fits.
_LAYER = r"model\.vision_model\.encoder\.layers\.(\d+)\."
_RULES = [
    (r"model\.language_model\.(.*)", r"language_model.model.\1"),
    (r"lm_head\.(.*)", r"language_model.lm_head.\1"),
    (r"model\.vision_model\.embeddings\.patch_embedding\.(.*)", _TOWER + r"patch_embed.proj.\1"),
    (r"model\.vision_model\.embeddings\.position_embedding\.weight", _TOWER + "pos_embed"),
    (_LAYER + r"layer_norm([12])\.(.*)", _TOWER + r"blocks.\1.norm\2.\3"),
    (_LAYER + r"mlp\.(.*)", _TOWER + r"blocks.\1.mlp.\2"),
    (_LAYER + r"self_attn\.projection_layer\.(.*)", _TOWER + r"blocks.\1.attn.proj.\2"),
    (_LAYER + r"self_attn\.[qkv]_proj\.(.*)", _TOWER + r"blocks.\1.attn.qkv.\2"),
    (r"model\.vision_model\.post_layernorm\.(.*)", _TOWER + r"norm.\1"),
    (r"model\.generation_embeddings\.(.*)", r"gen_embed.\1"),
    (r"model\.generation_head\.proj_out\.(.*)", r"gen_head.output_mlp_projector.\1"),
    (r"model\.generation_head\.vision_head\.(.*)", r"gen_head.vision_head.\1"),
    (
        r"model\.vqmodel\.(encoder\.down|decoder\.up)\.(\d+)\.block\.(.*)",
        r"gen_vision_model.\1.\2.res.\3",
    ),
    (r"model\.vqmodel\.(\w+)\.mid\.block_1\.(.*)", r"gen_vision_model.\1.mid.0.\2"),
    (r"model\.vqmodel\.(\w+)\.mid\.attn_1\.(.*)", r"gen_vision_model.\1.mid.1.\2"),
    (r"model\.vqmodel\.(\w+)\.mid\.block_2\.(.*)", r"gen_vision_model.\1.mid.2.\2"),
    (r"model\.vqmodel\.(.*)", r"gen_vision_model.\1"),
]
_ALIGNER = re.compile(r"model\.(generation_)?aligner\.(fc1|hidden_layers\.(\d+))\.(.*)")
_FUSED = re.compile(r".*\.vision_model\..*\.self_attn\.([qkv])_proj\..*")


def name_of(official: str) -> str:
    """The original's name of a tensor, by its Hugging Face name. Raises ValueError for another."""
    if found := _ALIGNER.fullmatch(official):
        generation, _, hidden, leaf = found.groups()
        layer = 0 if hidden is None else 2 * int(hidden) + 2
        return f"{'gen_' if generation else ''}aligner.layers.{layer}.{leaf}"
    for pattern, original in _RULES:
        if found := re.fullmatch(pattern, official):
            name = found.expand(original)
            return re.sub(r"\.(encoder\.down|decoder\.up)\.", _conv_blocks, name)
    raise ValueError(f"{quoted(official)} is no tensor of a Janus")


def _conv_blocks(found: re.Match) -> str:
    return f".{found[1].split('.')[0]}.conv_blocks."


def part_of(official: str) -> int | None:
    """Which third of a fused original tensor this one is, None: it is one of its own."""
    found = _FUSED.fullmatch(official)
    return "qkv".index(found[1]) if found else None


def as_huggingface(
    tensors: Mapping[str, StoredTensor], table: Sequence[TableEntry]
) -> dict[str, StoredTensor]:
    """The tensors of original files under their Hugging Face names, those that nothing reads left
    out. One that has no place in the table keeps its name."""
    found, taken = {}, set()
    for entry in table:
        original = name_of(entry.name)
        if original not in tensors:
            continue
        taken.add(original)
        tensor, part = tensors[original], part_of(entry.name)
        if part is not None:
            tensor = _third(tensor, part)
        elif original == _TOWER + "pos_embed" and tensor.shape[:1] == (1,):
            tensor = dataclasses.replace(tensor, shape=tensor.shape[1:])
        found[entry.name] = tensor
    left = tensors.keys() - taken
    return found | {name: tensors[name] for name in left if not name.startswith(_UNUSED)}


def _third(tensor: StoredTensor, part: int) -> StoredTensor:
    if tensor.dtype not in DTYPES or not tensor.shape:
        return tensor  # which fits nowhere, and is told so
    shape = (tensor.shape[0] // 3, *tensor.shape[1:])
    bytes_ = math.prod(shape) * DTYPES[tensor.dtype].itemsize
    return dataclasses.replace(tensor, shape=shape, start=tensor.start + part * bytes_)


def kinds(table: Sequence[TableEntry], dtype: str) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, shape, dtype) of the original's tensors, as `fused` gives them."""
    found = []
    for entry in table:
        name, part = name_of(entry.name), part_of(entry.name)
        if part in (1, 2):
            continue
        shape = entry.shape
        if part == 0:
            shape = (3 * shape[0], *shape[1:])
        found.append((name, (1, *shape) if name == _TOWER + "pos_embed" else shape, dtype))
    return found


def ordered(table: Iterable[TableEntry]) -> list[TableEntry]:
    """The entries with the three parts of each fused tensor side by side."""
    places: dict[str, list[TableEntry]] = {}
    for entry in table:
        places.setdefault(name_of(entry.name), []).append(entry)
    return [
        e for group in places.values() for e in sorted(group, key=lambda e: part_of(e.name) or 0)
    ]


def fused(table: Sequence[TableEntry], tensors: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The original's tensors, of the Hugging Face ones of an `ordered` table."""
    waiting: list[np.ndarray] = []
    for entry, tensor in zip(table, tensors, strict=True):
        part = part_of(entry.name)
        if part is not None:
            waiting.append(tensor)
            if part < 2:
                continue
            tensor, waiting = np.concatenate(waiting), []
        yield tensor[None] if name_of(entry.name) == _TOWER + "pos_embed" else tensor


def read(file: epath.Path, problems: list[str]) -> dict[str, StoredTensor] | None:
    """The tensors of `pytorch_model.bin`, of several under its index, or of safetensors; None where
    a file cannot be used. Adds a line to `problems` for everything wrong."""
    if file.suffix == ".bin":
        return torch_file.read_header(file, problems)
    if file.name != BIN_FILES[0]:
        return safetensors_index.read(file, problems)
    found: dict[str, StoredTensor] = {}
    names = sorted(set(_index(file, problems)))
    for name in names:
        part = torch_file.read_header(file.parent / name, problems)
        if part is None:
            return None
        found |= part
    return found or None


def _index(file: epath.Path, problems: list[str]) -> list[str]:
    """The files that an index names."""
    try:
        names = list(read_json(file)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        problems.append(f"{file}: not an index of files: it has no weight_map of names")
        return []
    wrong = {n for n in names if not isinstance(n, str) or not re.fullmatch(r"[\w.-]+\.bin", n)}
    problems += [f"{file}: {quoted(n)} is not the name of a file beside it" for n in wrong]
    return [n for n in names if n not in wrong and (file.parent / n).exists()] if not wrong else []
