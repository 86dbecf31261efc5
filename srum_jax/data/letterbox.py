"""A picture in the middle of a gray square: how Janus sees one, and how its codes are made.

The longer side fills the square; nothing is cropped. Three rules are known: the original's, by
which the weights were trained, and the two of transformers, which differ from it in the size of the
shorter side and in how levels are rounded (`docs/differences.md`).
"""

import math
from typing import Literal

import numpy as np
from PIL import Image

Rule = Literal["original", "transformers_pil", "transformers"]
GRAY = 127  # of what the picture does not cover
LEAST = 14  # pixels of the shorter side
_A = -0.5  # of the bicubic kernel
_BITS = 21  # after the point of a weight, at most


def inner_size(height: int, width: int, side: int, least: int, rule: Rule) -> tuple[int, int]:
    """(rows, columns) that a picture takes in a square of `side`; the original rounds down."""
    whole = int if rule == "original" else round
    scale = side / max(height, width)
    return max(whole(height * scale), least), max(whole(width * scale), least)


def place(
    height: int, width: int, side: int, *, least: int = LEAST, rule: Rule = "original"
) -> tuple[int, int, int, int]:
    """(top, left, rows, columns) of a picture in its square, in pixels."""
    rows, columns = inner_size(height, width, side, min(least, side), rule)
    return (side - rows) // 2, (side - columns) // 2, rows, columns


def letterbox(
    image: np.ndarray, side: int, *, least: int = LEAST, rule: Rule = "original"
) -> np.ndarray:
    """uint8 [H,W,3] -> uint8 [side,side,3] by bicubic filtering, its shorter side of at least
    `least` pixels as far as there are so many. Raises ValueError for an array of another kind."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"a picture is uint8 [H,W,3], not {image.dtype} {list(image.shape)}")
    top, left, rows, columns = place(*image.shape[:2], side, least=least, rule=rule)
    if rule == "transformers":
        small = _bicubic(image, rows, columns)
    else:
        how = Image.Resampling.BICUBIC
        small = np.asarray(Image.fromarray(image).resize((columns, rows), how))
    out = np.full((side, side, 3), GRAY, np.uint8)
    out[top : top + rows, left : left + columns] = small
    return out


def levels(image: np.ndarray) -> np.ndarray:
    """uint8 -> float32 (x/255 − 1/2)/(1/2), in [-1, 1]."""
    return (image.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def _bicubic(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Filtered along rows, then columns, each rounded, as torchvision filters bytes on CPUs."""
    across = _filtered(_weights(image.shape[1], columns), image)
    return _filtered(_weights(image.shape[0], rows), across).astype(np.uint8)


def _filtered(weights: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Along axis 1, which becomes the first; weights are rounded to whole numbers of 16 bits."""
    bits = 0
    while bits < _BITS and int(0.5 + weights.max() * 2.0 ** (bits + 1)) < 2**15:
        bits += 1
    whole = np.trunc(weights * 2.0**bits + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)
    summed = np.tensordot(whole, levels.astype(np.int64), (1, 1))
    return np.clip((summed + (1 << (bits - 1))) >> bits, 0, 255)


def _weights(count: int, wanted: int) -> np.ndarray:
    """What each of `count` places gives to each of `wanted`, float64 [wanted,count]: the bicubic
    kernel, stretched where places get fewer."""
    scale = count / wanted
    stretch = max(scale, 1.0)
    out = np.zeros((wanted, count))
    for i in range(wanted):
        centre = scale * (i + 0.5)
        first = max(int(centre - 2 * stretch + 0.5), 0)
        last = min(int(centre + 2 * stretch + 0.5), count)
        mine = [_cubic((j + 0.5 - centre) / stretch) for j in range(first, last)]
        out[i, first:last] = np.array(mine) / math.fsum(mine)
    return out


def _cubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return ((_A + 2) * x - (_A + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * _A if x < 2 else 0.0
