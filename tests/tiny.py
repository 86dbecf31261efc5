"""A BAGEL of a few thousand random numbers in the shapes world's geometry, for tests of stages."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from srum_jax import config, programs
from srum_jax.configs import base
from srum_jax.core import param_tree, registry, sharding
from srum_jax.data import shards
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.models.bagel import hf, model_config, vae
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import VAEConfig
from srum_jax.worlds.shapes import examples

SHAPES = model_config.from_folder(registry.base_folder("shapes"))  # the base in the package
MODEL = dataclasses.replace(
    SHAPES,
    llm=dataclasses.replace(SHAPES.llm, hidden=16, layers=1, heads=2, kv_heads=1, ffn=16),
    vit=dataclasses.replace(SHAPES.vit, hidden=16, layers=1, heads=2, ffn=16),
    vae=VAEConfig(ch=32, ch_mult=(1, 1), res_blocks=1, z=2, scale=1.0, shift=0.0),
    latent_patch=4,
)
GRID = (4, 4, MODEL.token_dim)


def weights(seed=0, scale=0.2):
    """(model, autoencoder) parameters; drawn by NumPy, as jitted initialisers take seconds."""
    rng = np.random.default_rng(seed)
    return tuple(
        jax.tree.map(lambda leaf: rng.normal(0, scale, leaf.shape).astype(np.float32), tree)
        for tree in (
            param_tree.abstract(bagel.specs(MODEL)),
            param_tree.abstract(vae.specs(MODEL.vae)),
        )
    )


def sizes_folder(folder, model=MODEL):
    """`folder` with the JSON files of a model's sizes alone."""
    folder.mkdir(exist_ok=True)
    for name, values in model_config.to_json(model).items():
        (folder / name).write_text(json.dumps(values))
    return folder


def write_model(folder, seed=0, *, answers=False):
    """A folder in the Hugging Face layout; `answers`: of a model that says little but yes or no."""
    words = examples.write_tokenizer(folder.parent / "words")
    model, coder = weights(seed)
    if answers:
        known, head = Tokenizer.from_folder(words.parent), model["lm_head"]
        head["w"] *= 0.01
        rng = np.random.default_rng(0)  # by trial, for seed 0: the sign that makes both likely
        both, either = (rng.normal(0, size, MODEL.llm.hidden) for size in (200, 1))
        head["w"][:, known.id("yes")], head["w"][:, known.id("no")] = either - both, -either - both
    hf.save(folder, MODEL, model, coder, "float32", tokenizer_files=[words])
    return folder


def load_config(weights, **values):
    """`values` below, checked and frozen."""
    return config.load(config_dict(weights, **values))


def config_dict(weights, **values):
    """The base config on `weights` with few steps and small shards; dots in keys are "__"."""
    cfg = base.get_config()
    small = {
        "sample__steps": 3,
        "sample__batch": 4,
        "generate__shard_size": 4,
        "generate__count": 5,
        "generate__candidates": 2,
        "score__shard_size": 4,
        "score__batch": 8,
        "evaluate__count": 7,
        "evaluate__questions": 22,
        "evaluate__best_of": 2,
        "evaluate__best_of_prompts": 3,
        "evaluate__batch": 11,
        # What compiles in seconds, whatever recipe is the default.
        "train__objective": "srum_advantage",
        "train__select": "all",
        "train__min_score": -1.0,
        "train__trainable": "gen",
        "train__rows": 16,
        "train__optim__optimizer": "adamw",
        "train__monitor__prompts": 0,
        "weights": str(weights),
    }
    for key, value in (small | values).items():
        part = cfg
        *path, last = key.split("__")
        for name in path:
            part = part[name]
        part[last] = value
    return cfg


def killed_at_shard(monkeypatch, number, stage):
    """Runs `stage`, a function, which is killed as it begins to write its shard of this number,
    from 1."""
    write, calls = shards.write_shard, []

    def killed(*args):
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(shards, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        stage()
    monkeypatch.setattr(shards, "write_shard", write)


def trainable(name):
    """Whether train.trainable `name` changes a path of the model."""
    return programs.Trainable.of(config.TrainConfig(trainable=name), MODEL)


def mesh(cfg):
    """One device."""
    return sharding.make_mesh(cfg.mesh, jax.devices()[:1])
