"""Seeded faults over all stages of a small run, each resumed; the end is an undisturbed run's.

`python tests/campaign.py FOLDER --faults 25 --seed 0` prints a table: fault, stage, exit code, what
was lost and what was made again. With --bucket the disturbed runs are in one, and its storage
fails too. A run is disturbed in one stage after the other until it is at its end.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import random
import re
import resource
import signal
import threading
import time

import buckets
import fsspec
import hosts
from etils import epath

from srum_jax.data import shards
from srum_jax.training import metrics

STAGES = ("generate", "score", "train", "evaluate", "export", "report")
ON_DISK = ("SIGKILL", "SIGTERM", "full disk")
IN_BUCKET = ("SIGKILL", "SIGTERM", *buckets.FAILURES)
CODES = {"SIGKILL": {-9, 0}, "SIGTERM": {75, 0}, "full disk": {2, 0}}  # 0: it had nothing to do
STORAGE_FAILS = (3.0, 60.0)  # seconds, at least and at most; gcsfs asks again for about 35
FULL = 64  # bytes that a file may still have on the full disk
UNFINISHED = re.compile(r"(^|/)\.|orbax-checkpoint-tmp|metrics\.jsonl")
# Files with times in them, or of records and parameters, which are compared as such.
NO_BYTES = re.compile(
    r"/(manifest|started)\.json$|metrics\.jsonl|train\.(array_rec|summar)|^/train/|^/adjust/params/"
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One fault: in which stage, how the run ended, and what that cost.

    lost: seconds of the stage's work that no whole file holds · again: whole shards and checkpoints
    of before the fault that the next run wrote once more.
    """

    fault: str
    stage: str
    code: int
    lost: float
    again: int

    def row(self):
        """Of the table."""
        return f"| {self.fault} | {self.stage} | {self.code} | {self.lost:.1f} | {self.again} |"


class Process:
    """A started command, of one process or several, and what they print: each line with its time,
    as it comes."""

    def __init__(self, command, processes=1):
        self.started = hosts.start(command, processes=processes)
        self.lines = [[] for _ in self.started]
        self.reads = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in zip(self.started, self.lines, strict=True)
        ]
        for thread in self.reads:
            thread.start()

    @staticmethod
    def _read(process, lines):
        for line in process.stdout:  # a pipe: a file would be full, too
            lines.append((time.time(), line))

    def stages(self):
        """(when it began, its name) of every stage so far, as the first process says."""
        lines = list(self.lines[0])
        found = [(at, re.search(r"stage \d of \d: (\w+)", line)) for at, line in lines]
        return [(at, match[1]) for at, match in found if match]

    def wait_for(self, stage, seconds):
        """Returns `seconds` after `stage` began, or when a process has ended: whether all run."""
        while all(process.poll() is None for process in self.started):
            began = [at for at, name in self.stages() if name == stage]
            if began and time.time() - began[0] >= seconds:
                return True
            time.sleep(0.02)
        return False

    def end(self):
        """Waits for its end; the exit code, one for all, and what was printed."""
        try:
            codes = {process.wait(hosts.PATIENCE) for process in self.started}
        finally:
            hosts.kill(self.started)
        for thread in self.reads:
            thread.join()
        printed = "".join(line for lines in self.lines for _, line in lines)
        assert len(codes) == 1, (codes, printed)
        return codes.pop(), printed


class Run:
    """A command in a work folder, which is given again and again until it is done."""

    def __init__(self, command, workdir, told=None, processes=1):
        self.command = [*command, "--workdir", workdir]
        self.workdir, self.told, self.processes = epath.Path(workdir), told, processes

    def disturb(self, fault, stage, seconds, lasts):
        """Gives the command; `seconds` after `stage` began comes the fault.

        lasts: seconds for which a storage fails. Returns (stage, exit code, seconds lost), or None
        where the command was done before.
        """
        process = Process(self.command, self.processes)
        if not process.wait_for(stage, seconds):
            code, printed = process.end()
            assert code == 0, printed
            return None
        (began, where), now = process.stages()[-1], time.time()
        if fault in buckets.FAILURES:
            buckets.fail(self.told, fault, lasts)
        for one in process.started:
            if fault == "full disk":
                resource.prlimit(one.pid, resource.RLIMIT_FSIZE, (FULL, FULL))
            elif fault not in buckets.FAILURES:
                one.send_signal(getattr(signal, fault))
        code, printed = process.end()
        if fault in buckets.FAILURES:
            self.told.unlink()
        if code == -signal.SIGTERM and "\nreport: " in printed:
            code = 0  # all was done, and Python on its way out
        assert code in CODES.get(fault, {0, 69}), (fault, code, printed)
        assert "Traceback" not in printed, printed
        if code == 0:
            return where, code, 0.0
        kept = max([at for at in self.whole(where).values() if at >= began], default=began)
        return where, code, max(0.0, now - kept)

    def whole(self, stage=""):
        """{path: when it was written} of whole files, of a stage or all, without logs."""
        storage, root = fsspec.core.url_to_fs(os.fspath(self.workdir / "round0" / stage))
        found = storage.find(root, detail=True)
        found = {path.removeprefix(root): info["mtime"] for path, info in found.items()}
        return {
            path: at if isinstance(at, float) else at.timestamp()
            for path, at in found.items()
            if not UNFINISHED.search(path)
        }

    def finish(self):
        """Goes to the end; seconds that every stage took."""
        process = Process(self.command, self.processes)
        code, printed = process.end()
        assert code == 0, printed
        began = process.stages()
        ends = [*(at for at, _ in began[1:]), time.time()]
        return {name: end - at for (at, name), end in zip(began, ends, strict=True)}


def handed_over(folder):
    """{path: bytes} of the files of a round that are the same whenever they are made."""
    storage, root = fsspec.core.url_to_fs(os.fspath(folder))
    paths = {path.removeprefix(root): path for path in storage.find(root)}
    return {
        name: storage.cat_file(path) for name, path in paths.items() if not NO_BYTES.search(name)
    }


def made_again(before, after):
    """How many shards and checkpoints were whole `before` and were written once more."""
    names = [path for path in before if "array_record" in path or "/checkpoints/" in path]
    return sum(after.get(path, before[path]) != before[path] for path in names)


def assert_same_ends(one, other):
    """Two work folders bit for bit: records of every stage, losses, exported parameters and other
    files that a stage leaves, results without times."""
    found = [handed_over(folder / "round0") for folder in (one, other)]
    assert found[0].keys() == found[1].keys()
    for path, content in found[0].items():
        assert content == found[1][path], path
    folders = [path.removesuffix("features.json") for path in found[0] if "features.json" in path]
    assert {"/generate/", "/score/"} <= set(folders) and len(folders) > 4  # evaluate's beside them
    for path in folders:
        pair = (list(shards.read(folder / f"round0{path}")) for folder in (one, other))
        hosts.assert_same(*pair, where=path)
    rows = [metrics.read(folder / "round0/train/metrics.jsonl") for folder in (one, other)]
    plain = [
        [{k: v for k, v in r.items() if k not in metrics.CLOCKS} for r in found] for found in rows
    ]
    assert plain[0] == plain[1]
    assert "/export/model/ema.safetensors" in found[0]
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    for found in results:
        del found["run"], found["stages"]
    assert results[0] == results[1]


def campaign(command, root, *, faults, seed, kinds, place=None, told=None):
    """Disturbs runs of `command` `faults` times; yields an Outcome each.

    command: without its work folder · place: where work folders go, if not in `root` · told: see
    `buckets.fail`. The faults are aimed at one stage after the other. One that did not end its run
    leaves nothing to disturb: the next one meets a new run. Every run must end as an undisturbed
    one in `root`/whole did.
    """
    rng, done, stages = random.Random(seed), 0, itertools.cycle(STAGES)
    whole = Run(command, root / "whole")
    takes = whole.finish()
    for number in itertools.count():
        run = Run(command, epath.Path(place or root) / f"disturbed-{number}", told)
        last, ended = None, False
        while not ended:
            before, found = run.whole(), None
            if done < faults:
                stage, fault = next(stages), rng.choice(kinds)
                seconds, lasts = rng.uniform(0, takes[stage]), rng.uniform(*STORAGE_FAILS)
                found = run.disturb(fault, stage, seconds, lasts)
            else:
                run.finish()
            if last:
                yield dataclasses.replace(last, again=made_again(before, run.whole()))
            last = found and Outcome(fault, *found, again=0)
            ended = last is None or last.code == 0
            done += last is not None
        if last:
            yield last
        assert_same_ends(whole.workdir, run.workdir)
        if done == faults:
            return


def main():
    """See the module."""
    import conftest  # noqa: F401  (programs are compiled, and kept, as for the other tests)
    import test_hosts

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=pathlib.Path)
    options.add_argument("--faults", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--bucket", action="store_true")
    options = options.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    command = test_hosts.command(options.folder, **test_hosts.QUICK)
    how = dict(faults=options.faults, seed=options.seed)
    print("| fault | stage | exit code | seconds lost | made again |\n|---|---|--:|--:|--:|")

    def tell(outcomes):
        for outcome in outcomes:
            print(outcome.row(), flush=True)

    if options.bucket:
        told = options.folder.absolute() / "fails.json"
        with buckets.emulator(told=told):
            tell(
                campaign(
                    command, options.folder, **how, kinds=IN_BUCKET, place="gs://runs", told=told
                )
            )
    else:
        tell(campaign(command, options.folder, **how, kinds=ON_DISK))
    print("every run ended as the undisturbed one")


if __name__ == "__main__":
    main()
