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
    prompt_lists.check(wanted, Tokenizer.from_folder(weights))
    inputs = {
        "model": model.fingerprint(weights),
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
    compared = known[: cfg.evaluate.best_of_prompts]
    several = [(prompt, k) for prompt in compared for k in range(cfg.evaluate.best_of)]
    jobs = several + [(prompt, 0) for prompt in known[len(compared) :]]
    opened = model.base(cfg, work, mesh)
    arms = {"base": _arm("base", opened, jobs, asked, folder, cfg, mesh)}
    chosen = arms["base"].records[: len(several)]
    scored = _judge(opened, chosen, folder / "scores", cfg, mesh)
    if "train" in cfg.stages:
        opened = model.trained(opened, cfg, work, mesh)  # lets go of what training replaced
        jobs = [(prompt, 0) for prompt in known]
        arms["trained"] = _arm("trained", opened, jobs, asked, folder, cfg, mesh)
    if "score" in cfg.stages:
        chosen, scored = (units.read(work.stage(name)) for name in ("generate", "score"))
    own = np.array([record["image_score"] for record in scored[: len(several)]])
    parts = {
        "t2i": t2i_section(arms, own, cfg.evaluate.best_of),
        "qa": qa_section(arms, asked),
        "scores": scores_section(chosen, scored, cfg.score.proposers),
    }
    return _write(work, folder, arms, {name: part for name, part in parts.items() if part})
