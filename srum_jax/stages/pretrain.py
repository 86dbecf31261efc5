"""Stage `pretrain`: a base for the shapes world, from random weights, by the joint objective.

Cross-entropy on answers and captions, flow matching on pictures encoded once. Leaves the averaged
model in the Hugging Face layout under `model/`, rewritten at every evaluation, so that a run that
was stopped is usable.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from tqdm import tqdm

import srum_jax
from srum_jax.config import Config
from srum_jax.core import params as P
from srum_jax.core import preemption, sharding
from srum_jax.core.patches import patchify
from srum_jax.data import packing, pipeline, shapes, sources
from srum_jax.data.images import to_float
from srum_jax.data.schema import Branch, Example, Lanes
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.evals import shapes as verifier
from srum_jax.inference import image as drawing
from srum_jax.inference.text import asker
from srum_jax.models import bagel, hf, vae
from srum_jax.models import config as model_config
from srum_jax.models.config import BagelConfig
from srum_jax.objectives import joint
from srum_jax.stages import model as stage_model
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, run_stage
from srum_jax.training import loop, optim
from srum_jax.training.checkpoint import Checkpoints
from srum_jax.training.state import Fixed, create

QUICK_QUESTIONS = 400  # of the validation split, at every evaluation
QUICK_IMAGES = 128
ENCODE_BATCH = 256


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Trains the base of this run; goes on from the newest checkpoint."""
    if "autoencoder" in cfg.stages:
        made = work.stage("autoencoder")
        towers = made / Manifest.read(made).outputs["model"]
    else:
        shipped = epath.resource_path(srum_jax) / "bases/shapes"
        towers = epath.Path(cfg.weights) if cfg.weights else shipped
    inputs = {"autoencoder": stage_model.fingerprint(towers)}

    def body(folder: epath.Path) -> Outcome:
        return pretrain(cfg, mesh, folder, towers)

    sections = ("model", "seed", "pretrain", "compute.dtype")
    return run_stage("pretrain", cfg, work, sections=sections, inputs=inputs, body=body)


def encode(
    folder: epath.Path, vae_params, cfg: BagelConfig, *, seed: int, count: int
) -> tuple[list[str], np.ndarray]:
    """Captions and latents float32 [count, h, w, p·p·Z] of the generation stream's first scenes.

    Encoded once: kept in `folder` as latents.npz for the next start.
    """
    path = folder / "latents.npz"
    if path.exists():
        with path.open("rb") as file:
            kept = np.load(file)
            if len(kept["captions"]) == count:
                return [str(c) for c in kept["captions"]], kept["latents"]
    run = jax.jit(lambda p, images: vae.encode(p, cfg.vae, images))
    captions, latents = [], []
    for first in tqdm(range(0, count, ENCODE_BATCH), desc="encode", unit="batch"):
        pairs = [shapes.generation_example(seed, i) for i in range(first, first + ENCODE_BATCH)]
        captions += [c for c, _ in pairs]
        images = to_float(np.stack([i for _, i in pairs]))
        latents.append(np.asarray(run(vae_params, images)))
    z = np.concatenate(latents)[:count]
    tokens = patchify(z, cfg.latent_patch)
    tokens = tokens.reshape(count, z.shape[1] // cfg.latent_patch, -1, cfg.token_dim)
    temporary = folder / "latents.partial"
    with temporary.open("wb") as file:
        np.savez(file, captions=np.array(captions[:count]), latents=tokens)
    temporary.replace(path)
    return captions[:count], tokens


def row(
    number: int,
    *,
    cfg: Config,
    model: BagelConfig,
    tokenizer: Tokenizer,
    captions: list[str],
    latents: np.ndarray,
) -> list[Example]:
    """Row `number` of the endless sequence: fresh pictures with questions, and images to draw."""
    c = cfg.pretrain
    mix = shapes.Mix(questions=c.questions)
    pictures, images = c.understanding_images // c.rows, c.generation_images // c.rows
    examples = []
    for i in range(number * pictures, (number + 1) * pictures):
        image, asked = shapes.understanding_example(cfg.seed, i, mix)
        examples.append(
            sources.questions(tokenizer, model, image, [(q.text, q.answer) for q in asked])
        )
    size = tuple(s * model.token_pixels for s in latents.shape[1:3])
    for i in range(number * images, (number + 1) * images):
        epoch, place = divmod(i, len(captions))
        which = int(_order(cfg.seed, epoch, len(captions))[place])
        prompt = None if sources.dropped(cfg.seed, i, c.text_dropout) else captions[which]
        examples.append(
            sources.text_to_image(tokenizer, prompt, latents[which], size=size, noise_id=which)
        )
    return examples


def fitted(examples: list[Example], lanes: Lanes) -> list[Example]:
    """A row's samples, last questions left out where they overflow its lanes.

    Lanes are sized for what is usual: once in some ten thousand rows all texts are long together.
    """
    examples, limit = list(examples), np.array(dataclasses.astuple(lanes))
    while (packing.total([packing.size(e) for e in examples]) > limit).any():
        longest = max(range(len(examples)), key=lambda i: len(examples[i].items))
        if not isinstance(examples[longest].items[-1], Branch):
            break  # not a matter of questions: packing says what is too long
        examples[longest] = Example(examples[longest].items[:-1])
    return examples


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, 2)).permutation(count)


def pretrain(cfg: Config, mesh, folder: epath.Path, towers: epath.Path) -> Outcome:
    """The stage's work: see the module."""
    c = cfg.pretrain
    model = dataclasses.replace(
        model_config.PRESETS[cfg.model], vae=model_config.autoencoder_from_folder(towers)
    )
    _, vae_params = hf.load(towers, model, want=("vae",))
    tokenizer_file = epath.resource_path(srum_jax) / "bases/shapes/tokenizer.json"
    tokenizer = Tokenizer.from_folder(tokenizer_file.parent)
    captions, latents = encode(folder, vae_params, model, seed=cfg.seed, count=c.latents)
    logging.info("latents: mean %.3f, std %.3f", latents.mean(), latents.std())

    dtype = jnp.dtype(cfg.compute.dtype)
    specs = bagel.specs(model)
    tx = optim.make(c.optim, specs, steps=c.steps)
    params = P.init(specs, jax.random.key(cfg.seed))
    state = create(params, tx, specs, mesh)
    lanes = Lanes(**{k: getattr(c.lanes, k) for k in packing.LANES})
    rows_sharding = sharding.batch_sharding(mesh)
    make_row = functools.partial(
        row, cfg=cfg, model=model, tokenizer=tokenizer, captions=captions, latents=latents
    )

    def make(step: int):
        rows = [fitted(make_row(i), lanes) for i in pipeline.local_rows(step, c.rows)]
        return packing.pack(rows, lanes, model, label_weights=c.label_weights)

    def evaluate(step: int, state) -> dict[str, float]:
        found = quick_look(cfg, model, state.ema, vae_params, tokenizer)
        hf.save(
            folder / "model",
            model,
            jax.device_get(state.ema),
            vae_params,
            "bfloat16",
            tokenizer_files=[tokenizer_file],
        )
        logging.info("step %d: %s", step, {k: round(v, 3) for k, v in found.items()})
        return found

    _, summary = loop.run(
        state,
        Fixed({}, None),
        loss_fn=joint.make(c, model, dtype=dtype, remat=cfg.compute.remat),
        tx=tx,
        batches=lambda start: pipeline.batches(make, rows_sharding, start=start, stop=c.steps),
        key=jax.random.key(cfg.seed),
        cfg=c,
        checkpoints=Checkpoints(folder / "checkpoints", keep=c.keep),
        meta={"stage": "pretrain"},
        metrics_path=folder / "metrics.jsonl",
        title="pretrain",
        stop=preemption.stop,
        evaluate=evaluate,
        evaluate_every=c.evaluate_every,
    )
    return Outcome(
        outputs={"model": "model", "metrics": "metrics.jsonl"},
        counts={"steps": c.steps, "skipped_steps": summary["skipped_steps"]},
        items=c.steps,
        compile_seconds=summary["compile_seconds"],
    )


def quick_look(
    cfg: Config, model: BagelConfig, params, vae_params, tokenizer: Tokenizer
) -> dict[str, float]:
    """Accuracies on the validation split: questions, by kind, and strict text-to-image."""
    ask = asker(params, model, tokenizer, rows=cfg.score.batch)
    asked = shapes.qa_set("validation", QUICK_QUESTIONS, seed=0)
    answers = ask([i for i, _ in asked], [[q.text] for _, q in asked])
    right: dict[str, list[bool]] = {}
    for (_, q), p in zip(asked, answers, strict=True):
        good = int(np.argmax(p[0])) == tokenizer.id(q.answer)
        right.setdefault(q.kind, []).append(good)
    everything = [v for values in right.values() for v in values]
    prompts = shapes.balanced_prompts("validation", QUICK_IMAGES, seed=0)
    paint = drawing.painter(params, vae_params, model, tokenizer, cfg.sample)
    images, _ = paint([p.text for p in prompts], range(len(prompts)))
    drawn = [verifier.verify(i, p.text).right for i, p in zip(images, prompts, strict=True)]
    by_category: dict[str, list[bool]] = {}
    for p, good in zip(prompts, drawn, strict=True):
        by_category.setdefault(p.category, []).append(good)
    return {
        "t2i": float(np.mean(drawn)),
        "qa": float(np.mean(everything)),
        **{f"t2i_{k}": float(np.mean(v)) for k, v in sorted(by_category.items())},
        **{f"qa_{k}": float(np.mean(v)) for k, v in sorted(right.items())},
    }
