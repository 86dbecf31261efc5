"""What a model folder says of itself before its weights are loaded."""

import dataclasses
from types import ModuleType
from typing import Any

from etils import epath

from srum_jax import reading
from srum_jax.config import Config
from srum_jax.core import files, places
from srum_jax.data.prompt_reader import PromptReader
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context, families, generation_config, system_prompts
from srum_jax.generation.generation_config import GenerationConfig
from srum_jax.models.bagel.model_config import BagelConfig


@dataclasses.dataclass(frozen=True)
class Description:
    """What a model folder says without its weights: how it wants to be used, its sizes, its words.

    digest: 16 hex digits of the content of the folder, its base and its adapter, by
    `core.files.fingerprint` · family: a module as `generation/families.py` describes it.
    """

    generation_config: GenerationConfig
    cfg: BagelConfig
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    digest: str
    family: ModuleType = dataclasses.field(repr=False)

    @property
    def reader(self) -> reading.Reader:
        """What reads questions and the pictures they are about; nothing to be drawn."""
        return reading.Reader(self.generation_config, self.tokenizer, self.cfg.layout, None)

    def prompt_reader(self, think: bool) -> PromptReader:
        """What it can draw of a prompt, with `think` of one that it thinks about before."""
        told = self.generation_config
        window = min(told.window, self.cfg.max_text)
        if think:
            system = reading.system(self.tokenizer, system_prompts.THINK_GENERATION)
            window -= context.extent((system,))[0] + told.think_tokens + 1
        return PromptReader(told.language, self.tokenizer, window)


def describe(
    model: epath.PathLike = Config.model,
    base: epath.PathLike | None = None,
    adapter: epath.PathLike | None = None,
    **options: Any,
) -> Description:
    """What is known of a model before it is loaded; the arguments are those of `api.load`."""
    told = generation_config.updated(generation_settings(model, base), options, where="options")
    folders = [one for one in places.model_folders(model, base) if one is not None]
    family = families.find(*folders)
    cfg, tokenizer = family.describe(*folders)
    if adapter is not None:
        folders.append(places.model_folder(adapter, "the adapter"))
    return Description(told, cfg, tokenizer, files.model_fingerprint(*folders), family)


def generation_settings(
    model: epath.PathLike = Config.model, base: epath.PathLike | None = None
) -> GenerationConfig:
    """How a model wants to be used, and which language it reads, without loading it."""
    return generation_config.from_folder(*places.model_folders(model, base))
