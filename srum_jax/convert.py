"""The command between the forms a model comes in, `srum convert`; `conversion.py` does the work."""

import argparse
import sys
import typing
from collections.abc import Sequence

from srum_jax.configs.base import ExportConfig
from srum_jax.core import console, ending

# What the stage `export` writes too. jax is imported after the arguments: help comes at once.
DTYPES, LAYOUTS = (
    typing.get_args(typing.get_type_hints(ExportConfig)[key]) for key in ("dtype", "layout")
)

DESCRIPTION = """\
Converts a model between a folder in the Hugging Face layout of BAGEL and an Orbax parameter tree,
and a Janus-Pro between its original layout and that of Hugging Face.

SOURCE may be
  a Hugging Face folder    ema.safetensors, model.safetensors or a sharded index, with its JSON
  an Orbax folder          params/, written by this command
  a run's train folder     round<R>/train of a run: the parameters it trained; the others, the JSON
                           files and the tokenizer come from --base, the weights it started from
"""
EXAMPLES = """\
examples
  %(prog)s BAGEL-7B-MoT bagel-orbax
  %(prog)s bagel-orbax BAGEL-again
  %(prog)s BAGEL-7B-MoT bagel-shards --to hf --layout sharded
  %(prog)s results/0000300 SRUM-BAGEL --to hf --dtype bfloat16 --base BAGEL-7B-MoT
  %(prog)s deepseek-ai/Janus-Pro-1B Janus-HF --to hf
  %(prog)s runs/mine/round0/train MINE --base BAGEL-7B-MoT

The whole model is held in the memory of this machine; accelerators are not used. Without --dtype
the values stay as they are. Exit codes: 0 ok, 2 bad input, 69 the bucket's storage is gone.
"""


def parser(program: str = "python -m srum_jax.convert") -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        program,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("source", metavar="SOURCE", help="folder to read")
    made.add_argument("target", metavar="TARGET", help="folder to write: new or empty")
    made.add_argument("--to", choices=("hf", "orbax"), help="default: the form SOURCE is not")
    made.add_argument("--base", metavar="DIR", help="Hugging Face folder with what SOURCE lacks")
    made.add_argument("--dtype", choices=DTYPES, help="of the model's values")
    made.add_argument(
        "--layout",
        choices=(*LAYOUTS, "multi_modality"),
        help="of the Hugging Face files; default: official; multi_modality: the original Janus's",
    )
    return made


def main(argv: Sequence[str], *, program: str = "python -m srum_jax.convert") -> int:
    """Runs a command line (without the program's name) and returns its exit code; in the help the
    program is called `program`."""
    options = parser(program).parse_args(argv)
    from srum_jax.conversion import convert

    console.say_failures_once()
    try:
        print(convert(**vars(options)))
    except Exception as raised:
        _, code = ending.told(raised)
        if code is None:
            raise
        return code
    return 0


if __name__ == "__main__":
    import jax

    jax.config.update("jax_platforms", "cpu")
    sys.exit(main(sys.argv[1:]))
