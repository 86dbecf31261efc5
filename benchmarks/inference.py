"""Our sampler and decoder against the same model in plain PyTorch: a Markdown table.

Both load one folder and do the same work, in turn in one process: a turn is one or more calls, long
enough to time, and a rate is that of the median turn; compilation comes before. Images count the
whole path, from prompts (of equal length, which spares PyTorch a call of attention a request) to
uint8. Tokens are written greedily after a picture and a question, a fixed number, the end mark
ignored, and count with the reading before. The time to the first image is that of a fresh process,
from its start, the caches of compiled programs warm. Both sides use their default number of
threads. `torch_bagel.py` says how PyTorch does it.

Of Janus-Pro drawings alone are timed, with random weights, on a CPU, beside transformers' own class
(`janus_drawing.py`).

    python benchmarks/inference.py [--model shapes|DIR|random:small|random:slice] [--json FILE]
    python benchmarks/inference.py --family janus [--grid 24] [--batches 1,16]
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np

SIDES = ("ours", "PyTorch eager", "PyTorch compiled")
TURN = 0.5  # seconds at least
RANDOM = {"random:small": 256, "random:slice": 1024}  # models with random weights: pixels a side
COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle")

Call = Callable[[], np.ndarray]  # one batch of the work, results on the host


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be done. steps: of an image; size: its pixels; tokens: written a request."""

    folder: str
    device: str  # cpu | gpu
    steps: int
    size: tuple[int, int]
    tokens: int
    compile_mode: str

    @property
    def sample(self) -> dict:
        """Keys of the config's `sample` section; every step is guided."""
        return dict(
            size=self.size,
            steps=self.steps,
            shift=4.0,
            guidance=2.5,
            guidance_interval=(0.0, 1.0),
            renorm="none",
            renorm_min=0.0,
        )

    def prompts(self, batch: int) -> list[str]:
        pairs = [(c, s) for s in SHAPES for c in COLOURS]
        above = [pairs[i % len(pairs)] for i in range(batch)]
        below = [pairs[(i + 5) % len(pairs)] for i in range(batch)]
        return [f"a {c} {s} above a {d} {t}" for (c, s), (d, t) in zip(above, below, strict=True)]

    def questions(self, batch: int) -> list[str]:
        return [f"what color is the {SHAPES[i % len(SHAPES)]} ?" for i in range(batch)]

    def pictures(self, batch: int, side: int) -> list[np.ndarray]:
        draw = np.random.default_rng(0)
        return list(draw.integers(0, 256, (batch, side, side, 3), np.uint8))


@functools.cache
def ours(work: Work):
    import jax

    from srum_jax import api

    if jax.default_backend() != work.device:
        raise SystemExit(f"jax runs on {jax.default_backend()}, not on {work.device}")
    return api.load(work.folder)


def ours_images(work: Work, batch: int) -> Call:
    prompts, seeds = work.prompts(batch), list(range(batch))
    options = {**work.sample, "batch": batch, "seeds": seeds}
    return lambda: np.stack([d.image for d in ours(work).generate(prompts, **options)])


def ours_tokens(work: Work, batch: int) -> Call:
    import jax
    import jax.numpy as jnp

    from srum_jax.data.images import picture
    from srum_jax.generation import context, text_generator

    bagel = ours(work)
    cfg = bagel.cfg
    endless = dataclasses.replace(cfg, eos=-1)  # no token is the end mark

    @jax.jit
    def run(params, packed):
        slots = context.capacity(packed, work.tokens + 1)
        how = dict(cfg=cfg, dtype=bagel.dtype)
        cache = context.prefill(params, packed, slots=slots, **how)
        zero, limit = jnp.zeros(batch), jnp.full(batch, work.tokens, jnp.int32)
        seeds, how["cfg"] = zero.astype(jnp.uint32), endless
        return text_generator.decode(
            params, cache, seeds, zero, limit, max_tokens=work.tokens, **how
        )[0]

    def call():
        texts = work.questions(batch)
        shown = work.pictures(batch, cfg.vit.patch * cfg.vit.positions)
        items = [
            (picture(p, cfg.layout), bagel.tokenizer.text(t))
            for p, t in zip(shown, texts, strict=True)
        ]
        return np.asarray(run(bagel.params, context.pack(items, batch, cfg.layout)))

    return call


@functools.cache
def theirs(work: Work, compiled: bool):
    import torch
    import torch_bagel

    device, dtype = ("cuda", torch.bfloat16) if work.device == "gpu" else ("cpu", torch.float32)
    model, decoder = torch_bagel.load(work.folder, device=device, dtype=dtype)
    if compiled:
        torch_bagel.compile_model(model, decoder, mode=work.compile_mode)
    return model, decoder


def _words(folder: str):
    from srum_jax.data.tokenizer import Tokenizer

    return Tokenizer.from_folder(folder)


def theirs_images(work: Work, batch: int, compiled: bool, noise=None) -> Call:
    import torch
    import torch_bagel

    model, decoder = theirs(work, compiled)
    cfg, words = model.cfg, _words(work.folder)
    grid = tuple(s // cfg.token_pixels for s in work.size)
    settings = torch_bagel.Settings(**{k: v for k, v in work.sample.items() if k != "size"})
    shape = (batch, grid[0] * grid[1], cfg.token_dim)

    def call():
        texts = [np.array([cfg.bos, *words.encode(p), cfg.eos]) for p in work.prompts(batch)]
        x = torch.randn(shape) if noise is None else torch.as_tensor(noise)
        x = x.to(model.device)
        return torch_bagel.images(model, decoder, texts, x, grid, settings).cpu().numpy()

    return call


def theirs_tokens(work: Work, batch: int, compiled: bool) -> Call:
    import torch_bagel

    from srum_jax.data import images

    model, _ = theirs(work, compiled)
    cfg, words = model.cfg, _words(work.folder)

    def call():
        shown = work.pictures(batch, cfg.vit.patch * cfg.vit.positions)
        shown = [images.picture(p, cfg.layout) for p in shown]
        texts = [np.array([cfg.bos, *words.encode(q), cfg.eos]) for q in work.questions(batch)]
        patches, ids = [p.patches for p in shown], [p.positions for p in shown]
        return torch_bagel.answers(model, patches, ids, texts, work.tokens).cpu().numpy()

    return call


def images_call(side: str, work: Work, batch: int) -> Call:
    if side == "ours":
        return ours_images(work, batch)
    return theirs_images(work, batch, side.endswith("compiled"))


def tokens_call(side: str, work: Work, batch: int) -> Call:
    if side == "ours":
        return ours_tokens(work, batch)
    return theirs_tokens(work, batch, side.endswith("compiled"))


def in_turn(calls: dict[str, Call], repeats: int) -> dict[str, float]:
    """Seconds of a call on each side: the median of `repeats` turns, taken in turn."""
    counts, seconds = {}, {side: [] for side in calls}
    for side, call in calls.items():
        call()  # compiles
        call()
        start = time.perf_counter()
        call()
        counts[side] = max(1, round(TURN / (time.perf_counter() - start)))
    for _ in range(repeats):
        for side, call in calls.items():
            start = time.perf_counter()
            for _ in range(counts[side]):
                call()
            seconds[side].append((time.perf_counter() - start) / counts[side])
    return {side: float(np.median(s)) for side, s in seconds.items()}


def first_images(work: Work, sides, repeats: int) -> dict[str, float]:
    """Seconds from starting a process to its first image, with warm caches, taken in turn."""
    found = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as cache:
        env = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": f"{cache}/jax",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
        }
        for _ in range(repeats + 1):
            for side in sides:
                said = json.dumps(dataclasses.asdict(work))
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, __file__, "--first", side, said], env=env, check=True
                )
                found[side].append(time.perf_counter() - start)
    return {side: float(np.median(s[1:])) for side, s in found.items()}


def differ(work: Work) -> int:
    """The largest difference of a pixel between our image and PyTorch's from the same noise."""
    import jax

    bagel = ours(work)
    count = np.prod([s // bagel.cfg.token_pixels for s in work.size])
    noise = jax.random.normal(jax.random.key(np.uint32(0)), (count, bagel.cfg.token_dim))
    theirs = theirs_images(work, 1, False, np.array(noise)[None])()
    return int(np.abs(ours_images(work, 1)().astype(int) - theirs).max())


def random_sizes(name: str):
    """Of random:small 8 layers of width 512, in which arithmetic dominates; of random:slice 4
    layers of BAGEL-7B-MoT with all that is around them. With the marks of the shapes tokenizer."""
    from srum_jax.models.bagel import model_config

    shapes, whole = model_config.from_folder(base()), model_config.BAGEL_7B_MOT
    if name == "random:slice":
        marks = ("bos", "eos", "start_of_image", "end_of_image")
        llm = dataclasses.replace(whole.llm, layers=4)
        return dataclasses.replace(whole, llm=llm, **{m: getattr(shapes, m) for m in marks})
    return dataclasses.replace(
        shapes,
        llm=model_config.LLMConfig(512, 8, heads=8, kv_heads=4, ffn=1408, vocab=8192),
        vit=model_config.ViTConfig(256, 4, heads=4, ffn=1024, patch=16, positions=16),
        vae=model_config.VAEConfig(
            32, (1, 2, 4, 4), res_blocks=1, z=16, scale=0.3611, shift=0.1159
        ),
        max_latent=32,
        max_vit=16,
    )


def write_random(name: str, folder: str) -> None:
    """A checkpoint folder with random weights."""
    import jax

    from srum_jax.core import param_tree
    from srum_jax.models.bagel import hf, vae
    from srum_jax.models.bagel import model as bagel

    cfg = random_sizes(name)
    model = param_tree.init(bagel.specs(cfg), jax.random.key(0))
    shape = model["llm2vae"]["w"].shape  # zero at first, which would leave nothing to draw
    model["llm2vae"]["w"] = 0.05 * jax.random.normal(jax.random.key(1), shape)
    autoencoder = param_tree.init(vae.specs(cfg.vae), jax.random.key(2))
    dtype = "bfloat16" if name == "random:slice" else "float32"
    files = [base() / "tokenizer.json"]
    hf.save(folder, cfg, model, autoencoder, dtype, tokenizer_files=files)


def folder_of(model: str, made: str) -> tuple[str, int]:
    """(folder, pixels of a side) of what --model names; random weights are written to `made`."""
    if model in RANDOM:
        write_random(model, made)
        return made, RANDOM[model]
    return str(base()) if model == "shapes" else model, 32


def base() -> pathlib.Path:
    import srum_jax

    return pathlib.Path(srum_jax.__file__).parent / "worlds/shapes/base"


def table(rows: list[tuple], sides: list[str]) -> str:
    head = ["work", "batch", *sides, *(f"ours / {s}" for s in sides[1:])]
    lines = ["| " + " | ".join(head) + " |", "|---" * 2 + "|--:" * (len(head) - 2) + "|"]
    for what, batch, values, lower_is_better in rows:
        cells = [f"{values[s]:.3g}" for s in sides]
        ratios = [values["ours"] / values[s] for s in sides[1:]]
        cells += [f"{1 / r if lower_is_better else r:.2f}×" for r in ratios]
        lines.append(f"| {what} | {batch} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> str:
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="bagel", choices=("bagel", "janus"))
    parser.add_argument(
        "--model", default="shapes", help=f"shapes, a folder, or one of {', '.join(RANDOM)}"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--batches", default="1,4,16", help="of images")
    parser.add_argument("--token_batches", default="1,16")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--size", type=int, help="pixels a side (default: the model's)")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--grid", type=int, default=24, help="of janus: tokens a side of an image")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--first_repeats", type=int, default=3, help="0: no time to first image")
    parser.add_argument("--compile_mode", default="default", help="of torch.compile")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--json", help="also writes the figures there")
    parser.add_argument("--first", nargs=2, help=argparse.SUPPRESS)
    return parser


def numbers(said: str) -> list[int]:
    return [int(one) for one in said.split(",") if one]


def bagel_rows(args: argparse.Namespace, sides: list[str]) -> tuple[str, list[tuple]]:
    """(what was done, a row of every kind of work and batch)."""
    with tempfile.TemporaryDirectory() as made:
        folder, side = folder_of(args.model, made)
        size = args.size or side
        work = Work(folder, args.device, args.steps, (size, size), args.tokens, args.compile_mode)
        if {"ours", "PyTorch eager"} <= set(sides):
            print(f"largest difference of a pixel, same noise: {differ(work)}", flush=True)
        rows = []
        for batch in numbers(args.batches):
            calls = {s: images_call(s, work, batch) for s in sides}
            rates = {s: batch / t for s, t in in_turn(calls, args.repeats).items()}
            rows.append(("images/s", batch, rates, False))
            print(*rows[-1], file=sys.stderr)
        for batch in numbers(args.token_batches):
            calls = {s: tokens_call(s, work, batch) for s in sides}
            found = in_turn(calls, args.repeats)
            rows.append(
                ("tokens/s", batch, {s: batch * work.tokens / t for s, t in found.items()}, False)
            )
            print(*rows[-1], file=sys.stderr)
        if args.first_repeats:
            found = first_images(work, sides, args.first_repeats)
            rows.append(("s to first image", 1, found, True))
    what = f"{args.model}, {size}×{size} pixels, {work.steps} guided steps, {work.tokens} tokens"
    return what, rows


def janus_rows(args: argparse.Namespace, sides: list[str]) -> tuple[str, list[tuple]]:
    """The same of Janus-Pro's drawings. Raises SystemExit where sides draw different ids."""
    import janus_drawing

    drawers, rows = janus_drawing.Drawers(args.grid), []
    for batch in numbers(args.batches):
        calls = {side: drawers.call(side, batch) for side in sides}
        print(f"batch {batch}: {janus_drawing.compare(calls):.2%} of the ids are the same")
        rates = {s: batch / t for s, t in in_turn(calls, args.repeats).items()}
        rows.append(("images/s", batch, rates, False))
        print(*rows[-1], file=sys.stderr, flush=True)
    return janus_drawing.said(drawers.cfg), rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = options()
    args = parser.parse_args(argv)
    if args.first:
        side, said = args.first
        said = json.loads(said)
        images_call(side, Work(**{**said, "size": tuple(said["size"])}), 1)()
        return

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    janus, sides = args.family == "janus", args.sides.split(",")
    if janus and args.device == "gpu":
        parser.error("--family janus is not measured on a gpu")
    versions = f"jax {jax.__version__}"
    if importlib.util.find_spec("torch") is None:
        print('PyTorch is not installed (pip install -e ".[bench]"): not measured.\n')
        sides = ["ours"]
    else:
        for name in ("torch", *["transformers"] * janus):
            versions += f", {name} {importlib.metadata.version(name)}"
    versions += f", Python {platform.python_version()}"
    before = machine()
    what, rows = (janus_rows if janus else bagel_rows)(args, sides)
    print(f"{what}; {before} to {os.getloadavg()[0]:.1f}; {versions}\n")
    print(table(rows, sides))
    if args.json:
        named = [dict(work=w, batch=b, values=v) for w, b, v, _ in rows]
        made = dict(what=what, machine=before, versions=versions, rows=named)
        pathlib.Path(args.json).write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
