"""The order of an epoch as a function, and rows laid out exactly as written down here."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from samples import CFG, edit, pack, picture, questions, talk, text_to_image

from srum_jax.data import packing
from srum_jax.data.schema import (
    BRANCH,
    CAUSAL,
    FULL,
    NOISE,
    Branch,
    Example,
    Lanes,
    Latent,
    Regions,
    Text,
)

BOS, EOS, START, END = CFG.bos, CFG.eos, CFG.start_of_image, CFG.end_of_image
LIMIT = Lanes(und=40, gen=30, vit=8, labels=6, images=3, regions=4)


def ids(*numbers):
    return np.array(numbers, np.int32)


def noise(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, columns, CFG.token_dim)).astype(np.float32)


# ------------------------------------------------------------------------------------------ plan


def random_sizes(rng, count):
    limit = np.array(dataclasses.astuple(LIMIT))
    sizes = rng.integers(0, limit + 1, (count, 6))
    return np.where(rng.random((count, 1)) < 0.7, sizes // 3, sizes)


def test_every_example_once_and_no_lane_too_full():
    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 17, 60):
        for seed in range(6):
            sizes = random_sizes(rng, count)
            rows = packing.plan(sizes, LIMIT, seed=seed, epoch=0)
            assert sorted(i for row in rows for i in row) == list(range(count))
            for row in rows:
                assert row and (packing.total(sizes[row]) <= dataclasses.astuple(LIMIT)).all()


def first_fit(sizes, order):
    """Rows by the rule: each example into the first row that has room, among all of them."""
    sizes = sizes * np.array([1, 1, 1, 1, 1, 0])  # regions is a width: it never fills up
    rows, free = [], []
    for i in order:
        fits = (n for n, room in enumerate(free) if (room >= sizes[i]).all())
        n = next(fits, len(rows))
        if n == len(rows):
            rows.append([])
            free.append(np.array(dataclasses.astuple(LIMIT)))
        rows[n].append(int(i))
        free[n] = free[n] - sizes[i]
    return rows


@pytest.mark.parametrize("count", [0, 1, 50, 400])
def test_each_example_lies_in_the_first_row_that_had_room(count):
    rng = np.random.default_rng(1)
    for seed in range(3):
        sizes = random_sizes(rng, count)
        order = np.random.default_rng((seed, 2)).permutation(count)
        assert packing.plan(sizes, LIMIT, seed=seed, epoch=2) == first_fit(sizes, order)


def test_order_is_a_function_of_seed_and_epoch():
    sizes = random_sizes(np.random.default_rng(2), 40)
    first = packing.plan(sizes, LIMIT, seed=3, epoch=1)
    assert packing.plan(sizes.copy(), LIMIT, seed=3, epoch=1) == first
    assert packing.plan(sizes, LIMIT, seed=3, epoch=2) != first
    assert packing.plan(sizes, LIMIT, seed=4, epoch=1) != first


def test_wide_regions_share_a_row():
    sizes = np.array([[1, 1, 0, 0, 1, 4]] * 3)
    assert [len(row) for row in packing.plan(sizes, LIMIT, seed=0, epoch=0)] == [3]


def test_an_example_too_large_for_any_row_is_named():
    sizes = np.array([[1, 1, 0, 0, 1, 0], [50, 1, 0, 0, 4, 0]])
    with pytest.raises(
        ValueError, match="example 1 .* und needs 50, the config has 40; images nee"
    ):
        packing.plan(sizes, LIMIT, seed=0, epoch=0)


def test_fill_is_the_share_of_real_tokens():
    sizes = np.array([[10, 30, 0, 0, 1, 0], [20, 15, 0, 0, 1, 0], [40, 0, 0, 0, 0, 0]])
    assert packing.fill(sizes, [[0, 1], [2]], LIMIT) == {"und": 70 / 80, "gen": 45 / 60}
    text_only = dataclasses.replace(LIMIT, gen=0)
    assert packing.fill(sizes[2:], [[0]], text_only) == {"und": 1.0}


# ------------------------------------------------------------------------------------------ pack


def fields(tokens, row=0):
    """(segment, split, mode, position, index) lists of the tokens that are not padding."""
    parts = (tokens.segment, tokens.split, tokens.mode, tokens.position, tokens.index)
    real = tokens.segment[row] > 0
    return [x[row][real].tolist() for x in parts]


def test_text():
    batch = pack([[Example((Text(ids(7, 8)), Text(ids(9), loss=True)))]])
    assert batch.text_ids[0].tolist() == [BOS, 7, 8, EOS, BOS, 9, EOS]
    assert fields(batch.und) == [
        [1] * 7,
        [0, 0, 0, 0, 1, 1, 1],
        [CAUSAL] * 7,
        list(range(7)),
        list(range(7)),
    ]
    # What follows each token: the word, the end.
    assert batch.label_slots[0].tolist() == [4, 5]
    assert batch.label_ids[0].tolist() == [9, EOS]
    assert batch.label_weights[0].tolist() == [1, 1]
    assert batch.gen.segment.shape == (1, 0)


def test_labels_may_weigh_less_in_long_texts():
    common = pathlib.Path(__file__).parents[1] / "goldens" / "common" / "common.json"
    for rule, official in json.loads(common.read_text())["len2weight"].items():
        for count, weight in official.items():
            if int(count):  # a text always has its end as a label
                text = Text(ids(*[7] * (int(count) - 1)), loss=True)
                batch = pack([[Example((text,))]], label_weights=rule)
                np.testing.assert_allclose(batch.label_weights[0], weight, rtol=1e-6)
                assert batch.label_weights.shape == (1, int(count))


def test_pictures_and_clean_latents_take_one_position_each():
    rng = np.random.default_rng(0)
    shown, clean = picture(rng, 1, 2), noise(2, 1)
    latent = Latent(clean, size=(32, 16), noisy=False, noise_id=9)
    batch = pack([[Example((shown, latent, Text(ids(7))))]])
    assert batch.text_ids[0].tolist() == [START, 0, 0, END, START, END, BOS, 7, EOS]
    assert fields(batch.und) == [
        [1] * 9,
        [0, 0, 0, 0, 1, 1, 2, 2, 2],
        [FULL] * 6 + [CAUSAL] * 3,
        [0, 0, 0, 0, 1, 1, 2, 3, 4],
        [0, 1, 2, 3, 4, 7, 8, 9, 10],  # 5 and 6 are the latent tokens
    ]
    assert fields(batch.gen) == [[1, 1], [1, 1], [FULL, FULL], [1, 1], [5, 6]]
    assert batch.vit_slots[0].tolist() == [1, 2] and batch.vit_images[0].tolist() == [0, 0]
    np.testing.assert_array_equal(batch.vit_patches[0], shown.patches)
    np.testing.assert_array_equal(batch.vit_positions[0], shown.positions)
    np.testing.assert_array_equal(batch.latents[0], clean[:, 0])
    assert batch.noisy.tolist() == [[False]] and batch.noise_ids.tolist() == [[9]]
    assert batch.grids.tolist() == [[[2, 1]]] and batch.sizes.tolist() == [[[32, 16]]]


def test_a_noisy_latent_takes_no_position_from_what_follows():
    batch = pack([[Example((Text(ids(7)), Latent(noise(2, 3), size=(8, 12)), Text(ids(8))))]])
    assert batch.text_ids[0].tolist() == [BOS, 7, EOS, START, END, BOS, 8, EOS]
    assert fields(batch.und)[1:4] == [
        [0, 0, 0, 1, 1, 2, 2, 2],
        [CAUSAL] * 3 + [NOISE] * 2 + [CAUSAL] * 3,
        [0, 1, 2, 3, 3, 3, 4, 5],
    ]
    assert fields(batch.gen) == [[1] * 6, [1] * 6, [NOISE] * 6, [3] * 6, list(range(4, 10))]
    row = CFG.max_latent
    assert batch.latent_positions[0].tolist() == [0, 1, 2, row, row + 1, row + 2]
    assert batch.latent_cells[0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert batch.noisy.tolist() == [[True]]


def test_branches_start_at_the_same_position():
    ask = Branch((Text(ids(7, 8)), Text(ids(9), loss=True)))
    other = Branch((Text(ids(6)),))
    batch = pack([[Example((Text(ids(5)), ask, other, Text(ids(5))))]])
    assert batch.text_ids[0].tolist() == (
        [BOS, 5, EOS] + [BOS, 7, 8, EOS, BOS, 9, EOS] + [BOS, 6, EOS] + [BOS, 5, EOS]
    )
    assert fields(batch.und)[1:4] == [
        [0] * 3 + [1] * 7 + [2] * 3 + [3] * 3,
        [CAUSAL] * 3 + [BRANCH] * 10 + [CAUSAL] * 3,
        [0, 1, 2] + [3, 4, 5, 6, 7, 8, 9] + [3, 4, 5] + [3, 4, 5],
    ]
    assert batch.label_slots[0].tolist() == [7, 8] and batch.label_ids[0].tolist() == [9, EOS]


def test_samples_are_numbered_and_padding_marked():
    rng = np.random.default_rng(0)
    boxes = np.array([[0, 0, 4, 4], [2, 2, 8, 8]], np.float32)
    good = noise(1, 2, seed=5)
    drawn = Latent(
        noise(1, 2),
        size=(4, 8),
        noise_id=3,
        target=good,
        regions=Regions(boxes, np.array([0.5, -1.0]), 0.25),
    )
    first = Example((picture(rng, 1, 1), drawn))
    second = Example((picture(rng, 1, 2), Latent(noise(1, 1), size=(4, 4), noise_id=4)))
    lanes = Lanes(und=16, gen=5, vit=5, labels=1, images=3, regions=3)
    batch = packing.pack([[first, second], []], lanes, CFG.layout, targets=True, rewards=True)
    assert batch.und.segment[0].tolist() == [1] * 5 + [2] * 6 + [0] * 5
    assert batch.und.index[0].tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 13] + [-1] * 5
    assert batch.gen.segment[0].tolist() == [1, 1, 2, 0, 0]
    assert batch.gen.index[0].tolist() == [4, 5, 12, -1, -1]
    assert batch.und.position[0, :11].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1]
    assert batch.vit_images[0].tolist() == [0, 1, 1, -1, -1]
    assert batch.vit_slots[0].tolist() == [1, 6, 7, 16, 16]  # 16, the lane's end: dropped
    assert batch.latent_images[0, :3].tolist() == [0, 0, 1]
    assert batch.noise_ids[0].tolist() == [3, 4, 0] and batch.noisy[0].tolist() == [1, 1, 0]
    assert batch.label_weights.tolist() == [[0], [0]]
    # The good image where it differs, the image itself where not.
    np.testing.assert_array_equal(batch.targets[0, :2], good[0])
    np.testing.assert_array_equal(batch.targets[0, 2], batch.latents[0, 2])
    r = batch.rewards
    np.testing.assert_array_equal(r.boxes[0, 0, :2], boxes)
    assert r.scores[0].tolist() == [[0.5, -1.0, 0], [0, 0, 0], [0, 0, 0]]
    assert r.valid[0].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert r.image_score[0].tolist() == [0.25, 0, 0]
    assert not batch.und.segment[1].any() and (batch.gen.index[1] == -1).all()
    plain = packing.pack([[first, second]], lanes, CFG.layout)
    assert plain.targets is None and plain.rewards is None


@pytest.mark.parametrize("example", [talk(0), edit(1, boxes=2), questions(2), text_to_image(3)])
def test_size_is_what_packing_takes(example):
    und, gen, vit, labels, images, regions = packing.size(example)
    lanes = Lanes(50, 50, 20, 20, 5, 5)
    batch = packing.pack([[example]], lanes, CFG.layout, rewards=True)
    assert (batch.und.segment > 0).sum() == und and (batch.gen.segment > 0).sum() == gen
    assert (batch.vit_images >= 0).sum() == vit and (batch.label_weights > 0).sum() == labels
    assert batch.noisy.sum() + (images > 1) == images  # `edit` has a clean one besides
    assert batch.rewards.valid.sum(-1).max() == regions


def test_a_row_too_long_names_lane_and_sizes():
    lanes = Lanes(und=12, gen=4, vit=0, labels=0, images=1, regions=0)
    with pytest.raises(ValueError) as error:
        packing.pack([[text_to_image(0)], [text_to_image(1), text_to_image(2)]], lanes, CFG.layout)
    assert str(error.value) == (
        "a row does not fit one row: und needs 14, the config has 12; "
        "gen needs 8, the config has 4; images needs 2, the config has 1"
    )


# ------------------------------------------------------------------------------ masks of regions


def masked_row(mask):
    """An image with two regions, the first by its mask, and one without regions."""
    regions = Regions(
        np.array([[0, 0, 4, 4], [0, 0, 6, 4]], np.float32), np.array([0.5, -1]), 0.25, (mask, None)
    )
    first = Example((Latent(noise(1, 2), size=(4, 8), regions=regions),))
    return [first, Example((Latent(noise(2, 1), size=(8, 4)),))]


MASKED = Lanes(und=4, gen=6, vit=0, labels=0, images=3, regions=3)


@pytest.mark.parametrize("sampling, points", [("centre", 4), ("area", 1)])
def test_masks_become_coverage_of_tokens(sampling, points):
    mask = np.zeros((4, 8), bool)
    mask[:, 3:5] = True  # one column of each token, and no pixel that a centre reads
    batch = packing.pack(
        [masked_row(mask), []], MASKED, CFG.layout, rewards=True, coverage=sampling
    )
    c = batch.rewards.coverage
    assert c.inside.shape == (2, 6, points, 3) and c.inside.dtype == np.float32
    assert c.weights.shape == (2, 6, points)
    share = 0.25 if sampling == "area" else 0.0
    np.testing.assert_allclose(np.sum(c.inside[0, :2, :, 0] * c.weights[0, :2], -1), share)
    box = np.sum(c.inside[0, :2, :, 1] * c.weights[0, :2], -1)  # the second by its box
    np.testing.assert_allclose(box, [1, 0.5])
    assert not c.inside[0, 2:].any() and not c.inside[0, :, :, 2].any()
    # Every real token reads something, whether its image has regions or not; padding nothing.
    np.testing.assert_allclose(c.weights[0].sum(-1), [1, 1, 1, 1, 0, 0])
    assert not c.weights[1].any() and not c.inside[1].any()


def test_without_masks_nothing_is_added_and_masks_are_never_dropped():
    row = masked_row(None)
    batch = packing.pack([row], MASKED, CFG.layout, rewards=True)
    assert batch.rewards.coverage is None
    mask = np.ones((4, 8), bool)
    with pytest.raises(ValueError, match="a region has a mask: pack the rewards with coverage"):
        packing.pack([masked_row(mask)], MASKED, CFG.layout, rewards=True)
    assert packing.pack([masked_row(mask)], MASKED, CFG.layout).rewards is None
    with pytest.raises(ValueError, match=r"region 0: a mask of \[8, 4\] pixels for an image of"):
        packing.pack([masked_row(mask.T)], MASKED, CFG.layout, rewards=True, coverage="area")


def test_advantages_have_their_own_arrays():
    """In place of scores; samples that have the other of the two are refused."""
    boxes = np.array([[0, 0, 4, 4], [2, 0, 8, 4]], np.float32)
    values, image = np.array([0.5, -1.0], np.float32), 0.25
    kinds = {
        False: Regions(boxes, values, image),
        True: Regions(boxes, None, None, advantages=values, image_advantage=image),
    }
    lanes = Lanes(und=4, gen=2, vit=0, labels=0, images=1, regions=2)

    def packed(regions, advantages):
        example = Example((Latent(noise(1, 2), size=(4, 8), regions=regions),))
        how = dict(rewards=True, advantages=advantages)
        return packing.pack([[example]], lanes, CFG.layout, **how).rewards

    r = packed(kinds[True], True)
    assert r.advantages[0, 0].tolist() == [0.5, -1.0] and r.image_advantage[0, 0] == 0.25
    assert r.scores is None is r.image_score
    same = packed(kinds[False], False)
    assert same.advantages is None is same.image_advantage
    np.testing.assert_array_equal(same.scores, r.advantages)
    np.testing.assert_array_equal(same.valid, r.valid)
    for advantages, what in ((True, "advantages"), (False, "scores")):
        with pytest.raises(ValueError, match=f"the batch is to hold {what}, and"):
            packed(kinds[not advantages], advantages)
