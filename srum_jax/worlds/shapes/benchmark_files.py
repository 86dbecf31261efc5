"""The shapes world as data of each benchmark: its official files, so that every suite runs at once.

Owns which benchmarks there are and how many items each gets. What stands in the files is in
`benchmark_questions`, `benchmark_choices` and `benchmark_drawings`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from srum_jax.core.errors import BadInput, quoted
from srum_jax.core.registry import SPLITS
from srum_jax.worlds.shapes import benchmark_choices as choices
from srum_jax.worlds.shapes import benchmark_drawings as drawings
from srum_jax.worlds.shapes import benchmark_questions as questions
from srum_jax.worlds.shapes.benchmark_folder import OfficialFolder

COUNT = 96  # items of a benchmark, as far as its writer's docstring does not say otherwise
COUNTS = {"wise": 1000, "wise_legacy": 1000}  # their overall scores are of all ids
WRITERS: dict[str, Callable[[OfficialFolder, str, int], None]] = {
    writer.__name__: writer
    for writer in (
        *(questions.vqav2, questions.okvqa, questions.textvqa, questions.gqa, questions.docvqa),
        *(questions.chartqa, questions.pope, questions.mme, questions.coco_captions),
        *(choices.mmbench, choices.mmmu, choices.mvbench, choices.videomme),
        *(drawings.geneval, drawings.geneval2, drawings.t2i_compbench, drawings.srum_compbench),
        *(drawings.wise, drawings.wise_legacy, drawings.t2i_reasonbench, drawings.dpg_bench),
        *(drawings.gedit, drawings.imgedit),
    )
}


def write(
    suite: str, folder: pathlib.Path, *, split: str = "test", count: int | None = None
) -> None:
    """Writes the official data files of a benchmark, about scenes of the split, into `folder`.

    suite: a key of WRITERS · count: how many items, `COUNT` by default; a benchmark of several
    categories shares them evenly, and has at least one of each. What is written is a function of
    the arguments; files of the same names are replaced. Raises BadInput for an unknown suite or
    split and a count below 1.
    """
    if suite not in WRITERS:
        raise BadInput(
            f"the shapes world writes no files of {quoted(suite)}; of {', '.join(WRITERS)}"
        )
    if split not in SPLITS:
        raise BadInput(f"split {quoted(split)} is none of {', '.join(SPLITS)}")
    count = COUNTS.get(suite, COUNT) if count is None else count
    if count < 1:
        raise BadInput(f"{count} items of {suite} asked for; ask for 1 or more")
    WRITERS[suite](OfficialFolder(pathlib.Path(folder)), split, count)
