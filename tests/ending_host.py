"""One process of two, with one stage that ends as it is told; for tests of hosts that end together.

`python tests/ending_host.py WHAT WHO ARGS…` is `srum_jax.main ARGS…` whose stage `report` does WHAT
in process WHO, and waits for it in the others: check | run (bad input) | bug | kill | stop.
"""

import os
import signal
import sys
import time
import types


def main(what, who, *args):
    """See the module."""
    import jax

    from srum_jax import main, running
    from srum_jax.core import distributed, preemption
    from srum_jax.core.errors import BadInput

    def chosen(name):
        return what == name and jax.process_index() == int(who)

    def check(cfg, work, found):
        if chosen("check"):
            found.problems.append("told")

    def run(cfg, mesh, work):
        if chosen("run"):
            raise BadInput("told")
        if chosen("bug"):
            raise TypeError("told")
        if chosen("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "stop":
            if chosen("stop"):
                os.kill(os.getpid(), signal.SIGTERM)
            while True:
                preemption.check()
                time.sleep(0.05)
        distributed.barrier("waits")

    sys.modules["ending_stage"] = types.SimpleNamespace(check=check, run=run)
    running.STAGES["report"] = "ending_stage"
    sys.exit(main.main(["main", *args]))


if __name__ == "__main__":
    main(*sys.argv[1:])
