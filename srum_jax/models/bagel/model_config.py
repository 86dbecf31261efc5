"""Sizes of a BAGEL model: frozen dataclasses, presets, and reading a checkpoint folder's JSON.

Sizes of patches, latents, down-sampling and special ids come from the checkpoint's own JSON files
where there is a folder, from a preset otherwise; no other file holds such a constant.
"""

import dataclasses
from typing import Literal

from etils import epath

from srum_jax.core.files import read_json
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
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads are not a multiple of {self.kv_heads} kv heads")

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


class _Fields:
    """A JSON object whose missing or mistyped field is named together with its file."""

    def __init__(self, path: epath.Path):
        self.path, self.values = path, read_json(path)

    def __call__(self, name: str, kind: type):
        if name not in self.values:
            raise ValueError(f"{self.path}: field {name!r} is missing")
        value = self.values[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{self.path}: field {name!r} must be {kind.__name__}, got {value!r}")
        return value


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


def _rope_scaling(llm: _Fields) -> RopeScaling | None:
    """The `rope_scaling` field (`rope_parameters` in newer files), None where positions are plain.

    Raises ValueError for a type that is not known, and for what a type does not have or lacks.
    """
    name = "rope_scaling" if llm.values.get("rope_scaling") is not None else "rope_parameters"
    values = llm.values.get(name)
    if values is None:
        return None
    if not isinstance(values, dict):
        raise ValueError(f"{llm.path}: field {name!r} must be an object, got {values!r}")
    values = {k: v for k, v in values.items() if v is not None}
    kind = values.pop("rope_type", values.pop("type", None))
    values.pop("rope_theta", None)
    if kind == "default":
        return None
    if kind not in _SCALING:
        known = ", ".join(["default", *_SCALING])
        raise ValueError(f"{llm.path}: {name} of type {kind!r} is not known: one of {known}")
    names = _SCALING[kind]
    if kind == "yarn":
        values.setdefault("original_max_position_embeddings", llm("max_position_embeddings", int))
    for field, value in values.items():
        if field not in names:
            raise ValueError(f"{llm.path}: {name}.{field} is not known for the type {kind!r}")
        if field == "truncate":
            good = isinstance(value, bool)
        else:
            good = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if not good or (field == "factor" and value < 1):
            raise ValueError(f"{llm.path}: {name}.{field} cannot be {value!r}")
    if "factor" not in values:
        raise ValueError(f"{llm.path}: {name}.factor is missing")
    return RopeScaling(kind, **{names[field]: value for field, value in values.items()})


def _scaling_json(scaling: RopeScaling) -> dict:
    values = {name: getattr(scaling, field) for name, field in _SCALING[scaling.kind].items()}
    return {"rope_type": scaling.kind, **{k: v for k, v in values.items() if v is not None}}


def autoencoder_from_folder(folder: epath.PathLike) -> VAEConfig:
    """Sizes of a folder's autoencoder; BAGEL-7B-MoT's where it has no `ae_config.json`."""
    path = epath.Path(folder) / VAE_JSON
    if not path.exists():
        return BAGEL_7B_MOT.vae
    ae = _Fields(path)
    return VAEConfig(
        ch=ae("ch", int),
        ch_mult=tuple(ae("ch_mult", list)),
        res_blocks=ae("num_res_blocks", int),
        z=ae("z_channels", int),
        scale=ae("scale_factor", float),
        shift=ae("shift_factor", float),
    )


def from_folder(folder: epath.PathLike) -> BagelConfig:
    """Reads the sizes of a checkpoint folder.

    `llm_config.json` and `vit_config.json` are the official files. `ae_config.json` and
    `bagel_config.json` are written by our exporter; the official release lacks them, and then the
    constants of BAGEL-7B-MoT hold (they are hard-coded in the original loader).
    Raises FileNotFoundError or ValueError naming file and field.
    """
    folder = epath.Path(folder)
    for name in ("llm_config.json", "vit_config.json"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder / name} is missing: a BAGEL checkpoint folder holds llm_config.json, "
                "vit_config.json, ema.safetensors and ae.safetensors"
            )
    llm, vit = _Fields(folder / "llm_config.json"), _Fields(folder / "vit_config.json")
    scaling = _rope_scaling(llm)
    window = llm("max_position_embeddings", int)
    if scaling and scaling.kind == "yarn":  # files often keep the window that was trained
        window = max(window, int(scaling.factor * scaling.original))
    preset = BAGEL_7B_MOT
    top = dict(
        latent_patch=preset.latent_patch,
        max_latent=preset.max_latent,
        max_vit=preset.max_vit,
        bos=preset.bos,
        eos=preset.eos,
        start_of_image=preset.start_of_image,
        end_of_image=preset.end_of_image,
    )
    if (folder / "bagel_config.json").exists():
        b = _Fields(folder / "bagel_config.json")
        ids = b("special_tokens", dict)
        try:
            top = dict(
                latent_patch=b("latent_patch_size", int),
                max_latent=b("max_latent_size", int),
                max_vit=b("vit_max_num_patch_per_side", int),
                interpolate_pos=b("interpolate_pos", bool),
                bos=ids["bos_token_id"],
                eos=ids["eos_token_id"],
                start_of_image=ids["start_of_image"],
                end_of_image=ids["end_of_image"],
            )
        except KeyError as e:
            raise ValueError(f"{b.path}: special_tokens lacks {e.args[0]!r}") from e
    return BagelConfig(
        llm=LLMConfig(
            hidden=llm("hidden_size", int),
            layers=llm("num_hidden_layers", int),
            heads=llm("num_attention_heads", int),
            kv_heads=llm("num_key_value_heads", int),
            ffn=llm("intermediate_size", int),
            vocab=llm("vocab_size", int),
            rope_theta=llm("rope_theta", float),
            rms_eps=llm("rms_norm_eps", float),
            rope_scaling=scaling,
        ),
        vit=ViTConfig(
            hidden=vit("hidden_size", int),
            layers=vit("num_hidden_layers", int) - 1,
            heads=vit("num_attention_heads", int),
            ffn=vit("intermediate_size", int),
            patch=vit("patch_size", int),
            positions=vit("image_size", int) // vit("patch_size", int),
            eps=vit("layer_norm_eps", float),
        ),
        vae=autoencoder_from_folder(folder),
        max_text=window,
        **top,
    )


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
            "special_tokens": {
                "bos_token_id": cfg.bos,
                "eos_token_id": cfg.eos,
                "start_of_image": cfg.start_of_image,
                "end_of_image": cfg.end_of_image,
            },
        },
    }
