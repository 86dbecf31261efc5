"""Our training step against the same model's step in PyTorch: a Markdown table.

AdamW with the gradients' norm clipped. Ours is the package's own step on its own packed batch, a
sample a row: the average of the weights and the check for bad numbers included. Both start from the
same weights and train on the same samples; before anything is timed, three steps of each must give
the same losses and norms. What is trained a family says, and what the other side is:
`train_step_bagel.py`, BAGEL in plain PyTorch; `train_step_janus.py`, transformers' own Janus.

Each side is a process of its own. On CPU they take turns, and one waits while another works; on a
GPU, whose memory does not hold all, one is done before the next starts. A turn is a step that
is not timed and then steps back to back, as a training takes them, for some three seconds: what a
side's memory costs after a pause, in which the machine may have taken free pages back, no training
pays. Compilation comes before; figures are of the median turn. The model's
FLOPs are those of its family's `cost.py`: products of matrices and attention over all
pairs of a sample's tokens, forward and backward, nothing that is computed again. The peak is what
a large product of matrices reaches here in any side's library, before or after. Memory is the most
that a process took in its turns beyond the libraries and the weights it started from (CPU), or the
most that its arrays took (GPU). CPU seconds are those of all cores.

    python benchmarks/train_step.py [--family bagel|janus] [--repeats 7]
        [--sides "ours,PyTorch eager"] [--json FILE]
"""

import argparse
import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
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
import train_step_bagel
import train_step_janus
from our_step import CHECKED, Call, Work

from srum_jax.core import param_tree

FAMILIES = {"bagel": train_step_bagel, "janus": train_step_janus}
SIDES = ("ours", "PyTorch eager", "PyTorch compiled")
TURN = 3.0  # seconds of timed steps, about
CLOSE = {"float32": 1e-3, "bfloat16": 5e-3}  # relative

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
        call()
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count, (time.process_time() - cpu) / count

    return turn


def serve(side: str, name: str, size: str) -> None:
    """Does what the lines of standard input ask for; answers each with a line of JSON."""
    family = FAMILIES[name]
    work = family.WORK[size]
    if side != "ours" or work.device == "cpu":  # of PyTorch's steps the draws alone are ours
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", work.devices)
    if side != "ours":
        importlib.import_module(family.TORCH)
    start = family.weights(work)
    before = resident("VmRSS")
    if side == "ours":
        call = family.ours(work, start)
    else:
        call = family.theirs(work, family.rival(work, start, side.endswith("compiled")))
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

    def __init__(self, side: str, name: str, size: str):
        command = [sys.executable, __file__, "--serve", side, name, size]
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


def measure(name: str, size: str, sides: Sequence[str], repeats: int) -> dict[str, Measured]:
    """What `sides` take, in turn."""
    with contextlib.ExitStack() as stack:
        running = {side: stack.enter_context(Process(side, name, size)) for side in sides}

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


def table(work: Work, flops: int, found: dict[str, Measured]) -> str:
    best = max(m.peak for m in found.values())
    lines = [
        "| step | s | range | CPU s | tokens/s | GFLOP/s | of the peak | memory, MiB |",
        "|---|" + "--:|" * 7,
    ]
    for side, m in found.items():
        typical = np.median(m.seconds)
        rate = flops / typical
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


def versions(sides: Sequence[str], *others: str) -> str:
    """Of the libraries of `sides`, `others` beside torch."""
    names = ["jax", "jaxlib"] + ["torch", *others] * (set(sides) != {"ours"})
    said = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return f"{said}, Python {platform.python_version()}"


def ratios(found: dict[str, Measured]) -> list[str]:
    """Lines of how often ours is as fast as each."""
    seconds = {side: float(np.median(m.seconds)) for side, m in found.items()}
    rivals = {side: s / seconds["ours"] for side, s in seconds.items() if "ours" in seconds}
    lines = [
        f"ours / {side}: " + (f"{rivals[side]:.2f}×" if side in rivals else "not measured")
        for side in SIDES[1:]
    ]
    if set(SIDES) <= set(rivals):
        lines += [f"ours / the better of both: {min(rivals[side] for side in SIDES[1:]):.2f}×"]
    return lines


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=tuple(FAMILIES), default="bagel")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: gpu if there is one")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--quick", action="store_true", help="tiny, on CPU: does it run?")
    parser.add_argument("--json", help="also writes the figures there")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = options()
    args = parser.parse_args(argv)
    if args.serve:
        return serve(*args.serve)

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    family, here = FAMILIES[args.family], jax.default_backend()
    device = "cpu" if args.quick else args.device or here
    if device == "gpu" != here:
        raise SystemExit(f"jax runs on {here}, not on a GPU")
    size, sides = "quick" if args.quick else device, args.sides.split(",")
    if size not in family.WORK:
        parser.error(f"--family {args.family} is not measured on a {device}")
    if unknown := set(sides) - set(SIDES):
        parser.error(f"--sides: {unknown} are none of {SIDES}")
    if importlib.util.find_spec("torch") is None:
        print('PyTorch is not installed (pip install -e ".[bench]"): not measured.\n')
        sides = ["ours"]

    before, work, found = inference.machine(), family.WORK[size], {}
    for group in [sides] if device == "cpu" else [[side] for side in sides]:
        found |= measure(args.family, size, group, args.repeats)
    worst, flops, said = compare(work, found), family.flops(work), versions(sides, *family.BESIDE)
    what = (
        f"{args.family}, {work.llm.hidden} wide, {work.llm.layers} layers, "
        f"{param_tree.count(family.specs(work)):.3g} parameters trained, "
        f"{work.tokens} tokens in {work.samples} samples, {work.dtype}"
    )
    best = max(m.peak for m in found.values())
    print(f"{what}; {flops / 1e9:.0f} GFLOP a step, peak {best / 1e9:.0f} GFLOP/s;")
    print(f"{before} to {os.getloadavg()[0]:.1f}; {said}.")
    if len(sides) > 1:
        print(f"Losses and norms of {CHECKED} steps differ by {worst:.1e} at most (relative).")
    print("\n".join(["", table(work, flops, found), "", *ratios(found)]))
    if device == "cpu":
        print("on a GPU: not measured")
    if args.json:
        each = {side: dataclasses.asdict(m) for side, m in found.items()}
        made = dict(what=what, machine=before, versions=said, flops=flops, tokens=work.tokens)
        made |= dict(peak=best, differ=worst, sides=each)
        pathlib.Path(args.json).write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
