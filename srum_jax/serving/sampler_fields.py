"""How an image is to be drawn, as a request says it: the fields that all drawing shares."""

import dataclasses
import re
from collections.abc import Collection
from typing import Annotated, Any

from srum_jax import inputs
from srum_jax.config import SampleConfig
from srum_jax.core.constraints import AtLeast, Between
from srum_jax.core.errors import BadInput, quoted
from srum_jax.generation import generation_config
from srum_jax.serving.limits import Limits
from srum_jax.serving.refusals import Refusal

Seed = Annotated[int, Between(-(2**63), 2**63)]
# Names that clients know -> fields of SampleConfig.
NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "image_guidance_scale": "image_guidance",
    "cfg_interval": "guidance_interval",
    "renorm": "renorm",
    "renorm_min": "renorm_min",
    "shift": "shift",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerFields:
    """size: "WIDTHxHEIGHT" in pixels, as OpenAI writes it, or "auto" · seed: of the noise; left
    out: one of chance · partial_images: pictures of the way that a stream shows · the others: as
    `SampleConfig` has them, left out: as the model says."""

    size: str = "auto"
    seed: Seed | None = None
    num_inference_steps: Annotated[int, AtLeast(1)] | None = None
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    cfg_interval: Any = None
    renorm: str | None = None
    renorm_min: float | None = None
    shift: float | None = None
    negative_prompt: str | None = None
    think: bool = False
    partial_images: Annotated[int, AtLeast(0)] = 0

    def names(self) -> dict[str, str]:
        """Fields of the sampler's own -> fields of `SampleConfig`."""
        return NAMES

    def settings(
        self, default: SampleConfig, limits: Limits, draws_by: Collection[str]
    ) -> SampleConfig:
        """The sampler's settings; draws_by: fields of `SampleConfig` that the model draws by.
        Raises Refusal 400 naming the field."""
        told = {}
        names = self.names()
        for name, field in names.items():
            value = getattr(self, name)
            if value is None:
                continue
            if field not in draws_by:
                known = ", ".join(key for key, of in names.items() if of in draws_by)
                other = f"{name}: this model does not draw by it, but by {known}; leave it out"
                raise Refusal(400, other, param=name, code="unsupported_value")
            told[field] = tuple(value) if isinstance(value, list) else value
            try:
                generation_config.changed(default, {field: told[field]}, where=name)
            except BadInput as e:
                raise Refusal(400, str(e).splitlines()[-1].strip(), param=name) from None
        if self.size != "auto":
            told["size"] = self._size()
        if told.get("steps", 0) > limits.steps:
            many = f"num_inference_steps must be at most {limits.steps}, got {told['steps']}"
            raise Refusal(400, many, param="num_inference_steps")
        return generation_config.changed(default, told, where="the sampler")

    def _size(self) -> tuple[int, int]:
        found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", self.size)
        if not found:
            told = f"size = {quoted(self.size)} is no WIDTHxHEIGHT, for example 1024x768"
            raise Refusal(400, told, param="size", code="invalid_value")
        return int(found[2]), int(found[1])

    def seeds(self, n: int, chance: int) -> list[int]:
        """The seed of each of n images, as `Model.generate` takes them."""
        return inputs.seeds(1, n, chance if self.seed is None else self.seed, None)[0]

    def shown(self, steps: int) -> frozenset[int]:
        """The steps after which a stream shows a picture: evenly spread, not the last."""
        count = min(self.partial_images, steps - 1)
        return frozenset(round(steps * (i + 1) / (count + 1)) for i in range(count))
