"""The plan of the study: its phases, arms, prompts and rules, read from JSON and checked.

What a phase draws is a function of the plan alone: its prompts are the shapes world's, in the
setting of the plan's config, those of a fresh phase none that a phase before it or the default
evaluation draws.
"""

import dataclasses
import importlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from srum_jax import config
from srum_jax.config import Config, hash_json
from srum_jax.core.errors import BadInput
from srum_jax.core.files import read_json
from srum_jax.data import prompts as prompt_lists
from srum_jax.worlds.shapes import language
from srum_jax.worlds.shapes.setting import Setting, of_model

HERE = pathlib.Path(__file__).parent
BASE = "base"  # the arm that is not trained; every phase has it, first
STAGES = ("generate", "score", "train", "export")
HELD_BACK = 64  # prompts that the stage generate sets apart of a list
FIVE = 5  # objects from which a prompt has many
PARTS = ("all", "without relations", "five and more")  # of a phase's prompts


@dataclasses.dataclass(frozen=True)
class Listed:
    """`count` prompts or questions of a split, in the order that `seed` gives."""

    split: Literal["train", "validation", "test"]
    count: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Arm:
    """A recipe. overrides: dotted config keys; what: in a sentence, what it is for.

    reward: whose scores it trains on, the model's own or (an upper bound) the exact verifier's.
    """

    name: str
    what: str
    overrides: Mapping[str, Any]
    reward: Literal["self", "oracle"] = "self"


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the winner is picked, in words and as `study_tables.winner` reads it.

    at: the guidance compared at; over: the part of the prompts; among: names of arms, the simplest
    first; gain: what the winner must gain over the base, in [0, 1].
    """

    words: str
    at: Literal["one", "fixed", "best"]
    over: Literal["all", "without relations", "five and more"]
    among: tuple[str, ...]
    gain: float


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is measured of every model of a phase.

    scale: the fixed guidance; grid: scales among which each model's own best is chosen, on the
    prompts `tuning`, or, where those are none, cross-fitted: on each half of the prompts for the
    other one, anew in every draw of the bootstrap. own_draws pictures of the first own_prompts
    prompts are scored by the model itself; of the first best_of prompts the base chooses one of as
    many by its own score.
    """

    prompts: Listed
    tuning: Listed
    questions: Listed
    scale: float
    grid: tuple[float, ...]
    own_prompts: int
    own_draws: int
    best_of: int

    @property
    def cross_fitted(self) -> bool:
        """Whether guidance is chosen on the measured prompts themselves, half for half."""
        return not self.tuning.count


@dataclasses.dataclass(frozen=True)
class Phase:
    """One table of the study.

    fresh: its prompts are none that a phase before it or the default evaluation draws. against:
    arms that the others are compared with, besides the base.
    """

    name: str
    what: str
    seeds: tuple[int, ...]
    fresh: bool
    measure: Measure
    against: tuple[str, ...]
    rule: Rule
    arms: tuple[Arm, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """config: name of the packaged config that arms start from; variants: how many recipes were
    tried in all, those before this plan included; common: values of every arm, where they differ
    from that config; seeded_prompts: whether another seed trains on other prompts; evaluated: how
    many prompts of the config's `evaluate` count as seen, the first ones (its own number may
    change, and results must not)."""

    config: str
    variants: int
    seeded_prompts: bool
    evaluated: int
    common: Mapping[str, Any]
    phases: tuple[Phase, ...]

    def values(self) -> dict[str, Any]:
        """Of the config that arms start from."""
        return importlib.import_module(f"srum_jax.configs.{self.config}").get_config().to_dict()

    @property
    def setting(self) -> Setting:
        """The world's, that prompts are of."""
        return of_model(self.values()["model"])

    def phase(self, name: str) -> Phase:
        """Raises BadInput for a name that is none."""
        found = {phase.name: phase for phase in self.phases}
        if name not in found:
            raise BadInput(f'--phase "{name}": {config.suggest(name, found)}')
        return found[name]


def load_plan(path: str | os.PathLike) -> Plan:
    """Reads and checks a plan. Raises BadInput saying which key of which phase or arm is wrong."""
    values = read_json(path)
    _keys(values, [f.name for f in dataclasses.fields(Plan)], str(path))
    if values["config"] not in config.packaged() or not isinstance(values["seeded_prompts"], bool):
        raise BadInput(f"{path}: config must be a packaged one, and seeded_prompts true or false")
    phases = tuple(_phase(value, f"{path}, phase {i}") for i, value in enumerate(values["phases"]))
    plan = Plan(**{**values, "common": dict(values["common"]), "phases": phases})
    _distinct([phase.name for phase in phases], f"{path}: phase")
    tried = {hash_json([{**arm.overrides}, arm.reward]) for p in phases for arm in p.arms[1:]}
    if type(plan.variants) is not int or plan.variants < len(tried):
        raise BadInput(
            f"{path}: variants = {plan.variants!r}, but the plan alone has {len(tried)}: give the "
            "number of recipes tried in all"
        )
    for phase in phases:
        for arm in phase.arms:
            config_of(plan, arm, phase.seeds[0])
    return plan


def _phase(values: Any, where: str) -> Phase:
    if not isinstance(values, dict) or not isinstance(values.get("arms"), list):
        raise BadInput(f"{where} must be an object with a list of arms")
    phase = config.section(Phase, {**values, "arms": []}, where=where)
    arms = (Arm(BASE, "the model as it is", {}), *(_arm(v, where) for v in values["arms"]))
    phase, m = dataclasses.replace(phase, arms=arms), phase.measure
    names = [arm.name for arm in arms]
    _distinct(names, f"{where}: arm")
    unknown = [name for name in (*phase.against, *phase.rule.among) if name not in names]
    lists = (m.prompts, m.questions)
    own = (m.own_prompts, m.best_of)
    faults = {
        f"against and rule.among must name arms, unlike {', '.join(unknown)}": unknown,
        "seeds must be different and from 0": not phase.seeds
        or min(phase.seeds) < 0
        or len(set(phase.seeds)) < len(phase.seeds),
        "measure.scale and measure.grid must be guidance scales from 1": not m.grid
        or min(m.scale, *m.grid) < 1,
        "counts must be at least 1": min(*(x.count for x in lists), *own) < 1,
        "measure.tuning.count must not be negative": m.tuning.count < 0,
        "measure.own_prompts and best_of exceed prompts.count": max(own) > m.prompts.count,
        "measure.own_draws must be at least 2": m.own_draws < 2,
        "rule.among names no arm": not phase.rule.among,
        "names are letters, digits, _ and -": not all(map(_plain, (*names, phase.name))),
    }
    for fault, found in faults.items():
        if found:
            raise BadInput(f"{where}: {fault}")
    return phase


def _arm(values: Any, where: str) -> Arm:
    values = {"reward": "self", **values} if isinstance(values, dict) else values
    _keys(values, [f.name for f in dataclasses.fields(Arm)], f"{where}, arm")
    if values["reward"] not in ("self", "oracle") or not isinstance(values["overrides"], dict):
        raise BadInput(
            f"{where}, arm {values['name']}: reward must be self or oracle and overrides an object"
        )
    return Arm(**values)


def _plain(name: Any) -> bool:
    return isinstance(name, str) and name.replace("-", "").replace("_", "").isalnum()


def _keys(values: Any, wanted: Sequence[str], where: str) -> None:
    have = set(values) if isinstance(values, dict) else set()
    if have != set(wanted):
        missing, unknown = sorted(set(wanted) - have), sorted(have - set(wanted))
        raise BadInput(f"{where}: missing {missing}, unknown {unknown}")


def _distinct(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"{what} names must differ: {', '.join(twice)}")


def config_of(plan: Plan, arm: Arm, seed: int) -> Config:
    """The config of an arm. Raises BadInput for a key or value that the package does not take."""
    values = plan.values()
    changes = {**plan.common, **arm.overrides, "seed": seed, "stages": STAGES}
    for key, value in changes.items():
        *path, last = key.split(".")
        part = values
        for name in path:
            part = part.get(name) if isinstance(part, dict) else None
        if not isinstance(part, dict) or last not in part:
            raise BadInput(f"arm {arm.name}: {key} is no key of the config")
        part[last] = value
    try:
        return config.load(values)
    except BadInput as e:
        raise BadInput(f"arm {arm.name}: {e}") from e


def drawn_prompts(plan: Plan, phase: Phase) -> tuple[language.ScenePrompt, ...]:
    """The prompts that a phase measures on. Raises BadInput where the split has too few."""
    seen: set[str] = set()
    if phase.fresh:
        for earlier in plan.phases[: plan.phases.index(phase)]:
            for found in (drawn_prompts(plan, earlier), tuning_prompts(plan, earlier)):
                seen |= {p.text for p in found}
        usual = plan.values()["evaluate"]
        seen |= {p.text for p in prompt_lists.load(usual["prompts"], plan.evaluated)}
    return _unseen(plan, phase.measure.prompts, seen, f"phase {phase.name}, prompts")


def tuning_prompts(plan: Plan, phase: Phase) -> tuple[language.ScenePrompt, ...]:
    """The prompts on which a phase chooses guidance: none that it measures on."""
    if phase.measure.cross_fitted:
        return ()
    seen = {p.text for p in drawn_prompts(plan, phase)}
    return _unseen(plan, phase.measure.tuning, seen, f"phase {phase.name}, tuning")


def trained_prompts(plan: Plan, cfg: Config) -> tuple[language.ScenePrompt, ...]:
    """The prompts of the train split that a seed draws, and behind them those held back."""
    count = cfg.rounds * cfg.generate.count + HELD_BACK
    return language.balanced_prompts("train", count, cfg.seed, plan.setting)


def part_of(setting: Setting, prompts: Sequence[language.ScenePrompt], part: str) -> list[bool]:
    """Which prompts are of a part: see PARTS."""
    if part == "without relations":
        return [p.category != "spatial" for p in prompts]
    if part == "five and more":
        return [len(language.parse(p.text, setting).pairs) >= FIVE for p in prompts]
    return [True] * len(prompts)


def _unseen(
    plan: Plan, listed: Listed, seen: set[str], where: str
) -> tuple[language.ScenePrompt, ...]:
    most = min(listed.count + len(seen), len(language.prompts(listed.split, plan.setting)))
    found = language.balanced_prompts(listed.split, most, listed.seed, plan.setting)
    found = tuple(p for p in found if p.text not in seen)[: listed.count]
    if len(found) < listed.count:
        raise BadInput(
            f"{where}: {listed.count} of split {listed.split} that are not drawn elsewhere are "
            f"asked for, and there are {len(found)}: lower the count"
        )
    return found


def prompts_digest(plan: Plan, phase: Phase) -> str:
    """16 hex digits of what is drawn: text, category and whether held out."""
    drawn = (*tuning_prompts(plan, phase), *drawn_prompts(plan, phase))
    return hash_json([[p.text, p.category, p.held_out] for p in drawn])
