"""What float32, bfloat16 and int8 weights of one model cost and give: a Markdown table.

Every precision draws the same prompts from the same noise and answers the same questions, in turn
after each batch, so that a busy machine slows all of them. Drawings and answers are those of the
shapes world's test split, judged by its exact program, as the stage `evaluate` does; rates are of
the median batch, compilation apart. int8 is weight-only (`models/int8.py`): the other weights, and
the products, are bfloat16; in the last row products are float32, as `api.load` has it on CPU.

    python benchmarks/models.py [--model DIR] [--prompts 300] [--questions 500]
"""

import argparse
import dataclasses
import functools
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from tqdm import tqdm

import srum_jax
from srum_jax.data import prompts as prompt_lists
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.evals import sections as result_sections
from srum_jax.generation import generation_config, image_sampler
from srum_jax.generation.answer_scorer import AnswerScorer
from srum_jax.models import int8
from srum_jax.models.bagel import hf, model_config
from srum_jax.models.bagel import model as bagel
from srum_jax.worlds.shapes import exam
from srum_jax.worlds.shapes.setting import SMALL

BASE = "float32"  # differences are to it
PRECISIONS = {  # dtype of weights, dtype of products, and whether the large matrices are int8
    BASE: (jnp.float32, jnp.float32, False),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16, False),
    "int8": (jnp.bfloat16, jnp.bfloat16, True),
    "int8, float32 products": (jnp.bfloat16, jnp.float32, True),
}
DRAWN, ASKED = 16, 100  # images and questions a call
SEED = 1000  # of the noise: the stage's

Calls = dict[str, Callable[[Sequence], Sequence]]  # per precision: items -> a result each


@dataclasses.dataclass(frozen=True)
class Variant:
    """The model in one precision: dtype of its products, and its parameters."""

    dtype: Any
    params: Any


def megabytes(tree: Any) -> float:
    return sum(x.nbytes for x in jax.tree.leaves(tree)) / 1e6


def variant(weights: Any, products: Any, is_int8: bool, params: Any, specs: Any) -> Variant:
    """Parameters in one of `PRECISIONS`."""
    params = jax.tree.map(lambda x: jnp.asarray(x, weights), params)
    return Variant(products, int8.quantize(params, specs) if is_int8 else params)


def in_turn(calls: Calls, items: Sequence, size: int, title: str) -> dict[str, tuple]:
    """{precision: (results of all items, items a second)}; `size` items go through a call."""
    for call in calls.values():
        call(items[:size])  # compiles
    results: dict[str, list] = {name: [] for name in calls}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for first in tqdm(range(0, len(items), size), desc=title, dynamic_ncols=True):
        for name, call in calls.items():
            start = time.perf_counter()
            results[name] += call(items[first : first + size])
            seconds[name].append(time.perf_counter() - start)
    # A short last batch is padded, and takes as long as a full one.
    return {name: (results[name], size / np.median(seconds[name])) for name in calls}


def draw(
    variants: dict[str, Variant], vae_params, cfg, words, settings, count: int
) -> dict[str, tuple]:
    """{precision: (bool [count] of right images, images a second)}."""
    prompts = prompt_lists.load("shapes:test", count)

    samplers = {
        name: image_sampler.ImageSampler(
            one.params,
            vae_params,
            cfg,
            words,
            settings,
            window=cfg.max_text,
            min_rows=settings.batch,
            dtype=one.dtype,
        )
        for name, one in variants.items()
    }
    calls = {name: functools.partial(_drawn, sampler) for name, sampler in samplers.items()}
    found = in_turn(calls, prompts, settings.batch, "draw")
    texts = [p.text for p in prompts]
    return {n: (exam.right_drawings(images, texts), rate) for n, (images, rate) in found.items()}


def _drawn(sampler: image_sampler.ImageSampler, prompts: Sequence) -> list[np.ndarray]:
    seeds = [image_sampler.candidate_seed(SEED, p.id, 0) for p in prompts]
    return list(sampler.sample_prompts([p.text for p in prompts], seeds)[0])


def ask(variants: dict[str, Variant], cfg, words, count: int) -> dict[str, tuple]:
    """{precision: (bool [count] of right answers, answers a second)}."""
    asked = exam.questions("test", count, several=0)

    scorers = {
        name: AnswerScorer(one.params, cfg, words, ASKED, dtype=one.dtype)
        for name, one in variants.items()
    }
    calls = {name: functools.partial(_answered, scorer) for name, scorer in scorers.items()}
    found = in_turn(calls, asked, ASKED, "ask")

    def right(replies):
        return np.array([verdict.right for verdict in exam.judge_answers(asked, replies)])

    return {name: (right(replies), rate) for name, (replies, rate) in found.items()}


def _answered(scorer: AnswerScorer, asked: Sequence) -> list[str]:
    found = scorer.likeliest([r.images for r in asked], [[r.question] for r in asked])
    return [scorer.tokenizer.decode(first) for first in found]


def share(right: np.ndarray) -> str:
    section = result_sections.accuracy_section(right)
    low, high = section["ci95"]
    return f"{100 * section['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def difference(base: np.ndarray, other: np.ndarray) -> str:
    section = result_sections.paired_section(base, other)
    low, high = section["ci95"]
    return f"{100 * section['diff']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def table(variants: dict[str, Variant], autoencoder: float, drawn: dict, answered: dict) -> str:
    lines = [
        "| weights | model, MB | with autoencoder, MB | images/s | answers/s | T2I right, % "
        f"| − {BASE} | QA right, % | − {BASE} |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, one in variants.items():
        size = megabytes(one.params)
        (images, images_rate), (answers, answers_rate) = drawn[name], answered[name]
        cells = [
            name,
            f"{size:.2f}",
            f"{size + autoencoder:.2f}",
            f"{images_rate:.1f}",
            f"{answers_rate:.0f}",
            share(images),
            "" if name == BASE else difference(drawn[BASE][0], images),
            share(answers),
            "" if name == BASE else difference(answered[BASE][0], answers),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    base = epath.resource_path(srum_jax) / "worlds/shapes/base"
    parser.add_argument("--model", default=base, help="folder of a shapes model (default: ours)")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--questions", type=int, default=500)
    args = parser.parse_args()

    cfg, words = model_config.from_folder(args.model), Tokenizer.from_folder(args.model)
    settings = dataclasses.replace(generation_config.from_folder(args.model).generate, batch=DRAWN)
    if settings.size != (SMALL.side, SMALL.side):
        parser.error(f"{args.model} draws {settings.size} pixels: not the shapes world's")
    params, vae_params = hf.load(args.model, cfg)
    vae_params = jax.tree.map(jnp.asarray, vae_params)
    variants = {name: variant(*how, params, bagel.specs(cfg)) for name, how in PRECISIONS.items()}
    drawn = draw(variants, vae_params, cfg, words, settings, args.prompts)
    answered = ask(variants, cfg, words, args.questions)

    print(f"`python {' '.join(sys.argv)}`, {time.strftime('%Y-%m-%d')}: {args.prompts} prompts,")
    print(
        f"{args.questions} questions, {DRAWN} images and {ASKED} questions a call; 95 % intervals:"
    )
    print("Wilson's, and of a paired bootstrap for differences.")
    print(f"srum_jax {srum_jax.__version__}, jax {jax.__version__}, Python ", end="")
    print(f"{platform.python_version()}, {jax.default_backend()}, {os.cpu_count()} cores.\n")
    print(table(variants, megabytes(vae_params), drawn, answered))


if __name__ == "__main__":
    main()
