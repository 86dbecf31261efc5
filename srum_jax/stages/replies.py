"""What a model replies to the requests of a suite, kept in a folder and not asked for twice.

Owns that folder: `images/` and `edits/` as shards, `scores/` of the images that the model's own
judge scores, `answers.json` and `texts.json`. Whoever was killed goes on with what is missing.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from srum_jax.config import Config
from srum_jax.core import console, files
from srum_jax.core.files import write_json
from srum_jax.data import shards
from srum_jax.evals.model_under_test import ModelUnderTest
from srum_jax.evals.suite import Replies, Requests
from srum_jax.stages import draw_and_judge, generate, judges, score, shard_worker
from srum_jax.stages.loading import LoadedModel

EDITS = "edits"  # the name of their shards


def model_under_test(loaded: LoadedModel, cfg: Config, mesh: jax.sharding.Mesh) -> ModelUnderTest:
    """A loaded model ready to be asked, as the config's `sample` and `evaluate` sections say."""
    batch = cfg.evaluate.batch
    return ModelUnderTest(
        layout=loaded.cfg.layout,
        tokenizer=loaded.tokenizer,
        batch=batch,
        sampler=loaded.image_sampler(cfg, mesh),
        scorer=loaded.answer_scorer(cfg, mesh, batch=batch),
        # All calls are full ones: empty rows cost less than a program for fewer.
        generator=loaded.text_generator(
            cfg, mesh, batch=batch, window=judges.WINDOW, min_rows=batch
        ),
        encoder=loaded.encoder(),
    )


def replies(
    requests: Requests,
    folder: epath.Path,
    loaded: LoadedModel,
    asked: ModelUnderTest,
    cfg: Config,
    mesh: jax.sharding.Mesh,
    *,
    title: str,
) -> Replies:
    """All replies of a model; what is found in `folder` is kept.

    asked: the model `loaded` in use, as `model_under_test` makes it · title: of the progress bars.
    """
    images: Sequence[dict[str, Any]] = ()
    if requests.images:
        generate.draw(
            [(one.prompt, one.k) for one in requests.images],
            folder / "images",
            asked.sampler,
            features=generate.features(loaded.cfg.layout, cfg.sample.size),
            shard_size=cfg.generate.shard_size,
            seed=cfg.evaluate.seed,
            title=f"{title} draws",
        )
        images = shards.read(folder / "images")
    scores: Sequence[dict[str, Any]] = ()
    if requests.scored:
        scores = own_scores(loaded, images[: requests.scored], folder / "scores", cfg, mesh)
    step = 4 * asked.batch
    edits: Sequence[np.ndarray] = ()
    if requests.edits:
        edits = _edits(requests, folder / "edits", asked, step, f"{title} edits")
    return Replies(
        images=images,
        answers=_texts(requests.answers, folder / "answers.json", asked.answers, step, title),
        texts=_texts(requests.texts, folder / "texts.json", asked.texts, step, title),
        edits=edits,
        scores=scores,
    )


def _texts(
    requests: Sequence,
    path: epath.Path,
    reply: Callable[[Sequence], list[str]],
    step: int,
    title: str,
) -> list[str]:
    """The replies at `path`; if they are not there, asked for in parts of `step` and written."""
    if not requests:
        return []
    kept = files.kept(path, list) or []
    if len(kept) == len(requests) and all(isinstance(r, dict) and "reply" in r for r in kept):
        return [record["reply"] for record in kept]
    found: list[str] = []
    off = jax.process_index() != 0
    desc = f"{title} {path.stem}"
    with console.progress(total=len(requests), desc=desc, unit="reply", shown=not off) as bar:
        for first in range(0, len(requests), step):
            part = requests[first : first + step]
            found += reply(part)
            bar.update(len(part))
    if not off:
        records = [
            {"id": one.id, "category": one.category, "reply": said}
            for one, said in zip(requests, found, strict=True)
        ]
        write_json(path, records)
    return found


def _edits(
    requests: Requests, folder: epath.Path, asked: ModelUnderTest, step: int, title: str
) -> Sequence[np.ndarray]:
    """Edited images uint8 [H,W,3], `step` of them a shard."""

    def make(first: int, count: int) -> list[dict[str, Any]]:
        part = requests.edits[first : first + count]
        return [
            {"id": one.id, "image": image}
            for one, image in zip(part, asked.edits(part), strict=True)
        ]

    sizes = shards.shard_sizes(len(requests.edits), step)
    shard_worker.make_all(
        folder,
        EDITS,
        shards.image_features(),
        sizes,
        make,
        title=title,
        encode=draw_and_judge.encoded,
    )
    return shards.read(folder).column("image")


def own_scores(
    loaded: LoadedModel,
    records: Sequence[dict[str, Any]],
    folder: epath.Path,
    cfg: Config,
    mesh: jax.sharding.Mesh,
) -> Sequence[dict[str, Any]]:
    """The model's own scores of candidates it drew, as the stage `score` gives them.

    The model judges, whatever `score.judge` says. Decomposed prompts lie beside `folder`.
    """
    # Where that stage has run, the other proposers are measured on its records.
    proposers = cfg.score.proposers[: 1 if "score" in cfg.stages else None]
    how = dataclasses.replace(cfg.score, proposers=proposers, judge="self", compare=0)
    own = dataclasses.replace(cfg, score=how)
    prompts = [record["prompt"] for record in records]
    scenes = judges.decomposed(prompts, loaded, own, mesh, folder.parent / score.SCENES)
    panel = judges.panel(loaded, own, mesh, scenes=scenes)
    score.score(records, folder, how, panel)
    return shards.read(folder)
