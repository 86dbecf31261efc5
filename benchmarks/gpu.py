"""A GPU in twelve minutes: training step, sampler and writer beside PyTorch, one after the other.

Runs `train_step.py` and `inference.py` one after the other, each in a process of its own, on 4
layers of BAGEL-7B-MoT (2.4 B parameters are trained; 3.4 B with the vision tower and the head) in
bfloat16. What a step found is in its file, and printed, before the next one starts: whatever goes
wrong later, earlier figures stay. A step that takes longer than its share is ended; one that finds
too little time left is not begun.

    pip install -e ".[gpu,bench]"
    python benchmarks/gpu.py --folder DIR [--minutes 12] [--quick]

Targets: half of the measured bfloat16 peak in the training step, and 1.3 times the better PyTorch.
--quick runs the same steps with tiny models on the CPU, which says that they run.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

HERE = pathlib.Path(__file__).parent
SHARE, TIMES = 0.5, 1.3  # the targets: of the peak, and the better PyTorch's speed
LEAST = 30.0  # seconds that a step is worth starting for


@dataclasses.dataclass(frozen=True)
class Step:
    """A script with its arguments; quick: of a try on the CPU; limit: minutes at most."""

    name: str
    script: str
    arguments: Sequence[str]
    quick: Sequence[str]
    limit: float

    def command(self, file: pathlib.Path, quick: bool) -> list[str]:
        arguments = self.quick if quick else self.arguments
        return [sys.executable, str(HERE / self.script), *arguments, "--json", str(file)]


_SLICE = ("--device=gpu", "--model=random:slice", "--first_repeats=0", "--repeats=3")
_TINY = ("--first_repeats=0", "--repeats=1", "--steps=2", "--tokens=2", "--sides=ours")
STEPS = (
    Step("train", "train_step.py", ("--device=gpu", "--repeats=5"), ("--quick", "--repeats=1"), 5),
    Step(
        "draw",
        "inference.py",
        (*_SLICE, "--batches=1,4", "--token_batches=", "--steps=8"),
        (*_TINY, "--batches=1", "--token_batches="),
        4,
    ),
    Step(
        "write",
        "inference.py",
        (*_SLICE, "--batches=", "--token_batches=1,16", "--tokens=64"),
        (*_TINY, "--batches=", "--token_batches=1"),
        3,
    ),
)


def run(step: Step, folder: pathlib.Path, seconds: float, quick: bool) -> dict:
    """{"seconds", "why" it ended without figures or "", "found": what its file holds or None}."""
    file, begun, why = folder / f"{step.name}.json", time.monotonic(), ""
    file.unlink(missing_ok=True)
    # A session of its own, so that the processes that a script starts end with it.
    process = subprocess.Popen(step.command(file, quick), start_new_session=True)
    try:
        code = process.wait(seconds)
        why = f"ended with {code}" if code else ""
    except subprocess.TimeoutExpired:
        why = f"took more than {seconds:.0f} s"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = json.loads(file.read_text()) if file.exists() else None
    return {"seconds": round(time.monotonic() - begun, 1), "why": why, "found": found}


def verdicts(found: dict) -> list[str]:
    """What the file of the step `train` says about the targets."""
    median = {name: statistics.median(x["seconds"]) for name, x in found["sides"].items()}
    ours = median.pop("ours")
    share = found["flops"] / ours / found["peak"]
    said = [f"{100 * share:.0f} % of the measured peak: {_reached(share >= SHARE)}"]
    if median:
        times = min(median.values()) / ours
        said.append(f"{times:.2f} × the better PyTorch: {_reached(times >= TIMES)}")
    return said


def _reached(so: bool) -> str:
    return "reached" if so else "not reached"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="for the JSON files")
    parser.add_argument("--minutes", type=float, default=12, help="of all steps together")
    parser.add_argument("--quick", action="store_true", help="tiny models, on the CPU")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    end, records = time.monotonic() + 60 * args.minutes, {}
    for step in STEPS:
        left = end - time.monotonic()
        if left < LEAST:
            records[step.name] = {"seconds": 0.0, "why": "no time left", "found": None}
        else:
            print(f"{step.name}: {min(left, 60 * step.limit):.0f} s at most", flush=True)
            records[step.name] = run(step, args.folder, min(left, 60 * step.limit), args.quick)
        (args.folder / "gpu.json").write_text(json.dumps(records, indent=1) + "\n")
        took = records[step.name]
        print(f"{step.name}: {took['why'] or 'done'}, {took['seconds']:.0f} s\n", flush=True)
    if found := records["train"]["found"]:
        print("\n".join(verdicts(found)))
    if any(one["why"] for one in records.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
