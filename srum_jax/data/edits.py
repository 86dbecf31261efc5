"""Lists of edits: pictures, and what is to be changed in each, for a model to draw.

From a world of `core/registry.py` that has some ("WORLD:SPLIT"), or from a .jsonl file whose lines
have an "image", a picture's path inside the file's folder, and an "instruction". Owns also what a
drawn edit's record holds.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from srum_jax.config import hash_json
from srum_jax.core import registry
from srum_jax.core.errors import BadInput
from srum_jax.data import images, records
from srum_jax.data.srum_dataset import file_name


@dataclasses.dataclass(frozen=True)
class Edit:
    """A picture, uint8 [H,W,3] or the file of one, and what is to be changed in it. Its `id` names
    its noise; `where` is its file and line."""

    id: int
    picture: np.ndarray | epath.Path
    instruction: str
    where: str

    def image(self) -> np.ndarray:
        """The picture. Raises FileNotFoundError or ValueError naming its file."""
        return self.picture if isinstance(self.picture, np.ndarray) else images.load(self.picture)


def read(source: str, count: int) -> tuple[Edit, ...]:
    """The first `count` edits of a source, or as many as it has.

    Raises FileNotFoundError, or ValueError listing the lines that are none.
    """
    world, colon, split = source.partition(":")
    if colon and world in registry.WORLDS:
        module = registry.load(registry.WORLDS, world)
        if not hasattr(module, "edits"):
            raise BadInput(f'"{source}": the world {world} has no edits')
        made = module.edits(split, count)
        return tuple(Edit(i, *one, f"{source}, edit {i}") for i, one in enumerate(made))
    if not source.endswith(".jsonl"):
        worlds = ", ".join(f"{name}:SPLIT" for name in registry.WORLDS)
        raise BadInput(f'"{source}" has no edits: give a .jsonl file, or one of {worlds}')
    found, faults = [], []
    for record in records.read(source):
        try:
            found.append(_of_line(epath.Path(source), len(found), record))
        except ValueError as e:
            faults.append(str(records.reject(source, record, e)))
    records.refuse(faults, f"{source}: these lines are no edits")
    if not found:
        raise BadInput(f"{source}: there are no edits in it")
    return tuple(found[:count])


def _of_line(file: epath.Path, number: int, record: records.FileRecord) -> Edit:
    value: Any = record.value
    if isinstance(value, Exception):
        raise value
    if not isinstance(value, dict):
        raise ValueError('no object with an "image" and an "instruction"')
    said = records.usable_text(value.get("instruction"), 'field "instruction"')
    picture = file.parent / file_name(value, "image")
    if not picture.exists():
        raise ValueError(f"{picture}: no such picture")
    return Edit(number, picture, said, f"{file}, line {record.line}")


def digest(edits: Sequence[Edit]) -> str:
    """16 hex digits of their content, wherever they came from."""
    return hash_json([[one.id, one.instruction, images.digest(one.image())] for one in edits])


def features(token_dim: int) -> Any:
    """TFDS features of an edit that a model drew; `token_dim`: numbers in a latent token.

    Written: `source` and `image`, before and after, as PNG bytes. Read: uint8 [H, W, 3]. Their
    latents [h, w, token_dim] are float32.
    """
    from tensorflow_datasets import features as f

    def latent():
        return f.Tensor(shape=(None, None, token_dim), dtype=np.float32, encoding="bytes")

    def image():
        return f.Image(shape=(None, None, 3), encoding_format="png")

    texts = {"id": f.Text(), "instruction": f.Text()}
    before = {"source": image(), "source_latent": latent()}
    return f.FeaturesDict(texts | before | {"image": image(), "latent": latent()})
