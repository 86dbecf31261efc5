"""Where tokens of a sample lie in a row, and which samples share one."""

import numpy as np
import pytest

import samples
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
    Picture,
    Text,
)

CFG = samples.CFG
BOS, EOS, SOI, EOI = CFG.bos, CFG.eos, CFG.start_of_image, CFG.end_of_image


def ids(*values):
    return np.array(values, np.int32)


def test_layout_of_every_kind_of_item():
    patches = np.ones((2, CFG.vit.patch**2 * 3), np.float32)
    tokens = np.arange(2 * CFG.token_dim, dtype=np.float32).reshape(1, 2, -1)
    example = Example(
        (
            Text(ids(10, 11), closing_label=SOI),
            Picture(patches, ids(0, 1)),
            Latent(tokens, size=(4, 8), noisy=True, noise_id=7),
            Latent(tokens, size=(4, 8), noisy=False, noise_id=8),
            Branch((Text(ids(20)), Text(ids(21), loss=True))),
            Branch((Text(ids(30)), Text(ids(31), loss=True))),
        )
    )
    lanes = Lanes(und=30, gen=5, vit=3, labels=6, images=3, regions=0)
    b = packing.pack([[example]], lanes, CFG)
    text = [BOS, 10, 11, EOS, SOI, 0, 0, EOI, SOI, EOI, SOI, EOI]
    text += [BOS, 20, EOS, BOS, 21, EOS, BOS, 30, EOS, BOS, 31, EOS]
    n = len(text)
    assert b.text_ids[0, :n].tolist() == text
    # A noisy image gives its position back, so its clean copy has the same; so does a branch.
    positions = [0, 1, 2, 3, 4, 4, 4, 4, 5, 5, 5, 5, *range(6, 12), *range(6, 12)]
    assert b.und.position[0, :n].tolist() == positions
    modes = [CAUSAL] * 4 + [FULL] * 4 + [NOISE] * 2 + [FULL] * 2 + [BRANCH] * 12
    assert b.und.mode[0, :n].tolist() == modes
    assert b.und.split[0, :n].tolist() == [0] * 4 + [1] * 4 + [2] * 2 + [3] * 2 + [4] * 6 + [5] * 6
    assert b.und.segment[0].tolist() == [1] * n + [0] * (30 - n)
    assert b.gen.mode[0].tolist() == [NOISE, NOISE, FULL, FULL, 0]
    assert b.gen.position[0].tolist() == [5, 5, 5, 5, 0]
    # start, latents, end: packed order goes through both lanes.
    assert b.und.index[0, 8:12].tolist() == [8, 11, 12, 15]
    assert b.gen.index[0].tolist() == [9, 10, 13, 14, -1]
    assert b.vit_slots[0].tolist() == [5, 6, 30]
    assert b.vit_images[0].tolist() == [0, 0, -1]
    # The closing label stands at the eos; an answer's bos predicts its first id, and so on.
    assert b.label_slots[0].tolist() == [3, 15, 16, 21, 22, 0]
    assert b.label_ids[0].tolist() == [SOI, 21, EOS, 31, EOS, 0]
    assert b.label_weights[0].tolist() == [1, 1, 1, 1, 1, 0]
    assert b.noisy[0].tolist() == [True, False, False]
    assert b.noise_ids[0].tolist() == [7, 8, 0]
    assert b.latent_images[0].tolist() == [0, 0, 1, 1, 0]
    assert b.latent_positions[0].tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_array_equal(b.latents[0, 2:4], tokens[0])
    assert packing.size(example).tolist() == [n, 4, 2, 5, 2, 0]


def test_samples_of_a_row_are_segments_with_positions_of_their_own():
    rows = [[samples.talk(0), samples.text_to_image(1)]]
    b = samples.pack(rows, spare=1)
    first = packing.size(rows[0][0])[0]
    assert b.und.segment[0, first - 1 : first + 1].tolist() == [1, 2]
    assert b.und.position[0, first] == 0


def test_a_row_that_is_too_long_names_lane_and_sizes():
    lanes = Lanes(und=10, gen=3, vit=0, labels=0, images=1, regions=0)
    with pytest.raises(ValueError, match="gen needs 4, the config has 3"):
        packing.pack([[samples.text_to_image(0)]], lanes, CFG)


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_holds_every_example_once_and_fits(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 20, (200, 6))
    lanes = Lanes(*(int(n) for n in rng.integers(20, 60, 6)))
    rows = packing.plan(sizes, lanes, seed=seed, epoch=1)
    assert sorted(i for row in rows for i in row) == list(range(200))
    limit = [getattr(lanes, name) for name in packing.LANES]
    for row in rows:
        assert (packing.total([sizes[i] for i in row]) <= limit).all()
    assert rows == packing.plan(sizes, lanes, seed=seed, epoch=1)
    assert rows != packing.plan(sizes, lanes, seed=seed, epoch=2)
    # First fit: no sample of a later row would have fitted an earlier one as it ended.
    for early, late in zip(rows, rows[1:], strict=False):
        used = packing.total([sizes[i] for i in early])
        joined = packing.total([used, *(sizes[i] for i in late)])
        assert (joined > limit).any()


def test_an_example_that_fits_no_row_is_refused():
    sizes = np.array([[5, 0, 0, 0, 0, 0], [50, 0, 0, 0, 0, 0]])
    lanes = Lanes(und=20, gen=0, vit=0, labels=0, images=0, regions=0)
    with pytest.raises(ValueError, match="example 1 .*und needs 50, the config has 20"):
        packing.plan(sizes, lanes, seed=0, epoch=0)


def test_fill_counts_real_tokens():
    sizes = np.array([[10, 4, 0, 0, 1, 0], [5, 4, 0, 0, 1, 0]])
    lanes = Lanes(und=20, gen=8, vit=0, labels=0, images=2, regions=0)
    assert packing.fill(sizes, [[0, 1]], lanes) == {"und": 0.75, "gen": 1.0}
