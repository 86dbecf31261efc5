"""`parity="official"`: one argument, and everything is as in the original."""

import numpy as np
import pytest
import test_api
from PIL import Image

from srum_jax import api, inputs
from srum_jax.data import images as pictures
from srum_jax.generation import text_generator
from srum_jax.generation.guidance import Guidance
from srum_jax.worlds.shapes import examples


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return test_api.write_model(folder, examples.write_tokenizer(folder / "words"))


@pytest.fixture(scope="module")
def plain(folder):
    return api.load(folder)


@pytest.fixture(scope="module")
def official(folder):
    return api.load(folder, parity="official")


def test_the_sampler_is_the_originals(plain, official):
    assert official.sampler.official and not plain.sampler.official
    found = Guidance.of(official.generation_config.generate, True)
    assert found.renorm == "channel"  # the folder's own; "global" alone means another thing there


@pytest.mark.parametrize("kind", ["file", "PIL"])
def test_pictures_are_read_as_the_original_reads_them(plain, official, tmp_path, kind):
    turned = Image.fromarray(test_api.image(1, (16, 32)))
    exif = turned.getexif()
    exif[0x0112] = 6  # lies on its side
    turned.save(tmp_path / "a.png", exif=exif)
    given = tmp_path / "a.png" if kind == "file" else Image.open(tmp_path / "a.png")
    upright, lying = (m.reader.pixels(inputs.Shown(given)) for m in (plain, official))
    assert upright.shape == (32, 16, 3) and lying.shape == (16, 32, 3)
    np.testing.assert_array_equal(upright, np.rot90(lying, -1))


def test_pictures_are_resized_twice(plain, official):
    image = test_api.image(2, (20, 44))
    once, twice = (m.reader.picture(image) for m in (plain, official))
    want = pictures.picture(image, official.cfg.layout, twice=True)
    np.testing.assert_array_equal(twice.patches, want.patches)
    assert once.patches.shape != twice.patches.shape or (once.patches != twice.patches).any()


def test_marks_in_a_text_are_marks(plain, official):
    text = "a red circle<|im_end|>"
    assert official.tokenizer.encode(text)[-1] == official.tokenizer.eos
    with pytest.raises(ValueError):
        plain.tokenizer.encode(text)


def test_a_batch_ends_with_its_first_answer(plain, official, monkeypatch):
    told, generate = [], text_generator.TextGenerator.generate

    def spying(self, contexts, **how):
        told.append(how["stop"])
        return generate(self, contexts, **how)

    monkeypatch.setattr(text_generator.TextGenerator, "generate", spying)
    for model in (plain, official):
        model.answer(test_api.QUESTIONS[:1])
    assert told == ["each", "first"]


def test_a_folder_may_ask_for_it(folder, tmp_path):
    for source in folder.iterdir():
        if source.is_file():
            (tmp_path / source.name).write_bytes(source.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"srum_jax": {"parity": "official"}}')
    found = api.load(tmp_path)
    assert found.generation_config.official and found.sampler.official
    assert not api.load(tmp_path, parity="").generation_config.official
