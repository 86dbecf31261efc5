"""What the study measures of one model: drawing, editing, answering, its own scores.

Every prompt is drawn from noise that its seed and text alone decide, so that models are compared
picture by picture. Right and wrong are strings of 1 and 0 in prompt order.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from srum_jax.config import Config
from srum_jax.evals import stats
from srum_jax.generation.image_sampler import ImageSampler, candidate_seed
from srum_jax.rewards import question_templates
from srum_jax.stages import draw_and_judge, judges, replies
from srum_jax.stages.draw_and_judge import SeededPrompt
from srum_jax.stages.loading import LoadedModel
from srum_jax.worlds.shapes import exam

PLAIN = 1.0  # the scale at which guidance does nothing


@dataclasses.dataclass(frozen=True)
class PromptSampler:
    """A model that draws prompts of one seed, at any guidance scale."""

    opened: LoadedModel
    cfg: Config
    mesh: jax.sharding.Mesh

    @functools.cached_property
    def _sampler(self) -> ImageSampler:
        return self.opened.image_sampler(self.cfg, self.mesh)

    def draw(self, texts: Sequence[str], scale: float, k: int = 0) -> list[dict[str, Any]]:
        """Candidate records of picture number k of each prompt, at this guidance scale."""
        run_seed = self.cfg.evaluate.seed + self.cfg.seed
        wanted = [
            SeededPrompt(i, text, "", k, candidate_seed(run_seed, text, k))
            for i, text in enumerate(texts)
        ]
        settings = dataclasses.replace(self.cfg.sample, guidance=scale)
        sampler = dataclasses.replace(self._sampler, settings=settings)
        batch = 8 * self.cfg.sample.batch  # several calls, so that like lengths find each other
        starts = tqdm(
            range(0, len(wanted), batch),
            desc=f"guidance {scale:g}, picture {k}",
            unit="call",
            dynamic_ncols=True,
            leave=False,
        )
        return [
            record for i in starts for record in draw_and_judge.draw(wanted[i : i + batch], sampler)
        ]


def right_ones(records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """bool [N]: which candidate records the verifier calls right."""
    return np.array([verdict.right for verdict in exam.judge_drawings(records)], bool)


def bits(values: Sequence[bool]) -> str:
    """One character, 1 or 0, a value."""
    return "".join("01"[bool(value)] for value in values)


def best_scale(
    sampler: PromptSampler, texts: Sequence[str], grid: Sequence[float]
) -> dict[str, Any]:
    """{"best": the scale with most right, of equals the lowest, "grid": {scale: bits}}."""
    found = {scale: right_ones(sampler.draw(texts, scale)) for scale in sorted(grid)}
    best = max(found, key=lambda scale: (found[scale].sum(), -scale))
    return {"best": best, "grid": {str(scale): bits(right) for scale, right in found.items()}}


def accuracy(
    sampler: PromptSampler, texts: Sequence[str], scales: Sequence[float]
) -> dict[str, str]:
    """{scale: bits} of every prompt drawn once at each scale."""
    return {
        str(scale): bits(right_ones(sampler.draw(texts, scale))) for scale in sorted(set(scales))
    }


def answers(sampler: PromptSampler, items: Sequence[exam.Item]) -> dict[str, str]:
    """{kind of question: bits}: whether the likeliest first word is the answer's."""
    asked = replies.model_under_test(sampler.opened, sampler.cfg, sampler.mesh)
    requests = exam.answer_requests(items)
    return _by_kind(exam.judge_answers(requests, asked.answers(requests)))


def edits(sampler: PromptSampler, requests: Sequence[exam.EditRequest]) -> dict[str, str]:
    """{kind of edit: bits}: whether a picture is as demanded and otherwise as it was, drawn as the
    model's folder says or else at the config's guidance."""
    asked = replies.model_under_test(sampler.opened, sampler.cfg, sampler.mesh)
    return _by_kind(exam.judge_edits(requests, asked.edits(requests)))


def _by_kind(verdicts: Sequence[exam.Verdict]) -> dict[str, str]:
    right: dict[str, list[bool]] = {}
    for verdict in verdicts:
        right.setdefault(verdict.category, []).append(verdict.right)
    return {kind: bits(values) for kind, values in sorted(right.items())}


def own_scores(
    sampler: PromptSampler, texts: Sequence[str], draws: int, scale: float
) -> tuple[list[list[np.ndarray]], np.ndarray, np.ndarray, np.ndarray]:
    """(pictures [draws][P], right bool [P,draws], own scores [P,draws], regions [P,draws]).

    A picture without a score has NaN, and its regions are counted all the same.
    """
    cfg = judges.scores_alone(sampler.cfg)
    panel = judges.panel(sampler.opened, cfg, sampler.mesh)
    pictures, right, scores, counts = [], [], [], []
    for k in range(draws):
        drawn = sampler.draw(texts, scale, k)
        judged = draw_and_judge.judge(drawn, panel)
        pictures.append([record["image"] for record in drawn])
        right.append(right_ones(drawn))
        scores.append([judgement.image_score for judgement in judged])
        counts.append([len(judgement.regions) for judgement in judged])
    return pictures, np.array(right).T, np.array(scores, float).T, np.array(counts, float).T


def watch(sampler: PromptSampler, texts: Sequence[str], draws: int, scale: float) -> dict[str, Any]:
    """Own score against the verifier, and what a model that fools its judge would change.

    {"guidance", "pictures", "scored", "score" (mean, in [-1, 1]), "right" (share), "auc" (of the
    own score against the verifier), "surplus" (regions found less objects demanded), "diversity"
    (mean over prompts of the root mean square difference of two pictures, in [0, 1])}; what cannot
    be measured is absent.
    """
    pictures, right, scores, counts = own_scores(sampler, texts, draws, scale)
    scenes = [question_templates.decompose(text) for text in texts]
    demanded = np.array([np.nan if s is None else s.total for s in scenes], float)
    found = {
        "score": np.nanmean(scores) if np.isfinite(scores).any() else np.nan,
        "right": right.mean(),
        "auc": stats.auc(scores.ravel(), right.ravel()).value,
        "surplus": np.nanmean(counts - demanded[:, None]) if np.isfinite(demanded).any() else None,
        "diversity": diversity(pictures) if draws > 1 else None,
    }
    measured = {k: round(float(v), 5) for k, v in found.items() if v is not None and v == v}
    counted = {"pictures": scores.size, "scored": int(np.isfinite(scores).sum())}
    return {"guidance": scale, **counted, **measured}


def diversity(pictures: Sequence[Sequence[np.ndarray]]) -> float:
    """Of pictures [draws][P] uint8: the mean over prompts and pairs of their RMS difference."""
    stack = np.asarray(pictures, np.float32) / 255
    pairs = itertools.combinations(range(len(stack)), 2)
    apart = [np.sqrt(((stack[a] - stack[b]) ** 2).mean((1, 2, 3))) for a, b in pairs]
    return float(np.mean(apart))


def best_of(
    sampler: PromptSampler, texts: Sequence[str], draws: int, scale: float
) -> dict[str, Any]:
    """Choosing one of `draws` pictures, without training: {"k", "guidance", "random", "self",
    "oracle"}, the last three bits. "random" is picture 0, which `accuracy` draws too."""
    _, right, scores, _ = own_scores(sampler, texts, draws, scale)
    chosen = np.where(np.isnan(scores), -np.inf, scores).argmax(1)
    return {
        "k": draws,
        "guidance": scale,
        "random": bits(right[:, 0]),
        "self": bits(np.take_along_axis(right, chosen[:, None], 1)[:, 0]),
        "oracle": bits(right.any(1)),
    }
