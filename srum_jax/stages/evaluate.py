"""Stage `evaluate`: what an exact program says of the work of the base and of the trained model.

Drawing (strict, by category, both models from the same noise), choosing the best of K by the
model's own score, answering questions, and how well its scores tell right from wrong. All of it
needs the shapes world: what has no verifier is left out, with a sentence in the log. Every part is
kept in the stage's folder and not made twice: pictures and scores in shards, answers in JSON.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from einops import rearrange
from etils import epath
from tqdm import tqdm

from srum_jax.config import Config
from srum_jax.core import sharding
from srum_jax.core.files import read_json, write_json
from srum_jax.data import images as pictures
from srum_jax.data import prompts as prompt_lists
from srum_jax.data import shards
from srum_jax.data.prompts import Prompt
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.evals import sections as result_sections
from srum_jax.rewards import question_templates
from srum_jax.stages import calibration, generate, judges, loading, monitor, score
from srum_jax.stages.generate import Job
from srum_jax.stages.loading import LoadedModel
from srum_jax.stages.manifest import (
    Manifest,
    Outcome,
    Workdir,
    candidates_of,
    run_stage,
    update_results,
    update_round,
)
from srum_jax.worlds.shapes import changes as shapes_changes
from srum_jax.worlds.shapes import questions as shapes_questions
from srum_jax.worlds.shapes import skills, verifier
from srum_jax.worlds.shapes.changes import Edit
from srum_jax.worlds.shapes.rendering import Scene, draw

PAIRS = 24  # prompts whose two pictures are kept for the report
SHOWN = 6  # edits and captions kept for it: the first ones


@dataclasses.dataclass(frozen=True)
class Tasks:
    """What a model is asked beside prompts: questions, scenes to describe, edits."""

    asked: Sequence[skills.Asked] = ()
    scenes: Sequence[Scene] = ()
    edits: Sequence[Edit] = ()


@dataclasses.dataclass(frozen=True)
class ModelOutputs:
    """What one model did: candidate records and their verdicts; answers, captions and edits as
    `worlds/shapes/skills.py` gives them."""

    records: Sequence[dict[str, Any]]
    verdicts: Sequence[verifier.Verdict]
    qa: Sequence[dict[str, Any]]
    captions: Sequence[dict[str, Any]]
    edits: Sequence[dict[str, Any]]

    @property
    def right(self) -> np.ndarray:
        """bool [records]."""
        return np.array([verdict.right for verdict in self.verdicts], bool)

    def firsts(self) -> "ModelOutputs":
        """Candidate 0 of every prompt alone: what both models are compared by."""
        keep = [i for i, record in enumerate(self.records) if record["k"] == 0]
        return dataclasses.replace(
            self,
            records=[self.records[i] for i in keep],
            verdicts=[self.verdicts[i] for i in keep],
        )


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Measures the model that this round starts from and, if the run trains, the one it trained.

    Raises FileNotFoundError or ValueError where weights, prompts or a stage before are missing.
    """
    weights = loading.source(cfg, work)
    language = loading.language(weights)
    wanted = prompt_lists.load(cfg.evaluate.prompts, cfg.evaluate.count, language=language)
    prompt_lists.check(wanted, Tokenizer.from_folder(weights.words))
    inputs = {
        "model": loading.fingerprint(*weights.folders),
        "prompts": prompt_lists.digest(wanted),
        "protocol": question_templates.protocol_hash(),
    }
    for name in ("train", "score"):
        if name in cfg.stages:
            inputs[name] = Manifest.read(work.stage(name)).hash

    def body(folder: epath.Path) -> Outcome:
        with loading.compile_clock() as compiling:
            here = sharding.host_mesh(mesh)
            with jax.set_mesh(here):
                outcome = evaluate(cfg, here, work, folder, wanted)
        return dataclasses.replace(outcome, compile_seconds=sum(compiling))

    sections = ("model", "sample", "score", "evaluate", "generate.shard_size", "compute.dtype")
    return run_stage("evaluate", cfg, work, sections=sections, inputs=inputs, body=body)


def evaluate(
    cfg: Config,
    mesh: jax.sharding.Mesh,
    work: Workdir,
    folder: epath.Path,
    wanted: Sequence[Prompt],
) -> Outcome:
    """Makes and measures everything; writes evaluation.json, pairs.json, this round's results."""
    known, given = verifiable(cfg, wanted), tasks(cfg)
    several = known[: cfg.evaluate.best_of_prompts]
    jobs = [(prompt, k) for prompt in several for k in range(cfg.evaluate.best_of)]
    judged = len(jobs)
    jobs += [(prompt, 0) for prompt in known[len(several) :]]
    opened = loading.base(cfg, work, mesh)
    arms = {"base": _arm("base", opened, jobs, given, folder, cfg, mesh)}
    shown = arms["base"].records[:judged]
    scored = _judge(opened, shown, folder / "scores", cfg, mesh)
    if "train" in cfg.stages:
        opened = loading.trained(opened, cfg, work, mesh)  # lets go of what training replaced
        jobs = [(prompt, 0) for prompt in known]
        arms["trained"] = _arm("trained", opened, jobs, given, folder, cfg, mesh)
    parts = {
        "t2i": t2i_section(
            arms, [record["image_score"] for record in scored], cfg.evaluate.best_of
        ),
        **{name: skill_section(arms, name) for name in ("qa", "captions", "edits")},
    }
    if "score" in cfg.stages:
        shown, scored = map(shards.read, (candidates_of(cfg, work), work.stage("score")))
    parts["scores"] = scores_section(shown, scored, cfg.score.proposers)
    parts = {name: part for name, part in parts.items() if part}
    outputs = _write(work, folder, arms, parts, given) if jax.process_index() == 0 else {}
    if "train" in cfg.stages and jax.process_index() == 0:
        verify_monitor(work)
    counts = {
        "prompts": len(known),
        "images": sum(len(arm.records) for arm in arms.values()),
        "answers": sum(len(arm.qa) + len(arm.captions) for arm in arms.values()),
        "edits": sum(len(arm.edits) for arm in arms.values()),
    }
    items = counts["images"] + counts["answers"] + counts["edits"]
    return Outcome(outputs, counts, items=items)


# ------------------------------------------------------------------------------ what is measured


def verifiable(cfg: Config, wanted: Sequence[Prompt]) -> list[Prompt]:
    """The prompts whose pictures the verifier can judge; the others are named in the log."""
    size = (verifier.SIDE, verifier.SIDE)
    known = [p for p in wanted if cfg.sample.size == size and _readable(p.text)]
    if len(known) < len(wanted):
        logging.info(
            "evaluate: %d of %d prompts are left out: the verifier reads prompts of the shapes "
            "world at %dx%d pixels, and there is no other",
            len(wanted) - len(known),
            len(wanted),
            *size,
        )
    return known


def tasks(cfg: Config) -> Tasks:
    """Those of the test split of the shapes world; none for another model."""
    if cfg.model != "shapes":
        logging.info("evaluate: no questions are asked: those at hand are about the shapes world")
        return Tasks()
    c = cfg.evaluate
    several = shapes_changes.several_set("test", c.multi_image_questions)
    return Tasks(
        asked=shapes_questions.qa_set("test", c.questions) + several,
        scenes=shapes_questions.caption_set("test", c.captions),
        edits=shapes_changes.edit_set("test", c.edits),
    )


def _readable(prompt: str) -> bool:
    try:
        return bool(verifier.demanded(prompt))
    except ValueError:
        return False


# ------------------------------------------------------------------------------------- the making


def _arm(
    name: str,
    opened: LoadedModel,
    jobs: Sequence[Job],
    given: Tasks,
    folder: epath.Path,
    cfg: Config,
    mesh: jax.sharding.Mesh,
) -> ModelOutputs:
    """Draws `jobs`, has them verified, and does the tasks; what is found in `folder` is kept."""
    able = skills.of(opened, cfg, mesh)
    records: list[dict[str, Any]] = []
    if jobs:
        generate.draw(
            jobs,
            folder / name,
            able.sampler,
            features=generate.features(opened.cfg.layout, cfg.sample.size),
            shard_size=cfg.generate.shard_size,
            seed=cfg.evaluate.seed,
            title=f"evaluate, {name} draws",
        )
        records = list(shards.read(folder / name))
    verdicts = [verifier.verify(record["image"], record["prompt"]) for record in records]
    does = {
        "answers": (skills.answered, given.asked),
        "captions": (skills.described, given.scenes),
        "edits": (skills.edited, given.edits),
    }
    done = [
        _kept(folder / f"{what}-{name}.json", do, able, some, f"evaluate, {name} {what}")
        for what, (do, some) in does.items()
    ]
    return ModelOutputs(records, verdicts, *done)


def _kept(
    path: epath.Path, do: Callable, able: skills.ShapesSkills, given: Sequence, title: str
) -> list[dict[str, Any]]:
    """The records at `path`; if they are not there, made of the tasks and written.

    A record's picture is written beside it as PNG and named, if it is one of the first.
    """
    if path.exists():
        return read_json(path)
    found: list[dict[str, Any]] = []
    step = 4 * able.batch
    off = jax.process_index() != 0
    with tqdm(total=len(given), desc=title, dynamic_ncols=True, disable=off) as bar:
        for first in range(0, len(given), step):
            found += do(able, given[first : first + step])
            bar.update(len(given[first : first + step]))
    drawn = [record.pop("image") for record in found if "image" in record]
    for number, (record, image) in enumerate(zip(found, drawn[:SHOWN], strict=False)):
        record["image"] = f"examples/{path.stem}-{number}.png"
        if not off:
            _write_png(path.parent / record["image"], image)
    if not off:
        write_json(path, found)
    return found


def _judge(
    opened: LoadedModel,
    records: Sequence[dict[str, Any]],
    folder: epath.Path,
    cfg: Config,
    mesh: jax.sharding.Mesh,
) -> Sequence[dict[str, Any]]:
    """The model's own scores of candidates it drew, as the stage `score` gives them."""
    if not records:
        return ()
    # Where that stage has run, the other proposers are measured on its records.
    proposers = cfg.score.proposers[: 1 if "score" in cfg.stages else None]
    how = dataclasses.replace(cfg.score, proposers=proposers, judge="self", compare=0)
    panel = judges.panel(opened, dataclasses.replace(cfg, score=how), mesh)
    score.score(records, folder, how, panel)
    return shards.read(folder)


# ---------------------------------------------------------------------------------- the measuring


def t2i_section(arms: dict[str, ModelOutputs], own: Sequence[float], candidates: int) -> dict:
    """ "t2i" of results.json; empty without pictures.

    The arms have the same prompts in the same order. The base's first records are `candidates` of
    each of its first prompts, and `own` are the scores it gave those.
    """
    firsts = {name: arm.firsts() for name, arm in arms.items()}
    if not len(firsts["base"].records):
        return {}
    categories = [record["category"] for record in firsts["base"].records]
    section = {
        name: result_sections.accuracy_section(arm.right, categories)
        for name, arm in firsts.items()
    }
    if "trained" in arms:
        section["paired"] = result_sections.paired_section(
            firsts["base"].right, firsts["trained"].right
        )
    right, own = (
        rearrange(np.asarray(x[: len(own)]), "(p k) -> p k", k=candidates)
        for x in (arms["base"].right, own)
    )
    best = result_sections.best_of_k_section(right, own, categories=categories[: len(right)])
    return section | {"best_of_k": best}


def skill_section(arms: dict[str, ModelOutputs], name: str) -> dict:
    """ "qa", "captions" or "edits" of results.json; empty if nothing was asked."""
    done = {arm: getattr(found, name) for arm, found in arms.items()}
    if not done["base"]:
        return {}
    return result_sections.qa_section(
        [record["kind"] for record in done["base"]],
        **{arm: np.array([r["right"] for r in records], bool) for arm, records in done.items()},
    )


def scores_section(
    records: Sequence[dict[str, Any]],
    scored: Sequence[dict[str, Any]],
    proposers: Sequence[str],
) -> dict:
    """ "scores" of results.json: the judge's scores of candidates against the verifier.

    records and scored: candidate and score records, one to one; candidates of other prompts than
    the shapes world's are passed over. Empty if there are no others.
    """
    images: list[tuple[float, bool, str]] = []
    regions: dict[str, list[tuple[float, bool, str]]] = {name: [] for name in proposers}
    prompts = []
    bar = tqdm(
        zip(records, scored, strict=True),
        total=len(scored),
        desc="evaluate, scores checked",
        unit="img",
        dynamic_ncols=True,
        disable=jax.process_index() != 0,
    )
    for record, result in bar:
        image, prompt = record["image"], record["prompt"]
        if image.shape[:2] != (verifier.SIDE, verifier.SIDE) or not _readable(prompt):
            continue
        prompts.append(record["prompt_id"])
        right = verifier.verify(image, prompt).right
        images.append((result["image_score"], right, result["image_status"]))
        for region in result["regions"]:
            if region["proposer"] not in regions:
                continue  # scored when the config named other proposers
            right = verifier.verify_region(image, region["bbox"], prompt)
            regions[region["proposer"]].append((region["score"], right, region["status"]))
    if not images:
        return {}
    found = {name: _judged(rows) for name, rows in regions.items()}
    section = result_sections.scores_section(found, proposers[0], _judged(images), prompts)
    for what, rows in (("image", images), ("region", regions[proposers[0]])):
        section[f"{what}_histogram"] = {
            name: calibration.histogram([score for score, right, _ in rows if right == wanted])
            for name, wanted in (("right", True), ("wrong", False))
        }
    return section


def verify_monitor(work: Workdir) -> None:
    """Puts the verifier's accuracy beside the own score of every check of the monitor of this
    round's training.

    "verified" is the share of right pictures among those of prompts that the verifier reads; absent
    where there are none.
    """
    train = work.stage("train")
    found = {row["step"]: row for row in monitor.curve(monitor.read(train))}
    for step, row in found.items():
        right = [
            verifier.verify(record["image"], record["prompt"]).right
            for record in monitor.sampled_images(train, step)
            if record["image"].shape[:2] == (verifier.SIDE, verifier.SIDE)
            and _readable(record["prompt"])
        ]
        if right:
            row["verified"] = float(np.mean(right))

    def change(results: dict[str, Any]) -> None:
        for part in results["rounds"]:
            if part["round"] == work.round and "train" in part:
                part["train"]["monitor"] = list(found.values())

    if found:
        update_results(work, change)


def _judged(rows: Sequence[tuple[float, bool, str]]) -> result_sections.Judged:
    scores, labels, status = zip(*rows, strict=True) if rows else ((), (), ())
    return result_sections.Judged(np.array(scores, np.float64), np.array(labels, bool), status)


# ------------------------------------------------------------------------------------ the writing


def _write(
    work: Workdir,
    folder: epath.Path,
    arms: dict[str, ModelOutputs],
    parts: dict[str, Any],
    given: Tasks,
) -> dict[str, str]:
    """Writes what was measured; returns the stage's outputs."""
    firsts = {name: arm.firsts() for name, arm in arms.items()}
    outputs = {"evaluation": "evaluation.json"}
    write_json(folder / "evaluation.json", {**parts, "prompts": outcomes(firsts)})
    if "trained" in arms:
        outputs["pairs"] = "pairs.json"
        write_json(folder / "pairs.json", write_pairs(folder, firsts["base"], firsts["trained"]))
    for name, found in examples(folder, arms, given).items():
        if found:
            outputs[f"examples-{name}"] = f"examples-{name}.json"
            write_json(folder / outputs[f"examples-{name}"], found)
    update_round(work, **parts)
    return outputs


def outcomes(firsts: dict[str, ModelOutputs]) -> list[dict[str, Any]]:
    """Per prompt what the verifier said of each model's picture."""
    rows = []
    for i, record in enumerate(firsts["base"].records):
        row = {name: record[name] for name in ("prompt_id", "prompt", "category")}
        for name, arm in firsts.items():
            row |= {f"{name}_correct": arm.verdicts[i].right}
            row |= {f"{name}_reason": arm.verdicts[i].reason}
        rows.append(row)
    return rows


def choose_pairs(
    base: Sequence[bool], trained: Sequence[bool], categories: Sequence[str], count: int = PAIRS
) -> list[int]:
    """Places of `count` prompts: the first of each outcome and category, then the second, ..."""
    turns: collections.Counter[tuple] = collections.Counter()
    ordered = []
    for i, key in enumerate(zip(base, trained, categories, strict=True)):
        ordered.append((turns[key], i))
        turns[key] += 1
    return sorted(i for _, i in sorted(ordered)[:count])


def write_pairs(
    folder: epath.Path, base: ModelOutputs, trained: ModelOutputs
) -> list[dict[str, Any]]:
    """Writes chosen pictures of both models as PNG and returns what pairs.json says of them."""
    categories = [record["category"] for record in base.records]
    kept = []
    for i in choose_pairs(base.right, trained.right, categories):
        record = base.records[i]
        pair = {"prompt": record["prompt"], "category": record["category"]}
        for name, arm in (("base", base), ("trained", trained)):
            file = f"pairs/{record['prompt_id']}-{name}.png"
            _write_png(folder / file, arm.records[i]["image"])
            pair |= {f"{name}_image": file, f"{name}_correct": arm.verdicts[i].right}
        kept.append(pair)
    return kept


def examples(
    folder: epath.Path, arms: dict[str, ModelOutputs], given: Tasks
) -> dict[str, list[dict]]:
    """What the models made of the first scenes and edits; writes what they saw as PNG.

    captions: {"kind", "image", "base_caption", "base_correct", …} each, edits: {"kind",
    "instruction", "image", "base_image", "base_correct", …}; files are relative to `folder`.
    """
    captions, edits = [], []
    for i, scene in enumerate(given.scenes[:SHOWN]):
        shown = {"kind": arms["base"].captions[i]["kind"], "image": f"examples/captions-{i}.png"}
        for name, arm in arms.items():
            made = arm.captions[i]
            shown |= {f"{name}_caption": made["given"], f"{name}_correct": made["right"]}
        _write_png(folder / shown["image"], draw(scene))
        captions.append(shown)
    for i, edit in enumerate(given.edits[:SHOWN]):
        shown = {"kind": edit.kind, "instruction": edit.instruction}
        shown |= {"image": f"examples/edits-{i}.png"}
        for name, arm in arms.items():
            made = arm.edits[i]
            shown |= {f"{name}_image": made["image"], f"{name}_correct": made["right"]}
        _write_png(folder / shown["image"], draw(edit.source))
        edits.append(shown)
    return {"captions": captions, "edits": edits}


def _write_png(path: epath.Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pictures.encode_png(image))
