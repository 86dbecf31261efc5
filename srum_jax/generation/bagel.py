"""The family BAGEL: how its folders are known and loaded, and what runs the model."""

from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jax.typing import DTypeLike

from srum_jax.core import sharding
from srum_jax.core.errors import tried
from srum_jax.core.param_tree import Params, Specs
from srum_jax.data.sources import Prompts
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import generation_config
from srum_jax.generation.answer_scorer import AnswerScorer
from srum_jax.generation.drawing_rows import DrawingRows, Job
from srum_jax.generation.generation_config import GenerationConfig
from srum_jax.generation.image_codec import ImageDecoder, ImageEncoder
from srum_jax.generation.image_sampler import ImageSampler
from srum_jax.generation.text_generator import TextGenerator
from srum_jax.generation.text_rows import TextRows, writing_params
from srum_jax.models import int8
from srum_jax.models.bagel import cost, hf, hf_folder, model_config, peft, vae
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.cost import memory
from srum_jax.models.bagel.hf import locate, save
from srum_jax.models.bagel.model import specs
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.models.bagel.model_config import BagelConfig as Sizes
from srum_jax.models.bagel.model_config import from_folder as read_sizes
from srum_jax.models.bagel.peft import save as save_adapter

__all__ = [
    "APART",
    "DRAWS",
    "LOWERING",
    "OBJECTIVES",
    "LEADING_BLANK",
    "ONLY_WORDS",
    "ORBAX",
    "SAMPLER",
    "WORKLOAD",
    "AnswerScorer",
    "DrawingRows",
    "ImageDecoder",
    "ImageEncoder",
    "ImageSampler",
    "Job",
    "Prompts",
    "Sizes",
    "TextGenerator",
    "TextRows",
    "coder_specs",
    "cost",
    "describe",
    "examine",
    "load",
    "locate",
    "memory",
    "read_sizes",
    "recognises",
    "save",
    "save_adapter",
    "settings",
    "sizes",
    "specs",
    "weight_bytes",
    "writing_params",
]


OBJECTIVES = "srum_jax.objectives.srum"
DRAWS = ("blocks/gen/", "norm/gen/", "time/", "vae2llm/", "llm2vae/")
APART = True
SAMPLER = (
    *("size", "steps", "shift", "guidance", "image_guidance", "guidance_interval"),
    *("renorm", "renorm_min", "batch"),
)
ONLY_WORDS = ""
LEADING_BLANK = False
ORBAX = True
LOWERING, WORKLOAD = "srum_jax.planning.lowering", "srum_jax.planning.workload"


def coder_specs(cfg: BagelConfig) -> Specs:
    """The autoencoder's parameters."""
    return vae.specs(cfg.vae)


def recognises(folder: epath.PathLike) -> bool:
    """Whether the folder has the JSON file of a BAGEL's language model."""
    return (epath.Path(folder) / "llm_config.json").exists()


def settings(folder: epath.PathLike, base: epath.PathLike | None = None) -> GenerationConfig:
    """The settings of BAGEL-7B-MoT's own demo."""
    return GenerationConfig()


def sizes(cfg: BagelConfig) -> list[str]:
    """What a model is made of, in words."""
    llm, vit = cfg.llm, cfg.vit
    return [
        f"language model: {llm.layers} layers of width {llm.hidden}, {llm.heads} heads "
        f"({llm.kv_heads} of keys), MLP {llm.ffn}, {llm.vocab} words, {cfg.max_text} positions",
        f"vision tower: {vit.layers} layers of width {vit.hidden}, pictures up to "
        f"{vit.patch * vit.positions} pixels a side in patches of {vit.patch}",
        f"images: up to {cfg.max_latent * cfg.token_pixels} pixels a side, {cfg.token_pixels} a "
        f"token, latents of {cfg.vae.z} channels",
    ]


def describe(
    folder: epath.PathLike, base: epath.PathLike | None = None
) -> tuple[BagelConfig, Tokenizer]:
    """(sizes, tokenizer) of a folder; its weights are not read.

    Raises FileNotFoundError or ValueError naming the file or the field.
    """
    parts = hf.locate(folder, base)
    cfg = model_config.from_folder(parts.sizes)
    tokenizer = Tokenizer.from_folder(parts.words)
    tokenizer.check(cfg.layout, str(parts.sizes))
    return cfg, tokenizer


def weight_bytes(folder: epath.PathLike, base: epath.PathLike | None, precision: str) -> int:
    """What all parameters take in a `precision` (`cost.memory`), by the sizes of a folder.

    Raises FileNotFoundError or ValueError naming the file or the field.
    """
    cfg = model_config.from_folder(hf.locate(folder, base).sizes)
    return memory(cfg, precision).weights


def examine(
    folder: epath.PathLike, base: epath.PathLike | None = None
) -> tuple[BagelConfig | None, str, list[str]]:
    """(sizes, dtype that the weights are stored in, everything that keeps a folder from loading).

    Of weights headers alone are read. Sizes are None where their files cannot be read, the dtype is
    "" where anything is wrong.
    """
    parts, problems = hf_folder.sought(folder, base), []
    cfg = tried(problems, model_config.from_folder, parts.sizes)
    tokenizer = tried(problems, Tokenizer.from_folder, parts.words)
    if cfg and tokenizer:
        tried(problems, tokenizer.check, cfg.layout, str(parts.sizes))
    tried(problems, generation_config.from_folder, folder, base)
    problems += hf_folder.problems(parts, cfg)
    return cfg, "" if problems else hf_folder.stored_dtype(parts, cfg), problems


def load(
    folder: epath.PathLike,
    base: epath.PathLike | None = None,
    *,
    mesh: jax.sharding.Mesh,
    dtype: DTypeLike,
    want: Sequence[str] = ("model", "vae"),
    int8_weights: bool = False,
    adapter: epath.PathLike | None = None,
) -> tuple[BagelConfig, Params | None, Params | None, Tokenizer]:
    """(sizes, the model's parameters in `dtype`, the autoencoder's in float32, tokenizer).

    Parameters lie on the mesh; `want` and `base` as in `hf.load`; adapter: a folder of PEFT's
    whose low-rank changes are merged into the weights; int8_weights: the large matrices are then
    quantized. Raises FileNotFoundError or ValueError naming the file, the tensor or the field.
    """
    cfg, tokenizer = describe(folder, base)
    specs = bagel.specs(cfg)
    convert = int8.Quantizer(specs) if int8_weights else None
    if adapter is not None:
        convert = peft.Merging(peft.load(adapter, cfg), convert)
    params, vae_params = hf.load(
        folder,
        cfg,
        dtype=np.dtype(dtype),
        shardings=tuple(sharding.shardings(s, mesh) for s in (specs, vae.specs(cfg.vae))),
        want=want,
        base=base,
        convert=convert,
    )
    return cfg, params, vae_params, tokenizer
