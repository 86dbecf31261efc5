"""Sizes of a BAGEL model: frozen dataclasses, presets, and reading a checkpoint folder's JSON.

Sizes of patches, latents, down-sampling and special ids come from the checkpoint's own JSON files
where there is a folder, from a preset otherwise; no other file holds such a constant.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from etils import epath

from srum_jax.core.errors import quoted
from srum_jax.core.json_fields import MOST, Fields
from srum_jax.data.schema import LayoutSizes


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """RoPE stretched over more positions than were trained, as Hugging Face's `rope_scaling`.

    linear: every frequency divided by `factor` (arXiv 2306.15595). yarn: only those that turn less
    than `beta_slow` times over the `original` positions; those that turn more than `beta_fast`
    times stay, with a ramp between, whose ends are whole features if `truncate`; queries and keys
    grow by `attention_factor`, or 0.1 ln(factor) + 1 where that is None (arXiv 2309.00071).
    """

    kind: Literal["linear", "yarn"]
    factor: float
    original: int = 0  # positions trained on; yarn alone
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


def check_heads(heads: int, kv_heads: int, head_dim: int) -> None:
    """Raises ValueError for heads that attention with grouped keys and RoPE cannot have."""
    if heads % kv_heads:
        raise ValueError(f"{heads} heads are not a multiple of {kv_heads} kv heads")
    if head_dim % 2:
        raise ValueError(f"heads of {head_dim} features cannot be turned by RoPE: odd")


@dataclasses.dataclass(frozen=True)
class LLMConfig:
    """The language model (Qwen2.5 shape, MoT): sizes in tokens and features."""

    hidden: int  # D
    layers: int  # L
    heads: int  # H
    kv_heads: int  # K
    ffn: int  # F
    vocab: int  # V
    rope_theta: float = 1e6
    rms_eps: float = 1e-6
    rope_scaling: RopeScaling | None = None

    def __post_init__(self):
        if self.hidden % self.heads:
            raise ValueError(f"hidden size {self.hidden} is not a multiple of {self.heads} heads")
        check_heads(self.heads, self.kv_heads, self.head_dim)

    @property
    def head_dim(self) -> int:
        """Features of one head."""
        return self.hidden // self.heads


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """SigLIP-NaViT tower. `layers` is the number that exist (the JSON says one more)."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    patch: int  # pixels
    positions: int  # patches per side of the trained position table
    eps: float = 1e-6
    exact_gelu: bool = False  # by the error function, not its approximation by tanh


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """FLUX-family autoencoder. latent = scale · (z − shift)."""

    ch: int
    ch_mult: tuple[int, ...]
    res_blocks: int
    z: int
    scale: float
    shift: float

    @property
    def downsample(self) -> int:
        """Side of the square of pixels that one latent stands for."""
        return 2 ** (len(self.ch_mult) - 1)


@dataclasses.dataclass(frozen=True)
class BagelConfig:
    """A whole model. Positions are ids into square tables of the given sides."""

    llm: LLMConfig
    vit: ViTConfig
    vae: VAEConfig
    latent_patch: int
    max_latent: int  # latent tokens per side that positions exist for
    max_vit: int  # ViT patches per side of the connector's position table
    bos: int
    eos: int
    start_of_image: int
    end_of_image: int
    interpolate_pos: bool = False
    max_text: int = 32768  # RoPE positions
    attention: str = "dense"  # how attention is computed: a back-end of models/attention

    @property
    def token_dim(self) -> int:
        """Numbers in one latent token: p·p·Z."""
        return self.latent_patch**2 * self.vae.z

    @property
    def token_pixels(self) -> int:
        """Side of the square of pixels one latent token stands for."""
        return self.latent_patch * self.vae.downsample

    @property
    def layout(self) -> LayoutSizes:
        """What packing, pictures and tokenizer need of these sizes."""
        return LayoutSizes(
            vocab=self.llm.vocab,
            bos=self.bos,
            eos=self.eos,
            start_of_image=self.start_of_image,
            end_of_image=self.end_of_image,
            vit_patch=self.vit.patch,
            vit_side=self.vit.positions,
            vit_positions=self.max_vit,
            token_pixels=self.token_pixels,
            token_dim=self.token_dim,
            max_latent=self.max_latent,
            interpolate_pos=self.interpolate_pos,
        )


BAGEL_7B_MOT = BagelConfig(
    llm=LLMConfig(hidden=3584, layers=28, heads=28, kv_heads=4, ffn=18944, vocab=152064),
    vit=ViTConfig(hidden=1152, layers=26, heads=16, ffn=4304, patch=14, positions=70),
    vae=VAEConfig(ch=128, ch_mult=(1, 2, 4, 4), res_blocks=2, z=16, scale=0.3611, shift=0.1159),
    latent_patch=2,
    max_latent=64,
    max_vit=70,
    bos=151644,
    eos=151645,
    start_of_image=151652,
    end_of_image=151653,
)

VAE_JSON = "ae_config.json"
PRESETS = {"bagel_7b_mot": BAGEL_7B_MOT}  # models that `core/registry.py` names


MOST_LAYERS = 1000

# What transformers' Qwen2Config and SiglipVisionConfig fill in where a file leaves it out, as files
# do that were cut out of a larger model's.
_QWEN2 = dict(
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    intermediate_size=22016,
    vocab_size=151936,
    max_position_embeddings=32768,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
)
_SIGLIP = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    image_size=224,
    patch_size=16,
    layer_norm_eps=1e-6,
)
_WINDOW = "max_position_embeddings"
_EPS = dict(least=0, most=1)

_SPECIAL = {  # ids by their names in bagel_config.json
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "start_of_image": "start_of_image",
    "end_of_image": "end_of_image",
}

# Fields of RopeScaling by their names in the JSON, for each kind.
_SCALING = {
    "linear": {"factor": "factor"},
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original",
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
    },
}


def _rope(llm: Fields) -> tuple[float, RopeScaling | None]:
    """The base of RoPE's frequencies and how it is stretched: from `rope_theta` and `rope_scaling`,
    or from `rope_parameters`, where transformers 5 writes both.

    Raises ValueError for a type that is not known, and for what a type does not have or lacks.
    """
    name = "rope_scaling" if llm.values.get("rope_scaling") is not None else "rope_parameters"
    values = llm.values.get(name)
    theta = llm("rope_theta", float)
    if values is None:
        return theta, None
    if not isinstance(values, dict):
        raise llm.wrong(name, f"must be an object, got {quoted(values)}")
    values = {k: v for k, v in values.items() if v is not None}
    kind = values.pop("rope_type", values.pop("type", None))
    if "rope_theta" in values:
        theta = values.pop("rope_theta")
        if not _positive(theta):
            raise ValueError(f"{llm.path}: {name}.rope_theta cannot be {quoted(theta)}")
    if kind == "default" or not (kind or values):
        return float(theta), None
    if not isinstance(kind, str) or kind not in _SCALING:
        known = ", ".join(["default", *_SCALING])
        raise ValueError(f"{llm.path}: {name} of type {quoted(kind)} is not known: one of {known}")
    names = _SCALING[kind]
    if kind == "yarn":
        values.setdefault("original_max_position_embeddings", llm(_WINDOW, int))
    for field, value in values.items():
        if field not in names:
            raise ValueError(
                f"{llm.path}: {name}.{quoted(field)[1:-1]} is not known for the type {kind!r}"
            )
        good = isinstance(value, bool) if field == "truncate" else _positive(value)
        if not good or (field == "factor" and value < 1):
            raise ValueError(f"{llm.path}: {name}.{field} cannot be {quoted(value)}")
    if "factor" not in values:
        raise ValueError(f"{llm.path}: {name}.factor is missing")
    return float(theta), RopeScaling(kind, **{names[f]: value for f, value in values.items()})


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= MOST[float]


def _scaling_json(scaling: RopeScaling) -> dict:
    values = {name: getattr(scaling, field) for name, field in _SCALING[scaling.kind].items()}
    return {"rope_type": scaling.kind, **{k: v for k, v in values.items() if v is not None}}


def autoencoder_from_folder(folder: epath.PathLike) -> VAEConfig:
    """Sizes of a folder's autoencoder; BAGEL-7B-MoT's where it has no `ae_config.json`."""
    path = epath.Path(folder) / VAE_JSON
    if not path.exists():
        return BAGEL_7B_MOT.vae
    ae = Fields.of(path)
    return VAEConfig(
        ch=ae("ch", int),
        ch_mult=ae.widths("ch_mult"),
        res_blocks=ae("num_res_blocks", int, most=MOST_LAYERS),
        z=ae("z_channels", int),
        scale=ae("scale_factor", float, least=1e-6),
        shift=ae("shift_factor", float, least=-1e6),
    )


def from_folder(folder: epath.PathLike) -> BagelConfig:
    """Reads the sizes of a checkpoint folder.

    `llm_config.json` and `vit_config.json` are the official files. `ae_config.json` and
    `bagel_config.json` are written by our exporter; the official release lacks them, and then the
    constants of BAGEL-7B-MoT hold (they are hard-coded in the original loader).
    What an official file leaves out has the default of transformers' class. Raises
    FileNotFoundError or ValueError naming file and field, of every file that cannot be read the
    first such field.
    """
    folder, found, problems = epath.Path(folder), {}, []
    for name, read in _READERS.items():
        try:
            found |= read(folder / name)
        except (FileNotFoundError, ValueError) as e:
            problems.append(e)
    if problems:
        absent = all(isinstance(e, FileNotFoundError) for e in problems)
        kind = FileNotFoundError if absent else ValueError
        raise kind("\n".join(map(str, problems))) from problems[0]
    return BagelConfig(**found)


def _needed(path: epath.Path, defaults: Mapping[str, Any]) -> Fields:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: a BAGEL checkpoint folder holds llm_config.json, "
            "vit_config.json, ema.safetensors and ae.safetensors"
        )
    return Fields.of(path, defaults)


def _language_model(path: epath.Path) -> dict[str, Any]:
    llm = _needed(path, _QWEN2)
    return {"llm": _llm(llm), "max_text": _window(llm)}


def _llm(llm: Fields) -> LLMConfig:
    llm.only(hidden_act="silu", use_sliding_window=False)
    theta, scaling = _rope(llm)
    sizes = dict(
        hidden=llm("hidden_size", int),
        layers=llm("num_hidden_layers", int, most=MOST_LAYERS),
        heads=llm("num_attention_heads", int),
        kv_heads=llm("num_key_value_heads", int),
        ffn=llm("intermediate_size", int),
        vocab=llm("vocab_size", int),
        rms_eps=llm("rms_norm_eps", float, **_EPS),
    )
    if llm.values.get("num_key_value_heads", 0) is None:
        sizes["kv_heads"] = sizes["heads"]
    try:
        made = LLMConfig(**sizes, rope_theta=theta, rope_scaling=scaling)
    except ValueError as e:
        raise ValueError(f"{llm.path}: {e}") from e
    llm.only(head_dim=made.head_dim)
    return made


def _window(llm: Fields) -> int:
    """Positions of text; files that stretch them by yarn often keep the window that was trained."""
    window, (_, scaling) = llm(_WINDOW, int), _rope(llm)
    if scaling and scaling.kind == "yarn":
        return max(window, min(int(scaling.factor * scaling.original), MOST[int]))
    return window


def _vit(vit: Fields) -> ViTConfig:
    vit.only(hidden_act="gelu_pytorch_tanh", num_channels=3)
    patch, image = vit("patch_size", int), vit("image_size", int)
    if image < patch:
        raise vit.wrong("image_size", f"of {image} is smaller than a patch of {patch}")
    sizes = dict(
        hidden=vit("hidden_size", int),
        layers=vit("num_hidden_layers", int, least=2, most=MOST_LAYERS) - 1,
        heads=vit("num_attention_heads", int),
        ffn=vit("intermediate_size", int),
        eps=vit("layer_norm_eps", float, **_EPS),
    )
    if sizes["hidden"] % sizes["heads"]:
        raise vit.wrong("hidden_size", f"is not a multiple of {sizes['heads']} heads")
    return ViTConfig(**sizes, patch=patch, positions=image // patch)


def _top(path: epath.Path) -> dict[str, Any]:
    """The sizes and ids of the whole: of the file, or BAGEL-7B-MoT's where there is none."""
    if not path.exists():
        names = ("latent_patch", "max_latent", "max_vit")
        return {name: getattr(BAGEL_7B_MOT, name) for name in (*names, *_SPECIAL)}
    file = Fields.of(path)
    ids = file("special_tokens", dict)
    lacking = [name for name in _SPECIAL.values() if name not in ids]
    if lacking:
        raise file.wrong("special_tokens", f"lacks {', '.join(lacking)}")
    found = {ours: ids[name] for ours, name in _SPECIAL.items()}
    for value in found.values():
        if type(value) is not int or not 0 <= value <= MOST[int]:
            raise file.wrong("special_tokens", f"must hold ids, got {quoted(value)}")
    return found | dict(
        latent_patch=file("latent_patch_size", int),
        max_latent=file("max_latent_size", int),
        max_vit=file("vit_max_num_patch_per_side", int),
        interpolate_pos=file("interpolate_pos", bool),
    )


_READERS = {  # files of a folder -> the fields of BagelConfig that each gives
    "llm_config.json": _language_model,
    "vit_config.json": lambda path: {"vit": _vit(_needed(path, _SIGLIP))},
    VAE_JSON: lambda path: {"vae": autoencoder_from_folder(path.parent)},
    "bagel_config.json": _top,
}


def to_json(cfg: BagelConfig) -> dict[str, dict]:
    """The JSON files `from_folder` reads back, by file name (official names and keys)."""
    c = cfg.llm
    return {
        "llm_config.json": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_size": c.hidden,
            "initializer_range": 0.02,
            "intermediate_size": c.ffn,
            "max_position_embeddings": cfg.max_text,
            "max_window_layers": c.layers,
            "num_attention_heads": c.heads,
            "num_hidden_layers": c.layers,
            "num_key_value_heads": c.kv_heads,
            "rms_norm_eps": c.rms_eps,
            "rope_theta": c.rope_theta,
            **({"rope_scaling": _scaling_json(c.rope_scaling)} if c.rope_scaling else {}),
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": c.vocab,
        },
        "vit_config.json": {
            "model_type": "siglip_vision_model",
            "hidden_size": cfg.vit.hidden,
            "image_size": cfg.vit.positions * cfg.vit.patch,
            "intermediate_size": cfg.vit.ffn,
            "num_attention_heads": cfg.vit.heads,
            "num_hidden_layers": cfg.vit.layers + 1,
            "num_channels": 3,
            "patch_size": cfg.vit.patch,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": cfg.vit.eps,
            "attention_dropout": 0.0,
        },
        VAE_JSON: {
            "in_channels": 3,
            "out_ch": 3,
            "downsample": cfg.vae.downsample,
            "ch": cfg.vae.ch,
            "ch_mult": list(cfg.vae.ch_mult),
            "num_res_blocks": cfg.vae.res_blocks,
            "z_channels": cfg.vae.z,
            "scale_factor": cfg.vae.scale,
            "shift_factor": cfg.vae.shift,
        },
        "bagel_config.json": {
            "latent_patch_size": cfg.latent_patch,
            "max_latent_size": cfg.max_latent,
            "vit_max_num_patch_per_side": cfg.max_vit,
            "connector_act": "gelu_pytorch_tanh",
            "interpolate_pos": cfg.interpolate_pos,
            "special_tokens": {name: getattr(cfg, ours) for ours, name in _SPECIAL.items()},
        },
    }
