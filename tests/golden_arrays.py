"""What every golden case is: a folder with arrays that went in and arrays that came out."""

import dataclasses
import functools
import pathlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class GoldenArrays:
    """The arrays of one case, read when first used."""

    folder: pathlib.Path

    @property
    def name(self) -> str:
        return self.folder.name

    @functools.cached_property
    def inputs(self):
        return np.load(self.folder / "inputs.npz")

    @functools.cached_property
    def outputs(self):
        return np.load(self.folder / "outputs.npz")
