"""The command line of a run: reads config and flags, hands them on, exits with a code."""

import importlib
import os
import sys
from collections.abc import Sequence

from absl import flags

from srum_jax import config
from srum_jax.core import console, ending, places
from srum_jax.core.errors import BadInput, Stopped

# jax and what needs it are imported after the arguments: help, and errors in them, come at once.

HELP = """\
srum_jax: a model draws images, scores them by its own understanding and learns from them.

  {program} --config FILE.py[:ARG] --workdir DIR [options]

Options
  --config FILE.py[:ARG]    the run's config, or the name of one in the package:
                            {configs}
                            (srum_jax/configs; base.py there explains every key)
  --config.a.b=VALUE        another value for one key, after --config
  --workdir DIR             a folder or bucket for everything the run makes; without --config the
                            run that began there goes on, with its config
  --stage NAME[,NAME]       only these stages: {stages}
  --plan TYPE:SHAPE         run nothing: say what it takes on such a machine, compile for it and say
                            whether it fits, as v5e:4x4, v5p:2x2x4, v6e:4x4, v4:2x2x4, h200:8,
                            h100:8, a100:8, l4:1, t4:1, rtx4090:1; no workdir, no device
  --plan_out FILE.json      the plan as JSON
  --utilisation SHARE       of the chips' peaks that is reached (0.4), for the time that is said by
                            --plan, by --check with --plan, and when a run starts
  --price NUMBER            of a chip-hour, in any currency: then cost is too
  --check                   run nothing: look at everything that can be known before the first hour
                            is spent, say all problems at once, and what will be written; with
                            --plan rows are held against that machine's chips too
  --allow_config_change     go on with finished work although the config changed since
  --distributed             join the other processes of a run on several hosts, as a TPU pod, SLURM,
                            Open MPI or Kubernetes describes it; where nothing does, instead:
  --coordinator HOST:PORT --processes N --process I   process 0's address, how many, which (from 0)
  --quiet                   no progress: warnings, errors and the report's path alone
  --debug                   show the traceback of an error, and other packages' warnings

Examples
  {program} --config shapes --workdir runs/shapes
  {program} --config shapes --workdir runs/short --config.train.steps=50
  {program} --config shapes --workdir runs/shapes --stage evaluate,report
  {program} --config shapes --workdir runs/two \\
      --config.score.proposers="('grid',)" --config.generate.prompts=prompts.txt
  srun {program} --config my_run.py --workdir /shared/run --distributed
  {program} --config bagel_7b_srum --plan v5e:4x4

Finished stages are skipped and half-done ones go on: after an interruption give the same command,
or {program} --workdir DIR alone.
Ctrl-C saves and stops; a second one ends at once.
Exit codes: 0 ok, 2 bad input, 3 plan does not fit, 4 stopped for bad numbers, 69 another process of
the run, the bucket's storage or a damaged file is gone, 75 stopped after a clean save, 130
interrupted twice.
"""


def define_flags() -> flags.FlagValues:
    """The flags beside `--config`, in a set of their own."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_list("stage", None, "Only these stages.", flag_values=values)
    flags.DEFINE_string("plan", None, "Where it would fit.", flag_values=values)
    flags.DEFINE_string("plan_out", None, "The plan as JSON.", flag_values=values)
    flags.DEFINE_float("utilisation", None, "Share of peaks reached.", flag_values=values)
    flags.DEFINE_float("price", None, "Of a chip-hour.", flag_values=values)
    flags.DEFINE_boolean("check", False, "Say all problems.", flag_values=values)
    flags.DEFINE_boolean("allow_config_change", False, "Go on regardless.", flag_values=values)
    flags.DEFINE_boolean("distributed", False, "Several processes.", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.", flag_values=values)
    flags.DEFINE_integer("processes", None, "How many there are.", flag_values=values)
    flags.DEFINE_integer("process", None, "Which this is.", flag_values=values)
    flags.DEFINE_boolean("quiet", False, "No progress.", flag_values=values)
    flags.DEFINE_boolean("debug", False, "Show tracebacks.", flag_values=values)
    return values


def main(argv: Sequence[str], *, program: str = "python -m srum_jax.main") -> int:
    """Runs a command line (`argv[0]` is the program) and returns its exit code; in the help the
    program is called `program`."""
    if len(argv) < 2 or {"--help", "-help", "-h"} & set(argv):
        configs = " ".join(config.packaged())
        print(HELP.format(program=program, configs=configs, stages=" ".join(config.STAGES)))
        return 0
    debug = "--debug" in argv
    console.log_to_stderr(quiet="--quiet" in argv, debug=debug)
    try:
        report = run(argv)
    except KeyboardInterrupt:  # before the run listens to signals
        return 130
    except Exception as raised:
        error, code = ending.told(raised, debug=debug)
        _end_all(code or Stopped.exit_code, error)
        if code is None:
            raise
        return code
    if report:
        print(f"report: {report}")
    return 0


def _end_all(code: int, error: Exception) -> None:
    """The other processes of the run, if there are any, end as this one does."""
    watch = sys.modules.get("srum_jax.core.host_watch")
    if watch is not None:
        watch.end(code, error)


def run(argv: Sequence[str]) -> str | None:
    """Does what a command line says; returns the path of the report, if that stage is among it."""
    options = define_flags()
    if config_file := config.config_path(argv):
        cfg = config.parse(argv, options)
    else:
        cfg, config_file = config.recorded(argv, options)
    if (options.plan or options.plan_out) and not options.check:
        importlib.import_module("srum_jax.planning.plan").run(
            cfg, options.plan or "", options.plan_out, _assumed(options)
        )
        return None
    wanted = options.stage or cfg.stages
    for name in wanted:
        if name not in config.STAGES:
            raise BadInput(f'--stage "{name}" is not known: {config.suggest(name, config.STAGES)}')
    for problem in config.misplaced(cfg.model, wanted):
        raise BadInput(problem)
    if not options.workdir:
        raise BadInput("no work folder: give --workdir DIR, for example --workdir runs/shapes")
    options.workdir = os.fspath(places.place(options.workdir, "--workdir"))
    if os.path.isfile(options.workdir):
        raise BadInput(f"--workdir {options.workdir} is a file; name a folder")
    flags.FLAGS.mark_as_parsed()  # grain's worker processes ask for it
    running = importlib.import_module("srum_jax.running")
    asked = running.Run(
        cfg,
        [name for name in config.STAGES if name in wanted],
        options.workdir,
        options.allow_config_change,
        config_file,
        _assumed(options),
    )
    if options.check:
        print("\n".join([*asked.checked(options.plan), "check: no problems"]))
        return None
    named = {name: options[name].value for name in ("coordinator", "processes", "process")}
    several = options.distributed or set(named.values()) != {None}
    return running.start(asked, named if several else None)


def _assumed(options: flags.FlagValues):
    """What time and cost are estimated by. Raises BadInput."""
    given = {name: options[name].value for name in ("utilisation", "price")}
    budget = importlib.import_module("srum_jax.planning.budget")
    return budget.Assumptions(**{k: v for k, v in given.items() if v is not None})


if __name__ == "__main__":
    sys.exit(main(sys.argv))
