"""What the host's work of each stage costs as a run grows: time, memory and open files, no model.

Records are made as the stages make them, of random pictures and latents in place of what a model
would draw, and judged by a stand-in that answers at once; everything else is the stages' own code:
encoding and writing shards, reading and decoding them for the judge, choosing candidates, the
training set and its rows, the export as a data set, its reading by `ingest`, the check of the
judge's scores in `evaluate`. `plan` packs examples of BAGEL's sizes and needs no records.

Each stage runs in a process of its own at every count. Time is the processor's, of all threads,
imports apart: a busy machine changes it little. Memory is the largest resident set, imports
included, files the most that are open at a time. One candidate a prompt.

    python benchmarks/growth.py --folder DIR [--counts 1000,10000] [--plan 1000,1000000]
        [--size 256] [--stages generate,score,…] [--json FILE]

DIR takes about a record's size times the largest count: 0.17 MB at 256 pixels, 2.6 MB at 1024.
"""

import argparse
import dataclasses
import functools
import importlib
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from srum_jax.core import memory

SHARD = 64  # records, as a stage's shard has them
REGIONS, QUESTIONS = 6, 8  # of an image, as a judge finds and answers them
DIM = 64  # numbers in a latent token, of 16 pixels a side: BAGEL's
STEPS_OF = 1000  # candidates that are packed into rows, at most
STAGES = ("generate", "score", "choose", "rows", "export", "ingest", "evaluate", "calibration")


@dataclasses.dataclass(frozen=True)
class Workload:
    """A stage at work on `count` records of pictures of `size` pixels a side, below `folder`."""

    folder: pathlib.Path
    count: int
    size: int

    def work(self, stage: str) -> Callable[[], int]:
        """The stage's work, which gives the items that it took, with what it needs at hand."""
        if stage == "rows":
            return functools.partial(self.rows, self._training_set())
        return getattr(self, stage)

    def generate(self) -> int:
        """Encodes and writes shards, as they come from the sampler."""
        from srum_jax.data import shards
        from srum_jax.stages import draw_and_judge, shard_worker

        side = self.size // 16
        features = shards.candidate_features((side, side, DIM))
        sizes = shards.shard_sizes(self.count, SHARD)
        shard_worker.make_all(
            self.folder / "generate",
            "candidates",
            features,
            sizes,
            lambda ranges: (
                [self._drawn(i) for i in range(first, first + count)] for first, count in ranges
            ),
            title="generate",
            encode=draw_and_judge.encoded,
        )
        return self.count

    def score(self) -> int:
        """Reads and decodes every picture, writes scores, counts statuses, leaves examples."""
        from srum_jax.data import shards
        from srum_jax.rewards.boxes.proposers import FileProposer
        from srum_jax.stages import score
        from srum_jax.stages.judges import JudgePanel

        records = shards.read(self.folder / "generate")
        assert sum(1 for record in records.summaries() if record["prompt"]) == self.count
        panel = JudgePanel(_Judge(), (FileProposer({}),))
        score.score(records, self.folder / "score", self._config().score, panel)
        return self.count

    def choose(self) -> int:
        """All that `train` does before its first step."""
        self._training_set()
        return self.count

    def rows(self, examples: Any) -> int:
        """Packs rows of an epoch, whose latents are fetched for it."""
        from srum_jax.data import packing

        done, row = 0, 0
        while done < min(self.count, STEPS_OF):
            made = examples.row(row)
            packing.pack([made], examples.lanes, examples.layout, rewards=True)
            done, row = done + len(made), row + 1
        return done

    def export(self) -> int:
        """Writes the records as the released data set."""
        from srum_jax.data import shards, srum_dataset

        drawn, scored = (shards.read(self.folder / name) for name in ("generate", "score"))
        srum_dataset.write(self.folder / "export", drawn, scored, "grid")
        return self.count

    def ingest(self) -> int:
        """Opens that data set, fingerprints it, reads and checks every sample, plans its shards."""
        from srum_jax.data.srum_dataset import LINES, PICTURES, SrumDataset
        from srum_jax.stages import ingest

        folder = epath.Path(self.folder / "ingest")
        folder.mkdir(exist_ok=True)
        source = SrumDataset(self.folder / "export" / LINES, self.folder / "export" / PICTURES)
        key = source.digest(folder / "source.json")
        plan = ingest.planned(source, folder, key, self._config(), self._layout(), _words())
        return sum(map(len, plan.shards))

    def evaluate(self) -> int:
        """Reads candidates and scores against a verifier, which here looks at one pixel."""
        from srum_jax.data import shards
        from srum_jax.stages import verified

        drawn, scored = (shards.read(self.folder / name) for name in ("generate", "score"))
        verified.scores_section(drawn, scored, ("grid",), _Verifier())
        return self.count

    def calibration(self) -> int:
        """What the report shows of the judge."""
        from srum_jax.data import shards
        from srum_jax.stages import calibration

        calibration.calibration(shards.read(self.folder / "score"))
        return self.count

    def plan(self) -> int:
        """The order of an epoch of prompts of 5 to 190 tokens with images of three sizes."""
        from srum_jax.data import packing
        from srum_jax.data.schema import Lanes

        rng = np.random.default_rng(0)
        sizes = np.zeros((self.count, 6), np.int64)
        sizes[:, 0] = np.clip(rng.lognormal(2.6, 0.6, self.count).astype(int) + 4, 5, 190)
        sizes[:, 1] = rng.choice([1024, 1024, 1024, 4096, 576], self.count)
        sizes[:, 4], sizes[:, 5] = 1, rng.integers(0, 20, self.count)
        packing.plan(sizes, Lanes(256, 8192, 0, 0, 16, 32), seed=0, epoch=0)
        return self.count

    def _drawn(self, i: int) -> dict[str, Any]:
        rng = np.random.default_rng(i)
        side = self.size // 16
        coarse = rng.integers(0, 256, (side, side, 3), np.uint8).repeat(16, 0).repeat(16, 1)
        noise = rng.integers(
            0, 12, coarse.shape, np.uint8
        )  # what makes a PNG as large as a photo's
        return {
            "id": f"{i}-0",
            "prompt_id": i,
            "prompt": _prompt(i),
            "category": "any",
            "k": 0,
            "seed": i,
            "image": coarse // 2 + noise,
            "latent": rng.standard_normal((side, side, DIM), np.float32),
        }

    def _config(self) -> Any:
        from srum_jax import config
        from srum_jax.configs import base

        values = base.get_config()
        values.train.update(select="all", min_score=-1.0)
        values.train.lanes.update(und=512, gen=8 * (self.size // 16) ** 2, images=8, regions=8)
        return config.load(values)

    def _layout(self) -> Any:
        from srum_jax.data.schema import LayoutSizes

        return LayoutSizes(
            **dict(vocab=200, bos=0, eos=1, start_of_image=2, end_of_image=3),
            **dict(vit_patch=14, vit_side=70, vit_positions=70, token_pixels=16, token_dim=DIM),
            max_latent=self.size // 16,  # pictures stay as large as they are
        )

    def _training_set(self) -> Any:
        from srum_jax import programs
        from srum_jax.data import shards, sources
        from srum_jax.stages.selection import candidates, choose
        from srum_jax.stages.training_set import StoredArrays, TrainingSet

        cfg = self._config()
        drawn, scored = (shards.read(self.folder / name) for name in ("generate", "score"))
        stored = StoredArrays(drawn, scored, "grid")
        everything, _ = candidates(drawn.summaries(), scored, "grid")
        chosen, _ = choose(everything, cfg.train)
        lanes = programs.lanes(cfg.train)
        words, layout = sources.Prompts(_words()), self._layout()
        examples = TrainingSet(chosen, stored, words, lanes, layout, cfg.train, seed=0)
        assert len(examples.order.first)
        return examples


def _words() -> Any:
    from srum_jax.core import registry
    from srum_jax.data.tokenizer import Tokenizer

    return Tokenizer.from_folder(registry.base_folder("shapes"))


def _prompt(i: int) -> str:
    colours, shapes = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle", "cross")
    pairs = list(itertools.product(colours, shapes))
    (a, b), (c, d) = pairs[i % 16], pairs[i // 16 % 16]
    return f"a {a} {b} and a {c} {d}"


class _Judge:
    """A judge that answers at once."""

    def judge(self, proposed: Any, *, whole: bool = True, params: Any = None) -> list[Any]:
        """Judgements as a grid of regions has them."""
        from srum_jax.rewards.judge import OK, Judgement, RegionJudgement, SoftAnswer

        found = []
        for one in proposed.images:
            rng = np.random.default_rng(len(one.id) + int(one.image[0, 0, 0]))
            answers = tuple(SoftAnswer("colour", 0, 0.5, OK) for _ in range(QUESTIONS))
            regions = tuple(
                RegionJudgement((0, 0, 16, 16), score, OK, "", (), "grid", answers=answers)
                for score in rng.uniform(-1, 1, REGIONS)
            )
            found.append(Judgement(regions, rng.uniform(-1, 1), OK, {}, answers))
        return found


class _Verifier:
    def right(self, image: np.ndarray, prompt: str) -> bool:
        return bool(image[0, 0, 0] % 2)

    def region_right(self, image: np.ndarray, box: Sequence[float], prompt: str) -> bool:
        return bool(image[-1, -1, 0] % 2)


# -------------------------------------------------------------------------------------- measuring


def measured(workload: Workload, stage: str) -> dict[str, Any]:
    """Seconds, processor seconds, MiB and open files of a stage's work in this process, which has
    done nothing else."""
    import jax

    jax.devices()
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], len(os.listdir("/proc/self/fd")))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    work = workload.work(stage)
    start, worked = time.monotonic(), time.process_time()
    items = work()
    found = {"cpu_s": time.process_time() - worked, "s": time.monotonic() - start}
    done.set()
    watcher.join()
    return {
        "stage": stage,
        "count": workload.count,
        "items": items,
        "files": most[0],
        "rss_mib": memory.peak() / 2**20,
        **found,
    }


def in_a_process(workload: Workload, stage: str) -> dict[str, Any]:
    """`measured` in a process of its own, which begins with what is imported here."""
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: there.send(measured(workload, stage))
    )
    child.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        raise SystemExit(f"{stage} of {workload.count} failed, see above") from None
    finally:
        child.join()


def table(found: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: a line a stage and count; "x" is time an item beside the first count's."""
    lines = [
        "| stage | prompts | processor ms an item | x | largest memory, MiB | open files |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    first: dict[str, float] = {}
    for row in found:
        each = 1e3 * row["cpu_s"] / row["items"]
        ratio = each / first.setdefault(row["stage"], each)
        lines.append(
            f"| {row['stage']} | {row['count']:,} | {each:.3g} | {ratio:.2f} "
            f"| {row['rss_mib']:.0f} | {row['files']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--counts", default="1000,10000")
    parser.add_argument("--plan", default="1000,10000,100000,1000000")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--stages", default=",".join(STAGES), help="each needs those before it")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    importlib.import_module("srum_jax.stages.train")  # with all that stages need; no device yet
    importlib.import_module("tensorflow_datasets")
    found = []
    for count in map(int, filter(None, options.plan.split(","))):
        found.append(in_a_process(Workload(options.folder, count, options.size), "plan"))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    for count in map(int, filter(None, options.counts.split(","))):
        workload = Workload(options.folder / str(count), count, options.size)
        for stage in options.stages.split(","):
            found.append(in_a_process(workload, stage))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        shutil.rmtree(workload.folder)
    found.sort(
        key=lambda row: ("plan", *STAGES).index(row["stage"])
    )  # stable: counts stay in order
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps({"size": options.size, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
