"""Pictures and tables for a notebook's cells, as HTML that brings its own style.

Owns nothing of the report's page; how it looks is in `templates/notebook.html.j2`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from srum_jax.data.images import encode_png
from srum_jax.report.environment import templates
from srum_jax.report.pictures import Thumbnail, picture


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Pictures side by side over a caption and lines of a name and a value.

    pictures: each uint8 [H, W, 3] or the bytes of an image file; boxes: ((x0, y0, x1, y1), score in
    [-1, 1]; NaN: none) in pixels of every picture; marked: whether it is framed.
    """

    caption: str
    pictures: tuple[np.ndarray | bytes, ...]
    lines: tuple[tuple[str, str], ...] = ()
    boxes: tuple[tuple[Sequence[float], float], ...] = ()
    marked: bool = False

    @property
    def shown(self) -> list[Thumbnail]:
        """The pictures as the page holds them."""
        data = (p if isinstance(p, bytes) else encode_png(p) for p in self.pictures)
        return [picture(one, self.caption) for one in data]


def gallery(found: Sequence[Captioned], width: int = 140) -> Markup:
    """All of `found` in rows; a picture is `width` pixels wide."""
    return _macros().gallery(found, width)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """The first column is the header of each row."""
    return _macros().table(head, rows)


def page(html: str, height: int = 700) -> Markup:
    """A whole page, such as a report, in a frame of its own."""
    return _macros().page(html, height)


def _macros():
    return templates().get_template("notebook.html.j2").module
