"""Cutting pictures and latents into tokens, and where a token sits in a position table.

Used for ViT patches (pixels) and for latent tokens alike; arrays may be NumPy or JAX.
"""

import jax
import numpy as np
from einops import rearrange

Array = jax.Array | np.ndarray


def patchify(grid: Array, patch: int) -> Array:
    """[..., H, W, C] -> [..., (H/p)·(W/p), p·p·C]: tokens row by row, inside (ph, pw, channel).

    Raises ValueError if H or W is not a multiple of `patch`.
    """
    height, width = grid.shape[-3:-1]
    if height % patch or width % patch:
        raise ValueError(f"{height}x{width} cannot be cut into patches of {patch}: resize it first")
    return rearrange(grid, "... (h ph) (w pw) c -> ... (h w) (ph pw c)", ph=patch, pw=patch)


def unpatchify(tokens: Array, patch: int, rows: int, columns: int) -> Array:
    """Inverse of `patchify`: [..., rows·columns, p·p·C] -> [..., rows·p, columns·p, C].

    Raises ValueError if there are not rows·columns tokens.
    """
    if tokens.shape[-2] != rows * columns:
        raise ValueError(f"{tokens.shape[-2]} tokens do not fill a grid of {rows}x{columns}")
    return rearrange(
        tokens, "... (h w) (ph pw c) -> ... (h ph) (w pw) c", h=rows, ph=patch, pw=patch
    )


def position_ids(rows: int, columns: int, side: int, interpolate: bool = False) -> np.ndarray:
    """Ids row·side + column of a token grid in a square table, int32 [rows·columns], row by row.

    Plainly the grid's own rows and columns (at most `side` of each, else ValueError); with
    `interpolate`, its rows and columns spread over the whole table (BAGEL `data_utils.py`,
    get_flattened_position_ids_extrapolate / _interpolate).
    """
    if interpolate:
        row, column = _spread(rows, side), _spread(columns, side)
    elif max(rows, columns) > side:
        raise ValueError(
            f"a grid of {rows}x{columns} tokens does not fit positions of {side}x{side}: "
            "use a smaller image"
        )
    else:
        row, column = np.arange(rows), np.arange(columns)
    return rearrange(row[:, None] * side + column[None, :], "h w -> (h w)").astype(np.int32)


def _spread(count: int, side: int) -> np.ndarray:
    """Which of `side` equal bins each of `count` equal steps starts in."""
    # float32 and the 1e-6 are the original's: they decide ties.
    fractions = np.arange(0, 1 - 1e-6, 1 / count).astype(np.float32)
    bounds = np.arange(1 / side, 1.0, 1 / side).astype(np.float32)
    return np.searchsorted(bounds, fractions, side="right")
