"""The settings of the shapes world: how large a picture is, how much it holds, what is shown and
asked for.

Owns all numbers and shares in which one setting differs from another: "shapes" has 32x32 pictures
of up to four objects on 2x2 cells, "shapes64" 64x64 pictures of up to nine on 3x3. Colours, shapes,
words, questions, verifier and training are the same code. A setting's name is that of a world in
`core/registry.py`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

Shares = tuple[tuple[str, float], ...]  # kinds of contents with their relative weights


@dataclass(frozen=True)
class Setting:
    """One setting of the world.

    side: pixels of a square picture · grid: cells a side, one object in each at most · small, big:
    sides of an object's box in pixels · limits: at most so many pixels are small, at least so many
    are big, between them is neither · fitted: the verifier's smallest and largest template, in
    pixels · prompts: categories that prompts are made of · drawn: of captions to draw · seen,
    described, edited: of scenes that are asked about, described, changed; kinds of contents, see
    `language.draw` · flaws: how things are malformed, see `rendering.draw_flawed`.
    """

    name: str
    side: int
    grid: int
    small: tuple[int, ...]
    big: tuple[int, ...]
    limits: tuple[float, float]
    fitted: tuple[float, float]
    prompts: tuple[str, ...]
    drawn: Shares
    seen: Shares
    described: Shares
    edited: Shares
    flaws: tuple[str, ...]

    @property
    def cell(self) -> int:
        """Pixels a side of a cell; what the cells leave over is ground at the right and below."""
        return self.side // self.grid

    @property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """(row, column) of all."""
        return tuple(itertools.product(range(self.grid), repeat=2))

    @property
    def most(self) -> int:
        """Objects of a picture at most."""
        return self.grid**2

    def sizes(self, scale: str) -> tuple[int, ...]:
        """Sides of "small" or "big" objects, in pixels."""
        return {"small": self.small, "big": self.big}[scale]

    def cell_at(self, x: float, y: float) -> tuple[int, int]:
        """(row, column) of the cell in which a point lies, in pixels."""
        last = self.grid - 1
        return min(int(y // self.cell), last), min(int(x // self.cell), last)


# Relations are read in many questions but hardly ever drawn from a caption, as captions of pictures
# on the web seldom state them: what the model then understands and cannot draw.
SMALL = Setting(
    name="shapes",
    side=32,
    grid=2,
    small=(9,),
    big=(12, 13),
    limits=(10.0, 11.0),
    fitted=(8.0, 14.0),
    prompts=("single", "attr", "size", "spatial", "count", "triple", "quad"),
    drawn=(
        ("single", 0.1),
        ("attr", 0.3),
        ("size", 0.14),
        ("spatial", 0.02),
        ("count", 0.14),
        ("triple", 0.2),
        ("quad", 0.1),
    ),
    seen=(
        ("single", 0.1),
        ("attr", 0.25),
        ("count", 0.15),
        ("triple", 0.22),
        ("quad", 0.13),
        ("mixed", 0.15),
    ),
    described=(("single", 0.1), ("attr", 0.35), ("count", 0.15), ("triple", 0.3), ("quad", 0.1)),
    edited=(("single", 0.2), ("attr", 0.35), ("triple", 0.45)),
    flaws=("half", "mixed", "cut", "blurred"),
)
# Every prompt has room to be got wrong: none of one object, counts from five, lists up to nine.
LARGE = Setting(
    name="shapes64",
    side=64,
    grid=3,
    small=(11,),
    big=(15, 16),
    limits=(12.5, 13.5),
    fitted=(9.5, 17.5),
    prompts=(
        *("attr", "size", "spatial", "many", "groups", "triple", "quad"),
        *("five", "six", "seven", "eight", "nine"),
    ),
    drawn=(
        ("single", 0.08),
        ("attr", 0.12),
        ("size", 0.1),
        ("spatial", 0.02),
        ("count", 0.06),
        ("many", 0.06),
        ("groups", 0.08),
        ("triple", 0.1),
        ("quad", 0.1),
        ("five", 0.08),
        ("six", 0.07),
        ("seven", 0.05),
        ("eight", 0.04),
        ("nine", 0.04),
    ),
    seen=(
        ("single", 0.05),
        ("attr", 0.15),
        ("count", 0.06),
        ("many", 0.08),
        ("groups", 0.1),
        ("triple", 0.12),
        ("quad", 0.1),
        ("five", 0.07),
        ("six", 0.05),
        ("seven", 0.04),
        ("eight", 0.03),
        ("nine", 0.03),
        ("crowd", 0.12),
    ),
    described=(
        *(("single", 0.05), ("attr", 0.2), ("many", 0.1), ("groups", 0.1), ("triple", 0.2)),
        *(("quad", 0.15), ("five", 0.1), ("six", 0.1)),
    ),
    edited=(("single", 0.1), ("attr", 0.25), ("triple", 0.25), ("quad", 0.25), ("five", 0.15)),
    # Half of what drawing gets wrong are outlines.
    flaws=(
        *("half", "mixed", "cut", "blurred", "blend", "bite", "bite", "tint"),
        *("warp",) * 5,
        *("stretch",) * 2,
    ),
)
JANUS = "shapes_janus"  # the world of the small setting's other model
SETTINGS = {setting.name: setting for setting in (SMALL, LARGE)}


def of_model(name: str) -> Setting | None:
    """The setting of a world's models by its name; None for another model."""
    return SETTINGS.get(name) or (SMALL if name == JANUS else None)


def of_side(pixels: int) -> Setting | None:
    """The setting whose pictures have so many pixels a side; None where none has."""
    return next((one for one in SETTINGS.values() if one.side == pixels), None)
