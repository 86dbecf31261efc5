"""Text out of Janus, behind texts and pictures: many contexts in one batch."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from srum_jax.core.sharding import put
from srum_jax.generation.base import BaseTextGenerator
from srum_jax.generation.context import Context, bucket
from srum_jax.generation.janus import template, writing
from srum_jax.generation.janus.template import Row, Template
from srum_jax.models.janus.model_config import JanusConfig


@dataclasses.dataclass(frozen=True, eq=False)
class TextGenerator(BaseTextGenerator):
    """Janus answering behind contexts. A row always ends by itself, as the original answers one
    question a call."""

    model: JanusConfig

    @functools.cached_property
    def _template(self) -> Template:
        return Template(self.tokenizer, self.model.vit.positions**2)

    def extent(self, one: Context) -> tuple[int, int]:
        """(tokens that a context takes with the template around it, position that follows)."""
        tokens = self._template.asking(one).length
        return tokens, tokens

    def read(self, one: Context, max_tokens: int) -> Row:
        """The context in the template."""
        row = self._template.asking(one)
        how = dict(window=self.window, max_text=self.model.max_text)
        template.check_window(row, max_tokens, **how)
        return row

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without the blank that it begins with."""
        return self.tokenizer.decode(ids).lstrip()

    def _groups(self, read: Sequence[Row], stop: str) -> list[list[int]]:
        return template.by_length(read)

    def _call(self, read, per_row, max_tokens, stop, params) -> tuple[jax.Array, jax.Array]:
        rows = len(per_row[0])
        given = *template.padded(read, rows, self.model.pad), *per_row
        ids, real, *per_row = put(given, self.batch_sharding)
        patches = template.pictures(read, rows)
        steps, shown = bucket(max_tokens), 0 if patches is None else len(patches)
        sizes = {"texts": rows, "tokens read": ids.shape[1], "pictures": shown}
        with self.programs.first("the text generator", sizes | {"tokens written": steps}):
            return writing.write_texts(
                params,
                ids,
                real,
                patches,
                *per_row,
                cfg=self.model,
                words=len(self.tokenizer),
                max_tokens=steps,
                dtype=np.dtype(self.dtype),
            )
