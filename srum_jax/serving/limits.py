"""What a server takes on, and no more."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """queue: pieces of work that wait for the device (an answer, an image, a score) · texts,
    images: that are written and drawn at once · together: images of one step, after which others
    get the device · body: bytes of a request; bodies: of all that are in memory · pictures: in a
    request · pixels: of a picture in it; clip: of all frames of a clip · drawn: images that a
    request asks for · tokens: of an answer · steps: of a drawing · seconds: that a request may
    take.
    """

    queue: int = 64
    texts: int = 16
    images: int = 16
    together: int = 16
    body: int = 32 * 2**20
    bodies: int = 2**30
    pictures: int = 16
    pixels: int = 4096**2
    clip: int = 2**33  # two minutes of 1920x1080 at 30 a second
    drawn: int = 8
    tokens: int = 4096
    steps: int = 250
    seconds: float = 600.0
