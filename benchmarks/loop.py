"""The loop of self-reward, ours against PyTorch as SRUM was released: a Markdown table by part.

A turn draws some images, scores each and trains on each once, as the release did (6,234 drawn, 309
steps of 16 samples). All sides do this from one folder's weights, for the same prompts:

 · "ours": images and questions in batches; scores are read off the probabilities of answers to the
   judge's questions (`rewards/logits.py`), as the configs do.
 · "ours, written": the same, but scores are written as in the release, and one answer more, about
   what the whole shows. Beside "ours" it shows what the read-out gives; beside PyTorch, what the
   speed does.
 · "PyTorch as released": one image and one question after the other, eagerly. Of each image it
   writes, with thinking first, an answer about the layout and one about all regions, and reads
   the scores in them.
 · "PyTorch batched": the same, all images in a call.

Drawing is from plain prompts. Regions are the four quarters of an image on all sides: who finds
them costs all the same. How long written answers are, and that what small models say is not looked
at, is as in `scoring.py`: ours, written in one batch, are all as long as the longest. Training
steps are those of the released loss, with a float32 AdamW over both experts; ours also averages the
weights and checks for bad numbers. The release encodes every image twice for a training step; here
both sides keep the latents that were drawn, which spares PyTorch two encodings.

Everything is in one process, in turn; times are medians. On a busy machine seconds say little, CPU
seconds something, with `OMP_NUM_THREADS=1`: PyTorch's threads wait for one another by spinning.
Before that a turn of each side compiles
and is compared: PyTorch must draw the same pixels from our noise (one level off at most) and have
the losses of our steps to 1e-3.

    python benchmarks/loop.py [--model shapes|DIR|random:small] [--repeats 3] [--json FILE]
"""

import argparse
import importlib.util
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

import inference
import jax
import numpy as np
import scoring
import train_step
from loop_sides import BATCHED, RELEASED, SIDES, Ours, Side, Theirs, Work, side  # noqa: F401

from srum_jax.models.bagel import model_config

PARTS = ("generate", "score", "train")
CLOCKS = ("seconds", "CPU seconds")  # the second of all cores together
Turn = dict[str, dict[str, float]]  # {clock: {part: what it took}}
RATIOS = (
    ("ours", RELEASED),
    ("ours, written", RELEASED),
    ("ours", BATCHED),
    ("ours, written", BATCHED),
    ("ours", "ours, written"),
)
TARGET = 5  # times PyTorch as released, end to end
LEVELS, CLOSE = 1, 1e-3  # largest difference of pixels, and of losses (relative)


# ------------------------------------------------------------------------------------ measurements


def turn(one: Side) -> Turn:
    """What every part of a turn took."""
    times = [_now()]
    drawn = one.generate()
    times.append(_now())
    scored = one.score(drawn.images)
    times.append(_now())
    one.train(drawn, scored)
    times.append(_now())
    taken = np.diff(times, axis=0).T.tolist()
    return {c: dict(zip(PARTS, t, strict=True)) for c, t in zip(CLOCKS, taken, strict=True)}


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def warm(running: dict[str, Side]) -> dict[str, float]:
    """A turn of every side; the largest differences of PyTorch's from ours {"pixels", "losses"}.

    Raises SystemExit where they are too large.
    """
    mine, worst = None, {"pixels": 0.0, "losses": 0.0}
    for one in running.values():
        if isinstance(one, Ours):
            drawn = one.generate()
            scored = one.score(drawn.images)
            given = one.noise(), one.draws(drawn, scored)
            mine = drawn, scored, one.train(drawn, scored), given
        elif mine is None:
            turn(one)
        else:
            drawn, scored, losses, (noise, draws) = mine
            same = one.generate(noise)
            one.score(same.images)
            found = np.array(one.train(drawn, scored, draws)) / losses - 1
            pixels = np.abs(same.images.astype(int) - drawn.images).max()
            worst["pixels"] = max(worst["pixels"], float(pixels))
            worst["losses"] = max(worst["losses"], float(np.abs(found).max()))
    if worst["pixels"] > LEVELS or not worst["losses"] < CLOSE:
        raise SystemExit(f"the sides do not compute the same: largest differences {worst}")
    return worst


def measured(running: dict[str, Side], repeats: int) -> dict[str, list[Turn]]:
    """Every turn of each side, the sides in turn."""
    found: dict[str, list] = {name: [] for name in running}
    for number in range(repeats):
        for name, one in running.items():
            found[name].append(turn(one))
            print(number, name, found[name][-1], file=sys.stderr, flush=True)
    return found


def medians(found: dict[str, list[Turn]], clock: str) -> dict[str, dict[str, float]]:
    """{side: {part or "all": what it took by the clock}}."""
    seconds = {}
    for name, turns in found.items():
        whole = [{**one[clock], "all": sum(one[clock].values())} for one in turns]
        seconds[name] = {k: float(np.median([t[k] for t in whole])) for k in (*PARTS, "all")}
    return seconds


def table(clock: str, seconds: dict[str, dict[str, float]]) -> str:
    ratios = [pair for pair in RATIOS if set(pair) <= set(seconds)]
    head = [clock, *seconds, *(f"{slow} / {fast}" for fast, slow in ratios)]
    lines = []
    for part in (*PARTS, "all"):
        cells = [f"{one[part]:.3g}" for one in seconds.values()]
        cells += [f"{seconds[slow][part] / seconds[fast][part]:.2f}×" for fast, slow in ratios]
        lines.append([part, *cells])
    return scoring.table(head, lines, 1)


def work_of(args: argparse.Namespace, made: str) -> Work:
    """The work that the command line asks for; makes the model in the folder `made` if need be."""
    folder, side = inference.folder_of(args.model, made)
    size = (args.size or side,) * 2
    return Work(folder, size, args.images, args.rows, args.steps, args.think)


def versions(sides: Sequence[str]) -> str:
    return train_step.versions([name.split(",")[0] for name in sides])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="shapes", help="as of inference.py")
    parser.add_argument("--size", type=int, help="pixels a side (default: the model's)")
    parser.add_argument("--images", type=int, default=16, help="a turn")
    parser.add_argument("--rows", type=int, default=4, help="images of a training step")
    parser.add_argument("--steps", type=int, default=16, help="of an image, all guided")
    parser.add_argument("--think", type=int, default=250, help="tokens before a written answer")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--sides", default=";".join(SIDES), help="separated by ;")
    parser.add_argument("--json", help="also writes the figures there")
    args = parser.parse_args(argv)
    sides = args.sides.split(";")
    if unknown := set(sides) - set(SIDES):
        parser.error(f"--sides: {unknown} are none of {SIDES}")
    if args.images % args.rows:
        parser.error("--images must be a multiple of --rows")
    if importlib.util.find_spec("torch") is None:
        print('PyTorch is not installed (pip install -e ".[bench]"): not measured.\n')
        sides = [name for name in sides if name.startswith("ours")]

    before = inference.machine()
    with tempfile.TemporaryDirectory() as made:
        work = work_of(args, made)
        sizes = model_config.from_folder(work.folder)
        running = {name: side(name, work) for name in sides}
        worst = warm(running)
        found = measured(running, args.repeats)
    what = (
        f"{args.model}, {sizes.llm.layers} layers of width {sizes.llm.hidden}; {args.images} "
        f"images of {work.size[0]}×{work.size[1]} pixels in {args.steps} guided steps, each "
        f"trained on once in steps of {args.rows}; written answers of {work.answers} tokens"
    )
    taken = {clock: medians(found, clock) for clock in CLOCKS}
    seconds = taken["seconds"]
    machine = f"{before} to {os.getloadavg()[0]:.1f}"
    print(f"{what}; {machine}; {versions(sides)}.")
    print(f"Largest differences from ours: {worst}.\n")
    for clock in CLOCKS:
        print(table(clock, taken[clock]), "\n")
    if {"ours", RELEASED} <= set(seconds):
        ratio = seconds[RELEASED]["all"] / seconds["ours"]["all"]
        verdict = "reached" if ratio >= TARGET else "not reached"
        print(f"{TARGET}× PyTorch as released, end to end: {verdict} ({ratio:.1f}×)")
    if args.json:
        record = dict(what=what, machine=machine, versions=versions(sides))
        record |= dict(differ=worst, medians=taken, turns=found)
        pathlib.Path(args.json).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", Work.devices)
    main()
