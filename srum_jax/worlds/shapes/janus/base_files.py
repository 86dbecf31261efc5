"""The small files of the small Janus's folder: sizes, words, how it is used.

They ship in `base/` and go along with the weights; nothing else says what this model is like.
"""

import dataclasses
from typing import Any

from etils import epath

from srum_jax.core import files
from srum_jax.generation.janus.template import IMAGE, MARKS, PAD, SYSTEM
from srum_jax.models.bagel.model_config import ViTConfig
from srum_jax.models.janus import hf
from srum_jax.models.janus.model_config import JanusConfig, LlamaConfig, VQConfig
from srum_jax.worlds.shapes import examples
from srum_jax.worlds.shapes.question_forms import DESCRIBE

# Pictures of 32x32 pixels are 8x8 codes when drawn and 4x4 patches when read.
SIZES = JanusConfig(
    llm=LlamaConfig(
        128, layers=4, heads=4, kv_heads=2, head_dim=32, ffn=352, vocab=examples.VOCAB_SIZE
    ),
    vit=ViTConfig(128, layers=2, heads=4, ffn=352, patch=8, positions=4, exact_gelu=True),
    vq=VQConfig(ch=32, ch_mult=(1, 1, 2), res_blocks=1, z=64, code_dim=8, codes=1024),
    grid=8,
    head_hidden=128,
    max_text=512,
)
# How the model is used: `GenerationConfig`.
USE: dict[str, Any] = {
    "generate": {"size": [32, 32], "guidance": 2.0, "temperature": 0.7, "top_k": 0, "batch": 64},
    "max_tokens": 32,
    "think_tokens": 32,
    "batch": 64,
    "window": 512,
    "caption": DESCRIBE,
    "frame": "",
    "language": "shapes",
}
UNREAD = (SYSTEM, ":")  # of the template: this model has no words for them
SPECIALS = (examples.SPECIALS[0], *MARKS)  # no mark has the id 0, which says "not known"


def write(folder: epath.PathLike, sizes: JanusConfig = SIZES) -> None:
    """Writes everything but the weights, for a model of these sizes."""
    folder = epath.Path(folder)
    examples.write_tokenizer(folder, specials=SPECIALS, unread=UNREAD)
    words = examples.vocabulary(specials=SPECIALS)
    bos, eos = (words[mark] for mark in MARKS[:2])
    marked = dataclasses.replace(sizes, image_token=words[IMAGE], bos=bos, eos=eos, pad=words[PAD])
    settings = hf.settings(marked)
    settings["generation_config.json"] |= {
        "generation_kwargs": {"boi_token_id": words[MARKS[2]]},
        "guidance_scale": USE["generate"]["guidance"],
        "srum_jax": USE,
    }
    for name, content in settings.items():
        files.write_json(folder / name, content)
