"""Where metrics go: one JSON object a line in a file, and a progress bar with the time left.

On demand to TensorBoard and Weights & Biases as well: the only file that knows those packages. Also
what machines are measured by: peak speed and peak memory.
"""

import hashlib
import importlib
import json
import math
import netrc
import os
import tempfile
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
from absl import logging
from etils import epath

from srum_jax.config import LogConfig
from srum_jax.core import console, files, memory
from srum_jax.core.errors import BadInput

# What of a row two equal runs may differ in.
CLOCKS = (
    "seconds",
    "data_wait_seconds",
    "data_wait_share",
    "tokens_per_second",
    "flops_utilisation",
    "peak_memory_gib",
)
# Dense bfloat16 peak of one device in TFLOP/s, as vendors state it, by a part of its name; the
# first that fits counts.
PEAKS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v6": 918.0,
    "TPU7x": 1153.0,  # a chip is two devices
}


def peak_flops(kind: str) -> float | None:
    """Peak of one device of this `device_kind`, in FLOP/s; None where it is not known."""
    found = (peak for name, peak in PEAKS.items() if name.lower() in kind.lower())
    return next((peak * 1e12 for peak in found), None)


def peak_memory_gib() -> float:
    """The most memory held so far: of the fullest device here; on CPUs, of this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return (max(peaks) if peaks else memory.peak()) / 2**30


class Sink(Protocol):
    """Where rows go besides the file."""

    @staticmethod
    def available() -> None:
        """Raises BadInput where its package or its key is missing."""

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """One row of finite numbers."""

    def close(self) -> None:
        """Called once, at the end."""


class TensorBoard(Sink):
    """Event files under tensorboard/ in `folder`."""

    def __init__(self, folder: epath.Path, title: str):
        _check_package("tensorboard", "tensorboardX")
        import tensorboardX

        self.writer = tensorboardX.SummaryWriter(str(folder / "tensorboard"))

    @staticmethod
    def available() -> None:
        """See `Sink`."""
        _check_package("tensorboard", "tensorboardX")

    def write(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Wandb(Sink):
    """A run of Weights & Biases, named by its folder: a resumed run goes on there.

    Its project is `WANDB_PROJECT` of the environment, else "srum_jax".
    """

    def __init__(self, folder: epath.Path, title: str):
        _check_package("wandb", "wandb")
        import wandb

        name = str(files.absolute(folder))
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "srum_jax",
            name=f"{title} {name}",
            id=hashlib.sha256(name.encode()).hexdigest()[:16],
            resume="allow",
            # Its own files lie on a disk of this machine.
            dir=tempfile.mkdtemp() if files.is_remote(name) else name,
        )

    @staticmethod
    def available() -> None:
        """See `Sink`. Without a connection: `WANDB_MODE=offline`."""
        _check_package("wandb", "wandb")
        if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
            return
        host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
        if not (os.environ.get("WANDB_API_KEY") or _in_netrc(host.hostname or "")):
            raise BadInput(
                'log.writers names "wandb", and there is no key for it: give `wandb login`, set '
                "WANDB_API_KEY, or set WANDB_MODE=offline"
            )

    def write(self, step: int, row: Mapping[str, float]) -> None:
        self.run.log(dict(row), step=step)

    def close(self) -> None:
        self.run.finish()


def _check_package(writer: str, package: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as e:
        raise BadInput(
            f'log.writers names "{writer}", whose package is not installed: pip install {package}'
        ) from e


def _in_netrc(host: str) -> bool:
    """Whether the user's netrc has a password for `host`."""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


SINKS = {"tensorboard": TensorBoard, "wandb": Wandb}


def sinks(log: LogConfig, folder: epath.PathLike, title: str) -> list[Sink]:
    """What `log.writers` of the config names, for a stage's folder.

    Raises BadInput where its package is missing.
    """
    return [SINKS[name](epath.Path(folder), title) for name in log.writers]


class Writer:
    """Appends rows to `path` (JSONL) and shows the latest in a progress bar on stderr.

    Resuming at `start` drops rows of later steps first, so that no step stands twice. Rows go to
    `sinks` too, which are closed with it. A `silent` one does nothing: another process of the run
    writes.
    """

    def __init__(
        self,
        path,
        *,
        steps: int,
        start: int,
        title: str,
        silent: bool = False,
        sinks: Sequence[Sink] = (),
    ):
        self.path, self.file, self.sinks = epath.Path(path), None, sinks
        self.timed = False
        self.bar = console.progress(
            total=steps, initial=start, desc=title, unit="step", shown=not silent
        )
        if silent:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [r for r in read(self.path) if r["step"] <= start] if self.path.exists() else []
        self.file = files.GrowingText(self.path, "".join(json.dumps(r) + "\n" for r in rows))

    def advance(self, step: int) -> None:
        """Moves the bar to `step` finished steps."""
        if self.timed:
            self.bar.update(step - self.bar.n)
            return
        # The first step takes as long as compiling: the bar measures from its end.
        self.timed, self.bar.n = True, step
        self.bar.initial = self.bar.last_print_n = step
        self.bar.unpause()
        self.bar.refresh()

    def write(self, row: Mapping[str, float]) -> None:
        """One row; a number that is not finite is written as a string ("nan"), as JSON has none."""
        if self.file is None:
            return
        clean = {
            k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in row.items()
        }
        self.file.append(json.dumps(clean) + "\n")
        for sink in self.sinks:
            sink.write(row["step"], {k: v for k, v in row.items() if k != "step"})
        named = {k: f"{v:.4g}" for k, v in row.items() if k in ("loss", "ce", "mse", "accuracy")}
        shown = {k: v for k, v in named.items() if k == "loss" or v != named.get("loss")}
        self.bar.set_postfix(shown, refresh=False)

    def sync(self) -> None:
        """Returns when the rows so far outlive this process."""
        if self.file is not None:
            self.file.sync()

    def close(self) -> None:
        """Closes the file, the sinks and the bar."""
        if self.file is not None:
            self.file.close()
        for sink in self.sinks:
            sink.close()
        self.bar.close()


def read(path: epath.PathLike) -> list[dict]:
    """Rows of a metrics file. A line that is no object with a "step" is left out: with a warning
    naming file and line, except for a torn last one (of a run that was killed or lost its power:
    after that zeros may stand in the place of the last ones).
    """
    lines = epath.Path(path).read_bytes().rstrip(b"\0").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            int(row["step"])
        except (ValueError, KeyError, TypeError) as e:
            if number < len(lines):
                logging.warning("%s, line %d: damaged, left out (%r)", path, number, e)
            continue
        rows.append(row)
    return rows
