"""What suites that have pictures drawn are tested with: pictures, and a judge with a rule."""

import types

import numpy as np

from srum_jax.configs.base import EvaluateConfig
from srum_jax.evals.suite import JudgeReply, ModelOutputs, Replies


def config(**values):
    """A config of which suites read the `evaluate` section alone."""
    return types.SimpleNamespace(evaluate=EvaluateConfig(**values))


def drawn(requests):
    """A picture a request, each of another grey."""
    pixel = np.ones((8, 8, 3), np.uint8)
    return [{"image": pixel * (i % 256), "seed": i} for i in range(len(requests.images))]


def judged(suite, answer, name="judge"):
    """(requests, replies) of a model whose pictures `answer(request)`, a JudgeReply, judges."""
    requests = suite.requests("base")
    replies = Replies(images=drawn(requests))
    said = [answer(one) for one in suite.judge_requests(requests, replies)]
    return requests, Replies(images=replies.images, judged={name: said})


def outputs(suite, answer):
    """What a model was asked and replied, with the suite's records."""
    requests, replies = judged(suite, answer)
    return ModelOutputs(requests, replies, suite.verdicts(requests, replies))


def says(text, status="ok", **p):
    """A judge's reply; p: of "Yes" and "No", for instance."""
    return JudgeReply(text, status, p)
