"""The released reward law to the bit, and its per-token form against the dense one."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srum_jax.rewards import maps

COMMON = pathlib.Path(__file__).parents[1] / "goldens" / "common"
CASES = json.loads((COMMON / "common.json").read_text())
ARRAYS = np.load(COMMON / "common.npz")
release = jax.jit(maps.release_token_weights)
advantage = jax.jit(maps.advantage_token_weights, static_argnames="region_share")
sample = jax.jit(maps.sample_map, static_argnums=(1, 2))


def token_arguments(size, grid, images=1):
    """sizes, grids, images, cells of every token of `images` images of one size."""
    return (
        np.tile(size, (images, 1)),
        np.tile(grid, (images, 1)),
        np.repeat(np.arange(images), grid[0] * grid[1]),
        np.tile(np.argwhere(np.ones(grid)), (images, 1)),
    )


def random_regions(seed, images, regions, size):
    """Boxes partly outside, inverted and fractional, among usable ones."""
    rng = np.random.default_rng(seed)
    reach = np.array([size[1], size[0]] * 2)
    corners = rng.uniform(-0.3, 1.3, (images, regions, 4)) * reach
    ordered = np.concatenate(
        [
            np.minimum(corners[..., :2], corners[..., 2:]),
            np.maximum(corners[..., :2], corners[..., 2:]),
        ],
        -1,
    )
    boxes = np.where(rng.random((images, regions, 1)) < 0.2, corners, ordered)
    return (
        boxes.astype(np.float32),
        rng.uniform(-1, 1, (images, regions)).astype(np.float32),
        rng.random((images, regions)) < 0.8,
        rng.uniform(-1, 1, images).astype(np.float32),
    )


@pytest.mark.parametrize("case", CASES["reward_cases"], ids=lambda c: c["name"])
def test_release_map_golden(case):
    width, height = case["image_size_wh"]
    parsed = maps.parse_vlm_rewards(case["vlm_rewards"])
    made = maps.release_map(
        parsed.boxes, parsed.scores, parsed.valid, case["global_reward_factor"], (height, width)
    )
    expected = ARRAYS[f"reward/{case['name']}"]
    assert made.dtype == expected.dtype
    np.testing.assert_array_equal(made, expected)


def test_one_token_a_pixel_is_the_golden_map():
    """All cases in one call: a case is an image of its own size, padded to three regions."""
    cases = CASES["reward_cases"]
    expected = [ARRAYS[f"reward/{case['name']}"] for case in cases]
    boxes, scores = np.zeros((len(cases), 3, 4)), np.full((len(cases), 3), np.nan)
    valid = np.zeros((len(cases), 3), bool)
    for n, case in enumerate(cases):
        parsed = maps.parse_vlm_rewards(case["vlm_rewards"])
        r = len(parsed.scores)
        boxes[n, :r], scores[n, :r], valid[n, :r] = parsed.boxes, parsed.scores, parsed.valid
    sizes = np.array([dense.shape for dense in expected])
    cells = np.concatenate([np.argwhere(np.ones(size)) for size in sizes])
    images = np.repeat(np.arange(len(cases)), sizes.prod(1))
    factors = np.array([case["global_reward_factor"] for case in cases])
    made = release(boxes, scores, valid, factors, sizes, sizes, images, cells)
    flat = np.concatenate([dense.ravel() for dense in expected])
    np.testing.assert_allclose(made, flat, atol=1e-6)


@pytest.mark.parametrize("case", CASES["reward_cases_raising"], ids=lambda c: c["name"])
def test_parse_raises_where_the_release_raises(case):
    records = eval(case["vlm_rewards"], {"inf": float("inf")})  # noqa: S307 - our own golden
    if case["global_reward_factor"] is None:
        records.append({"object": maps.GLOBAL_ENTRY, "score": None})
    with pytest.raises(ValueError, match="bbox|score"):
        maps.parse_vlm_rewards(records)


def test_parse_reads_the_image_score_and_refuses_nonsense():
    records = [{"object": maps.GLOBAL_ENTRY, "score": 0.25}, {"object": "o", "bbox": [0, 0, 1, 1]}]
    parsed = maps.parse_vlm_rewards(records)
    assert parsed.image_score == 0.25 and parsed.boxes.shape == (1, 4)
    assert maps.parse_vlm_rewards(None).image_score == 0.0
    for bad in ([3], [{"object": "o", "bbox": [0, 0, 1, 1], "score": float("nan")}]):
        with pytest.raises(ValueError, match=r"vlm_rewards\[0\]"):
            maps.parse_vlm_rewards(bad)


@pytest.mark.parametrize("place", range(len(CASES["interp"])))
def test_sample_map_golden(place):
    source, expected = ARRAYS[f"interp/{place}_src"], ARRAYS[f"interp/{place}_dst"]
    np.testing.assert_allclose(sample(source, *expected.shape), expected, atol=2e-6)


def test_a_token_reads_the_four_pixels_at_its_centre():
    dense = np.random.default_rng(0).random((32, 48)).astype(np.float32)
    blocks = dense.reshape(4, 8, 6, 8)[:, 3:5, :, 3:5]
    made = sample(np.stack([dense, 2 * dense]), 4, 6)
    np.testing.assert_allclose(made[0], blocks.mean((1, 3)), atol=1e-6)
    np.testing.assert_allclose(made[1], 2 * blocks.mean((1, 3)), atol=2e-6)


@pytest.mark.parametrize(
    "size,grid",
    [
        ((32, 32), (4, 4)),
        ((48, 96), (3, 6)),
        ((50, 70), (3, 4)),
        ((7, 9), (7, 9)),
        ((5, 6), (8, 3)),
    ],
)
def test_tokens_equal_the_sampled_dense_map(size, grid):
    boxes, scores, valid, image_scores = random_regions(1, 5, 6, size)
    made = release(boxes, scores, valid, image_scores, *token_arguments(size, grid, 5))
    dense = np.stack(
        [
            maps.release_map(*row, size)
            for row in zip(boxes, scores, valid, image_scores, strict=True)
        ]
    )
    np.testing.assert_allclose(np.asarray(made).reshape(5, *grid), sample(dense, *grid), atol=1e-6)


def test_images_of_different_sizes_padding_and_no_regions():
    sizes, grids = jnp.array([[32, 32], [16, 24], [0, 0]]), jnp.array([[4, 4], [2, 3], [0, 0]])
    boxes = jnp.zeros((3, 2, 4)).at[1, 0].set(jnp.array([8.0, 0, 16, 8]))
    valid = jnp.zeros((3, 2), bool).at[1, 0].set(True)
    scores = jnp.full((3, 2), jnp.nan).at[1, 0].set(1.0)
    images = jnp.array([1, 1, 0, -1, 3])
    cells = jnp.array([[0, 1], [1, 1], [0, 0], [0, 0], [0, 0]])
    arguments = (valid, jnp.array([1.0, 0.0, jnp.nan]), sizes, grids, images, cells)
    made = release(boxes, scores, *arguments)
    np.testing.assert_allclose(made, [0.5, 0.25, 0.5, 0, 0])
    empty = release(boxes[:, :0], scores[:, :0], valid[:, :0], *arguments[1:])
    np.testing.assert_allclose(empty, [0.25, 0.25, 0.5, 0, 0])


def test_no_gradient_flows():
    boxes, scores, valid, image_scores = random_regions(2, 2, 3, (32, 32))
    rest = token_arguments((32, 32), (4, 4), 2)
    by_release = jax.grad(lambda s, g: release(boxes, s, valid, g, *rest).sum(), (0, 1))(
        scores, image_scores
    )
    by_advantage = jax.grad(lambda a, g: advantage(boxes, valid, g, a, *rest).sum(), (0, 1))(
        scores, image_scores
    )
    assert not any(np.any(leaf) for leaf in (*by_release, *by_advantage))


def test_advantages_background_boxes_and_overlap():
    boxes = jnp.array([[[0, 0, 16, 16], [8, 0, 16, 16], [0, 16, 32, 32.0]]])
    valid = jnp.array([[True, True, False]])
    region = jnp.array([[1.0, -0.5, jnp.nan]])
    rest = token_arguments((32, 32), (4, 4))
    made = advantage(boxes, valid, jnp.array([-0.5]), region, *rest)
    made = np.asarray(made).reshape(4, 4)
    np.testing.assert_allclose(made[:2, 0], 0.25)  # (-.5 + 1) / 2
    np.testing.assert_allclose(made[:2, 1], -0.125)  # (-.5 + (1 - .5) / 2) / 2
    np.testing.assert_allclose(made[2:], -0.5)
    np.testing.assert_allclose(made[:, 2:], -0.5)
    whole = advantage(boxes, valid, jnp.array([-0.5]), region, *rest, region_share=0.0)
    np.testing.assert_allclose(whole, -0.5)
    swapped = advantage(boxes[:, ::-1], valid[:, ::-1], jnp.array([-0.5]), region[:, ::-1], *rest)
    np.testing.assert_array_equal(np.asarray(swapped).reshape(4, 4), made)


def test_advantages_stay_bounded():
    boxes, scores, valid, image_scores = random_regions(3, 6, 9, (40, 56))
    made = advantage(
        boxes, valid, 7 * image_scores, 7 * scores, *token_arguments((40, 56), (5, 7), 6)
    )
    assert np.abs(made).max() <= 1.0 and np.abs(made).max() > 0.5


def test_group_advantages_centre_regions_among_regions_only():
    images = np.array([[0.9, -0.9, np.nan], [0.5, 0.5, 0.5]])
    regions = [
        [np.array([1.0, 1.0]), np.array([-1.0]), np.array([])],
        [np.array([0.01]), np.array([np.nan, -0.01]), np.array([0.0])],
    ]
    image, region = maps.group_advantages(images, regions)
    np.testing.assert_allclose(image, [[1, -1, np.nan], [0, 0, 0]], atol=1e-6)
    assert [len(part) for part in region[0]] == [2, 1, 0]
    np.testing.assert_allclose(region[0][0], 1 / np.sqrt(2), atol=1e-6)
    np.testing.assert_allclose(region[0][1], -1)
    np.testing.assert_allclose(region[1][0], 0.05, atol=1e-6)  # the floor, not the tiny std
    assert np.isnan(region[1][1][0])
    with pytest.raises(ValueError, match=r"\[P,K\]"):
        maps.group_advantages(images, regions[:1])


def test_group_advantages_of_nothing_known():
    image, region = maps.group_advantages(np.full((1, 2), np.nan), [[np.array([]), np.array([])]])
    assert np.isnan(image).all() and region[0][0].shape == (0,)
