"""Verdicts and numbers of lmms-eval for replies to MVBench and Video-MME."""

import math

from srum_jax.evals.scorers import letters, video_choice


def _check_mvbench(cases, aggregate):
    right = []
    for case in cases:
        letter = dict(zip(case["candidates"], letters.lettered(case["candidates"]), strict=True))[
            case["answer"]
        ]
        assert letter == case["gt_letter"], case
        right.append(video_choice.mvbench_right(case["reply"], letter))
        assert int(right[-1]) == case["lmms_mvbench_score"], case
        assert video_choice.videomme_letter(case["reply"]) == case["videomme_letter"], case
    percent = video_choice.mvbench_percent([case["reply"] for case in cases], right)
    assert math.isclose(percent, aggregate, rel_tol=0, abs_tol=1e-9)


def _check_prompt(prompt, cases):
    question = prompt.removeprefix("Question:").split("\n")[0]
    lists = {tuple(case["candidates"]) for case in cases}
    assert prompt in {video_choice.mvbench_prompt(question, one) for one in lists}


def check(case: dict) -> None:
    """Asserts every array of `video_mcq.json`."""
    _check_mvbench(case["mvbench"], case["mvbench_aggregate"])
    if "mvbench_prompt_example" in case:
        _check_prompt(case["mvbench_prompt_example"], case["mvbench"])
    questions = [
        video_choice.VideoQuestion(
            *(row[key] for key in ("duration", "domain", "sub_category", "task_type")),
            right=video_choice.videomme_letter(row["reply"]) == row["answer"],
        )
        for row in case["videomme_rows"]
    ]
    overall = video_choice.videomme_accuracies(questions)["Overall"]
    assert math.isclose(overall, case["videomme_overall"], rel_tol=0, abs_tol=1e-9)
