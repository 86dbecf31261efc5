"""What benchmarks of drawing share: prompts in the model's language, several images of each, files.

Owns how a prompt of an official file becomes what a model draws, and how pictures are written where
an official scorer looks for them.
"""

from collections.abc import Sequence

from etils import epath

from srum_jax.core import files
from srum_jax.core.errors import BadInput
from srum_jax.data import images, languages
from srum_jax.data.prompts import Prompt
from srum_jax.evals.benchmark import LazySequence
from srum_jax.evals.suite import DrawRequest, Replies, Requests

MAX_NAME = 255  # bytes of a file's name


def prompt(language: str, id: int, text: str, category: str, where: str) -> Prompt:
    """A prompt as the model reads it. Raises BadInput naming `where` for one that it cannot, and
    for an empty one."""
    if not text.strip():
        raise BadInput(f"{where}: the prompt is empty")
    try:
        return Prompt(id, languages.normalise(language, text, "prompt"), category, where)
    except BadInput as e:
        raise BadInput(f"{where}: {e}") from e


def several(prompts: Sequence[Prompt], k: int) -> Requests:
    """k images of each prompt."""
    return Requests(images=[DrawRequest(one, i) for one in prompts for i in range(k)])


def of(replies: Replies, place: int) -> Sequence:
    """The image uint8 [H,W,3] of the request at a place, read when it is looked at."""
    return LazySequence([place], lambda i: replies.images[i]["image"])


def write(path: epath.Path, replies: Replies, place: int) -> None:
    """Writes the image of the request at a place as a PNG; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, [images.encode_png(replies.images[place]["image"])])
