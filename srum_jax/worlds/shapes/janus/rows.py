"""Rows of the small Janus's pretraining, as the model is used: by its template.

A picture is read once, and each question about it is a branch that sees none of the others, with
its answer behind it; a caption is drawn behind its prompt, or behind the prompt without its words.
Row i of a kind is a function of the seed and i.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from srum_jax.data.images import picture
from srum_jax.data.schema import BRANCH, CAUSAL, Tokens
from srum_jax.data.sources import dropped
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation.janus.template import Row, Template
from srum_jax.models.janus.model_config import JanusConfig
from srum_jax.objectives.autoregressive import DrawnRows, ReadRows
from srum_jax.worlds.shapes.questions import Mix, understanding_example

READ, LABELS = 96, 32  # tokens and targets of a row that is read; last questions make room
PROMPT = 20  # tokens of a prompt: the longest of the world's has 19
QUESTIONS = 6  # of a row at most


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes rows for a model of these sizes and words."""

    sizes: JanusConfig
    tokenizer: Tokenizer
    seed: int

    @property
    def template(self) -> Template:
        """How the model is spoken to."""
        return Template(self.tokenizer, self.sizes.vit.positions**2)

    def read(self, numbers: Sequence[int]) -> ReadRows:
        """Rows of these numbers: fresh pictures with questions."""
        count = len(numbers)
        ids = np.full((count, READ), self.sizes.pad, np.int32)
        lane = Tokens(*np.zeros((5, count, READ), np.int32))
        lane.index[:] = -1
        slots, labels = np.zeros((2, count, LABELS), np.int32)
        weights, patches = np.zeros((count, LABELS), np.float32), []
        for b, number in enumerate(numbers):
            image, asked = understanding_example(self.seed, number, Mix(questions=QUESTIONS))
            shown = self.template.shared([picture(image, self.sizes.layout)])
            patches += shown.patches
            pairs = [(q.text, q.answer) for q in asked]
            self._lay(b, shown, pairs, ids, lane, (slots, labels, weights))
        return ReadRows(ids, lane, np.stack(patches), slots, labels, weights)

    def _lay(self, b: int, shown: Row, pairs, ids, lane: Tokens, targets) -> None:
        """Writes row b: what is shown, then question and answer of each pair that has room."""
        slots, labels, weights = targets
        first = at = len(shown.ids)
        ids[b, :at] = shown.ids
        lane.mode[b, :at], lane.position[b, :at] = CAUSAL, np.arange(at)
        used = 0
        for number, (question, answer) in enumerate(pairs, start=1):
            said, replied = self.template.question(question, True), self.tokenizer.encode(answer)
            whole, wanted = [*said, *replied], [*replied, self.tokenizer.eos]
            if at + len(whole) > READ or used + len(wanted) > LABELS:
                break
            here, mine = slice(at, at + len(whole)), slice(used, used + len(wanted))
            ids[b, here], lane.split[b, here], lane.mode[b, here] = whole, number, BRANCH
            lane.position[b, here] = first + np.arange(len(whole))
            slots[b, mine] = at + len(said) - 1 + np.arange(len(wanted))
            labels[b, mine], weights[b, mine] = wanted, 1.0
            at, used = at + len(whole), used + len(wanted)
        lane.segment[b, :at], lane.index[b, :at] = 1, np.arange(at)

    def drawn(
        self, numbers: Sequence[int], captions: Sequence[str], codes: np.ndarray, dropout: float
    ) -> DrawnRows:
        """Rows of these numbers with their captions and codes int [B,n]; a share `dropout` of all
        numbers without the caption's words."""
        prompts = np.full((len(numbers), PROMPT), self.sizes.pad, np.int32)
        real = np.zeros((len(numbers), PROMPT), bool)
        for b, (number, caption) in enumerate(zip(numbers, captions, strict=True)):
            ids = self.template.drawing((self.tokenizer.text(caption),)).ids
            if dropped(self.seed, number, dropout):
                ids[1:-1] = self.sizes.pad
            prompts[b, PROMPT - len(ids) :], real[b, PROMPT - len(ids) :] = ids, True
        return DrawnRows(prompts, real, codes.astype(np.int32))
