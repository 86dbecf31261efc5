"""MVBench: 20 tasks of multiple-choice questions about short clips.

Li et al., "MVBench: A Comprehensive Multi-modal Video Understanding Benchmark" (arXiv 2311.17005).
`as_released` follows lmms-eval: an isolated "a" is the letter A, and empty replies leave the count.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput, quoted
from srum_jax.evals import benchmark, clips, official_files, official_tables
from srum_jax.evals.benchmark import About, Benchmark, Data
from srum_jax.evals.clips import Clip
from srum_jax.evals.official_files import Row
from srum_jax.evals.scorers import letters, metrics
from srum_jax.evals.scorers import video_choice as rules
from srum_jax.evals.suite import Record, Replies, Requests, Scored, TextRequest

ABOUT = About(
    title="MVBench, 20 tasks about clips",
    needs="a folder with json/<task>.json and the clips, or folders of their frames, under video/ "
    "as the published archives unpack (MP4 and AVI need the extra "
    '"video"); clips of one task are enough',
    licence="MIT (code); the clips under their sources' terms",
    dialect="lmms-eval",
    best=100.0,
)
PLACES = {  # of each task's clips, as the published archives unpack
    "object_interaction": "star/Charades_segment",
    "action_sequence": "star/Charades_segment",
    "action_prediction": "star/Charades_segment",
    "action_localization": "sta/sta_video_segment",
    "moving_count": "clevrer/video_validation",
    "fine_grained_pose": "nturgbd_convert",
    "character_order": "perception/videos",
    "object_shuffle": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "moving_direction": "clevrer/video_validation",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "moving_attribute": "clevrer/video_validation",
    "action_antonym": "ssv2_video_mp4",
    "unexpected_action": "FunQA_test/test",
    "counterfactual_inference": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "action_count": "perception/videos",
}
FRAMES = 8  # of a clip, unless the config says otherwise
MAX_TOKENS = 16
POLICY = "a reply that names no single option is wrong, and counted in failed; empty ones too"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a clip; its category is its task."""

    id: str
    category: str
    text: str
    options: Mapping[str, str]
    answer: str
    clip: Clip
    row: Row


@dataclasses.dataclass(frozen=True)
class MVBench(Benchmark):
    """questions: those that are asked · frames: of a clip, at most."""

    questions: Sequence[Question]
    data: Data
    frames: int = FRAMES
    name = "mvbench"
    about = ABOUT

    @property
    def settings(self) -> Mapping[str, Any]:
        """Frames of a clip."""
        return {"frames": self.frames}

    def requests(self, model: str) -> Requests:
        """The frames of the clip, then the question with its options."""
        return Requests(texts=[_request(q) for q in self.questions])

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """<task>.json: the task's rows with "pred", the reply, and "gt", the right option."""
        by_task: dict[str, list] = {}
        for q, reply in zip(self.questions, replies.texts, strict=True):
            gt = f"({q.answer}) {q.options[q.answer]}"
            by_task.setdefault(q.category, []).append(q.row.value | {"pred": reply, "gt": gt})
        for task, rows in by_task.items():
            files.write_json(folder / f"{task}.json", rows)


def make(cfg: Config, data: str, language: str) -> MVBench:
    """The questions of the folder `data`. Raises BadInput naming file, item and field."""
    folder = benchmark.data_folder("mvbench", data)
    places = [folder / "json" / f"{task}.json" for task in PLACES]
    paths = [path for path in places if path.is_file()]
    paths = paths or [folder / path.name for path in places if (folder / path.name).is_file()]
    if not paths:
        raise BadInput(f"{folder}: holds no json/<task>.json, such as {places[0].name}")
    c = cfg.evaluate
    frames = c.frames or FRAMES
    questions = [one for path in paths for one in read(path, folder, frames)]
    asked = benchmark.sampled(questions, [q.category for q in questions], c.limit, c.seed)
    digest = benchmark.sha256(*paths)
    return MVBench(asked, Data(str(folder), digest, len(asked), len(questions)), frames)


def read(path: epath.Path, folder: epath.Path, frames: int = FRAMES) -> list[Question]:
    """The questions of a task's file, their clips in `folder`. Raises BadInput."""
    task, rows = path.stem, official_files.json_rows(path)
    place = PLACES[task]
    where = (f"video/{place}", place, f"data0613/{place}", f"video/data0613/{place}", "video", "")
    found = clips.found(folder, [row.get("video", str) for row in rows], rows, where)
    return [
        _question(f"{task}-{i}", task, row, Clip(clip, frames))
        for i, (row, clip) in enumerate(zip(rows, found, strict=True))
    ]


def _question(id: str, task: str, row: Row, clip: Clip) -> Question:
    candidates, answer = official_tables.texts(row, "candidates"), row.get("answer", str)
    if answer not in candidates:
        raise BadInput(f'{row.where}: "answer" is {quoted(answer)}, none of "candidates"')
    options = letters.lettered(candidates)
    letter = list(options)[candidates.index(answer)]
    text = rules.mvbench_prompt(row.get("question", str), candidates)
    return Question(id, task, text, options, letter, clip, row)


def _request(q: Question) -> TextRequest:
    truth = {"answer": q.answer, "options": dict(q.options)}
    return TextRequest(q.id, q.category, q.clip, q.text, MAX_TOKENS, truth)


def score(records: Sequence[Record]) -> Scored:
    """Accuracy in percent, the plain mean over tasks."""
    said = [letters.clear(r.reply, r.truth["options"]) for r in records]
    right = [one == r.truth["answer"] for one, r in zip(said, records, strict=True)]
    tasks = [r.category for r in records]
    by_task = {task: _of_task(records, right, task) for task in dict.fromkeys(tasks)}
    released = [one["as_released"] for one in by_task.values()]
    return Scored(
        n=len(records),
        failed=sum(not one for one in said),
        as_released={"accuracy": sum(released) / len(released)} if released else {},
        strict={"accuracy": metrics.mean_of_groups(right, tasks, scale=100)},
        units=tuple(r.id for r in records),
        by_category=by_task,
        items=tuple(
            {
                **{"id": r.id, "category": r.category, "right": ok},
                "reason": letters.reason(one, r.truth["answer"]),
            }
            for r, ok, one in zip(records, right, said, strict=True)
        ),
        policy=POLICY,
    )


def _of_task(records: Sequence[Record], right: Sequence[bool], task: str) -> dict[str, float]:
    some = [(r, ok) for r, ok in zip(records, right, strict=True) if r.category == task]
    replies = [r.reply for r, _ in some]
    released = [rules.mvbench_right(r.reply, r.truth["answer"]) for r, _ in some]
    return {
        "n": len(some),
        "accuracy": 100 * sum(ok for _, ok in some) / len(some),
        "as_released": rules.mvbench_percent(replies, released),
    }
