"""Families of models: a further one is a file and a line, for the API and for stages alike."""

import dataclasses
import sys
import types

import numpy as np
import pytest
import tiny
from etils import epath

from srum_jax import api
from srum_jax.core import registry
from srum_jax.data.schema import Text
from srum_jax.generation import bagel, families
from srum_jax.generation.generation_config import GenerationConfig
from srum_jax.generation.image_request import GeneratedImage
from srum_jax.generation.text_generator import GeneratedText
from srum_jax.stages import loading
from srum_jax.stages.manifest import Workdir


class Words:
    """A tokenizer of one id for everything."""

    def text(self, words, *, loss=False):
        return Text(np.zeros(1, np.int32), loss=loss)


@dataclasses.dataclass(frozen=True)
class Grey:
    """Draws, writes and answers the same whatever it is asked."""

    def __init__(self, *args, **how):
        pass

    def sample(self, requests, *, settings=None, params=None):
        return [GeneratedImage(np.full((*r.size, 3), 128, np.uint8), None) for r in requests]

    def generate(self, contexts, **how):
        return [GeneratedText("grey", (0,), True) for _ in contexts]


def load(folder, base, *, mesh, dtype, want=("model", "vae"), int8_weights=False, adapter=None):
    return types.SimpleNamespace(max_text=16, layout=None), {}, {}, Words()


STUB = types.SimpleNamespace(
    recognises=lambda folder: (epath.Path(folder) / "grey.json").exists(),
    load=load,
    settings=lambda folder, base: GenerationConfig(),
    SAMPLER=("size",),
    weight_bytes=lambda folder, base, precision: 1000,
    ImageEncoder=Grey,
    ImageSampler=Grey,
    TextGenerator=Grey,
)


@pytest.fixture
def grey(tmp_path, monkeypatch):
    """The folder of a model of another family: a module, and a line in the table."""
    monkeypatch.setitem(sys.modules, "grey_family", STUB)
    monkeypatch.setitem(families.FAMILIES, "grey", "grey_family")
    (tmp_path / "grey.json").write_text("{}")
    return tmp_path


def test_a_folder_tells_its_family(grey, tmp_path):
    assert families.find(registry.base_folder("shapes")) is bagel
    assert families.find(grey) is STUB
    assert families.find(tmp_path / "nothing", grey) is STUB
    # What nobody recognises is opened as a BAGEL, which says what its folder lacks.
    assert families.find(tmp_path / "nothing") is bagel


def test_the_api_serves_another_family(grey):
    loaded = api.load(grey)
    (drawing,) = loaded.generate("a cat", size=(8, 16))
    assert drawing.image.shape == (8, 16, 3) and (drawing.image == 128).all()
    assert loaded.answer("what color is it ?").text == "grey"


def test_stages_load_another_family(grey, tmp_path, monkeypatch):
    parts = types.SimpleNamespace(folder=grey, base=None)
    monkeypatch.setattr(loading, "source", lambda cfg, work: parts)
    cfg = tiny.load_config(grey)
    mesh = tiny.mesh(cfg)
    loaded = loading.base(cfg, Workdir(tmp_path / "work"), mesh)
    assert loaded.family is STUB and isinstance(loaded.image_sampler(cfg, mesh), Grey)
