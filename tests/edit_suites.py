"""What suites that have pictures edited are tested with: pictures, and a judge with a rule."""

import numpy as np

from srum_jax.data import images
from srum_jax.evals.suite import JudgeReply, ModelOutputs, Replies


def picture(shade, height=8, width=12):
    """A picture of one grey, uint8 [H,W,3]."""
    return np.full((height, width, 3), shade, np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(images.encode_png(image))


def replies(suite, answer=None, name="judge"):
    """(requests, replies) of a model that makes every picture a shade lighter and twice as large;
    `answer(request)`, a text or a JudgeReply, judges."""
    requests = suite.requests("base")
    drawn = Replies(edits=[np.repeat(r.image + 1, 2, axis=0) for r in requests.edits])
    if answer is None:
        return requests, drawn
    said = [answer(one) for one in suite.judge_requests(requests, drawn)]
    said = [one if isinstance(one, JudgeReply) else JudgeReply(one) for one in said]
    return requests, Replies(edits=drawn.edits, judged={name: said})


def records(suite, answer):
    return suite.verdicts(*replies(suite, answer))


def outputs(suite, answer):
    """What a model was asked and replied, with the suite's records."""
    requests, said = replies(suite, answer)
    return ModelOutputs(requests, said, suite.verdicts(requests, said))
