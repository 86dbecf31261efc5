"""The tables and plots of the study, made from the results' files alone.

A result's "right" holds 1 or 0 a prompt, so that every difference is paired: the same prompt, the
same noise. Intervals resample prompts and seeds. Tables stand between markers in README.md;
what is written around them stays.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import study_plan
from study_crossfit import cross_fitted, crossed, over_seeds, t_interval
from study_plan import BASE, PARTS, Phase, Plan
from study_plots import curves, dots

from srum_jax.core.errors import BadInput
from srum_jax.core.files import read_json

AT = {"one": "at guidance 1", "fixed": "at the fixed guidance", "best": "at its own best"}
DRAWS = 4000  # of the bootstrap
FRAME = """# The study: which self-reward recipe works

Made by `study.py` from `study_plan.json` and the files in `results/`;
`python research/study/study.py --tables` writes the tables again. Figures are per cent of prompts
that the exact verifier calls right, one picture a prompt. Brackets are 95 % intervals of a
bootstrap over prompts and seeds; differences are paired: same prompts, same noise.
"""

Interval = tuple[float, float, float]  # value, low, high


# -------------------------------------------------------------------------------------- statistics


@functools.lru_cache(maxsize=16)
def _weights(size: int, seed: int) -> np.ndarray:
    """float32 [size, DRAWS]: how often each of `size` things is drawn, over `size`."""
    drawn = np.random.default_rng(seed).integers(size, size=(size, DRAWS))
    counts = np.bincount((drawn * DRAWS + np.arange(DRAWS)).ravel(), minlength=size * DRAWS)
    return (counts.reshape(size, DRAWS) / size).astype(np.float32)


def bootstrap(values: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean of values [S,P] (seeds, prompts) and its bootstrap distribution [DRAWS].

    Prompts are drawn with replacement, the same for all seeds, and so are seeds. Deviations between
    seeds are scaled by sqrt(S / (S - 1)), without which a few seeds seem to differ too little. One
    seed stands for itself alone.
    """
    values = np.asarray(values, np.float32)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"bootstrap: need [seeds, prompts], got {values.shape}")
    seeds = values @ _weights(values.shape[1], 0)  # [S, DRAWS]
    return float(values.mean()), over_seeds(seeds, _weights(len(values), 1))


def interval(values: np.ndarray) -> Interval:
    """Mean of values [S,P] with its 95 % interval, as `bootstrap` has it."""
    return _between(*bootstrap(values))


def _between(mean: float, drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return mean, float(low), float(high)


# ------------------------------------------------------------------------------------------- files


@dataclasses.dataclass(frozen=True)
class Found:
    """What the files of a phase say. results: {arm: {seed: result}}, arms in the plan's order;
    categories, held_out: of the prompts, in order; parts: {part: which are of it}, bool [P]."""

    phase: Phase
    results: Mapping[str, Mapping[int, Any]]
    categories: np.ndarray
    held_out: np.ndarray
    parts: Mapping[str, np.ndarray]

    def seeds(self, *arms: str) -> list[int]:
        """Seeds of which every one of `arms` has pictures."""
        have = [{s for s, r in self.results.get(arm, {}).items() if "right" in r} for arm in arms]
        return sorted(set.intersection(*have)) if have else []

    def right(self, arm: str, at: str, seeds: Sequence[int]) -> np.ndarray:
        """float [S,P]: 1 where the arm's picture is right, at "one", "fixed" or "best", which may
        be cross-fitted."""
        if at == "best" and self.phase.measure.cross_fitted:
            return crossed(self.grid(arm, seeds))
        rows = []
        for seed in seeds:
            result = self.results[arm][seed]
            rows.append(list(result["right"][str(result["at"][at])]))
        return np.array(rows, float)

    def grid(self, arm: str, seeds: Sequence[int]) -> np.ndarray:
        """float [S,G,P]: the same at every scale of the phase's grid, from the lowest."""
        scales = [str(scale) for scale in sorted(self.phase.measure.grid)]
        found = [self.results[arm][seed]["right"] for seed in seeds]
        return np.array([[list(right[scale]) for scale in scales] for right in found], float)

    def compared(
        self, arm: str, other: str, at: str, part: str = "all"
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """(mean difference of `arm` less `other` on a part of the prompts, its bootstrap
        distribution [DRAWS], the difference of each seed [S]).

        A cross-fitted choice of guidance is made again in every draw, of both.
        """
        mask = self.parts[part]
        if at != "best" or not self.phase.measure.cross_fitted:
            values = self.difference(arm, other, at)[:, mask]
            return *bootstrap(values), values.mean(1)
        seeds = self.seeds(arm, other)
        weights = _weights(len(mask), 0)
        (mine, mine_drawn), (theirs, drawn) = (
            cross_fitted(self.grid(name, seeds), mask, weights) for name in (arm, other)
        )
        each = mine - theirs
        found = over_seeds(mine_drawn - drawn, _weights(len(seeds), 1))
        return float(each.mean()), found, each

    def difference(self, arm: str, other: str, at: str) -> np.ndarray:
        """[S,P] of `arm` less `other`, over the seeds that both have."""
        seeds = self.seeds(arm, other)
        return self.right(arm, at, seeds) - self.right(other, at, seeds)

    @property
    def arms(self) -> list[str]:
        """Names of the arms with pictures of a seed that the base has too."""
        return [arm for arm in self.results if self.seeds(arm, BASE)]


def gather(plan: Plan, phase: Phase, folder: pathlib.Path) -> Found:
    """Reads the results of a phase. Raises BadInput where their prompts are not the plan's."""
    results: dict[str, dict[int, Any]] = {}
    for arm in phase.arms:
        for seed in phase.seeds:
            path = folder / f"{phase.name}-{arm.name}-s{seed}.json"
            if path.exists():
                results.setdefault(arm.name, {})[seed] = read_json(path)
    prompts = study_plan.drawn_prompts(plan, phase) if results else ()
    digest = study_plan.prompts_digest(plan, phase) if results else ""
    for arm, seeds in results.items():
        for seed, result in seeds.items():
            lengths = {len(x) for x in result.get("right", {}).values()} - {len(prompts)}
            if result["identity"]["prompts"] != digest or lengths:
                raise BadInput(
                    f"{folder}/{phase.name}-{arm}-s{seed}.json was made on other prompts than the "
                    "plan's: run it again"
                )
    return Found(
        phase,
        results,
        np.array([p.category for p in prompts]),
        np.array([p.held_out for p in prompts], bool),
        {name: np.array(study_plan.part_of(plan.setting, prompts, name), bool) for name in PARTS},
    )


def winner(found: Found) -> tuple[str | None, str]:
    """(arm, a sentence) by the phase's rule; None if no arm gains what the rule asks.

    The highest mean over seeds; of the arms within one standard error of it (of the paired
    difference), the one that the rule names first.
    """
    rule = found.phase.rule
    arms = [arm for arm in rule.among if arm in found.arms]
    missing = [arm for arm in rule.among if arm not in arms]
    if missing:
        return None, f"undecided: no results of {', '.join(missing)}"
    where = (rule.at, rule.over)
    means = {
        arm: found.right(arm, rule.at, found.seeds(arm))[:, found.parts[rule.over]].mean()
        for arm in arms
    }
    top = max(arms, key=lambda arm: means[arm])

    def near(arm: str) -> bool:
        mean, drawn, _ = found.compared(arm, top, *where)
        return arm == top or mean >= -float(drawn.std())

    chosen = next(arm for arm in arms if near(arm))
    gain = _between(*found.compared(chosen, BASE, *where)[:2])
    over = "" if rule.over == "all" else f", prompts: {rule.over}"
    text = f"{chosen}: {signed(gain)} points over the base {AT[rule.at]}{over}"
    if chosen != top:
        text += f" ({top} is within one standard error and comes later in the rule's order)"
    if gain[0] < rule.gain:
        return None, f"none: {text}, and the rule asks for {100 * rule.gain:+.1f}"
    return chosen, text


# ------------------------------------------------------------------------------------------ tables


def plain(x: Interval) -> str:
    return f"{100 * x[0]:.1f} [{100 * x[1]:.1f}, {100 * x[2]:.1f}]"


def signed(x: Interval) -> str:
    return f"{100 * x[0]:+.1f} [{100 * x[1]:+.1f}, {100 * x[2]:+.1f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Numbers stand to the right; a table of two columns holds words."""
    other = "---" if len(head) == 2 else "--:"
    lines = [head, ["---", *[other] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracy_table(found: Found) -> str:
    rows = []
    for arm in found.arms:
        seeds = found.seeds(arm)
        tuned = not found.phase.measure.cross_fitted
        scales = [found.results[arm][s]["at"]["best"] for s in seeds if tuned]
        best = found.right(arm, "best", seeds)
        cells = [plain(interval(found.right(arm, at, seeds))) for at in AT]
        parts = [best[:, ~found.held_out], best[:, found.held_out]]
        cells += [plain(interval(part)) if part.size else "" for part in parts]
        rows.append([arm, str(len(seeds)), *cells, ", ".join(f"{s:g}" for s in scales)])
    head = ["arm", "seeds", *AT.values(), "best, seen pairs", "best, held out", "best guidance"]
    return table(head, rows)


def difference_table(found: Found) -> str:
    others = [other for other in found.phase.against if other in found.arms]
    head = ["arm", *(f"− {BASE} {at}" for at in AT.values())]
    head += ["best, seen pairs", "best, held out", *(f"− {other}, best" for other in others)]
    rows = []
    for arm in found.arms[1:]:
        cells = [signed(interval(found.difference(arm, BASE, at))) for at in AT]
        best = found.difference(arm, BASE, "best")
        parts = [best[:, ~found.held_out], best[:, found.held_out]]
        cells += [signed(interval(part)) if part.size else "" for part in parts]
        for other in others:
            same = arm == other or not found.seeds(arm, other)
            cells.append("" if same else signed(interval(found.difference(arm, other, "best"))))
        rows.append([arm, *cells])
    return table(head, rows)


def part_table(found: Found) -> str:
    """Of cross-fitted phases: what arms gain on parts of the prompts, with Student's t over the
    seeds beside the bootstrap."""
    if not found.phase.measure.cross_fitted:
        return ""
    rows = []
    for other in (BASE, *(o for o in found.phase.against if o in found.arms)):
        for arm in found.arms[1:]:
            if arm == other or not found.seeds(arm, other):
                continue
            cells = []
            for part in PARTS:
                mean, drawn, each = found.compared(arm, other, "best", part)
                cells.append(signed(_between(mean, drawn)))
                t = t_interval(each)
                cells.append("" if t is None else f"{100 * t[0]:+.1f} to {100 * t[1]:+.1f}")
            rows.append([f"{arm} − {other}", *cells])
    head = [cell for part in PARTS for cell in (part, "t over seeds")]
    return table(["at its own best", *head], rows)


def category_table(found: Found) -> str:
    names = list(dict.fromkeys(found.categories.tolist()))
    rows = []
    for arm in found.arms:
        cells = []
        for name in names:
            member = found.categories == name
            here = interval(found.right(arm, "best", found.seeds(arm))[:, member])
            if arm == BASE:
                cells.append(plain(here))
                continue
            gain = interval(found.difference(arm, BASE, "best")[:, member])
            cells.append(f"{100 * here[0]:.1f} ({signed(gain)})")
        rows.append([arm, *cells])
    counts = [f"{name} ({(found.categories == name).sum()})" for name in names]
    return table(["arm, at its own best", *counts], rows)


def answer_table(found: Found) -> str:
    """Question answering; arms whose understanding is frozen answer as the base does."""
    return _kind_table(found, "answers", "all questions")


def edit_table(found: Found) -> str:
    """Editing, where it was measured."""
    return _kind_table(found, "edits", "all edits")


def _kind_table(found: Found, key: str, every: str) -> str:
    """What results have under `key`, {kind: bits}: all together against the base, and each kind."""

    def of(arm: str, seeds: Sequence[int], kind: str = "") -> np.ndarray:
        told = [found.results[arm][seed][key] for seed in seeds]
        return np.array([list(a[kind] if kind else "".join(a.values())) for a in told], float)

    asked = {
        arm: [s for s in found.seeds(arm, BASE) if key in found.results[arm][s]]
        for arm in found.arms
    }
    if not asked.get(BASE):
        return ""
    kinds, rows = list(found.results[BASE][asked[BASE][0]][key]), []
    for arm, seeds in asked.items():
        if not seeds:
            continue
        gain = "" if arm == BASE else signed(interval(of(arm, seeds) - of(BASE, seeds)))
        each = [f"{100 * of(arm, seeds, kind).mean():.1f}" for kind in kinds]
        rows.append([arm, plain(interval(of(arm, seeds))), gain, *each])
    return table(["arm", every, f"− {BASE}", *kinds], rows)


def watch_table(found: Found) -> str:
    columns = {
        "own score": ("score", "{:+.3f}"),
        "of these right, %": ("right", "{:.1%}"),
        "AUC of the own score": ("auc", "{:.3f}"),
        "regions − objects": ("surplus", "{:+.2f}"),
        "diversity": ("diversity", "{:.4f}"),
    }
    rows = []
    for arm in found.arms:
        parts = [found.results[arm][seed]["own"] for seed in found.seeds(arm)]
        cells = []
        for name, how in columns.values():
            values = [part[name] for part in parts if name in part]
            cells.append(how.format(np.mean(values)).rstrip("%") if values else "")
        rows.append([arm, *cells])
    return table(["arm, at the fixed guidance", *columns], rows)


def effort_table(found: Found) -> str:
    rows = []
    for arm in found.arms:
        parts = [found.results[arm][seed] for seed in found.seeds(arm)]
        work = [p["work"] for p in parts]
        counts = ("rounds", "drawn", "trained", "steps")
        cells = [f"{np.mean([w[c] for w in work]):.0f}" if work[0] else "" for c in counts]
        spent = [p["seconds"] for p in parts]
        for stage in ("generate", "score", "train"):
            cells.append(f"{np.mean([s[stage] for s in spent]):.0f}" if stage in spent[0] else "")
        measured = ("tuning", "draw", "edit", "ask", "watch", "best_of")
        cells.append(f"{np.mean([sum(s.get(m, 0) for m in measured) for s in spent]):.0f}")
        rows.append([arm, *cells])
    head = ["arm, mean of seeds", "rounds", "images drawn", "images trained on", "steps"]
    return table([*head, "draw, s", "score, s", "train, s", "measure, s"], rows)


def choice_table(found: Found) -> str:
    """The base choosing among its own pictures, and every arm's single picture beside it."""
    seeds = [s for s in found.seeds(BASE) if "best_of" in found.results[BASE][s]]
    parts = [found.results[BASE][seed]["best_of"] for seed in seeds]
    if not parts:
        return ""

    def of(name: str) -> np.ndarray:
        return np.array([list(part[name]) for part in parts], float)

    names = {"random": "one picture", "self": "best by own score", "oracle": "best by the verifier"}
    rows = [[f"base, {text}", plain(interval(of(name))), ""] for name, text in names.items()]
    for arm in found.arms[1:]:
        both = [s for s in found.seeds(arm, BASE) if s in seeds]
        mine = found.right(arm, "best", both)[:, : of("self").shape[1]]
        chosen = of("self")[[seeds.index(s) for s in both]]
        rows.append([f"{arm}, one picture", plain(interval(mine)), signed(interval(mine - chosen))])
    return table([f"of {parts[0]['k']}, at the own best", "right", "− base's best by own"], rows)


# -------------------------------------------------------------------------------------------- page


def section(plan: Plan, found: Found) -> tuple[str, str]:
    """(Markdown of a phase, the sentence about its winner)."""
    phase, m = found.phase, found.phase.measure
    _, sentence = winner(found)
    missing = [
        f"{arm.name} (seed {seed})"
        for arm in phase.arms
        for seed in phase.seeds
        if seed not in found.results.get(arm.name, {})
    ]
    diverged = [
        f"{arm} (seed {seed}: {result['diverged']})"
        for arm, seeds in found.results.items()
        for seed, result in seeds.items()
        if "diverged" in result
    ]
    held = int(found.held_out.sum())
    about = [
        phase.what,
        f"{m.prompts.count} {m.prompts.split} prompts, {held} of them with held-out pairs; seeds "
        f"{', '.join(map(str, phase.seeds))}; fixed guidance {m.scale:g}; own best guidance "
        f"{_chosen(m)}. {len(phase.arms) - 1} recipes here, {plan.variants} tried in all.",
        f"Rule: {phase.rule.words}",
        f"**Winner by the rule: {sentence}.**",
    ]
    if missing:
        about.append(f"Not there yet: {', '.join(missing)}.")
    if diverged:
        about.append(f"Diverged: {'; '.join(diverged)}.")
    plots = [f"![{name}](results/{phase.name}-{name}.svg)" for name in ("accuracy", "guidance")]
    what = {arm.name: arm.what for arm in phase.arms}
    tables = [
        table(["arm", "what it is for"], [[arm, what[arm]] for arm in found.arms]),
        *(make(found) for make in TABLES),
    ]
    return "\n\n".join([*about, *plots, *filter(None, tables)]), sentence


def _chosen(m: study_plan.Measure) -> str:
    if m.cross_fitted:
        return (
            "chosen on one half of the prompts for the other, anew in every draw of the bootstrap"
        )
    return f"chosen on {m.tuning.count} other {m.tuning.split} prompts"


TABLES: Sequence[Callable[[Found], str]] = (
    accuracy_table,
    difference_table,
    part_table,
    category_table,
    choice_table,
    answer_table,
    edit_table,
    watch_table,
    effort_table,
)


def placed(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of phase `name`, which are added at its end.

    Raises BadInput for one marker without the other.
    """
    begin, end = f"<!-- study:begin {name} -->", f"<!-- study:end {name} -->"
    if (begin in page) != (end in page) or page.count(begin) > 1:
        raise BadInput(f"the page must hold {begin} and {end} once each, or neither")
    if begin not in page:
        page = f"{page.rstrip()}\n\n## Phase {name}\n\n{begin}\n{end}\n"
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def write(plan: Plan, folder: pathlib.Path, page: pathlib.Path) -> list[str]:
    """Writes tables and plots of every phase that has results; returns a line about each phase."""
    lines = []
    text = page.read_text() if page.exists() else FRAME
    for phase in plan.phases:
        found = gather(plan, phase, folder)
        if not found.arms:
            lines.append(f"{phase.name}: no results")
            continue
        body, sentence = section(plan, found)
        text = placed(text, phase.name, body)
        (folder / f"{phase.name}-accuracy.svg").write_text(accuracy_plot(found))
        (folder / f"{phase.name}-guidance.svg").write_text(guidance_plot(found))
        lines.append(f"{phase.name}: {sentence}")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)
    return lines


def accuracy_plot(found: Found) -> str:
    rows = {
        arm: [interval(found.right(arm, at, found.seeds(arm))) for at in AT] for arm in found.arms
    }
    return dots(rows, list(AT.values()), f"{found.phase.name}: right, %, with 95 % intervals")


def guidance_plot(found: Found) -> str:
    lines = {}
    for arm in found.arms:
        grids = [found.results[arm][seed]["guidance"]["grid"] for seed in found.seeds(arm)]
        lines[arm] = {
            float(scale): float(np.mean([list(map(int, grid[scale])) for grid in grids]))
            for scale in grids[0]
        }
    title = f"{found.phase.name}: right, %, by guidance scale (tuning prompts)"
    return curves(lines, title, (BASE, winner(found)[0], *found.phase.against))
