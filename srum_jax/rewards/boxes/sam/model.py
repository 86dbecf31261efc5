"""Segment Anything (SAM): an image's embeddings, and masks for points, boxes and masks.

The image encoder (`vision.py`) runs once an image. The prompt encoder turns places into tokens
by random Fourier features; the mask decoder lets tokens and image attend to each other and reads
masks out of the up-scaled image (Kirillov et al. 2023, arXiv 2304.02643;
facebookresearch/segment-anything; the numbers are those of transformers' SamModel).
Images are NHWC, float32; an image has g = image_size / patch_size embeddings a side.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from srum_jax.core.param_tree import Params, ParamSpec, Specs
from srum_jax.core.param_tree import linear as linear_specs
from srum_jax.models.layers import layer_norm, linear
from srum_jax.rewards.boxes.sam import vision as sam_vision
from srum_jax.rewards.boxes.sam.sizes import (
    ACTIVATIONS,
    LAYER_DOWNSAMPLE,
    DecoderConfig,
    SamSizes,
)
from srum_jax.rewards.boxes.sam.vision import EPS, kernel_specs, norm_specs, patches

FINAL_EPS = 1e-5  # of the norm behind the two-way transformer
IGNORED, NO_POINT, BACKGROUND, FOREGROUND = -10, -1, 0, 1  # labels of points


def _dense(inputs: int, outputs: int, stack: int | None = None) -> Specs:
    return linear_specs({"conv_in": inputs}, {"conv_out": outputs}, bias=True, stack=stack)


def _up_specs(inputs: int, outputs: int) -> Specs:
    axes = ("conv_in", None, None, "conv_out")
    return {
        "w": ParamSpec((inputs, 2, 2, outputs), axes, fan_in=(0,)),
        "b": ParamSpec((outputs,), ("conv_out",), init="zeros"),
    }


def _attention_specs(hidden: int, inner: int) -> Specs:
    return {
        **{name: _dense(hidden, inner) for name in ("q", "k", "v")},
        "o": _dense(inner, hidden),
    }


def _head_specs(inputs: int, hidden: int, outputs: int, depth: int, stack=None) -> Specs:
    middle = {str(i): _dense(hidden, hidden, stack) for i in range(1, depth - 1)}
    return {
        "0": _dense(inputs, hidden, stack),
        **middle,
        str(len(middle) + 1): _dense(hidden, outputs, stack),
    }


def _decoder_specs(cfg: DecoderConfig) -> Specs:
    d, masks = cfg.hidden, cfg.masks + 1
    layer = {
        "self": _attention_specs(d, d),
        "to_image": _attention_specs(d, d // LAYER_DOWNSAMPLE),
        "to_tokens": _attention_specs(d, d // LAYER_DOWNSAMPLE),
        **{f"ln{i}": norm_specs(d) for i in (1, 2, 3, 4)},
        "fc1": _dense(d, cfg.ffn),
        "fc2": _dense(cfg.ffn, d),
    }
    return {
        "iou_token": ParamSpec((1, d), (None, None), scale=0.02),
        "mask_tokens": ParamSpec((masks, d), (None, None), scale=0.02),
        "layers": {str(i): layer for i in range(cfg.layers)},
        "final": {"to_image": _attention_specs(d, d // cfg.downsample), "ln": norm_specs(d)},
        "up1": _up_specs(d, d // 4),
        "up_norm": norm_specs(d // 4),
        "up2": _up_specs(d // 4, d // 8),
        "mask_heads": _head_specs(d, d, d // 8, 3, stack=masks),
        "iou_head": _head_specs(d, cfg.iou_hidden, masks, cfg.iou_depth),
    }


def specs(cfg: SamSizes) -> Specs:
    """Parameter tree. Encoder layers are stacked by runs of equal kind (`VisionConfig.runs`);
    other lists are dicts keyed "0", "1", …; kernels HWIO."""
    p = cfg.prompt
    fourier = ParamSpec((2, cfg.vision.frequencies), (None, None), scale=cfg.vision.hidden / 2)
    return {
        "fourier": {"image": fourier, "prompt": fourier},  # equal unless a checkpoint unties them
        "vision": sam_vision.specs(cfg.vision),
        "prompt": {
            "points": ParamSpec((p.points, 1, p.hidden), (None, None, None), scale=0.02),
            "no_point": ParamSpec((1, p.hidden), (None, None), scale=0.02),
            "no_mask": ParamSpec((1, p.hidden), (None, None), scale=0.02),
            "mask": {
                "conv1": kernel_specs(2, 1, p.mask_channels // 4),
                "ln1": norm_specs(p.mask_channels // 4),
                "conv2": kernel_specs(2, p.mask_channels // 4, p.mask_channels),
                "ln2": norm_specs(p.mask_channels),
                "conv3": kernel_specs(1, p.mask_channels, p.hidden),
            },
        },
        "decoder": _decoder_specs(cfg.decoder),
    }


def encode(params: Params, cfg: SamSizes, pixels: jax.Array) -> jax.Array:
    """Image embeddings [N, g, g, C] of pixels float32 [N, S, S, channels], normalised, zeros where
    padded; S is the model's image size. Raises ValueError for another shape."""
    return sam_vision.encode(params["vision"], cfg.vision, pixels)


def _fourier(places: jax.Array, matrix: jax.Array) -> jax.Array:
    """Features of (x, y) in [0, 1]: [..., 2] -> [..., C], sines before cosines."""
    # HIGHEST: a bfloat16 pass would move places by pixels.
    angle = jnp.matmul(2 * places - 1, matrix, precision=jax.lax.Precision.HIGHEST)
    angle = 2 * jnp.pi * angle
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def image_positions(params: Params, cfg: SamSizes) -> jax.Array:
    """Position features of the centres of an image's embeddings, [g, g, C]."""
    at = (jnp.arange(cfg.vision.grid) + 0.5) / cfg.vision.grid
    x, y = jnp.meshgrid(at, at)
    return _fourier(jnp.stack([x, y], axis=-1), params["fourier"]["image"])


def _points(params: Params, cfg: SamSizes, points: jax.Array, labels: jax.Array) -> jax.Array:
    p = params["prompt"]
    kind = labels[..., None]
    x = _fourier((points + 0.5) / cfg.prompt.image, params["fourier"]["prompt"])
    x = jnp.where(kind == NO_POINT, _like(p["no_point"], x), x)
    x = jnp.where(kind == IGNORED, 0.0, x)
    for label in (BACKGROUND, FOREGROUND):
        x = x + jnp.where(kind == label, _like(p["points"][label], x), 0.0)
    return x


def _like(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector [1, C], shaped to broadcast over x."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def prompt_tokens(
    params: Params,
    cfg: SamSizes,
    *,
    points: jax.Array | None = None,
    labels: jax.Array | None = None,
    boxes: jax.Array | None = None,
) -> jax.Array:
    """Tokens of P prompts for each of N images, [N, P, T, C]; T = points (+ 1 without boxes) +
    2 with boxes.

    points: float [N, P, K, 2], (x, y) in pixels of the model's input; labels: [N, P, K], FOREGROUND
    (also where labels are left out), BACKGROUND, NO_POINT or IGNORED (a token of zeros);
    boxes: float [N, P, 4], (x0, y0, x1, y1) likewise. Without either: [1, 1, 0, C].
    """
    tokens = []
    if points is not None:
        labels = jnp.ones(points.shape[:-1], jnp.int32) if labels is None else labels
        if boxes is None:  # the model was trained with one token more in the place of a box
            points = jnp.pad(points, ((0, 0), (0, 0), (0, 1), (0, 0)))
            labels = jnp.pad(labels, ((0, 0), (0, 0), (0, 1)), constant_values=NO_POINT)
        tokens.append(_points(params, cfg, points, labels))
    if boxes is not None:
        corners = rearrange(boxes, "n p (k xy) -> n p k xy", xy=2)
        x = _fourier((corners + 0.5) / cfg.prompt.image, params["fourier"]["prompt"])
        kinds = params["prompt"]["points"][2:4]
        tokens.append(x + rearrange(kinds, "k 1 c -> 1 1 k c"))
    if not tokens:
        return jnp.zeros((1, 1, 0, cfg.prompt.hidden))
    return jnp.concatenate(tokens, axis=2)


def prompt_masks(params: Params, cfg: SamSizes, masks: jax.Array | None = None) -> jax.Array:
    """What is added to an image's embeddings, [N, P, g, g, C], or [1, 1, 1, 1, C] without masks.

    masks: logits float [N, P, 4g, 4g], P being 1 for a mask that all prompts of an image share.
    """
    if masks is None:
        return rearrange(params["prompt"]["no_mask"], "1 c -> 1 1 1 1 c")
    p, act = params["prompt"]["mask"], ACTIVATIONS[cfg.prompt.act]
    x = patches(masks[..., None], p["conv1"])
    x = act(layer_norm(x, p["ln1"], cfg.prompt.eps))
    x = act(layer_norm(patches(x, p["conv2"]), p["ln2"], cfg.prompt.eps))
    return patches(x, p["conv3"])


def _attend(p: Params, q: jax.Array, k: jax.Array, v: jax.Array, heads: int) -> jax.Array:
    """Attention of q [N, P, S, D] to k, v [N, P or 1, T, D]."""
    q, k, v = (
        rearrange(linear(x, p[name]), "n p s (m c) -> n p m s c", m=heads)
        for name, x in (("q", q), ("k", k), ("v", v))
    )
    scores = q * q.shape[-1] ** -0.5 @ rearrange(k, "n p m t c -> n p m c t")
    return linear(rearrange(jax.nn.softmax(scores) @ v, "n p m s c -> n p s (m c)"), p["o"])


def _two_way(p: Params, cfg: DecoderConfig, tokens: jax.Array, image, places):
    """Tokens [N, P, T, D] and image [N, P or 1, g², D] after attending to each other."""
    attend = functools.partial(_attend, heads=cfg.heads)
    act, x = ACTIVATIONS[cfg.act], tokens
    for i in range(cfg.layers):
        layer = p["layers"][str(i)]
        if i == 0:
            x = attend(layer["self"], x, x, x)
        else:
            x = x + attend(layer["self"], x + tokens, x + tokens, x)
        x = layer_norm(x, layer["ln1"], cfg.eps)
        x = x + attend(layer["to_image"], x + tokens, image + places, image)
        x = layer_norm(x, layer["ln2"], cfg.eps)
        x = x + linear(act(linear(x, layer["fc1"])), layer["fc2"])
        x = layer_norm(x, layer["ln3"], cfg.eps)
        image = image + attend(layer["to_tokens"], image + places, x + tokens, x)
        image = layer_norm(image, layer["ln4"], cfg.eps)
    x = x + attend(p["final"]["to_image"], x + tokens, image + places, image)
    return layer_norm(x, p["final"]["ln"], FINAL_EPS), image


def _up(x: jax.Array, p: Params) -> jax.Array:
    """Transposed convolution of kernel and stride 2: [..., h, w, I] -> [..., 2h, 2w, O]."""
    b = rearrange(p["b"], "d -> 1 1 d")
    x = linear(x, {"w": p["w"], "b": jnp.broadcast_to(b, p["w"].shape[1:])})
    return rearrange(x, "... h w p q d -> ... (h p) (w q) d")


def _head(x: jax.Array, p: Params) -> jax.Array:
    for i in range(len(p)):
        x = linear(jax.nn.relu(x) if i else x, p[str(i)])
    return x


def decode(
    params: Params,
    cfg: SamSizes,
    embeddings: jax.Array,
    tokens: jax.Array,
    dense: jax.Array,
    *,
    multimask: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Masks of P prompts for each of N images, and the IoU that the model expects of each.

    embeddings: [N, g, g, C] of `encode`; tokens: of `prompt_tokens`; dense: of `prompt_masks`.
    Returns logits [N, P, M, 4g, 4g] (inside where positive) and IoU [N, P, M], with M the
    config's number of masks with `multimask`, else 1.
    """
    c, p, gelu = cfg.decoder, params["decoder"], ACTIVATIONS["gelu"]
    g = cfg.vision.grid
    own = jnp.concatenate([p["iou_token"], p["mask_tokens"]])
    n, prompts = embeddings.shape[0], tokens.shape[1]
    tokens = jnp.broadcast_to(tokens, (n, *tokens.shape[1:]))
    tokens = jnp.concatenate([repeat(own, "t c -> n p t c", n=n, p=prompts), tokens], axis=2)
    image = rearrange(embeddings[:, None] + dense, "n p h w c -> n p (h w) c")
    places = rearrange(image_positions(params, cfg), "h w c -> 1 1 (h w) c")
    x, image = _two_way(p, c, tokens, image, places)

    kept = slice(1, c.masks + 1) if multimask else slice(0, 1)
    iou = _head(x[:, :, 0], p["iou_head"])[..., kept]
    heads = jax.tree.map(lambda leaf: leaf[kept], p["mask_heads"])
    vectors = jax.vmap(_head, in_axes=(2, 0), out_axes=2)(x[:, :, 1:][:, :, kept], heads)
    image = rearrange(image, "n p (h w) c -> n p h w c", h=g)
    image = gelu(layer_norm(_up(image, p["up1"]), p["up_norm"], EPS))
    image = gelu(_up(image, p["up2"]))
    return jnp.einsum("npmc,nphwc->npmhw", vectors, image), iou
