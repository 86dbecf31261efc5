"""Stage `export`: the round's model in the Hugging Face layout, for the next round and for others;
trained adapters also by themselves, as PEFT has them.

The trained model where the run trains, otherwise the one it started from or pretrained. Where the
stage `adjust` chose, what it chose, which may be the model that the round started from; the folder
then says which guidance it is drawn with.
"""

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from srum_jax import disk
from srum_jax.config import Config, section_hash
from srum_jax.core import param_tree
from srum_jax.generation import families, generation_config
from srum_jax.stages import adjusted, loading, preflight
from srum_jax.stages.manifest import (
    ALL_SECTIONS,
    Manifest,
    Outcome,
    Workdir,
    run_stage,
    versions,
)
from srum_jax.stages.preflight import Checks, Cost

FOLDER, ADAPTER = "model", "adapter"


def check(cfg: Config, work: Workdir, found: Checks) -> None:
    """A trained model that is there or will be, and room for it."""
    for name in ("train", "adjust"):
        if name in cfg.stages:
            found.needs(work, name)
    weights = preflight.weights(cfg, work, found)
    if weights:
        with found.noting():
            made = disk.weight_bytes(_specs(loading.described(weights)[0]), cfg.export.dtype)
            rounds = f", in each of {cfg.rounds} rounds" if cfg.rounds > 1 else ""
            what = f"the model in {cfg.export.dtype}{rounds}"
            found.costs.append(Cost("export", what, cfg.rounds * made))


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Writes round<R>/export/model, and the adapters that were trained as export/adapter.

    Raises FileNotFoundError or ValueError where the weights or the train stage are missing.
    """
    weights = loading.source(cfg, work)
    inputs = {"model": loading.fingerprint(*weights.folders)}
    for name in ("train", "adjust"):
        if name in cfg.stages:
            inputs[name] = Manifest.read(work.stage(name)).hash
    stage, choice = adjusted.exported(cfg, work), adjusted.of_round(cfg, work)

    def body(folder: epath.Path) -> Outcome:
        opened = loading.base(cfg, work, mesh, dtype=cfg.export.dtype)
        outputs = {"model": FOLDER}
        if stage:
            made = loading.made_by_training(opened, cfg, work, mesh, stage)
            if cfg.train.trainable == "lora":
                alpha = cfg.train.lora.alpha
                opened.family.save_adapter(folder / ADAPTER, opened.cfg, made, alpha=alpha)
                outputs["adapter"] = ADAPTER
            opened = loading.with_made(opened, cfg, made)
            del made
        opened.family.save(
            folder / FOLDER,
            opened.cfg,
            opened.params,
            opened.vae_params,
            cfg.export.dtype,
            layout=cfg.export.layout,
            source=opened.source,
            notes=_notes(cfg, work, inputs["model"], choice),
        )
        if stage == "adjust" and jax.process_index() == 0:
            generation_config.guide(folder / FOLDER, choice["chosen"]["guidance"])
        parameters = sum(map(param_tree.count, _specs(opened.cfg)))
        return Outcome(outputs, {"parameters": parameters}, items=1)

    sections = ("model", "export", "train.trainable")
    return run_stage("export", cfg, work, sections=sections, inputs=inputs, body=body)


def _specs(sizes: Any) -> tuple[param_tree.Specs, param_tree.Specs]:
    """Parameters of a model and of its autoencoder."""
    family = families.of(sizes)
    return family.specs(sizes), family.coder_specs(sizes)


def _notes(cfg: Config, work: Workdir, fingerprint: str, choice: Mapping[str, Any] | None) -> str:
    """How the model came to be, in Markdown."""
    made = "unchanged weights"
    if "train" in cfg.stages:
        what = "averaged parameters"
        if cfg.train.trainable == "lora":
            what = f"averaged adapters of rank {cfg.train.lora.rank}, merged"
        made = f"{cfg.train.steps} steps of `{cfg.train.objective}`, {what}"
    elif "pretrain" in cfg.stages and not work.round:
        made = f"pretrained for {cfg.pretrain.steps} steps"
    if choice:
        taken = choice["chosen"]
        what = f"{taken['share']:.0%} of what step {taken['step']} had changed"
        made += f"; of that {what if taken['share'] else 'nothing'}, by validation: {choice['why']}"
    version = ", ".join(f"{name} {number}" for name, number in versions().items())
    recipe = "".join(f"- {line}\n" for line in _recipe(cfg))
    return f"""## How it was made

- {made}; round {work.round}, seed {cfg.seed}
{recipe}\
- config hash `{section_hash(cfg, ALL_SECTIONS)}`, starting weights `{fingerprint}`
- {version}
"""


def _recipe(cfg: Config) -> Iterator[str]:
    """What the model was trained on and how, a line each of the stages that ran."""
    drawn, judged, trained = cfg.generate, cfg.score, cfg.train
    if "generate" in cfg.stages:
        # A file's name alone: where it lay says nothing to who reads the card.
        source = posixpath.basename(drawn.prompts.rstrip("/"))
        yield f"drawn: {drawn.candidates} candidates of each of {drawn.count} prompts, `{source}`"
    if "score" in cfg.stages:
        yield f"scored: judge `{judged.judge}`, regions of {', '.join(judged.proposers)}"
    if "train" in cfg.stages:
        optim = trained.optim
        yield (
            f"trained: `{trained.trainable}` on `{trained.select}`, {trained.rows} rows a step, "
            f"{optim.optimizer}, learning rate {optim.learning_rate:g} ({optim.schedule}), "
            f"average {trained.ema:g}"
        )
