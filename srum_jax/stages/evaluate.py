"""Stage `evaluate`: the base and the trained model put to every suite that the config names.

Owns the order of the work and what is written: this round's entry in results.json, evaluation.json,
and records with pictures to look at. What is asked, and what is right, is a suite's own
(`evals/suite.py`). Every reply is kept in the stage's folder and not asked for twice. Where a suite
has an exact verifier, the judge's scores and the training monitor are held against it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from srum_jax import disk
from srum_jax.config import Config
from srum_jax.core import files, registry
from srum_jax.core.files import write_json
from srum_jax.data import images as pictures
from srum_jax.data import prompts as prompt_lists
from srum_jax.data import shards
from srum_jax.evals import suite_cost, suite_folder
from srum_jax.evals.benchmark import Benchmark
from srum_jax.evals.suite import Findings, ModelOutputs, Replies, Requests, Suite, Verifier
from srum_jax.evals.suite_judges import SuiteJudge
from srum_jax.generation import families
from srum_jax.rewards import external, question_templates
from srum_jax.stages import adjusted, judges, loading, preflight, replies, thinking, verified
from srum_jax.stages.manifest import (
    Manifest,
    Outcome,
    Workdir,
    candidates_of,
    run_stage,
)
from srum_jax.stages.preflight import Checks, Cost

SCHEMA = 1  # of a suite's section in results.json
JUDGES = "judges.json"  # what benchmarks' judges are

Outputs = Mapping[str, Mapping[str, ModelOutputs]]  # of each suite, by model


def check(cfg: Config, work: Workdir, found: Checks) -> None:
    """Suites whose data is there and whose prompts the model can read, room for their pictures."""
    for name in ("train", "score"):
        if name in cfg.stages:
            found.needs(work, name)
    judges.check(cfg, found)
    weights = preflight.weights(cfg, work, found)
    if weights:
        with found.noting():
            reader = loading.prompt_reader(weights)
            suites = named(cfg, loading.language(weights))
            for suite in suites:
                prompt_lists.check(suite.prompts, reader)
                note_cost(cfg, suite, found)
            check_thinking(cfg, weights, suites)
            check_judges(cfg, suites, found)
            models = ("base", "trained") if "train" in cfg.stages else ("base",)
            asked = [suite.requests(model) for suite in suites for model in models]
            images, edits = (
                cfg.rounds * sum(len(getattr(one, kind)) for one in asked)
                for kind in ("images", "edits")
            )
            each = disk.picture_bytes(cfg.sample.size, preflight.layout(weights))
            what = "{:,} pictures of {}x{}".format(images, *cfg.sample.size)
            what += f" and {edits:,} edits" if edits else ""
            found.costs.append(Cost("evaluate", what, (images + edits) * each))


def check_thinking(cfg: Config, weights: Any, suites: Sequence[Suite]) -> None:
    """Raises BadInput where the model, whose parts lie in `weights`, is to think and cannot, or a
    suite leaves it no room to."""
    if not cfg.evaluate.think_tokens:
        return
    family = families.find(weights.folder, weights.base)
    thinking.check(family, loading.described(weights)[1], "evaluate.think_tokens")
    for suite in suites:
        replies.check_thinking(suite.requests("base"))


def note_cost(cfg: Config, suite: Suite, found: Checks) -> None:
    """What a benchmark will ask of models, and what judges will be asked."""
    models, asked = 1 + ("train" in cfg.stages), cfg.evaluate.judges
    if isinstance(suite, Benchmark):
        think_tokens = cfg.evaluate.think_tokens
        found.notes += suite_cost.lines(suite, asked, models, think_tokens=think_tokens)
    else:
        found.notes += suite_cost.of_judges(suite, asked, models)


def check_judges(cfg: Config, suites: Sequence[Suite], found: Checks) -> None:
    """Whether the external judge answers, where a suite asks it."""
    if "external" in cfg.evaluate.judges and any(s.judged and s.asks("external") for s in suites):
        with found.noting():
            external.reach(judges.endpoint(cfg.score))


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Measures the model that this round starts from and, if the run trains, the one it trained.

    Raises FileNotFoundError or ValueError where weights, a suite's data or a stage before are
    missing.
    """
    weights = loading.source(cfg, work)
    suites = named(cfg, loading.language(weights))
    reader = loading.prompt_reader(weights)
    inputs = {
        "model": loading.fingerprint(*weights.folders),
        "protocol": question_templates.protocol_hash(),
        **adjusted.inputs(cfg, work),
    }
    for suite in suites:
        prompt_lists.check(suite.prompts, reader)
        inputs[f"suite {suite.name}"] = suite.digest
    for name in ("train", "score"):
        if name in cfg.stages:
            inputs[name] = Manifest.read(work.stage(name)).hash

    def body(folder: epath.Path) -> Outcome:
        with loading.measured() as spent:
            here = loading.own_mesh(cfg, work, mesh, models=2)  # base and trained
            with jax.set_mesh(here):
                outcome = evaluate(adjusted.in_use(cfg, work), here, work, folder, suites)
        return dataclasses.replace(outcome, **dataclasses.asdict(spent))

    sections = ("model", "sample", "score", "evaluate", "generate.shard_size", "compute.dtype")
    return run_stage("evaluate", cfg, work, sections=sections, inputs=inputs, body=body)


def named(cfg: Config, language: str) -> tuple[Suite, ...]:
    """The suites of `evaluate.suites`, each "NAME" or "NAME:PATH of its data".

    language: the one that the models read (`data/languages.py`). Raises BadInput for an unknown
    name, and what a suite raises about its data.
    """
    entries = (entry.partition(":") for entry in cfg.evaluate.suites)
    return tuple(
        registry.load(registry.SUITES, name).make(cfg, data, language) for name, _, data in entries
    )


def evaluate(
    cfg: Config,
    mesh: jax.sharding.Mesh,
    work: Workdir,
    folder: epath.Path,
    suites: Sequence[Suite],
) -> Outcome:
    """Has both models reply to every suite; writes evaluation.json and this round's results."""
    said, panel = replied(cfg, mesh, work, folder, suites)
    outputs = {
        suite.name: {
            name: ModelOutputs(requests, replies_, suite.verdicts(requests, replies_))
            for name, (requests, replies_) in said[suite.name].items()
        }
        for suite in suites
    }
    written, parts = {}, {}
    if jax.process_index() == 0:
        found = findings(cfg, work, folder, suites, outputs, panel)
        for suite in suites:
            write_official(folder / suite.name, suite, outputs[suite.name])
        exact = next((suite for suite in suites if suite.verifier), None)
        if exact:
            base = outputs[exact.name]["base"].replies
            if scores := judge_scores(cfg, work, exact.verifier, base):
                parts["scores"] = scores
        written = write(folder, found, parts)
        if exact and "train" in cfg.stages:
            if rows := verified.monitor_rows(work, exact.verifier):
                parts["train"] = {"monitor": rows}
    counts = count(outputs)
    items = counts["images"] + counts["answers"] + counts["edits"]
    return Outcome(written, counts, items=items, results=parts)


def replied(
    cfg: Config,
    mesh: jax.sharding.Mesh,
    work: Workdir,
    folder: epath.Path,
    suites: Sequence[Suite],
) -> tuple[dict[str, dict[str, tuple[Requests, Replies]]], dict[str, SuiteJudge]]:
    """(What each model was asked by each suite, and its replies with what judges say of them; the
    judges by their names in `evaluate.judges`.)

    The judge "self" is the model that the round starts from, of both models' pictures: one that
    changes between the two would compare nothing.
    """
    said: dict[str, dict[str, tuple[Requests, Replies]]] = {suite.name: {} for suite in suites}
    first = loaded = loading.base(cfg, work, mesh)
    asks = "self" in cfg.evaluate.judges and any(suite.judged for suite in suites)
    if not asks and not any(suite.requests("trained").scored for suite in suites):
        first = None  # lets go of what training replaced
    for name in ("base", "trained") if "train" in cfg.stages else ("base",):
        if name == "trained":
            loaded = loading.trained(loaded, cfg, work, mesh)
        asked = replies.model_under_test(loaded, cfg, mesh)
        for suite in suites:
            requests, place = suite.requests(name), folder / suite.name / name
            title = f"evaluate, {suite.name}: {name}"
            found = replies.replies(
                requests, place, loaded, asked, cfg, mesh, title=title, judge=first
            )
            said[suite.name][name] = (requests, found)
    panel = {}
    if any(suite.judged for suite in suites):
        panel = {
            one: replies.suite_judge(one, first or loaded, cfg, mesh) for one in cfg.evaluate.judges
        }
        for suite in (one for one in suites if one.judged):
            for name, (requests, found) in said[suite.name].items():
                how = dict(title=f"evaluate, {suite.name}: {name}")
                place = folder / suite.name / name
                found = replies.judged(suite, requests, found, place, panel, **how)
                said[suite.name][name] = (requests, found)
    return said, panel


def findings(
    cfg: Config,
    work: Workdir,
    folder: epath.Path,
    suites: Sequence[Suite],
    outputs: Outputs,
    panel: Mapping[str, SuiteJudge],
) -> dict[str, Findings]:
    """What each suite found, with all that is known of the judges, which is kept in `folder`."""
    every = [one for by_model in outputs.values() for one in by_model.values()]
    before = files.kept(folder / JUDGES) or {}
    told = suite_folder.judges_told(panel.values(), before, every)
    write_json(folder / JUDGES, told)
    return {
        suite.name: in_full(cfg, work, suite, suite.findings(outputs[suite.name]), told)
        for suite in suites
    }


def in_full(
    cfg: Config,
    work: Workdir,
    suite: Suite,
    found: Findings,
    told: Mapping[str, Mapping[str, Any]],
) -> Findings:
    """Findings with what the section says of judges, drawing and decoding; those of the exam of a
    world are its own."""
    if suite.verifier or not found.section:
        return found
    requests, c = suite.requests("base"), cfg.evaluate
    source = loading.source(cfg, work)
    edited = loading.editing(loading.settings(source), cfg)
    samplers = cfg.sample, edited, families.find(*source.folders).SAMPLER
    how = {
        "drawing": suite_folder.drawing(requests, *samplers, [c.seed], c.think_tokens),
        "decoding": suite_folder.decoding(requests, c.think_tokens),
    }
    section = with_judges(found.section, told) | {name: one for name, one in how.items() if one}
    return dataclasses.replace(found, section=section)


def with_judges(
    section: Mapping[str, Any], told: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """A section, and those inside it, with all that is told of the judge that each names."""
    more: dict[str, Any] = {}
    if judge := section.get("judge"):
        more["judge"] = {**judge, **told.get(judge["name"], {})}
    if inner := section.get("sections"):
        more["sections"] = {name: with_judges(one, told) for name, one in inner.items()}
    return {**section, **more}


def write_official(folder: epath.Path, suite: Suite, outputs: Mapping[str, ModelOutputs]) -> None:
    """Of a benchmark: its replies as lines, and what its official scorer reads."""
    if not isinstance(suite, Benchmark):
        return
    for name, one in outputs.items():
        place = folder / name / suite_folder.OFFICIAL
        place.mkdir(parents=True, exist_ok=True)
        suite.official(place, one.requests, one.replies)
        rows = suite_folder.reply_rows({name: one.verdicts})
        suite_folder.write_lines(folder / name / suite_folder.REPLIES, rows)


def judge_scores(cfg: Config, work: Workdir, verifier: Verifier, base: Replies) -> dict[str, Any]:
    """ "scores" of results.json; {} where the verifier can judge nothing.

    Measured on the candidates of the stage `score` if the run has it, otherwise on those of the
    base that it scored itself.
    """
    images, scores = base.images[: len(base.scores)], base.scores
    if "score" in cfg.stages:
        images, scores = map(shards.read, (candidates_of(cfg, work), work.stage("score")))
    return verified.scores_section(images, scores, cfg.score.proposers, verifier)


def count(outputs: Outputs) -> dict[str, int]:
    """Of all models and suites: prompts drawn, and replies by what they are."""
    every = [one for by_model in outputs.values() for one in by_model.values()]
    bases = [by_model["base"].requests for by_model in outputs.values()]
    said = [one.replies for one in every]
    return {
        "prompts": sum(len({one.prompt.id for one in asked.images}) for asked in bases),
        "images": sum(len(one.images) for one in said),
        "answers": sum(len(one.answers) + len(one.texts) for one in said),
        "edits": sum(len(one.edits) for one in said),
    }


# ------------------------------------------------------------------------------------ the writing


def write(
    folder: epath.Path, found: Mapping[str, Findings], parts: dict[str, Any]
) -> dict[str, str]:
    """Writes what the suites found and returns the stage's outputs.

    parts: of the round in results.json; those of the suites are added.
    """
    details: dict[str, Any] = {}
    outputs = {"evaluation": "evaluation.json"}
    for findings in found.values():
        parts.update(findings.fields)
        items = details.get("items", {}) | findings.details.get("items", {})
        details |= findings.details | ({"items": items} if items else {})
        for name, records in findings.examples.items():
            outputs[name] = f"{name}.json"
            write_json(folder / outputs[name], with_pictures(folder, name, records))
    measured = {
        name: {"schema": SCHEMA, "suite": name, **one.section}
        for name, one in found.items()
        if one.section
    }
    if measured:
        parts["suites"] = measured
    write_json(folder / "evaluation.json", {**parts, **details})
    return outputs


def with_pictures(
    folder: epath.Path, name: str, records: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Records whose images, uint8 [H,W,3], are written under `folder` as PNG and named in place."""
    written = []
    for i, record in enumerate(records):
        row = dict(record)
        for key, value in record.items():
            if isinstance(value, np.ndarray):
                row[key] = f"examples/{name.removeprefix('examples-')}-{i}-{key}.png"
                path = folder / row[key]
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_bytes(path, [pictures.encode_png(value)])
        written.append(row)
    return written
