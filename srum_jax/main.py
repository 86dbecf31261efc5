"""The command line: reads the config, makes the mesh, runs the stages, exits with a code."""

import importlib
import os
import sys
from collections.abc import Sequence

import jax
from absl import flags, logging

from srum_jax import config
from srum_jax.core import console, preemption, sharding
from srum_jax.core.errors import BadInput, Stopped
from srum_jax.stages.manifest import Workdir

HELP = """\
srum_jax: a model draws images, scores them by its own understanding and learns from them.

  python -m srum_jax.main --config FILE.py[:ARG] --workdir DIR [options]

Options
  --config FILE.py[:ARG]    the run's config; every key is explained in configs/base.py
  --config.a.b=VALUE        another value for one key, after --config
  --workdir DIR             a folder or bucket for everything the run makes
  --stage NAME[,NAME]       only these stages: {stages}
  --allow_config_change     go on with finished work although the config changed since
  --distributed             join the other processes of a multi-host run
  --debug                   show the traceback of an error

Examples
  python -m srum_jax.main --config configs/shapes.py --workdir runs/shapes
  python -m srum_jax.main --config configs/shapes.py --workdir runs/short --config.train.steps=50
  python -m srum_jax.main --config configs/shapes.py --workdir runs/shapes --stage evaluate,report
  python -m srum_jax.main --config configs/shapes.py --workdir runs/two \\
      --config.score.proposers="('grid',)" --config.generate.prompts=prompts.txt

Finished stages are skipped and half-done ones go on: after an interruption give the same command.
Exit codes: 0 ok, 2 bad input, 3 plan does not fit, 4 stopped for bad numbers, 75 preempted after a
clean save.
"""

# Every stage, and the module whose run(cfg, mesh, work) -> Manifest it is.
STAGES = {
    "autoencoder": "srum_jax.stages.autoencoder",
    "pretrain": "srum_jax.stages.pretrain",
    "ingest": "srum_jax.stages.ingest",
    "generate": "srum_jax.stages.generate",
    "score": "srum_jax.stages.score",
    "train": "srum_jax.stages.train",
    "evaluate": "srum_jax.stages.evaluate",
    "export": "srum_jax.stages.export",
    "report": "srum_jax.stages.report",
}


def define_flags() -> flags.FlagValues:
    """The flags beside `--config`, in a set of their own."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_list("stage", None, "Only these stages.", flag_values=values)
    flags.DEFINE_boolean("allow_config_change", False, "Go on regardless.", flag_values=values)
    flags.DEFINE_boolean("distributed", False, "Several processes.", flag_values=values)
    flags.DEFINE_boolean("debug", False, "Show tracebacks.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> int:
    """Runs a command line (`argv[0]` is the program) and returns its exit code."""
    if len(argv) < 2 or {"--help", "-help", "-h"} & set(argv):
        print(HELP.format(stages=" ".join(STAGES)))
        return 0
    console.log_to_stderr()
    debug = "--debug" in argv
    try:
        report = run(argv)
    except (Stopped, ValueError, FileNotFoundError, NotADirectoryError, PermissionError) as e:
        if debug:
            logging.exception("traceback")
        print(f"error: {e}" + ("" if debug else "\n(--debug shows where)"), file=sys.stderr)
        return e.exit_code if isinstance(e, Stopped) else BadInput.exit_code
    if report:
        print(f"report: {report}")
    return 0


def run(argv: Sequence[str]) -> str | None:
    """Runs the stages and returns the path of the report, if that stage is among them."""
    options = define_flags()
    cfg = config.parse(argv, options)
    flags.FLAGS.mark_as_parsed()  # grain's worker processes ask for it
    wanted = options.stage or cfg.stages
    for name in wanted:
        if name not in STAGES:
            raise BadInput(f'--stage "{name}" is not known: {config.suggest(name, STAGES)}')
    stages = [name for name in STAGES if name in wanted]
    if not options.workdir:
        raise BadInput("no work folder: give --workdir DIR, for example --workdir runs/shapes")
    if os.path.isfile(options.workdir):
        raise BadInput(f"--workdir {options.workdir} is a file; name a folder")
    if options.distributed:
        jax.distributed.initialize()
    console.cache_compiled_programs(cfg.compute.cache_dir)
    _split_cpu(cfg.compute.cpu_devices)
    preemption.install()
    mesh = sharding.make_mesh(cfg.mesh)
    config.check_mesh(cfg, mesh.shape)
    for number in range(cfg.rounds):
        work = Workdir(
            options.workdir,
            number,
            options.allow_config_change,
            config_file=options["config"].config_filename,
        )
        for i, name in enumerate(stages):
            logging.info("round %d, stage %d of %d: %s", number, i + 1, len(stages), name)
            with jax.set_mesh(mesh):
                importlib.import_module(STAGES[name]).run(cfg, mesh, work)
    return str(work.report) if "report" in stages else None


def _split_cpu(count: int) -> None:
    if not count:
        return
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # called from a program that has used its devices already
        logging.info("devices are in use: compute.cpu_devices = %d has no effect", count)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
