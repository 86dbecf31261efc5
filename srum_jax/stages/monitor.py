"""The training monitor: does the model's own score still mean something?

A model that is trained on its own scores may learn to please them. So the averaged weights are
checked before the first step, every so many steps and after the last, always with the same
prompts and the same noise; no truth is needed for any of it:

 · own score: mean image score by the judge of the stage `score`;
 · counts right: share of images with as many regions as the prompt demands objects;
 · diversity: mean distance of one prompt's images from each other, relative to the first check;
 · agreement: share of the first check's answers that are still given. The images asked about are
   those of the first check, the questions the judge's own about whole images.

The judge is the panel of `stages/judges.py`, with all of the config's `score` section: the same
read-out, views and crops, the first proposer, prompts decomposed alike, an external judge if that
one scores. Where the model itself judges and one language model draws and answers, the weights of
the start do: they are kept. Elsewhere the current ones do. Where only the generation side is
trained that is the judge of the start, too: no answer reads a trained leaf, so agreement is 1
without asking. Where both sides are trained agreement guards against a judge that grows lenient. A
file of boxes names none for images of a training, so that soft answers give these no score.

Training ends where a bound stays broken, and leaves the weights of the last good check. The best
check is the good one of the highest own score. Rows lie in `monitor.jsonl` of the stage's folder;
images, answers, decomposed prompts, and the weights of the newest good checks and of the best one
under `monitor/`.
"""

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from srum_jax.config import Config, MonitorConfig
from srum_jax.core import console, files, param_tree, sharding
from srum_jax.core.distributed import any_process
from srum_jax.core.errors import BadInput
from srum_jax.core.files import read_json, write_json
from srum_jax.data import shards
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation.image_sampler import candidate_seed
from srum_jax.rewards import judge, question_templates
from srum_jax.stages import draw_and_judge, judges, loading
from srum_jax.stages.draw_and_judge import SeededPrompt
from srum_jax.stages.judges import JudgePanel
from srum_jax.stages.loading import LoadedModel
from srum_jax.training import metrics
from srum_jax.training.checkpoint import load_params, save_params

FOLDER, FILE = "monitor", "monitor.jsonl"  # inside the stage's folder
NAME = "monitor"  # of the shards of pictures
ANSWERS = "answers.json"  # of the first check, in FOLDER
CURVE = ("own_score", "counts_right", "diversity", "agreement")  # what results.json repeats

Row = Mapping[str, Any]


def prompts(generated: epath.PathLike, count: int) -> list[dict[str, Any]]:
    """The last `count` prompts that the stage `generate` in folder `generated` held back.

    Records {id, prompt, category}; none is trained on where the list of prompts is long enough.
    Raises FileNotFoundError or ValueError where its file is missing or damaged.
    """
    if not count:
        return []
    path = epath.Path(generated) / "held_back.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: missing; run the generate stage again, or switch monitor checks off by "
            "train.monitor.prompts = 0"
        )
    found = read_json(path)
    fields = {"id", "prompt", "category"}
    if not isinstance(found, list) or not all(
        isinstance(r, dict) and fields <= set(r) for r in found
    ):
        raise ValueError(f"{path}: must be a list of records with {sorted(fields)}")
    if len(found) < count:
        logging.warning("train: %s has %d prompts, %d were asked for", path, len(found), count)
    return found[-count:]


def held_back(generated: epath.PathLike) -> frozenset[int]:
    """Ids of all prompts that were held back in folder `generated`; of no file none."""
    path = epath.Path(generated) / "held_back.json"
    found = read_json(path) if path.exists() else []
    return frozenset(record["id"] for record in found)


# ------------------------------------------------------------------------------ what is measured


def measure(
    judged: Sequence[judge.Judgement],
    texts: Sequence[str],
    images: np.ndarray,
    separates: bool,
) -> dict[str, Any]:
    """What one check found; a number that cannot be had is left out.

    judged and texts: one an image, the K images of a prompt together · images uint8 [P,K,H,W,3] ·
    separates: whether a region is an object, so that regions can be counted. `status` counts the
    statuses of all images, `counted` the images whose prompt the grammar reads.
    """
    status = collections.Counter(one.image_status for one in judged)
    scores = [one.image_score for one in judged if one.image_status == judge.OK]
    scenes = [question_templates.decompose(text) for text in texts]
    right = [
        len(one.regions) == scene.total
        for one, scene in zip(judged, scenes, strict=True)
        if scene is not None and separates
    ]
    found = {
        "own_score": float(np.mean(scores)) if scores else np.nan,
        "counts_right": float(np.mean(right)) if right else np.nan,
        "distance": distance(images),
    }
    found = {name: value for name, value in found.items() if np.isfinite(value)}
    return {**found, "counted": len(right), "status": dict(status)}


def distance(images: np.ndarray) -> float:
    """Root mean square difference of two images of one prompt, uint8 [P,K,H,W,3], K at least 2: the
    mean over pairs, from 0 to 255. Pixels are compared, as latents may be numbers of codes."""
    several = (one.reshape(len(one), -1).astype(np.float32) for one in images)
    pairs = (pair for one in several for pair in itertools.combinations(one, 2))
    return float(np.mean([np.sqrt(np.mean(np.square(a - b))) for a, b in pairs]))


def questions(texts: Sequence[str], tokenizer: Tokenizer, count: int) -> list[tuple[int, str]]:
    """At most `count` pairs (image, question), evenly from all the judge would ask of the images.

    texts: the prompt of every image. Questions are worded as the judge words them for this model;
    those with a word that it lacks are left out.
    """

    def readable(question: str) -> bool:
        try:
            tokenizer.encode(question)
        except ValueError:
            return False
        return True

    scenes = [question_templates.decompose(text) for text in texts]
    pairs = [
        (i, question_templates.worded(question, question.text, tokenizer))
        for i, scene in enumerate(scenes)
        if scene is not None
        for question in question_templates.image_questions(scene)
        if readable(question.text)
    ]
    return [pairs[i * len(pairs) // count] for i in range(count)] if len(pairs) > count else pairs


# ------------------------------------------------------------------------------------- the bounds


@dataclasses.dataclass(frozen=True)
class EarlyStop:
    """Training ended at `step`; `kept` is the last check that broke no bound, `why` a sentence."""

    step: int
    kept: int
    why: str


def broken(row: Row, first: Row, bounds: MonitorConfig) -> list[str]:
    """What of a row is out of bounds, as clauses. What the first row has and this one lacks is."""
    least = {
        "own_score": first.get("own_score", np.nan) - bounds.min_score,
        "diversity": bounds.min_diversity,
        "agreement": bounds.min_agreement,
    }
    clauses = []
    for name, limit in least.items():
        if name in first and not row.get(name, np.nan) >= limit:
            value = f"{row[name]:.3f}" if name in row else "unknown"
            clauses.append(f"{name.replace('_', ' ')} is {value}, at least {limit:.3f} is wanted")
    return clauses


def stopped(rows: Sequence[Row], bounds: MonitorConfig) -> EarlyStop | None:
    """Whether the last `bounds.patience` rows all break a bound; the first row breaks none."""
    faults = [broken(row, rows[0], bounds) for row in rows]
    in_row = len(list(itertools.takewhile(bool, reversed(faults))))
    if in_row < bounds.patience:
        return None
    why = f"{'; '.join(faults[-1])} (out of bounds in {in_row} monitor checks in a row)"
    return EarlyStop(rows[-1]["step"], rows[-1 - in_row]["step"], why)


def best(rows: Sequence[Row], bounds: MonitorConfig) -> Row | None:
    """The row of the highest own score, the first of such, among those that break no bound; None
    where none has an own score."""
    good = [row for row in rows if "own_score" in row and not broken(row, rows[0], bounds)]
    return max(good, key=lambda row: row["own_score"], default=None)


# -------------------------------------------------------------------------------------- the files


def read(folder: epath.PathLike) -> list[dict[str, Any]]:
    """The rows in the folder of a train stage, by step; [] where there was no monitor."""
    path = epath.Path(folder) / FILE
    return metrics.read(path) if path.exists() else []


def sampled_images(folder: epath.PathLike, step: int) -> shards.ShardRecords:
    """Records in the form of the stage `generate`, of what the check at `step` sampled."""
    return shards.read(_at(epath.Path(folder), step) / "pictures")


def first_check(
    folder: epath.PathLike,
) -> tuple[list[draw_and_judge.Record], list[dict[str, Any]]] | None:
    """Records and answers of the first check of the train stage in `folder`.

    None, with a warning, in every process where one of them cannot read them: all ask the model
    together, or none does.
    """
    records, answers, why = [], [], ""
    try:
        records = list(sampled_images(folder, 0))
        answers = read_json(epath.Path(folder) / FOLDER / ANSWERS)
    except (ValueError, FileNotFoundError) as e:
        why = str(e)
    if any_process(bool(why), "monitor: the first check"):
        why = why or "another process cannot read the first check"
        logging.warning("train: %s; agreement is not measured from here on", why)
        return None
    return records, answers


def kept(folder: epath.PathLike) -> dict[int, epath.Path]:
    """{step: folder of averaged weights} of the checks whose weights are on disk, by step."""
    folder = epath.Path(folder)
    places = {row["step"]: _at(folder, row["step"]) / "params" for row in read(folder)}
    return {step: place for step, place in sorted(places.items()) if place.exists()}


def curve(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows as results.json repeats them: the step and what of `CURVE` was measured."""
    return [{name: row[name] for name in ("step", *CURVE) if name in row} for row in rows]


def _at(folder: epath.Path, step: int) -> epath.Path:
    return folder / FOLDER / str(step)


# -------------------------------------------------------------------------------------- the monitor


class TrainingMonitor:
    """Measures the averaged weights of one train stage, and says when that is enough.

    loaded: the model, of which the autoencoder and the words are used · frozen: its leaves that are
    not trained, in compute.dtype · folder: of the stage; rows found there are gone on from ·
    wanted: records of prompts · seed: of the judge's written answers, as the stage `score` has it ·
    start: the leaves in place of the trained ones that judge, compute.dtype; None: those in
    training. Everything runs on every process; the first one writes.
    """

    def __init__(
        self,
        cfg: Config,
        mesh: jax.sharding.Mesh,
        folder: epath.Path,
        loaded: LoadedModel,
        frozen: param_tree.Params,
        wanted: Sequence[Mapping[str, Any]],
        *,
        seed: int = 0,
        start: param_tree.Params | None = None,
    ):
        self.cfg, self.bounds, self.mesh, self.seed = cfg, cfg.train.monitor, mesh, seed
        self.folder, self.frozen, self.words = folder, frozen, loaded.tokenizer
        self.starting = start
        # Every call brings the parameters of its step.
        self.loaded = dataclasses.replace(loaded, params=None)
        self.prompts = [
            SeededPrompt(
                p["id"], p["prompt"], p["category"], k, candidate_seed(cfg.seed, p["id"], k)
            )
            for p in wanted
            for k in range(self.bounds.candidates)
        ]
        self.texts = [one.prompt for one in self.prompts]
        # All devices work together: a batch that is each host's own may be too small for them.
        ways = sharding.row_ways(mesh)
        sampled, asked = (-(-c.batch // ways) * ways for c in (cfg.sample, cfg.score))
        sample = dataclasses.replace(cfg.sample, batch=sampled)
        self.sampler = self.loaded.image_sampler(dataclasses.replace(cfg, sample=sample), mesh)
        self.scorer = self.loaded.answer_scorer(cfg, mesh, batch=asked)
        self.panel: JudgePanel | None = None
        rows = read(folder)
        # Without the first one the others are measured against nothing.
        self.rows = rows if rows and rows[0]["step"] == 0 else []
        soft = cfg.score.judge != "external" and cfg.score.readout == "logits"
        if soft and cfg.score.proposers[0] == "file":
            logging.warning(
                "train: score.boxes names no boxes for the images that the monitor samples: they "
                "have no own score"
            )

    def start(self, ema: param_tree.Params) -> None:
        """The check before the first step, unless it was made."""
        if not self.rows:
            self.measure(0, ema)

    def measure(self, step: int, ema: param_tree.Params) -> dict[str, float]:
        """Checks at `step` and returns its numbers for the metrics; later checks are void."""
        dtype = jnp.dtype(self.cfg.compute.dtype)
        params = loading.in_training(ema, self.frozen, self.cfg.train, dtype)
        records = draw_and_judge.draw(self.prompts, self.sampler, params=params)
        kept = self.starting
        asked = params if kept is None else param_tree.merge(kept, self.frozen)
        judged = self.judge(records, asked)
        separates = self.panel.proposers[0].separates
        images = np.stack([record["image"] for record in records])
        groups = images.reshape(-1, self.bounds.candidates, *images.shape[1:])
        row = {"step": step, **measure(judged, self.texts, groups, separates)}
        first = self.rows[0] if step else row
        if first.get("distance") and "distance" in row:
            row["diversity"] = row["distance"] / first["distance"]
        self._keep_pictures(step, records)
        agreement = self._agreement(step, params, records)
        if agreement is not None:
            row["agreement"] = agreement
        faults = broken(row, first, self.bounds)
        if not faults:
            save_params(_at(self.folder, step) / "params", ema)
        self._add(row)
        values = ", ".join(f"{k.replace('_', ' ')} {row[k]:.3f}" for k in CURVE if k in row)
        logging.info(
            "train: monitor at step %d: %s; images: %s",
            *(step, values, console.counted(row["status"])),
        )
        for fault in faults:
            logging.warning("train: monitor at step %d: %s", step, fault)
        best = self.best()
        found = {name: row[name] for name in CURVE if name in row}
        if best:
            found |= {"best_step": best["step"], "best_own_score": best["own_score"]}
        return {f"monitor_{name}": value for name, value in found.items()}

    def judge(
        self, records: Sequence[draw_and_judge.Record], params: param_tree.Params
    ) -> list[judge.Judgement]:
        """The judgements, as the stage `score` makes them, of what was drawn.

        The prompts are decomposed once, by the first parameters that come.
        """
        if self.panel is None:
            path = self.folder / FOLDER / "scenes.json"
            scenes = judges.decomposed(
                self.texts, self.loaded, self.cfg, self.mesh, path, params=params
            )
            cfg = judges.scores_alone(self.cfg)
            self.panel = judges.panel(self.loaded, cfg, self.mesh, scenes=scenes, seed=self.seed)
        return draw_and_judge.judge(records, self.panel, params=params)

    def stopped(self, step: int) -> EarlyStop | None:
        """Whether the checks up to `step` end the training there."""
        return stopped([row for row in self.rows if row["step"] <= step], self.bounds)

    def best(self) -> Row | None:
        """`best` of the rows whose weights are kept."""
        return best(self._with_weights(self.rows), self.bounds)

    def weights(self, step: int, like: param_tree.Params) -> tuple[int, param_tree.Params]:
        """(step, averaged weights laid out as `like`) of the good check at `step` or, with a
        warning, of the newest before it whose weights are whole. Raises BadInput where none is."""
        for row in reversed([row for row in self.rows if row["step"] <= step]):
            folder = _at(self.folder, row["step"]) / "params"
            try:
                if folder.exists():  # only good checks keep them, and only the last ones
                    return row["step"], load_params(folder, like)
            except BadInput as e:
                logging.warning("%s", e)
        raise BadInput(f"{self.folder / FOLDER}: no weights of a good check are whole any more")

    def _agreement(
        self, step: int, params: param_tree.Params, records: Sequence[draw_and_judge.Record]
    ) -> float | None:
        """Share of the first check's answers that are given; None where nothing can be asked."""
        asked = questions(self.texts, self.words, self.bounds.questions)
        if not asked:
            return None
        if loading.answers_stay(self.cfg.train, self.loaded.family):
            return 1.0
        first: list[dict[str, Any]] = []
        if step:
            found = first_check(self.folder)
            if found is None:
                self.rows[0] = {k: v for k, v in self.rows[0].items() if k != "agreement"}
                return None
            records, first = found
        by_image: dict[int, list[str]] = {}
        for i, question in asked:
            by_image.setdefault(i, []).append(question)
        given = self.scorer.likeliest(
            [records[i]["image"] for i in by_image], list(by_image.values()), params=params
        )
        answers = [
            {"image": i, "question": question, "answer": self.words.decode([first])}
            for (i, texts), found in zip(by_image.items(), given, strict=True)
            for question, first in zip(texts, found, strict=True)
        ]
        if not step:
            if jax.process_index() == 0:
                write_json(self.folder / FOLDER / ANSWERS, answers)
            return 1.0
        same = [now == before for now, before in zip(answers, first, strict=True)]
        return float(np.mean(same))

    def _keep_pictures(self, step: int, records: Sequence[draw_and_judge.Record]) -> None:
        if jax.process_index() == 0:
            folder = _at(self.folder, step)
            if folder.exists():
                folder.rmtree()
            folder /= "pictures"
            features = shards.candidate_features(records[0]["latent"].shape)
            made = [draw_and_judge.encoded(record) for record in records]
            shards.write_shard(folder, NAME, features, made, 0, 1)
            shards.finish(folder, NAME, features, [len(records)])

    def _add(self, row: Row) -> None:
        """Writes the row in place of those from its step on; lets go of weights long passed."""
        self.rows = [old for old in self.rows if old["step"] < row["step"]] + [row]
        if jax.process_index() == 0:
            files.write_text(self.folder / FILE, "".join(json.dumps(r) + "\n" for r in self.rows))
            # A run that goes on from its newest checkpoint may make the last checks again.
            found, good = self._with_weights(self.rows), self.best()
            for passed in found[: -self.cfg.train.keep]:
                if passed is not good:
                    self._weights(passed).rmtree()

    def _weights(self, row: Row) -> epath.Path:
        return _at(self.folder, row["step"]) / "params"

    def _with_weights(self, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if self._weights(row).exists()]
