"""From rows of examples to device batches: order, packing in the background, placement.

The order is a function: step s, row b of a run is row s·B + b of an endless sequence that depends
on the seed alone. So the data state is the step, and a resumed run sees the same batches.
"""

import bisect
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from srum_jax.data import packing
from srum_jax.data.schema import Batch, Example, Lanes

RowFn = Callable[[int], list[Example]]  # number of a row in the endless sequence -> its samples

MAX_PADDING = 0.4  # share of a step's tokens from which on other lanes are advised


class EpochRows:
    """The endless sequence over a finite set: epoch after epoch of `packing.plan`.

    `__call__(i)` gives (epoch, example numbers) of row i. Raises ValueError for no examples and for
    one that fits no row.
    """

    def __init__(self, sizes: np.ndarray, lanes: Lanes, *, seed: int):
        if not len(sizes):
            raise ValueError("there are no examples to train on")
        self.sizes, self.lanes, self.seed = sizes, lanes, seed
        # Rows are asked for in order: of earlier epochs only the number of rows is kept.
        self._plan = functools.lru_cache(2)(self._planned)
        self.first = self._plan(0)
        self.ends = [len(self.first)]
        # The last row takes what is left over: its room is not for sizes to change.
        self._whole = self.first[:-1] or self.first
        self.fill = packing.fill(sizes, self._whole, lanes)

    @property
    def padding(self) -> float:
        """Share of a step's tokens, both lanes together, that hold nothing and are computed."""
        width = {name: getattr(self.lanes, name) for name in self.fill}
        used = sum(share * width[name] for name, share in self.fill.items())
        return 1 - used / sum(width.values())

    @property
    def advice(self) -> str:
        """What emptier lanes cost, and the sizes to use; "" where at most MAX_PADDING is padding.

        A single row is as full as there are examples: nothing is advised.
        """
        if self.padding <= MAX_PADDING or len(self.first) == 1:
            return ""
        used = np.max([self.sizes[row].sum(axis=0) for row in self._whole], axis=0)
        samples = max(map(len, self._whole))
        return (
            f"{self.padding:.0%} of every step's tokens are padding, with rows of up to {samples} "
            f"samples: set und={used[0]}, gen={used[1]} in train.lanes, or make room for more "
            "samples in the other lanes"
        )

    def _planned(self, epoch: int) -> list[list[int]]:
        return packing.plan(self.sizes, self.lanes, seed=self.seed, epoch=epoch)

    def __call__(self, i: int) -> tuple[int, list[int]]:
        while i >= self.ends[-1]:
            self.ends.append(self.ends[-1] + len(self._plan(len(self.ends))))
        epoch = bisect.bisect_right(self.ends, i)
        first = self.ends[epoch - 1] if epoch else 0
        return epoch, self._plan(epoch)[i - first]


def batches(
    make: Callable[[int], Batch], sharding: jax.sharding.Sharding, *, start: int, stop: int
) -> Iterator[Batch]:
    """Device batches of steps start … stop − 1; `make(step)` runs two steps ahead in a thread.

    `make` gives this host's rows as NumPy arrays; `sharding` lays rows over the mesh.
    """
    import grain

    class Steps:
        def __len__(self):
            return stop - start

        def __getitem__(self, i):
            return start + i

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    for local in grain.MapDataset.source(Steps()).map(make).to_iter_dataset(options):
        yield place(local, sharding)


def place(local: Any, sharding: jax.sharding.Sharding) -> Any:
    """A tree of this host's rows -> global device arrays, all hosts' rows laid by `sharding`."""
    # The one transfer that a step is meant to make: the training loop forbids all others.
    with jax.transfer_guard_host_to_device("allow"):
        if sharding.is_fully_addressable:
            return jax.device_put(local, sharding)  # in one call for all arrays, which is quicker
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), local
        )


def local_rows(step: int, rows: int, sharding: jax.sharding.Sharding) -> list[int]:
    """Numbers of the rows of a step that this host's devices hold, in order.

    The step has `rows` rows in all, laid over the devices by `sharding`; devices of several hosts
    may hold the same ones. Raises ValueError where the rows do not divide over the devices.
    """
    parts = sharding.addressable_devices_indices_map((rows,)).values()
    here = sorted({row for (part,) in parts for row in range(*part.indices(rows))})
    return [step * rows + row for row in here]
