"""The judge that writes: reasons and scores in words about regions and the whole, read strictly.

Owns the wording of the questions, how a region is pointed out, and whom to ask again. It is the
read-out of the SRUM paper (arXiv 2510.12784, section 3 and its tables of prompts): one question
about the layout of the whole, one about the regions, scores in bands from -1 to 1, a reason before
every score. The words are ours; a change of them is a new `VERSION`.

Who answers is a `Write`: the model itself (`speaker`) or a service (`external.py`). An image's
score comes from its own question alone, whatever became of its regions. A failure is a status
beside a NaN, never a number.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from srum_jax.data.images import picture
from srum_jax.data.schema import Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context, text_generator
from srum_jax.generation.image_sampler import candidate_seed
from srum_jax.generation.system_prompts import THINK_UNDERSTANDING
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.rewards import parsing
from srum_jax.rewards.boxes import regions
from srum_jax.rewards.boxes.regions import Box, PromptedImage, Proposer
from srum_jax.rewards.judge import OK, UNKNOWN_WORDS, Judgement, RegionJudgement, View
from srum_jax.rewards.parsing import MISSING, WHOLE

TOO_LONG = "too long"  # the question does not fit the model's context window
STATUSES = (*parsing.STATUSES, UNKNOWN_WORDS, TOO_LONG)
AGAIN = tuple(status for status in parsing.STATUSES if status != OK)  # another answer may do

VERSION = "1"
# {prompt} is what the image was drawn for, on one line; {regions} one REGION line per region.
TEMPLATES = {
    "whole": """\
This picture was drawn for the following prompt.
Prompt: "{prompt}"
Judge only the composition: where things are, how they are placed with respect to each other, and \
how much of the picture they take, compared with what the prompt says about it. Leave aside how \
well anything is drawn, colors and style.
Scale, from -1.0 to 1.0:
1.0: every place and relation that the prompt asks for is there exactly
0.5 to 0.9: mostly as asked, with small deviations
-0.4 to 0.4: neither right nor wrong; use this band whenever the prompt says nothing about layout
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
SHOWN: dict[View, str] = {
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
AT_ONCE = 64  # questions a call of `write`, so that not all crops lie in memory together
LEAST_SIDE = 384  # pixels a side of an outlined picture, so that numbers can be read


def protocol_hash() -> str:
    """Twelve hex digits that change when any wording or a version does."""
    parts = [VERSION, parsing.VERSION, TEMPLATES, SHOWN, REGION, COLORS, LEAST_SIDE]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=6).hexdigest()


# --------------------------------------------------------------------------------------- who writes


@dataclasses.dataclass(frozen=True)
class Request:
    """A picture, uint8 [H,W,3], and what is asked about it."""

    image: np.ndarray
    text: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was written, whether it ended by itself; `failure`: the status of what gave no text."""

    text: str
    finished: bool = True
    failure: str = ""


# write(requests, temperature=, seeds=) -> [Answer]; 0 takes the likeliest words; seeds are uint32.
Write = Callable[..., list[Answer]]


def speaker(
    write: Callable[..., list[text_generator.GeneratedText]],
    cfg: BagelConfig,
    tokenizer: Tokenizer,
    *,
    window: int,
    max_tokens: int,
    think: bool = True,
) -> Write:
    """The model itself as a `Write`, by `TextGenerator.generate` and its window.

    think: the model is told to think first. A question with words that the tokenizer lacks fails
    as UNKNOWN_WORDS, one that leaves no room for max_tokens as TOO_LONG.
    """

    def encode(words: str) -> Text:
        return tokenizer.text(words)

    def read(request: Request) -> context.Context | str:
        """What the model reads, or the status of what it cannot."""
        try:
            before = (encode(THINK_UNDERSTANDING),) if think else ()
            words = encode(request.text)
        except ValueError:
            return UNKNOWN_WORDS
        items = (*before, picture(request.image, cfg.layout), words)
        try:
            context.check_window(items, max_tokens + 1, cfg, window)
        except ValueError:
            return TOO_LONG
        return items

    def answer(
        requests: Sequence[Request], *, temperature: float, seeds: Sequence[int]
    ) -> list[Answer]:
        items = [read(request) for request in requests]
        able = [place for place, one in enumerate(items) if not isinstance(one, str)]
        answers = [Answer("", failure=one if isinstance(one, str) else "") for one in items]
        if able:
            chosen = [seeds[place] for place in able]
            how = dict(max_tokens=max_tokens, temperature=temperature, seeds=chosen)
            for place, one in zip(able, write([items[i] for i in able], **how), strict=True):
                answers[place] = Answer(one.text, one.finished)
        return answers

    return answer


# ---------------------------------------------------------------------------------- what is asked


def outlined(image: np.ndarray, boxes: dict[int, Box]) -> np.ndarray:
    """The image with every box framed and its number in it.

    uint8 [H,W,3] -> uint8, enlarged by a whole factor to at least LEAST_SIDE pixels a side.
    """
    image = regions.check_image(image)
    factor = -(-LEAST_SIDE // min(image.shape[:2]))
    height, width = image.shape[0] * factor, image.shape[1] * factor
    latent_grid = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(latent_grid)
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
    return np.asarray(latent_grid)


def whole_request(image: np.ndarray, prompt: str) -> Request:
    """The question about the layout of an image."""
    return Request(image, TEMPLATES["whole"].format(prompt=_one_line(prompt)))


def regions_request(
    image: np.ndarray, prompt: str, boxes: dict[int, Box], view: View, margin: int = 1
) -> Request:
    """The question about the regions {number: box} of an image; for view "crop" there is one.

    margin: pixels around the box in a crop.
    """
    seen = image
    if view == "outline":
        seen = outlined(image, boxes)
    elif view == "crop":
        (box,) = boxes.values()
        seen = regions.crop(image, box, margin)
    listed = []
    for number, box in boxes.items():
        place = dict(zip(("x0", "y0", "x1", "y1"), (round(v) for v in box), strict=True))
        listed.append(REGION[view].format(id=number, **place))
    height, width = image.shape[:2]
    words = TEMPLATES["regions"].format(
        shown=SHOWN[view].format(width=width, height=height),
        prompt=_one_line(prompt),
        regions="\n".join(listed),
    )
    return Request(seen, words)


def _one_line(prompt: str) -> str:
    return " ".join(prompt.split())


# ------------------------------------------------------------------------------------ all at once


@dataclasses.dataclass(frozen=True)
class Readout:
    """How written scores are got.

    view: how regions are pointed out · margin: pixels around a crop · attempts: answers asked for
    at most, the first one greedily, the others drawn at `temperature` with seeds that are a
    function of `seed`, the image's id, what is asked and the number of the attempt.
    """

    view: View = "coordinates"
    margin: int = 1
    attempts: int = 3
    temperature: float = 0.7
    seed: int = 0

    def __post_init__(self):
        if self.view not in SHOWN:
            raise ValueError(f"view {self.view!r} is none of {', '.join(SHOWN)}")
        if self.attempts < 1 or not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"{self.attempts} attempts at temperature {self.temperature}: give at least 1 and "
                "a positive number; at 0 another attempt would repeat the first"
            )


def judge_images(
    write: Write,
    seen: Sequence[PromptedImage],
    proposer: Proposer,
    how: Readout,
    *,
    counts: collections.Counter | None = None,
) -> list[Judgement]:
    """Regions and image score of each image, by calls of `write` with up to AT_ONCE questions.

    seen: images uint8 [H,W,3] with prompts and ids. Only what has no score yet is asked again, and
    what was read once stays. Regions have no label and no probabilities, judgements no parts.
    `counts` gets "questions", "questions repeated" and "strangers" (regions named in answers that
    were not asked for) added. Raises ValueError for things that are no images and a `write` that
    does not answer each request.
    """
    return _judge(write, seen, proposer, how, counts, whole=True)


def judge_regions(
    write: Write,
    seen: Sequence[PromptedImage],
    proposer: Proposer,
    how: Readout,
    *,
    counts: collections.Counter | None = None,
) -> list[tuple[RegionJudgement, ...]]:
    """The regions of `judge_images` alone, without a question about the whole."""
    judged = _judge(write, seen, proposer, how, counts, whole=False)
    return [judgement.regions for judgement in judged]


def _judge(
    write: Write,
    seen: Sequence[PromptedImage],
    proposer: Proposer,
    how: Readout,
    counts: collections.Counter | None,
    *,
    whole: bool,
) -> list[Judgement]:
    proposed = [dict(enumerate(found, start=1)) for found in regions.propose(proposer, seen)]
    groups = [
        (n, group)
        for n, found in enumerate(proposed)
        for group in _groups(tuple(found), how.view, whole)
    ]

    def request(n: int, left: tuple[int, ...]) -> Request:
        if left == (WHOLE,):
            return whole_request(seen[n].image, seen[n].prompt)
        boxes = {i: proposed[n][i].box for i in left}
        return regions_request(seen[n].image, seen[n].prompt, boxes, how.view, how.margin)

    ids = [one.id for one in seen]
    counts = collections.Counter() if counts is None else counts
    said = _ask(write, ids, groups, request, how, counts)
    judged = []
    for n, found in enumerate(proposed):
        mine = tuple(
            RegionJudgement(region.box, *said[n, i], "", (), proposer.name, region.mask)
            for i, region in found.items()
        )
        judged.append(Judgement(mine, *said.get((n, WHOLE), (float("nan"), MISSING)), parts={}))
    return judged


def _groups(numbers: tuple[int, ...], view: str, whole: bool) -> list[tuple[int, ...]]:
    """What is asked together."""
    parts = [(i,) for i in numbers] if view == "crop" else [numbers] if numbers else []
    return [(WHOLE,), *parts] if whole else parts


def _ask(
    write: Write,
    ids: Sequence[str],
    groups: Sequence[tuple[int, tuple[int, ...]]],
    request: Callable[[int, tuple[int, ...]], Request],
    how: Readout,
    counts: collections.Counter,
) -> dict[tuple[int, int], tuple[float, str]]:
    """{(image, number): (score, status)} after at most `how.attempts` answers to each question."""
    found = {(n, i): (float("nan"), MISSING) for n, group in groups for i in group}
    for attempt in range(how.attempts):
        left = [(n, tuple(i for i in group if found[n, i][1] in AGAIN)) for n, group in groups]
        left = [(n, group) for n, group in left if group]
        for start in range(0, len(left), AT_ONCE):
            part = left[start : start + AT_ONCE]
            answers = write(
                [request(n, group) for n, group in part],
                temperature=how.temperature if attempt else 0.0,
                seeds=[candidate_seed(how.seed, f"{ids[n]}/{g}", attempt) for n, g in part],
            )
            if len(answers) != len(part):
                raise ValueError(f"{len(answers)} answers to {len(part)} questions")
            for (n, group), answer in zip(part, answers, strict=True):
                if answer.failure:
                    found |= {(n, i): (float("nan"), answer.failure) for i in group}
                    continue
                read = parsing.read(answer.text, group, finished=answer.finished)
                counts["strangers"] += read.strangers
                found |= {(n, i): result for i, result in read.found.items()}
        counts["questions"] += len(left)
        counts["questions repeated"] += len(left) if attempt else 0
    return found
