"""The model in use, from the shell: draw, answer, caption, edit.

Results on stdout, logs on stderr. What was drawn is kept batch by batch: the same command goes on.
Inputs are read before the model is.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from absl import flags

from srum_jax import drawn_folder
from srum_jax.config import Config
from srum_jax.core import console, ending, files, places, registry
from srum_jax.core.errors import BadInput, DoesNotFit, quoted

# jax and what needs it are imported after the arguments: help, and errors in them, come at once.

EXAMPLES = """\
examples (the default model is the small shapes base; --model DIR takes a BAGEL folder)
  %(prog)s generate --prompt "a red circle above a blue square" -o out --n 4
  %(prog)s generate --prompts prompts.txt -o out --best_of 8 --cfg 3
  %(prog)s answer --image out/0-0.png --question "What color is the circle?"
  %(prog)s answer --image a.png --image b.png --question "Is there a red square?"
  %(prog)s answer --video clip.gif --frames 8 --question "Is there a blue square?"
  %(prog)s caption out/0-0.png out/0-1.png --json
  %(prog)s edit --image out/0-0.png --instruction "remove the blue square" -o edited

Images that -o has already are not drawn again: after an interruption give the same command.
Exit codes: 0 ok, 2 bad input, 3 not enough device memory, 69 the bucket's storage is gone,
130 stopped, 141 nobody reads the output.
"""
CLOSED_PIPE = 141  # 128 + SIGPIPE, what a shell says of other programs too


def parser(program: str = "python -m srum_jax.use") -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog=program,
        description="Draw, answer, caption and edit with a BAGEL model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, what: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
        names = ", ".join(registry.WORLDS)
        made.add_argument(
            "--model", default=Config.model, help=f"{names}, or a folder (default: {Config.model})"
        )
        made.add_argument("--base", metavar="DIR", help="folder with what --model lacks")
        made.add_argument("--precision", choices=("float32", "bfloat16", "int8"))
        made.add_argument("--window", type=_count, help="tokens of a request with its answer")
        made.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
        made.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return made

    def drawing(made: argparse.ArgumentParser) -> None:
        made.add_argument("-o", "--out", required=True, metavar="DIR", help="folder of the images")
        made.add_argument("--n", type=_count, default=1, help="images of each (default: 1)")
        made.add_argument("--seed", type=int, default=0)
        made.add_argument("--steps", type=_count, help="Euler steps (default: the model's)")
        made.add_argument("--cfg", type=float, dest="guidance", help="text guidance scale")
        made.add_argument("--image_cfg", type=float, dest="image_guidance", help="image guidance")
        made.add_argument("--renorm", help="none | global | channel | text_channel | batch")
        made.add_argument("--shift", type=float, help="of timesteps")
        made.add_argument("--batch", type=_count, help="images a compiled call")
        made.add_argument("--think", action="store_true", help="let the model plan in words first")

    def writing(made: argparse.ArgumentParser) -> None:
        made.add_argument("--max_tokens", type=_count, help="longest answer")

    one = command("generate", "Draw images of prompts.")
    drawing(one)
    what = one.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", type=_text, help="what to draw")
    what.add_argument("--prompts", metavar="FILE", help=".txt, .json or .jsonl with many")
    one.add_argument("--size", type=_size, help="HxW in pixels, for example 768x1024")
    one.add_argument("--best_of", type=_count, help="draw so many, keep the best by own score")

    one = command("answer", "Answer a question about images or a video.")
    writing(one)
    one.add_argument("--question", type=_text, required=True)
    one.add_argument("--image", action="append", default=[], help="may be given several times")
    one.add_argument("--video", help="a GIF, or with the extra [video] any film")
    one.add_argument("--frames", type=_count, default=8, help="taken evenly (default: 8)")
    one.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest words")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--think", action="store_true", help="let the model reason in words first")

    one = command("caption", "Describe images.")
    writing(one)
    one.add_argument("image", nargs="+", metavar="IMAGE")

    one = command("edit", "Draw an image changed as told.")
    drawing(one)
    one.add_argument("--image", action="append", required=True, help="several: the last is edited")
    one.add_argument("--instruction", type=_text, required=True, help="what to change")
    return top


def _size(value: str) -> tuple[int, int]:
    height, x, width = value.lower().partition("x")
    if not (x and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{quoted(value)} is no HxW, for example 768x1024")
    return int(height), int(width)


def _count(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{quoted(value)} is no whole number from 1")
    return int(value)


def _text(value: str) -> str:
    if not value.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return value


def main(argv: Sequence[str], *, program: str = "python -m srum_jax.use") -> int:
    """Runs a command line (`argv[0]` is the program) and returns its exit code; in the help the
    program is called `program`."""
    options = parser(program).parse_args(argv[1:])
    flags.FLAGS.mark_as_parsed()  # absl's logging asks for it
    console.log_to_stderr(debug=options.debug)
    console.say_everything()
    try:
        with contextlib.closing(_COMMANDS[options.command](options)) as results:
            return _shown(results, as_json=options.json)
    except KeyboardInterrupt:
        return _failed("stopped; what was drawn is kept", 130)
    except BrokenPipeError:  # who reads our results has gone, as `head` does
        return CLOSED_PIPE
    except Exception as e:
        if "RESOURCE_EXHAUSTED" in str(e):  # what jax raises has no type of its own
            how = "a smaller --batch, --size or --window, or --precision int8"
            e = DoesNotFit(f"the device's memory is full: try {how}")
        _, code = ending.told(e, debug=options.debug)
        if code is None:
            raise
        return code


def _shown(results: Iterable[dict[str, Any]], *, as_json: bool) -> int:
    """Prints results as they come and returns the exit code: BadInput's where one has an error."""
    code = 0
    for result in results:
        if "error" in result:
            code = _failed(result["error"], BadInput.exit_code)
            continue
        try:
            print(json.dumps(result) if as_json else _line(result), flush=True)
        except OSError:
            console.close_stdout()
            raise
    return code


def _failed(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _line(result: dict[str, Any]) -> str:
    """For people: where the image is, or what was written; with several images, of which."""
    if "file" in result:
        return f"{result['file']}: {result['prompt']}"
    text = result["text"] + ("" if result["finished"] else " …")
    if result["thought"]:
        return f"thought: {result['thought']}\nanswer: {text}"
    return f"{result['image']}: {text}" if "image" in result else text


def _load(options: argparse.Namespace):
    from srum_jax import api

    console.cache_compiled_programs()
    window = {} if options.window is None else {"window": options.window}
    return api.load(options.model, precision=options.precision, base=options.base, **window)


def _described(options: argparse.Namespace):
    """The model without its weights: what it cannot read is refused before they are loaded."""
    from srum_jax import description

    window = {} if options.window is None else {"window": options.window}
    return description.describe(options.model, options.base, **window)


def _sample(options: argparse.Namespace) -> dict[str, Any]:
    """What was said of the sampler."""
    keys = ("size", "steps", "guidance", "image_guidance", "renorm", "shift", "batch")
    return {k: v for k in keys if (v := getattr(options, k, None)) is not None}


def _generate(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from srum_jax.data import prompts
    from srum_jax.generation.image_sampler import candidate_seed

    folder, about = _out(options), _described(options)
    reader = about.prompt_reader(options.think)
    if options.prompts:
        found = prompts.load(options.prompts, reader=reader)
    else:
        text = about.generation_config.prompt(options.prompt)
        found = (prompts.Prompt(0, text, prompts.NO_CATEGORY, "--prompt"),)
    prompts.check(found, reader)
    jobs = [
        {"id": p.id, "k": k, "prompt": p.text, "seed": candidate_seed(options.seed, p.id, k)}
        for p in found
        for k in range(options.n)
    ]

    def draw(bagel, part, sample):
        return bagel.generate(
            [job["prompt"] for job in part],
            seeds=[job["seed"] for job in part],
            think=options.think,
            best_of=options.best_of,
            **sample,
        )

    yield from _drawn(options, folder, about, jobs, draw)


def _edit(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from srum_jax.data import images
    from srum_jax.generation.image_sampler import candidate_seed

    folder, about = _out(options), _described(options)
    shown = [images.load(_here(path)) for path in options.image]
    about.tokenizer.encode(about.generation_config.instruction(options.instruction))
    jobs = [
        {
            "id": 0,
            "k": k,
            "prompt": options.instruction,
            "seed": candidate_seed(options.seed, 0, k),
            "images": options.image,
            "pixels": [images.digest(one) for one in shown],
        }
        for k in range(options.n)
    ]
    for path in options.image:
        if any(_same(path, folder / drawn_folder.file_name(job)) for job in jobs):
            raise BadInput(f"{path} would be drawn over; name another folder with -o")

    def draw(bagel, part, sample):
        return bagel.edit(
            shown,
            options.instruction,
            n=len(part),
            seeds=[job["seed"] for job in part],
            think=options.think,
            **sample,
        )

    yield from _drawn(options, folder, about, jobs, draw)


def _here(path: str) -> str:
    """A picture's or a clip's path. Raises BadInput for one in a bucket."""
    if files.is_remote(path) and not places.fault(path):
        raise BadInput(f"{path} is in a bucket; fetch it first and name the file")
    return path


def _same(path: str, other: pathlib.Path) -> bool:
    return other.exists() and other.samefile(path)


def _out(options: argparse.Namespace) -> pathlib.Path:
    """The folder of -o. Raises BadInput for what is or can be none."""
    folder = pathlib.Path(os.fspath(places.place(options.out, "-o")))
    if files.is_remote(options.out):
        raise BadInput(f"-o {options.out} is in a bucket; name a folder on this machine")
    if folder.is_symlink() and not folder.exists():
        raise BadInput(f"-o {folder} is a link to {os.readlink(folder)}, which is not there")
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"-o {folder} is a file; name a folder")
    return folder


Draw = Callable[[Any, Sequence[dict], dict], Sequence]  # (model, jobs, settings) -> drawings


def _drawn(
    options: argparse.Namespace, folder: pathlib.Path, about, jobs: Sequence[dict], draw: Draw
) -> Iterator[dict[str, Any]]:
    """Draws what the records of `folder` do not have yet, batch by batch, each kept before the
    next. Raises BadInput where another process does the same there."""
    from srum_jax.core import lock
    from srum_jax.generation import generation_config

    sample = _sample(options)
    settings = getattr(about.generation_config, options.command)
    settings = dataclasses.asdict(
        generation_config.changed(settings, sample, where=options.command)
    )
    batch = settings.pop("batch")  # alone in changing nothing
    best_of = getattr(options, "best_of", None)  # edits have no score
    together = max(1, batch // (best_of or 1))
    if options.command == "edit":
        del settings["size"]
    with lock.held(folder):
        bagel = _load(options)
        how = {
            "model": options.model,
            "base": options.base,
            "weights": about.digest,
            "precision": bagel.precision,
            "think": options.think,
            "settings": settings,
            "best_of": best_of,
        }
        yield from drawn_folder.kept(
            folder,
            [job | how for job in jobs],
            together,
            lambda part: draw(bagel, part, sample),
        )


def _answer(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from srum_jax.data import images, video

    shown = [images.load(_here(path)) for path in options.image]
    film = None if options.video is None else video.frames(_here(options.video), options.frames)
    about = _described(options)
    about.tokenizer.encode(about.generation_config.question(options.question, bool(shown or film)))
    answer = _load(options).answer(
        options.question,
        shown,
        video=film,
        think=options.think,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
    )
    told = {"images": options.image} | ({"video": options.video} if film else {})
    yield {"question": options.question, **told, **dataclasses.asdict(answer)}


def _caption(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record of each picture, or {"error"} of one that cannot be read: the others are."""
    from srum_jax.data import images

    for path in options.image:
        if not os.path.isfile(path):
            images.load(_here(path))  # raises, saying why
    bagel = None
    batch = _described(options).generation_config.batch
    for first in range(0, len(options.image), batch):
        found: dict[int, Any] = {}
        part = options.image[first : first + batch]
        for place, path in enumerate(part):
            try:
                found[place] = images.load(_here(path))
            except ValueError as e:
                yield {"error": str(e)}
        if found:
            bagel = bagel or _load(options)
            answers = bagel.caption(list(found.values()), max_tokens=options.max_tokens)
            for place, answer in zip(found, answers, strict=True):
                yield {"image": part[place], **dataclasses.asdict(answer)}


_COMMANDS = {"generate": _generate, "answer": _answer, "caption": _caption, "edit": _edit}


if __name__ == "__main__":
    sys.exit(main(sys.argv))
