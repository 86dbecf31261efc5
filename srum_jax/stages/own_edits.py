"""The model's own edits, drawn beside the candidates for rows that are replayed (`replay.py`).

Owns what `generate.edits` asks for: how the model that a round starts from draws those edits, as
shards in the folder `edits` of the stage `generate`. Nobody judges them: what the model does with
an edit, right or wrong, is what is kept.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from srum_jax import disk, programs
from srum_jax.config import Config
from srum_jax.core.errors import BadInput
from srum_jax.data import edits, languages, packing, records, shards, sources
from srum_jax.data.edits import Edit
from srum_jax.data.images import encode_png, latent_image, picture
from srum_jax.data.schema import Example, LayoutSizes
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import families
from srum_jax.generation.image_request import ImageRequest, guidance_contexts
from srum_jax.generation.image_sampler import candidate_seed
from srum_jax.models.bagel import hf
from srum_jax.stages import loading, shard_worker
from srum_jax.stages.loading import LoadedModel
from srum_jax.stages.preflight import Checks, Cost
from srum_jax.stages.replay import NAME


def wanted(cfg: Config) -> tuple[Edit, ...]:
    """The edits that a round draws, the same in each. Raises as `edits.read`."""
    c = cfg.generate
    return edits.read(c.edits, c.edit_count) if c.edits else ()


def check(cfg: Config, weights: hf.Parts, found: Checks) -> None:
    """A model that edits, instructions that it can read, lanes that hold each with its picture."""
    if not cfg.generate.edits:
        return
    if why := families.find(weights.folder, weights.base).ONLY_WORDS:
        raise BadInput(f'generate.edits = "{cfg.generate.edits}": {why}; leave it out')
    asked, language = wanted(cfg), loading.language(weights)
    sizes, tokenizer = loading.described(weights)
    faults, count = [], 0
    for one in asked:
        try:
            made = shape_alone(one, sizes.layout, tokenizer, language)
            count += 2 * disk.picture_bytes(made.items[-1].size, sizes.layout)
            if "train" in cfg.stages and cfg.train.replay:
                lanes = programs.lanes(cfg.train)
                packing.check_fits(packing.size(made), lanes, what=f"train.lanes: {one.where}")
        except (ValueError, OSError) as e:
            faults.append(str(e) if one.where in str(e) else f"{one.where}: {e}")
    records.refuse(faults, "these edits cannot be drawn or trained on")
    found.costs.append(Cost("generate", f"{len(asked):,} edits", count))


def draw(
    asked: Sequence[Edit],
    folder: epath.Path,
    loaded: LoadedModel,
    cfg: Config,
    mesh: jax.sharding.Mesh,
    *,
    seed: int,
) -> None:
    """Draws the edits into shards of `folder`, going on where it stopped; seed: of the run."""
    sampler, encoder = loaded.image_sampler(cfg, mesh), loaded.encoder()
    layout, told = loaded.cfg.layout, loaded.generation_config
    settings, language = loading.editing(told, cfg), told.language

    def make(first: int, count: int) -> list[dict[str, Any]]:
        part = asked[first : first + count]
        before, requests = [], []
        for one in part:
            image = one.image()
            source = encoder.encode(latent_image(image, layout))
            words = loaded.tokenizer.text(_read(one, language))
            contexts = guidance_contexts((source, picture(image, layout), words))
            noise = candidate_seed(seed, f"edit {one.id}", 0)
            requests.append(ImageRequest(**contexts, size=source.size, seed=noise))
            before.append({"source": image, "source_latent": source.tokens})
        drawn = sampler.sample(requests, settings=settings)
        return [
            {"id": str(one.id), "instruction": _read(one, language), **known}
            | {"image": new.image, "latent": new.latent}
            for one, known, new in zip(part, before, drawn, strict=True)
        ]

    sizes = shards.shard_sizes(len(asked), cfg.generate.shard_size)
    how = dict(title="generate, edits", encode=_encoded)
    features = edits.features(layout.token_dim)
    shard_worker.make_all(folder, NAME, features, sizes, shard_worker.one_by_one(make), **how)


def _read(one: Edit, language: str) -> str:
    """The instruction in a model's words. Raises BadInput where it has none for it."""
    return languages.normalise(language, one.instruction, "instruction")


def _encoded(record: dict[str, Any]) -> dict[str, Any]:
    return record | {name: encode_png(record[name]) for name in ("source", "image")}


def shape_alone(
    one: Edit, layout: LayoutSizes, tokenizer: Tokenizer, language: str = ""
) -> Example:
    """The sample of an edit that is not drawn yet: what it takes of a row."""
    image = one.image()
    size = latent_image(image, layout).shape[:2]
    grid = tuple(side // layout.token_pixels for side in size)
    latent = np.broadcast_to(np.float32(0), (*grid, layout.token_dim))
    how = dict(size=size, noise_id=0)
    return sources.edit(tokenizer, layout, image, latent, _read(one, language), latent, **how)
