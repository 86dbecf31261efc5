"""Values of a config as people bring them: secrets where names belong, numbers of NumPy."""

import traceback

import numpy as np
import pytest
from absl import flags

from srum_jax import config
from srum_jax.configs import base
from srum_jax.core.errors import BadInput


@pytest.mark.parametrize(
    "secret", ["sk-open-sesame", "hf_openSesame", "open sesame", "SESAME" * 20]
)
def test_a_secret_in_place_of_its_variables_name_is_not_shown(secret, tmp_path):
    file = tmp_path / "c.py"
    file.write_text(
        f"from configs import shapes\ndef get_config():\n  c = shapes.get_config()\n"
        f"  c.score.external.key_env = {secret!r}\n  return c\n"
    )
    told = [["--config=shapes", f"--config.score.external.key_env={secret}"], [f"--config={file}"]]
    for args in told:
        with pytest.raises(BadInput, match="key_env must be the name of an environment") as e:
            config.parse(["main", *args], flags.FlagValues())
        shown = "".join(traceback.format_exception(e.value)).casefold()
        assert "sesame" not in shown
    values = base.get_config().to_dict()
    values["score"]["external"]["url"] = f"https://me:{secret}@a/v1"
    with pytest.raises(BadInput, match="score.external.url must be http") as e:
        config.load(values)
    assert secret not in str(e.value)


def test_numbers_of_numpy_are_numbers():
    values = base.get_config().to_dict()
    values["train"]["steps"], values["sample"]["guidance"] = np.int64(7), np.float32(1.5)
    values["sample"]["size"], values["seed"] = np.array([64, 32]), np.array(3)
    cfg = config.load(values)
    assert (cfg.train.steps, cfg.sample.guidance, cfg.seed) == (7, 1.5, 3)
    assert cfg.sample.size == (64, 32) and type(cfg.train.steps) is int
    values["train"]["steps"] = np.float64(7)
    with pytest.raises(BadInput, match="train.steps must be int, got 7.0"):
        config.load(values)


@pytest.mark.parametrize(
    "floors, fault",
    [
        (("edits",), 'must hold "NAME:POINTS"'),
        (("edits:3",), "points of at most 0"),
        ((":-3",), 'must hold "NAME:POINTS"'),
        (("edits:nan",), 'must hold "NAME:POINTS"'),
        (("edits:-3", "edits:-1"), "must name each once"),
    ],
)
def test_floors_that_are_none(floors, fault):
    c = base.get_config()
    c.adjust.floors = floors
    with pytest.raises(BadInput, match=f"adjust.floors .*{fault}"):
        config.load(c)
