"""Stage `adjust`: of what training left, the model that gains most and loses nowhere too much.

Tries kept checkpoints, shares of what they changed in the base, and scales of guidance, each asked
on validation data; `evals/choice.py` owns the rule. The target comes first: what could gain nothing
is asked nothing more. Only then, and where `evaluate` has not measured that very model, the chosen
one is put to the suites of `evaluate`, once. Leaves its leaves under `params/`, none where the base
stays, and "adjust" and "adjusted" of this round in results.json. Every reply is kept in the stage's
folder and not asked for twice.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

from srum_jax import disk
from srum_jax.config import Config
from srum_jax.core import registry
from srum_jax.core.constraints import limits_of_loss
from srum_jax.core.errors import BadInput, quoted
from srum_jax.data import prompts as prompt_lists
from srum_jax.data import shards
from srum_jax.evals import choice, choosing, suite_cost
from srum_jax.evals.benchmark import Benchmark
from srum_jax.evals.choice import Candidate, Choice, Rule
from srum_jax.evals.suite import Suite
from srum_jax.rewards import question_templates
from srum_jax.stages import adjusted, evaluate, focus, loading, monitor, preflight
from srum_jax.stages.asking import MODEL, Asking, Validation
from srum_jax.stages.loading import LoadedModel
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, candidates_of, run_stage
from srum_jax.stages.preflight import Checks, Cost
from srum_jax.stages.rollout import Rollout
from srum_jax.training import checkpoint

TEST = "test"  # folder of what the chosen model replies to the suites of `evaluate`


@dataclasses.dataclass(frozen=True)
class Kept:
    """Averaged leaves after `step` steps; `whole`: in a checkpoint beside the rest of its state."""

    step: int
    place: epath.Path
    whole: bool = False

    def read(self, loaded: LoadedModel, cfg: Config, mesh: jax.sharding.Mesh) -> Any:
        """The leaves, float32, on `mesh`. Raises BadInput where their files are damaged."""
        like = loading.trained_places(loaded, cfg, mesh)
        load = checkpoint.load_averaged if self.whole else checkpoint.load_params
        return load(self.place, like)


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is tried: `share` of what training had changed in the base after some steps."""

    kept: Kept
    share: float
    guidance: float

    @property
    def name(self) -> str:
        """Of the folder of its replies that guidance does not change."""
        return f"{self.kept.step}-{self.share:g}"

    @property
    def words(self) -> dict[str, Any]:
        """As results.json names it."""
        return {"step": self.kept.step, "share": self.share, "guidance": self.guidance}


# ------------------------------------------------------------------------------ before it is run


def check(cfg: Config, work: Workdir, found: Checks) -> None:
    """Validation data that evaluation does not have, metrics that it measures, room for pictures;
    says what is asked at most."""
    c = cfg.adjust
    for name in ("train", "evaluate"):
        if name in cfg.stages or name == "train":
            found.needs(work, name)
    found.problems += problems(cfg)
    weights = preflight.weights(cfg, work, found)
    if not weights or (c.prompts == choosing.HELD_BACK and found.made_later(work, "generate")):
        return
    with found.noting():
        suites = validation(cfg, work, loading.language(weights))
        for suite in suites:
            prompt_lists.check(suite.prompts, loading.prompt_reader(weights))
        evaluate.check_thinking(cfg, weights, suites)
        asked = [suite.requests(MODEL) for suite in suites]
        tried = choosing.tried(c)
        images, said, edits = (
            (1 + tried) * sum(sum(len(getattr(one, kind)) for kind in kinds) for one in asked)
            for kinds in (("images",), ("answers", "texts"), ("edits",))
        )
        each = disk.picture_bytes(cfg.sample.size, preflight.layout(weights))
        what = (
            f"the base and at most {tried} models, in each of {cfg.rounds} rounds {images:,} "
            f"pictures and, of those that gain, {said:,} answers and {edits:,} edits"
        )
        found.costs.append(Cost("adjust", what, cfg.rounds * (images + edits) * each))
        note_judges(cfg, suites, cfg.rounds * (1 + tried), found)


def note_judges(cfg: Config, suites: Sequence[Suite], times: int, found: Checks) -> None:
    """What judges are asked at most, and whether an external one answers, where the rule goes by a
    metric that they have a say in."""
    wanted = (cfg.adjust.target, *limits_of_loss(cfg.adjust.floors))
    asking = [s for s in suites if any(not s.measured_by.get(name, ("",)) for name in wanted)]
    for suite in asking:
        lines = suite_cost.of_judges(suite, cfg.evaluate.judges, times)
        found.notes += [f"adjust, at most: {line}" for line in lines]
    evaluate.check_judges(cfg, asking, found)


def problems(cfg: Config) -> Iterator[str]:
    """What is wrong with the config's `adjust` section beside others, a line each."""
    if cfg.adjust.prompts == cfg.generate.prompts:
        yield f"adjust.prompts = {quoted(cfg.adjust.prompts)} are trained on: choose by others"
    names = [entry.partition(":")[0] for entry in cfg.adjust.suites]
    for name in sorted(set(names)):
        if names.count(name) > 1:  # replies and metrics are kept by a suite's name
            yield f"adjust.suites names {quoted(name)} twice"
    for entry in cfg.adjust.suites:
        name, _, data = entry.partition(":")
        tested = data == "test" or (data and entry in cfg.evaluate.suites)
        if tested or (name in registry.WORLDS and not data):
            yield (
                f"adjust.suites: {quoted(entry)} must name validation data, which evaluate.suites "
                f'does not have, as "{name}:PATH" or "shapes:validation"'
            )


def validating(cfg: Config, work: Workdir) -> Config:
    """`cfg` whose `evaluate` section asks what `adjust` says, with the guidance in use."""
    held_back = str(work.stage("generate") / "held_back.json")
    prompts = held_back if cfg.adjust.prompts == choosing.HELD_BACK else cfg.adjust.prompts
    asked = choosing.asked(cfg.adjust, cfg.evaluate, prompts)
    return dataclasses.replace(adjusted.in_use(cfg, work), evaluate=asked)


def validation(cfg: Config, work: Workdir, language: str) -> tuple[Suite, ...]:
    """The suites of `adjust.suites`. Raises BadInput for one that is unknown, whose data is not
    there or is evaluated on, and where none measures the target or a floor."""
    suites = evaluate.named(validating(cfg, work), language)
    wanted = (cfg.adjust.target, *limits_of_loss(cfg.adjust.floors))
    for name in wanted:
        kinds = next((s.measured_by[name] for s in suites if name in s.measured_by), None)
        if kinds is None:
            known = ", ".join(sorted({name for suite in suites for name in suite.measured_by}))
            raise BadInput(
                f"adjust: {quoted(name)} is measured by no suite of adjust.suites: {known}"
            )
    if "evaluate" in cfg.stages:
        tested = evaluate.named(cfg, language)
        pairs = prompt_lists.leaks(
            [p for suite in suites for p in suite.prompts],
            [p for suite in tested for p in suite.prompts],
        )
        if pairs:
            one, other = pairs[0]
            raise BadInput(
                f"adjust: {len(pairs)} of the prompts to choose by are evaluated on, the first "
                f"{quoted(one.text)} ({one.where}; {other.where}): name others"
            )
        data = {s.data.sha256: s.data.file for s in tested if isinstance(s, Benchmark)}
        for suite in suites:
            if isinstance(suite, Benchmark) and suite.data.sha256 in data:
                raise BadInput(
                    f"adjust.suites: {suite.data.file} holds what evaluate.suites ask of "
                    f"{data[suite.data.sha256]}: name another file"
                )
    return suites


# ---------------------------------------------------------------------------------------- the stage


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Chooses, and measures what was chosen.

    Raises FileNotFoundError or ValueError where weights, a suite's data or a stage before are
    missing.
    """
    if faults := list(problems(cfg)):
        raise BadInput("\n".join(faults))
    weights = loading.source(cfg, work)
    suites = validation(cfg, work, loading.language(weights))
    inputs = {
        "model": loading.fingerprint(*weights.folders),
        "protocol": question_templates.protocol_hash(),
        **adjusted.inputs(cfg, work),
    }
    for suite in suites:
        prompt_lists.check(suite.prompts, loading.prompt_reader(weights))
        inputs[f"suite {suite.name}"] = suite.digest
    for name in ("train", "evaluate"):
        if name in cfg.stages or name == "train":
            inputs[name] = Manifest.read(work.stage(name)).hash

    def body(folder: epath.Path) -> Outcome:
        with loading.measured() as spent:
            here = loading.own_mesh(cfg, work, mesh, models=4)  # base, two of leaves, a mixture
            with jax.set_mesh(here):
                outcome = adjust(cfg, here, work, folder, suites)
        if outcome.results["adjust"]["chosen"]["share"]:
            save(cfg, mesh, work, folder, outcome.results["adjust"]["chosen"])
        return dataclasses.replace(outcome, **dataclasses.asdict(spent))

    sections = (
        *("model", "sample", "score", "adjust", "evaluate", "generate.shard_size"),
        *("compute.dtype", "train.trainable"),
    )
    return run_stage("adjust", cfg, work, sections=sections, inputs=inputs, body=body)


def adjust(
    cfg: Config,
    mesh: jax.sharding.Mesh,
    work: Workdir,
    folder: epath.Path,
    suites: Sequence[Suite],
) -> Outcome:
    """Tries, chooses, measures what was chosen; its leaves are not written yet."""
    c, start = cfg.adjust, adjusted.in_use(cfg, work).sample.guidance
    floors = {name: choice.POINT * points for name, points in limits_of_loss(c.floors).items()}
    rule = Rule(c.target, floors, c.folds, c.seed)
    loaded = loading.base(cfg, work, mesh)
    checked = validating(cfg, work)
    asked = Validation(Asking(checked, mesh, folder, loaded), suites)
    first, *others = (rule.target, *rule.floors)
    base = Candidate(
        asked.metrics(loaded, "base", start, (first,))[first],
        asked.metrics(loaded, "base", start, others),
    )
    tried: dict[Trial, Candidate] = {}
    for one, share in itertools.product(kept(cfg, work), sorted(c.shares)):
        model = mixture(loaded, cfg, one, share, mesh)
        for scale in c.guidance or (start,):
            trial = Trial(one, share, scale)
            tried[trial] = try_one(asked, model, trial, rule, base)
        del model
    # The order in which equals are preferred: the smaller change, then the later checkpoint.
    trials = sorted(tried, key=lambda one: one.share)
    candidates = [tried[trial] for trial in trials]
    made = rule.choose(base, candidates)
    section = told(rule, base, trials, candidates, made, start)
    parts: dict[str, Any] = {"adjust": section}
    written: dict[str, str] = {}
    trial = None if made.chosen is None else trials[made.chosen]
    if trial:
        written["params"] = "params"
    if "evaluate" in cfg.stages:
        section["measured_as"] = measured_as(trial, work, start)
        if section["measured_as"] == "adjusted":
            parts["adjusted"], files = measure(cfg, mesh, work, folder, loaded, trial)
            written |= files
    section["next"] = following(cfg, work, section["chosen"]["guidance"])
    logging.info("adjust: %s: %s", section["chosen"], section["why"])
    counts = {"tried": len(trials), "allowed": sum(row["allowed"] for row in section["tried"])}
    return Outcome(written, counts, items=len(trials), results=parts)


def measured_as(trial: Trial | None, work: Workdir, guidance: float) -> str:
    """As which model `evaluate` has measured the chosen one, None for the base: "base", "trained",
    or "adjusted" for one that it has not. guidance: with which it drew."""
    if trial is None:
        return "base"
    same = trial.share == 1 and trial.kept.place == work.stage("train") / "params"
    return "trained" if same and trial.guidance == guidance else "adjusted"


def mixture(
    loaded: LoadedModel, cfg: Config, one: Kept, share: float, mesh: jax.sharding.Mesh
) -> LoadedModel:
    """The base `loaded` with `share` of what training had changed."""
    made = loading.shared(loaded, cfg, one.read(loaded, cfg, mesh), share)
    return loading.with_made(loaded, cfg, made)


def kept(cfg: Config, work: Workdir) -> list[Kept]:
    """What this round's training left to choose from: what it would export, the monitor's best
    check, then the newest, at most `adjust.checkpoints`.

    Nothing that came after the last good check where the monitor ended the training.
    """
    train = work.stage("train")
    manifest = Manifest.read(train)
    facts = manifest.results.get("train", {})
    last = facts.get("weights_of", manifest.counts.get("steps", cfg.train.steps))
    checks = monitor.kept(train)
    found = {step: Kept(step, place) for step, place in checks.items()}
    if "stopped_at" not in facts:
        for step in checkpoint.steps(train / "checkpoints"):
            found.setdefault(step, Kept(step, train / "checkpoints" / str(step), whole=True))
    found[last] = Kept(last, train / "params")
    best = facts.get("best", {}).get("step", last)
    order = dict.fromkeys((last, best, *sorted(found, reverse=True)))
    return [found[step] for step in order if step and step in found][: cfg.adjust.checkpoints]


def save(
    cfg: Config, mesh: jax.sharding.Mesh, work: Workdir, folder: epath.Path, one: Mapping[str, Any]
) -> None:
    """Writes the chosen leaves as the stage `train` writes its own."""
    (place,) = (place for place in kept(cfg, work) if place.step == one["step"])
    loaded = loading.base(cfg, work, mesh, want=("model",))
    made = loading.shared(loaded, cfg, place.read(loaded, cfg, mesh), one["share"])
    checkpoint.save_params(folder / "params", made)


def try_one(
    asked: Validation, model: LoadedModel, trial: Trial, rule: Rule, base: Candidate
) -> Candidate:
    """What a model is worth; its floors where it could be chosen."""
    target = asked.metrics(model, trial.name, trial.guidance, (rule.target,))[rule.target]
    if not rule.worth_measuring(base, target):
        return Candidate(target)
    floors = asked.metrics(model, trial.name, trial.guidance, tuple(rule.floors))
    return Candidate(target, floors)


def measure(
    cfg: Config,
    mesh: jax.sharding.Mesh,
    work: Workdir,
    folder: epath.Path,
    loaded: LoadedModel,
    trial: Trial,
) -> tuple[dict[str, Any], dict[str, str]]:
    """(parts of a round as `evaluate` has them with the chosen model as "trained", outputs).

    The base's replies are those that `evaluate` kept.
    """
    used = adjusted.in_use(cfg, work)
    model = mixture(loaded, cfg, trial.kept, trial.share, mesh)
    suites = evaluate.named(cfg, loading.language(loaded.source))
    place, before = folder / TEST, work.stage("evaluate")
    asking = Asking(used, mesh, place, loaded)
    outputs = {
        suite.name: {
            "base": asking.evaluated(suite, before / suite.name / "base"),
            MODEL: asking.outputs(suite, suite.requests(MODEL), suite.name, model, trial.guidance),
        }
        for suite in suites
    }
    if jax.process_index():
        return {}, {}
    drawn = dataclasses.replace(used.sample, guidance=trial.guidance)
    used = dataclasses.replace(used, sample=drawn)
    panel = asking.panel if any(suite.judged for suite in suites) else {}
    found = evaluate.findings(used, work, place, suites, outputs, panel)
    for suite in suites:
        evaluate.write_official(place / suite.name, suite, {MODEL: outputs[suite.name][MODEL]})
    parts: dict[str, Any] = {}
    return parts, evaluate.write(folder, found, parts)


# ------------------------------------------------------------------------------------- what is said


def told(
    rule: Rule,
    base: Candidate,
    trials: Sequence[Trial],
    candidates: Sequence[Candidate],
    made: Choice,
    guidance: float,
) -> dict[str, Any]:
    """ "adjust" of results.json, but for what comes after the choice; differences to the base are
    shares of the highest value."""
    rows = []
    for trial, one in zip(trials, candidates, strict=True):
        floors = {n: m.number - base.floors[n].number for n, m in one.floors.items()}
        row = _defined({"target": one.target.number - base.target.number})
        row["floors"] = _defined(floors)
        rows.append(trial.words | row | {"allowed": rule.allowed(base, one)})
    stays = {"step": 0, "share": 0.0, "guidance": guidance, "target": 0.0}
    stays["floors"] = dict.fromkeys(rule.floors, 0.0)
    crossfit = {rule.target: made.gain, **made.floors}
    return {
        "rule": rule.words,
        "target": rule.target,
        "floors": dict(rule.floors),
        "base": _defined(
            {n: m.number for n, m in {rule.target: base.target, **base.floors}.items()}
        ),
        "tried": rows,
        "chosen": {k: v for k, v in rows[made.chosen].items() if k != "allowed"}
        if made.chosen is not None
        else stays,
        "why": made.why,
        "folds": rule.folds,
        "crossfitted": {
            name: {"n": one.n, "diff": one.diff} | ({"ci95": list(one.ci95)} if one.ci95 else {})
            for name, one in crossfit.items()
            if one.diff == one.diff
        },
    }


def _defined(numbers: Mapping[str, float]) -> dict[str, Any]:
    """Without those that are NaN: what nothing was scored of has no number."""
    return {name: number for name, number in numbers.items() if number == number}


def following(cfg: Config, work: Workdir, guidance: float) -> dict[str, Any]:
    """What the next round goes by: the guidance and, where it is to, shares of categories."""
    found: dict[str, Any] = {"guidance": guidance}
    if not adjusted.focuses(cfg):
        return found
    drawn, scored = (shards.read(one) for one in (candidates_of(cfg, work), work.stage("score")))
    rows = focus.categories(drawn.summaries(), scored)
    reader = loading.prompt_reader(loading.source(cfg, work))
    given = Rollout.of(cfg, reader).of_round(0, cfg.generate.count)
    weights = {name: row["weight"] for name, row in rows.items()}
    found["prompts"] = focus.shares(given, weights, cfg.adjust.focus)
    return found | {"categories": rows}
