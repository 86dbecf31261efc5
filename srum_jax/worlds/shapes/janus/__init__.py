"""The shapes world for a model that draws token by token: a small Janus in its `base`.

World, words, questions and exam are those of `worlds/shapes`. Owns what makes this base: pictures
as codes (`autoencoder`), then reading and drawing in one run (`pretrain`), the rows of both
(`rows`), and the small files of its folder (`base_files`).
"""

from srum_jax.worlds.shapes import prompts, write_benchmark

__all__ = ["STAGES", "prompts", "write_benchmark"]

STAGES = {  # that make the base, in their order, and the module of each
    "autoencoder": "srum_jax.worlds.shapes.janus.autoencoder",
    "pretrain": "srum_jax.worlds.shapes.janus.pretrain",
}
