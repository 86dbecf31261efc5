"""Stage `pretrain`: a base for the shapes world, by the joint objective.

The small setting's begins with random weights, the larger one's with those of the small one's base
or of the folder that `weights` names.
Cross-entropy on answers and captions, flow matching on pictures encoded once. Leaves the averaged
model in the Hugging Face layout under `model/`, rewritten at every evaluation, so that a run that
was stopped is usable.
"""

import dataclasses
import functools
import io
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from srum_jax import programs
from srum_jax.config import Config, OptimConfig, PackedConfig
from srum_jax.core import console, files, param_tree, registry, sharding
from srum_jax.data import packing, pipeline, sources
from srum_jax.data.schema import Branch, Example, Lanes, LayoutSizes, Picture
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import bagel as family
from srum_jax.generation.image_codec import ImageEncoder
from srum_jax.models.bagel import hf, model_config
from srum_jax.models.bagel import model as bagel
from srum_jax.objectives import joint, terms
from srum_jax.stages import loading, preflight, replies
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, run_stage
from srum_jax.stages.preflight import Checks
from srum_jax.worlds.shapes import changes, rendering
from srum_jax.worlds.shapes.examples import generation_example
from srum_jax.worlds.shapes.from_scratch import FromScratch
from srum_jax.worlds.shapes.own_drawings import (
    Drawings,
    crop_example,
    drawn,
    looked_at,
    picture_example,
)
from srum_jax.worlds.shapes.questions import Mix, understanding_example
from srum_jax.worlds.shapes.quick_evaluation import EXAM, QuickEvaluation
from srum_jax.worlds.shapes.setting import SETTINGS, SMALL, Setting

# Muon for the block matrices and Adam elsewhere; timesteps that train more on noise, which is
# decisive for small models.
RECIPE = PackedConfig(
    optim=OptimConfig(learning_rate=2e-3, adam_learning_rate=2e-3, warmup=100, schedule="cosine"),
    ema=0.998,
    timestep_mean=1.6,
    timestep_std=1.4,
    text_dropout=0.1,
)
TEXT_WEIGHT = 0.5  # of the cross-entropy beside the flow-matching loss


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """What a row of a step holds at most, and the sizes of its lanes.

    images: captions to draw · mix: of the picture that it reads, with its questions · several: it
    reads a clip or two pairs of pictures · crops: further pictures, of one object cut out, with
    their questions · edits: pictures to change · own, own_crops: what the base drew itself, whole
    and cut out, with questions.
    """

    lanes: Lanes
    images: int
    mix: Mix | None = None
    several: bool = False
    crops: int = 0
    edits: int = 0
    own: int = 0
    own_crops: int = 0


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Rows of most steps, and of every `every`-th; drawn: of all, where only drawing is learned;
    judged: of most, where only reading is."""

    usual: RowPlan
    other: RowPlan
    every: int
    drawn: RowPlan | None = None
    judged: RowPlan | None = None

    def rows(self, step: int, trainable: str = "all") -> RowPlan:
        """What the rows of a step hold, by pretrain.trainable."""
        if trainable == "gen":
            return self.drawn
        if step % self.every == self.every - 1:
            return self.other
        return self.judged if trainable == "und" else self.usual


CROPS = Mix(simple=0.0, pairs=0.0, crops=1.0, malformed=0.4, warped=0.5, questions=4)
# A picture has half the questions of a row's tokens to itself: an und lane is what is usual of it.
_LARGE = Mix(simple=0.25, pairs=0.2, crops=0.0, flawed=0.2, warped=0.5, questions=6)
PLANS = {
    "shapes": StepPlan(
        usual=RowPlan(
            Lanes(und=168, gen=64, vit=32, labels=40, images=4, regions=0),
            images=2,
            mix=Mix(questions=6),
            edits=1,
        ),
        other=RowPlan(
            Lanes(und=176, gen=32, vit=128, labels=24, images=2, regions=0),
            images=2,
            several=True,
        ),
        every=3,
    ),
    "shapes64": StepPlan(
        usual=RowPlan(
            Lanes(und=304, gen=128, vit=128, labels=56, images=2, regions=0),
            images=2,
            mix=_LARGE,
            crops=1,
        ),
        other=RowPlan(
            Lanes(und=272, gen=192, vit=128, labels=48, images=3, regions=0),
            images=1,
            mix=_LARGE,
            edits=1,
        ),
        every=4,
        drawn=RowPlan(
            Lanes(und=192, gen=448, vit=64, labels=8, images=7, regions=0), images=5, edits=1
        ),
        judged=RowPlan(
            Lanes(und=992, gen=64, vit=576, labels=96, images=1, regions=0),
            images=1,
            mix=_LARGE,
            crops=1,
            own=1,
            own_crops=6,
        ),
    ),
}
ENCODE_BATCH = 256
GAP = "Rows of `pretrain` hold branches of questions, which the next ones do not see"


def check(cfg: Config, work: Workdir, found: Checks) -> None:
    """Latents of an autoencoder that is there or will be, where the checkpoints go, and what writes
    the metrics."""
    if "autoencoder" in cfg.stages:
        found.needs(work, "autoencoder")
    plan, trainable = PLANS.get(cfg.model), cfg.pretrain.trainable
    if trainable != "all" and not (plan and plan.rows(0, trainable)):
        found.problems.append(
            f'pretrain.trainable "{trainable}": "{cfg.model}" has no rows for that; leave it at '
            f'"all"'
        )
    preflight.check_training(cfg, work, found)


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Trains the base of this run; goes on from the newest checkpoint."""
    if "autoencoder" in cfg.stages:
        made = work.stage("autoencoder")
        towers = made / Manifest.read(made).outputs["model"]
    else:
        # Both settings have the small one's autoencoder: it knows objects, not how many there are.
        # The larger one begins with the rest of that base too.
        towers = epath.Path(cfg.weights) if cfg.weights else registry.base_folder(SMALL.name)
    inputs = {"autoencoder": loading.fingerprint(towers)}

    def body(folder: epath.Path) -> Outcome:
        return pretrain(cfg, mesh, folder, towers)

    sections = ("model", "seed", "pretrain", "compute.dtype")
    if cfg.pretrain.trainable == "und":
        sections += ("sample",)  # by which it draws what it then reads
    return run_stage("pretrain", cfg, work, sections=sections, inputs=inputs, body=body)


@dataclasses.dataclass(frozen=True)
class Pool:
    """Pictures encoded once: captions and latents float32 [N, h, w, p·p·Z] of scenes to draw; of
    edits the instructions, the pictures before uint8 [M,H,W,3] and the latents before and after;
    own: what the base itself drew."""

    captions: list[str]
    latents: np.ndarray
    instructions: list[str]
    sources: np.ndarray
    before: np.ndarray
    after: np.ndarray
    own: Drawings | None = None


def encode(
    folder: epath.Path,
    encoder: ImageEncoder,
    *,
    seed: int,
    scenes: int,
    edits: int,
    malformed: float = 0.0,
    setting: Setting = SMALL,
) -> Pool:
    """The Pool of the generation streams' first scenes and edits.

    Encoded once: kept in `folder` as latents.npz for the next start of as many.
    """
    counts = {"captions": scenes, "instructions": edits}
    make = functools.partial(_encoded, encoder, seed, scenes, edits, malformed, setting)
    return _pool(kept(folder / "latents.npz", counts, make))


def kept(
    path: epath.Path, counts: Mapping[str, int], make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What `make` gives, made once: of the file where that holds as many of each as `counts`."""
    if path.exists():
        try:
            with path.open("rb") as file:
                arrays = dict(np.load(file))
            if {name: len(arrays[name]) for name in counts} == dict(counts):
                return arrays
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
            logging.warning("%s: damaged (%s); made again", path, e)
    arrays, whole = make(), io.BytesIO()
    np.savez(whole, **arrays)
    files.write_bytes(path, [whole.getbuffer()])
    return arrays


def _pool(arrays: dict[str, np.ndarray]) -> Pool:
    words = {name: arrays[name].tolist() for name in ("captions", "instructions")}
    return Pool(**(arrays | words))


def _encoded(
    encoder: ImageEncoder,
    seed: int,
    scenes: int,
    edits: int,
    malformed: float,
    setting: Setting,
) -> dict[str, np.ndarray]:
    """The fields of a Pool as arrays."""
    captions, latents, how = [], [], dict(setting=setting, malformed=malformed)
    for first in console.progress(range(0, scenes, ENCODE_BATCH), desc="encode", unit="batch"):
        numbers = range(first, min(first + ENCODE_BATCH, scenes))
        made = [generation_example(seed, i, **how) for i in numbers]
        words, images = zip(*made, strict=True)
        captions += words
        latents.append(encoder.means(images))
    instructions, sources, before, after = [], [], [], []
    for first in console.progress(range(0, edits, ENCODE_BATCH), desc="encode edits", unit="batch"):
        numbers = range(first, min(first + ENCODE_BATCH, edits))
        made = [changes.edit_example(seed, i, setting) for i in numbers]
        instructions += [e.instruction for e in made]
        sources.append(np.stack([rendering.draw(e.source) for e in made]))
        before.append(encoder.means(sources[-1]))
        after.append(encoder.means([rendering.draw(e.target) for e in made]))
    return {
        "captions": np.array(captions),
        "latents": np.concatenate(latents),
        "instructions": np.array(instructions),
        "sources": np.concatenate(sources),
        "before": np.concatenate(before),
        "after": np.concatenate(after),
    }


def row(
    number: int,
    plan: RowPlan,
    *,
    seed: int,
    layout: LayoutSizes,
    tokenizer: Tokenizer,
    pool: Pool,
    setting: Setting = SMALL,
    text_dropout: float = RECIPE.text_dropout,
) -> list[Example]:
    """Row `number` of the endless sequence: fresh pictures with questions, and images to draw.

    A row reads one picture, or a clip or two pairs of pictures, or none; crops, what the base drew,
    the captions to draw and the edits follow.
    """
    examples = []
    if plan.several:
        examples.append(_several(seed, 2 * number, tokenizer, layout))
        if _pictures(examples[0]) == 2:
            examples.append(_several(seed, 2 * number + 1, tokenizer, layout, pairs=True))
    asked = [] if plan.mix is None else [(number, plan.mix)]
    # Numbers of their own, so that no crop is of a scene that is asked about.
    asked += [((1 << 40) + plan.crops * number + i, CROPS) for i in range(plan.crops)]
    read = [understanding_example(seed, index, mix, setting=setting) for index, mix in asked]
    read += [picture_example(pool.own, seed, plan.own * number + i) for i in range(plan.own)]
    numbers = range(plan.own_crops * number, plan.own_crops * (number + 1))
    read += [crop_example(pool.own, seed, i) for i in numbers]
    for image, questions in read:
        texts = [(q.text, q.answer) for q in questions]
        examples.append(sources.questions(tokenizer, layout, (image,), texts))
    size = tuple(s * layout.token_pixels for s in pool.latents.shape[1:3])
    for i in range(number * plan.images, (number + 1) * plan.images):
        which = place(seed, 2, i, len(pool.captions))
        prompt = pool.captions[which]
        if sources.dropped(seed, i, text_dropout):
            prompt = None
        latent = pool.latents[which]
        examples.append(sources.text_to_image(tokenizer, prompt, latent, size=size, noise_id=which))
    for i in range(number * plan.edits, (number + 1) * plan.edits):
        which = place(seed, 3, i, len(pool.instructions))
        words = pool.instructions[which]
        if sources.dropped(seed, (1 << 40) + i, text_dropout):
            words = None
        examples.append(
            sources.edit(
                tokenizer,
                layout,
                pool.sources[which],
                pool.before[which],
                words,
                pool.after[which],
                size=size,
                noise_id=len(pool.captions) + which,
            )
        )
    return examples


def _several(
    seed: int, index: int, tokenizer: Tokenizer, layout: LayoutSizes, pairs: bool = False
) -> Example:
    """Pictures of the stream of several with their questions, if `pairs` two pictures."""
    images, asked = changes.several_example(seed, index, clips=not pairs)
    return sources.questions(tokenizer, layout, images, [(q.text, q.answer) for q in asked])


def fitted(examples: list[Example], lanes: Lanes) -> list[Example]:
    """A row's samples, without last questions, then without last samples, that overflow its lanes.

    The und lane is sized for what is usual: at times all texts of a row are long together. No
    sample goes for want of another lane: packing says which one is too short.
    """
    examples, limit = list(examples), np.array(dataclasses.astuple(lanes))
    while (over := packing.total([packing.size(e) for e in examples]) > limit).any():
        longest = max(range(len(examples)), key=lambda i: _questions(examples[i]))
        if _questions(examples[longest]) > 1:
            examples[longest] = Example(examples[longest].items[:-1])
        elif over[packing.LANES.index("und")] and len(examples) > 1:
            examples.pop()
        else:
            break
    return examples


def _pictures(example: Example) -> int:
    return sum(isinstance(item, Picture) for item in example.items)


def _questions(example: Example) -> int:
    return sum(isinstance(item, Branch) for item in example.items)


def place(seed: int, stream: int, i: int, count: int) -> int:
    """Which of `count` things is number i of an endless sequence, epoch after epoch."""
    epoch, place = divmod(i, count)
    return int(_order(seed, stream, epoch, count)[place])


@functools.lru_cache(maxsize=4)
def _order(seed: int, stream: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, stream)).permutation(count)


def paced(recipe: PackedConfig, cfg: Config) -> PackedConfig:
    """A recipe at the length and the pace that the config gives."""
    own = cfg.pretrain
    return dataclasses.replace(
        recipe,
        steps=own.steps,
        rows=own.rows,
        checkpoint_every=own.checkpoint_every,
        log_every=own.log_every,
    )


def _untrained(shipped: epath.Path, towers: epath.Path) -> loading.LoadedModel:
    """The sizes and the tokenizer of the base in `shipped`, the autoencoder of `towers`."""
    sizes = dataclasses.replace(
        model_config.from_folder(shipped), vae=model_config.autoencoder_from_folder(towers)
    )
    _, vae_params = hf.load(towers, sizes, want=("vae",))
    return loading.LoadedModel(sizes, None, vae_params, Tokenizer.from_folder(shipped))


def begun(specs: param_tree.Specs, seed: int, base: epath.Path | None) -> param_tree.Params:
    """The values of the base in a folder, and random ones where there is none or a shape differs:
    of the small one the places of a larger picture's patches."""
    random = param_tree.init(specs, jax.random.key(seed))
    if base is None:
        return random
    found, _ = hf.load(base, model_config.from_folder(base), want=("model",))
    return jax.tree.map(lambda r, f: jnp.asarray(f) if f.shape == r.shape else r, random, found)


def _drawings(
    cfg: Config,
    mesh: jax.sharding.Mesh,
    folder: epath.Path,
    base: loading.LoadedModel,
    params: param_tree.Params,
) -> Drawings:
    """What the base draws by `cfg.sample` before its training begins; kept as drawings.npz."""

    def draw(captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        return sampler.sample_prompts(captions, seeds)[0]

    asked = replies.model_under_test(dataclasses.replace(base, params=params), cfg, mesh)
    sampler, count = asked.sampler, cfg.pretrain.drawings
    make = functools.partial(drawn, draw, count, cfg.seed, SETTINGS[cfg.model])
    return looked_at(**kept(folder / "drawings.npz", {"captions": count}, make))


def learned(trainable: str, path: str) -> bool:
    """Whether a parameter is trained, by pretrain.trainable. With the generation expert frozen its
    drawings still tell the other one to stay what they are drawn by."""
    return trainable == "all" or path.startswith(family.DRAWS) == (trainable == "gen")


def _loss(
    cfg: Config, c: PackedConfig, base: loading.LoadedModel, mesh: jax.sharding.Mesh
) -> joint.JointLoss:
    """The joint loss by recipe `c`, with the attention that its rows take on the mesh."""
    plan = PLANS[cfg.model]
    held = filter(None, (plan.usual, plan.other, plan.drawn, plan.judged))
    longest = max(x.lanes.und + x.lanes.gen for x in held)
    sizes = programs.attending(cfg, base.cfg, mesh, tokens=longest, gap=GAP)
    predict = terms.Predictor(sizes, jnp.dtype(cfg.compute.dtype), cfg.compute.remat)
    return joint.JointLoss(c, predict, TEXT_WEIGHT)


def pretrain(
    cfg: Config, mesh: jax.sharding.Mesh, folder: epath.Path, towers: epath.Path
) -> Outcome:
    """The stage's work: see the module."""
    own, c = cfg.pretrain, paced(RECIPE, cfg)
    setting, plan = SETTINGS[cfg.model], PLANS[cfg.model]
    shipped = registry.base_folder(cfg.model)
    base = _untrained(shipped, towers)
    encoder, layout = base.encoder(ENCODE_BATCH), base.cfg.layout
    counts = dict(scenes=own.latents, edits=own.edits, malformed=own.malformed)
    pool = encode(folder, encoder, seed=cfg.seed, setting=setting, **counts)
    logging.info("latents: mean %.3f, std %.3f", pool.latents.mean(), pool.latents.std())
    specs = bagel.specs(base.cfg)
    first = begun(specs, cfg.seed, None if setting is SMALL else towers)
    if own.trainable == "und":
        pool = dataclasses.replace(pool, own=_drawings(cfg, mesh, folder, base, first))
    learns = functools.partial(learned, own.trainable)
    (specs, _), (first, frozen) = (param_tree.split(tree, learns) for tree in (specs, first))
    rows_sharding = sharding.batch_sharding(mesh)
    given = dict(seed=cfg.seed, layout=layout, tokenizer=base.tokenizer, pool=pool)

    def make(step: int):
        held = plan.rows(step, own.trainable)
        numbers = pipeline.local_rows(step, c.rows, rows_sharding)
        rows = [fitted(row(i, held, setting=setting, **given), held.lanes) for i in numbers]
        return packing.pack(rows, held.lanes, layout, label_weights=own.label_weights)

    save = functools.partial(
        hf.save,
        folder / "model",
        base.cfg,
        vae_params=base.vae_params,
        dtype="bfloat16",
        tokenizer_files=[shipped / "tokenizer.json"],
    )
    training = FromScratch("pretrain", cfg, c, specs, _loss(cfg, c, base, mesh), first, frozen)
    evaluator = QuickEvaluation(cfg, mesh, base, folder, save, EXAM, frozen)
    how = dict(evaluator=evaluator, evaluate_every=own.evaluate_every)
    return training.run(mesh, folder, make, **how)[1]
