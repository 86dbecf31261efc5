"""What the official helper functions gave (`goldens/common`) and no other test compares.

Elsewhere: position ids (test_vit), masks one by one (test_attention), times (test_flow), pictures
(test_images), weights of labels (test_packing), reward maps and their resizing (test_maps).
"""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from srum_jax.core.patches import patchify, unpatchify
from srum_jax.data.schema import CAUSAL, FULL, NOISE, PAD_SEGMENT, Tokens
from srum_jax.generation import system_prompts
from srum_jax.models import attention, layers

COMMON = pathlib.Path(__file__).parent / "goldens" / "common"
CASES = json.loads((COMMON / "common.json").read_text())
ARRAYS = np.load(COMMON / "common.npz")


def test_the_two_system_texts_are_the_official_ones():
    assert CASES["system_prompts"] == {
        "vlm_think": system_prompts.THINK_UNDERSTANDING,
        "gen_think": system_prompts.THINK_GENERATION,
    }


def test_patches_are_the_official_ones():
    image = ARRAYS["patchify/image"].transpose(1, 2, 0)
    found = patchify(image, 2)
    np.testing.assert_array_equal(found, ARRAYS["patchify/patches_p2"])
    np.testing.assert_array_equal(unpatchify(found, 2, 2, 3), image)


@pytest.mark.parametrize(
    "name, ids, side",
    [
        ("dim16_grid5", range(25), 5),
        ("dim3584_grid64_rows_0_1_64_4095", (0, 1, 64, 4095), 64),
    ],
)
def test_position_features_are_the_official_ones(name, ids, side):
    expected = ARRAYS[f"sincos2d/{name}"]
    found = layers.sincos_2d(jnp.array(ids), side, expected.shape[1])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_time_features_are_the_official_ones():
    t, expected = ARRAYS["timestep/t"], ARRAYS["timestep/sinusoid256"]
    np.testing.assert_allclose(layers.timestep_sinusoid(t), expected, atol=1e-6)


def test_the_packed_mask_is_the_official_one_with_its_padding():
    """All cases in one row; its padding is one more causal text there."""
    modes = {"causal": CAUSAL, "full": FULL, "noise": NOISE}
    plans = [list(zip(c["split_lens"], c["attn_modes"], strict=True)) for c in CASES["masks"]]
    fields = []
    for segment, plan in [*enumerate(plans, start=1), (PAD_SEGMENT, [(7, "causal")])]:
        for split, (count, mode) in enumerate(plan):
            fields += [(segment, split, modes[mode], position) for position in range(count)]
    tokens = Tokens(*np.array(fields, np.int32).T[:, None], index=None)
    expected = ARRAYS["mask/packed_all_with_7_pad"]
    np.testing.assert_array_equal(attention.mask(tokens, tokens)[0], expected)


def test_no_other_arrays_and_lists_are_there():
    """What is added to the goldens asks for a test."""
    families = "mask posid patchify sincos2d timestep transform reward interp"
    assert {key.split("/")[0] for key in ARRAYS.files} == set(families.split())
    lists = "masks posids resize_sizes transforms reward_cases reward_cases_raising interp"
    assert CASES.keys() == {*lists.split(), "len2weight", "system_prompts"}
