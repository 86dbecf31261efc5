"""What benchmarks of editing share: edits to make, pairs of pictures for a judge, files.

Owns how an edit of an official file becomes what a model is asked, and what a judge is shown of it:
the picture before, and the one after in the size of that before, as the official scorers have it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from etils import epath
from PIL import Image

from srum_jax.core import files
from srum_jax.core.errors import BadInput
from srum_jax.data import images, languages
from srum_jax.evals.benchmark import LazySequence
from srum_jax.evals.suite import EditRequest, Replies, Requests
from srum_jax.generation.image_sampler import candidate_seed


class Picture(Protocol):
    """A picture that is read when it is looked at."""

    def load(self) -> np.ndarray:
        """Its pixels, uint8 [H,W,3]. Raises ValueError naming where it lies."""
        ...


@dataclasses.dataclass(frozen=True)
class File:
    """A picture in a file."""

    path: epath.Path

    def load(self) -> np.ndarray:
        """Its pixels, uint8 [H,W,3]. Raises ValueError naming the file."""
        return images.load(self.path)


@dataclasses.dataclass(frozen=True)
class Edit:
    """An edit to make. source: what the model is given · before: what a judge compares with, in
    most benchmarks the same · language: "en", "cn" or "" · flag: of the file, where it has one."""

    id: str
    category: str
    key: str
    instruction: str
    source: Picture
    before: Picture
    language: str = ""
    flag: bool = False


def readable(language: str, text: str, where: str) -> str:
    """An instruction, if the model can read it. Raises BadInput naming `where` if it cannot."""
    try:
        languages.normalise(language, text, "instruction")
    except BadInput as e:
        raise BadInput(f"{where}: {e}") from e
    return text


def requests(edits: Sequence[Edit], seed: int) -> Requests:
    """Each edit once; its noise is a function of the seed and its id."""
    return Requests(edits=LazySequence(edits, _Ask(seed).request))


@dataclasses.dataclass(frozen=True)
class _Ask:
    seed: int

    def request(self, edit: Edit) -> EditRequest:
        seed = candidate_seed(self.seed, edit.id, 0)
        return EditRequest(edit.id, edit.category, edit.source.load(), edit.instruction, seed)


@dataclasses.dataclass(frozen=True)
class Pair:
    """An edit and what came of it, the reply at `place`."""

    edit: Edit
    replies: Replies
    place: int

    def before(self) -> np.ndarray:
        """The picture before, uint8 [H,W,3]."""
        return self.edit.before.load()

    def after(self) -> np.ndarray:
        """The edited picture, uint8 [H,W,3] of the size of the one before."""
        height, width = self.before().shape[:2]
        image = np.asarray(self.replies.edits[self.place])
        if image.shape[:2] == (height, width):
            return image
        size = (width, height)
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))

    def both(self) -> Sequence[np.ndarray]:
        """Before and after, read when they are looked at."""
        return LazySequence((self.before, self.after), _called)

    def only_after(self) -> Sequence[np.ndarray]:
        """The edited picture alone, read when it is looked at."""
        return LazySequence((self.after,), _called)


def _called(picture: Callable[[], np.ndarray]) -> np.ndarray:
    return picture()


def pairs(edits: Sequence[Edit], replies: Replies) -> list[Pair]:
    """Every edit with its reply."""
    return [Pair(edit, replies, place) for place, edit in enumerate(edits)]


def write(path: epath.Path, image: np.ndarray) -> None:
    """Writes a picture as a PNG; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, [images.encode_png(image)])
