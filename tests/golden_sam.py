"""Golden cases of Segment Anything: a checkpoint folder with inputs and outputs of transformers.

Sections are "vision" (every layer and the embeddings), "positional", "no_mask", and each call of
the model, whose arrays are `<call>/…` in outputs.npz.
"""

import functools
import json
import pathlib

import jax
import numpy as np
from einops import rearrange
from golden_arrays import GoldenArrays

from srum_jax.rewards.boxes.sam import model as sam_model
from srum_jax.rewards.boxes.sam import vision as sam_vision
from srum_jax.rewards.boxes.sam import weights as sam_weights

TOLERANCE = dict(rtol=1e-4, atol=1e-4)


def is_case(folder: pathlib.Path) -> bool:
    """Whether a folder has a config.json of Segment Anything, and outputs."""
    try:
        kind = json.loads((folder / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return kind == "sam" and (folder / "outputs.npz").exists()


class SamCase(GoldenArrays):
    """One case; arrays are read when first used."""

    @functools.cached_property
    def calls(self) -> dict[str, list[str]]:
        """Call -> names of its arguments, where the case lists them."""
        path = self.folder / "meta.json"
        return json.loads(path.read_text()).get("calls", {}) if path.exists() else {}

    @functools.cached_property
    def model(self):
        """(sizes, parameters) through the loader that users go through."""
        return sam_weights.load(self.folder)

    @functools.cached_property
    def encoded(self):
        """(embeddings, hidden states) of the case's pixels."""
        cfg, params = self.model
        pixels = rearrange(self.inputs["pixel_values"], "n c h w -> n h w c")
        run = jax.jit(sam_vision.layers, static_argnums=1)
        return run(params["vision"], cfg.vision, pixels)

    def sections(self) -> list[str]:
        names = self.outputs.files
        found = ["vision"] if any(n.startswith(("vision_", "image_embed")) for n in names) else []
        found += ["positional"] if "image_positional_embeddings" in names else []
        found += ["no_mask"] if "dense_no_mask" in names else []
        return found + sorted({n.split("/")[0] for n in names if "/" in n})


def check(case: SamCase, section: str) -> None:
    {"vision": _vision, "positional": _positional, "no_mask": _no_mask}.get(
        section, functools.partial(_call, section=section)
    )(case)


def _vision(case: SamCase):
    embeddings, hidden = case.encoded
    for name in case.outputs.files:
        if name.startswith("vision_hidden"):
            layer = int(name.removeprefix("vision_hidden"))
            np.testing.assert_allclose(hidden[layer], case.outputs[name], **TOLERANCE, err_msg=name)
    if "image_embeddings" in case.outputs.files:
        ours = rearrange(embeddings, "n h w c -> n c h w")
        np.testing.assert_allclose(ours, case.outputs["image_embeddings"], **TOLERANCE)


def _positional(case: SamCase):
    cfg, params = case.model
    ours = rearrange(sam_model.image_positions(params, cfg), "h w c -> 1 c h w")
    want = case.outputs["image_positional_embeddings"]
    np.testing.assert_allclose(np.broadcast_to(ours, want.shape), want, **TOLERANCE)


def _no_mask(case: SamCase):
    cfg, params = case.model
    ours = rearrange(sam_model.prompt_masks(params, cfg), "1 1 h w c -> 1 c h w")
    want = case.outputs["dense_no_mask"]
    np.testing.assert_allclose(np.broadcast_to(ours, want.shape), want, **TOLERANCE)


def _arguments(case: SamCase, call: str) -> set[str]:
    """Names of a call's arguments: as the case lists them or, where it doesn't, by its name."""
    if call in case.calls:
        return set(case.calls[call])
    words = call.split("_")
    has = {
        "input_points": {"points", "point"} & set(words),
        "input_labels": {"points", "point"} & set(words) and "default" not in words,
        "input_boxes": {"boxes", "box"} & set(words),
        "input_masks": {"masks", "mask"} & set(words),
        "multimask_output": "single" in words,
    }
    return {name for name, there in has.items() if there}


def _call(case: SamCase, section: str):
    cfg, params = case.model
    arguments = _arguments(case, section)
    want = {n: case.outputs[f"{section}/{n}"] for n in ("pred_masks", "iou_scores")}
    tokens = case.outputs.get(f"{section}/sparse_embeddings")
    prompts = want["iou_scores"].shape[1]  # the first ones of the inputs, as with points
    given = {}
    if "input_points" in arguments:
        extra = 2 if "input_boxes" in arguments else 1
        first = 1 if section.startswith("one_") else None
        count = first if tokens is None else tokens.shape[2] - extra
        given["points"] = case.inputs["points"][:, :prompts, :count]
        if "input_labels" in arguments:
            given["labels"] = case.inputs["labels"][:, :prompts, :count]
    if "input_boxes" in arguments:
        given["boxes"] = case.inputs["boxes"][:, :prompts]
    masks = case.inputs["masks"] if "input_masks" in arguments else None

    @functools.partial(jax.jit, static_argnames="multimask")
    def run(params, embeddings, given, masks, multimask):
        tokens = sam_model.prompt_tokens(params, cfg, **given)
        dense = sam_model.prompt_masks(params, cfg, masks)
        return (
            tokens,
            dense,
            sam_model.decode(params, cfg, embeddings, tokens, dense, multimask=multimask),
        )

    ours, dense, (logits, iou) = run(
        params, case.encoded[0], given, masks, multimask="multimask_output" not in arguments
    )
    if tokens is not None:
        np.testing.assert_allclose(ours, tokens, **TOLERANCE)
    if f"{section}/dense_embeddings" in case.outputs.files:
        dense = rearrange(dense, "n 1 h w c -> n c h w")
        wanted = case.outputs[f"{section}/dense_embeddings"]
        np.testing.assert_allclose(np.broadcast_to(dense, wanted.shape), wanted, **TOLERANCE)
    np.testing.assert_allclose(logits, want["pred_masks"], **TOLERANCE)
    np.testing.assert_allclose(iou, want["iou_scores"], **TOLERANCE)
