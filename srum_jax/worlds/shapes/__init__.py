"""The shapes world: small pictures of coloured shapes, what can be said of them, and who checks it.

32x32 RGB, 2x2 cells, one to four objects of 8 colours, 4 shapes, 2 sizes; or, as its larger setting
(`setting`, the world `large`), 64x64, 3x3 cells and up to nine objects. Owns what
`core/registry.py` asks of a world; the rest lies in modules of their own: scenes and pictures
(`rendering`), prompts and their splits (`language`), questions (`question_forms`, `questions`),
edits, pairs and clips (`changes`), streams of training examples and the words (`examples`), a TFDS
data set (`tfds_builder`), the exact verifier (`verifier`), the exam (`exam`, `suite`), official
files of benchmarks (`benchmark_files`), and the stages that make the base (`autoencoder`,
`pretrain`).
"""

import pathlib

import numpy as np

from srum_jax.worlds.shapes import changes, language
from srum_jax.worlds.shapes import rendering as render
from srum_jax.worlds.shapes.setting import SMALL, Setting

STAGES = {  # that make the base, in their order, and the module of each
    "autoencoder": "srum_jax.worlds.shapes.autoencoder",
    "pretrain": "srum_jax.worlds.shapes.pretrain",
}


def prompts(
    split: str, count: int | None, first: int = 0, setting: Setting = SMALL
) -> tuple[tuple[str, str], ...]:
    """(text, category) of the split's prompts, the categories in turn: `count`, without one all.

    With a place `first` to begin at, all of them: the list is then turned. Raises ValueError for
    an unknown split or more prompts than it has.
    """
    everything = len(language.prompts(split, setting))
    wanted = everything if count is None else count
    most = max(wanted, everything) if first else wanted
    found = language.balanced_prompts(split, most, setting=setting)
    return tuple((prompt.text, prompt.category) for prompt in found)


def edits(split: str, count: int, setting: Setting = SMALL) -> tuple[tuple[np.ndarray, str], ...]:
    """(picture uint8 [H,W,3], instruction) of `count` edits of the split, kinds in turn.

    Raises ValueError for an unknown split.
    """
    if split not in language.SPLITS:
        raise ValueError(f'"{split}" is no split of edits: there are {", ".join(language.SPLITS)}')
    found = changes.edit_set(split, count, setting=setting)
    return tuple((render.draw(one.source), one.instruction) for one in found)


def write_benchmark(suite: str, folder: pathlib.Path) -> None:
    """Writes the world's test questions or prompts in the official files of a benchmark.

    Raises BadInput for one that the world has no files of.
    """
    from srum_jax.worlds.shapes import benchmark_files  # a run that asks none need not import it

    benchmark_files.write(suite, folder)
