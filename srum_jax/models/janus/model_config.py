"""Sizes of a Janus-Pro model: frozen dataclasses, presets, and the sizes a folder's JSON gives.

`config.json` of either layout is read: Hugging Face's (`model_type` "janus") and the original's
(`model_type` "multi_modality"). Ids of the marks that neither holds come from the tokenizer
(`generation/janus`). No other file holds such a constant.
"""

import dataclasses
import math
from typing import Any

from etils import epath

from srum_jax.core.errors import BadInput, quoted
from srum_jax.core.files import read_object
from srum_jax.core.json_fields import Fields
from srum_jax.data.schema import LayoutSizes
from srum_jax.models.bagel.model_config import MOST_LAYERS, ViTConfig, check_heads

CONFIG = "config.json"
TYPES = ("janus", "multi_modality")  # of the two layouts, as their `model_type` says


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The language model: sizes in tokens and features."""

    hidden: int  # D
    layers: int  # L
    heads: int  # H
    kv_heads: int  # K
    head_dim: int  # C
    ffn: int  # F
    vocab: int  # V
    rope_theta: float = 1e4
    rms_eps: float = 1e-6

    def __post_init__(self):
        check_heads(self.heads, self.kv_heads, self.head_dim)


@dataclasses.dataclass(frozen=True)
class VQConfig:
    """The quantised autoencoder (VQ-16 of LlamaGen)."""

    ch: int
    ch_mult: tuple[int, ...]
    res_blocks: int
    z: int  # features between the networks and the codes' projections
    code_dim: int
    codes: int

    @property
    def downsample(self) -> int:
        """Side of the square of pixels that one code stands for."""
        return 2 ** (len(self.ch_mult) - 1)


@dataclasses.dataclass(frozen=True)
class JanusConfig:
    """A whole model; a drawing is a square of `grid` x `grid` image tokens.

    aligner, gen_aligner: linear maps in each · gen_hidden, head_hidden: features inside the aligner
    and the head of drawing · ids of marks are 0 where no file of the folder has told them.
    """

    llm: LlamaConfig
    vit: ViTConfig
    vq: VQConfig
    grid: int
    aligner: int = 2
    gen_aligner: int = 2
    head_hidden: int = 2048
    max_text: int = 16384  # RoPE positions
    image_token: int = 0
    bos: int = 0
    eos: int = 0
    pad: int = 0
    start_of_image: int = 0
    end_of_image: int = 0
    attention: str = "dense"  # how attention is computed: a back-end of models/attention

    @property
    def image_tokens(self) -> int:
        """Tokens of a drawing."""
        return self.grid**2

    @property
    def image_side(self) -> int:
        """Pixels of a side of a drawing."""
        return self.grid * self.vq.downsample

    @property
    def vit_side(self) -> int:
        """Pixels of a side of what the vision tower reads."""
        return self.vit.patch * self.vit.positions

    @property
    def token_dim(self) -> int:
        """Numbers in what is kept of one image token: its code."""
        return 1

    @property
    def layout(self) -> LayoutSizes:
        """What pictures and tokenizer need of these sizes."""
        return LayoutSizes(
            vocab=self.llm.vocab,
            bos=self.bos,
            eos=self.eos,
            start_of_image=self.start_of_image,
            end_of_image=self.end_of_image,
            vit_patch=self.vit.patch,
            vit_side=self.vit.positions,
            vit_positions=self.vit.positions,
            token_pixels=self.vq.downsample,
            token_dim=self.token_dim,
            max_latent=self.grid,
            square=True,
        )


def _preset(llm: LlamaConfig, shift: int) -> JanusConfig:
    """The released models differ in the language model, and 7B's later ids are `shift` higher."""
    return JanusConfig(
        llm=llm,
        vit=ViTConfig(1024, 24, 16, 4096, patch=16, positions=24, exact_gelu=True),
        vq=VQConfig(ch=128, ch_mult=(1, 1, 2, 2, 4), res_blocks=2, z=256, code_dim=8, codes=16384),
        grid=24,
        head_hidden=llm.hidden,
        image_token=100581 + shift,
        bos=100000,
        eos=100001,
        pad=100002 + shift,
        start_of_image=100003 + shift,
    )


JANUS_PRO_1B = _preset(LlamaConfig(2048, 24, 16, 16, 128, ffn=5632, vocab=102400), 0)
JANUS_PRO_7B = _preset(LlamaConfig(4096, 30, 32, 32, 128, ffn=11008, vocab=102400), 13)
PRESETS = {"janus_pro_1b": JANUS_PRO_1B, "janus_pro_7b": JANUS_PRO_7B}


_ABOVE_0 = dict(least=1e-30)


def model_type(folder: epath.PathLike) -> str:
    """The `model_type` of a folder's config.json, "" where it has none that can be read."""
    try:
        found = read_object(epath.Path(folder) / CONFIG).get("model_type")
    except (OSError, ValueError):
        return ""
    return found if isinstance(found, str) else ""


def from_folder(folder: epath.PathLike) -> JanusConfig:
    """The sizes of a folder of either layout.

    What a file leaves out has the default of the class that reads it in transformers. Raises
    FileNotFoundError or BadInput naming file and field.
    """
    path = epath.Path(folder) / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; a folder of Janus has it")
    top = Fields.of(path)
    kind = top.values.get("model_type")
    if kind not in TYPES:
        raise top.wrong("model_type", f"must be one of {', '.join(TYPES)}, got {quoted(kind)}")
    try:
        return _huggingface(top) if kind == "janus" else _original(top)
    except BadInput:
        raise
    except ValueError as e:
        raise BadInput(f"{path}: {e}") from e


def _llama(text: Fields, vocab: int) -> LlamaConfig:
    text.only(hidden_act="silu", attention_bias=False, mlp_bias=False, rope_scaling=None)
    rope = text.part("rope_parameters")
    rope.only(rope_type="default")
    hidden, heads = text("hidden_size", int, 4096), text("num_attention_heads", int, 32)
    if text.values.get("head_dim") is None and hidden % heads:
        raise text.wrong("hidden_size", f"is not a multiple of {heads} heads")
    return LlamaConfig(
        hidden=hidden,
        layers=text("num_hidden_layers", int, 32, most=MOST_LAYERS),
        heads=heads,
        kv_heads=text("num_key_value_heads", int, heads),
        head_dim=text("head_dim", int, hidden // heads),
        ffn=text("intermediate_size", int, 11008),
        vocab=text("vocab_size", int, vocab),
        rope_theta=rope("rope_theta", float, text("rope_theta", float, 1e4)),
        rms_eps=text("rms_norm_eps", float, 1e-6, **_ABOVE_0),
    )


def _huggingface(top: Fields) -> JanusConfig:
    text, vision, vq = (top.part(f"{name}_config") for name in ("text", "vision", "vq"))
    vision.only(hidden_act="gelu", num_channels=3, attention_bias=True, use_qk_norm=False)
    vq.only(hidden_act="gelu", in_channels=3, out_channels=3, double_latent=False)
    llm = _llama(text, vocab=32000)
    _as_wide(vision, "projection_dim", 2048, llm)
    _as_wide(vq, "image_token_embed_dim", 2048, llm)
    _as_wide(vq, "projection_dim", 2048, llm)
    tokens = vision("num_image_tokens", int, 576)
    if math.isqrt(tokens) ** 2 != tokens:
        raise vision.wrong("num_image_tokens", f"of {tokens} is no square")
    return JanusConfig(
        llm=llm,
        vit=_vit(vision),
        vq=VQConfig(
            ch=vq("base_channels", int, 128),
            ch_mult=vq.widths("channel_multiplier", (1, 1, 2, 2, 4)),
            res_blocks=vq("num_res_blocks", int, 2, most=MOST_LAYERS),
            z=vq("latent_channels", int, 256),
            code_dim=vq("embed_dim", int, 8),
            codes=vq("num_embeddings", int, 16384),
        ),
        grid=math.isqrt(tokens),
        aligner=vision("depth", int, 2, most=MOST_LAYERS),
        gen_aligner=vq("num_hidden_layers", int, 2, most=MOST_LAYERS),
        head_hidden=llm.hidden,
        max_text=text("max_position_embeddings", int, 2048),
        image_token=top("image_token_id", int, 100581, least=0),
        **{mark: text(f"{mark}_token_id", int, 0, least=0) for mark in ("bos", "eos", "pad")},
    )


def _as_wide(section: Fields, name: str, default: int, llm: LlamaConfig) -> None:
    width = section(name, int, default)
    if width != llm.hidden:
        raise section.wrong(name, f"of {width} is not the language model's width, {llm.hidden}")


def _vit(vision: Fields) -> ViTConfig:
    hidden, heads = vision("hidden_size", int, 1024), vision("num_attention_heads", int, 16)
    patch, image = vision("patch_size", int, 16), vision("image_size", int, 384)
    if hidden % heads:
        raise vision.wrong("hidden_size", f"is not a multiple of {heads} heads")
    if image < patch:
        raise vision.wrong("image_size", f"of {image} is smaller than a patch of {patch}")
    return ViTConfig(
        hidden=hidden,
        layers=vision("num_hidden_layers", int, 24, most=MOST_LAYERS),
        heads=heads,
        ffn=int(hidden * vision("mlp_ratio", float, 4.0, **_ABOVE_0)),
        patch=patch,
        positions=image // patch,
        eps=vision("layer_norm_eps", float, 1e-6, **_ABOVE_0),
        exact_gelu=True,
    )


def _original(top: Fields) -> JanusConfig:
    """The original's config: towers by name, of which Janus-Pro has one set."""
    language, vision, codes, aligner, gen_aligner, head = parts = [
        top.part(f"{name}_config")
        for name in ("language", "vision", "gen_vision", "aligner", "gen_aligner", "gen_head")
    ]
    vision.only(cls="CLIPVisionTower")
    codes.only(cls="VQ-16")
    vision, codes, aligner, gen_aligner, head = (part.part("params") for part in parts[1:])
    vision.only(model_name="siglip_large_patch16_384", select_feature="same")
    for one in (aligner, gen_aligner):
        one.only(projector_type="mlp_gelu")
    llm = _llama(language, vocab=102400)
    for one in (aligner, gen_aligner, head):
        _as_wide(one, "n_embed", llm.hidden, llm)
    pro, image = _preset(llm, 0), vision("image_size", int, 384)
    sizes = dict(codes=codes("image_token_size", int, 16384), code_dim=codes("n_embed", int, 8))
    return dataclasses.replace(
        pro,
        vit=dataclasses.replace(pro.vit, positions=image // pro.vit.patch),
        vq=dataclasses.replace(pro.vq, **sizes),
        grid=image // pro.vq.downsample,
        aligner=aligner("depth", int, 2, most=MOST_LAYERS),
        gen_aligner=gen_aligner("depth", int, 2, most=MOST_LAYERS),
        head_hidden=head("image_token_embed", int, llm.hidden),
        max_text=language("max_position_embeddings", int, 16384),
        **dict.fromkeys(("image_token", "bos", "eos", "pad", "start_of_image"), 0),
    )


def to_json(cfg: JanusConfig) -> dict[str, Any]:
    """The content of Hugging Face's config.json. `tie_word_embeddings` is said at both places:
    its default differs between versions of transformers, and the head is a tensor of its own."""
    llm, vit, vq = cfg.llm, cfg.vit, cfg.vq
    marks = {f"{mark}_token_id": getattr(cfg, mark) or None for mark in ("bos", "eos", "pad")}
    return {
        "architectures": ["JanusForConditionalGeneration"],
        "model_type": "janus",
        "image_token_id": cfg.image_token,
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama",
            "hidden_size": llm.hidden,
            "intermediate_size": llm.ffn,
            "num_hidden_layers": llm.layers,
            "num_attention_heads": llm.heads,
            "num_key_value_heads": llm.kv_heads,
            "head_dim": llm.head_dim,
            "vocab_size": llm.vocab,
            "max_position_embeddings": cfg.max_text,
            "rms_norm_eps": llm.rms_eps,
            "rope_theta": llm.rope_theta,
            "rope_parameters": {"rope_theta": llm.rope_theta, "rope_type": "default"},
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            **marks,
        },
        "vision_config": {
            "model_type": "janus_vision_model",
            "hidden_size": vit.hidden,
            "num_hidden_layers": vit.layers,
            "num_attention_heads": vit.heads,
            "mlp_ratio": vit.ffn / vit.hidden,
            "image_size": cfg.vit_side,
            "patch_size": vit.patch,
            "num_channels": 3,
            "num_image_tokens": cfg.image_tokens,
            "projection_dim": llm.hidden,
            "depth": cfg.aligner,
            "hidden_act": "gelu",
            "layer_norm_eps": vit.eps,
            "attention_bias": True,
            "use_qk_norm": False,
        },
        "vq_config": {
            "model_type": "janus_vqgan",
            "base_channels": vq.ch,
            "channel_multiplier": list(vq.ch_mult),
            "num_res_blocks": vq.res_blocks,
            "latent_channels": vq.z,
            "embed_dim": vq.code_dim,
            "num_embeddings": vq.codes,
            "num_patches": cfg.grid,
            "in_channels": 3,
            "out_channels": 3,
            "double_latent": False,
            "image_token_embed_dim": llm.hidden,
            "projection_dim": cfg.head_hidden,
            "num_hidden_layers": cfg.gen_aligner,
            "hidden_act": "gelu",
        },
    }
