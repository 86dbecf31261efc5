"""Stage `report`: one page a person can look at, from what the other stages left in the folder.

Owns `report.html`, and which files it is made from: results.json and, of every round, the metrics,
manifest and examples of `train`, the pictures, examples and verdicts of `evaluate` and `adjust`,
the examples and calibration of `score`. It measures nothing. A piece that is not there leaves its
section out, and so does a picture that is damaged; another piece that is damaged is an error that
names it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.files import read_json
from srum_jax.report import adjusting, candidates, items, page, pictures, suite_sections, training
from srum_jax.report.judging import judging
from srum_jax.report.pictures import Thumbnail
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, run_stage
from srum_jax.stages.preflight import Checks
from srum_jax.training import metrics

DRAWING = "t2i"  # the section whose pictures are in pairs.json
EXAMPLES = "examples-"  # + the key of a section: its pictures


def check(cfg: Config, work: Workdir, found: Checks) -> None:
    """A run to report on, where nothing else runs."""
    if set(found.stages) == {"report"} and not any(work.root.glob("round*")):
        found.problems.append(
            f"--workdir {work.root} holds no run to report on: no folder round0 in it"
        )


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
        text = page.render(read(results, folders))
        if jax.process_index() == 0:
            files.write_text(work.report, text)
        return Outcome(
            outputs={"report": "../../report.html"}, counts={"rounds": len(folders)}, items=1
        )

    return run_stage("report", cfg, work, sections=(), inputs=made, body=body)


def read(results: Mapping[str, Any], folders: Sequence[epath.PathLike]) -> page.RunReport:
    """What the report shows of a run.

    Args:
      results: what results.json holds; every part may be missing.
      folders: named `round<R>` with the stages' folders inside; may be missing or empty.

    Raises:
      ValueError: a file that is there cannot be read; the message names file and field.
    """
    measured = {int(r.get("round", i)): r for i, r in enumerate(results.get("rounds", []))}
    places = {}
    for folder in map(epath.Path, folders):
        number = re.fullmatch(r"round(\d+)", folder.name)
        if not number:
            raise ValueError(f"{folder}: a round's folder is named round<number>")
        places[int(number[1])] = folder
    return page.RunReport(
        facts=results.get("run", {}),
        stages=results.get("stages", {}),
        rounds=tuple(
            _round(number, measured.get(number, {}), places.get(number))
            for number in sorted(measured.keys() | places)
        ),
    )


def _round(number: int, measured: Mapping[str, Any], folder: epath.Path | None) -> page.Round:
    """folder: None where the round left none."""
    facts = measured.get("train", {})
    sections = tuple(suite_sections.of_round(measured))
    adjusted = adjusting.adjusting(
        measured.get("adjust", {}), {section.key: section.title for section in sections}
    )
    if folder is None:
        return page.Round(
            number,
            sections,
            judging=judging(measured.get("scores", {}), {}),
            training=training.training(facts, {}, {}),
            adjusting=adjusted,
            kept=_kept(number, measured, None),
        )
    judged = _items(folder / "evaluate" / "evaluation.json")
    logged = folder / "train" / "metrics.jsonl"
    scored = folder / "score" / "examples.json"
    return page.Round(
        number,
        sections=sections,
        shown=_shown(folder / "evaluate", judged),
        items=judged,
        judging=judging(
            measured.get("scores", {}), _read_if_there(folder / "score" / "calibration.json", {})
        ),
        scored=candidates.scored_pictures(
            _read_if_there(scored, []), str(scored), functools.partial(_picture, scored.parent)
        ),
        training=training.training(
            facts,
            _read_if_there(folder / "train" / "manifest.json", {}),
            training.series(metrics.read(logged) if logged.exists() else []),
            _chosen(folder / "train" / "examples.json"),
        ),
        adjusting=adjusted,
        kept=_kept(number, measured, folder / "adjust"),
    )


def _kept(number: int, measured: Mapping[str, Any], folder: epath.Path | None) -> page.Round | None:
    """The measurement of the model that `adjust` chose, where it made one; its own `folder`."""
    if not measured.get("adjusted"):
        return None
    judged = _items(folder / "evaluation.json") if folder else {}
    return page.Round(
        number,
        sections=tuple(suite_sections.of_round(measured["adjusted"])),
        shown=_shown(folder, judged) if folder and folder.exists() else {},
        items=judged,
    )


def _chosen(path: epath.Path) -> training.Chosen:
    """Some of what was trained on."""
    found = _read_if_there(path, {})
    if not found:
        return training.Chosen()
    try:
        return training.Chosen(
            candidates.scored_pictures(
                found["candidates"], str(path), functools.partial(_picture, path.parent)
            ),
            found["objective"],
            found["rewards"],
            found["regions"],
        )
    except KeyError as error:
        raise ValueError(f"{path}: it has no field {error}; run train again") from error


def _read_if_there(path: epath.Path, otherwise: Any) -> Any:
    """The JSON at `path`, of the kind of `otherwise`, which stands in where there is none."""
    if not path.exists():
        return otherwise
    found = read_json(path)
    if not isinstance(found, type(otherwise)):
        kind = type(otherwise).__name__
        raise ValueError(f"{path}: expected a {kind}, found {type(found).__name__}")
    return found


def _items(path: epath.Path) -> dict[str, tuple[items.Item, ...]]:
    """Every item that `evaluate` judged, by the key of its section."""
    found = _read_if_there(path, {})
    lists = dict(found.get("items", {}))
    if "prompts" in found:
        lists.setdefault(DRAWING, found["prompts"])
    return {key: items.items(value, f"{path}: {key}") for key, value in lists.items()}


def _shown(
    folder: epath.Path, judged: Mapping[str, Sequence[items.Item]]
) -> dict[str, tuple[items.Item, ...]]:
    """The items whose pictures were kept, by the key of their section."""
    files = {path.stem.removeprefix(EXAMPLES): path for path in folder.glob(f"{EXAMPLES}*.json")}
    if (folder / "pairs.json").exists():
        files[DRAWING] = folder / "pairs.json"
    return {
        key: items.with_reasons(
            items.items(read_json(path), str(path), functools.partial(_picture, folder)),
            judged.get(key, ()),
        )
        for key, path in sorted(files.items())
    }


def _picture(folder: epath.Path, path: str) -> Thumbnail:
    """The picture at `path`, which is relative to `folder`."""
    file = folder / path
    if not file.exists():
        return pictures.MISSING
    try:
        return pictures.picture(file.read_bytes(), str(file))
    except ValueError as error:
        logging.warning("%s; the report goes without it", error)
        return pictures.MISSING
