"""The model in use, from the shell: draw, answer, caption, edit, evaluate.

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

from srum_jax import drawn_folder, use_options
from srum_jax.core import console, ending, files, places
from srum_jax.core.errors import BadInput, DoesNotFit

# jax and what needs it are imported after the arguments: help, and errors in them, come at once.

CLOSED_PIPE = 141  # 128 + SIGPIPE, what a shell says of other programs too


def main(argv: Sequence[str], *, program: str = "python -m srum_jax.use") -> int:
    """Runs a command line (`argv[0]` is the program) and returns its exit code; in the help the
    program is called `program`."""
    options = use_options.parse(argv[1:], program)
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
            if "piece" in result:
                print(result["piece"], end="", flush=True)
            else:
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
    how = dict(precision=options.precision, base=options.base, mesh=options.mesh)
    return api.load(options.model, **how, **_told(options))


def _described(options: argparse.Namespace):
    """The model without its weights: what it cannot read is refused before they are loaded."""
    from srum_jax import description

    return description.describe(options.model, options.base, **_told(options))


def _told(options: argparse.Namespace) -> dict[str, Any]:
    """What was said of the model beside its folders."""
    given = {"window": options.window, "adapter": options.adapter, "parity": options.parity}
    return {name: value for name, value in given.items() if value is not None}


def _generate(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from srum_jax.data import images, prompts
    from srum_jax.generation.image_sampler import candidate_seed

    folder, about = _out(options), _described(options)
    begun = None if options.from_image is None else _image(about, options.from_image)
    start = {
        "from_image": options.from_image,
        "pixels": None if begun is None else images.digest(begun),
        "start": options.start or None,
    }
    reader = about.prompt_reader(options.think)
    if options.prompts:
        found = prompts.load(options.prompts, reader=reader)
    else:
        text = about.generation_config.prompt(options.prompt)
        found = (prompts.Prompt(0, text, prompts.NO_CATEGORY, "--prompt"),)
    prompts.check(found, reader)
    jobs = [
        {"id": p.id, "k": k, "prompt": p.text, "seed": candidate_seed(options.seed, p.id, k)}
        | start
        for p in found
        for k in range(options.n)
    ]

    def draw(bagel, part, sample):
        return bagel.generate(
            [job["prompt"] for job in part],
            seeds=[job["seed"] for job in part],
            negative=options.negative,
            think=options.think,
            best_of=options.best_of,
            from_image=begun,
            start=options.start,
            progress=options.progress,
            **sample,
        )

    yield from _drawn(options, folder, about, jobs, draw)


def _edit(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from srum_jax.data import images
    from srum_jax.generation.image_sampler import candidate_seed

    folder, about = _out(options), _described(options)
    shown = [_image(about, path) for path in options.image]
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
            negative=options.negative,
            think=options.think,
            progress=options.progress,
            **sample,
        )

    yield from _drawn(options, folder, about, jobs, draw)


def _image(about, path: str):
    """The pixels of a picture's file, as the model that is described reads them."""
    from srum_jax import inputs

    return about.reader.pixels(inputs.Shown(_here(path)))


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
    from srum_jax import inputs
    from srum_jax.core import lock

    sample, where = use_options.sampler_options(options), options.command
    own = getattr(about.generation_config, where)
    settings = dataclasses.asdict(inputs.sampling(None, own, sample, where, about.family.SAMPLER))
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
            "adapter": options.adapter,
            "weights": about.digest,
            "precision": bagel.precision,
            "think": options.think,
            "settings": settings,
            "best_of": best_of,
            "negative": options.negative,
            "parity": about.generation_config.parity or None,
        }
        yield from drawn_folder.kept(
            folder,
            [job | how for job in jobs],
            together,
            lambda part: draw(bagel, part, sample),
        )


def _answer(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of an answer; with --stream {"piece"} after {"piece"} of its text."""
    from srum_jax import inputs
    from srum_jax.data import video

    asked, about = options.question or _messages(options.messages), _described(options)
    shown = [_image(about, path) for path in options.image]
    film = None if options.video is None else video.frames(_here(options.video), options.frames)
    (request,) = inputs.requests(asked, "answer: a question")
    about.reader.question(request, shown, film, options.frames)  # refused before the weights come
    how = dict(
        video=film,
        think=options.think,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
    )
    if options.stream:
        for piece in _load(options).stream(asked, shown, **how):
            yield {"piece": piece}
        yield {"piece": "\n"}
        return
    answer = _load(options).answer(asked, shown, **how)
    told = {"images": options.image} | ({"video": options.video} if film else {})
    yield {"question": str(request), **told, **dataclasses.asdict(answer)}


def _messages(path: str) -> list:
    """The messages of a conversation, of a .json file. Raises BadInput naming it."""
    found = files.read_json(places.place(_here(path), "--messages"))
    if not (isinstance(found, list) and found and all(isinstance(x, dict) for x in found)):
        raise BadInput(f'{path}: must hold a list of messages, {{"role": …, "content": …}}')
    return found


def _caption(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record of each picture, or {"error"} of one that cannot be read: the others are."""
    about = _described(options)
    for path in options.image:
        if not os.path.isfile(path):
            _image(about, path)  # raises, saying why
    bagel = None
    batch = about.generation_config.batch
    for first in range(0, len(options.image), batch):
        found: dict[int, Any] = {}
        part = options.image[first : first + batch]
        for place, path in enumerate(part):
            try:
                found[place] = _image(about, path)
            except ValueError as e:
                yield {"error": str(e)}
        if found:
            bagel = bagel or _load(options)
            answers = bagel.caption(list(found.values()), max_tokens=options.max_tokens)
            for place, answer in zip(found, answers, strict=True):
                yield {"image": part[place], **dataclasses.asdict(answer)}


def _evaluate(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from srum_jax import use_evaluate

    console.cache_compiled_programs()
    yield from use_evaluate.run(options)


_COMMANDS = {
    "generate": _generate,
    "answer": _answer,
    "caption": _caption,
    "edit": _edit,
    "evaluate": _evaluate,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv))
