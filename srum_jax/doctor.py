"""What a model folder is, what it lacks and what it needs, `srum doctor DIR`.

Everything wrong is told at once, by the checks of the loader. A folder with nothing wrong is then
loaded: it writes one token and takes one step of drawing.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags

from srum_jax.core import console, ending, places, registry
from srum_jax.core.errors import BadInput, DoesNotFit, listed

# jax and what needs it are imported after the arguments: help, and errors in them, come at once.

DESCRIPTION = """\
Says of a folder of weights what it is, what of it is missing or cannot be read, and what it needs
to run: bytes of its weights, of its cache a token, and the chips that hold them. Where nothing is
wrong it is loaded on this machine, writes one token and takes one step of drawing.
"""
EXAMPLES = """\
examples
  %(prog)s weights/BAGEL-7B-MoT
  %(prog)s weights/BAGEL-7B-MoT --headers     as fast as its headers are read: nothing is tried
  %(prog)s SRUM-BAGEL --base weights/BAGEL-7B-MoT

Exit codes: 0 the folder is whole, 2 it is not, or its numbers are not finite, 3 this device has too
little memory, 69 the bucket's storage is gone.
"""
PRECISIONS = ("float32", "bfloat16", "int8")
GIB = 2**30


def parser(program: str = "python -m srum_jax.doctor") -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        program,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    worlds = ", ".join(registry.WORLDS)
    made.add_argument("folder", metavar="DIR", help=f"a folder of weights, or {worlds}")
    made.add_argument("--base", metavar="DIR", help="folder with what DIR lacks")
    made.add_argument("--precision", choices=PRECISIONS, help="to try it in")
    made.add_argument("--headers", action="store_true", help="read no weights, only their headers")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def main(argv: Sequence[str], *, program: str = "python -m srum_jax.doctor") -> int:
    """Runs a command line (without the program's name) and returns its exit code; in the help the
    program is called `program`."""
    options = parser(program).parse_args(argv)
    flags.FLAGS.mark_as_parsed()  # absl's logging asks for it
    console.log_to_stderr(debug=options.debug)
    try:
        for line in _examined(options):
            print(line, flush=True)
    except Exception as e:
        if "RESOURCE_EXHAUSTED" in str(e):  # what jax raises has no type of its own
            e = DoesNotFit("this device's memory is full: try --precision int8")
        _, code = ending.told(e, debug=options.debug)
        if code is None:
            raise
        return code
    return 0


def _examined(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the report. Raises BadInput with all problems, DoesNotFit."""
    from srum_jax.generation import families

    folder, base = places.model_folders(options.folder, options.base)
    family = families.find(folder, base)
    cfg, stored, problems = family.examine(folder, base)
    name = family.__name__.rpartition(".")[2]
    known = any(family.recognises(place) for place in (folder, base) if place)
    told = "a model of the family" if known else "no model that is known, held against the family"
    yield f"{folder}: {told} {name}"
    if cfg is not None:
        yield from family.sizes(cfg)
        yield from _needs(family, cfg)
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise BadInput(f"{folder}: {count}{listed(problems)}")
    yield f"headers: every tensor is there, in its shape; {stored} holds every value"
    if not options.headers:
        yield from _tried(family, folder, base, cfg, options.precision)


def _needs(family, cfg) -> Iterator[str]:
    from srum_jax.planning import topology

    for precision in PRECISIONS:
        need = family.memory(cfg, precision)
        # As many tokens as the model can read, and a tenth for what its programs hold.
        gib = 1.1 * (need.least + need.token * cfg.max_text) / GIB
        held = ", ".join(map(str, topology.smallest(gib))) or "no kind that is known"
        where = " where there is room" if need.spared else ""
        yield (
            f"{precision}: weights {_bytes(need.weights)}, {_bytes(need.writing)} more while it "
            f"writes{where}, cache {_bytes(need.token)} a token; with {cfg.max_text} tokens held "
            f"by {held}"
        )
    yield "(by size; `srum plan` compiles a run's programs)"


def _bytes(count: int) -> str:
    units = ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
    unit, name = next(u for u in units if count >= u[0])
    return f"{count / unit:.1f} {name}"


def _tried(family, folder, base, cfg, precision: str | None) -> Iterator[str]:
    """Loads a model, has it write a token and take a step of drawing, each twice."""
    import jax
    import numpy as np

    from srum_jax import api
    from srum_jax.core import sharding
    from srum_jax.data.schema import Text
    from srum_jax.generation.image_request import ImageRequest

    on_cpu = jax.devices()[0].platform == "cpu"
    precision = precision or ("float32" if on_cpu else "bfloat16")
    need, room = family.memory(cfg, precision), sharding.memory(jax.devices()[0])
    if need.least > room:
        more = "" if need.spared else f", writing {_bytes(need.writing)} more"
        yield (
            f"not tried: its weights take {_bytes(need.weights)} in {precision}{more}, and this "
            f"device has {_bytes(room)}"
        )
        return
    start = time.monotonic()
    made = api.load(folder, base=base, precision=precision)
    yield f"loaded in {precision}: every number finite, {time.monotonic() - start:.1f} s"
    how = dict(params=made.params, model=made.cfg, tokenizer=made.tokenizer, dtype=made.dtype)
    how |= dict(window=made.cfg.max_text)
    most = made.cfg.layout.max_latent * made.cfg.layout.token_pixels
    size = tuple(min(side, most) for side in made.generation_config.generate.size)
    settings = dataclasses.replace(made.generation_config.generate, size=size, steps=1, batch=1)
    writer = made.family.TextGenerator(batch=1, **how)
    sampler = made.family.ImageSampler(vae_params=made.vae_params, settings=settings, **how)
    nothing = (Text(np.zeros(0, np.int32)),)
    yield _timed("one token", lambda: writer.generate([nothing], max_tokens=1))
    request = ImageRequest(nothing, size, seed=0)
    what = f"one step of drawing {size[0]}×{size[1]}"
    yield _timed(what, lambda: sampler.sample([request]))


def _timed(what: str, call: Callable[[], Any]) -> str:
    """Calls twice, as the first call compiles. Raises BadInput where a number is not finite."""
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        call()
        seconds.append(time.monotonic() - start)
    return f"{what}: finite, {seconds[0]:.1f} s with compiling, then {seconds[1]:.2f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
