"""A tiny Janus-Pro with random weights and a byte-level tokenizer, as a folder users could have."""

import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile

import jax
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from srum_jax.core import param_tree
from srum_jax.generation.janus.template import MARKS
from srum_jax.models.bagel.model_config import ViTConfig
from srum_jax.models.janus import hf, model, vq
from srum_jax.models.janus.model_config import JanusConfig, LlamaConfig, VQConfig

CFG = JanusConfig(
    llm=LlamaConfig(64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=272),
    vit=ViTConfig(32, layers=2, heads=2, ffn=64, patch=4, positions=4, exact_gelu=True),
    vq=VQConfig(ch=32, ch_mult=(1, 1), res_blocks=1, z=32, code_dim=8, codes=64),
    grid=4,
    head_hidden=64,
    max_text=2048,
    image_token=261,
)


def words() -> tokenizers.Tokenizer:
    """Bytes as tokens 0 to 255, the marks, and two answers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_tokens([*MARKS, "yes", "no"])
    return made


def weights(cfg: JanusConfig = CFG, seed: int = 0):
    """(model, autoencoder) parameters, float32: larger than at first, so that answers differ."""
    key = jax.random.key(seed)
    made = (param_tree.init(s, key) for s in (model.specs(cfg), vq.specs(cfg.vq)))
    return tuple(jax.tree.map(lambda x: x * 1.5, tree) for tree in made)


@functools.cache
def _made() -> pathlib.Path:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tiny_janus_"))
    hf.save(folder, CFG, *weights(), dtype="float32")
    words().save(str(folder / "tokenizer.json"))
    return folder


def save(folder: pathlib.Path) -> pathlib.Path:
    """The model's files in `folder`."""
    shutil.copytree(_made(), folder, dirs_exist_ok=True)
    return folder


def save_answering(folder: pathlib.Path) -> pathlib.Path:
    """The same of a model that says little but yes or no, so that its judgements can be read."""
    save(folder)
    params, coder = weights()
    head, tokenizer = np.array(params["lm_head"]["w"]) * 0.01, words()
    rng = np.random.default_rng(0)  # by trial: the sign of `both` that makes the two likely
    both, either = (rng.normal(0, size, CFG.llm.hidden) for size in (20, 1))
    head[:, tokenizer.token_to_id("yes")] = either - both
    head[:, tokenizer.token_to_id("no")] = -both - either
    params["lm_head"]["w"] = head
    hf.save(folder, CFG, params, coder, dtype="float32")
    return folder


def released_config(folder: pathlib.Path) -> None:
    """As some released files: ids that are defaults of another class."""
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    whole["text_config"] |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    path.write_text(json.dumps(whole))


def sizes(**changes) -> JanusConfig:
    """CFG with other numbers."""
    return dataclasses.replace(CFG, **changes)
