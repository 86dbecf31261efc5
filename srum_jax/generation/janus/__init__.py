"""The family Janus-Pro: how its folders are known and loaded, and what runs the model."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jax.typing import DTypeLike

from srum_jax.core import files, sharding
from srum_jax.core.errors import BadInput, tried
from srum_jax.core.param_tree import Params, Specs
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import generation_config
from srum_jax.generation.generation_config import GenerationConfig
from srum_jax.generation.janus.answer_scorer import AnswerScorer
from srum_jax.generation.janus.drawing_rows import DrawingRows, Job
from srum_jax.generation.janus.image_decoder import ImageDecoder
from srum_jax.generation.janus.image_encoder import ImageEncoder
from srum_jax.generation.janus.image_sampler import ImageSampler
from srum_jax.generation.janus.template import IMAGE, MARKS, ONLY_WORDS, PAD, Prompts
from srum_jax.generation.janus.text_generator import TextGenerator
from srum_jax.generation.janus.text_rows import TextRows
from srum_jax.models import int8, peft
from srum_jax.models.bagel.hf_folder import Parts
from srum_jax.models.janus import cost, hf, model, model_config, vq
from srum_jax.models.janus.cost import memory
from srum_jax.models.janus.model import specs
from srum_jax.models.janus.model_config import JanusConfig
from srum_jax.models.janus.model_config import JanusConfig as Sizes
from srum_jax.models.janus.model_config import from_folder as read_sizes

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


OBJECTIVES = "srum_jax.objectives.autoregressive"
LOWERING = WORKLOAD = "srum_jax.planning.janus"
DRAWS = ("blocks/", "norm/", "gen_embed", "gen_aligner/", "gen_head/")
APART = False  # one language model draws and answers
SAMPLER = ("size", "guidance", "temperature", "top_k", "batch")
LEADING_BLANK = True
ORBAX = False


def writing_params(generator: TextGenerator, sampler: ImageSampler) -> Params:
    """The parameters that a step of texts reads: those of drawing, which are there once."""
    return sampler.running_params


def coder_specs(cfg: JanusConfig) -> Specs:
    """The autoencoder's parameters."""
    return vq.specs(cfg.vq)


def recognises(folder: epath.PathLike) -> bool:
    """Whether the folder has the config.json of a Janus, in either layout."""
    return model_config.model_type(folder) in model_config.TYPES


def settings(folder: epath.PathLike, base: epath.PathLike | None = None) -> GenerationConfig:
    """The original's: guidance 5 of what is drawn, all tokens at temperature 1, greedy answers.

    Raises FileNotFoundError or BadInput naming the file and the field.
    """
    cfg, start = model_config.from_folder(_sized(folder, base)), GenerationConfig()
    side = cfg.image_side
    generate = dataclasses.replace(
        start.generate, size=(side, side), guidance=model.GUIDANCE, temperature=1.0, top_k=0
    )
    return dataclasses.replace(start, generate=generate, edit=generate, window=cfg.max_text)


def sizes(cfg: JanusConfig) -> list[str]:
    """What a model is made of, in words."""
    llm, vit = cfg.llm, cfg.vit
    return [
        f"language model: {llm.layers} layers of width {llm.hidden}, {llm.heads} heads "
        f"({llm.kv_heads} of keys), MLP {llm.ffn}, {llm.vocab} words, {cfg.max_text} positions",
        f"vision tower: {vit.layers} layers of width {vit.hidden}, pictures in a square of "
        f"{cfg.vit_side} pixels in patches of {vit.patch}",
        f"images: {cfg.image_side} pixels a side, {cfg.image_tokens} tokens of {cfg.vq.codes} "
        "codes, one after another",
    ]


def locate(folder: epath.PathLike, base: epath.PathLike | None = None) -> Parts:
    """Where each part lies. Raises FileNotFoundError naming everything that is missing."""
    folder, base = epath.Path(folder), epath.Path(base) if base else None
    weights, sized, words = hf.weights_file(folder), _sized(folder, base), _words(folder, base)
    needed = (sized / model_config.CONFIG, weights, words / "tokenizer.json")
    missing = [f"{path}: missing" for path in needed if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{', '.join(missing)}; a folder of Janus-Pro has them")
    return Parts(folder, base, sized, weights, weights, words)


def save(
    folder: epath.PathLike,
    cfg: JanusConfig,
    params: Params,
    coder_params: Params,
    dtype: str = "bfloat16",
    *,
    layout: str = "official",
    source: Parts | None = None,
    notes: str = "",
) -> None:
    """Writes a folder in the layout of Hugging Face, whole ("official") or "sharded", or in the
    original's ("multi_modality"), with a README of `notes`; as `hf.save`."""
    how: dict = {} if layout == "sharded" else {"limit": 2**62}
    if layout == "multi_modality":
        how["layout"] = layout
    hf.save(folder, cfg, params, coder_params, dtype, source=source and source.folder, **how)
    if jax.process_index() == 0:
        files.write_text(epath.Path(folder) / "README.md", f"# Janus-Pro\n\n{notes}\n")


def save_adapter(
    folder: epath.PathLike, cfg: JanusConfig, adapters: Params, *, alpha: float, base: str = ""
) -> None:
    """Writes adapters as PEFT reads them; arguments as of `peft.save`."""
    peft.save(folder, hf.table(cfg)["model"], adapters, alpha=alpha, base=base)


def _with(name: str, folder: epath.PathLike, base: epath.PathLike | None) -> epath.Path:
    """The folder that has a file of this name: the model's own, or its base."""
    places = [epath.Path(one) for one in (folder, base) if one]
    return next((p for p in places if (p / name).exists()), places[0])


def _sized(folder: epath.PathLike, base: epath.PathLike | None) -> epath.Path:
    return _with(model_config.CONFIG, folder, base)


def _words(folder: epath.PathLike, base: epath.PathLike | None) -> epath.Path:
    return _with("tokenizer.json", folder, base)


def describe(
    folder: epath.PathLike, base: epath.PathLike | None = None
) -> tuple[JanusConfig, Tokenizer]:
    """(sizes, tokenizer) of a folder; its weights are not read.

    Ids of marks are those of their words in the tokenizer: 1B and 7B differ, and what a config
    says of them is often a default. Raises FileNotFoundError or ValueError naming file and field.
    """
    sized = _sized(folder, base)
    return _marked(model_config.from_folder(sized), _tokenizer(folder, base), sized)


def _tokenizer(folder: epath.PathLike, base: epath.PathLike | None) -> Tokenizer:
    return Tokenizer.with_own_marks(_words(folder, base), MARKS)


def _marked(
    cfg: JanusConfig, tokenizer: Tokenizer, sized: epath.Path
) -> tuple[JanusConfig, Tokenizer]:
    image = tokenizer.id(IMAGE)
    if cfg.image_token and cfg.image_token != image:
        raise BadInput(
            f"{sized / model_config.CONFIG}: image_token_id is {cfg.image_token} there, and "
            f"{IMAGE} is {image} in the tokenizer: they belong to different models"
        )
    cfg = dataclasses.replace(
        cfg,
        image_token=image,
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        pad=tokenizer.id(PAD),
        start_of_image=tokenizer.image_start,
        end_of_image=tokenizer.image_end,
    )
    tokenizer.check(cfg.layout, str(sized / model_config.CONFIG))
    return cfg, tokenizer


def weight_bytes(folder: epath.PathLike, base: epath.PathLike | None, precision: str) -> int:
    """What all parameters take in a `precision`, by the sizes of a folder."""
    return memory(model_config.from_folder(_sized(folder, base)), precision).weights


def examine(
    folder: epath.PathLike, base: epath.PathLike | None = None
) -> tuple[JanusConfig | None, str, list[str]]:
    """(sizes, dtype that the weights are stored in, everything that keeps a folder from loading).

    Of weights headers alone are read. Sizes are None where their file cannot be read, the dtype is
    "" where anything is wrong.
    """
    problems: list[str] = []
    cfg = tried(problems, model_config.from_folder, _sized(folder, base))
    tokenizer = tried(problems, _tokenizer, folder, base)
    if cfg is None:
        return None, "", problems
    if tokenizer:
        cfg, _ = tried(problems, _marked, cfg, tokenizer, _sized(folder, base)) or (cfg, None)
    tried(problems, generation_config.from_folder, folder, base)
    found = hf.tensors(folder, cfg, problems)
    return cfg, "" if problems else hf.stored_dtype(found), problems


def load(
    folder: epath.PathLike,
    base: epath.PathLike | None = None,
    *,
    mesh: jax.sharding.Mesh,
    dtype: DTypeLike,
    want: Sequence[str] = ("model", "vae"),
    int8_weights: bool = False,
    adapter: epath.PathLike | None = None,
) -> tuple[JanusConfig, Params | None, Params | None, Tokenizer]:
    """(sizes, the model's parameters in `dtype`, the autoencoder's in float32, tokenizer).

    Parameters lie on the mesh; adapter: a folder of PEFT's whose low-rank changes are merged into
    the weights; int8_weights: the large matrices are then quantized. `base` may have the
    JSON files and the tokenizer, weights are the folder's own. Raises FileNotFoundError or
    ValueError naming the file, the tensor or the field.
    """
    cfg, tokenizer = describe(folder, base)
    specs = model.specs(cfg)
    convert = int8.Quantizer(specs) if int8_weights else None
    if adapter is not None:
        convert = peft.Merging(peft.load(adapter, hf.table(cfg)["model"]), convert)
    params, vq_params = hf.load(
        folder,
        cfg,
        dtype=np.dtype(dtype),
        shardings=tuple(sharding.shardings(s, mesh) for s in (specs, vq.specs(cfg.vq))),
        want=want,
        convert=convert,
    )
    return cfg, params, vq_params, tokenizer
