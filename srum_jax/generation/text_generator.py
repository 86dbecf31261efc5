"""Text out of the model: written token by token, or read off as soft answers.

`writer` continues contexts, many in one batch. `asker` needs no decoding: one row holds one image
and all its questions as branches, so the image is read once, no question sees another, and one
forward pass gives every answer's first token.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import fetch
from srum_jax.data import packing
from srum_jax.data.images import picture
from srum_jax.data.schema import CAUSAL, Branch, Example, Lanes, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context
from srum_jax.generation.context import Context, bucket
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import mot
from srum_jax.models.bagel.model_config import BagelConfig

Ask = Callable[..., list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class GeneratedText:
    """What the model wrote: text, its token ids without marks, whether it ended by itself."""

    text: str
    ids: tuple[int, ...]
    finished: bool


def step(
    params: Params, cache: mot.Cache, ids: jax.Array, *, cfg: BagelConfig, dtype
) -> tuple[mot.Cache, jax.Array]:
    """Reads one token a row, ids [B]; returns the longer cache and float32 logits [B,V]."""
    und = bagel.embed_text(params, ids[:, None], dtype)
    tokens = context.following(cache, 1, CAUSAL)
    none = jax.tree.map(lambda x: x[:, :0], tokens)
    und, _, (k, v) = mot.stack(
        params, cfg.llm, und, und[:, :0], tokens, none, cache=cache, keep="kv", remat="none"
    )
    first = jnp.zeros((len(ids), 1), jnp.int32)
    return context.append(cache, k, v), bagel.logits(params, und, first)[:, 0]


def decode(
    params: Params,
    cache: mot.Cache,
    seeds: jax.Array,
    temperature: jax.Array,
    limit: jax.Array,
    *,
    cfg: BagelConfig,
    max_tokens: int,
    stop: str = "each",
    dtype,
) -> tuple[jax.Array, jax.Array]:
    """Writes after each row's cache until its end mark: (ids [B,max_tokens], counts [B]) int32.

    seeds [B] uint32 and temperature [B]: 0 takes the likeliest token, otherwise one is drawn from
    softmax(logits / temperature), a function of seed and place alone. limit [B]: tokens a row may
    write. A row's ids end before its end mark; counts says where (its limit if there was none), and
    past that a mark stands only if the row wrote one. `stop`: "each" row by itself; "first": all
    when row 0 does, as the original. The cache must have max_tokens free slots. With "each" a
    row's text does not depend on its company.
    """
    if stop not in ("each", "first"):
        raise ValueError(f"stop must be each or first, not {stop!r}")
    rows = cache.length.shape[0]

    def choose(logits, place):
        def draw(seed, row, scale):
            key = jax.random.fold_in(jax.random.key(seed), place)
            return jax.random.categorical(key, row / jnp.maximum(scale, 1e-6))

        drawn = jax.lax.cond(
            jnp.any(temperature > 0),
            lambda: jax.vmap(draw)(seeds, logits, temperature),
            lambda: jnp.argmax(logits, axis=-1),
        )
        return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)

    def unfinished(carry):
        place, _, _, _, _, done = carry
        return (place < max_tokens) & ~jnp.all(done)

    def write(carry):
        place, cache, last, ids, counts, done = carry
        cache, logits = step(params, cache, last, cfg=cfg, dtype=dtype)
        token = choose(logits, place)
        done = done | (token == cfg.eos)
        ids = jax.lax.dynamic_update_index_in_dim(ids, token, place, axis=1)
        counts = counts + ~done
        done = done | (counts >= limit)
        if stop == "first":
            done = done | done[0]
        return place + 1, cache, token, ids, counts, done

    start = (
        0,
        cache,
        jnp.full(rows, cfg.bos, jnp.int32),
        jnp.full((rows, max_tokens), -1, jnp.int32),
        jnp.zeros(rows, jnp.int32),
        limit <= 0,
    )
    _, _, _, ids, counts, _ = jax.lax.while_loop(unfinished, write, start)
    return ids, counts


def writing(cfg: BagelConfig, dtype) -> Callable:
    """The compiled `run(params, packed, seeds, temperature, limit, max_tokens=, stop=)`: `decode`
    behind the contexts `packed`, which it reads first."""

    @functools.partial(jax.jit, static_argnames=("max_tokens", "stop"))
    def run(params, packed, seeds, temperature, limit, *, max_tokens, stop):
        slots = context.capacity(packed, max_tokens + 1)
        cache = context.prefill(params, packed, cfg=cfg, slots=slots, dtype=dtype)
        how = dict(cfg=cfg, max_tokens=max_tokens, stop=stop, dtype=dtype)
        return decode(params, cache, seeds, temperature, limit, **how)

    return run


Write = Callable[..., list[GeneratedText]]


def writer(
    params: Params,
    cfg: BagelConfig,
    tokenizer: Tokenizer,
    *,
    batch: int,
    window: int,
    least: int = 1,
    place: Callable = jnp.asarray,
    dtype=jnp.float32,
    programs: context.Programs | None = None,
) -> Write:
    """`write(contexts, max_tokens=, temperature=0.0, seeds=None, stop="each")` -> [Written].

    At most `batch` contexts go through one compiled call, those of like length together; rows are
    a multiple of `least`. Raises ValueError for a context that exceeds `window` tokens with what
    may be written.
    """
    programs = programs or context.Programs()
    params = mot.unstacked(params, cfg.llm)

    run = writing(cfg, dtype)

    def write(
        contexts: Sequence[Context],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        stop: str = "each",
    ) -> list[GeneratedText]:
        for one in contexts:
            context.check_window(one, max_tokens + 1, cfg, window)
        seeds = [0] * len(contexts) if seeds is None else seeds
        order = sorted(range(len(contexts)), key=lambda i: context.extent(contexts[i]))
        if stop == "first":
            order = list(range(len(contexts)))
        written: dict[int, GeneratedText] = {}
        for first in range(0, len(order), batch):
            part = order[first : first + batch]
            rows = context.rows_for(len(part), batch, least)
            packed = context.pack([contexts[i] for i in part], rows, cfg)
            steps = bucket(max_tokens)
            shape = dict(rows=rows, **context.lengths(packed), steps=steps, stop=stop)
            programs.note("the writer", **shape)
            seed, limit = np.zeros(rows, np.uint32), np.zeros(rows, np.int32)
            seed[: len(part)], limit[: len(part)] = [seeds[i] for i in part], max_tokens
            warmth = np.full(rows, temperature, np.float32)
            ids, counts = run(
                params,
                jax.tree.map(place, packed),
                *(place(x) for x in (seed, warmth, limit)),
                max_tokens=steps,
                stop=stop,
            )
            ids, counts = fetch(ids), fetch(counts)
            for row, i in enumerate(part):
                mine = tuple(ids[row, : counts[row]].tolist())
                finished = bool(counts[row] < max_tokens and ids[row, counts[row]] == cfg.eos)
                written[i] = GeneratedText(tokenizer.decode(mine), mine, finished)
        return [written[i] for i in range(len(contexts))]

    return write


def reading(cfg: BagelConfig, dtype) -> Callable:
    """The compiled `probabilities(params, batch)`: float32 [B,Y,V] at a packed batch's labels."""

    @jax.jit
    def probabilities(params, batch):
        x_t, t = batch.latents, jnp.zeros(batch.noisy.shape)
        und, _, _ = bagel.forward(params, cfg, batch, x_t, t, dtype=dtype, remat="none")
        return jax.nn.softmax(bagel.logits(params, und, batch.label_slots), axis=-1)

    return probabilities


def asker(
    params: Params | None,
    cfg: BagelConfig,
    tokenizer: Tokenizer,
    *,
    rows: int,
    place: Callable = jax.device_put,
    dtype=jnp.float32,
) -> Ask:
    """`ask(images, questions, params=None)`: probabilities of the first answer token.

    images: uint8 [H,W,3] each, or a tuple of several to be asked about together (frames in order);
    questions: a list of texts per image. Returns per image float32 [Q, V]. `rows` images go through
    one compiled call; shapes are padded to few sizes. `params` of a call stand in for the asker's,
    which may have none of its own. `place` puts a tree of host arrays on the devices. Raises
    ValueError naming an unknown word.
    """
    nothing, own_params = np.zeros(0, np.int32), params

    probabilities = reading(cfg, dtype)

    def example(image, texts):
        branches = [
            Branch((Text(np.array(tokenizer.encode(q), np.int32)), Text(nothing, loss=True)))
            for q in texts
        ]
        seen = image if isinstance(image, tuple) else (image,)
        return Example((*(picture(i, cfg) for i in seen), *branches))

    def ask(images, questions, params=None):
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} images, but questions for {len(questions)}")
        examples = [example(i, q) for i, q in zip(images, questions, strict=True)]
        answers = []
        for first in range(0, len(examples), rows):
            part = examples[first : first + rows]
            need = np.max([packing.size(e) for e in part], axis=0)
            lanes = Lanes(
                und=bucket(need[0], 32),
                gen=0,
                vit=bucket(need[2], 16),
                labels=bucket(need[3], 8),
                images=0,
                regions=0,
            )
            padded = [[e] for e in part] + [[]] * (rows - len(part))
            batch = place(packing.pack(padded, lanes, cfg))  # all at once: small arrays are many
            found = fetch(probabilities(own_params if params is None else params, batch))
            answers += [found[i, : len(questions[first + i])] for i in range(len(part))]
        return answers

    return ask
