"""Working through shards: every host makes its own, whoever was killed goes on, the first finishes.

Owns which host makes which shard, the progress bar, stopping between shards when told to, and the
waiting at the end. A shard is whole or absent (`data/shards.py`) and its content a function of its
number alone, so the records are the same however often the work was interrupted and however many
hosts took part.

Pictures are read, encoded and shards written by threads, while the devices make what follows.
Shards are written in order, and no more than WAITING of them are left while the next one is made.
"""

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from srum_jax.core import console, distributed, in_flight, preemption
from srum_jax.core.errors import Preempted
from srum_jax.data import shards

WAITING = 1  # shards made and not yet written: what they hold stays in memory
THREADS = min(8, os.cpu_count() or 1)  # that encode pictures, or decode them

Ranges = Iterable[tuple[int, int]]  # of shards to make: (first record, how many)
Make = Callable[[Ranges], Iterable[Sequence[Any]]]  # -> of each range what `encode` takes
Encode = Callable[[Any], Mapping[str, Any]]  # -> a record as it is stored


def make_all(
    folder: epath.PathLike,
    name: str,
    features: Any,
    sizes: Sequence[int],
    make: Make,
    *,
    title: str,
    encode: Encode = dict,
) -> None:
    """Makes the shards of `folder` that are missing, and finishes the folder when all are there.

    sizes: records of each shard · make: asks for the next range when it has work for the devices
    left no more · title: of the progress bar · encode: what is done to each record on the way to
    the file, in a thread. Shard u is made by host u modulo their number. Raises as
    `shards.write_shard`, `shards_left` and `finish` do, and Preempted, on every host, where one was
    told to stop and shards are left.
    """
    folder, first = epath.Path(folder), jax.process_index() == 0
    distributed.barrier(f"{title}: starts")
    starts = list(itertools.accumulate(sizes, initial=0))
    mine = range(jax.process_index(), len(sizes), jax.process_count())
    todo = shards.shards_left(folder, name, sizes, mine)
    total = sum(sizes[u] for u in mine)
    bar = console.progress(
        total=total,
        initial=total - sum(sizes[u] for u in todo),
        desc=title,
        unit="img",
        shown=first,
    )
    ranges = itertools.takewhile(_go_on, ((starts[u], sizes[u]) for u in todo))
    made = 0
    with bar, _Writer(folder, name, features, len(sizes), encode, bar) as writer:
        with contextlib.suppress(Preempted):  # other processes are at other shards, and told too
            for u, records in zip(todo, make(ranges), strict=False):
                writer.put(u, records)
                made += 1
    if distributed.any_process(made < len(todo), f"{title}: made"):
        raise Preempted(f"{title}: stopped, finished shards are kept")
    if first:
        for left in folder.glob(f"{shards.UNFINISHED}*"):
            left.rmtree()
        shards.finish(folder, name, features, sizes)
    distributed.barrier(f"{title}: finished")


def one_by_one(make: Callable[[int, int], Sequence[Any]]) -> Make:
    """A `Make` of what makes one shard, by its first record and how many."""
    return functools.partial(itertools.starmap, make)


def read_ahead(records: Sequence[Any], ranges: Ranges) -> Iterator[list[Any]]:
    """The records of each range, read and decoded by threads while the range before is in work."""
    with concurrent.futures.ThreadPoolExecutor(THREADS, "read") as pool:
        places = (range(first, first + count) for first, count in ranges)
        reading = (pool.map(records.__getitem__, part) for part in places)
        yield from map(list, in_flight.ahead(reading))


def _go_on(_: tuple[int, int]) -> bool:
    return not preemption.asked()


class _Writer:
    """Encodes and writes shards in a thread, in the order given, and waits for them at the end.

    A fault of a shard is raised where the next ones are put, or at the end.
    """

    def __init__(
        self,
        folder: epath.Path,
        name: str,
        features: Any,
        total: int,
        encode: Encode,
        bar: tqdm,
    ):
        self.folder, self.name, self.features, self.total = folder, name, features, total
        self.encode, self.bar = encode, bar
        self.threads = contextlib.ExitStack()
        self.waiting: collections.deque[concurrent.futures.Future] = collections.deque()

    def __enter__(self) -> "_Writer":
        pool = concurrent.futures.ThreadPoolExecutor
        self.encoders = self.threads.enter_context(pool(THREADS, "encode"))
        self.writer = self.threads.enter_context(pool(1, "write"))
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        with self.threads:  # which lets those end that were put
            while self.waiting and kind is None:
                self.waiting.popleft().result()

    def put(self, index: int, records: Sequence[Any]) -> None:
        """Shard `index` of these records is next; waits while WAITING are not written."""
        while len(self.waiting) >= WAITING:
            self.waiting.popleft().result()
        self.waiting.append(self.writer.submit(self._write, index, records))

    def _write(self, index: int, records: Sequence[Any]) -> None:
        encoded = list(self.encoders.map(self.encode, records))
        shards.write_shard(self.folder, self.name, self.features, encoded, index, self.total)
        self.bar.update(len(encoded))
