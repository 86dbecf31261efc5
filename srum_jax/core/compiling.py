"""What JAX compiles while a block runs, and what it finds in the folder of compiled programs."""

import contextlib
import dataclasses
from collections.abc import Iterator

from jax import monitoring

_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"  # or read from the folder
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass
class CompileEvents:
    """How many programs were made ready, how many of them the folder had, seconds of it all."""

    programs: int = 0
    cache_hits: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def recorded() -> Iterator[CompileEvents]:
    """Yields what JAX tells of compilations inside the block, while it runs."""
    events = CompileEvents()

    def lasted(event: str, duration: float, **_) -> None:
        if event in (_LOWERED, _COMPILED):
            events.seconds += duration
            events.programs += event == _COMPILED

    def happened(event: str, **_) -> None:
        events.cache_hits += event == _CACHE_HIT

    monitoring.register_event_duration_secs_listener(lasted)
    monitoring.register_event_listener(happened)
    try:
        yield events
    finally:
        monitoring.unregister_event_duration_listener(lasted)
        monitoring.unregister_event_listener(happened)
