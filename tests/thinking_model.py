"""A tiny BAGEL whose vocabulary has the words of the requests to think, for tests."""

import dataclasses
import json

import tiny
import tokenizers

from srum_jax.core import param_tree
from srum_jax.generation import system_prompts
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import vae
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.worlds.shapes import examples


def words(folder):
    """(The tokenizer's file in `folder`, sizes of a model that reads it)."""
    path = examples.write_tokenizer(folder)
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    inner = tokenizers.Tokenizer.from_file(str(path))
    for text in (system_prompts.THINK_GENERATION, system_prompts.THINK_UNDERSTANDING):
        plain = inner.normalizer.normalize_str(text)
        for word, _ in inner.pre_tokenizer.pre_tokenize_str(plain):
            vocabulary.setdefault(word, len(vocabulary))
    path.write_text(json.dumps(document))
    return path, sized(len(vocabulary))


def sized(vocabulary) -> BagelConfig:
    """The tiny model's sizes with another number of words."""
    return dataclasses.replace(
        tiny.MODEL, llm=dataclasses.replace(tiny.MODEL.llm, vocab=vocabulary)
    )


def shapes(cfg):
    """Shapes of (model, autoencoder) parameters."""
    return [param_tree.abstract(s) for s in (bagel.specs(cfg), vae.specs(cfg.vae))]
