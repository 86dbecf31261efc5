"""Pictures in requests: data: URLs, files of a form, and links, which `fetching.py` may open."""

import base64
import binascii
import dataclasses
import re
from typing import Any

import numpy as np

from srum_jax.core.errors import quoted
from srum_jax.data import images
from srum_jax.serving.limits import Limits
from srum_jax.serving.refusals import Refusal

_DATA = re.compile(r"data:([a-zA-Z0-9.+-]+/[a-zA-Z0-9.+-]+)?((?:;[a-zA-Z0-9=.+_-]+)*?);base64,")


@dataclasses.dataclass(frozen=True)
class Bytes:
    """A picture or clip of a request as its bytes; name: the field, for messages."""

    data: bytes = dataclasses.field(repr=False)
    name: str
    media: str = ""


@dataclasses.dataclass(frozen=True)
class Link:
    """The address of a picture or clip, http: or https:; name: the field."""

    url: str
    name: str


def of_url(url: Any, name: str) -> Bytes | Link:
    """What a data: URL holds, or a link. Raises Refusal 400 for anything else: it is not opened."""
    if not isinstance(url, str):
        raise Refusal(400, f"{name} must be a data: URL, got {quoted(url)}", param=name)
    if url[:8].lower().startswith(("http://", "https://")):
        return Link(url, name)
    found = _DATA.match(url)
    if not found:
        told = f"{name} must be data:image/png;base64,… (no other address is opened)"
        raise Refusal(400, f"{told}, got {quoted(url, 60)}", param=name, code="invalid_image_url")
    try:
        data = base64.b64decode(url[found.end() :].encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, f"{name}: no base64", param=name, code="invalid_base64") from None
    return Bytes(data, name, (found[1] or "").lower())


def pixels(given: Bytes, limits: Limits, released: bool) -> np.ndarray:
    """uint8 [H,W,3]; released: as of `data.images.decode`.

    Raises Refusal 422 for bytes that are no picture, or too large a one; no pixel of that is
    decoded.
    """
    try:
        how = dict(name=given.name, released=released, most=limits.pixels)
        return images.decode(given.data, **how)
    except ValueError as e:
        raise Refusal(422, str(e), param=given.name, code="invalid_image") from None


def as_base64(image: np.ndarray) -> str:
    """uint8 [H,W,3] as PNG in base64."""
    return base64.b64encode(images.encode_png(image)).decode("ascii")
