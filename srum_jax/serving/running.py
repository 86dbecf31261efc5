"""One server from its start to its end: model, socket, signals, the last request."""

import argparse
import asyncio
import contextlib
import pathlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import uvicorn
from absl import logging

from srum_jax import api
from srum_jax.core import places, registry
from srum_jax.core.errors import BadInput
from srum_jax.serving import opening, warming, watching
from srum_jax.serving.app import application
from srum_jax.serving.engine import Engine
from srum_jax.serving.fetching import Fetcher, Host
from srum_jax.serving.limits import Limits
from srum_jax.serving.metrics import Metrics
from srum_jax.serving.opening import Found
from srum_jax.serving.service import Service
from srum_jax.serving.work import Running

_MOST_CONNECTIONS = 1024
# Seconds that a connection may wait for its next request. Clients and proxies give theirs up first
# (httpx after 5, load balancers mostly after 60, Go after 90): of the two that end at the same
# moment, one sends a request into what the other closes.
_KEEP_ALIVE = 120
_OF_A_STEP = 4
# Seconds until a thread gives way to another: a request goes through several, and beside the
# device's each would wait for Python's usual 5 ms.
_SWITCH = 0.0005
_LAST_WORDS = 5.0  # seconds for replies that are on their way when nothing runs any more


def limits(options: argparse.Namespace, model: api.Model) -> Limits:
    """What a command line says of them."""
    images = options.images or min(model.generation_config.generate.batch, Limits.images)
    return Limits(
        queue=options.queue,
        texts=options.texts,
        images=images,
        together=together(model),
        drawn=min(Limits.drawn, options.queue),  # more would never find room
        tokens=options.max_tokens,
        steps=options.max_steps,
        body=options.max_body * 2**20,
        seconds=options.max_seconds,
    )


def together(model: api.Model) -> int:
    """Images of one step: a CPU gains little from more, and answers wait for its end."""
    on_cpu = model.mesh.devices.flat[0].platform == "cpu"
    return _OF_A_STEP if on_cpu else Limits.together


def served(
    model: api.Model,
    name: str,
    bounds: Limits,
    step: int | None = None,
    hosts: Collection[Host] = (),
) -> Service:
    """A service of a model, its device's thread at work; step: of the training that made it ·
    hosts: of which addresses in requests are opened."""
    sys.setswitchinterval(_SWITCH)
    metrics = Metrics()
    engine = Engine(bounds, metrics)
    engine.start()
    fetcher = Fetcher(tuple(hosts), bounds.body)
    return Service(Running.of(model, step), engine, bounds, metrics, name, fetcher)


async def serve(options: argparse.Namespace, key: str) -> int:
    """Serves until a signal comes, and ends what runs. Returns the exit code.

    Raises BadInput, FileNotFoundError or ValueError for a model or an address that cannot be used.
    """
    sources = [Host.of(one) for one in options.allow_urls]
    made = bound(options.host, options.port)
    names = ("window", "parity", "adapter", "base", "precision", "mesh")
    how = {name: x for name in names if (x := getattr(options, name)) is not None}
    service, found = _opened(options, sources, how)
    if options.warm:
        await warming.warm(service)
    hosts = None if key else options.allow_host
    host, port = made.getsockname()[:2]
    app = application(service, key=key, hosts=hosts, words=options.log_prompts)
    said = f"serving {service.name} on http://{_shown(host)}:{port}"
    server = Server(app, lambda: print(said, flush=True))
    loop = asyncio.get_running_loop()
    drain = _Drain(service, server)
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, drain.asked)
    if options.watch:
        run = places.place(options.model, "--model")
        follows = watching.watch(service, run, found, options.watch_seconds, **how)
        watcher = asyncio.ensure_future(follows)
    await server.serve(sockets=[made])
    if options.watch:
        watcher.cancel()
    service.engine.stop()
    return 0


def _opened(
    options: argparse.Namespace, sources: Collection[Host], how: Mapping[str, Any]
) -> tuple[Service, Found | None]:
    """(the service, what of a run its model is). Here alone the model has a name: the server must
    hold none that a newer one has replaced."""
    model, found = opening.opened(options.model, options.step, **how)
    if options.watch and found is None:
        raise BadInput(f"--watch: {options.model} is no run's folder")
    name, step = options.name or _name(options.model), found.step if found else None
    return served(model, name, limits(options, model), step, sources), found


def _config() -> dict[str, Any]:
    return dict(
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=int(_LAST_WORDS),
        lifespan="off",
        ws="none",
    )


class Server(uvicorn.Server):
    """uvicorn, which leaves signals to us. when_started: called once it listens."""

    def __init__(self, app: Any, when_started: Callable[[], Any] = lambda: None):
        super().__init__(uvicorn.Config(app, **_config()))
        self.when_started = when_started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None: `_Drain` has them."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen, and says so."""
        await super().startup(sockets)
        if not self.should_exit:
            self.when_started()

    def end_at_once(self) -> None:
        """Cancels what runs, in the loop that serves it; who waits for it gets 503.

        uvicorn's `force_exit` cancels nothing, and from Python 3.12 on asyncio waits for open
        connections all the same.
        """
        self.should_exit = self.force_exit = True
        for task in self.server_state.tasks:
            task.cancel()


class _Drain:
    """The wish to end: new work is refused, what runs is finished, then the server ends."""

    def __init__(self, service: Service, server: uvicorn.Server):
        self.service, self.server = service, server
        self._task: asyncio.Task | None = None

    def asked(self) -> None:
        """A signal came; the second one ends at once."""
        if self._task is not None:
            self.server.end_at_once()
            return
        logging.info("ending: no new work, %d requests are finished", self.service.active)
        self.service.draining = True
        self._task = asyncio.ensure_future(self._ended())

    async def _ended(self) -> None:
        limit = time.monotonic() + self.service.limits.seconds
        while self.service.active and time.monotonic() < limit:
            await asyncio.sleep(0.05)
        self.server.should_exit = True


def bound(host: str, port: int) -> socket.socket:
    """A socket there. Raises BadInput where that cannot be."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Of TCP by name: asyncio sends the parts of a stream without delay on no other.
        made = socket.socket(family, kind, socket.IPPROTO_TCP)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as e:
        raise BadInput(f"--host {host} --port {port}: {e.strerror or e}") from None
    made.set_inheritable(True)
    return made


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _name(model: str) -> str:
    """How clients call a model: a world, or the last part of a folder's or a repository's name."""
    if model in registry.WORLDS:
        return model
    return pathlib.PurePath(str(model).partition("@")[0].rstrip("/")).name or "model"
