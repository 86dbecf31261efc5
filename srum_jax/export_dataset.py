"""One command that writes a run's scored candidates as the released SRUM data set is written.

A JSON line an image, with its prompt, boxes and scores, beside a folder of pictures
(`data/srum_dataset.py`): what the original code trains on, and what the stage `ingest` reads.
"""

import argparse
import sys
from collections.abc import Sequence

from srum_jax.core import console, ending, places
from srum_jax.core.errors import BadInput, Damaged

# jax and what needs it are imported after the arguments: help comes at once.

EXAMPLES = """\
example
  %(prog)s runs/shapes/round0 my-data
  python -m srum_jax.main --config configs/shapes.py --workdir runs/again \\
      --config.stages="('ingest','train','evaluate','report')" \\
      --config.ingest.source=published:my-data/data.jsonl --config.ingest.images=my-data/images
"""


def parser(program: str = "python -m srum_jax.export_dataset") -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        program,
        description="Writes a round's candidates and scores as the released SRUM data set.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("round", metavar="ROUND", help="a run's folder round<R>")
    made.add_argument("target", metavar="TARGET", help="folder to write: new or empty")
    made.add_argument("--proposer", help="whose regions; default: the first of the run")
    return made


def main(argv: Sequence[str], *, program: str = "python -m srum_jax.export_dataset") -> int:
    """Runs a command line (without the program's name) and returns its exit code; in the help the
    program is called `program`."""
    options = parser(program).parse_args(argv)
    console.say_failures_once()
    try:
        print(export(options.round, options.target, options.proposer))
    except Exception as raised:
        if isinstance(raised, Damaged):
            raised = BadInput(f"{raised}; remove it and give the run's command again")
        _, code = ending.told(raised)
        if code is None:
            raise
        return code
    return 0


def export(round_folder: str, target: str, proposer: str | None = None) -> str:
    """Writes a round's data set; what was written and left out, in a sentence.

    What fails leaves nothing. Raises as `srum_dataset.write` does, and BadInput for what is no
    path, a target that holds something, or a proposer that the run did not have.
    """
    from srum_jax.data import shards, srum_dataset
    from srum_jax.stages.manifest import Manifest

    folder, out = places.place(round_folder, "ROUND"), places.place(target, "TARGET")
    if (there := out.exists()) and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is there and not an empty folder: name another")
    manifest = Manifest.read(folder / "score")
    known = manifest.sections["score"]["proposers"]
    if (proposer or known[0]) not in known:
        raise BadInput(f"the run has regions of {', '.join(known)}, none of {proposer!r}")
    drawn, scored = shards.read(folder / "generate"), shards.read(folder / "score")
    try:
        counts = srum_dataset.write(out, drawn, scored, proposer or known[0])
    except BaseException:  # a part is not to be taken for the whole
        out.rmtree(missing_ok=True)
        if there:
            out.mkdir()
        raise
    return f"{out}: " + ", ".join(f"{count} {name}" for name, count in counts.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
