"""Which self-reward recipe works: the arms of a plan, trained and measured on the shapes world.

The plan (`study_plan.json`) is written before anything runs: phases, arms, prompts, seeds, and the
rule that picks the winner. An arm is trained by the package's own stages and measured by the exact
verifier; every arm and seed leaves one JSON in results/, and what is there is not made again.

    python research/study/study.py --phase all --tables
    python research/study/study.py --phase choose [--arm NAME] [--seed S] [--minutes 60]
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import study_measure as measure
import study_plan
import study_tables
from study_plan import BASE, Arm, Phase, Plan

from srum_jax.config import Config, check_mesh, hash_json, section_values
from srum_jax.core import console, preemption, sharding
from srum_jax.core.errors import BadInput, Diverged, Preempted, Stopped
from srum_jax.core.files import read_json, write_json
from srum_jax.data import shards
from srum_jax.rewards import judge, question_templates
from srum_jax.rewards.boxes import regions
from srum_jax.stages import export, generate, judges, loading, score
from srum_jax.stages import train as training
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, device_name, run_stage, versions
from srum_jax.training import metrics
from srum_jax.worlds.shapes import exam, language, verifier
from srum_jax.worlds.shapes import questions as shapes_questions

SCHEMA = 1
ALL = "all"  # --phase: one after the other, while each has a winner
# What decides the candidates of a first round and their scores: arms that agree share them.
SHARED = ("model", "weights", "weights_base", "seed", "sample", "generate", "score")
# Config values that a result of an untrained model depends on, and those of a trained one besides.
MEASURED = ("model", "sample", "score", "evaluate.seed", "compute.dtype")
TRAINED = ("rounds", "generate", "train")
RESULTS, PAGE = study_plan.HERE / "results", study_plan.HERE / "README.md"


# ------------------------------------------------------------------------- what is there, what not


def identity(plan: Plan, phase: Phase, arm: Arm, seed: int, prompts: str) -> dict[str, Any]:
    """Everything that a result depends on: another value of any of it is another result.

    prompts: `study_plan.prompts_digest` of the phase.
    """
    cfg = study_plan.config_of(plan, arm, seed)
    return {
        "overrides": {**plan.common, **arm.overrides},
        "reward": arm.reward,
        "seed": seed,
        "weights": loading.fingerprint(*loading.source(cfg, Workdir("")).folders),
        "prompts": prompts,
        "protocol": question_templates.protocol_hash(),
        "measure": dataclasses.asdict(phase.measure),
        "config": section_values(cfg, MEASURED + (() if arm.name == BASE else TRAINED)),
    }


def result_path(folder: pathlib.Path, phase: Phase, arm: Arm, seed: int) -> pathlib.Path:
    return folder / f"{phase.name}-{arm.name}-s{seed}.json"


def finished(path: pathlib.Path, now: Mapping[str, Any]) -> bool:
    """Whether the result is there. Raises BadInput if it was made of something else.

    Config keys that only one of the two has changed nothing: the package has moved on.
    """
    if not path.exists():
        return False
    before, after = _leaves(read_json(path)["identity"]), _leaves(now)
    changed = sorted(
        key
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key)
        and not (key.startswith("config.") and (key not in before or key not in after))
    )
    if changed:
        lines = [f"{key}: was {before.get(key)!r}, is {after.get(key)!r}" for key in changed]
        raise BadInput(
            f"{path} was made of something else:\n  "
            + "\n  ".join(lines)
            + "\nPut it back (a default that changed: in the plan's common), or remove the file to "
            "run it again."
        )
    return True


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value}; tuples as the lists that JSON makes of them."""
    if isinstance(value, Mapping):
        parts = (_leaves(v, f"{prefix}.{k}" if prefix else k) for k, v in value.items())
        return {key: leaf for part in parts for key, leaf in part.items()}
    return {prefix: list(value) if isinstance(value, tuple) else value}


# ------------------------------------------------------------------------------------ the training


@contextlib.contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds the wall time of the block to `seconds[name]`."""
    start = time.monotonic()
    yield
    seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - start, 2)


def train(cfg: Config, mesh: Any, root: pathlib.Path, pool: pathlib.Path, reward: str) -> Any:
    """All rounds of an arm in `root`, by the package's stages; returns the last round's Workdir.

    First rounds come from `pool` where arms have them in common. What is there goes on.
    """
    for number in range(cfg.rounds):
        work = Workdir(root, number)
        if number == 0:
            weights = loading.fingerprint(*loading.source(cfg, work).folders)
            shared = Workdir(pool / hash_json([section_values(cfg, SHARED), weights]))
            generate.run(cfg, mesh, shared)
            link(shared, work, "generate")
        else:
            generate.run(cfg, mesh, work)
        if reward == "oracle":
            oracle_scores(cfg, work)
        elif number == 0:
            score.run(cfg, mesh, shared)
            link(shared, work, "score")
        else:
            score.run(cfg, mesh, work)
        training.run(cfg, mesh, work)
        if number + 1 < cfg.rounds:
            export.run(cfg, mesh, work)
    return work


def with_prompts(
    cfg: Config, drawn: Sequence[language.ScenePrompt], folder: pathlib.Path
) -> Config:
    """The config with these prompts to train on, in a file of their own in their order."""
    lines = [{"prompt": p.text, "category": p.category} for p in drawn]
    path = folder / f"{hash_json(lines)}.json"
    write_json(path, lines)
    generated = dataclasses.replace(cfg.generate, prompts=str(path), order="file")
    return dataclasses.replace(cfg, generate=generated)


def link(shared: Any, work: Any, stage: str) -> None:
    """Makes a finished stage of `shared` that of `work` too."""
    there, here = pathlib.Path(shared.stage(stage)), pathlib.Path(work.stage(stage))
    here.parent.mkdir(parents=True, exist_ok=True)
    if here.is_symlink():
        here.unlink()
    elif here.exists():
        raise BadInput(f"{here} is no link to {there}: remove it")
    here.symlink_to(os.path.relpath(there.resolve(), here.parent.resolve()), True)


@dataclasses.dataclass(frozen=True)
class OracleJudge:
    """The exact verifier in the judge's place: images and regions score +1 right, -1 wrong, a
    region is labelled with the object that it shows, and what a prompt states of its objects
    besides is answered by 1 or 0."""

    def judge(self, proposed: regions.Proposals, **_: Any) -> list[judge.Judgement]:
        """One judgement an image; what the exam cannot judge raises ValueError."""
        images = proposed.images
        right = exam.right_drawings([one.image for one in images], [one.prompt for one in images])

        def judged(one: regions.PromptedImage, box: regions.Box) -> judge.RegionJudgement:
            shown = verifier.region_shows(one.image, box, one.prompt)
            sign, label = (1.0, " ".join(shown)) if shown else (-1.0, "")
            return judge.RegionJudgement(box, sign, judge.OK, label, (), proposed.proposer)

        return [
            judge.Judgement(
                regions=tuple(judged(one, region.box) for region in found),
                image_score=1.0 if fits else -1.0,
                image_status=judge.OK,
                parts={},
                answers=_stated(one),
            )
            for one, fits, found in zip(images, right, proposed.regions, strict=True)
        ]


def _stated(one: regions.PromptedImage) -> tuple[judge.SoftAnswer, ...]:
    """What is so of a prompt's relation and sizes, as the judge's answers are stored: sizes in the
    order of its objects. Of an object that is not there nothing is said against its size."""
    is_so, scene = (
        verifier.stated(one.image, one.prompt),
        question_templates.decompose(one.prompt),
    )
    said = [("relation_yesno", 0, is_so["relation"])] if "relation" in is_so else []
    for place, spec in enumerate(scene.objects):
        if spec.size:
            said.append(("size", place, is_so.get((spec.color, spec.shape), True)))
    return tuple(judge.SoftAnswer(kind, at, float(so), judge.OK) for kind, at, so in said)


def oracle_scores(cfg: Config, work: Any) -> None:
    """The stage `score` of this round, by the oracle and the regions of the first proposer."""
    candidates = work.stage("generate")
    inputs = {"candidates": Manifest.read(candidates).hash, "reward": "oracle"}
    how = judges.scores_alone(cfg).score
    panel = judges.JudgePanel(OracleJudge(), (judges.proposer(how.proposers[0], how),))

    def body(folder: Any) -> Outcome:
        outcome = score.score(shards.read(candidates), folder, how, panel)
        return dataclasses.replace(outcome, outputs={"scores": "."})  # it is not calibrated

    run_stage("score", cfg, work, sections=("score",), inputs=inputs, body=body)


def effort(cfg: Config, root: pathlib.Path) -> tuple[dict[str, int], dict[str, float]]:
    """({"rounds", "drawn", "trained", "steps"}, {stage: seconds}) over all rounds of an arm."""

    counts = {"rounds": cfg.rounds, "drawn": 0, "trained": 0, "steps": 0}
    seconds = dict.fromkeys(("generate", "score", "train"), 0.0)
    for number in range(cfg.rounds):
        found = {s: Manifest.read(Workdir(root, number).stage(s)) for s in seconds}
        counts["drawn"] += found["generate"].counts["candidates"]
        counts["trained"] += found["train"].counts["candidates"]
        counts["steps"] += found["train"].counts["steps"]
        for stage, manifest in found.items():
            seconds[stage] = round(seconds[stage] + manifest.timing["seconds"], 2)
    return counts, seconds


# --------------------------------------------------------------------------------- an arm's result


def made(
    plan: Plan, phase: Phase, arm: Arm, seed: int, mesh: Any, workdir: pathlib.Path
) -> dict[str, Any]:
    """Trains an arm with a seed, measures it, and returns its result; see `study_tables`."""
    cfg, m = study_plan.config_of(plan, arm, seed), phase.measure
    root = workdir / f"{phase.name}-{arm.name}-s{seed}"
    result: dict[str, Any] = {"work": {}, "seconds": {}}
    start, seconds = time.monotonic(), result["seconds"]
    if arm.name == BASE:
        opened = loading.base(cfg, Workdir(root), mesh)
    else:
        try:
            if plan.seeded_prompts:
                drawn = study_plan.trained_prompts(plan, cfg)
                cfg = with_prompts(cfg, drawn, workdir / "prompts")
            work = train(cfg, mesh, root, workdir / "pool", arm.reward)
        except Diverged as e:
            result["diverged"] = str(e)
            seconds["total"] = round(time.monotonic() - start, 1)
            return result
        result["work"], spent = effort(cfg, root)
        seconds |= spent
        opened = loading.trained(loading.base(cfg, work, mesh), cfg, work, mesh)
        rows = metrics.read(work.stage("train") / "metrics.jsonl")
        result["monitor"] = [row for row in rows if any(key.startswith("monitor") for key in row)]
    sampler = measure.PromptSampler(opened, cfg, mesh)
    texts = [prompt.text for prompt in study_plan.drawn_prompts(plan, phase)]
    with clock(seconds, "tuning"):
        tuning = [prompt.text for prompt in study_plan.tuning_prompts(plan, phase)]
        tuned = {} if m.cross_fitted else measure.best_scale(sampler, tuning, m.grid)
    scales = {"one": measure.PLAIN, "fixed": m.scale, "best": tuned.get("best", m.scale)}
    every = (*scales.values(), *(m.grid if m.cross_fitted else ()))
    with clock(seconds, "draw"):
        result |= {"at": scales, "right": measure.accuracy(sampler, texts, every)}
    grid = {str(scale): result["right"][str(scale)] for scale in m.grid} if m.cross_fitted else {}
    result["guidance"] = tuned or {"best": m.scale, "grid": grid}
    listed = m.questions
    if cfg.evaluate.edits:  # a model that cannot edit is asked for none
        with clock(seconds, "edit"):
            changes = exam.edits(listed.split, listed.count, plan.setting)
            result["edits"] = measure.edits(sampler, changes)
    if arm.name == BASE or not loading.answers_stay(cfg.train, opened.family):
        with clock(seconds, "ask"):
            asked = shapes_questions.qa_set(listed.split, listed.count, listed.seed, plan.setting)
            result["answers"] = measure.answers(sampler, asked)
    with clock(seconds, "watch"):
        result["own"] = measure.watch(sampler, texts[: m.own_prompts], m.own_draws, m.scale)
    if arm.name == BASE:
        with clock(seconds, "best_of"):
            result["best_of"] = measure.best_of(
                sampler, texts[: m.best_of], m.own_draws, scales["best"]
            )
    seconds["total"] = round(time.monotonic() - start, 1)
    return result


# ------------------------------------------------------------------------------- one after another


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def run(
    plan: Plan,
    phase: Phase,
    *,
    results: pathlib.Path,
    workdir: pathlib.Path,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    minutes: float = 0.0,
) -> bool:
    """Makes what is missing of a phase, seeds outermost; True when nothing of it is left.

    arms, seeds: only these (empty: all). Stops before an arm that would not end within `minutes`
    (0: no limit), if it takes as long as the others did. Raises BadInput for a changed arm.
    """
    for what, given, known in (
        ("--arm", arms, [arm.name for arm in phase.arms]),
        ("--seed", seeds, phase.seeds),
    ):
        for one in given:
            if one not in known:
                raise BadInput(f"{what} {one} is none of phase {phase.name}'s: {known}")
    todo, took = [], []
    prompts = study_plan.prompts_digest(plan, phase)
    for seed in phase.seeds:
        for arm in phase.arms:
            now = identity(plan, phase, arm, seed, prompts)
            path = result_path(results, phase, arm, seed)
            if finished(path, now):
                took.append(read_json(path)["seconds"]["total"])
            elif (not arms or arm.name in arms) and (not seeds or seed in seeds):
                todo.append((arm, seed, now, path))
    say(f"phase {phase.name}: {len(took)} results are there, {len(todo)} to make")
    if not todo:
        return True
    cfg = study_plan.config_of(plan, phase.arms[0], phase.seeds[0])
    mesh = sharding.make_mesh(cfg.mesh)
    start = time.monotonic()
    for number, (arm, seed, now, path) in enumerate(todo):
        expected = float(np.mean(took)) if took else 0.0
        if minutes and time.monotonic() - start + expected > 60 * minutes:
            say(f"stopped: the next takes about {expected / 60:.1f} min; {len(todo) - number} left")
            return False
        left = f", about {expected * (len(todo) - number) / 60:.0f} min left" if took else ""
        say(f"{number + 1} of {len(todo)}: {arm.name}, seed {seed}{left}")
        check_mesh(study_plan.config_of(plan, arm, seed), mesh.shape)
        with jax.set_mesh(mesh):
            result = made(plan, phase, arm, seed, mesh, workdir)
        head = {"schema": SCHEMA, "phase": phase.name, "arm": arm.name, "seed": seed}
        about = {"hash": hash_json(now), "identity": now, "versions": versions()}
        write_json(path, {**head, **about, "device": device_name(), **result})
        took.append(result["seconds"]["total"])
        root = workdir / f"{phase.name}-{arm.name}-s{seed}"
        for folder in root.glob("round*/train/checkpoints"):
            shutil.rmtree(folder)  # most of the disk; a finished stage needs them no more
        if preemption.stop.is_set():
            raise Preempted(f"told to stop: {len(todo) - number - 1} left")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plan", default=study_plan.HERE / "study_plan.json")
    parser.add_argument("--phase", help="make what is missing of this phase, or of all")
    parser.add_argument("--arm", action="append", default=[], help="only this arm (may repeat)")
    parser.add_argument("--seed", action="append", default=[], type=int, help="only this seed")
    parser.add_argument("--workdir", default="runs/study", type=pathlib.Path)
    parser.add_argument("--minutes", default=0.0, type=float, help="start nothing that ends later")
    parser.add_argument("--results", default=RESULTS, type=pathlib.Path)
    parser.add_argument("--tables", action="store_true", help="write the tables and plots")
    parser.add_argument("--page", default=PAGE, type=pathlib.Path)
    args = parser.parse_args(argv)
    if not args.phase and not args.tables:
        parser.error("give --phase NAME or --tables")
    try:
        plan = study_plan.load_plan(args.plan)
        if args.phase:
            every = args.phase == ALL
            phases = plan.phases if every else (plan.phase(args.phase),)
            console.log_to_stderr()
            cfg = study_plan.config_of(plan, phases[0].arms[0], phases[0].seeds[0])
            console.cache_compiled_programs()
            if cfg.compute.cpu_devices:
                jax.config.update("jax_num_cpu_devices", cfg.compute.cpu_devices)
            preemption.install()
            for phase in phases:
                run(
                    plan,
                    phase,
                    results=args.results,
                    workdir=args.workdir.resolve(),
                    arms=args.arm,
                    seeds=args.seed,
                    minutes=args.minutes,
                )
                chosen, said = study_tables.winner(study_tables.gather(plan, phase, args.results))
                if every and chosen is None:
                    raise BadInput(f"phase {phase.name} ends here: {said}")
        if args.tables:
            for line in study_tables.write(plan, args.results, args.page):
                print(line)
    except (Stopped, ValueError, FileNotFoundError) as e:
        print(f"error: {e}", file=sys.stderr)
        return getattr(e, "exit_code", BadInput.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
