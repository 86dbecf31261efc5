"""The released rule to the bit, every choice of a rule, and token weights against dense maps."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import released_reader
from samples import jit

from srum_jax.data import masks
from srum_jax.data.schema import Coverage, Rewards
from srum_jax.rewards import maps
from srum_jax.rewards.maps import ADVANTAGE, PAPER, RELEASED, WeightRule

COMMON = pathlib.Path(__file__).parents[1] / "goldens" / "common"
CASES = json.loads((COMMON / "common.json").read_text())
ARRAYS = np.load(COMMON / "common.npz")
weigh = jit(maps.token_weights, static_argnums=0)
NAMED = (RELEASED, PAPER, ADVANTAGE)
sample = jit(maps.sample_map, static_argnums=(1, 2))


def by_each(rules, *arguments):
    """[rules, G] in one program."""
    return jnp.stack([maps.token_weights(rule, *arguments) for rule in rules])


weigh_by_each = jit(by_each, static_argnums=0)


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
    found = released_reader.regions(case["vlm_rewards"])
    made = maps.release_map(*found, case["global_reward_factor"], (height, width))
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
        found = released_reader.regions(case["vlm_rewards"])
        r = len(found[1])
        boxes[n, :r], scores[n, :r], valid[n, :r] = found
    sizes = np.array([dense.shape for dense in expected])
    cells = np.concatenate([np.argwhere(np.ones(size)) for size in sizes])
    images = np.repeat(np.arange(len(cases)), sizes.prod(1))
    factors = np.array([case["global_reward_factor"] for case in cases])
    made = weigh(RELEASED, Rewards(boxes, scores, valid, factors), sizes, sizes, images, cells)
    flat = np.concatenate([dense.ravel() for dense in expected])
    np.testing.assert_allclose(made, flat, atol=1e-6)


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
    made = weigh(
        RELEASED, Rewards(boxes, scores, valid, image_scores), *token_arguments(size, grid, 5)
    )
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
    rewards = Rewards(boxes, scores, valid, jnp.array([1.0, 0.0, jnp.nan]))
    made = weigh(RELEASED, rewards, sizes, grids, images, cells)
    np.testing.assert_allclose(made, [0.5, 0.25, 0.5, 0, 0])
    rewards = Rewards(boxes[:, :0], scores[:, :0], valid[:, :0], rewards.image_score)
    empty = weigh(RELEASED, rewards, sizes, grids, images, cells)
    np.testing.assert_allclose(empty, [0.25, 0.25, 0.5, 0, 0])


@pytest.mark.parametrize("sampling", ["centre", "area"])
def test_no_gradient_flows(sampling):
    boxes, scores, valid, image_scores = random_regions(2, 2, 3, (32, 32))
    rules = tuple(dataclasses.replace(rule, sampling=sampling) for rule in NAMED)
    rest = jax.tree.map(jnp.asarray, token_arguments((32, 32), (4, 4), 2))

    def total(boxes, scores, image_scores):
        return by_each(rules, Rewards(boxes, scores, valid, image_scores), *rest).sum()

    gradients = jit(jax.grad(total, (0, 1, 2)))(boxes, scores, image_scores)
    assert not any(np.any(leaf) for leaf in gradients)


def test_advantages_background_boxes_and_overlap():
    boxes = jnp.array([[[0, 0, 16, 16], [8, 0, 16, 16], [0, 16, 32, 32.0]]])
    valid = jnp.array([[True, True, False]])
    region = jnp.array([[1.0, -0.5, jnp.nan]])
    image = jnp.array([-0.5])
    rest = token_arguments((32, 32), (4, 4))
    made = weigh(ADVANTAGE, Rewards(boxes, region, valid, image), *rest)
    made = np.asarray(made).reshape(4, 4)
    np.testing.assert_allclose(made[:2, 0], 0.25)  # (-.5 + 1) / 2
    np.testing.assert_allclose(made[:2, 1], -0.125)  # (-.5 + (1 - .5) / 2) / 2
    np.testing.assert_allclose(made[2:], -0.5)
    np.testing.assert_allclose(made[:, 2:], -0.5)
    rule = dataclasses.replace(ADVANTAGE, region_share=0.0)
    whole = weigh(rule, Rewards(boxes, region, valid, image), *rest)
    np.testing.assert_allclose(whole, -0.5)
    swapped = Rewards(boxes[:, ::-1], region[:, ::-1], valid[:, ::-1], image)
    np.testing.assert_array_equal(np.asarray(weigh(ADVANTAGE, swapped, *rest)).reshape(4, 4), made)


def test_advantages_stay_bounded():
    boxes, scores, valid, image_scores = random_regions(3, 6, 9, (40, 56))
    made = weigh(
        ADVANTAGE,
        Rewards(boxes, 7 * scores, valid, 7 * image_scores),
        *token_arguments((40, 56), (5, 7), 6),
    )
    assert np.abs(made).max() <= 1.0 and np.abs(made).max() > 0.5


# ------------------------------------------------------------------------- the choices of a rule


def one_row(rules, boxes, scores, image_score=0.0, valid=None):
    """Weights [rules, 4] of an image of one row of 4 tokens, of 8 x 8 pixels each."""
    n = len(boxes)
    boxes = np.array([(x0, 0, x1, 8) for x0, x1 in boxes], np.float32).reshape(1, n, 4)
    valid = np.ones((1, n), bool) if valid is None else np.array([valid])
    scores = np.array([scores], np.float32)
    rewards = Rewards(boxes, scores, valid, np.array([image_score], np.float32))
    return np.asarray(weigh_by_each(tuple(rules), rewards, *token_arguments((8, 32), (1, 4))))


def by_area(rule):
    return dataclasses.replace(rule, sampling="area")


# 4 tokens of 8 pixels: the first region alone, the overlap of three, the third alone, none.
THREE = [(0, 16), (8, 16), (8, 24)]
SIGNED = WeightRule("signed", "zero", "mean", "ignore")


CHOICES = [
    ({}, [0.5, -0.1, -0.2, 0]),
    ({"overlap": "max"}, [0.5, 0.5, -0.2, 0]),
    ({"range": "unit"}, [0.75, 0.45, 0.4, 0]),
    ({"range": "unit", "background": "half"}, [0.75, 0.45, 0.4, 0.5]),
    ({"background": "half"}, [0.5, -0.1, -0.2, 0.5]),
    ({"background": "image"}, [0.5, -0.1, -0.2, 0.4]),
    ({"background": "image", "range": "unit"}, [0.75, 0.45, 0.4, 0.7]),
    ({"negative": "clip"}, [0.5, 0.5 / 3, 0, 0]),
    ({"image": "factor"}, [0.35, -0.07, -0.14, 0]),
    ({"image": "factor", "background": "half"}, [0.35, -0.07, -0.14, 0.35]),
    ({"image": "blend"}, [0.45, 0.15, 0.1, 0]),
    ({"image": "blend", "background": "image"}, [0.45, 0.15, 0.1, 0.4]),
    ({"image": "blend", "region_share": 0.25}, [0.425, 0.275, 0.25, 0]),
]


@pytest.mark.parametrize("sampling", ["centre", "area"])
def test_each_choice(sampling):
    """Scores .5, -.6, -.2 of the regions and .4 of the image; whole tokens, so both samplings."""
    rules = [dataclasses.replace(SIGNED, sampling=sampling, **choice) for choice, _ in CHOICES]
    made = one_row(rules, THREE, [0.5, -0.6, -0.2], image_score=0.4)
    for (choice, want), found in zip(CHOICES, made, strict=True):
        np.testing.assert_allclose(found, want, atol=1e-6, err_msg=str(choice))


def test_named_rules_are_what_they_say():
    made = one_row(NAMED, THREE, [0.5, -0.6, -0.2], 0.4)
    np.testing.assert_allclose(made[0], np.array([0.75, 0.75, 0.5, 0.5]) * 0.7, atol=1e-6)
    np.testing.assert_allclose(made[1], np.array([0.5, -0.1, -0.2, 0]) * 0.7, atol=1e-6)
    np.testing.assert_allclose(made[2], [0.45, 0.15, 0.1, 0.4], atol=1e-6)


def test_only_an_unbounded_rule_follows_scores_beyond_their_range():
    free = dataclasses.replace(SIGNED, bounded=False)
    made = one_row((SIGNED, free, RELEASED, PAPER), [(0, 8), (8, 16)], [3.0, -3.0], 2.0)
    want = [[1, -1, 0, 0], [3, -3, 0, 0], [3, 0.75, 0.75, 0.75], [1, -1, 0, 0]]
    np.testing.assert_allclose(made, want)


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"overlap": "last"}, "overlap = 'last' of a weight rule: known are max, mean"),
        ({"range": "percent"}, "range = 'percent'"),
        ({"background": 0.5}, "background = 0.5"),
        ({"negative": "abs"}, "negative = 'abs'"),
        ({"image": "sum"}, "image = 'sum'"),
        ({"sampling": "nearest"}, "sampling = 'nearest' of a weight rule: known are centre, area"),
        ({"region_share": 1.5}, r"region_share = 1.5 of a weight rule: give a number in \[0, 1\]"),
        ({"region_share": float("nan")}, "region_share = nan"),
    ],
)
def test_a_rule_of_other_values_is_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SIGNED, **choice)


RULES = tuple(
    WeightRule(range_, background, overlap, image, negative, sampling=sampling)
    for range_, background, overlap, image, negative, sampling in [
        ("unit", "half", "max", "factor", "clip", "area"),
        ("unit", "image", "mean", "blend", "keep", "area"),
        ("unit", "zero", "max", "ignore", "clip", "centre"),
        ("signed", "zero", "mean", "factor", "keep", "area"),
        ("signed", "image", "mean", "blend", "clip", "centre"),
        ("signed", "half", "max", "ignore", "keep", "area"),
        ("signed", "zero", "max", "factor", "keep", "centre"),
        ("signed", "image", "max", "blend", "keep", "area"),
    ]
)


def test_weights_keep_their_range_and_no_order_matters():
    size, grid = (45, 70), (5, 6)
    boxes, scores, valid, image_scores = random_regions(4, 4, 7, size)
    boxes[:, 3] = boxes[:, 2]  # two of the same area, of different scores
    rest = token_arguments(size, grid, 4)
    made = weigh_by_each(RULES, Rewards(boxes, 3 * scores, valid, 3 * image_scores), *rest)
    for rule, found in zip(RULES, made, strict=True):
        low = 0 if rule.range == "unit" else -1
        assert low - 1e-6 <= found.min() and found.max() <= 1 + 1e-6, rule
        assert np.ptp(found) > 0.4, rule
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(7)
        moved = Rewards(boxes[:, order], 3 * scores[:, order], valid[:, order], 3 * image_scores)
        np.testing.assert_allclose(weigh_by_each(RULES, moved, *rest), made, atol=1e-6)


@pytest.mark.parametrize("sampling", ["centre", "area"])
def test_nan_of_a_region_reaches_only_its_tokens_and_of_an_image_all(sampling):
    rules = [dataclasses.replace(rule, sampling=sampling) for rule in NAMED]
    boxes = [(0, 8), (16, 24)]
    made = one_row(rules, boxes, [np.nan, 0.5])
    assert np.isnan(made).tolist() == [[True, False, False, False]] * 3
    assert np.isfinite(one_row(rules, boxes, [np.nan, 0.5], valid=[False, True])).all()
    assert np.isnan(one_row(rules, boxes, [0.5, 0.5], image_score=np.nan)).all()


# ------------------------------------------------------------------------------ whole cells, masks


def dense_area(boxes, valid, size, grid):
    """Coverage [N,G,R] by painting 1/h x 1/w parts of pixels and averaging cells."""
    found = []
    for of_image, drawn in zip(np.trunc(boxes), valid, strict=True):
        layers = []
        for (x0, y0, x1, y1), there in zip(of_image, drawn, strict=True):
            rows, cols = np.arange(size[0]), np.arange(size[1])
            inside = np.outer((y0 <= rows) & (rows < y1), (x0 <= cols) & (cols < x1)) & there
            fine = inside.repeat(grid[0], axis=0).repeat(grid[1], axis=1)
            layers.append(fine.reshape(grid[0], size[0], grid[1], size[1]).mean((1, 3)).ravel())
        found.append(np.stack(layers, -1))
    return np.stack(found)


@pytest.mark.parametrize("size,grid", [((32, 32), (4, 4)), ((25, 33), (3, 4)), ((5, 6), (8, 3))])
def test_area_is_the_part_of_the_cell_that_a_box_covers(size, grid):
    """One region an image, so the weight is coverage times score."""
    boxes, scores, valid, _ = random_regions(5, 12, 1, size)
    boxes[0], valid[0], scores[0] = [-9, -9, 99, 99], True, 1.0  # all of the image: exactly 1
    rule = by_area(SIGNED)
    made = weigh(
        rule, Rewards(boxes, scores, valid, np.zeros(12)), *token_arguments(size, grid, 12)
    )
    want = dense_area(boxes, valid, size, grid)[..., 0] * scores
    made = np.asarray(made).reshape(12, -1)
    np.testing.assert_allclose(made, want, atol=1e-6)
    assert (made[0] == 1).all()


def test_a_part_of_a_cell_mixes_with_the_background():
    """2 of 8 columns: a quarter of the region's weight, three of the background's."""
    released, paper, advantage = one_row(map(by_area, NAMED), [(0, 2)], [1.0], image_score=-0.5)
    np.testing.assert_allclose(released, np.array([0.25 + 0.375, 0.5, 0.5, 0.5]) / 4)
    np.testing.assert_allclose(paper, [0.25 / 4, 0, 0, 0])
    np.testing.assert_allclose(advantage, [-0.5 + 0.25 * 0.75, -0.5, -0.5, -0.5])


def test_of_two_parts_each_mixes_before_the_rule():
    rule = by_area(PAPER)
    most = dataclasses.replace(rule, background="half", overlap="max")
    made = one_row((rule, most), [(0, 2), (4, 8)], [1.0, -1.0], image_score=1.0)
    np.testing.assert_allclose(made[0], [(0.25 - 0.5) / 2, 0, 0, 0])
    np.testing.assert_allclose(made[1], [0.25 + 0.75 / 2, 0.5, 0.5, 0.5])


@pytest.mark.parametrize("at", [0, 2, 7])
def test_a_box_of_one_column_counts_by_area_and_vanishes_at_the_centre(at):
    made = one_row((SIGNED, by_area(SIGNED)), [(at, at + 1)], [-0.8])
    assert not made[0].any()
    np.testing.assert_allclose(made[1], [-0.1, 0, 0, 0], atol=1e-7)


def covered(boxes, valid, size, grid, sampling, shapes=None):
    """The coverage of images of one size: of the boxes painted as masks, or of `shapes`."""
    parts = []
    for n, of_image in enumerate(boxes):
        rows, cols = np.arange(size[0])[:, None], np.arange(size[1])
        painted = [
            (y0 <= rows) & (rows < y1) & (x0 <= cols) & (cols < x1)
            for x0, y0, x1, y1 in np.trunc(of_image)
        ]
        given = painted if shapes is None else shapes[n]
        parts.append(masks.cover(of_image, given, size, grid, sampling))
    inside, weights = zip(*parts, strict=True)
    return Coverage(np.concatenate(inside), np.concatenate(weights))


@pytest.mark.parametrize("size,grid", [((32, 32), (4, 4)), ((50, 70), (3, 4)), ((5, 6), (8, 3))])
@pytest.mark.parametrize("sampling", ["centre", "area"])
def test_boxes_as_masks_weigh_what_the_boxes_do(size, grid, sampling):
    boxes, scores, valid, image_scores = random_regions(6, 5, 6, size)
    rewards = Rewards(boxes, scores, valid, image_scores)
    rest = token_arguments(size, grid, 5)
    painted = rewards.replace(coverage=covered(boxes, valid, size, grid, sampling))
    plain = rewards.replace(coverage=covered(boxes, valid, size, grid, sampling, shapes=[None] * 5))
    rules = tuple(dataclasses.replace(rule, sampling=sampling) for rule in NAMED)
    want = weigh_by_each(rules, rewards, *rest)
    assert (np.ptp(want, axis=1) > 0.1).all()
    for given in (painted, plain):
        np.testing.assert_allclose(weigh_by_each(rules, given, *rest), want, atol=1e-6)


def test_a_mask_counts_where_its_box_does_not():
    size, grid = (16, 16), (2, 2)
    corner = np.tri(16, dtype=bool)  # the lower left half of a box around everything
    boxes = np.array([[[0, 0, 16, 16.0]]])
    rewards = Rewards(boxes, np.ones((1, 1)), np.ones((1, 1), bool), np.zeros(1))
    cover = covered(boxes, None, size, grid, "area", shapes=[[corner]])
    rule = by_area(SIGNED)
    made = weigh(rule, rewards.replace(coverage=cover), *token_arguments(size, grid))
    diagonal = 36 / 64
    np.testing.assert_allclose(made, [diagonal, 0, 1, diagonal])
    invalid = rewards.replace(coverage=cover, valid=np.zeros((1, 1), bool))
    assert not np.any(weigh(rule, invalid, *token_arguments(size, grid)))
    with pytest.raises(ValueError, match="coverage of 1 points a token, the rule samples by 'cent"):
        weigh(SIGNED, rewards.replace(coverage=cover), *token_arguments(size, grid))


# ------------------------------------------------------------------------------ scores, centred


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
