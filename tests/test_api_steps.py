"""Drawing through the API, followed: negative prompts, callbacks, latents in and out, a start from
a picture. With a single step what guidance gives can be written down: x₁ = noise − u."""

import numpy as np
import pytest
import test_api

from srum_jax import api
from srum_jax.config import SampleConfig
from srum_jax.core.errors import Interrupted
from srum_jax.worlds.shapes import examples

RED, BLUE = test_api.PROMPTS[0], test_api.PROMPTS[2]
PICTURE = test_api.image(3)
PLAIN = dict(renorm="none", seeds=[5])


@pytest.fixture(scope="module")
def bagel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return api.load(test_api.write_model(folder, examples.write_tokenizer(folder / "words")))


def one(drawings):
    (drawing,) = drawings
    return drawing.latents


def close(a, b):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_guidance_compares_with_the_negative_prompt(bagel):
    how = PLAIN | {"steps": 1}
    red, blue = (one(bagel.generate(p, guidance=1.0, **how)) for p in (RED, BLUE))
    assert np.abs(red - blue).max() > 0.1
    close(one(bagel.generate(RED, negative=BLUE, guidance=3.0, **how)), blue + 3 * (red - blue))
    both = bagel.generate([RED, BLUE], negative=BLUE, guidance=3.0, renorm="none", steps=1)
    each = bagel.generate([RED, BLUE], negative=[BLUE, BLUE], guidance=3.0, renorm="none", steps=1)
    for a, b in zip(both, each, strict=True):
        np.testing.assert_array_equal(a.latents, b.latents)


@pytest.mark.slow
def test_image_guidance_comes_after_the_negative_prompt(bagel):
    how = PLAIN | {"steps": 1}
    alone = dict(guidance=1.0, image_guidance=1.0)
    red, blue = (one(bagel.edit(PICTURE, p, **alone, **how)) for p in (RED, BLUE))
    words = one(bagel.generate(RED, guidance=1.0, **how))  # the same text without the picture
    found = one(bagel.edit(PICTURE, RED, negative=BLUE, guidance=3.0, image_guidance=1.5, **how))
    text = blue + 3 * (red - blue)
    close(found, words + 1.5 * (text - words))


def test_a_callback_follows_every_step(bagel):
    prompts, steps = [RED, BLUE, RED], []
    followed = bagel.generate(prompts, callback=steps.append, batch=2)
    plain = bagel.generate(prompts, batch=2)
    for a, b in zip(followed, plain, strict=True):
        close(a.latents, b.latents)
    assert [(s.number, s.steps) for s in steps] == [(i, 3) for i in (1, 2, 3)] * 2
    assert [s.time for s in steps[:3]] == sorted((s.time for s in steps[:3]), reverse=True)
    assert steps[2].time == 0
    batches = [set(s.images) for s in steps[::3]]
    assert batches[0] | batches[1] == {0, 1, 2} and not batches[0] & batches[1]
    for last in steps[2::3]:
        for place, latents in zip(last.images, last.latents, strict=True):
            np.testing.assert_array_equal(latents, followed[place].latents)


def test_a_callback_stops(bagel):
    seen = []

    def stop(step):
        seen.append(step.number)
        return np.equal(step.number, 2)  # as what latents are compared with: a bool of NumPy

    with pytest.raises(Interrupted, match="after step 2 of 3") as caught:
        bagel.generate(RED, callback=stop)
    assert seen == [1, 2] and caught.value.exit_code == 130


def test_a_path_may_be_taken_up_anywhere(bagel):
    (whole,) = bagel.generate(RED, seed=4, trajectory=True)
    assert len(whole.trajectory) == 4 and not bagel.generate(RED, seed=4)[0].trajectory
    np.testing.assert_array_equal(whole.trajectory[-1], whole.latents)
    for start in (0, 1, 2):
        (again,) = bagel.generate(RED, latents=[whole.trajectory[start]], start=start)
        np.testing.assert_array_equal(again.latents, whole.latents)
        np.testing.assert_array_equal(again.image, whole.image)


def test_a_drawing_begins_from_a_picture(bagel):
    how = dict(seed=2, trajectory=True, steps=4)
    wide = test_api.image(6, (32, 64))
    (noise,) = bagel.generate(RED, size=(32, 64), **how)
    begun = [bagel.generate(RED, from_image=wide, start=k, **how)[0] for k in (0, 2, 3)]
    assert all(d.image.shape == (32, 64, 3) for d in begun)
    np.testing.assert_array_equal(begun[0].trajectory[0], noise.trajectory[0])
    assert [len(d.trajectory) for d in begun] == [5, 3, 2]
    clean = bagel.reader.latents(wide).tokens
    times = np.linspace(1, 0, 5)
    shift = bagel.generation_config.generate.shift
    t = (shift * times / (1 + (shift - 1) * times))[2]
    close(begun[1].trajectory[0], (1 - t) * clean + t * noise.trajectory[0])
    near = [np.abs(d.latents - clean).mean() for d in begun]
    assert near[2] < near[0]


def test_progress_is_shown_where_it_is_wanted(bagel, capsys):
    bagel.generate(RED, progress=True)
    assert "drawing" in capsys.readouterr().err
    bagel.generate(RED)
    assert "drawing" not in capsys.readouterr().err


def test_settings_may_be_given_whole(bagel):
    own = SampleConfig(size=(32, 32), steps=2, guidance=1.0)
    (drawing,) = bagel.generate(RED, sampling=own, steps=3, trajectory=True)
    assert len(drawing.trajectory) == 4
    (same,) = bagel.generate(RED, guidance=1.0, shift=own.shift, renorm="none")
    close(drawing.latents, same.latents)


LATENTS = np.zeros((4, 4, 32), np.float32)


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(negative=BLUE, guidance=1.0), "guidance = 1.0 compares with nothing"),
        (dict(negative=5), "negative: a prompt is a text"),
        (dict(negative=[BLUE, RED]), "negative: a prompt is a text"),
        (dict(negative="a mauve circle"), "'mauve'"),
        (dict(start=3), "start must be below steps = 3, got 3"),
        (dict(start=-1), "start must be at least 0"),
        (dict(start=1), "start = 1 begins midway: give latents"),
        (dict(latents=[]), "latents must be a list of 1 arrays"),
        (dict(latents=[LATENTS[:2]]), "[4, 4, 32] of each image, got float32 [2, 4, 32]"),
        (dict(latents=[LATENTS * np.nan]), "must be finite"),
        (dict(latents=[LATENTS.astype(int)]), "got int64"),
        (dict(latents=[LATENTS], from_image=PICTURE), "from_image has its size"),
        (dict(from_image=PICTURE, size=(32, 32)), "from_image has its size"),
        (dict(latents=[LATENTS], best_of=2), "the same image"),
        (dict(callback=5), "callback must be a function"),
        (dict(trajectory="yes"), "trajectory must be True or False, got 'yes'"),
        (dict(progress=1), "progress must be True or False, got 1"),
        (dict(sampling={"steps": 3}), "sampling must be a SampleConfig"),
        (dict(stpes=3), 'generate: unknown key "stpes": did you mean "steps"?'),
    ],
)
def test_what_cannot_be_begun_is_refused(bagel, how, message):
    with pytest.raises(ValueError) as caught:
        bagel.generate(RED, **how)
    assert message in str(caught.value)
