"""Working through units: every host makes its own, whoever was killed goes on, the first finishes.

Owns which host makes which unit, the progress bar, and the waiting at the end. A unit is whole or
absent (`data/units.py`) and its content a function of its number alone, so the records are the same
however often the work was interrupted and however many hosts took part.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from srum_jax.data import units
from srum_jax.stages.manifest import wait_for_all

Make = Callable[[int, int], Sequence[Mapping[str, Any]]]  # (first record, how many) -> records


def make_all(
    folder: epath.PathLike,
    name: str,
    features: Any,
    sizes: Sequence[int],
    make: Make,
    *,
    title: str,
    unit: str = "img",
) -> None:
    """Makes the units of `folder` that are missing, and finishes the folder when all are there.

    sizes: records of each unit · title: of the progress bar · unit: what it counts. Unit u is made
    by host u modulo their number. Raises as `units.write_unit`, `unit_done` and `finish` do.
    """
    starts = [sum(sizes[:u]) for u in range(len(sizes))]
    mine = range(jax.process_index(), len(sizes), jax.process_count())
    todo = [u for u in mine if not units.unit_done(folder, name, u, len(sizes), sizes[u])]
    total = sum(sizes[u] for u in mine)
    bar = tqdm(
        total=total,
        initial=total - sum(sizes[u] for u in todo),
        desc=title,
        unit=unit,
        dynamic_ncols=True,
        disable=jax.process_index() != 0,
    )
    with bar:
        for u in todo:
            records = make(starts[u], sizes[u])
            units.write_unit(folder, name, features, records, u, len(sizes))
            bar.update(sizes[u])
    wait_for_all(f"{name}: made")
    if jax.process_index() == 0:
        units.finish(folder, name, features, sizes)
    wait_for_all(f"{name}: finished")
