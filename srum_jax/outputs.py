"""What the API gives: answers and drawings."""

import dataclasses

import numpy as np
from etils import epath

from srum_jax.core import files, places
from srum_jax.core.errors import BadInput
from srum_jax.data import images as pictures
from srum_jax.generation import system_prompts
from srum_jax.generation.base import GeneratedText
from srum_jax.scoring import ImageScore


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model wrote. thought: its reasoning, with think. finished: it ended by itself."""

    text: str
    thought: str = ""
    finished: bool = True

    @classmethod
    def of(cls, written: GeneratedText, think: bool) -> "Answer":
        """Splits off what was thought: up to the closing </think>, all if that never came."""
        if not think:
            return cls(written.text, finished=written.finished)
        parts = system_prompts.thought_and_answer(written.text)
        if parts is None:
            return cls("", thought=written.text.strip(), finished=False)
        return cls(parts[1], thought=parts[0], finished=written.finished)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """An image uint8 [H,W,3] the model drew, what for, and the seed of its noise.

    score: the model's own, where it chose the image among several. latents: of the image, float32
    [h,w,p·p·Z]. trajectory: what stood before the first step and after every one, the same each;
    empty where it was not asked for.
    """

    image: np.ndarray
    prompt: str
    seed: int
    thought: str = ""
    score: ImageScore | None = None
    latents: np.ndarray | None = None
    trajectory: tuple[np.ndarray, ...] = ()

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        return f"Drawing({height}x{width} pixels, {self.prompt!r}, seed={self.seed})"

    def save(self, path: epath.PathLike) -> None:
        """Writes a PNG file, whole or not at all.

        Raises BadInput for a name of another format, OSError where it cannot be written.
        """
        path = places.place(path, "a drawing's file")
        if path.suffix.lower() not in ("", ".png"):
            raise BadInput(f"{path}: a drawing is saved as PNG; give its file such a name")
        files.write_bytes(path, [self._repr_png_()])

    def _repr_png_(self) -> bytes:  # what notebooks show
        return pictures.encode_png(self.image)
