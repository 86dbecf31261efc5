"""What a scored image costs by soft answers (`logits`) and in words (`written`): Markdown tables.

An image of five regions, drawn for a prompt of two objects and a relation, is scored by the judge
itself, proposing of regions and cutting of crops included, in both ways:
 · `logits`: soft answers to the questions that `rewards/question_templates.py` makes of the
   prompt, to each crop and to the whole; one forward pass a picture, all its questions as branches.
   `batch` pictures go through a call, so no row of it is empty.
 · `written`: the paper's question about the whole and its question about all regions (coordinates
   in words), written token by token; both are rows of one batch, which writes until the longer
   answer ends. One attempt. (The original writes them one after the other.)

How long the answers are is an assumption: the form that the questions ask for, filled in with a
reason of 20 tokens (REASON) a score, without thinking and with `--think` tokens of it first
(default 250; the release allows 1024 and 4096 tokens, LIMITS). Tokens of prose are pieces of
Qwen2's rule for cutting text, one each, as its vocabulary has them for common words. The small
models lack most of these words: they read and write as many tokens of any kind, and no token ends
an answer, so that exactly so many are written. `logits` asks in the models' own words. After each
of its passes all answers are called possible, whatever a model said: after an improbable one (all
those of random weights) the judge would leave the image's own questions out.

Counted: products of matrices, at two FLOPs each, with the sizes that a model's own specs and
resizing rule give; attention with every token of its row, as computed here; padding is not counted.
Weights count once a pass (embedding tables apart, of which a pass reads few rows), keys and values
once a step for each token behind which it writes.

    python benchmarks/scoring.py [--batches 1,32] [--think 250] [--json FILE] [--quick]
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import pathlib
import platform
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import inference
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

from srum_jax.core import param_tree
from srum_jax.data import packing
from srum_jax.data import prompts as prompt_lists
from srum_jax.data.images import picture
from srum_jax.data.schema import Example, Text
from srum_jax.data.tokenizer import SPLIT, Tokenizer
from srum_jax.generation import (
    context,
    generation_config,
    image_sampler,
    shared_context,
    text_generator,
)
from srum_jax.generation.answer_scorer import AnswerScorer
from srum_jax.models.bagel import hf, model_config
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.rewards import judge, written
from srum_jax.rewards.boxes import regions
from srum_jax.rewards.boxes.regions import PromptedImage, Proposals
from srum_jax.rewards.logits import LogitJudge, Vocabulary

PROMPT = "a red circle above a blue square"
REGIONS = 5
REASON = "It shows a red circle with clean edges and an even color, just as the prompt asks for."
LIMITS = {"whole": 1024, "regions": 4096}  # new tokens (the release's srum_data_infer/vlm.py)
PROPOSER = regions.ComponentsProposer()
SETTINGS = judge.JudgeSettings(view="coordinates", attempts=1)  # of the written read-out
WINDOW = 32768  # more than anything here takes
ASKED = 32  # pictures a call where throughput is measured: the config's default
TARGET = 10  # times less wall time at batch 1


def scene(side: int) -> np.ndarray:
    """uint8 [side,side,3] with REGIONS squares, in the corners and the middle of a dark ground."""
    made = np.zeros((side, side, 3), np.uint8)
    cell = side // 3
    for row, col in itertools.product(range(3), repeat=2):
        if (row + col) % 2 == 0:
            top, left = row * cell + cell // 5, col * cell + cell // 5
            made[top : top + 3 * cell // 5, left : left + 3 * cell // 5] = (230, 60 * row, 60 * col)
    return made


def prompted(side: int, batch: int) -> list[PromptedImage]:
    return [PromptedImage(scene(side), PROMPT, str(i)) for i in range(batch)]


# -------------------------------------------------------------------------------- lengths of texts

_pieces = pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated")


class Lengths:
    """In place of a tokenizer: as many ids as Qwen2's rule cuts pieces, all the same."""

    word_level = False

    def __init__(self, vocab: int):
        self.vocab = vocab

    def encode(self, text: str) -> list[int]:
        return [self.vocab - 1] * len(_pieces.pre_tokenize_str(text))

    def answers(self, word: str) -> tuple[int, ...]:
        return (self.vocab - 1,)

    def text(self, words: str) -> Text:
        return Text(np.array(self.encode(words), np.int32))

    def decode(self, ids: Sequence[int]) -> str:
        return ""


def answer(kind: str, count: int = 1) -> str:
    """An answer in the form that a question of `written.TEMPLATES` asks for, about count things."""
    _, form = written.TEMPLATES[kind].rsplit("write nothing else:\n", 1)
    form = re.sub("<one sentence[^>]*>", REASON, re.sub("<one decimal[^>]*>", "0.5", form))
    return "\n".join(form.replace("<number>", str(i + 1)) for i in range(count))


def answer_tokens() -> dict[str, int]:
    """Tokens of an answer about the whole and of one about its regions, without thinking."""
    words = Lengths(1)
    texts = {"whole": answer("whole"), "regions": answer("regions", REGIONS)}
    return {kind: len(words.encode(said)) for kind, said in texts.items()}


# ----------------------------------------------------------------------------- what goes through it


@dataclasses.dataclass(frozen=True)
class Writing:
    """A way to write: its name, decoding steps, whether the model is told to think first."""

    name: str
    steps: int
    think: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """What goes through a forward pass together: patches of the understanding tower, tokens of the
    language model (those patches among them), tokens whose logits are read."""

    patches: int
    tokens: int
    labels: int = 0


def logits_rows(cfg: BagelConfig, words: Vocabulary, side: int) -> list[Row]:
    """The pictures that the judge asks about for one image, each with its questions."""
    rows = []

    def probabilities(images, questions, tokens, params=None):
        for image_, texts in zip(images, questions, strict=True):
            patches = len(picture(image_, cfg.layout).positions)
            # A question and its empty answer, both in their marks; a picture in its own.
            length = patches + 2 + sum(len(words.encode(q)) + 4 for q in texts)
            rows.append(Row(patches, length, len(texts)))
        return [[np.ones(len(ids), np.float32) for ids in wanted] for wanted in tokens]

    scorer = types.SimpleNamespace(probabilities=probabilities)
    LogitJudge(scorer, words).judge(Proposals.of(PROPOSER, prompted(side, 1)))
    return rows


def written_rows(cfg: BagelConfig, side: int, think: bool) -> tuple[list[Row], list[int]]:
    """(what is read for one image before writing, tokens behind which each of its three answers is
    written). What all questions begin with, the picture, is read once."""
    rows, behind = [], []

    def generate(contexts, **_):
        begins = [shared_context.Beginning.of(one) for one in contexts]
        for row in shared_context.rows(contexts, begins, len(contexts), slots=0)[0]:
            tokens, _, patches, *_ = packing.size(Example(row))
            rows.append(Row(int(patches), int(tokens)))
        behind.extend(context.extent(one)[0] for one in contexts)
        return [text_generator.GeneratedText("", (), False) for _ in contexts]

    generator = types.SimpleNamespace(generate=generate)
    how = dict(window=WINDOW, max_text=WINDOW, max_tokens=1, think=think)
    source = written.ModelText(generator, cfg.layout, Lengths(cfg.llm.vocab), **how)
    written.WrittenJudge(source, SETTINGS).judge(Proposals.of(PROPOSER, prompted(side, 1)))
    return rows, behind


# ------------------------------------------------------------------------------------------ counted


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one scored image: FLOPs, decoding steps one after another, forward passes (decoding steps
    among them; a whole batch shares them), bytes of weights these read, bytes of keys and values
    that are read from caches."""

    flops: float
    steps: int
    passes: int
    weights: float
    cache: float


class Counter:
    """Counts a model's work; item: bytes of a stored number."""

    def __init__(self, cfg: BagelConfig, item: int):
        self.cfg, self.item, specs = cfg, item, bagel.specs(cfg)
        self.tower = {name: specs[name] for name in ("vit", "connector")}
        self.expert = [specs["blocks"]["und"], specs["norm"]["und"]]
        self.head = specs["lm_head"]

    def _attention(self, queries: int, keys: float) -> float:
        llm = self.cfg.llm
        return 4 * queries * keys * llm.heads * llm.head_dim * llm.layers

    def read(self, row: Row) -> float:
        """FLOPs of one forward pass."""
        vit = self.cfg.vit
        tower = 2 * row.patches * weights(self.tower) + 4 * row.patches**2 * vit.hidden * vit.layers
        expert = 2 * row.tokens * weights(self.expert) + self._attention(row.tokens, row.tokens)
        return tower + expert + 2 * row.labels * weights(self.head)

    def logits(self, rows: Sequence[Row]) -> Cost:
        every = param_tree.count([self.tower, self.expert, self.head])
        flops = sum(map(self.read, rows))
        return Cost(flops, 0, len(rows), len(rows) * every * self.item, 0.0)

    def written(self, rows: Sequence[Row], behind: Sequence[int], steps: int) -> Cost:
        """Of `rows` that are read, and of so many steps behind each of `behind` tokens."""
        llm = self.cfg.llm
        keys = sum(steps * tokens + steps * (steps - 1) / 2 for tokens in behind)
        token = 2 * (weights(self.expert) + weights(self.head))
        flops = sum(map(self.read, rows)) + len(behind) * steps * token
        flops += self._attention(1, keys + len(behind) * steps)
        passes = param_tree.count([self.tower, self.expert])
        passes += steps * param_tree.count([self.expert, self.head])
        kept = 2 * llm.layers * llm.kv_heads * llm.head_dim * self.item
        return Cost(flops, steps, 1 + steps, passes * self.item, keys * kept)


def weights(specs: Any) -> int:
    """How many numbers the matrices of a tree of specs have: multiplications for each token."""
    leaves = jax.tree_util.tree_leaves_with_path(specs, is_leaf=param_tree.is_spec)
    return sum(math.prod(s.shape) for path, s in leaves if path[-1].key == "w")


def counted(
    cfg: BagelConfig, words: Vocabulary, side: int, item: int, ways: Sequence[Writing]
) -> dict[str, Cost]:
    """{"logits" or the name of a way to write: its cost} for pictures of `side` pixels."""
    counter = Counter(cfg, item)
    costs = {"logits": counter.logits(logits_rows(cfg, words, side))}
    for way in ways:
        costs[way.name] = counter.written(*written_rows(cfg, side, way.think), way.steps)
    return costs


def amount(value: float, unit: str) -> str:
    power = min(max(int(math.log10(value)) // 3, 0), 5) if value else 0
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P')[power]}{unit}"


def counted_table(models: dict[str, dict[str, Cost]], batches: Sequence[int]) -> str:
    head = ["model", "read-out", "FLOPs an image", "decoding steps", "passes a batch"]
    head += [f"weights read an image, batch {batch}" for batch in batches]
    lines = []
    for model, costs in models.items():
        for name, cost in costs.items():
            cells = [model, name, amount(cost.flops, ""), f"{cost.steps}", f"{cost.passes}"]
            cells += [amount(cost.weights / batch, "B") for batch in batches]
            lines.append([*cells, amount(cost.cache, "B")])
    return table([*head, "cache read an image"], lines, 2)


# ----------------------------------------------------------------------------------------- measured


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that runs here; side: of its pictures, in pixels."""

    name: str
    cfg: BagelConfig
    params: Any
    words: Tokenizer
    side: int


def shapes_base() -> tuple[Model, Any]:
    """Our base, and the parameters of its autoencoder."""
    folder = inference.base()
    cfg = model_config.from_folder(folder)
    loaded, vae_params = (jax.tree.map(jnp.asarray, x) for x in hf.load(folder, cfg))
    side = cfg.vit.patch * cfg.vit.positions
    return Model("shapes base", cfg, loaded, Tokenizer.from_folder(folder), side), vae_params


def random_model() -> Model:
    """Random weights: 8 layers of width 256, pictures of 256 tokens."""
    folder = inference.base()
    cfg = dataclasses.replace(
        model_config.from_folder(folder),
        llm=model_config.LLMConfig(256, 8, heads=4, kv_heads=2, ffn=704, vocab=8192),
        vit=model_config.ViTConfig(256, 4, heads=4, ffn=1024, patch=16, positions=16),
        max_vit=16,
    )
    drawn = param_tree.init(bagel.specs(cfg), jax.random.key(0))
    side = cfg.vit.patch * cfg.vit.positions
    return Model("random, 8 × 256", cfg, drawn, Tokenizer.from_folder(folder), side)


def logits_call(model: Model, batch: int) -> Callable[[], list[judge.Judgement]]:
    """One batch of images scored by soft answers. Raises RuntimeError if something went unasked."""
    ask = AnswerScorer(model.params, model.cfg, model.words, batch).probabilities

    def possible(images, questions, tokens, params=None):
        return [[np.ones_like(p) for p in row] for row in ask(images, questions, tokens)]

    judging = LogitJudge(types.SimpleNamespace(probabilities=possible), model.words)

    def call():
        judged = judging.judge(Proposals.of(PROPOSER, prompted(model.side, batch)))
        if any(one.image_status != judge.OK or len(one.regions) != REGIONS for one in judged):
            raise RuntimeError(f"not all was asked: {judged[0]}")
        return judged

    return call


def written_call(model: Model, batch: int, way: Writing) -> Callable[[], list[judge.Judgement]]:
    """One batch of images scored in words. Raises RuntimeError for another number of steps."""
    # No token is the end mark; small models know few positions, which costs no time.
    cfg = dataclasses.replace(model.cfg, eos=-1, max_text=WINDOW)
    words = Lengths(cfg.llm.vocab)
    write = text_generator.TextGenerator(model.params, cfg, words, 3 * batch, WINDOW).generate

    def exactly(contexts, params=None, **how):
        found = write(contexts, **how)
        if {len(one.ids) for one in found} != {way.steps}:
            raise RuntimeError(f"an answer has not {way.steps} tokens")
        return found

    generator = types.SimpleNamespace(generate=exactly)
    how = dict(window=WINDOW, max_text=WINDOW, max_tokens=way.steps, think=way.think)
    source = written.ModelText(generator, cfg.layout, words, **how)
    judging = written.WrittenJudge(source, SETTINGS)
    return lambda: judging.judge(Proposals.of(PROPOSER, prompted(model.side, batch)))


def measured(
    cases: Sequence[tuple[Model, int]], ways: Sequence[Writing], repeats: int
) -> list[dict]:
    """A record a model and batch: {"model", "batch", "seconds": {read-out: of a scored image}}."""
    records = []
    for model, batch in cases:
        calls = {"logits": logits_call(model, batch)}
        calls |= {way.name: written_call(model, batch, way) for way in ways}
        found = inference.in_turn(calls, repeats)
        seconds = {name: took / batch for name, took in found.items()}
        records.append(dict(model=model.name, batch=batch, seconds=seconds))
        print(records[-1], file=sys.stderr, flush=True)
    return records


def measured_table(records: Sequence[dict]) -> str:
    names = list(records[0]["seconds"])
    head = ["model", "batch", *names, *(f"{name} / logits" for name in names[1:])]
    lines = []
    for record in records:
        seconds = record["seconds"]
        cells = [record["model"], f"{record['batch']}", *(f"{s:.3g} s" for s in seconds.values())]
        lines.append([*cells, *(f"{seconds[n] / seconds['logits']:.1f}×" for n in names[1:])])
    return table(head, lines, 2)


def rates(model: Model, vae_params: Any, count: int, repeats: int) -> dict[str, float]:
    """Images a second that the shapes base draws, and scores by soft answers: `count` of them."""
    settings = generation_config.from_folder(inference.base()).generate
    settings = dataclasses.replace(settings, batch=min(count, settings.batch))
    sampler = image_sampler.ImageSampler(
        model.params,
        vae_params,
        model.cfg,
        model.words,
        settings,
        window=model.cfg.max_text,
        min_rows=settings.batch,
    )
    scorer = AnswerScorer(model.params, model.cfg, model.words, min(count, ASKED))
    wanted = prompt_lists.load("shapes:test", count)
    seeds = [image_sampler.candidate_seed(0, prompt.id, 0) for prompt in wanted]

    def generate():
        return sampler.sample_prompts([prompt.text for prompt in wanted], seeds)[0]

    drawn = [PromptedImage(i, p.text, str(p.id)) for i, p in zip(generate(), wanted, strict=True)]
    judging = LogitJudge(scorer, model.words)
    calls = {"generate": generate, "score": lambda: judging.judge(Proposals.of(PROPOSER, drawn))}
    return {name: count / took for name, took in inference.in_turn(calls, repeats).items()}


# ---------------------------------------------------------------------------------------- the page


def table(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """Markdown; the first `left` columns hold words."""
    rule = "|---" * left + "|--:" * (len(head) - left) + "|"
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(x)} |" for x in lines)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", default="1,32", help="images that are scored together")
    parser.add_argument("--tokens", type=int, help="of the longer answer (default: its form's)")
    parser.add_argument("--think", type=int, default=250, help="tokens of thinking before it")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--images", type=int, default=64, help="drawn and scored for the rates")
    parser.add_argument("--json", help="also writes the figures there")
    parser.add_argument("--quick", action="store_true", help="a smoke test: its times mean nothing")
    args = parser.parse_args(argv)
    if args.quick:
        args.batches, args.tokens, args.think, args.repeats, args.images = "1", 4, 4, 1, 2

    batches = [int(batch) for batch in args.batches.split(",")]
    form = answer_tokens()
    longest = max(form.values()) if args.tokens is None else args.tokens
    ways = [
        Writing("written", longest),
        Writing("written, thinking", longest + args.think, think=True),
    ]
    to_limits = Writing("written, to the release's limits", max(LIMITS.values()), think=True)
    base, vae_params = shapes_base()
    seven = model_config.BAGEL_7B_MOT
    costs = {
        "shapes base": counted(base.cfg, base.words, base.side, 4, [*ways, to_limits]),
        "BAGEL-7B-MoT": counted(seven, Lengths(seven.llm.vocab), 1024, 2, [*ways, to_limits]),
    }
    machine = inference.machine()
    cases = [(base, batch) for batch in batches]
    if not args.quick:  # one image at a time: 32 written at once take many minutes a call
        cases.append((random_model(), 1))
    records = measured(cases, ways, args.repeats)
    speed = rates(base, vae_params, args.images, args.repeats)
    machine = f"{machine} to {os.getloadavg()[0]:.1f}, {jax.default_backend()}"
    versions = f"jax {jax.__version__}, Python {platform.python_version()}"

    what = (
        f'"{PROMPT}", {REGIONS} regions; an answer in the form that is asked for has '
        f"{form['whole']} tokens (whole) and {form['regions']} (regions); tokens written: "
        + ", ".join(f"{way.steps} ({way.name})" for way in [*ways, to_limits])
    )
    print(f"{what}; {machine}; {versions}\n")
    print(
        "Counted; the shapes base in float32 with its pictures of 32 × 32 pixels, BAGEL's sizes in"
    )
    print("bfloat16 with pictures of 1024 × 1024:\n")
    print(counted_table(costs, batches), "\n")
    print(f"Measured, seconds an image, medians of {args.repeats} turns, float32:\n")
    print(measured_table(records), "\n")
    for record, way in itertools.product(records, ways):
        ratio = record["seconds"][way.name] / record["seconds"]["logits"]
        if record["batch"] == 1:
            verdict = "reached" if ratio >= TARGET else "not reached"
            print(f"{TARGET}× less time at batch 1, {record['model']}, {way.name}: {verdict}")
    print(f"\nThe shapes base, {args.images} images of its test prompts, by soft answers:\n")
    print(table(["work", "images/s"], [[k, f"{v:.3g}"] for k, v in speed.items()], 1))
    if args.json:
        made = dict(
            what=what,
            machine=machine,
            versions=versions,
            answer_tokens=form,
            written_tokens={way.name: way.steps for way in [*ways, to_limits]},
            counted={m: {n: dataclasses.asdict(c) for n, c in x.items()} for m, x in costs.items()},
            measured=records,
            images_per_second=speed,
        )
        pathlib.Path(args.json).write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
