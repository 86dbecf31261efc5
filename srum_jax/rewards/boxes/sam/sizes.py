"""Sizes of a Segment Anything model: frozen dataclasses, read from a Hugging Face `config.json`.

A key that the file lacks has the default of transformers' SamConfig, so the released files of
ViT-B, ViT-L and ViT-H, which leave out most, are read as they are. Keys that change no number of
the forward pass are ignored.
"""

import dataclasses
import functools
from typing import Any

import jax
from etils import epath

from srum_jax.core.errors import quoted
from srum_jax.core.files import read_json

CONFIG_FILE = "config.json"
LAYER_DOWNSAMPLE = 2  # of the features of cross attention inside the decoder's layers: no option
ACTIVATIONS = {  # names that the file may use
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The image encoder: a ViT of windowed and global layers, and its neck."""

    hidden: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    channels: int = 3
    image: int = 1024  # pixels a side
    patch: int = 16  # pixels a side
    out: int = 256  # features of an image embedding
    act: str = "gelu"
    eps: float = 1e-6
    qkv_bias: bool = True
    absolute: bool = True  # learned absolute positions
    relative: bool = True  # decomposed relative positions
    window: int = 14  # patches a side; 0: every layer is global
    global_layers: tuple[int, ...] = (2, 5, 8, 11)
    frequencies: int = 128  # of the random Fourier features that encode places

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image // self.patch

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The layers in order, as runs of equal kind: (window in patches or 0, layers)."""
        runs: list[tuple[int, int]] = []
        for layer in range(self.layers):
            window = 0 if layer in self.global_layers else self.window
            if runs and runs[-1][0] == window:
                runs[-1] = (window, runs[-1][1] + 1)
            else:
                runs.append((window, 1))
        return tuple(runs)


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """The prompt encoder."""

    hidden: int = 256
    image: int = 1024  # pixels a side that places are relative to
    grid: int = 64  # image embeddings a side
    mask_channels: int = 16
    points: int = 4  # learned kinds: background, foreground, first and second corner of a box
    act: str = "gelu"
    eps: float = 1e-6


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The mask decoder: a two-way transformer, up-scaling, and heads for masks and their IoU."""

    hidden: int = 256
    layers: int = 2
    heads: int = 8
    ffn: int = 2048
    downsample: int = 2  # of the features inside the attention behind the layers
    masks: int = 3  # of a prompt that may mean several things; a further one for clear prompts
    iou_depth: int = 3
    iou_hidden: int = 256
    act: str = "relu"
    eps: float = 1e-6


@dataclasses.dataclass(frozen=True)
class SamSizes:
    """A whole model. Raises ValueError where its parts do not fit together."""

    vision: VisionConfig = VisionConfig()
    prompt: PromptConfig = PromptConfig()
    decoder: DecoderConfig = DecoderConfig()

    def __post_init__(self):
        v, p, d = self.vision, self.prompt, self.decoder
        for part in (v, p, d):
            for field in dataclasses.fields(part):
                value, least = getattr(part, field.name), int(field.name != "window")
                if field.type is int and value < least:
                    name = f"{type(part).__name__}.{field.name}"
                    raise ValueError(f"{name} is {value}, less than {least}")
            if part.act not in ACTIVATIONS:
                raise ValueError(
                    f"hidden_act {quoted(part.act)} is none of {', '.join(ACTIVATIONS)}"
                )
        widths = {v.out, p.hidden, d.hidden, 2 * v.frequencies}
        if len(widths) > 1:
            raise ValueError(
                f"vision output_channels {v.out}, prompt hidden_size {p.hidden}, mask decoder "
                f"hidden_size {d.hidden} and twice num_pos_feats {v.frequencies} must be equal"
            )
        if v.hidden % v.heads:
            raise ValueError(f"vision hidden_size {v.hidden} is not a multiple of {v.heads} heads")
        for inner in (d.hidden, d.hidden // LAYER_DOWNSAMPLE, d.hidden // d.downsample):
            if d.hidden < 8 or not inner or inner % d.heads:
                raise ValueError(
                    f"mask decoder hidden_size {d.hidden} must be 8 or more and a multiple of "
                    f"{d.heads} heads, also divided by {LAYER_DOWNSAMPLE} or by "
                    f"attention_downsample_rate {d.downsample}"
                )
        if p.grid != v.grid or not v.grid:
            raise ValueError(
                f"prompt encoder: image_embedding_size {p.grid} is not the vision encoder's "
                f"image_size {v.image} // patch_size {v.patch} = {v.grid}"
            )
        if p.mask_channels % 4:
            raise ValueError(f"mask_input_channels {p.mask_channels} is not a multiple of 4")
        if p.points < 4:
            raise ValueError(f"num_point_embeddings {p.points}: points and boxes need 4")


_MOST, _MOST_LAYERS = 2**31 - 1, 1000  # no size is larger, no model has more layers
_EPS = dict(least=0, most=1)


class _Section:
    """A part of the JSON; reading a field checks type and range, and names file and field."""

    def __init__(self, path: epath.Path, whole: dict, name: str):
        self.where, values = f"{path}: {name}", whole.get(name)
        if values is not None and not isinstance(values, dict):
            raise ValueError(f"{self.where} must be an object, got {quoted(values)}")
        self.values = values or {}

    def __call__(self, name: str, default: Any, *, least: int = 1, most: int = _MOST) -> Any:
        """The field, of the type of `default`, a number of `least` to `most`; `default` where it is
        absent or null."""
        value = self.values.get(name)
        if value is None:
            return default
        real = isinstance(default, float)
        if isinstance(default, tuple) and isinstance(value, list):
            if all(type(x) is int for x in value):
                return tuple(value)
        elif type(value) is type(default) or real and type(value) is int:
            if type(value) in (int, float) and not least <= value <= most:
                raise ValueError(f"{self.where}.{name} cannot be {quoted(value)}")
            return float(value) if real else value
        kind = "a list of int" if isinstance(default, tuple) else type(default).__name__
        raise ValueError(f"{self.where}.{name} must be {kind}, got {quoted(value)}")


def read(folder: epath.PathLike) -> SamSizes:
    """The sizes in a folder's `config.json`.

    Raises FileNotFoundError or ValueError naming the file and the field: another `model_type`, a
    value of a wrong type, an activation that is not in ACTIVATIONS, parts that do not fit together.
    """
    path = epath.Path(folder) / CONFIG_FILE
    whole = read_json(path)
    kind = whole.get("model_type") if isinstance(whole, dict) else None
    if kind != "sam":
        raise ValueError(f"{path}: model_type is {quoted(kind)}, not 'sam'")
    v, p, d = (
        _Section(path, whole, f"{n}_config") for n in ("vision", "prompt_encoder", "mask_decoder")
    )
    a, b, c = VisionConfig(), PromptConfig(), DecoderConfig()
    hidden = v("hidden_size", a.hidden)
    image, patch = p("image_size", b.image), p("patch_size", a.patch)
    try:
        return SamSizes(
            VisionConfig(
                hidden=hidden,
                layers=v("num_hidden_layers", a.layers, most=_MOST_LAYERS),
                heads=v("num_attention_heads", a.heads),
                ffn=v("mlp_dim", int(hidden * v("mlp_ratio", 4.0, least=0))),
                channels=v("num_channels", a.channels),
                image=v("image_size", a.image),
                patch=v("patch_size", a.patch),
                out=v("output_channels", a.out),
                act=v("hidden_act", a.act),
                eps=v("layer_norm_eps", a.eps, **_EPS),
                qkv_bias=v("qkv_bias", a.qkv_bias),
                absolute=v("use_abs_pos", a.absolute),
                relative=v("use_rel_pos", a.relative),
                window=v("window_size", a.window, least=0),
                global_layers=v("global_attn_indexes", a.global_layers),
                frequencies=v("num_pos_feats", a.frequencies),
            ),
            PromptConfig(
                hidden=p("hidden_size", b.hidden),
                image=image,
                grid=p("image_embedding_size", image // patch),
                mask_channels=p("mask_input_channels", b.mask_channels),
                points=p("num_point_embeddings", b.points),
                act=p("hidden_act", b.act),
                eps=p("layer_norm_eps", b.eps, **_EPS),
            ),
            DecoderConfig(
                hidden=d("hidden_size", c.hidden),
                layers=d("num_hidden_layers", c.layers, most=_MOST_LAYERS),
                heads=d("num_attention_heads", c.heads),
                ffn=d("mlp_dim", c.ffn),
                downsample=d("attention_downsample_rate", c.downsample),
                masks=d("num_multimask_outputs", c.masks),
                iou_depth=d("iou_head_depth", c.iou_depth, most=_MOST_LAYERS),
                iou_hidden=d("iou_head_hidden_dim", c.iou_hidden),
                act=d("hidden_act", c.act),
                eps=d("layer_norm_eps", c.eps, **_EPS),
            ),
        )
    except ValueError as e:
        raise ValueError(e if str(path) in str(e) else f"{path}: {e}") from e
