"""Images by themselves: what a client may say to draw, edit and score, and what it gets."""

import dataclasses
import math
import time
from typing import Annotated, Any, Literal

from srum_jax.core.constraints import AtLeast
from srum_jax.scoring import ImageScore
from srum_jax.serving import fields, pictures
from srum_jax.serving.limits import Limits
from srum_jax.serving.pictures import Bytes, Link
from srum_jax.serving.refusals import Refusal
from srum_jax.serving.sampler_fields import NAMES, SamplerFields

IGNORED = ("user", "metadata")
FIXED = {
    "quality": ("auto", "standard"),
    "style": ("vivid",),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "output_format": ("png",),
    "input_fidelity": ("high",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationFields(SamplerFields):
    """The fields of `images/generations`. temperature, top_k: of models that draw tokens."""

    prompt: str
    temperature: float | None = None
    top_k: Annotated[int, AtLeast(0)] | None = None
    model: str = ""
    n: Annotated[int, AtLeast(1)] = 1
    response_format: Literal["b64_json"] = "b64_json"
    stream: bool = False

    def names(self) -> dict[str, str]:
        return NAMES | {"temperature": "temperature", "top_k": "top_k"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreFields:
    """The fields of `score`: how well does an image, as a URL, fit a prompt?"""

    prompt: str
    image: Any
    model: str = ""


def read(given: dict[str, Any], limits: Limits) -> GenerationFields:
    """What is to be drawn. Raises Refusal 400 naming the field."""
    told = fields.read(GenerationFields, given, ignored=IGNORED, fixed=FIXED)
    fields.text(told.prompt, "prompt", empty=False)
    if told.n > limits.drawn:
        few = f"n must be at most {limits.drawn}, got {told.n}"
        raise Refusal(400, few, param="n", code="invalid_value")
    if told.partial_images and not told.stream:
        raise Refusal(400, "partial_images: give stream = true too", param="partial_images")
    if told.partial_images > 16:
        raise Refusal(400, "partial_images must be at most 16", param="partial_images")
    return told


def read_score(given: dict[str, Any]) -> tuple[ScoreFields, Bytes | Link]:
    """What is to be scored. Raises Refusal 400 naming the field."""
    told = fields.read(ScoreFields, given, ignored=IGNORED)
    fields.text(told.prompt, "prompt", empty=False)
    return told, pictures.of_url(told.image, "image")


def entry(picture: str, seed: int, thought: str = "") -> dict[str, Any]:
    """An image as clients get it; picture: PNG in base64 · seed: of its noise, 32 bits."""
    said: dict[str, Any] = {"b64_json": picture, "noise_seed": seed}
    return said | ({"reasoning_content": thought} if thought else {})


def drawn(entries: list[dict[str, Any]], seed: int, size: tuple[int, int]) -> dict[str, Any]:
    """The reply to a request; seed: what `seed` must be for the same again."""
    height, width = size
    said = {"created": int(time.time()), "data": entries, "seed": seed}
    return said | {"size": f"{width}x{height}", "output_format": "png"}


def scored(found: ImageScore, model: str) -> dict[str, Any]:
    """A score as JSON: what is not a number is null, its status says why."""

    def number(x: float) -> float | None:
        return None if math.isnan(x) else float(x)

    regions = [
        {"box": [float(x) for x in r.box], "score": number(r.score), "status": r.status}
        for r in found.regions
    ]
    said = {"object": "score", "model": model, "created": int(time.time())}
    said |= {"score": number(found.score), "status": found.status, "regions": regions}
    return said
