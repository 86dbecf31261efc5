"""Stage `report`: one page a person can look at, from what the other stages left in the folder.

Owns `report.html`: what is said, and in which order. It measures nothing: numbers come from
results.json, curves from train/metrics.jsonl, pictures from evaluate/pairs.json,
evaluate/examples-*.json and score/examples.json of every round. A piece that is not there leaves
its section out; a piece that is there but broken is an error that names it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from srum_jax.config import Config
from srum_jax.core.files import read_json
from srum_jax.stages import report_calibration, report_curves, report_monitor
from srum_jax.stages import report_html as page
from srum_jax.stages import report_pictures as pictures
from srum_jax.stages import report_tables as tables
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, run_stage
from srum_jax.stages.report_html import Arm, Html, h, join


@dataclasses.dataclass(frozen=True)
class Round:
    """One round: its number, its part of results.json (may be empty), its folder (may be None)."""

    number: int
    measured: Mapping[str, Any]
    folder: epath.Path | None


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Writes <workdir>/report.html over all rounds so far.

    Unlike other stages it is made anew every time: it takes a second, costs no work if lost, and
    a page older than its numbers would mislead.

    Raises:
      ValueError: a file of a stage cannot be read; the message names it.
    """
    del mesh
    for name in ("manifest.json", "started.json"):
        (work.stage("report") / name).unlink(missing_ok=True)
    folders = [f for f in work.root.glob("round*") if re.fullmatch(r"round\d+", f.name)]
    made = {
        f"{folder.name}/{path.parent.name}": Manifest.read(path.parent).hash
        for folder in folders
        for path in folder.glob("*/manifest.json")
        if path.parent.name != "report"
    }

    def body(folder: epath.Path) -> Outcome:
        del folder
        results = read_json(work.results) if work.results.exists() else {}
        text = build(results, folders)
        if jax.process_index() == 0:
            temporary = work.root / ".report.html.tmp"
            temporary.write_text(text)
            temporary.replace(work.report)
        return Outcome(
            outputs={"report": "../../report.html"}, counts={"rounds": len(folders)}, items=1
        )

    return run_stage("report", cfg, work, sections=(), inputs=made, body=body)


def build(results: Mapping[str, Any], rounds: Sequence[epath.PathLike]) -> str:
    """The report as the text of one self-contained HTML file.

    Args:
      results: what results.json holds; every part may be missing.
      rounds: folders named `round<R>` with the stages' folders inside; may be missing or empty.

    Raises:
      ValueError: a file that is there cannot be read; the message names file and field.
    """
    all_rounds = _rounds(results, rounds)
    run = results.get("run", {})
    name = str(run.get("config", "run")).rsplit("/", 1)[-1].removesuffix(".py")
    sections = [
        page.Section(
            "drawing",
            "Drawing: base against trained",
            "Share of test pictures that the checker finds right in every detail. Dots are the "
            "share, lines its 95 % interval (Wilson). Hollow: base; filled: trained.",
            _per_round(all_rounds, _drawing),
        ),
        page.Section(
            "choice",
            "Choosing among candidates",
            "For each prompt several pictures are drawn and one is kept: blindly, by the model's "
            "own score, or by an oracle that knows the truth, which is the ceiling.",
            _per_round(all_rounds, _choice),
        ),
        page.Section(
            "questions",
            "Answering questions",
            "Share of questions about one picture, two, or a clip that the model answers exactly, "
            "by kind. Hollow: base; filled: trained.",
            _per_round(all_rounds, lambda r: tables.skill(r.measured.get("qa", {}), "questions")),
        ),
        page.Section(
            "captions",
            "Describing pictures",
            "Share of captions that say all that is there and nothing else, by kind of scene.",
            _per_round(
                all_rounds,
                lambda r: join(
                    tables.skill(r.measured.get("captions", {}), "captions"),
                    pictures.captions(_file(r, "evaluate/examples-captions.json")),
                ),
            ),
        ),
        page.Section(
            "edits",
            "Editing pictures",
            "Share of edits after which the picture shows what was asked for and all else is as "
            "it was, by kind.",
            _per_round(
                all_rounds,
                lambda r: join(
                    tables.skill(r.measured.get("edits", {}), "edits"),
                    pictures.edits(_file(r, "evaluate/examples-edits.json")),
                ),
            ),
        ),
        page.Section(
            "judge",
            "The model as its own judge",
            "AUC: the chance that something right gets a higher score than something wrong. 0.5 "
            "is a coin toss, 1 is perfect. No score is never counted as a low score.",
            _per_round(all_rounds, lambda r: join(_judge(r), _calibration(r))),
        ),
        page.Section(
            "pictures",
            "Before and after",
            "The same prompt and the same seed, drawn by both models. Grouped by outcome, in the "
            "order of the file: none is chosen by its looks.",
            _per_round(all_rounds, lambda r: pictures.pairs(_file(r, "evaluate/pairs.json"))),
        ),
        page.Section(
            "scores",
            "What the model scored",
            "Boxes carry the model's score of that region, from \u22121 (wrong) to +1 (right): "
            "blue line for 0 and above, dashed orange below, dotted where there is no score. "
            "Beside them, the weight that the released SRUM rule gives each token of the picture.",
            _per_round(all_rounds, lambda r: pictures.examples(_file(r, "score/examples.json"))),
        ),
        page.Section(
            "training",
            "Training",
            "Over optimiser steps. Pale: every logged step; strong: running mean.",
            _per_round(all_rounds, _training),
        ),
        page.Section(
            "stages",
            "Time and memory",
            "Wall-clock seconds of each stage, compilation included; memory is the highest of the "
            "host process.",
            _stages(results.get("stages", {})),
        ),
        page.Section(
            "run",
            "This run",
            "The configuration, seed and versions behind these numbers.",
            h(
                "dl",
                *[
                    part
                    for key, value in run.items()
                    for part in (h("dt", key.replace("_", " ")), h("dd", value))
                ],
            )
            if run
            else Html(""),
        ),
    ]
    return page.page(f"srum_jax report: {name}", _header(results, all_rounds), sections)


def _rounds(results: Mapping[str, Any], folders: Iterable[epath.PathLike]) -> list[Round]:
    measured = {int(r.get("round", i)): r for i, r in enumerate(results.get("rounds", []))}
    places = {}
    for folder in map(epath.Path, folders):
        number = re.fullmatch(r"round(\d+)", folder.name)
        if not number:
            raise ValueError(f"{folder}: a round's folder is named round<number>")
        places[int(number[1])] = folder
    return [Round(i, measured.get(i, {}), places.get(i)) for i in sorted(measured.keys() | places)]


def _file(r: Round, name: str) -> epath.Path | None:
    return r.folder / name if r.folder else None


def _per_round(rounds: Sequence[Round], make: Callable[[Round], Html]) -> Html:
    """The rounds' parts one after the other; headings only if there are several."""
    parts = [(r, make(r)) for r in rounds]
    parts = [(r, part) for r, part in parts if part]
    if len(rounds) == 1:
        return join(*[part for _, part in parts])
    return join(*[join(h("h3", f"Round {r.number}", class_="round"), part) for r, part in parts])


# -- the top of the page ------------------------------------------------------------------------


def _header(results: Mapping[str, Any], rounds: Sequence[Round]) -> Html:
    run = results.get("run", {})
    over = " \u00b7 ".join(["srum_jax report"] + [str(run[k]) for k in ("config",) if k in run])
    last = next((r.measured for r in reversed(rounds) if r.measured.get("t2i")), {})
    caveat = None
    if last.get("t2i", {}).get("paired"):
        caveat = h(
            "p",
            h(
                "small",
                "The interval covers the choice of test prompts. It does not "
                "cover how another training seed would come out: this is one run.",
            ),
        )
    return h(
        "header",
        h("p", over, class_="over"),
        h("h1", verdict(last.get("t2i", {}))),
        h("p", _what_was_run(results, rounds), class_="lede"),
        caveat,
        _tiles(rounds),
    )


def verdict(t2i: Mapping[str, Any]) -> str:
    """The result in one sentence, claiming a change only if the 95 % interval excludes 0."""
    base, trained, paired = (t2i.get(k) for k in ("base", "trained", "paired"))
    if not base and not trained:
        return "No drawing accuracy was measured in this run."
    if not (base and trained):
        arm, name = (base, "base") if base else (trained, "trained")
        return (
            f"The {name} model draws {page.percent(arm['accuracy'])} of the test pictures "
            f"right (95 % interval {page.percent_range(arm['ci95'])})."
        )
    move = f"from {page.percent(base['accuracy'])} to {page.percent(trained['accuracy'])}"
    if not paired:
        return f"Right pictures went {move}; without a paired comparison nothing can be concluded."
    lo, hi = paired["ci95"]
    size = f"{page.points(paired['diff'])} points"
    interval = f"95 % interval {page.points(lo)} to {page.points(hi)}"
    if lo > 0:
        return f"Training raised right pictures {move}: {size} ({interval})."
    if hi < 0:
        return f"Training lowered right pictures {move}: {size} ({interval})."
    return f"No clear change: right pictures went {move}, {size}, but the {interval} includes 0."


def _what_was_run(results: Mapping[str, Any], rounds: Sequence[Round]) -> str:
    trains = [r.measured["train"] for r in rounds if r.measured.get("train")]
    drawn = results.get("stages", {}).get("generate", {}).get("items")
    said = []
    if drawn:
        said.append(f"The model drew {page.count(drawn)} pictures and scored them itself.")
    if trains:
        steps = page.count(sum(t["steps"] for t in trains if "steps" in t))
        names = ", ".join(dict.fromkeys(str(t["objective"]) for t in trains if "objective" in t))
        rounds_said = f" in {len(trains)} rounds" if len(trains) > 1 else ""
        said.append(
            f"It was then trained for {steps} steps{rounds_said}"
            + (f" with the objective {names}." if names else ".")
        )
        if any("stopped_at" in t for t in trains):
            said.append("The training monitor stopped it early.")
    run = results.get("run", {})
    where = [
        f"{name} {run[key]}" for key, name in (("seed", "Seed"), ("device", "on")) if key in run
    ]
    if where:
        said.append(", ".join(where) + ".")
    return " ".join(said)


def _tiles(rounds: Sequence[Round]) -> Html | None:
    def latest(*keys):
        for r in reversed(rounds):
            value: Any = r.measured
            for key in keys:
                value = value.get(key, {}) if isinstance(value, Mapping) else {}
            if value not in ({}, None):
                return value
        return None

    tiles = []
    base, trained = latest("t2i", "base"), latest("t2i", "trained")
    if base and trained:
        tiles.append(
            (
                "Right pictures, base \u2192 trained",
                f"{100 * base['accuracy']:.1f} \u2192 {page.percent(trained['accuracy'])}",
                f"of {page.count(base['n'])} test pictures",
            )
        )
    best = latest("t2i", "best_of_k")
    if best:
        tiles.append(
            (
                f"Right, best of {best['k']} by own score",
                page.percent(best["self"]["accuracy"]),
                f"random {page.percent(best['random']['accuracy'])}, "
                f"oracle {page.percent(best['oracle']['accuracy'])}",
            )
        )
    answers = latest("qa", "trained") or latest("qa", "base")
    if answers:
        others = [
            f"{name} {page.percent(found['accuracy'])}"
            for name in ("captions", "edits")
            if (found := latest(name, "trained") or latest(name, "base"))
        ]
        tiles.append(
            (
                "Questions answered right",
                page.percent(answers["accuracy"]),
                "; ".join([f"of {page.count(answers['n'])} questions", *others]),
            )
        )
    scores = latest("scores")
    aucs = [
        (f"{scores[key]:.3f}", name)
        for key, name in (("image_auc", "whole pictures"), ("region_auc", "regions"))
        if scores and key in scores
    ]
    if aucs:
        also = f"; {aucs[1][1]} {aucs[1][0]}" if len(aucs) > 1 else ""
        tiles.append((f"Judge's AUC, {aucs[0][1]}", aucs[0][0], f"0.5 is a coin toss{also}"))
    if not tiles:
        return None
    return h(
        "ul",
        *[h("li", h("span", name), h("b", value), h("small", note)) for name, value, note in tiles],
        class_="tiles",
    )


# -- what was measured, round by round ----------------------------------------------------------


def _drawing(r: Round) -> Html:
    t2i = r.measured.get("t2i", {})
    return join(tables.by_category(t2i, "category", "pictures"), tables.one_by_one(t2i, "picture"))


def _choice(r: Round) -> Html:
    best = r.measured.get("t2i", {}).get("best_of_k")
    if not best:
        return Html("")
    kinds = (
        ("random", "blind choice"),
        ("self", f"own choice of {best['k']}"),
        ("oracle", "oracle (ceiling)"),
    )
    parts = [
        page.bar(
            name,
            Arm(key, tables.share(best[key]), tables.interval(best[key])),
            page.percent_range(tables.interval(best[key])),
        )
        for key, name in kinds
        if key in best
    ]
    gain = best.get("gain")
    if gain:
        lo, hi = gain["ci95"]
        parts.append(
            h(
                "p",
                h(
                    "b",
                    f"Own choice against the average candidate: {page.points(gain['diff'])} points",
                ),
                f" (95 % interval {page.points(lo)} to {page.points(hi)}), without any training.",
            )
        )
    names = best["self"].get("by_category", {})
    arms = [(key, name) for key, name in kinds if best.get(key, {}).get("by_category")]
    if names and arms:
        rows = [
            [
                name,
                page.count(n["n"]),
                *[page.percent(tables.share(best[key]["by_category"][name])) for key, _ in arms],
            ]
            for name, n in names.items()
        ]
        parts.append(page.table(["category", "prompts", *[name for _, name in arms]], rows))
    return join(*parts)


def _judge(r: Round) -> Html:
    scores = r.measured.get("scores", {})
    lines = []
    main = scores.get("proposer")
    by_proposer = scores.get("by_proposer") or ({main: scores} if main is not None else {})
    for name, found in by_proposer.items():
        used = " (used)" if name == main and len(by_proposer) > 1 else ""
        lines.append(
            (
                f"regions, {name}{used}",
                found.get("region_auc"),
                found.get("region_n"),
                found.get("status", {}),
            )
        )
    if "image_auc" in scores or "image_n" in scores:
        lines.append(
            (
                "whole pictures",
                scores.get("image_auc"),
                scores.get("image_n"),
                scores.get("image_status", {}),
            )
        )
    if "image_auc_within_prompt" in scores:
        lines.append(
            (
                "whole pictures of one prompt",
                scores["image_auc_within_prompt"],
                scores.get("image_n"),
                {},
            )
        )
    if not lines:
        return Html("")
    axis = h("th", h("span", *[h("span", t) for t in ("0", "0.5", "1")]), class_="axis")
    rows = [
        [
            name,
            h(
                "td",
                page.strip([Arm("trained", auc, (auc, auc))], zero=0.5) if auc is not None else "",
                class_="axis",
            ),
            f"{auc:.3f}" if auc is not None else "\u2013",
            page.count(n) if n is not None else "\u2013",
            ", ".join(f"{key} {page.count(value)}" for key, value in status.items()) or "\u2013",
        ]
        for name, auc, n, status in lines
    ]
    return page.table(["what is scored", axis, "AUC", "scored", "status"], rows)


def _calibration(r: Round) -> Html:
    path = _file(r, "score/calibration.json")
    found = read_json(path) if path and path.exists() else {}
    return join(
        report_calibration.histograms(r.measured.get("scores", {}), found),
        report_calibration.questions(found),
        report_calibration.agreement(found),
    )


# -- training, time -----------------------------------------------------------------------------


def _training(r: Round) -> Html:
    facts = r.measured.get("train", {})
    said = [
        form.format(page.short(facts[key]) if isinstance(facts[key], float) else facts[key])
        for key, form in (
            ("objective", "objective {}"),
            ("steps", "{} steps"),
            ("loss_first", "loss {} at the start"),
            ("loss_last", "{} at the end"),
            ("skipped_steps", "{} steps skipped"),
        )
        if key in facts
    ]
    metrics = _metrics(r.folder / "train" / "metrics.jsonl") if r.folder else {}
    curves = [
        report_curves.chart(title, unit, *metrics[key], smooth)
        for key, title, unit, smooth in (
            ("loss", "Loss", "", True),
            ("learning_rate", "Learning rate", "", False),
            ("grad_norm", "Gradient norm", "before clipping, ", True),
        )
        if key in metrics
    ]
    text = ", ".join(said)
    return join(
        h("p", text[:1].upper() + text[1:] + ".") if said else None,
        h("div", *curves, class_="curves") if curves else None,
        report_monitor.section(facts),
    )


def _metrics(path: epath.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> (steps, values). What a step has twice (a resumed run) counts as last written."""
    if not path.exists():
        return {}
    rows: dict[int, dict] = {}
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                rows.setdefault(int(row["step"]), {}).update(row)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # a run that was killed leaves half a line at the end
                break
            raise ValueError(
                f"{path}, line {number}: needs a JSON object with a 'step' "
                f"({error!r}); delete the line or run train again"
            ) from error
    found = {}
    for name in sorted({key for row in rows.values() for key in row}):
        points = [
            (step, row[name])
            for step, row in sorted(rows.items())
            if isinstance(row.get(name), (int, float))
        ]
        if points:
            steps, values = zip(*points, strict=True)
            found[name] = np.array(steps), np.array(values, np.float64)
    return found


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f}{page.NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _stages(stages: Mapping[str, Mapping[str, Any]]) -> Html:
    if not stages:
        return Html("")
    longest = max(s.get("seconds", 0) for s in stages.values()) or 1

    def cell(stage, key, form):
        return form(stage[key]) if key in stage else "\u2013"

    rows = [
        [
            name,
            h(
                "td",
                h(
                    "div",
                    h(
                        "i",
                        class_="fill trained",
                        style=f"width:{100 * s.get('seconds', 0) / longest:.1f}%",
                    ),
                    class_="track",
                    aria_hidden="true",
                ),
                class_="axis",
            ),
            cell(s, "seconds", _duration),
            cell(s, "compile_seconds", _duration),
            cell(s, "items", page.count),
            cell(s, "items_per_second", page.short),
            cell(s, "peak_rss_mb", lambda mb: f"{page.count(mb)}{page.NBSP}MB"),
        ]
        for name, s in stages.items()
    ]
    total = sum(s.get("seconds", 0) for s in stages.values())
    return join(
        page.table(
            [
                "stage",
                h("th", "", class_="axis"),
                "time",
                "of it compiling",
                "items",
                "items a second",
                "peak memory",
            ],
            rows,
        ),
        h("p", f"All stages together: {_duration(total)}."),
    )
