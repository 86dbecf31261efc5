"""Small official data files of benchmarks about pictures, and replies to what is asked of them."""

import json

import numpy as np
from PIL import Image

from srum_jax.evals.suite import Replies


def picture(path, grey=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(path)


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def read(path):
    return json.loads(path.read_text())


def scored(suite, *texts):
    """What a model is worth that replies so, in order."""
    return suite.score(records(suite, *texts))


def records(suite, *texts):
    return suite.records(suite.requests("base"), Replies(texts=texts))


def official(suite, folder, *texts):
    """The folder with what the official scorer reads of such replies."""
    folder.mkdir(parents=True, exist_ok=True)
    suite.official(folder, suite.requests("base"), Replies(texts=texts))
    return folder
