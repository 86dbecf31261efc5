"""Pictures in their square: where they lie, and what is gray. Reference pixels: golden `prep`."""

import dataclasses

import numpy as np
import pytest
import tiny_janus

from srum_jax.data import images, masks
from srum_jax.data.letterbox import GRAY, inner_size, letterbox, place

LAYOUT = dataclasses.replace(tiny_janus.CFG.layout, token_pixels=16, max_latent=4)  # 64 pixels


@pytest.mark.parametrize("size", [(64, 64), (100, 30), (31, 90), (1, 1), (9, 900)])
def test_nothing_is_cropped_and_the_rest_is_gray(size):
    image = np.full((*size, 3), 255, np.uint8)
    boxed = letterbox(image, 64)
    top, left, rows, columns = place(*size, 64)
    assert boxed.shape == (64, 64, 3) and max(rows, columns) == 64
    assert (boxed[top : top + rows, left : left + columns] == 255).all()
    assert (boxed == 255).sum() == 3 * rows * columns
    assert set(np.unique(boxed)) <= {GRAY, 255}


def test_the_shorter_side_is_rounded_down_as_the_original_does_and_has_a_least():
    assert inner_size(100, 30, 64, 14, "original") == (64, 19)
    assert inner_size(100, 31, 64, 14, "transformers") == (64, 20)
    assert inner_size(900, 9, 64, 14, "original") == (64, 14)


def test_boxes_go_where_their_pixels_go():
    """A bright box in a wide picture; its edges are whole pixels after the resize."""
    image = np.zeros((32, 128, 3), np.uint8)
    image[8:16, 32:64] = 255
    boxed = images.latent_image(image, LAYOUT)
    ((x0, y0, x1, y1),) = masks.latent_boxes(np.array([[32, 8, 64, 16]]), (32, 128), LAYOUT)
    assert (x0, y0, x1, y1) == (16, 28, 32, 32)
    bright = np.argwhere(boxed[..., 0] > 191)
    assert bright.min(0).tolist() == [28, 16] and bright.max(0).tolist() == [31, 31]
    # Of other layouts as before.
    plain = dataclasses.replace(LAYOUT, square=False)
    new = images.latent_image(image, plain).shape[:2]
    found = masks.latent_boxes(np.array([[32, 8, 64, 16]]), (32, 128), plain)
    np.testing.assert_array_equal(
        found, [[32 * new[1] / 128, 8 * new[0] / 32, 64 * new[1] / 128, 16 * new[0] / 32]]
    )


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        letterbox(np.zeros((4, 4, 3), np.float32), 64)
