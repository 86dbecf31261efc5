"""Stage `ingest`: given pictures become what `generate` and `score` leave, shard by shard.

Reads the released SRUM data set or Parquet files of pictures with captions, and encodes each
picture once by the model's autoencoder. Leaves shards "candidates" and, where the data has scores,
shards "scores" under scores/, which `train` finds in the place of those stages' own. The pictures
that are stored are those that were encoded, and boxes are moved as their picture was resized.

First everything is read and checked, and what cannot be used is set aside in rejects.jsonl; which
samples are left, and in which shards, is kept in plan.json. A shard holds pictures of one size, so
that every call of the autoencoder has a fixed shape. prompt_id numbers the different prompts, k the
pictures of a prompt.
"""

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from srum_jax import config_history, disk
from srum_jax.config import Config, hash_json
from srum_jax.core import console, distributed, files, sharding
from srum_jax.core.distributed import barrier
from srum_jax.core.files import read_json, write_json
from srum_jax.data import images as pictures
from srum_jax.data import masks, records, shards
from srum_jax.data.parquet import Parquet
from srum_jax.data.prompt_reader import PromptReader
from srum_jax.data.prompts import Prompt
from srum_jax.data.records import Reject
from srum_jax.data.schema import LayoutSizes
from srum_jax.data.srum_dataset import ImageSample, ScoredBox, SrumDataset
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation.image_codec import ImageEncoder
from srum_jax.generation.image_sampler import candidate_seed
from srum_jax.rewards import judge
from srum_jax.stages import (
    draw_and_judge,
    generate,
    loading,
    preflight,
    rollout,
    score,
    shard_worker,
)
from srum_jax.stages.manifest import (
    PUBLISHED,
    Manifest,
    Outcome,
    Workdir,
    run_stage,
)
from srum_jax.stages.preflight import Checks, Cost

SCORES = "scores"  # the folder of the scores' shards inside the stage's
REMEMBERED = ".source.json"  # in the run's folder: which source was fingerprinted
FIRST = 8  # samples whose pictures are looked at before the run
NO_BOX = "no box"  # status of a reward without a usable box, which the released reader skips too

Source = SrumDataset | Parquet


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedSample:
    """A sample that is used: its place in the source, its numbers, its size (H, W) when encoded."""

    place: int
    prompt_id: int
    k: int
    height: int
    width: int

    @property
    def id(self) -> str:
        """As candidates are named."""
        return f"{self.prompt_id}-{self.k}"


@dataclasses.dataclass(frozen=True)
class IngestPlan:
    """The samples of every shard. `targets`: some sample has a good picture beside its own."""

    shards: tuple[tuple[PlannedSample, ...], ...]
    prompts: tuple[str, ...]  # by prompt_id
    targets: bool
    rejects: tuple[Reject, ...]


def check(cfg: Config, work: Workdir, found: Checks) -> None:
    """Weights and a source that are there, room for its pictures; all but the first of them are
    looked at when the stage runs."""
    weights = preflight.weights(cfg, work, found)
    with found.noting():
        source = open_source(cfg)
        if weights:
            found.costs += expected(source, cfg.ingest.latents, preflight.layout(weights))


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Encodes every usable sample of the source; finished shards are kept.

    Raises FileNotFoundError or ValueError where the source or the weights cannot be used, and where
    more samples are faulty than `ingest.rejects` allows.
    """
    source = open_source(cfg)
    weights = loading.source(cfg, work)
    inputs = {
        "source": digest(source, work.root / REMEMBERED),
        "model": loading.fingerprint(*weights.folders),
    }

    def body(folder: epath.Path) -> Outcome:
        sizes, tokenizer = loading.described(weights)
        layout = sizes.layout
        key = hash_json([inputs, cfg.ingest.shard_size, cfg.ingest.latents, cfg.seed])
        plan = planned(source, folder, key, cfg, layout, tokenizer)
        here = sharding.row_mesh(mesh)
        with jax.set_mesh(here), loading.measured() as spent:
            loaded = loading.base(cfg, work, here, want=("vae",))
            outcome = ingest(source, plan, folder, cfg, loaded, here)
        return dataclasses.replace(outcome, **dataclasses.asdict(spent))

    sections = ("model", "seed", "ingest")
    return run_stage("ingest", cfg, work, sections=sections, inputs=inputs, body=body)


def digest(source: Source, kept: epath.Path) -> str:
    """What names the source's content. The first process reads it for all, and remembers it in
    `kept`."""
    found = source.digest(kept) if jax.process_index() == 0 else ""
    return distributed.from_first(found, "ingest: the source")


def expected(source: Source, latents: str, layout: LayoutSizes) -> list[Cost]:
    """What will be written, about: every sample as large as the first FIRST are; nothing where none
    of these can be used."""
    sizes = []
    for place in range(min(FIRST, len(source))):
        try:
            sample = fitted(source[place], layout)
        except ValueError:  # counted when the stage runs
            continue
        arrays = (1 + (sample.target is not None)) * (1 + (latents == "resample"))
        size = sample.image.shape[:2]
        sizes.append(disk.picture_bytes(size, layout, latents=arrays))
    if not sizes:
        return []
    what = f"{len(source):,} pictures, their sizes as those of the first {len(sizes)}"
    return [Cost("ingest", what, len(source) * sum(sizes) // len(sizes))]


def open_source(cfg: Config) -> Source:
    """The source that `ingest.source` names. Raises FileNotFoundError or ValueError."""
    kind, _, path = cfg.ingest.source.partition(":")
    if kind == "parquet":
        return Parquet(path, cfg.seed)
    return SrumDataset(path, cfg.ingest.images or epath.Path(path).parent)


# ------------------------------------------------------------------------------------------- plan


def planned(
    source: Source,
    folder: epath.Path,
    key: str,
    cfg: Config,
    layout: LayoutSizes,
    tokenizer: Tokenizer,
) -> IngestPlan:
    """The plan in `folder` if it was made for `key`; otherwise a new one, of an emptied folder.

    The first process reads the source for it, the others what that one wrote.
    """
    path = folder / "plan.json"
    if jax.process_index() == 0 and not _planned_for(key, path):
        made = _stored(key, make_plan(source, cfg, layout, tokenizer))
        for old in [*folder.glob("*.array_record-*"), *(folder / SCORES).glob("*.array_record-*")]:
            old.unlink()  # of another plan: numbers and places differ
        files.write_bytes(path, map(str.encode, made))
    barrier("ingest is planned")  # before a shard is made, those of another plan are gone
    return _restored(read_json(path)["plan"], path)


def _planned_for(key: str, path: epath.Path) -> bool:
    """Whether the plan at `path` is whole and was made for `key`."""
    found = files.kept(path)
    if found is None or found.get("key") != key:
        return False
    try:
        _restored(found["plan"], path)
    except (KeyError, TypeError, AttributeError) as e:
        logging.warning("%s: damaged (%r); made again", path, e)
        return False
    return True


def _stored(key: str, plan: IngestPlan) -> Iterator[str]:
    """The JSON of a plan, of which a shard at a time is a text: all at once they take several times
    the plan's room. A sample is its fields in order."""
    rest = {
        "prompts": plan.prompts,
        "targets": plan.targets,
        "rejects": [dataclasses.asdict(one) for one in plan.rejects],
    }
    yield f'{{"key": {json.dumps(key)}, "plan": {json.dumps(rest)[:-1]}, "shards": [\n'
    for number, shard in enumerate(plan.shards):
        yield ",\n" * bool(number) + json.dumps([dataclasses.astuple(one) for one in shard])
    yield "\n]}}\n"


def _sample(stored: Sequence[int] | Mapping[str, int]) -> PlannedSample:
    """Fields in order, or by name, as older plans have them."""
    return PlannedSample(**stored) if isinstance(stored, Mapping) else PlannedSample(*stored)


def _restored(values: Mapping[str, Any], path: epath.Path) -> IngestPlan:
    if "shards" not in values and "units" in values:
        config_history.warn(f'{path}: "units"', '"shards"')
        values = {**values, "shards": values["units"]}
    return IngestPlan(
        shards=tuple(tuple(map(_sample, shard)) for shard in values["shards"]),
        prompts=tuple(values["prompts"]),
        targets=values["targets"],
        rejects=tuple(Reject(**r) for r in values["rejects"]),
    )


def make_plan(source: Source, cfg: Config, layout: LayoutSizes, tokenizer: Tokenizer) -> IngestPlan:
    """Reads every sample once; those of one size, in the source's order, share shards.

    Raises ValueError for more faulty samples than `ingest.rejects` allows, or no usable one.
    """
    entries, rejects, prompts, targets = [], [], {}, False
    drawn: collections.Counter[int] = collections.Counter()
    for place in console.progress(range(len(source)), desc="ingest: check", unit="img"):
        try:
            sample = fitted(source[place], layout)
            tokenizer.encode(sample.prompt)
        except ValueError as e:
            rejects.append(source.reject(place, e))
            continue
        number = prompts.setdefault(sample.prompt, len(prompts))
        entries.append(PlannedSample(place, number, drawn[number], *sample.image.shape[:2]))
        drawn[number] += 1
        targets |= sample.target is not None
    name = cfg.ingest.source
    records.check_limit(rejects, len(source), cfg.ingest.rejects, f"{name}: cannot be used")
    if not entries:
        raise ValueError(f"{name}: no samples in it")
    if rejects:
        logging.warning("%s: %d of %d samples set aside", name, len(rejects), len(source))
    return IngestPlan(
        in_shards(entries, cfg.ingest.shard_size), tuple(prompts), targets, tuple(rejects)
    )


def in_shards(
    entries: Sequence[PlannedSample], shard_size: int
) -> tuple[tuple[PlannedSample, ...], ...]:
    """Groups of at most `shard_size` entries of one size, in the order in which the source has
    their last ones: who reads it once has every group whole when its turn comes."""
    by_size: dict[tuple[int, int], list[PlannedSample]] = {}
    for entry in entries:
        by_size.setdefault((entry.height, entry.width), []).append(entry)
    groups = (
        tuple(group[start : start + shard_size])
        for group in by_size.values()
        for start in range(0, len(group), shard_size)
    )
    return tuple(sorted(groups, key=lambda group: group[-1].place))


def fitted(sample: ImageSample, layout: LayoutSizes) -> ImageSample:
    """`sample` with its pictures as the autoencoder takes them, and its boxes moved alike.

    Raises ValueError where the good picture comes to another size.
    """
    image = pictures.latent_image(sample.image, layout)
    target = sample.target
    if target is not None:
        target = pictures.latent_image(target, layout)
        if target.shape != image.shape:
            sizes = [f"{x.shape[1]}x{x.shape[0]}" for x in (image, target)]
            raise ValueError(
                f'"good_image_file" comes to {sizes[1]} pixels, "bad_image_file" to {sizes[0]}: '
                "they must have one shape"
            )

    def move(region: ScoredBox) -> ScoredBox:
        if region.bbox is None:
            return region
        (box,) = masks.latent_boxes(np.array([region.bbox]), sample.image.shape[:2], layout)
        return dataclasses.replace(region, bbox=tuple(map(int, box)))

    regions = tuple(map(move, sample.regions))
    return dataclasses.replace(sample, image=image, target=target, regions=regions)


# ----------------------------------------------------------------------------------------- encode


def ingest(
    source: Source,
    plan: IngestPlan,
    folder: epath.Path,
    cfg: Config,
    loaded: loading.LoadedModel,
    mesh: jax.sharding.Mesh,
) -> Outcome:
    """Writes the shards of `plan` that are not there yet, and what lies beside them."""
    c, shared = cfg.ingest, []
    if jax.process_index() == 0:
        language = loading.language(loaded.source)
        shared = write_beside(plan, folder, cfg, loaded.tokenizer, language)
    entries = list(itertools.chain(*plan.shards))
    sizes = [len(shard) for shard in plan.shards]
    encoder = loaded.encoder(c.batch, mesh)
    also = ["target"] if plan.targets else []
    if c.latents == "resample":
        also += [f"{name}_std" for name in ("latent", *also)]

    def samples(first: int, count: int) -> list[tuple[PlannedSample, ImageSample]]:
        part = entries[first : first + count]
        return [(entry, fitted(source[entry.place], loaded.cfg.layout)) for entry in part]

    def drawn(first: int, count: int) -> list[dict[str, Any]]:
        shard = samples(first, count)
        return candidates(shard, encoder, c.latents, seed=cfg.seed, targets=plan.targets)

    encode = draw_and_judge.encoded

    def judged(first: int, count: int) -> list[dict[str, Any]]:
        return [score_record(*pair) for pair in samples(first, count)]

    if isinstance(source, Parquet):
        mine = plan.shards[jax.process_index() :: jax.process_count()]
        source.expect([entry.place for shard in mine for entry in shard])
    shape = (None, None, loaded.cfg.token_dim)
    features = shards.candidate_features(shape, also=dict.fromkeys(also, shape))
    work = shard_worker.one_by_one(drawn)
    shard_worker.make_all(
        folder, generate.NAME, features, sizes, work, title="ingest", encode=encode
    )
    outputs, counts = {"candidates": ".", "held_back": "held_back.json"}, {}
    if source.judged:
        scores, features = folder / SCORES, shards.score_features()
        work = shard_worker.one_by_one(judged)
        shard_worker.make_all(scores, score.NAME, features, sizes, work, title="ingest: scores")
        outputs["scores"], counts = SCORES, statuses(scores)
    return Outcome(
        outputs,
        counts={
            "prompts": len(plan.prompts),
            "candidates": len(entries),
            "sizes": len({(e.height, e.width) for e in entries}),
            **counts,
            **generate.counted(plan.rejects, shared),
        },
        items=len(entries),
    )


def write_beside(
    plan: IngestPlan, folder: epath.Path, cfg: Config, tokenizer: Tokenizer, language: str
) -> list:
    """Writes what lies beside the shards, and returns the prompts that are also evaluated on.

    language: the one that the model reads, in which prompts are compared.

    The prompts held back for the training monitor are the last ones; `train` leaves their pictures
    out, where there are prompts enough to spare some.
    """
    prompts = [
        Prompt(i, text, "ingested", f"{cfg.ingest.source}, prompt {i}")
        for i, text in enumerate(plan.prompts)
    ]
    count = rollout.spare(len(prompts)) or rollout.HELD_BACK
    held = generate.readable(prompts[-count:], PromptReader(tokenizer=tokenizer))
    write_json(folder / "held_back.json", held)
    shared = generate.leaks(cfg, prompts, language)
    generate.write_findings(folder, plan.rejects, shared)
    return shared


def statuses(scores: epath.Path) -> dict[str, int]:
    """{"regions", "regions <status>"} of the finished scores."""
    found = score.count_statuses(shards.read(scores), PUBLISHED)
    return {name: count for name, count in found.items() if name.startswith("regions")}


def candidates(
    shard: Sequence[tuple[PlannedSample, ImageSample]],
    encoder: ImageEncoder,
    kind: str,
    *,
    seed: int,
    targets: bool,
) -> list[dict[str, Any]]:
    """A shard's candidate records, images as arrays; kind: `ingest.latents`."""
    samples = [sample for _, sample in shard]
    mean, std = encoder.moments([s.image for s in samples])
    seeds = [candidate_seed(seed, entry.prompt_id, entry.k) for entry, _ in shard]
    latents = stored("latent", mean, std, kind, seeds)
    if targets:
        # A sample without a good picture is its own: the same latents, not encoded again.
        other = [i for i, s in enumerate(samples) if s.target is not None]
        good_mean, good_std = mean.copy(), std.copy()
        if other:
            good_mean[other], good_std[other] = encoder.moments([samples[i].target for i in other])
        latents |= stored("target", good_mean, good_std, kind, seeds)
    return [
        {
            "id": entry.id,
            "prompt_id": entry.prompt_id,
            "prompt": sample.prompt,
            "category": sample.category,
            "k": entry.k,
            "seed": number,
            "image": sample.image,
            **{name: values[i] for name, values in latents.items()},
        }
        for i, ((entry, sample), number) in enumerate(zip(shard, seeds, strict=True))
    ]


def stored(
    name: str, mean: np.ndarray, std: np.ndarray, kind: str, seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """What records keep of posteriors, mean and std [N,h,w,d]: one draw each if "sampled"."""
    if kind == "resample":
        return {name: mean, f"{name}_std": std}
    if kind == "sampled":
        shape = mean.shape[1:]
        noise = [np.random.default_rng(s).standard_normal(shape, np.float32) for s in seeds]
        return {name: mean + std * np.stack(noise)}
    return {name: mean}


def score_record(entry: PlannedSample, sample: ImageSample) -> dict[str, Any]:
    """A sample's scores as `score` writes them; a reward without a box is a region without one."""
    return {
        "id": entry.id,
        "prompt_id": entry.prompt_id,
        "k": entry.k,
        "regions": [
            {
                "bbox": np.array(region.bbox or (0, 0, 0, 0), np.float32),
                "score": np.float32(region.score if region.bbox else np.nan),
                "status": judge.OK if region.bbox else NO_BOX,
                "label": region.label,
                "proposer": PUBLISHED,
            }
            for region in sample.regions
        ],
        "image_score": np.float32(sample.image_score),
        "image_status": judge.OK,
    }
