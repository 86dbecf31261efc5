"""The model in use on several devices: what each of them computes, and that all agree with one."""

import jax
import pytest
import test_api

from srum_jax import api
from srum_jax.config import MeshConfig
from srum_jax.core import sharding
from srum_jax.generation import denoising, image_sampler
from srum_jax.worlds.shapes import examples


class Counted:
    """A jitted function, and the operations that one device takes for each call of it."""

    def __init__(self, function):
        self.function, self.flops = function, []

    def __call__(self, *args, **how):
        compiled = self.function.lower(*args, **how).compile()
        self.flops.append(compiled.cost_analysis()["flops"])
        return self.function(*args, **how)


@pytest.mark.slow
def test_devices_of_a_mesh_share_the_work(tmp_path, monkeypatch):
    folder = test_api.write_model(tmp_path, examples.write_tokenizer(tmp_path / "words"))
    ways = dict.fromkeys(sharding.MESH_AXES, 1) | {"fsdp": 2}
    mesh = sharding.make_mesh(MeshConfig(**ways), jax.devices()[:2])
    many, alone = api.load(folder, mesh=mesh), api.load(folder)
    drawing = Counted(denoising.generate_latents)
    monkeypatch.setattr(image_sampler, "generate_latents", drawing)
    drawn = [b.generate(test_api.PROMPTS[:2], n=2) for b in (many, alone)]
    assert all(test_api.near(a.image, b.image) for a, b in zip(*drawn, strict=True))
    half, whole = drawing.flops
    assert half < 0.6 * whole  # what every device does itself included
    shown = [None, test_api.image(1), [test_api.image(1), test_api.image(2)]]
    assert many.answer(test_api.QUESTIONS, shown) == alone.answer(test_api.QUESTIONS, shown)
