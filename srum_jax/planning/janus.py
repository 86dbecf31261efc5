"""Janus-Pro's programs from shapes alone, and what their calls compute: as `lowering.py` and
`workload.py` do for BAGEL. The training step is made there for both."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srum_jax import programs
from srum_jax.config import Config, SampleConfig
from srum_jax.core import param_tree, sharding
from srum_jax.data.schema import Tokens
from srum_jax.generation import context
from srum_jax.generation.base import FEWEST
from srum_jax.generation.context import bucket
from srum_jax.generation.janus import answer_scorer, writing
from srum_jax.generation.janus import drawing as drawn
from srum_jax.models.bagel.cost import RowTokens
from srum_jax.models.janus import cost, vq
from srum_jax.models.janus.model_config import JanusConfig
from srum_jax.planning.lowering import Program, model
from srum_jax.planning.workload import PROMPT, QUESTION, QUESTIONS, Work

SYSTEM = 64  # tokens of the text before a question, with the marks around it
MARKED = 16  # tokens around a prompt


def _seen(sizes: JanusConfig) -> int:
    """Tokens of a picture that is asked about, with what stands before it."""
    return SYSTEM + sizes.vit.positions**2 + 2


# --------------------------------------------------------------------------------- the programs


def sample(cfg: Config, sizes: JanusConfig, mesh: jax.sharding.Mesh, kept: str = "") -> Program:
    """The sampler of the stage `generate`: one call of sample.batch images."""
    c, rows, dtype = cfg.sample, cfg.sample.batch, jnp.dtype(cfg.compute.dtype)
    params, autoencoder = model(cfg, sizes, mesh, kept)
    slots = bucket(PROMPT + MARKED)
    sizes = programs.attending(cfg, sizes, mesh, tokens=slots)
    given = np.zeros((rows, slots), np.int32), np.ones((rows, slots), bool)
    given = sharding.placed((*given, np.zeros(rows, np.uint32)), sharding.batch_sharding(mesh))
    how = dict(cfg=sizes, guided=c.guidance != 1, top_k=c.top_k, dtype=dtype)
    return Program(
        function=drawn.draw_codes,
        arguments=(params, *given, np.float32(c.temperature), np.float32(c.guidance)),
        static=how,
        parts={"params": params},
        resident={"autoencoder": autoencoder},
        flops=drawing(sizes, c).flops,
        more={"images": rows, "steps": sizes.image_tokens, "attention": sizes.attention},
    )


def decode(cfg: Config, sizes: JanusConfig, mesh: jax.sharding.Mesh, kept: str = "") -> Program:
    """The autoencoder's decoder on the images of a call of the sampler."""
    params, autoencoder = model(cfg, sizes, mesh, kept)
    rows = cfg.sample.batch
    codes = jax.ShapeDtypeStruct(
        (rows, sizes.grid, sizes.grid), jnp.int32, sharding=sharding.batch_sharding(mesh)
    )
    return Program(
        function=drawn.decode_codes,
        arguments=(autoencoder, codes),
        static={"cfg": sizes},
        parts={"autoencoder": autoencoder},
        resident={"params": params},
        flops=rows * decoding(sizes, cfg.sample.size).flops,
        more={"images": rows},
    )


def read(cfg: Config, sizes: JanusConfig, mesh: jax.sharding.Mesh, kept: str = "") -> Program:
    """The reader of soft answers about score.batch whole images."""
    rows, dtype = cfg.score.batch, jnp.dtype(cfg.compute.dtype)
    params, _ = model(cfg, sizes, mesh, kept)
    slots = bucket(_seen(sizes) + QUESTIONS * QUESTION)
    sizes = programs.attending(
        cfg, sizes, mesh, tokens=slots, gap="Questions about a picture are branches."
    )
    ids, ends = np.zeros((rows, slots), np.int32), np.zeros((rows, QUESTIONS), np.int32)
    lane = Tokens(*np.zeros((5, rows, slots), np.int32))
    wanted = np.zeros((rows, QUESTIONS, FEWEST), np.int32)
    given = (ids, lane, _patches(sizes, rows), ends, wanted)
    return Program(
        function=answer_scorer.first_tokens,
        arguments=(params, *sharding.placed(given, sharding.batch_sharding(mesh))),
        static={"cfg": sizes, "dtype": dtype},
        parts={"params": params},
        flops=asking(sizes, cfg.sample.size, rows).flops,
        more={"images": rows, "questions": QUESTIONS},
    )


def write(cfg: Config, sizes: JanusConfig, mesh: jax.sharding.Mesh, kept: str = "") -> Program:
    """The writer of score.written.batch answers about whole images."""
    c, dtype = cfg.score.written, jnp.dtype(cfg.compute.dtype)
    params, _ = model(cfg, sizes, mesh, kept)
    limit, slots = bucket(c.max_tokens), bucket(_seen(sizes) + QUESTION)
    rows = context.rows_for(c.batch, c.batch, sharding.row_ways(mesh))
    ids, real = np.zeros((rows, slots), np.int32), np.ones((rows, slots), bool)
    per_row = (np.zeros(rows, kind) for kind in (np.uint32, np.float32, np.int32))
    given = (ids, real, _patches(sizes, rows), *per_row)
    how = dict(cfg=sizes, words=sizes.llm.vocab, max_tokens=limit, dtype=dtype)
    return Program(
        function=writing.write_texts,
        arguments=(params, *sharding.placed(given, sharding.batch_sharding(mesh))),
        static=how,
        parts={"params": params},
        flops=answering(sizes, cfg.sample.size, rows, limit).flops,
        more={"answers": rows, "tokens": limit},
    )


def _patches(sizes: JanusConfig, rows: int) -> np.ndarray:
    return np.zeros((rows, sizes.vit.positions**2, sizes.vit.patch**2 * 3), np.float32)


# ------------------------------------------------------------------------------------ their work


def drawing(
    sizes: JanusConfig, settings: SampleConfig, *, itemsize: int = 2, chips: int = 1
) -> Work:
    """A call that draws `settings.batch` images: reads the prompts, then a token a step, each in as
    many rows as guidance has branches; what steps read is the weights, and keys and values."""
    rows = settings.batch * (1 + (settings.guidance != 1))
    slots = bucket(PROMPT + MARKED)
    one = RowTokens(und=0, gen=1, keys=slots + sizes.image_tokens)
    first = cost.forward(sizes, RowTokens(slots, 0))
    flops = rows * (first + sizes.image_tokens * cost.forward(sizes, one))
    a_step = cost.matrices(sizes, one) + rows * one.keys * cost.cached(sizes)
    return Work(flops, chips * itemsize * sizes.image_tokens * a_step)


def decoding(sizes: JanusConfig, size: tuple[int, int]) -> Work:
    """The autoencoder's decoder on one image, in float32."""
    weights: Any = param_tree.count(vq.specs(sizes.vq)["decoder"])
    return Work(cost.decode(sizes), 4 * weights)


def asking(
    sizes: JanusConfig, size: tuple[int, int], rows: int, *, itemsize: int = 2, chips: int = 1
) -> Work:
    """A call that reads `rows` pictures with QUESTIONS about each."""
    seen = bucket(_seen(sizes) + QUESTIONS * QUESTION)
    row = RowTokens(seen, 0, vit=sizes.vit.positions**2, labels=QUESTIONS)
    return Work(rows * cost.forward(sizes, row), chips * itemsize * cost.matrices(sizes, row))


def answering(
    sizes: JanusConfig, size: tuple[int, int], rows: int, limit: int, *, itemsize: int = 2
) -> Work:
    """A call that writes `limit` tokens about each of `rows` pictures."""
    seen = bucket(_seen(sizes) + QUESTION)
    first = RowTokens(seen, 0, vit=sizes.vit.positions**2)
    one = RowTokens(1, 0, keys=seen + limit, labels=1)
    flops = cost.forward(sizes, first) + limit * cost.forward(sizes, one)
    read = cost.matrices(sizes, one) + rows * one.keys * cost.cached(sizes)
    return Work(rows * flops, itemsize * (cost.matrices(sizes, first) + limit * read))
