"""Where a model in use lies: as a user says, or by what is there."""

import jax
import numpy as np
import pytest
import tiny

from srum_jax import api, devices, use
from srum_jax.core import console, sharding
from srum_jax.core.errors import BadInput
from srum_jax.data import images
from srum_jax.models.bagel import cost


def weight_bytes(precision):
    return cost.memory(tiny.MODEL, precision).weights


def shape(mesh, precision=None):
    made, precision = devices.placed(mesh, precision, weight_bytes)
    return made.shape["data"], made.shape["fsdp"], precision


def test_a_cpu_is_one_device_and_what_is_said_is_done():
    assert shape(None) == (1, 1, "float32")
    assert shape("2x4") == (2, 4, "float32")
    assert shape("1x1", "int8") == (1, 1, "int8")
    assert shape("3x2") == (3, 2, "float32")  # of eight
    mesh = sharding.inference_mesh(jax.devices()[2:4], 0)
    assert devices.placed(mesh, None, weight_bytes) == (mesh, "float32")


@pytest.mark.parametrize("room, want", [(10**12, (8, 1)), (1, (1, 8))])
def test_accelerators_are_all_taken_with_as_many_copies_as_they_hold(monkeypatch, room, want):
    class Card:
        platform = "gpu"

    cards, taken = [Card() for _ in range(8)], []
    monkeypatch.setattr(jax, "local_devices", lambda: cards)
    monkeypatch.setattr(sharding, "memory", lambda device: room)
    make = lambda shape, axes, devices, **_: taken.append(devices) or shape  # noqa: E731
    monkeypatch.setattr(jax, "make_mesh", make)
    (data, fsdp, *_), precision = devices.placed(None, None, weight_bytes)
    assert ((data, fsdp), precision, taken) == (want, "bfloat16", [cards])


@pytest.mark.parametrize(
    "said, why",
    [
        ("4x4", "takes 16 devices: there are 8"),
        *((text, "no COPIESxDEVICES") for text in ("4", "0x2", "x", "2x", "-1x2", "2X4", 3)),
    ],
)
def test_what_cannot_be_had_is_refused(said, why):
    with pytest.raises(BadInput, match=why):
        devices.placed(said, None, weight_bytes)


def test_the_shell_hands_it_on(monkeypatch, tmp_path):
    seen = {}

    def load(model, **how):
        seen.update(how)
        raise BadInput("that is enough")

    monkeypatch.setattr(api, "load", load)
    monkeypatch.setattr(console, "cache_compiled_programs", lambda: None)
    monkeypatch.setattr(console, "log_to_stderr", lambda **_: None)
    (tmp_path / "a.png").write_bytes(images.encode_png(np.zeros((32, 32, 3), np.uint8)))
    words = ["--question", "is there a red circle ?", "--image", str(tmp_path / "a.png")]
    assert (
        use.main(["use", "answer", *words, "--mesh", "2x4"]) == BadInput.exit_code
        and seen["mesh"] == "2x4"
    )
