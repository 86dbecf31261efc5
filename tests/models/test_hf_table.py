"""The table of names: a bijection at 7B size, official values of the position tables."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import SHAPES

from srum_jax.core import param_tree
from srum_jax.models.bagel import hf, model_config, vae
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.hf_table import position_table

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def test_table_is_a_bijection_onto_the_official_tensors():
    cfg = model_config.BAGEL_7B_MOT
    official = json.loads((GOLDENS / "bagel_tensors.json").read_text())
    table = hf.table(cfg)
    for file, fixed in ((hf.MODEL_FILE, hf.computed_tables(cfg)), (hf.VAE_FILE, {})):
        ours = {e.name: list(e.shape) for e in table[file]}
        assert len(ours) == len(table[file]), "an official tensor has two places"
        ours |= {name: [side**2, dim] for name, (side, dim) in fixed.items()}
        assert ours == official[file]
    assert len(official[hf.MODEL_FILE]) == 1223 and len(official[hf.VAE_FILE]) == 244


@pytest.mark.parametrize("cfg", [model_config.BAGEL_7B_MOT, SHAPES])
def test_table_fills_every_element_of_every_leaf_once(cfg):
    for file, specs in ((hf.MODEL_FILE, bagel.specs(cfg)), (hf.VAE_FILE, vae.specs(cfg.vae))):
        places = [(e.path, e.layer) for e in hf.table(cfg)[file]]
        wanted = []
        for path, spec in param_tree.flatten(specs).items():
            stacked = spec.axes[0] == "layers"
            wanted += [(path, i) for i in range(spec.shape[0])] if stacked else [(path, None)]
        assert sorted(places, key=str) == sorted(wanted, key=str)
        numbers = sum(int(np.prod(e.shape)) for e in hf.table(cfg)[file])
        assert numbers == param_tree.count(specs)


@pytest.mark.parametrize("name", ["caseA", "caseB"])
def test_position_tables_have_the_official_bytes(name):
    official = load_file(GOLDENS / name / hf.MODEL_FILE)
    for tensor, sizes in hf.computed_tables(model_config.from_folder(GOLDENS / name)).items():
        assert position_table(*sizes).astype(official[tensor].dtype).tobytes() == (
            official[tensor].tobytes()
        ), tensor
