"""Tables of names: which tensor of a file each leaf of a parameter tree is, and in which layout.

An entry pairs a leaf (a layer of a stacked one) with an official tensor and an einops pattern
official -> ours; the way back is the pattern reversed. A model family owns its table.
"""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import logging
from einops import rearrange

from srum_jax.core import param_tree
from srum_jax.core.errors import quoted
from srum_jax.models import safetensors_io


@dataclasses.dataclass(frozen=True)
class TableEntry:
    """One official tensor: its name, where it goes (path, layer or None), pattern official -> ours.

    `sizes` are the lengths of our axes, in their order; they give the official shape.
    """

    name: str
    path: str
    layer: int | None
    pattern: str
    sizes: tuple[tuple[str, int], ...]

    @functools.cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Our axes that make up each official axis, outermost first: "(h c) d" is (h, c), (d,)."""
        words = re.findall(r"\([^)]*\)|\w+", self.pattern.split("->")[0])
        return tuple(tuple(word.strip("()").split()) for word in words)

    @property
    def shape(self) -> tuple[int, ...]:
        """The official shape."""
        sizes = dict(self.sizes)
        return tuple(math.prod(sizes[axis] for axis in group) for group in self.groups)

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """The official tensor, or a part of it that is cut at the outermost axes of `groups`."""
        inner = {axis for group in self.groups for axis in group[1:]}
        return rearrange(tensor, self.pattern, **{a: n for a, n in self.sizes if a in inner})

    def to_official(self, leaf: np.ndarray) -> np.ndarray:
        """Our leaf (one layer of a stacked one) in the official layout."""
        ours, official = reversed(self.pattern.split("->"))
        return rearrange(leaf, f"{ours} -> {official}")


def entries(
    path: str, name: str, pattern: str, spec: param_tree.ParamSpec, first: int = 0
) -> Iterator[TableEntry]:
    """The entries of the leaf at `path`, one a layer where `name` has {} for the layer's number,
    which counts from `first`."""
    stacked = "{}" in name
    axes = pattern.split("->")[1].split()
    sizes = tuple(zip(axes, spec.shape[stacked:], strict=True))
    for layer in range(spec.shape[0]) if stacked else (None,):
        number = None if layer is None else first + layer
        yield TableEntry(name.format(number), path, layer, pattern, sizes)


def without_prefix(
    file: object,
    tensors: Mapping[str, safetensors_io.StoredTensor],
    table: Sequence[TableEntry],
) -> dict[str, safetensors_io.StoredTensor]:
    """`tensors` without what stands before every one of their names, with a warning.

    That is what wrappers of a model leave there: "module.", "_orig_mod.", "model.".
    """
    want, common = {e.name for e in table}, os.path.commonprefix(list(tensors))
    starts = [0, *(i + 1 for i, letter in enumerate(common) if letter == ".")]
    start = max(starts, key=lambda start: sum(name[start:] in want for name in tensors))
    if start:
        logging.warning("%s: tensors' names are read without %r", file, common[:start])
    return {name[start:]: tensor for name, tensor in tensors.items()}


def misfits(
    file: object,
    tensors: Mapping[str, safetensors_io.StoredTensor],
    table: Sequence[TableEntry],
    optional: Mapping[str, tuple[int, ...]] | None = None,
) -> list[str]:
    """A line for every tensor of `file` that is missing, unknown, misshapen or of a dtype that is
    not read; `optional`: {name: shape} of what may be there beside the table. One line where none
    of its names is known."""
    want, optional = {e.name: e.shape for e in table}, optional or {}
    if want and tensors and not tensors.keys() & want.keys():
        return [
            f"{file}: of another model: none of its {len(tensors)} tensors has a name such as "
            f"{min(want)}; the first is {quoted(min(tensors))}"
        ]
    problems = [f"{file}: tensor {n} {s} is missing" for n, s in want.items() if n not in tensors]
    readable = tuple(safetensors_io.DTYPES)
    for name, tensor in sorted(tensors.items()):
        expected = want.get(name, optional.get(name))
        where = f"{tensor.path}: {name}"
        if expected is None:
            problems.append(f"{tensor.path}: unknown tensor {name}")
            continue
        if tensor.shape != expected:
            problems.append(f"{where} has shape {tensor.shape}, expected {expected}")
        if tensor.dtype not in readable:
            problems.append(f"{where} is {tensor.dtype}, expected one of {readable}")
    return problems
