"""Results folders with invented replies: every way in which models say right and wrong things.

A trained model's replies look alike, so that all programs read them alike. Here each question is
answered by the right answer or another question's, in one of many forms, or not at all. By a seed;
no model is asked. What judged suites ask a judge is answered in the same way, about edits that
change nothing.

    python research/peers/invented.py pope --data shapes -o runs/peers/pope-invented
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from srum_jax import use_evaluate
from srum_jax.config import Config
from srum_jax.core import registry
from srum_jax.core.errors import BadInput
from srum_jax.evals import suite_folder
from srum_jax.evals.benchmark import Benchmark, Told
from srum_jax.evals.suite import JudgeReply, ModelOutputs, Replies, Requests

NAME = "invented"  # of the model and of the judge
FORMS = (
    *("{}", "{}", "{}", "{}.", "{}!", " {} ", "**{}**", '"{}"', "{}\nBecause it is so.", "{},"),
    *("The answer is {}.", "It is {}", "I think it is {}.", "Answer: {}", "so the answer is: {}"),
    *("({})", "{}, I am sure", "{} ; no doubt", "not {}", "", "I cannot tell."),
)
JUDGES: Mapping[str, tuple[Sequence[str], int, int]] = {  # forms, lowest and highest mark
    "imgedit": (
        (
            "Brief reasoning: plain.\nPrompt Compliance: {}\nVisual Naturalness: {}\n"
            "Physical & Detail Integrity: {}",
            "Prompt Compliance: {}\nVisual Naturalness: {}/5\nPhysical & Detail Integrity: {}",
            "Prompt Compliance: **{}**\nVisual Naturalness: {}.\nPhysical & Detail Integrity: {}",
            "Brief reasoning: {}\nPrompt Compliance: {}",
            "I am sorry.",
        ),
        *(1, 5),
    ),
    # The program refuses an overall number where one reply has no score, so all have.
    "wise": (
        ("Score: {}", "**Score**: {}", "<think>0?</think>\nscore {}.", "{}", "Score: {}/1"),
        0,
        1,
    ),
    "gedit": (
        (
            '{"score": [{}, {}], "reasoning": "so"}',
            '```json\n{"score": [{}, {}],\n "reasoning": "a \'quoted\' word"}\n```',
            '||V^=^V||\n{"score": [{}, {}], "reasoning": "so"}\n||V^=^V||',
            "[{}, {}]",
            '{"score": {}, "reasoning": "one mark"}',
            "{score: {}, reasoning: so}",
            "{'score': [{}, {}], 'reasoning': 'so'}",
            '{"score": ["{}", "{}"]}',
            "{}",
            "score : [{}, {}]",
            "I cannot tell.",
        ),
        *(0, 10),
    ),
    "srum_compbench": (
        (
            '{"score": {}, "explanation": "so"}',
            '```json\n{"score": {},\n "explanation": "a {brace}"}\n```',
            'I say "score": "{}" of 100',
            '{"score": {}.5, "explanation": "half"}',
            "{'score': {}}",
            "Score: {}",
        ),
        *(0, 120),
    ),
}

FIRST_TOKENS, OTHER = ("geneval2",), "Perhaps"


def answer(truth: Any) -> str:
    """The right answer of a record's `truth`, whatever suite it is of."""
    match truth:
        case str(text):
            return text
        case {"label": text} | {"answer": str(text)}:
            return text
        case {"answers": [first, *_]} | {"answer": [first, *_]} | {"references": [first, *_]}:
            return first
        case [str(first), *_]:
            return first
    raise BadInput(f"no answer can be found in {truth!r}")


def replies(truths: Sequence[Any], seed: int) -> list[str]:
    """A reply to each question: about two in three the right answer, in one of FORMS, and in the
    case of letters that a seed gives."""
    rng = np.random.default_rng(seed)
    answers = [answer(truth) for truth in truths]
    said = []
    for text in answers:
        text = text if rng.random() < 0.65 else answers[rng.integers(len(answers))]
        text = (str, str.capitalize, str.upper)[rng.integers(3)](text)
        said.append(FORMS[rng.integers(len(FORMS))].replace("{}", text))
    return said


def marks(suite: str, count: int, seed: int) -> list[str]:
    """Words of a judge: whole marks, each in one of the suite's forms, the first one most often."""
    forms, lowest, highest = JUDGES[suite]
    rng = np.random.default_rng(seed)
    said = []
    for _ in range(count):
        text = forms[min(len(forms) - 1, int(rng.exponential(len(forms) / 4)))]
        for _ in range(text.count("{}")):
            text = text.replace("{}", str(rng.integers(lowest, highest + 1)), 1)
        said.append(text)
    return said


def first_tokens(asked: Sequence[Sequence[str]], seed: int) -> list[JudgeReply]:
    """A judge's first tokens: of the texts that are asked for, each with a probability of its own,
    together below 1, and the likeliest of these or another word."""
    rng = np.random.default_rng(seed)
    said = []
    for texts in asked:
        *p, other = rng.dirichlet(np.full(len(texts) + 1, 0.3))
        likeliest = texts[int(np.argmax(p))] if max(p) > other else OTHER
        said.append(JudgeReply(likeliest, p=dict(zip(texts, map(float, p), strict=True))))
    return said


def detections(suite: Benchmark, requests: Requests, seed: int) -> Iterator[dict[str, Any]]:
    """Lines of GenEval's `results.jsonl`: a detector's verdict on every image, right by chance."""
    rng = np.random.default_rng(seed)
    of = {line.prompt.id: line for line in suite.lines}
    for one in requests.images:
        line = of[one.prompt.id]
        right = bool(rng.random() < 0.3 + 0.1 * (one.prompt.id % 5))
        yield {
            "filename": f"images/{line.folder}/samples/{one.k:04d}.png",
            "tag": line.metadata["tag"],
            "prompt": line.metadata["prompt"],
            "correct": right,
            "reason": "" if right else "expected more",
            "metadata": json.dumps(dict(line.metadata)),
            "details": "{}",
        }


def write(suite: Benchmark, folder: epath.Path, seed: int) -> dict[str, Any]:
    """A results folder as `use evaluate` writes it, and its scores. Raises BadInput."""
    requests = suite.requests("model")
    if suite.name == "geneval":
        return _imported(suite, requests, folder, seed)
    if requests.texts:
        said = Replies(texts=replies([one.truth for one in requests.texts], seed))
    elif suite.name in (*JUDGES, *FIRST_TOKENS):
        said = _judged(suite, requests, seed)
    else:
        raise BadInput(f"{suite.name}: nothing is invented for it")
    outputs = {"model": {seed: ModelOutputs(requests, said, suite.verdicts(requests, said))}}
    asked = suite_folder.Asked(
        suite=suite.name,
        told=Told.of(suite),
        judges={NAME: {}} if said.judged else {},
        models={"model": {"name": NAME, "digest": f"seed {seed}"}},
    )
    return suite_folder.write(folder, suite, outputs, asked)


def _imported(
    suite: Benchmark, requests: Requests, folder: epath.Path, seed: int
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.jsonl"
    suite_folder.write_lines(path, detections(suite, requests, seed))
    which = {"model": {"results": str(path.absolute()), "digest": f"seed {seed}"}}
    asked = suite_folder.Asked(suite.name, Told.of(suite), {NAME: {}}, which)
    records = suite.imported(path, requests)
    records = [dataclasses.replace(one, judge=NAME) for one in records]
    suite_folder.write_replies(folder, {"model": records}, asked)
    return suite_folder.rescored(folder, suite.score)


def _judged(suite: Benchmark, requests: Requests, seed: int) -> Replies:
    edits = [one.image for one in requests.edits]
    blank = np.zeros((8, 8, 3), np.uint8)
    drawn = [
        {"image": blank, "seed": 0, "prompt": one.prompt.text, "k": one.k}
        for one in requests.images
    ]
    pictures = Replies(images=drawn, edits=edits)
    asked = suite.judge_requests(requests, pictures)
    if suite.name in FIRST_TOKENS:
        said = first_tokens([one.first_token for one in asked], seed)
    else:
        said = [JudgeReply(text) for text in marks(suite.name, len(asked), seed)]
    return dataclasses.replace(pictures, judged={NAME: said})


def main(arguments: Sequence[str]) -> int:
    """The command: 0, or 2 for what cannot be read."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("suite", choices=list(registry.SUITES))
    parser.add_argument("--data", default="shapes", help="its official files, or a world's name")
    parser.add_argument("-o", "--out", required=True, help="the folder of results")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        suite = use_evaluate.module(options.suite).make(Config(), options.data, "")
        scores = write(suite, epath.Path(options.out), options.seed)
    except BadInput as e:
        print(f"error: {e}", file=sys.stderr)
        return BadInput.exit_code
    print(json.dumps(scores["models"]["model"]["as_released"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
