"""Our training step against the same model's step in plain PyTorch: a Markdown table.

Text-to-image samples (a prompt and a noisy image each), flow matching, AdamW with the gradients'
norm clipped, every weight of both experts trained. Ours is the package's own step on its own packed
batch, a sample a row: noise, the average of the weights and the check for bad numbers included.
`torch_train.py` says how PyTorch does it. Both start from the same weights; before anything is
timed, three steps of each must give the same losses and norms from the same noise.

Each side is a process of its own. On CPU they take turns, and one waits while another works; on a
GPU, whose memory does not hold all, one is done before the next starts. A turn is one or more steps
and at least half a second; compilation comes before; figures are of the median turn. The model's
FLOPs are those of `srum_jax/models/bagel/cost.py`: products of matrices and attention over all
pairs of a sample's tokens, forward and backward, nothing that is computed again. The peak is what
a large product of matrices reaches here in any side's library, before or after. Memory is the most
that a process took in its turns beyond the libraries and the weights it started from (CPU), or the
most that its arrays took (GPU). CPU seconds are those of all cores.

On CPU: float32, hidden size 256, 8 layers, 2048 packed tokens, nothing computed again. On a GPU:
bfloat16, 4 layers of the 7B model (2.4 B parameters), two images of 1024 pixels, layers computed
again in the backward pass on both sides.

    python benchmarks/train_step.py [--repeats 7] [--sides "ours,PyTorch eager"] [--json FILE]
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import inference
import jax
import jax.numpy as jnp
import numpy as np

from srum_jax import config, flow
from srum_jax.configs import base
from srum_jax.core import param_tree, sharding
from srum_jax.data import packing
from srum_jax.data.schema import Example, Lanes, Latent, Text
from srum_jax.models import attention
from srum_jax.models.bagel import cost, hf_table
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BAGEL_7B_MOT, BagelConfig, LLMConfig
from srum_jax.objectives import srum, terms
from srum_jax.training import optim, step
from srum_jax.training.state import FrozenParams, create

SIDES = ("ours", "PyTorch eager", "PyTorch compiled")
TURN = 0.5  # seconds at least
CHECKED = 3  # steps whose losses are compared
CLOSE = {"float32": 1e-3, "bfloat16": 5e-3}  # relative
UNUSED = ("lm_head", "vit", "connector")  # text-to-image training runs none of them

Call = Callable[[], tuple]  # one step, waited for: (loss, norm of the gradients)


@dataclasses.dataclass(frozen=True)
class Work:
    """What is trained on what: sizes of the language model, of a sample, and how it is computed."""

    llm: LLMConfig
    samples: int
    text: int  # ids of a prompt
    grid: tuple[int, int]  # latent tokens of an image
    dtype: str  # of products
    remat: str  # none | full (layers are computed again in the backward pass)
    device: str = "cpu"  # | gpu
    devices: int = 1  # as compute.cpu_devices: what ours takes the machine for

    @property
    def cfg(self) -> BagelConfig:
        marks = dict(bos=1, eos=2, start_of_image=3, end_of_image=4)  # small vocabularies have them
        return dataclasses.replace(BAGEL_7B_MOT, llm=self.llm, **marks)

    @property
    def gen(self) -> int:
        """Latent tokens of a sample."""
        return self.grid[0] * self.grid[1]

    @property
    def und(self) -> int:
        """Other tokens: the prompt's with two marks, and two of the image."""
        return self.text + 4

    @property
    def tokens(self) -> int:
        return self.samples * (self.und + self.gen)

    def data(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, latents [h,w,p·p·Z]) of every sample, at random."""
        rng = np.random.default_rng(1)
        ids = rng.integers(5, self.llm.vocab, (self.samples, self.text))
        latents = rng.standard_normal((self.samples, *self.grid, self.cfg.token_dim), np.float32)
        return list(zip(ids, latents, strict=True))


_SLICE = dataclasses.replace(BAGEL_7B_MOT.llm, layers=4)
WORK = {
    "cpu": Work(LLMConfig(256, 8, 8, 4, 704, 8192), 2, 60, (30, 32), "float32", "none", devices=2),
    "gpu": Work(_SLICE, 2, 60, (64, 64), "bfloat16", "full", "gpu"),
    "quick": Work(LLMConfig(32, 1, 4, 2, 64, 128), 2, 4, (4, 6), "float32", "none", devices=2),
}


def flops(work: Work) -> int:
    """Of a step, forward and backward, nothing computed again."""
    row = cost.RowTokens(und=work.und, gen=work.gen, times=1)
    how = dict(trained=specs(work), remat=work.remat, compared=0)
    return work.samples * cost.step(work.cfg, row, **how)[1]


def settings() -> config.TrainConfig:
    """Flow matching with the original's AdamW; a larger rate, so that a step shows in the loss."""
    cfg = config.load(base.get_config()).train
    adamw = dict(optimizer="adamw", b1=0.9, b2=0.95, eps=1e-15, weight_decay=0.0)
    steady = dict(learning_rate=1e-4, warmup=0, schedule="constant", clip_norm=1.0)
    rule = dataclasses.replace(cfg.optim, **adamw, **steady)
    return dataclasses.replace(cfg, objective="sft", anchor=0.0, optim=rule)


def specs(work: Work) -> param_tree.Specs:
    return {k: s for k, s in bagel.specs(work.cfg).items() if k not in UNUSED}


def weights(work: Work) -> param_tree.Params:
    """float32 NumPy arrays of everything that is trained, at random."""
    rng = np.random.default_rng(0)

    def draw(spec: param_tree.ParamSpec) -> np.ndarray:
        if not spec.fan_in and spec.scale is None:  # gains and biases
            return np.full(spec.shape, spec.init == "ones", np.float32)
        # llm2vae too: at zero, as it starts, it would leave the others without gradients.
        scale = spec.scale or math.prod(spec.shape[axis] for axis in spec.fan_in) ** -0.5
        return np.float32(scale) * rng.standard_normal(spec.shape, np.float32)

    return jax.tree.map(draw, specs(work), is_leaf=param_tree.is_spec)


def batch(work: Work):
    """The packed batch, a sample a row."""
    lanes = Lanes(und=work.und, gen=work.gen, vit=0, labels=0, images=1, regions=0)
    pixels = tuple(side * work.cfg.token_pixels for side in work.grid)
    rows = [
        [Example((Text(ids), Latent(latent, size=pixels, noise_id=i)))]
        for i, (ids, latent) in enumerate(work.data())
    ]
    return jax.tree.map(jnp.asarray, packing.pack(rows, lanes, work.cfg.layout))


def draws(work: Work, number: int) -> flow.Draws:
    """What our step `number` (from 0) draws."""
    c, at = settings(), jax.random.fold_in(jax.random.key(0), number)
    rule = dict(mean=c.timestep_mean, std=c.timestep_std, shift=c.timestep_shift)
    return flow.draw(batch(work), at, **rule)


def objective(work: Work) -> srum.SrumLoss:
    how = dict(platform=work.device, tokens=work.und + work.gen, head_dim=work.llm.head_dim)
    backend = attention.choose("auto", **how, dtype=work.dtype)
    sizes = dataclasses.replace(work.cfg, attention=backend)
    return srum.SrumLoss(settings(), terms.Predictor(sizes, jnp.dtype(work.dtype), work.remat))


def ours(work: Work, start: param_tree.Params) -> Call:
    cfg = settings()
    tx = optim.make(cfg.optim, specs(work), steps=10**6)
    run = step.program(objective(work), tx, ema=cfg.ema, micro_batches=1)
    axes = config.MeshConfig(data=-1, fsdp=1, tensor=1, context=1)
    mesh = sharding.make_mesh(axes, jax.devices()[: work.devices])
    state = create(start, tx, specs(work), mesh)
    data = jax.device_put(batch(work), sharding.batch_sharding(mesh))

    def call():
        nonlocal state
        with jax.set_mesh(mesh):  # as a stage runs
            state, metrics = run(state, FrozenParams({}, None), data, jax.random.key(0))
        jax.block_until_ready(state)
        return float(metrics["loss"]), float(metrics["grad_norm"])

    return call


def official(work: Work, tree: param_tree.Params) -> dict[str, np.ndarray]:
    """Leaves of the parameters' tree by their official names, in official layout."""
    flat, entries = param_tree.flatten(tree), hf_table.table(work.cfg)[hf_table.MODEL_FILE]
    return {
        e.name: e.to_official(flat[e.path] if e.layer is None else flat[e.path][e.layer])
        for e in entries
        if e.path in flat
    }


def rival(work: Work, start: param_tree.Params, compiled: bool):
    """PyTorch's side: a `torch_train.Trainer`."""
    import torch
    import torch_train

    table = hf_table.position_table(work.cfg.max_latent, work.cfg.llm.hidden)
    given = official(work, start) | {"latent_pos_embed.pos_embed": table}
    how = dict(remat=work.remat == "full", compiled=compiled, dtype=getattr(torch, work.dtype))
    device = {"gpu": "cuda"}.get(work.device, "cpu")
    return torch_train.trainer(work.cfg, given, settings().optim, device=device, **how)


def theirs(work: Work, run) -> Call:
    """A `rival`'s steps: the first take the draws of ours, the later ones draw their own noise."""
    import torch
    import torch_train

    p = run.model.llm2vae.weight

    def given(drawn: flow.Draws):
        times = np.asarray(drawn.t)[:, 0]
        data = torch_train.pack(work.data(), times, work.cfg, device=p.device, dtype=p.dtype)
        noise = np.array(drawn.noise).reshape(data.latents.shape)
        return data, torch.as_tensor(noise, device=p.device)

    first = [given(draws(work, number)) for number in range(CHECKED)]
    data, _ = first[0]

    def call():
        loss, norm = run(*first.pop(0)) if first else run(data)
        return float(loss), float(norm)

    return call


# ------------------------------------------------------------------------- a side and its process


def product(side: str, work: Work) -> Callable[[], object]:
    """A product of two large square matrices in the side's library, waited for."""
    if side == "ours":
        x = jnp.ones((edge(work), edge(work)), work.dtype)
        times = jax.jit(jnp.matmul)
        return lambda: times(x, x).block_until_ready()
    import torch

    device = "cuda" if work.device == "gpu" else "cpu"
    x = torch.ones(edge(work), edge(work), dtype=getattr(torch, work.dtype), device=device)

    def call():
        x @ x
        if work.device == "gpu":
            torch.cuda.synchronize()

    return call


def edge(work: Work) -> int:
    return min(8 * work.llm.hidden, 8192)


def peak(side: str, work: Work) -> float:
    """FLOP/s of that product, the best of some."""
    call = product(side, work)
    call()
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 2 * edge(work) ** 3 / min(seconds)


def resident(field: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" the most since `forget_peak`."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x.split()[1] for x in lines if x.startswith(field)))


def forget_peak() -> None:
    """What is compiled takes more than what is run."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def memory(side: str, work: Work, before: int) -> int:
    """Bytes at the most, beyond `before` on CPU."""
    if work.device == "cpu":
        return resident("VmHWM") - before
    if side == "ours":
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    import torch

    return torch.cuda.max_memory_allocated()


def turns(call: Call) -> Callable[[], tuple[float, float]]:
    """A function that takes a turn: (seconds, CPU seconds) a step."""
    count = 0

    def turn():
        nonlocal count
        if not count:
            call()  # without given noise PyTorch compiles anew
            start = time.perf_counter()
            call()
            count = max(1, round(TURN / (time.perf_counter() - start)))
            forget_peak()
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count, (time.process_time() - cpu) / count

    return turn


def serve(side: str, work: Work) -> None:
    """Does what the lines of standard input ask for; answers each with a line of JSON."""
    if side != "ours" or work.device == "cpu":  # of PyTorch's steps the draws alone are ours
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", work.devices)
    if side != "ours":
        import torch_train  # noqa: F401
    start = weights(work)
    before = resident("VmRSS")
    compiled = side.endswith("compiled")
    call = ours(work, start) if side == "ours" else theirs(work, rival(work, start, compiled))
    answers = {
        "check": lambda: [call() for _ in range(CHECKED)],
        "turn": turns(call),
        "peak": lambda: peak(side, work),
        "memory": lambda: memory(side, work, before),
    }
    for line in sys.stdin:
        print(json.dumps(answers[line.strip()]()), flush=True)


class Process:
    """A side at work elsewhere: `ask` sends a line to `serve` and returns the answer."""

    def __init__(self, side: str, work: Work):
        command = [sys.executable, __file__, "--serve", side, json.dumps(dataclasses.asdict(work))]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.side, self.process = side, subprocess.Popen(command, **pipes)

    def ask(self, what: str):
        print(what, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.side} ended at {what!r} with {self.process.wait()}")
        return json.loads(answer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


@dataclasses.dataclass(frozen=True)
class Measured:
    """checked: (loss, norm) of the first steps; seconds, cpu: a step's, of every turn; memory:
    bytes; peak: FLOP/s of a product."""

    checked: list[tuple[float, float]]
    seconds: list[float]
    cpu: list[float]
    memory: int
    peak: float


def measure(work: Work, sides: Sequence[str], repeats: int) -> dict[str, Measured]:
    """What `sides` take, in turn."""
    with contextlib.ExitStack() as stack:
        running = {side: stack.enter_context(Process(side, work)) for side in sides}

        def each(what: str) -> dict:
            return {side: process.ask(what) for side, process in running.items()}

        checked, before = each("check"), each("peak")
        each("turn")  # warm
        taken = [each("turn") for _ in range(repeats)]
        most, after = each("memory"), each("peak")
    seconds, cpu = ({s: [turn[s][i] for turn in taken] for s in sides} for i in (0, 1))
    best = {side: max(before[side], after[side]) for side in sides}
    parts = (checked, seconds, cpu, most, best)
    return {side: Measured(*(part[side] for part in parts)) for side in sides}


def compare(work: Work, found: dict[str, Measured]) -> float:
    """The largest relative difference of losses and norms; raises SystemExit if it is too large."""
    first, *others = (np.array(m.checked) for m in found.values())
    worst = np.max([np.abs(other / first - 1) for other in others], initial=0.0)
    if not worst < CLOSE[work.dtype]:
        said = {side: m.checked for side, m in found.items()}
        raise SystemExit(f"the sides do not compute the same: (loss, norm) of each step: {said}")
    return float(worst)


# ------------------------------------------------------------------------------------- the table


def table(work: Work, found: dict[str, Measured]) -> str:
    best = max(m.peak for m in found.values())
    lines = [
        "| step | s | range | CPU s | tokens/s | GFLOP/s | of the peak | memory, MiB |",
        "|---|" + "--:|" * 7,
    ]
    for side, m in found.items():
        typical = np.median(m.seconds)
        rate = flops(work) / typical
        cells = [
            side,
            f"{typical:.3g}",
            f"{min(m.seconds):.3g}–{max(m.seconds):.3g}",
            f"{np.median(m.cpu):.3g}",
            f"{work.tokens / typical:.0f}",
            f"{rate / 1e9:.0f}",
            f"{100 * rate / best:.0f} %",
            f"{m.memory / 2**20:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rebuilt(said: str) -> Work:
    """A `Work` out of the JSON of its fields."""
    fields = json.loads(said)
    return Work(**{**fields, "llm": LLMConfig(**fields["llm"]), "grid": tuple(fields["grid"])})


def versions(sides: Sequence[str]) -> str:
    names = ["jax", "jaxlib"] + ["torch"] * (set(sides) != {"ours"})
    said = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return f"{said}, Python {platform.python_version()}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: gpu if there is one")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--quick", action="store_true", help="tiny, on CPU: does it run?")
    parser.add_argument("--json", help="also writes the figures there")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        side, said = args.serve
        return serve(side, rebuilt(said))

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    here = jax.default_backend()
    device = "cpu" if args.quick else args.device or here
    if device == "gpu" != here:
        raise SystemExit(f"jax runs on {here}, not on a GPU")
    work = WORK["quick" if args.quick else device]
    sides = args.sides.split(",")
    if unknown := set(sides) - set(SIDES):
        parser.error(f"--sides: {unknown} are none of {SIDES}")
    if importlib.util.find_spec("torch") is None:
        print('PyTorch is not installed (pip install -e ".[bench]"): not measured.\n')
        sides = ["ours"]

    before = inference.machine()
    together = [sides] if device == "cpu" else [[side] for side in sides]
    found = {}
    for group in together:
        found |= measure(work, group, args.repeats)
    worst = compare(work, found)
    what = (
        f"{work.llm.hidden} wide, {work.llm.layers} layers, {param_tree.count(specs(work)):.3g} "
        f"parameters, {work.tokens} tokens in {work.samples} samples, {work.dtype}"
    )
    best = max(m.peak for m in found.values())
    print(f"{what}; {flops(work) / 1e9:.0f} GFLOP a step, peak {best / 1e9:.0f} GFLOP/s;")
    print(f"{before} to {os.getloadavg()[0]:.1f}; {versions(sides)}.")
    if len(sides) > 1:
        print(f"Losses and norms of {CHECKED} steps differ by {worst:.1e} at most (relative).")
    print(f"\n{table(work, found)}\n")
    seconds = {side: float(np.median(m.seconds)) for side, m in found.items()}
    rivals = {side: s / seconds["ours"] for side, s in seconds.items() if "ours" in seconds}
    for side in SIDES[1:]:
        print(f"ours / {side}: " + (f"{rivals[side]:.2f}×" if side in rivals else "not measured"))
    if set(SIDES) <= set(rivals):
        print(f"ours / the better of both: {min(rivals[side] for side in SIDES[1:]):.2f}×")
    if device == "cpu":
        print("on a GPU (bfloat16, 2.4 B parameters): not measured")
    if args.json:
        said = {side: dataclasses.asdict(m) for side, m in found.items()}
        made = dict(what=what, machine=before, versions=versions(sides), flops=flops(work))
        made |= dict(tokens=work.tokens, peak=best, differ=worst, sides=said)
        pathlib.Path(args.json).write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
