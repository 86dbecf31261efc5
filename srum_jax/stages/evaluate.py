"""Stage `evaluate`: what an exact program says of the work of the base and of the trained model.

Drawing (strict, by category, both models from the same noise), choosing the best of K by the
model's own score, answering questions, and how well its scores tell right from wrong. All of it
needs the shapes world: what has no verifier is left out, with a sentence in the log. Every part is
kept in the stage's folder and not made twice: pictures and scores in work units, answers in JSON.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from einops import rearrange
from etils import epath
from tqdm import tqdm

from srum_jax.config import Config
from srum_jax.core.files import read_json, write_json
from srum_jax.data import images as pictures
from srum_jax.data import prompts as prompt_lists
from srum_jax.data import shapes_questions, units
from srum_jax.data.prompts import Prompt
from srum_jax.data.shapes_questions import Question
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.evals import shapes, suite
from srum_jax.rewards import protocol
from srum_jax.stages import generate, model, score
from srum_jax.stages.generate import Job
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, run_stage, update_round
from srum_jax.stages.model import Opened

Asked = Sequence[tuple[np.ndarray, Question]]  # pictures uint8 [H,W,3], a question about each
PAIRS = 24  # prompts whose two pictures are kept for the report


@dataclasses.dataclass(frozen=True)
class Arm:
    """What one model did: candidate records, their verdicts, and which answers were right [Q]."""

    records: Sequence[dict[str, Any]]
    verdicts: Sequence[shapes.Verdict]
    answered: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """bool [records]."""
        return np.array([verdict.right for verdict in self.verdicts], bool)

    def firsts(self) -> "Arm":
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
    wanted = prompt_lists.load(cfg.evaluate.prompts, cfg.evaluate.count)
    weights = model.source(cfg, work)
    prompt_lists.check(wanted, Tokenizer.from_folder(weights.words))
    inputs = {
        "model": model.fingerprint(*weights.folders),
        "prompts": prompt_lists.digest(wanted),
        "protocol": protocol.protocol_hash(),
    }
    for name in ("train", "score"):
        if name in cfg.stages:
            inputs[name] = Manifest.read(work.stage(name)).hash

    def body(folder: epath.Path) -> Outcome:
        with model.compile_clock() as compiling:
            outcome = evaluate(cfg, mesh, work, folder, wanted)
        return dataclasses.replace(outcome, compile_seconds=sum(compiling))

    sections = ("model", "sample", "score", "evaluate", "generate.unit", "compute.dtype")
    return run_stage("evaluate", cfg, work, sections=sections, inputs=inputs, body=body)


def evaluate(
    cfg: Config,
    mesh: jax.sharding.Mesh,
    work: Workdir,
    folder: epath.Path,
    wanted: Sequence[Prompt],
) -> Outcome:
    """Makes and measures everything; writes evaluation.json, pairs.json, this round's results."""
    known, asked = verifiable(cfg, wanted), questions(cfg)
    several = known[: cfg.evaluate.best_of_prompts]
    jobs = [(prompt, k) for prompt in several for k in range(cfg.evaluate.best_of)]
    judged = len(jobs)
    jobs += [(prompt, 0) for prompt in known[len(several) :]]
    opened = model.base(cfg, work, mesh)
    arms = {"base": _arm("base", opened, jobs, asked, folder, cfg, mesh)}
    shown = arms["base"].records[:judged]
    scored = _judge(opened, shown, folder / "scores", cfg, mesh)
    if "train" in cfg.stages:
        opened = model.trained(opened, cfg, work, mesh)  # lets go of what training replaced
        jobs = [(prompt, 0) for prompt in known]
        arms["trained"] = _arm("trained", opened, jobs, asked, folder, cfg, mesh)
    parts = {
        "t2i": t2i_section(
            arms, [record["image_score"] for record in scored], cfg.evaluate.best_of
        ),
        "qa": qa_section(arms, [question for _, question in asked]),
    }
    if "score" in cfg.stages:
        shown, scored = (units.read(work.stage(name)) for name in ("generate", "score"))
    parts["scores"] = scores_section(shown, scored, cfg.score.proposers)
    parts = {name: part for name, part in parts.items() if part}
    outputs = _write(work, folder, arms, parts) if jax.process_index() == 0 else {}
    counts = {
        "prompts": len(known),
        "images": sum(len(arm.records) for arm in arms.values()),
        "answers": sum(len(arm.answered) for arm in arms.values()),
    }
    return Outcome(outputs, counts, items=counts["images"] + counts["answers"])


# ------------------------------------------------------------------------------ what is measured


def verifiable(cfg: Config, wanted: Sequence[Prompt]) -> list[Prompt]:
    """The prompts whose pictures the verifier can judge; the others are named in the log."""
    size = (shapes.SIDE, shapes.SIDE)
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


def questions(cfg: Config) -> Asked:
    """Test pictures of the shapes world, a question about each; none for another model."""
    if cfg.model == "shapes":
        return shapes_questions.qa_set("test", cfg.evaluate.questions)
    logging.info("evaluate: no questions are asked: those at hand are about the shapes world")
    return ()


def _readable(prompt: str) -> bool:
    try:
        return bool(shapes.demanded(prompt))
    except ValueError:
        return False


# ------------------------------------------------------------------------------------- the making


def _arm(
    name: str,
    opened: Opened,
    jobs: Sequence[Job],
    asked: Asked,
    folder: epath.Path,
    cfg: Config,
    mesh: jax.sharding.Mesh,
) -> Arm:
    """Draws `jobs`, has them verified, and asks; pictures and answers found there are kept."""
    records: list[dict[str, Any]] = []
    if jobs:
        generate.draw(
            jobs,
            folder / name,
            model.painter(opened, cfg, mesh),
            features=generate.features(opened.cfg, cfg.sample.size),
            unit=cfg.generate.unit,
            seed=cfg.evaluate.seed,
            title=f"evaluate, {name} draws",
        )
        records = list(units.read(folder / name))
    verdicts = [shapes.verify(record["image"], record["prompt"]) for record in records]
    return Arm(records, verdicts, _answer(name, opened, asked, folder, cfg, mesh))


def _answer(
    name: str,
    opened: Opened,
    asked: Asked,
    folder: epath.Path,
    cfg: Config,
    mesh: jax.sharding.Mesh,
) -> np.ndarray:
    """bool [Q]: whether the likeliest first token, of the whole vocabulary, is the answer's."""
    path, rows = folder / f"answers-{name}.json", cfg.evaluate.batch
    if not path.exists():
        ask = model.asker(opened, cfg, mesh, rows=rows)
        given: list[int] = []
        bar = tqdm(
            total=len(asked),
            desc=f"evaluate, {name} answers",
            unit="question",
            dynamic_ncols=True,
            disable=jax.process_index() != 0,
        )
        with bar:
            for first in range(0, len(asked), rows):
                images, texts = zip(*asked[first : first + rows], strict=True)
                found = ask(images, [[question.text] for question in texts])
                given += [int(probabilities[0].argmax()) for probabilities in found]
                bar.update(len(images))
        words = opened.tokenizer
        answers = [
            {
                "kind": question.kind,
                "question": question.text,
                "answer": question.answer,
                "given": words.decode([token]),
                "right": words.encode(question.answer)[0] == token,
            }
            for (_, question), token in zip(asked, given, strict=True)
        ]
        if jax.process_index() == 0:
            write_json(path, answers)
    return np.array([answer["right"] for answer in read_json(path)], bool)


def _judge(
    opened: Opened,
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
    how = dataclasses.replace(cfg.score, proposers=proposers)
    ask = model.asker(opened, cfg, mesh, rows=cfg.score.batch)
    score.score(records, folder, how, ask, opened.tokenizer)
    return units.read(folder)


# ---------------------------------------------------------------------------------- the measuring


def t2i_section(arms: dict[str, Arm], own: Sequence[float], candidates: int) -> dict:
    """ "t2i" of results.json; empty without pictures.

    The arms have the same prompts in the same order. The base's first records are `candidates` of
    each of its first prompts, and `own` are the scores it gave those.
    """
    firsts = {name: arm.firsts() for name, arm in arms.items()}
    if not len(firsts["base"].records):
        return {}
    categories = [record["category"] for record in firsts["base"].records]
    section = {name: suite.accuracy_section(arm.right, categories) for name, arm in firsts.items()}
    if "trained" in arms:
        section["paired"] = suite.paired_section(firsts["base"].right, firsts["trained"].right)
    right, own = (
        rearrange(np.asarray(x[: len(own)]), "(p k) -> p k", k=candidates)
        for x in (arms["base"].right, own)
    )
    best = suite.best_of_k_section(right, own, categories=categories[: len(right)])
    return section | {"best_of_k": best}


def qa_section(arms: dict[str, Arm], asked: Sequence[Question]) -> dict:
    """ "qa" of results.json; empty if nothing was asked."""
    if not len(asked):
        return {}
    return suite.qa_section(
        [question.kind for question in asked],
        **{name: arm.answered for name, arm in arms.items()},
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
        if image.shape[:2] != (shapes.SIDE, shapes.SIDE) or not _readable(prompt):
            continue
        prompts.append(record["prompt_id"])
        right = shapes.verify(image, prompt).right
        images.append((result["image_score"], right, result["image_status"]))
        for region in result["regions"]:
            if region["proposer"] not in regions:
                continue  # scored when the config named other proposers
            right = shapes.verify_region(image, region["bbox"], prompt)
            regions[region["proposer"]].append((region["score"], right, region["status"]))
    if not images:
        return {}
    found = {name: _judged(rows) for name, rows in regions.items()}
    return suite.scores_section(found, proposers[0], _judged(images), prompts)


def _judged(rows: Sequence[tuple[float, bool, str]]) -> suite.Judged:
    scores, labels, status = zip(*rows, strict=True) if rows else ((), (), ())
    return suite.Judged(np.array(scores, np.float64), np.array(labels, bool), status)


# ------------------------------------------------------------------------------------ the writing


def _write(
    work: Workdir, folder: epath.Path, arms: dict[str, Arm], parts: dict[str, Any]
) -> dict[str, str]:
    """Writes what was measured; returns the stage's outputs."""
    firsts = {name: arm.firsts() for name, arm in arms.items()}
    outputs = {"evaluation": "evaluation.json"}
    write_json(folder / "evaluation.json", {**parts, "prompts": outcomes(firsts)})
    if "trained" in arms:
        outputs["pairs"] = "pairs.json"
        write_json(folder / "pairs.json", write_pairs(folder, firsts["base"], firsts["trained"]))
    update_round(work, **parts)
    return outputs


def outcomes(firsts: dict[str, Arm]) -> list[dict[str, Any]]:
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


def write_pairs(folder: epath.Path, base: Arm, trained: Arm) -> list[dict[str, Any]]:
    """Writes chosen pictures of both models as PNG and returns what pairs.json says of them."""
    categories = [record["category"] for record in base.records]
    (folder / "pairs").mkdir(parents=True, exist_ok=True)
    kept = []
    for i in choose_pairs(base.right, trained.right, categories):
        record = base.records[i]
        pair = {"prompt": record["prompt"], "category": record["category"]}
        for name, arm in (("base", base), ("trained", trained)):
            file = f"pairs/{record['prompt_id']}-{name}.png"
            (folder / file).write_bytes(pictures.encode_png(arm.records[i]["image"]))
            pair |= {f"{name}_image": file, f"{name}_correct": arm.verdicts[i].right}
        kept.append(pair)
    return kept
