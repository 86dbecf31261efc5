"""Working through shards: every host makes its own, whoever was killed goes on, the first finishes.

Owns which host makes which shard, the progress bar, stopping between shards when told to, and the
waiting at the end. A shard is whole or absent (`data/shards.py`) and its content a function of its
number alone, so the records are the same however often the work was interrupted and however many
hosts took part.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from srum_jax.core import distributed, preemption
from srum_jax.core.errors import Preempted
from srum_jax.data import shards

STOP = ".stop"  # in a folder of shards: some host was told to stop

Make = Callable[[int, int], Sequence[Mapping[str, Any]]]  # (first record, how many) -> records


def make_all(
    folder: epath.PathLike,
    name: str,
    features: Any,
    sizes: Sequence[int],
    make: Make,
    *,
    title: str,
) -> None:
    """Makes the shards of `folder` that are missing, and finishes the folder when all are there.

    sizes: records of each shard · title: of the progress bar. Shard u is made by host u modulo
    their number. Raises as `shards.write_shard`, `shard_done` and `finish` do, and Preempted, on
    every host, where one was told to stop and shards are left.
    """
    folder, first = epath.Path(folder), jax.process_index() == 0
    several = jax.process_count() > 1
    if several:
        if first:
            (folder / STOP).unlink(missing_ok=True)  # of a run that was killed meanwhile
        distributed.barrier(f"{title}: starts")
    starts = list(itertools.accumulate(sizes, initial=0))
    mine = range(jax.process_index(), len(sizes), jax.process_count())
    todo = [u for u in mine if not shards.shard_done(folder, name, u, len(sizes), sizes[u])]
    total = sum(sizes[u] for u in mine)
    bar = tqdm(
        total=total,
        initial=total - sum(sizes[u] for u in todo),
        desc=title,
        unit="img",
        dynamic_ncols=True,
        disable=not first,
    )
    made = 0
    with bar:
        for u in todo:
            if _stop_asked(folder, several):
                break
            records = make(starts[u], sizes[u])
            shards.write_shard(folder, name, features, records, u, len(sizes))
            bar.update(sizes[u])
            made += 1
    if distributed.any_process(made < len(todo), f"{title}: made"):
        if several and first:
            (folder / STOP).unlink(missing_ok=True)
        raise Preempted(f"{title}: stopped, finished shards are kept")
    if first:
        for left in folder.glob(f"{shards.UNFINISHED}*"):
            left.rmtree()
        shards.finish(folder, name, features, sizes)
    distributed.barrier(f"{title}: finished")


def _stop_asked(folder: epath.Path, several: bool) -> bool:
    """Whether this host or, of several, another one was asked to stop.

    Hosts are at different shards and meet at the end alone, so they tell each other by a file.
    """
    if several and preemption.stop.is_set():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STOP).touch()
    return preemption.stop.is_set() or (several and (folder / STOP).exists())
