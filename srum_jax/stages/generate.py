"""Stage `generate`: the model draws K candidates of every prompt, work unit by work unit.

Leaves units "candidates" beside TFDS metadata: pictures as PNG and the latents they were decoded
from. A candidate is a function of the weights, the prompt, the run's seed, the round and its
number k. A round takes the prompts that follow those of the round before; a list that ends begins
again, with other noise. Beside them, in held_back.json, prompts that no round draws.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from tqdm import tqdm

from srum_jax.config import Config
from srum_jax.core.files import write_json
from srum_jax.data import images as pictures
from srum_jax.data import prompts as prompt_lists
from srum_jax.data import units
from srum_jax.data.prompts import Prompt
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.inference.image import Paint, candidate_seed
from srum_jax.models.config import BagelConfig
from srum_jax.stages import model
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, run_stage

NAME = "candidates"
HELD_BACK = 64  # prompts at hand for looking at the model in training
Job = tuple[Prompt, int]  # a prompt and the number k of its candidate


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Draws every candidate of this round; finished units are kept.

    Raises FileNotFoundError or ValueError where the weights or the prompts cannot be used.
    """
    count = cfg.generate.count
    wanted = prompt_lists.load(cfg.generate.prompts, count, first=work.round * count)
    weights = model.source(cfg, work)
    # Before anything is written: prompts put right afterwards would look like a changed run.
    tokenizer = Tokenizer.from_folder(weights.words)
    prompt_lists.check(wanted, tokenizer)
    inputs = {"model": model.fingerprint(*weights.folders), "prompts": prompt_lists.digest(wanted)}

    def body(folder: epath.Path) -> Outcome:
        jobs = [(prompt, k) for prompt in wanted for k in range(cfg.generate.candidates)]
        if jax.process_index() == 0:
            write_json(folder / "held_back.json", held_back(cfg, tokenizer))
        opened = model.base(cfg, work, mesh)
        with model.compile_clock() as compiling:
            draw(
                jobs,
                folder,
                model.painter(opened, guided(cfg, work.round), mesh),
                features=features(opened.cfg, cfg.sample.size),
                unit=cfg.generate.unit,
                seed=cfg.seed + work.round,
                title="generate",
            )
        return Outcome(
            outputs={"candidates": ".", "held_back": "held_back.json"},
            counts={"prompts": len(wanted), "candidates": len(jobs)},
            items=len(jobs),
            compile_seconds=sum(compiling),
        )

    sections = ("model", "seed", "sample", "generate", "compute.dtype")
    return run_stage("generate", cfg, work, sections=sections, inputs=inputs, body=body)


def held_back(cfg: Config, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """At most HELD_BACK records {id, prompt, category}: prompts after those that all rounds draw.

    Of a list too short for that its end, which is then drawn too. Without what the model cannot
    read.
    """
    drawn = cfg.rounds * cfg.generate.count
    found = prompt_lists.load(cfg.generate.prompts)
    if len(found) < drawn + HELD_BACK:
        logging.info(
            "generate: %s has %d prompts; of the %d held back for probes %d are drawn too",
            *(cfg.generate.prompts, len(found), min(HELD_BACK, len(found))),
            min(HELD_BACK, len(found), drawn + HELD_BACK - len(found)),
        )
    readable = []
    for prompt in found[: drawn + HELD_BACK][-HELD_BACK:]:
        try:
            tokenizer.encode(prompt.text)
        except ValueError:
            continue
        readable.append({"id": prompt.id, "prompt": prompt.text, "category": prompt.category})
    return readable


def guided(cfg: Config, round: int) -> Config:
    """`cfg` whose `sample` draws candidates: with the round's own guidance where one is given."""
    scales = cfg.generate.guidance or (cfg.sample.guidance,)
    scale = scales[min(round, len(scales) - 1)]
    return dataclasses.replace(cfg, sample=dataclasses.replace(cfg.sample, guidance=scale))


def features(cfg: BagelConfig, size: tuple[int, int]) -> Any:
    """TFDS features of a candidate of `size` (height, width in pixels) by a model of `cfg`."""
    height, width = (side // cfg.token_pixels for side in size)
    return units.candidate_features((height, width, cfg.token_dim))


def draw(
    jobs: Sequence[Job],
    folder: epath.PathLike,
    paint: Paint,
    *,
    features: Any,
    unit: int,
    seed: int,
    title: str,
) -> None:
    """Draws `jobs` into units of `folder`, going on where it stopped.

    unit: images a work unit · seed: of the run · title: of the progress bar. A unit is painted by
    one call, so its bits do not depend on where a run was interrupted.
    """
    sizes = units.unit_sizes(len(jobs), unit)
    starts = list(itertools.accumulate(sizes, initial=0))
    todo = [
        u for u, size in enumerate(sizes) if not units.unit_done(folder, NAME, u, len(sizes), size)
    ]
    left = sum(sizes[u] for u in todo)
    first = jax.process_index() == 0  # only the first process writes
    bar = tqdm(
        total=len(jobs),
        initial=len(jobs) - left,
        desc=title,
        unit="img",
        dynamic_ncols=True,
        disable=not first,
    )
    with bar:
        for u in todo:
            records = draw_unit(jobs[starts[u] : starts[u + 1]], paint, seed)
            if first:
                units.write_unit(folder, NAME, features, records, u, len(sizes))
            bar.update(sizes[u])
    if first:
        units.finish(folder, NAME, features, sizes)


def draw_unit(jobs: Sequence[Job], paint: Paint, seed: int) -> list[dict[str, Any]]:
    """One candidate record per job, by one call of `paint`."""
    seeds = [candidate_seed(seed, prompt.id, k) for prompt, k in jobs]
    images, latents = paint([prompt.text for prompt, _ in jobs], seeds)
    return [
        {
            "id": f"{prompt.id}-{k}",
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            "category": prompt.category,
            "k": k,
            "seed": number,
            "image": pictures.encode_png(picture),
            "latent": latent,
        }
        for (prompt, k), number, picture, latent in zip(jobs, seeds, images, latents, strict=True)
    ]
