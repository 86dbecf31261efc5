"""Stage `generate`, the rollout: the model samples K candidates of every prompt, shard by shard.

Leaves shards "candidates" beside TFDS metadata: pictures as PNG and the latents they were decoded
from. A candidate is a function of the weights, the prompt, the run's seed, the round and its
number k. A round takes the prompts that follow those of the round before; a list that ends begins
again, with other noise. Beside them held_back.json, prompts that no round draws, and where there
are any, rejects.jsonl, the lines of the prompts' file that are none, and leaks.json, the drawn
prompts that the run will also be evaluated on. With `generate.edits` own edits too, in `edits/`
(`own_edits.py`).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

from srum_jax import disk, programs
from srum_jax.config import Config, GenerateConfig
from srum_jax.core.files import write_json
from srum_jax.data import edits, records, shards
from srum_jax.data import prompts as prompt_lists
from srum_jax.data.prompt_reader import PromptReader
from srum_jax.data.prompts import Prompt
from srum_jax.data.records import Reject
from srum_jax.data.schema import LayoutSizes
from srum_jax.generation import families
from srum_jax.generation.image_sampler import candidate_seed
from srum_jax.stages import (
    adjusted,
    draw_and_judge,
    focus,
    loading,
    own_edits,
    preflight,
    rollout,
    shard_worker,
    thinking,
    training_set,
    trajectories,
)
from srum_jax.stages.draw_and_judge import PromptSampler, SeededPrompt
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, run_stage
from srum_jax.stages.preflight import Checks, Cost
from srum_jax.stages.rollout import Rollout
from srum_jax.stages.trajectories import NoisyDrawing

NAME = "candidates"
Job = tuple[Prompt, int]  # a prompt and the number k of its candidate


def check(cfg: Config, work: Workdir, found: Checks) -> None:
    """Weights that are there, prompts that the model can read, room for the pictures, and lanes
    that can train on each."""
    c = cfg.generate
    weights = preflight.weights(cfg, work, found)
    if weights:
        with found.noting():
            own_edits.check(cfg, weights, found)
    with found.noting():
        reader = loading.prompt_reader(weights) if weights else PromptReader()
        plan = Rollout.of(cfg, reader)
        # Whichever a round may draw.
        count = None if adjusted.focuses(cfg) else cfg.rounds * c.count
        wanted = plan.drawable[:count]
        if plan.too_short and "train" in cfg.stages and cfg.train.monitor.prompts:
            found.notes.append(rollout.short(c.prompts, len(plan.drawable)))
        if weights:
            if c.think:
                family = families.find(weights.folder, weights.base)
                thinking.check(family, reader.tokenizer, "generate.think")
                plans = min(len(wanted), cfg.rounds * c.count)
                found.notes.append(
                    f"generate: {plans:,} plans in words, of at most {c.think_tokens:,} tokens each"
                )
            prompt_lists.check(wanted, reader)
            layout = preflight.layout(weights)
            count = min(len(wanted), cfg.rounds * c.count) * c.candidates
            kept = disk.candidate_latents(c)
            each = disk.picture_bytes(cfg.sample.size, layout, latents=kept)
            what = "{:,} pictures of {}x{}".format(count, *cfg.sample.size)
            found.costs.append(Cost("generate", what, count * each))
            if "train" in cfg.stages:
                texts = [(prompt.text, prompt.where) for prompt in wanted]
                lanes = programs.lanes(cfg.train)
                reads = loading.prompts(weights)
                training_set.check_lanes(
                    texts, reads, lanes, layout, cfg.sample.size, training_set.together(cfg.train)
                )


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Draws every candidate of this round; finished shards are kept.

    Raises FileNotFoundError or ValueError where the weights or the prompts cannot be used.
    """
    weights = loading.source(cfg, work)
    # Before anything is written: prompts put right afterwards would look like a changed run.
    reader = loading.prompt_reader(weights)
    plan = Rollout.of(cfg, reader)
    given, wanted = plan.given, plan.of_round(work.round, cfg.generate.count)
    if shares := adjusted.focus(cfg, work):
        wanted = focused(cfg, work, plan, shares)
    prompt_lists.check(wanted, reader)
    inputs = {
        "model": loading.fingerprint(*weights.folders),
        "prompts": prompt_lists.digest(wanted),
        **adjusted.inputs(cfg, work),
    }
    edited = own_edits.wanted(cfg)
    if edited:
        inputs["edits"] = edits.digest(edited)
    shared = leaks(cfg, wanted, reader.language)

    def body(folder: epath.Path) -> Outcome:
        jobs = [(prompt, k) for prompt in wanted for k in range(cfg.generate.candidates)]
        if jax.process_index() == 0:
            write_json(folder / "held_back.json", readable(plan.held_back, reader))
            write_findings(folder, given.rejects, shared)
        here = loading.own_mesh(cfg, work, mesh)
        with jax.set_mesh(here), loading.measured() as spent:
            loaded = loading.base(cfg, work, here)
            draw(
                jobs,
                folder,
                sampler(loaded, guided(cfg, work), here),
                features=features(loaded.cfg.layout, cfg.sample.size, cfg.generate),
                shard_size=cfg.generate.shard_size,
                seed=cfg.seed + work.round,
                title="generate",
            )
            if edited:
                at, seed = folder / own_edits.NAME, cfg.seed + work.round
                own_edits.draw(edited, at, loaded, adjusted.in_use(cfg, work), here, seed=seed)
        kept = {"edits": own_edits.NAME} if edited else {}
        return Outcome(
            outputs={"candidates": ".", "held_back": "held_back.json", **kept},
            counts={
                "prompts": len(wanted),
                "candidates": len(jobs),
                **({"edits": len(edited)} if edited else {}),
                **counted(given.rejects, shared, repeated=len(given.duplicates)),
            },
            items=len(jobs),
            **dataclasses.asdict(spent),
        )

    sections = ("model", "seed", "sample", "generate", "compute.dtype")
    return run_stage("generate", cfg, work, sections=sections, inputs=inputs, body=body)


def focused(
    cfg: Config, work: Workdir, plan: Rollout, shares: Mapping[str, float]
) -> tuple[Prompt, ...]:
    """The prompts of a later round, of each category its share: first those that no round before
    has drawn."""
    rounds = (dataclasses.replace(work, round=number) for number in range(work.round))
    drawn = {
        record["prompt_id"]
        for one in rounds
        for record in shards.read(one.stage("generate")).summaries()
    }
    return focus.select(plan.drawable, shares, cfg.generate.count, drawn)


def readable(prompts: Sequence[Prompt], reader: PromptReader) -> list[dict[str, Any]]:
    """Records {id, prompt, category} of the prompts that the model can read."""
    out = []
    for prompt in prompts:
        try:
            reader.check(prompt.text)
        except ValueError:
            continue
        out.append({"id": prompt.id, "prompt": prompt.text, "category": prompt.category})
    return out


# ------------------------------------------------------------------ what is wrong with the prompts


def leaks(cfg: Config, wanted: Sequence[Prompt], language: str = "") -> list[dict[str, str]]:
    """Prompts to train on that the run is also evaluated on: {"prompt", "trained", "evaluated"}.

    The last two say where each stands. Empty where the run has no evaluation, or its prompts are
    not on this machine.
    """
    if "evaluate" not in cfg.stages:
        return []
    try:
        reader = PromptReader(language)
        c = cfg.evaluate
        asked = prompt_lists.load(c.prompts, c.count, c.first, reader=reader)
    except FileNotFoundError as e:
        logging.info("evaluate.prompts are not here to compare with: %s", e)
        return []
    pairs = prompt_lists.leaks(wanted, asked)
    if pairs:
        logging.warning(
            "%d of %d prompts to train on are also in evaluate.prompts, the first %r (%s)",
            *(len(pairs), len(wanted), pairs[0][0].text, pairs[0][0].where),
        )
    return [{"prompt": a.text, "trained": a.where, "evaluated": b.where} for a, b in pairs]


def write_findings(folder: epath.Path, rejects: Sequence[Reject], shared: Sequence[Any]) -> None:
    """Writes rejects.jsonl and leaks.json; what is empty has no file."""
    records.write_rejects(folder / "rejects.jsonl", rejects)
    if shared:
        write_json(folder / "leaks.json", shared)
    else:
        (folder / "leaks.json").unlink(missing_ok=True)


def counted(rejects: Sequence[Reject], shared: Sequence[Any], **others: int) -> dict[str, int]:
    """What of it a manifest counts: everything that is not 0."""
    counts = {"rejected": len(rejects), "also evaluated on": len(shared), **others}
    return {name: count for name, count in counts.items() if count}


def guided(cfg: Config, work: Workdir) -> Config:
    """`cfg` whose `sample` draws candidates: with the round's own guidance where one is given, else
    with the one that the round before chose; with as many steps as candidates have."""
    scales = cfg.generate.guidance
    if cfg.generate.steps:
        sample = dataclasses.replace(cfg.sample, steps=cfg.generate.steps)
        cfg = dataclasses.replace(cfg, sample=sample)
    if not scales:
        return adjusted.in_use(cfg, work)
    scale = scales[min(work.round, len(scales) - 1)]
    return dataclasses.replace(cfg, sample=dataclasses.replace(cfg.sample, guidance=scale))


def sampler(
    loaded: loading.LoadedModel, cfg: Config, mesh: jax.sharding.Mesh
) -> PromptSampler | NoisyDrawing:
    """What draws the candidates of a run. Raises BadInput for a model that cannot."""
    c, found = cfg.generate, thinking.sampler(loaded, cfg, mesh)
    return NoisyDrawing(found, c.stochastic_steps, c.noise) if c.stochastic_steps else found


def features(layout: LayoutSizes, size: tuple[int, int], c: GenerateConfig | None = None) -> Any:
    """TFDS features of a candidate of `size` (height, width in pixels) of such a model, with the
    steps that are kept as `c` says."""
    height, width = (side // layout.token_pixels for side in size)
    latent = (height, width, layout.token_dim)
    return shards.candidate_features(latent, also=c and trajectories.shapes(c, latent))


def draw(
    jobs: Sequence[Job],
    folder: epath.PathLike,
    sampler: PromptSampler | NoisyDrawing,
    *,
    features: Any,
    shard_size: int,
    seed: int,
    title: str,
) -> None:
    """Draws `jobs` into shards of `folder`, going on where it stopped.

    shard_size: images a shard · seed: of the run · title: of the progress bar. A shard shares no
    call with others, so its bits do not depend on where a run was interrupted.
    """

    def make(ranges: shard_worker.Ranges) -> Iterator[list[dict[str, Any]]]:
        wanted = (seeded(jobs[first : first + count], seed) for first, count in ranges)
        if isinstance(sampler, NoisyDrawing):
            return sampler.records(wanted)
        return draw_and_judge.drawn(wanted, sampler)

    sizes = shards.shard_sizes(len(jobs), shard_size)
    shard_worker.make_all(
        folder, NAME, features, sizes, make, title=title, encode=draw_and_judge.encoded
    )


def seeded(jobs: Sequence[Job], seed: int) -> list[SeededPrompt]:
    """What is to be drawn of the jobs of a shard; seed: of the run."""
    return [
        SeededPrompt(p.id, p.text, p.category, k, candidate_seed(seed, p.id, k)) for p, k in jobs
    ]
