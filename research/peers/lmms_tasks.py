"""lmms-eval's tasks beside our suites: the rows that each reads, and what its numbers stand beside.

A row is made from a record of `replies.jsonl` alone, so that lmms-eval scores the same replies
against the same answers. What it would have asked is compared with what was asked.
"""

import dataclasses
import json
import pathlib
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from srum_jax.core.errors import BadInput
from srum_jax.evals.scorers import mme
from srum_jax.evals.suite import Record

HERE = pathlib.Path(__file__).parent
Row = Callable[[Record], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class LmmsTask:
    """A task of lmms-eval for a suite of ours.

    base: its file in lmms-eval's tasks · split: of its data that it reads · row: what it reads of
    a record · metrics: {our name: (its name, what its number is multiplied by)} · changes: fields
    of its file that need what is not there · draws: the module of lmms-eval whose random letters
    are left out, "" to leave them in · digits: to which its numbers are rounded, None: not.
    """

    suite: str
    base: str
    split: str
    row: Row
    metrics: Mapping[str, tuple[str, float]]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    draws: str = ""
    digits: int | None = None
    needs = ("lmms_eval",)
    source = "PyPI, lmms-eval"

    @property
    def name(self) -> str:
        """As results call it."""
        return f"lmms-eval, {self.base}{' without draws' if self.draws else ''}"

    def run(self, records: Sequence[Record], python: str, work: pathlib.Path) -> dict[str, Any]:
        """{"version", "numbers": {our name: its number}, "asked"} of its run in the folder `work`.
        Raises BadInput where it fails."""
        rows = [self.row(r) | {"kept_id": r.id, "kept_reply": r.reply} for r in records]
        (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {"base": self.base, "split": self.split, "changes": dict(self.changes)}
        task["draws"] = self.draws
        (work / "task.json").write_text(json.dumps(task))
        called(python, HERE / "lmms_eval_run.py", work, work=work)
        found = json.loads((work / "result.json").read_text())
        numbers = {
            ours: found["results"][theirs] * scale
            for ours, (theirs, scale) in self.metrics.items()
            if theirs in found["results"]
        }
        asked = [(r.asked, found["asked"][r.id]) for r in records]
        return {
            "version": f"lmms-eval {found['version']}{' without draws' if self.draws else ''}",
            "numbers": numbers,
            "asked": prompts(asked),
        }


def called(python: str, *arguments: Any, work: pathlib.Path, **how: Any) -> str:
    """What a program said; kept in `work`/said.txt. Raises BadInput where it fails."""
    command = [python, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **how)
    (work / "said.txt").write_text(done.stdout + done.stderr)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()[-3:]
        raise BadInput(f"{' '.join(command[:2])} failed, see {work / 'said.txt'}: {lines}")
    return done.stdout


def prompts(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """How many questions are asked in the very same words, and the first that is not."""
    other = [pair for pair in pairs if pair[0] != pair[1]]
    found: dict[str, Any] = {"n": len(pairs), "same": len(pairs) - len(other)}
    return found | ({"ours": other[0][0], "theirs": other[0][1]} if other else {})


# ----------------------------------------------------------------------------------- their rows


def _question(r: Record) -> str:
    """Without the last line, which says how to answer."""
    return r.asked.rpartition("\n")[0]


def _pope(r: Record) -> dict[str, Any]:
    return {
        "question": _question(r),
        "answer": r.truth,
        "question_id": r.id,
        "category": r.category,
    }


def _mme(r: Record) -> dict[str, Any]:
    return {
        "question": f"{_question(r)} Please answer yes or no.",
        "answer": r.truth["label"].capitalize(),
        "question_id": r.truth["image"],
        "category": r.category,
    }


def _vqa(r: Record) -> dict[str, Any]:
    numbered = [{"answer_id": i} for i, _ in enumerate(r.truth["answers"], 1)]
    people = zip(r.truth["answers"], r.truth.get("records", numbered), strict=True)
    answers = [{"answer": text, **other} for text, other in people]
    return {"question": _question(r), "answers": answers, "answer": "", "question_id": int(r.id)}


def _texts(r: Record) -> dict[str, Any]:
    answers = r.truth if isinstance(r.truth, list) else r.truth["answers"]
    row = {"question": _question(r), "answers": answers, "answer": answers[0]}
    return row | {"question_id": r.id, "questionId": r.id}


def _word(r: Record) -> dict[str, Any]:
    return {"question": _question(r), "answer": r.truth, "type": f"{r.category}_test"}


def _mmbench(r: Record) -> dict[str, Any]:
    options = {letter: r.truth["options"].get(letter, "nan") for letter in "ABCDE"}
    asked = r.asked.split("\nA. ")[0].split("\n")
    return {
        "index": r.truth["index"],
        "question": asked[-1],
        "hint": "\n".join(asked[:-1]) or "nan",
        "answer": r.truth["answer"],
        "category": r.category,
        "L2-category": r.truth["parent"],
        **{"source": "-", "split": "dev"},
        **options,
    }


def _mmmu(r: Record) -> dict[str, Any]:
    options = list(r.truth["options"].values())
    answer = r.truth["answer"]
    return {
        "id": r.id,
        "question": r.asked.split("\nA. ")[0] if options else _question(r),
        "options": repr(options),
        "question_type": "multiple-choice" if options else "open",
        # Several right answers are a list written as a text, as in the files on the Hub.
        "answer": answer if options else answer[0] if len(answer) == 1 else repr(answer),
    }


def _caption(r: Record) -> dict[str, Any]:
    number = r.truth["image_id"]
    return {"question_id": f"{number:012d}.jpg", "id": number, "answer": r.truth["references"]}


MATCH = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
TASKS = (
    LmmsTask(
        "pope",
        "pope/pope.yaml",
        "test",
        _pope,
        {
            f"{ours}[lmms-eval]": (f"pope_{ours}", 1.0)
            for ours in ("accuracy", "precision", "recall", "f1_score", "yes_ratio")
        },
    ),
    LmmsTask(
        "mme",
        "mme/mme.yaml",
        "test",
        _mme,
        {name: (f"mme_{name}_score", 1.0) for name in ("perception", "cognition")},
    ),
    LmmsTask(
        "vqav2",
        "vqav2/vqav2_val.yaml",
        "validation",
        _vqa,
        {"accuracy[lmms-eval]": ("exact_match", 1.0)},
    ),
    LmmsTask(
        "okvqa",
        "ok_vqa/ok_vqa_val2014.yaml",
        "val2014",
        _texts,
        {"accuracy[lmms-eval]": ("exact_match", 1.0)},
        {
            "metric_list": [MATCH],  # not the file for the server
        },
    ),
    LmmsTask(
        "textvqa",
        "textvqa/textvqa_val.yaml",
        "validation",
        _texts,
        {"accuracy": ("exact_match", 1.0)},
        {"metric_list": [MATCH]},
    ),
    LmmsTask("gqa", "gqa/gqa.yaml", "testdev", _word, {"exact_match": ("exact_match", 1.0)}),
    LmmsTask("docvqa", "docvqa/docvqa_val.yaml", "validation", _texts, {"anls": ("anls", 100.0)}),
    LmmsTask(
        "chartqa",
        "chartqa/chartqa.yaml",
        "test",
        _word,
        {
            name: (name, 1.0)
            for name in ("relaxed_overall", "relaxed_human_split", "relaxed_augmented_split")
        },
    ),
    LmmsTask(
        "mmbench",
        "mmbench/mmbench_en_dev_static.yaml",
        "dev",
        _mmbench,
        {"circular [lmms-eval static]": ("gpt_eval_score", 0.01)},
    ),
    LmmsTask(
        "mmmu",
        "mmmu/mmmu_val.yaml",
        "validation",
        _mmmu,
        {"accuracy [lmms-eval]": ("mmmu_acc", 1.0)},
        digits=5,
    ),
    LmmsTask(
        "mmmu",
        "mmmu/mmmu_val.yaml",
        "validation",
        _mmmu,
        {"accuracy [lmms-eval]": ("mmmu_acc", 1.0)},
        draws="lmms_eval.tasks._task_utils.mmmu_mcq_utils",
        digits=5,
    ),
    LmmsTask(
        "coco_captions",
        "coco_cap/coco2017_cap_val.yaml",
        "val",
        _caption,
        {
            name: (f"coco_{name}", 1.0)
            for name in ("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L")
        },
    ),
)


def sums_of_mme(records: Sequence[Record]) -> dict[str, float]:
    """Perception and cognition of the categories that there are, as lmms-eval adds them up; a
    results folder has these sums where all categories are there alone."""
    answers = [mme.Answer(r.category, r.truth["image"], r.truth["label"], r.reply) for r in records]
    scores = mme.lmms_eval_scores(answers)
    several = {"perception": mme.PERCEPTION, "cognition": mme.COGNITION}
    return {
        name: mme.total(scores, categories)
        for name, categories in several.items()
        if set(categories) & set(scores)
    }
