"""The command line of `use`: commands, options, and what their values may be.

The sampler's options are the fields of `SampleConfig`, under the same names as in Python.
"""

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from srum_jax import config_history
from srum_jax.config import Config, SampleConfig
from srum_jax.core import registry
from srum_jax.core.checked import suggest
from srum_jax.core.errors import quoted

EXAMPLES = """\
examples (the default model is the small shapes base; --model DIR takes a BAGEL folder)
  %(prog)s generate --prompt "a red circle above a blue square" -o out --n 4
  %(prog)s generate --prompts prompts.txt -o out --best_of 8 --guidance 3
  %(prog)s answer --image out/0-0.png --question "What color is the circle?"
  %(prog)s answer --image a.png --image b.png --question "Is there a red square?"
  %(prog)s answer --video clip.gif --frames 8 --question "Is there a blue square?"
  %(prog)s caption out/0-0.png out/0-1.png --json
  %(prog)s edit --image out/0-0.png --instruction "remove the blue square" -o edited
  %(prog)s evaluate --suite list
  %(prog)s evaluate --suite pope --data shapes -o pope

Images that -o has already are not drawn again: after an interruption give the same command.
Exit codes: 0 ok, 2 bad input, 3 not enough device memory, 69 the bucket's storage is gone,
130 stopped, 141 nobody reads the output.
"""
# What each field of SampleConfig is; its default is the model's.
SAMPLER = {
    "size": "HxW in pixels, for example 768x1024",
    "steps": "Euler steps",
    "shift": "of timesteps",
    "guidance": "scale of text guidance; 1 is none",
    "image_guidance": "scale of image guidance; 1 is none",
    "guidance_interval": "times in which guidance acts, 1 is noise",
    "renorm": "none | global | channel | text_channel | batch",
    "renorm_min": "smallest factor of renorm",
    "batch": "images a compiled call",
    "temperature": "of tokens, where a model draws by tokens; 0: the likeliest",
    "top_k": "likeliest tokens that are drawn from; 0: all",
}


def parse(argv: Sequence[str], program: str) -> argparse.Namespace:
    """The options of a command line without the program's name, former names with a warning.

    Ends the process, with exit code 2 and a line that names what was meant, for wrong ones.
    """
    top = parser(program)
    options, unknown = top.parse_known_args(config_history.current_options(argv))
    if getattr(options, "stream", False) and options.json:
        top.error("--stream writes text as it comes: leave out --json")
    if options.command == "evaluate" and (wrong := _incomplete(options)):
        top.error(wrong)
    if unknown:
        (commands,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
        made = commands.choices[options.command]
        known = [name for action in made._actions for name in action.option_strings]
        hint = suggest(unknown[0].partition("=")[0], [n for n in known if n.startswith("--")])
        made.error(f"unrecognized arguments: {' '.join(unknown)}: {hint}")
    return options


def _incomplete(options: argparse.Namespace) -> str:
    """What `evaluate` was not told, or ""."""
    if options.parity:
        return "--parity: suites are asked as in a run, with none of the original's rounding"
    if options.suite == "list":
        return ""
    if options.rescore:
        return _of_no_use(options, "--rescore", ALONE)
    for name, value in (("--suite", options.suite), ("--data", options.data), ("-o", options.out)):
        if not value:
            return f"evaluate: {name} is missing (--suite list shows what there is)"
    if options.import_against and not options.imported:
        return "--import_against: give --import too"
    if options.imported:
        return _of_no_use(options, "--import", WITH_IMPORT)
    return ""


# What may be said beside --rescore, which reads a folder alone, and beside --import, which asks
# nobody: the model and its drawing may stand there, as in the command that drew.
ALONE = ("command", "json", "debug", "rescore", "model")
WITH_IMPORT = (
    *(*ALONE, *SAMPLER, "base", "adapter", "precision", "mesh", "window"),
    *("suite", "data", "out", "imported", "import_against", "limit", "seed", "think"),
)


def _of_no_use(options: argparse.Namespace, way: str, used: Sequence[str]) -> str:
    """Names the options that were given and would change nothing, or ""."""
    told = vars(options).items()
    given = [name for name, value in told if name not in used and value not in (None, False, 0, 1)]
    names = [name.replace("imported", "import") for name in given]
    return f"{way} reads what is there: leave out --{', --'.join(names)}" if names else ""


def sampler_options(options: argparse.Namespace) -> dict[str, Any]:
    """What was said of the sampler: fields of SampleConfig."""
    return {k: v for k in SAMPLER if (v := getattr(options, k, None)) is not None}


def parser(program: str = "python -m srum_jax.use") -> argparse.ArgumentParser:
    """All commands."""
    top = argparse.ArgumentParser(
        prog=program,
        description="Draw, answer, caption, edit and evaluate with a BAGEL model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _generate(_command(commands, "generate", "Draw images of prompts."))
    _answer(_command(commands, "answer", "Answer a question about images or a video."))
    _caption(_command(commands, "caption", "Describe images."))
    _edit(_command(commands, "edit", "Draw an image changed as told."))
    _evaluate(_command(commands, "evaluate", "Put a benchmark of the field to a model, or two."))
    return top


def _command(commands, name: str, what: str) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
    loading(made)
    made.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def loading(made: argparse.ArgumentParser, more: str = "") -> None:
    """Adds what says which model is loaded, and how; more: what else --model may be."""
    what = f"{_worlds()}, a folder, {more}or org/name[@revision] on the hub"
    made.add_argument("--model", default=Config.model, help=f"{what} (default: {Config.model})")
    made.add_argument("--base", metavar="DIR", help="folder with what --model lacks")
    made.add_argument("--adapter", metavar="DIR", help="a LoRA of PEFT's, merged into the weights")
    made.add_argument("--precision", choices=("float32", "bfloat16", "int8"))
    made.add_argument("--mesh", metavar="COPIESxDEVICES", help="of the weights (default: all)")
    made.add_argument("--parity", choices=("official",), help="as the original in everything")
    made.add_argument("--window", type=_count, help="tokens of a request with its answer")


def _worlds() -> str:
    return ", ".join(registry.WORLDS)


def _generate(made: argparse.ArgumentParser) -> None:
    _drawing(made, "size")
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", type=_text, help="what to draw")
    what.add_argument("--prompts", metavar="FILE", help=".txt, .json or .jsonl with many")
    made.add_argument("--best_of", type=_count, help="draw so many, keep the best by own score")
    made.add_argument("--from_image", metavar="FILE", help="begin from it instead of noise")
    made.add_argument("--start", type=int, default=0, help="the first step done of --from_image")


def _edit(made: argparse.ArgumentParser) -> None:
    _drawing(made)
    made.add_argument("--image", action="append", required=True, help="several: the last is edited")
    made.add_argument("--instruction", type=_text, required=True, help="what to change")


def _drawing(made: argparse.ArgumentParser, *more: str) -> None:
    made.add_argument("-o", "--out", required=True, metavar="DIR", help="folder of the images")
    made.add_argument("--n", type=_count, default=1, help="images of each (default: 1)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--negative", type=_text, help="what guidance leads away from")
    made.add_argument("--think", action="store_true", help="let the model plan in words first")
    made.add_argument("--progress", action="store_true", help="a bar of the steps on stderr")
    _sampler(made, *more)


def _sampler(made: argparse.ArgumentParser, *more: str) -> None:
    own = made.add_argument_group("the sampler, each by default as the model says")
    kinds = typing.get_type_hints(SampleConfig)
    for field in dataclasses.fields(SampleConfig):
        if field.name != "size" or "size" in more:
            how = _argument(field.name, kinds[field.name])
            own.add_argument(f"--{field.name}", help=SAMPLER[field.name], **how)


def _argument(name: str, kind: Any) -> dict[str, Any]:
    """How argparse reads a field of this type; what it may be says SampleConfig."""
    if name == "size":
        return {"type": _size}
    if typing.get_origin(kind) is tuple:
        return {"type": float, "nargs": 2, "metavar": ("FROM", "TO")}
    return {"type": {int: _count, float: float}.get(kind, str)}


def _answer(made: argparse.ArgumentParser) -> None:
    _writing(made)
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--question", type=_text)
    what.add_argument(
        "--messages", metavar="FILE", help=".json with the messages of a conversation"
    )
    made.add_argument("--image", action="append", default=[], help="may be given several times")
    made.add_argument("--video", help="a GIF, or with the extra [video] any film")
    made.add_argument("--frames", type=_count, default=8, help="taken evenly (default: 8)")
    made.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest words")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--think", action="store_true", help="let the model reason in words first")
    made.add_argument("--stream", action="store_true", help="show the words as they are written")


def _caption(made: argparse.ArgumentParser) -> None:
    _writing(made)
    made.add_argument("image", nargs="+", metavar="IMAGE")


def _evaluate(made: argparse.ArgumentParser) -> None:
    made.add_argument("--suite", help='a benchmark; "list" shows all, and what they need')
    made.add_argument("--data", metavar="PATH", help=f"its official files, or {_worlds()}")
    made.add_argument("-o", "--out", metavar="DIR", help="folder of results; goes on from there")
    made.add_argument("--against", metavar="DIR", help="a second model, on the same noise")
    made.add_argument("--limit", type=_count, help="so many items, evenly over categories")
    made.add_argument("--seed", type=_seed, default=0, help="of the noise and the choice of items")
    made.add_argument("--seeds", type=_count, default=1, help="draw from so many, --seed the first")
    made.add_argument("--think", action="store_true", help="let it plan or reason in words first")
    made.add_argument("--frames", type=_count, help="of each clip, in place of the benchmark's own")
    made.add_argument("--rescore", metavar="OUT", help="scores again, from the replies in OUT")
    how = dict(metavar="PATH", help="results of the official program, in place of a judge")
    made.add_argument("--import", dest="imported", **how)
    made.add_argument("--import_against", metavar="PATH", help="the same of the second model")
    judge = made.add_argument_group("the judge, where the benchmark needs one")
    names = ("self", "external", "none")
    judge.add_argument("--judge", action="append", choices=names, help="twice: both are asked")
    judge.add_argument("--judge_url", metavar="URL", help="of an OpenAI-compatible server")
    judge.add_argument("--judge_model", metavar="NAME", help="its name there")
    judge.add_argument("--judge_key_env", metavar="VARIABLE", help="that holds the key")
    _sampler(made, "size")


def _writing(made: argparse.ArgumentParser) -> None:
    made.add_argument("--max_tokens", type=_count, help="longest answer")


def _size(value: str) -> tuple[int, int]:
    height, x, width = value.lower().partition("x")
    if not (x and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{quoted(value)} is no HxW, for example 768x1024")
    return int(height), int(width)


def _count(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{quoted(value)} is no whole number from 1")
    return int(value)


def _seed(value: str) -> int:
    if not value.isdecimal() or int(value) >= 2**32:
        raise argparse.ArgumentTypeError(f"{quoted(value)} is no whole number from 0 to 2^32 - 1")
    return int(value)


def _text(value: str) -> str:
    if not value.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return value
