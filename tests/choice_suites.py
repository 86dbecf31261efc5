"""Multiple-choice benchmarks in tests: their configs, replies to their questions, pictures."""

import numpy as np
from PIL import Image

from srum_jax.config import Config, EvaluateConfig
from srum_jax.evals import benchmark, suite_folder
from srum_jax.evals.suite import ModelOutputs, Replies


def config(limit=0, seed=0, **values):
    return Config(evaluate=EvaluateConfig(limit=limit, seed=seed, **values))


def picture(shade, size=(16, 12)):
    """uint8 [H,W,3] of one colour; size: (H, W)."""
    return np.full((*size, 3), shade, np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def outputs(suite, words):
    """What a model that replies `words` gives: a text of each id, or one for all."""
    requests = suite.requests("model")
    said = [words if isinstance(words, str) else words[r.id] for r in requests.texts]
    replies = Replies(texts=said)
    return ModelOutputs(requests, replies, suite.verdicts(requests, replies))


def scored(suite, words):
    return suite.score(outputs(suite, words).verdicts)


def official(suite, words, folder):
    """The folder that the suite writes for the official scorer."""
    folder.mkdir()
    one = outputs(suite, words)
    suite.official(folder, one.requests, one.replies)
    return folder


def answers(suite):
    """Replies with the right letter, or the first right text, by id."""
    right = {r.id: r.truth["answer"] for r in suite.requests("model").texts}
    return {id: one if isinstance(one, str) else one[0] for id, one in right.items()}


def check_folder(suite, words, folder):
    """Scores are a function of the replies that a folder keeps; a section is made of two models."""
    one, perfect = outputs(suite, words), outputs(suite, answers(suite))
    told = suite_folder.Told.of(suite)
    records = {"model": perfect.verdicts, "against": one.verdicts}
    section = benchmark.section(suite.score, told, records)
    rows = list(suite_folder.reply_rows({"model": one.verdicts}))
    assert [row["reply"] if "reply" in row else "" for row in rows] == list(one.replies.texts)
    found = suite.findings({"base": one, "trained": perfect})
    assert (
        found.section["metric"]
        == section["metric"]
        == next(iter(section["models"]["model"]["strict"]))
    )
    assert section["data"]["sha256"] and section["policy"]
    assert found.examples[f"examples-{suite.name}"][0]["image"].ndim == 3
    return section
