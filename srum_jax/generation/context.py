"""What a request has read before it writes or draws: contexts, and their KV caches.

A context is a tuple of items (texts, pictures, clean latents). It is read by the training forward
in one pass; its keys and values then lie in packed order in caches of fixed size. A context that
only lacks the last items of another is the same cache with a shorter length.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.typing import DTypeLike

from srum_jax.core import compiling
from srum_jax.core.errors import BadInput
from srum_jax.core.param_tree import Params
from srum_jax.data import packing
from srum_jax.data.schema import Batch, Example, Lanes, Latent, LayoutSizes, Picture, Text
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import mot
from srum_jax.models.bagel.model_config import BagelConfig

Context = tuple[Text | Picture | Latent, ...]


def bucket(count: int, least: int = 16) -> int:
    """The smallest of least·(1, 1.5, 2, 3, 4, 6, 8, …) that is not below `count`; 0 for 0.

    Lengths are padded to buckets so that few programs are compiled: two for every doubling.
    """
    if count <= 0:
        return 0
    size = least
    while size < count:
        if size * 3 // 2 >= count:
            return size * 3 // 2
        size *= 2
    return size


def fine_bucket(count: int) -> int:
    """As `bucket`, in steps of 64 and at most a thirty-second above `count` where it is above 256.

    For tokens of pictures, whose sizes are few: 64x64 latent tokens, or 64x36, are not padded.
    """
    if count <= 256:
        return bucket(count)
    step = max(64, 2 ** ((count - 1).bit_length() - 6))
    return -(-count // step) * step


def rows_for(count: int, batch: int, least: int = 1) -> int:
    """Rows of a call for `count` requests: least·2ⁿ, at most `batch` in whole multiples of least.

    `batch` itself may be no such multiple: it is rounded up.
    """
    most = -(-batch // least) * least
    rows = least
    while rows < min(count, most):
        rows *= 2
    return min(rows, most)


def extent(context: Context) -> tuple[int, int]:
    """(cache slots that a context takes, RoPE position that follows it)."""
    slots = position = 0
    for item in context:
        if isinstance(item, Text):
            slots, position = slots + len(item.ids) + 2, position + len(item.ids) + 2
        elif isinstance(item, Picture):
            slots, position = slots + len(item.positions) + 2, position + 1
        else:
            h, w = item.tokens.shape[:2]
            slots, position = slots + h * w + 2, position + 1
    return slots, position


def check_window(context: Context, more: int, *, window: int, max_text: int) -> None:
    """Raises ValueError if a context and `more` tokens after it exceed the window, in tokens, or
    the model's `max_text` RoPE positions."""
    slots, position = extent(context)
    if slots + more > window:
        pictures = sum(not isinstance(item, Text) for item in context)
        raise ValueError(
            f"the request takes {slots} tokens ({pictures} of its items are images or frames) and "
            f"up to {more} more are to follow: the context window is {window}; use fewer or "
            "smaller images, a shorter text, or a larger window"
        )
    if position + more > max_text:
        raise ValueError(
            f"the request reaches position {position + more} of a text, and the model knows "
            f"{max_text}: use a shorter text, or ask for less"
        )


def check_finite(finite: bool, what: str) -> None:
    """BadInput where what the model gave for `what` is not finite: nothing is made of it."""
    if not finite:
        raise BadInput(
            f"the model's numbers for {what} are NaN or infinite: its weights are damaged, or a "
            "setting such as the guidance is too large; nothing is made of them"
        )


def _lanes(contexts: Sequence[Context], pictures: Callable[[int], int]) -> Lanes:
    sizes = [packing.size(Example(c)) for c in contexts]
    _, gen, vit, _, images, _ = np.max(sizes, axis=0).tolist()
    texts = max(int(u - p) for u, _, p, *_ in sizes)
    return Lanes(
        und=bucket(max(texts, 1)) + pictures(vit),  # contexts may be empty, the lanes together not
        gen=pictures(gen),
        vit=pictures(vit),
        labels=0,
        images=bucket(images, 1),
        regions=0,
    )


def pack(
    contexts: Sequence[Context],
    rows: int,
    layout: LayoutSizes,
    pictures: Callable[[int], int] = bucket,
) -> Batch:
    """One context a row, then empty rows; lanes are as long as the buckets above the fullest row,
    of pictures' tokens by `pictures`."""
    lanes = _lanes(contexts, pictures)
    padded = [[Example(c)] for c in contexts] + [[]] * (rows - len(contexts))
    return packing.pack(padded, lanes, layout)


def slots(contexts: Sequence[Context], pictures: Callable[[int], int] = bucket) -> int:
    """Slots of a cache for the fullest of these contexts, in buckets as `pack`'s; 0 for none."""
    if not any(contexts):
        return 0
    lanes = _lanes(contexts, pictures)
    return lanes.und + lanes.gen


def capacity(batch: Batch, more: int = 0) -> int:
    """Slots of a cache for what a packed batch holds and up to `more` tokens after it."""
    return max(1, batch.und.segment.shape[1] + batch.gen.segment.shape[1] + bucket(more))


def lengths(batch: Batch) -> dict[str, int]:
    """The lengths of a packed batch, by which programs differ, as `Programs` names them."""
    lanes = {
        "tokens read": batch.und.segment,
        "latent tokens read": batch.gen.segment,
        "picture patches": batch.vit_positions,
        "latent pictures": batch.noisy,
    }
    return {name: x.shape[1] for name, x in lanes.items()}


def prefill(
    params: Params, batch: Batch, *, cfg: BagelConfig, slots: int, dtype: DTypeLike
) -> mot.Cache:
    """Reads one context a row (as `pack` makes them) into a KV cache, in packed order.

    k and v of the cache are [L,B,slots,K,C] in `dtype`, length and position int32 [B]. Nothing in a
    context may be noisy or a branch: what follows sees all of it.
    """
    t = jnp.zeros(batch.noisy.shape)
    _, _, (k, v) = bagel.forward(
        params, cfg, batch, batch.latents, t, dtype=dtype, remat="none", keep="kv"
    )
    index = jnp.concatenate([batch.und.index, batch.gen.index], axis=1)
    position = jnp.concatenate([batch.und.position, batch.gen.position], axis=1)
    real = index >= 0
    row, slot = jnp.arange(len(index))[:, None], jnp.where(real, index, slots)

    def lay(x):
        empty = jnp.zeros((*x.shape[:2], slots, *x.shape[3:]), x.dtype)
        return empty.at[:, row, slot].set(x, mode="drop")

    return mot.Cache(
        k=lay(k),
        v=lay(v),
        length=jnp.sum(real, axis=1),
        position=jnp.max(jnp.where(real, position + 1, 0), axis=1),
    )


def shortened(
    cache: mot.Cache, length: jax.Array, position: jax.Array, slots: int | None = None
) -> mot.Cache:
    """The same rows as they were when they had read `length` tokens; both int32 [B]. `slots`: how
    many are kept, no fewer than the longest row's; None: all."""
    return mot.Cache(cache.k[:, :, :slots], cache.v[:, :, :slots], length, position)


SOON = 3.0  # seconds of a first call that nobody is told of beforehand
TOLD = 0.5  # seconds of a first call that nobody is told of afterwards
HOW_LONG = "seconds to a minute for a small model, minutes for a large one, once for these sizes"


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """A program that was made ready for a call: its name, the sizes it was compiled for, seconds
    until the call returned, and whether the folder of compiled programs had it."""

    what: str
    sizes: Mapping[str, Any]
    seconds: float
    cached: bool

    def said(self) -> str:
        """In words, for the log."""
        how = "found in the cache" if self.cached else "compiled"
        return f"{self.what} ({_in_words(self.sizes)}): {how}, {self.seconds:.1f} s"


class Programs:
    """The sizes that calls of compiled programs had, and which programs were made ready for them.

    A first call that takes longer than SOON is announced: it is compiled, where neither this
    process nor the compile cache has it. Afterwards the log says how long it took.

    Buckets bound their number: with a window of W tokens there are at most 2·log2(W/16) + 1 buckets
    (rounded up) of text tokens, as many of ViT tokens and of latent ones, or none of these, and
    log2(batch) + 1 numbers of rows (rounded up). Of an image's ViT and latent tokens that is read
    or drawn by the sampler there are up to 32 for every doubling above 256 (`fine_bucket`).
    """

    def __init__(self):
        self.seen: set[tuple] = set()
        self.compiled: list[CompiledProgram] = []

    @contextlib.contextmanager
    def first(self, what: str, sizes: Mapping[str, Any]) -> Iterator[None]:
        """Around a call of the program `what`, which returns once it is compiled.

        sizes: those that it is compiled for, by names for the log.
        """
        key = (what, *sorted(sizes.items()))
        if key in self.seen:
            yield
            return
        self.seen.add(key)
        told = threading.Timer(SOON, _announce, (what, sizes))
        told.daemon, began = True, time.monotonic()
        told.start()
        try:
            with compiling.recorded() as events:
                yield
        finally:
            told.cancel()
        if not events.programs:  # this process had it already
            return
        took, cached = time.monotonic() - began, events.cache_hits == events.programs
        self.compiled.append(CompiledProgram(what, dict(sizes), took, cached))
        if took > TOLD:
            logging.info(self.compiled[-1].said())


def _in_words(sizes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items() if size)


def _announce(what: str, sizes: Mapping[str, Any]) -> None:
    logging.info("compiling %s (%s): %s", what, _in_words(sizes), HOW_LONG)
