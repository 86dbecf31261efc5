"""The judge that writes: reasons and scores in words about regions and the whole, read strictly.

Owns the wording of the questions, how a region is pointed out, and whom to ask again. It is the
read-out of the SRUM paper (arXiv 2510.12784, section 3 and its tables of prompts): one question
about the layout of the whole, one about the regions, scores in bands from -1 to 1, a reason before
every score; before them, as of every judge, one about all that the prompt asks for. The words are
ours; a change of them is a new `VERSION`.

Who answers is a `TextSource`: the model itself (`ModelText`) or a service (`external.py`). An
image's score comes from its own two questions, "global" and "layout", whatever became of its
regions; where one has no score the other one's counts (`judge.of_parts`). A failure is a status
beside a NaN, never a number.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from srum_jax.core.param_tree import Params
from srum_jax.data.images import picture
from srum_jax.data.schema import LayoutSizes
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context
from srum_jax.generation.image_sampler import candidate_seed
from srum_jax.generation.system_prompts import THINK_UNDERSTANDING
from srum_jax.generation.text_generator import TextGenerator
from srum_jax.rewards import parsing
from srum_jax.rewards.boxes import regions
from srum_jax.rewards.boxes.regions import Box, PromptedImage, Proposals, ProposedRegion
from srum_jax.rewards.judge import (
    NOT_ASKED,
    OK,
    UNKNOWN_WORDS,
    Judgement,
    JudgeSettings,
    Part,
    RegionJudgement,
    SoftAnswer,
    View,
    of_parts,
)
from srum_jax.rewards.parsing import MISSING, WHOLE

TOO_LONG = "too long"  # the question does not fit the model's context window
STATUSES = (*parsing.STATUSES, UNKNOWN_WORDS, TOO_LONG)
AGAIN = tuple(status for status in parsing.STATUSES if status != OK)  # another answer may do

VERSION = "2"
# {prompt} is what the image was drawn for, on one line; {regions} one REGION line per region.
TEMPLATES = {
    "whole": """\
This picture was drawn for the following prompt.
Prompt: "{prompt}"
Judge how completely the picture shows what the prompt asks for: every thing that it names, how \
many there are, their attributes, and how they stand to each other.
Scale, from -1.0 to 1.0:
1.0: everything that the prompt asks for is there, and nothing contradicts it
0.5 to 0.9: all of it is there, with small flaws
-0.4 to 0.4: a part is right and a part is missing or wrong
-0.9 to -0.5: most of it is missing or wrong
-1.0: the picture shows nothing that the prompt asks for
Answer in two lines and write nothing else:
Reason: <one sentence; required>
Score: <one decimal number from the scale, alone>""",
    "layout": """\
This picture was drawn for the following prompt.
Prompt: "{prompt}"
Judge only the composition: where things are, how they are placed with respect to each other, and \
how much of the picture they take, compared with what the prompt says about it. Leave aside how \
well anything is drawn, colors and style.
Scale, from -1.0 to 1.0:
1.0: every place and relation that the prompt asks for is there exactly; also if it asks for \
none, as long as all that it names can be seen well
0.5 to 0.9: mostly as asked, with small deviations
-0.4 to 0.4: neither right nor wrong
-0.9 to -0.5: places or relations are wrong
-1.0: the composition is the opposite of what the prompt asks for
Answer in two lines and write nothing else:
Reason: <one sentence; required>
Score: <one decimal number from the scale, alone>""",
    "regions": """\
{shown}
Prompt: "{prompt}"
{regions}
Judge each of these regions by itself: how well does what it shows serve the prompt? First find \
out what the region shows. It fits only if it is something that words of the prompt ask for, with \
the attributes that they give it.
Scale, from -1.0 to 1.0:
1.0: exactly what the prompt asks for, without any flaw
0.5 to 0.9: what the prompt asks for, well made, with small flaws
-0.4 to 0.4: neutral or mixed, such as plain background or a fitting thing with clear faults
-0.9 to -0.5: not asked for and distracting, or badly made; whatever is severely distorted belongs \
here, even if the prompt asks for it
-1.0: spoils what the prompt is about
Answer for every region with three lines of this form and write nothing else:
Region <number>
Reason: <one sentence that names what the region shows; required>
Score: <one decimal number from the scale, alone>""",
}
OPENINGS: dict[View, str] = {
    "coordinates": "This picture of {width} by {height} pixels was drawn for the following prompt.",
    "outline": "This picture was drawn for the following prompt; frames were added afterwards to "
    "mark its regions.",
    "crop": "This is an enlarged part, one region, of a picture that was drawn for the following "
    "prompt.",
}
REGION: dict[View, str] = {
    "coordinates": "Region {id}: x from {x0} to {x1} and y from {y0} to {y1}, in pixels from the "
    "top left corner",
    "outline": "Region {id}: inside the frame with the number {id}",
    "crop": "Region {id}: all that you see",
}
COLORS = ("#e6194b", "#1f78ff", "#f58231", "#17a673", "#911eb4", "#b8860b")  # of frames, in turn
LAYOUT = -3  # stands for the layout among the ids asked for, as WHOLE does for the whole
PARTS = {WHOLE: ("whole", "global"), LAYOUT: ("layout", "layout")}  # template, part of the score
REGION_KIND = "region"  # of answers, beside the names of templates
UNANSWERED = "questions without an answer"  # among the counts: the source gave nothing
MOST_UNANSWERED = 0.15  # questions an image of which that may become so
AT_ONCE = 64  # questions a call of the source, so that not all crops lie in memory together
MIN_SIDE = 384  # pixels a side of an outlined picture, so that numbers can be read


def protocol_hash() -> str:
    """Twelve hex digits that change when any wording or a version does."""
    parts = [VERSION, parsing.VERSION, TEMPLATES, OPENINGS, REGION, COLORS, MIN_SIDE]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=6).hexdigest()


# -------------------------------------------------------------------------------------- who answers


@dataclasses.dataclass(frozen=True)
class QuestionRequest:
    """What is asked about a picture, uint8 [H,W,3]; without one the text alone is continued.

    seed: uint32, of the words where they are sampled.
    """

    image: np.ndarray | None
    text: str
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class WrittenAnswer:
    """A text and whether it ended by itself; `failure`: the status of what gave no text.

    lost: the source gave nothing, and may when it is asked later.
    """

    text: str
    finished: bool = True
    failure: str = ""
    lost: bool = False


class TextSource(Protocol):
    """Whoever answers in words."""

    def answer(
        self, requests: Sequence[QuestionRequest], *, temperature: float, params: Params | None
    ) -> list[WrittenAnswer]:
        """One answer a request, in order. temperature: 0 takes the likeliest words · params: the
        model's, in place of those it was opened with, if it is one; None: those."""


@dataclasses.dataclass(frozen=True)
class ModelText:
    """The model itself as a `TextSource`.

    window: tokens that a context with its answer may take · max_text: RoPE positions of the model ·
    max_tokens: of an answer · think: the model is told to think first. A question with words that
    the tokenizer lacks fails as UNKNOWN_WORDS, one that leaves no room for max_tokens as TOO_LONG.
    """

    generator: TextGenerator
    layout: LayoutSizes
    tokenizer: Tokenizer
    window: int
    max_text: int
    max_tokens: int
    think: bool = True

    def answer(
        self, requests: Sequence[QuestionRequest], *, temperature: float, params: Params | None
    ) -> list[WrittenAnswer]:
        """See `TextSource`; one call of the generator."""
        read = [self._context(request) for request in requests]
        fitting = [place for place, one in enumerate(read) if not isinstance(one, str)]
        answers = [WrittenAnswer("", failure=one if isinstance(one, str) else "") for one in read]
        if fitting:
            generated = self.generator.generate(
                [read[i] for i in fitting],
                max_tokens=self.max_tokens,
                temperature=temperature,
                seeds=[requests[i].seed for i in fitting],
                params=params,
            )
            for place, one in zip(fitting, generated, strict=True):
                answers[place] = WrittenAnswer(one.text, one.finished)
        return answers

    def _context(self, request: QuestionRequest) -> context.Context | str:
        """What the model reads, or the status of what it cannot."""
        try:
            before = (self.tokenizer.text(THINK_UNDERSTANDING),) if self.think else ()
            words = self.tokenizer.text(request.text)
        except ValueError:
            return UNKNOWN_WORDS
        image = () if request.image is None else (picture(request.image, self.layout),)
        items = (*before, *image, words)
        how = dict(window=self.window, max_text=self.max_text)
        try:
            context.check_window(items, self.max_tokens + 1, **how)
        except ValueError:
            return TOO_LONG
        return items


# ---------------------------------------------------------------------------------- what is asked


def outlined(image: np.ndarray, boxes: dict[int, Box]) -> np.ndarray:
    """The image with every box framed and its number in it.

    uint8 [H,W,3] -> uint8, enlarged by a whole factor to at least MIN_SIDE pixels a side.
    """
    image = regions.check_image(image)
    factor = -(-MIN_SIDE // min(image.shape[:2]))
    height, width = image.shape[0] * factor, image.shape[1] * factor
    framed = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(framed)
    line = max(2, min(width, height) // 192)
    font = ImageFont.load_default(size=max(14, min(width, height) // 24))
    for number, box in boxes.items():
        color = COLORS[(number - 1) % len(COLORS)]
        x0, y0, x1, y1 = (round(v * factor) for v in box)
        x1, y1 = max(x1 - 1, x0), max(y1 - 1, y0)  # Pillow includes the ends
        draw.rectangle((x0, y0, x1, y1), outline=color, width=line)
        left, top, right, bottom = draw.textbbox((0, 0), str(number), font=font)
        wide, high = right - left + 2 * line, bottom - top + 2 * line
        x, y = min(max(x0, 0), width - wide), min(max(y0, 0), height - high)
        draw.rectangle((x, y, x + wide, y + high), fill=color)
        draw.text((x + line - left, y + line - top), str(number), fill="white", font=font)
    return np.asarray(framed)


def whole_request(image: np.ndarray, prompt: str, what: str = "whole") -> QuestionRequest:
    """The question about an image: its "whole", or its "layout"."""
    return QuestionRequest(image, TEMPLATES[what].format(prompt=_one_line(prompt)))


def regions_request(
    image: np.ndarray, prompt: str, boxes: dict[int, Box], view: View, margin: int = 1
) -> QuestionRequest:
    """The question about the regions {number: box} of an image; for view "crop" there is one.

    margin: pixels around the box in a crop.
    """
    pictured = image
    if view == "outline":
        pictured = outlined(image, boxes)
    elif view == "crop":
        (box,) = boxes.values()
        pictured = regions.crop(image, box, margin)
    listed = []
    for number, box in boxes.items():
        place = dict(zip(("x0", "y0", "x1", "y1"), (round(v) for v in box), strict=True))
        listed.append(REGION[view].format(id=number, **place))
    height, width = image.shape[:2]
    words = TEMPLATES["regions"].format(
        shown=OPENINGS[view].format(width=width, height=height),
        prompt=_one_line(prompt),
        regions="\n".join(listed),
    )
    return QuestionRequest(pictured, words)


def _one_line(prompt: str) -> str:
    return " ".join(prompt.split())


# ------------------------------------------------------------------------------------ all at once


@dataclasses.dataclass(frozen=True)
class WrittenJudge:
    """Scores in words, by `source`.

    Only what has no score yet is asked again, and what was read once stays. A question whose answer
    was lost is asked once more when all others were, if they are few. Regions have no label and no
    probabilities. `counts` gets "questions", "questions repeated", UNANSWERED
    and "strangers" (regions named in answers that were not asked for) added.
    """

    source: TextSource
    settings: JudgeSettings = JudgeSettings()
    counts: collections.Counter = dataclasses.field(
        default_factory=collections.Counter, compare=False
    )

    def judge(
        self, proposed: Proposals, *, whole: bool = True, params: Params | None = None
    ) -> list[Judgement]:
        """See `Judge`; calls of the source with up to AT_ONCE questions each."""
        numbered = [dict(enumerate(found, start=1)) for found in proposed.regions]
        view = self.settings.view
        groups = [
            (n, group)
            for n, found in enumerate(numbered)
            for group in _groups(tuple(found), view, whole)
        ]
        asked = _Asked(proposed.images, numbered, self.settings)
        scores = self._scores(asked, groups, params)
        judged = []
        for n, found in enumerate(numbered):
            mine = tuple(
                RegionJudgement(
                    *(region.box, *scores[n, i], "", (), proposed.proposer, region.mask),
                    answers=(_said(REGION_KIND, scores[n, i]),),
                )
                for i, region in found.items()
            )
            image = Judgement(mine, float("nan"), NOT_ASKED, {})
            if whole:
                of_image = {i: scores[n, i] for i in PARTS}
                image = dataclasses.replace(self._whole(of_image), regions=mine)
            judged.append(image)
        return judged

    def _whole(self, scores: Mapping[int, tuple[float, str]]) -> Judgement:
        """An image's own part of its judgement, of the (score, status) of each of PARTS."""
        answers = {i: _said(template, scores[i]) for i, (template, _) in PARTS.items()}
        parts = {
            name: Part(answers[i].p, float(answers[i].status == OK))
            for i, (_, name) in PARTS.items()
        }
        return of_parts(parts, answers.values(), self.settings.min_coverage)

    def _scores(
        self,
        asked: "_Asked",
        groups: Sequence[tuple[int, tuple[int, ...]]],
        params: Params | None,
    ) -> dict[tuple[int, int], tuple[float, str]]:
        """{(image, number): (score, status)} after at most `settings.attempts` answers each."""
        found = {(n, i): (float("nan"), MISSING) for n, group in groups for i in group}
        lost: list[tuple[int, tuple[int, ...]]] = []
        for attempt in range(self.settings.attempts):
            left = [(n, tuple(i for i in group if found[n, i][1] in AGAIN)) for n, group in groups]
            left = [(n, group) for n, group in left if group]
            lost += self._ask(asked, left, attempt, found, params)
            self.counts["questions repeated"] += len(left) if attempt else 0
        if 0 < len(lost) <= MOST_UNANSWERED * len(asked.images):  # more: the source is down
            self.counts["questions repeated"] += len(lost)
            lost = self._ask(asked, lost, 0, found, params)
        if lost:
            self.counts[UNANSWERED] += len(lost)
        return found

    def _ask(
        self,
        asked: "_Asked",
        left: Sequence[tuple[int, tuple[int, ...]]],
        attempt: int,
        found: dict[tuple[int, int], tuple[float, str]],
        params: Params | None,
    ) -> list[tuple[int, tuple[int, ...]]]:
        """Asks the questions `left`, notes in `found` what came of them, and returns those whose
        answer was lost."""
        lost = []
        for start in range(0, len(left), AT_ONCE):
            part = left[start : start + AT_ONCE]
            answers = self.source.answer(
                [asked.request(n, group, attempt) for n, group in part],
                temperature=self.settings.temperature if attempt else 0.0,
                params=params,
            )
            if len(answers) != len(part):
                raise ValueError(f"{len(answers)} answers to {len(part)} questions")
            for (n, group), answer in zip(part, answers, strict=True):
                if answer.lost:
                    lost.append((n, group))
                if answer.failure:
                    found |= {(n, i): (float("nan"), answer.failure) for i in group}
                    continue
                ids = (WHOLE,) if group == (LAYOUT,) else group
                parsed = parsing.parse(answer.text, ids, finished=answer.finished)
                self.counts["strangers"] += parsed.strangers
                pairs = zip(group, ids, strict=True)
                found |= {(n, mine): parsed.scores[i] for mine, i in pairs}
        self.counts["questions"] += len(left)
        return lost


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Images with their numbered regions, and the questions about them."""

    images: Sequence[PromptedImage]
    proposed: Sequence[dict[int, ProposedRegion]]
    settings: JudgeSettings

    def request(self, n: int, numbers: tuple[int, ...], attempt: int) -> QuestionRequest:
        """The question about these regions of image n, or about one of PARTS."""
        one, how = self.images[n], self.settings
        if numbers[0] in PARTS:
            asked = whole_request(one.image, one.prompt, PARTS[numbers[0]][0])
        else:
            boxes = {i: self.proposed[n][i].box for i in numbers}
            asked = regions_request(one.image, one.prompt, boxes, how.view, how.margin)
        seed = candidate_seed(how.seed, f"{one.id}/{numbers}", attempt)
        return dataclasses.replace(asked, seed=seed)


def _groups(numbers: tuple[int, ...], view: View, whole: bool) -> list[tuple[int, ...]]:
    """What is asked together."""
    parts = [(i,) for i in numbers] if view == "crop" else [numbers] if numbers else []
    return [*((i,) for i in PARTS), *parts] if whole else parts


def _said(kind: str, scored: tuple[float, str]) -> SoftAnswer:
    """A written score in [-1, 1] as the answer that is kept of it."""
    score, status = scored
    return SoftAnswer(kind, -1, (score + 1) / 2, status)
