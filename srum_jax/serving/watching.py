"""Following a run: each newer model that it writes is taken, and no request is dropped for it."""

import asyncio
from typing import Any

from absl import logging
from etils import epath

from srum_jax.core.errors import in_a_line
from srum_jax.serving import opening
from srum_jax.serving.opening import Found
from srum_jax.serving.service import Service
from srum_jax.serving.work import Running


async def watch(service: Service, run: epath.Path, have: Found, every: float, **how: Any) -> None:
    """Looks every so many seconds, until it is cancelled. how: as of `opening.trained`.

    Both models are held while the second is read and the first ends what it does. What cannot be
    taken, as a checkpoint that the run removes meanwhile or one there is no memory for, is told and
    looked for again.
    """
    while True:
        await asyncio.sleep(every)
        try:
            found = await asyncio.to_thread(opening.newest, run)
            if found is None or found == have:
                continue
            model = await asyncio.to_thread(opening.trained, run, found, **how)
            service.replace(Running.of(model, found.step))
        except Exception as e:  # of any kind: nobody waits for this task, and the run goes on
            logging.warning("%s: not taken (%s: %s)", run, type(e).__name__, in_a_line(e))
            continue
        have = found
        logging.info("now serving %s", found.path)
