"""Low-rank adapters as PEFT's folders: `adapter_config.json`, `adapter_model.safetensors`.

Owns their names: behind "base_model.model." stand the official names of the matrices, as a
family's table has them, with `lora_A.weight` [r, in] and `lora_B.weight` [out, r] in place of
`weight` [out, in], which counts as W + lora_alpha / r · B·A. Source: PEFT's documentation, "PEFT
checkpoint format".
"""

import collections
import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from srum_jax.core import files, param_tree
from srum_jax.core.errors import BadInput, listed, quoted
from srum_jax.core.sharding import fetch
from srum_jax.models import lora, safetensors_io
from srum_jax.models.name_table import TableEntry

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
# What changes a product otherwise than A and B do, by the value that says it does not.
_PLAIN = {
    "use_dora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Adapters:
    """Factors by the path of the matrix that they change ("…/w"): a [L, in…, r], b [L, r, out…],
    float32, on the host; they count `scale` times. A layer without factors has zeros."""

    factors: Mapping[str, tuple[np.ndarray, np.ndarray]]
    scale: float

    def merged(self, path: str, leaf: jax.Array) -> jax.Array:
        """The leaf at `path` with its factors in it, in its dtype; without factors as it is."""
        if path not in self.factors:
            return leaf
        return lora.merged_matrix(leaf, *self.factors[path], self.scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Merging:
    """The `convert` of `hf.load` that merges adapters into each leaf, before what `after` does."""

    adapters: Adapters
    after: Callable[[str, jax.Array], dict[str, jax.Array]] | None = None

    def __call__(self, path: str, leaf: jax.Array) -> dict[str, jax.Array]:
        merged = self.adapters.merged(path, leaf)
        return self.after(path, merged) if self.after else {path: merged}


def save(
    folder: epath.PathLike,
    entries: Sequence[TableEntry],
    adapters: param_tree.Params,
    *,
    alpha: float,
    base: str = "",
) -> None:
    """Writes a folder that `load`, and PEFT, read.

    entries: the model's table of names · adapters: a tree of `lora.specs` · alpha: they count
    alpha / r times · base: what they are for.
    Where the arrays span several processes every one must call this; the first writes.
    """
    leaves = {
        path: fetch(x) if isinstance(x, jax.Array) else x
        for path, x in param_tree.flatten(adapters).items()
    }
    if jax.process_index() != 0:
        return
    kinds, tensors, modules = [], [], []
    for entry, module in _adaptable(entries):
        where = entry.path.removesuffix("/w") + "/lora"
        if f"{where}/a" not in leaves:
            continue
        a, b = (leaves[f"{where}/{x}"][entry.layer] for x in "ab")
        pair = {_A: a.reshape(-1, a.shape[-1]).T, _B: b.reshape(len(b), -1).T}
        kinds += [(_PREFIX + module + name, x.shape, "F32") for name, x in pair.items()]
        tensors += pair.values()
        modules.append(module)
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / CONFIG, _config(modules, tensors[0].shape[0], alpha, base))
    safetensors_io.write(folder / WEIGHTS, kinds, tensors)


def _config(modules: Sequence[str], rank: int, alpha: float, base: str) -> dict[str, Any]:
    """What PEFT reads. The modules are one pattern of whole names: by their last part alone the
    projections of the vision tower would be taken too."""
    layers = modules[0].partition(".0.")[0]
    names = sorted({re.escape(re.split(r"\.\d+\.", module)[1]) for module in modules})
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": rf"{re.escape(layers)}\.\d+\.({'|'.join(names)})",
        "use_rslora": False,
        "init_lora_weights": True,
        **_PLAIN,
    }


def load(folder: epath.PathLike, entries: Sequence[TableEntry]) -> Adapters:
    """Reads the adapters in a folder for a model with this table of names.

    Raises FileNotFoundError or BadInput naming the file, and the field or every tensor that is
    missing, unknown, misshapen or not finite.
    """
    folder = epath.Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder / name}: no such file; adapters of PEFT have it")
    rank, scale = _counts(folder / CONFIG)
    problems: list[str] = []
    stored = safetensors_io.read_header(folder / WEIGHTS, problems) or {}
    known = {_PREFIX + module: entry for entry, module in _adaptable(entries)}
    want = {
        name + x: (rank, entry.shape[1]) if x == _A else (entry.shape[0], rank)
        for name, entry in known.items()
        for x in (_A, _B)
    }
    for name, tensor in stored.items():
        other = name.replace(_A, _B) if name.endswith(_A) else name.replace(_B, _A)
        if name not in want:
            problems.append(f"unknown tensor {quoted(name)}")
        elif tensor.shape != want[name]:
            problems.append(f"{name} has shape {tensor.shape}, expected {want[name]}")
        elif tensor.dtype not in safetensors_io.DTYPES:
            problems.append(f"{name} is {tensor.dtype}, expected floating point")
        elif other not in stored:
            problems.append(f"{other} is missing")
    if problems or not stored:
        found = problems or ["no tensors"]
        raise BadInput(f"{folder / WEIGHTS} does not fit the model:{listed(found, 5)}")
    return Adapters(_factors(folder / WEIGHTS, stored, known, rank), scale)


def _counts(path: epath.Path) -> tuple[int, float]:
    """(rank, how many times B·A counts) of adapter_config.json."""
    told = files.read_object(path)
    if told.get("peft_type") != "LORA":
        raise BadInput(f"{path}: peft_type = {quoted(told.get('peft_type'))}; LORA is read")
    for name, plain in _PLAIN.items():
        if told.get(name, plain) not in (plain, None):
            raise BadInput(f"{path}: {name} = {quoted(told[name])} is not read; {plain!r} is")
    rank, alpha = told.get("r"), told.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise BadInput(f"{path}: r must be a whole number from 1, got {quoted(rank)}")
    if type(alpha) not in (int, float) or not abs(alpha) <= sys.float_info.max:
        raise BadInput(f"{path}: lora_alpha must be a number, got {quoted(alpha)}")
    return rank, alpha / (math.sqrt(rank) if told.get("use_rslora") else rank)


def _factors(
    path: epath.Path,
    stored: Mapping[str, safetensors_io.StoredTensor],
    known: Mapping[str, TableEntry],
    rank: int,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    layers = collections.Counter(entry.path for entry in known.values())
    factors: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    broken = set()
    with path.open("rb") as file:
        for module, entry in known.items():
            if module + _A not in stored:
                continue
            sizes, outputs = dict(entry.sizes), entry.groups[0]
            out, count = [sizes[x] for x in outputs], layers[entry.path]
            into = [n for x, n in entry.sizes if x not in outputs]
            empty = np.zeros((count, *into, rank)), np.zeros((count, rank, *out))
            a, b = factors.setdefault(entry.path, tuple(np.float32(x) for x in empty))
            for x, mine in ((_A, a), (_B, b)):
                tensor = stored[module + x]
                blocks = [part for _, part in safetensors_io.rows(file, tensor, 0, tensor.shape[0])]
                values = np.concatenate(blocks).astype(np.float32)
                mine[entry.layer] = values.T.reshape(mine.shape[1:])
                if not np.isfinite(values).all():
                    broken.add(module + x)
    safetensors_io.check_finite(path, broken)
    return factors


def _adaptable(entries: Sequence[TableEntry]) -> Iterator[tuple[TableEntry, str]]:
    """The matrices that adapters may change, layer by layer, and the names of their modules."""
    accepts = lora.Projections("all")
    for entry in entries:
        if accepts(entry.path):
            yield entry, entry.name.removesuffix(".weight")
