"""The command `srum`: what the package does, each by the module that owns it."""

import importlib
import sys
from collections.abc import Sequence

import srum_jax
from srum_jax.core.checked import suggest

HELP = """\
srum: a model draws images, scores them by its own understanding and learns from them.

  srum COMMAND [options]        srum COMMAND --help says more

Train
  run             the whole loop:    srum run --config shapes --workdir runs/shapes
  plan            fit, time, cost:   srum plan v5e:4x4 --config bagel_7b_srum --price 1.2
Use a model (the small shapes base, or --model DIR)
  generate        images of prompts: srum generate --prompt "a red circle" -o out
  edit            images, changed:   srum edit --image out/0-0.png --instruction "..." -o edited
  answer          a question:        srum answer --image out/0-0.png --question "..."
  caption         images:            srum caption out/0-0.png
  evaluate        by a benchmark:    srum evaluate --suite pope --data shapes -o pope
  serve           for others:        srum serve --port 8000
Files
  doctor          is a folder whole? srum doctor weights/BAGEL-7B-MoT
  convert         a model, between Hugging Face and Orbax folders
  export-dataset  a run's scored images, as the released SRUM data set
"""

USE = ("generate", "edit", "answer", "caption", "evaluate")
COMMANDS = ("run", "plan", *USE, "serve", "doctor", "convert", "export-dataset")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (without the program's name) and returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if argv[0] == "--version":
        print(f"srum_jax {srum_jax.__version__}")
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        print(f'error: "{command}" is no command: {suggest(command, COMMANDS)}', file=sys.stderr)
        return 2
    if command in USE:
        return _module("use").main(["srum", *argv], program="srum")
    if command == "plan" and rest and not rest[0].startswith("-"):
        rest = [*rest[1:], f"--plan={rest[0]}"]
    if command in ("run", "plan"):
        return _module("main").main([f"srum {command}", *rest], program=f"srum {command}")
    return _module(command.replace("-", "_")).main(rest, program=f"srum {command}")


def _module(name: str):
    """A module of the package: none is imported before its command is given."""
    return importlib.import_module(f"srum_jax.{name}")


if __name__ == "__main__":
    sys.exit(main())
