"""What a base can do while it is pretrained: a short exam on the validation split.

Owns how much is asked, and the callback that asks it and leaves the averaged model behind.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from absl import logging
from etils import epath

from srum_jax.config import Config
from srum_jax.core import param_tree
from srum_jax.evals.suite import Verdict
from srum_jax.stages import loading, replies
from srum_jax.training import callbacks, metrics
from srum_jax.training.state import TrainState
from srum_jax.worlds.shapes import exam, language
from srum_jax.worlds.shapes.setting import of_model


@dataclasses.dataclass(frozen=True)
class Exam:
    """How much of each kind is asked at every evaluation, of the validation split."""

    questions: int = 400
    several: int = 240
    images: int = 192
    captions: int = 100
    edits: int = 100


EXAM = Exam()


@dataclasses.dataclass(frozen=True)
class QuickEvaluation(callbacks.Evaluator):
    """`quick_evaluation` at the averaged weights, which are left in `folder` as a model.

    base: what of the model is not trained; its parameters are those of each evaluation, with the
    `frozen` ones · save: writes the model with given parameters.
    """

    cfg: Config
    mesh: jax.sharding.Mesh
    base: loading.LoadedModel
    folder: epath.Path
    save: Callable[[param_tree.Params], None]
    exam: Exam
    frozen: param_tree.Params = dataclasses.field(default_factory=dict)

    def evaluate(self, n: int, state: TrainState) -> dict[str, float]:
        params = param_tree.merge(state.ema, self.frozen)
        averaged = dataclasses.replace(self.base, params=params)
        found = quick_evaluation(self.cfg, self.mesh, averaged, self.exam)
        self.save(jax.device_get(params))
        logging.info("step %d: %s", n, ", ".join(f"{k} {v:.3f}" for k, v in found.items()))
        return found

    def measured(self, n: int) -> bool:
        rows = metrics.read(self.folder / "metrics.jsonl")
        return any(row["step"] == n and "t2i" in row for row in rows)

    def enough(self, n: int) -> bool:
        return False


def quick_evaluation(
    cfg: Config, mesh: jax.sharding.Mesh, loaded: loading.LoadedModel, counts: Exam = EXAM
) -> dict[str, float]:
    """Accuracies on the validation split: strict text-to-image, answers (all and by kind), captions
    and edits."""
    asked = replies.model_under_test(loaded, cfg, mesh)
    setting = of_model(cfg.model)
    prompts = language.balanced_prompts("validation", counts.images, 0, setting)
    texts = [prompt.text for prompt in prompts]
    images, _ = asked.sampler.sample_prompts(texts, range(len(texts)))
    drawn = exam.right_drawings(images, texts)
    questions = exam.questions("validation", counts.questions, counts.several, setting)
    captions = exam.captions("validation", counts.captions, setting)
    edits = exam.edits("validation", counts.edits, setting) if counts.edits else ()
    found = {
        "t2i": [
            Verdict(str(i), prompt.category, bool(right))
            for i, (prompt, right) in enumerate(zip(prompts, drawn, strict=True))
        ],
        "qa": exam.judge_answers(questions, asked.answers(questions)),
        "captions": exam.judge_captions(captions, asked.texts(captions)),
        "edits": exam.judge_edits(edits, asked.edits(edits)) if edits else [],
    }
    parts: dict[str, list[bool]] = {}
    for name, verdicts in found.items():
        for one in verdicts:
            parts.setdefault(name, []).append(one.right)
            parts.setdefault(f"{name}_{one.category}", []).append(one.right)
    return {name: float(np.mean(good)) for name, good in sorted(parts.items())}
