"""What a server counts, as Prometheus reads it (text format 0.0.4)."""

import bisect
import resource
import sys
import threading
from collections.abc import Iterator

import jax

PREFIX = "srum_"
# Seconds.
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
Labels = tuple[tuple[str, str], ...]

_PLAIN = ("tokens_total", "images_total", "scores_total", "refused_total", "checkpoints_total")
HELP = {
    "requests_total": "Requests, by address and status.",
    "request_seconds": "From the request to its last byte.",
    "first_token_seconds": "From the request to its first token.",
    "tokens_total": "Tokens that were written.",
    "images_total": "Images that were drawn.",
    "scores_total": "Images that were scored.",
    "steps_total": "Calls of the device, by kind.",
    "step_seconds_total": "Seconds in calls of the device, by kind.",
    "rows_total": "Rows of these calls, padding among them.",
    "filled_rows_total": "Rows of these calls that held a request.",
    "cancelled_total": "Pieces of work let go: client gone, stop text written, time over.",
    "refused_total": "Pieces of work that found the queue full.",
    "waiting": "Pieces of work that wait for the device, by kind.",
    "running": "Pieces of work on the device, by kind.",
    "programs_compiled": "Programs that were made ready.",
    "memory_bytes": "Of the process (peak) and of devices (in use).",
    "checkpoints_total": "Times that a newer model was taken.",
}


class Metrics:
    """Counters, gauges and histograms; any thread may add to them."""

    def __init__(self):
        self._lock = threading.Lock()
        # What has no labels is there from the start: of what comes later no rate can be had.
        self._values: dict[str, dict[Labels, float]] = {name: {(): 0.0} for name in _PLAIN}
        self._histograms: dict[str, dict[Labels, list[float]]] = {}  # buckets, then sum and count

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Adds to a counter."""
        with self._lock:
            of = self._values.setdefault(name, {})
            key = tuple(sorted(labels.items()))
            of[key] = of.get(key, 0.0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""
        with self._lock:
            self._values.setdefault(name, {})[tuple(sorted(labels.items()))] = value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Adds to a histogram of seconds."""
        with self._lock:
            key = tuple(sorted(labels.items()))
            empty = [0.0] * (len(_BOUNDS) + 2)
            found = self._histograms.setdefault(name, {}).setdefault(key, empty)
            if (place := bisect.bisect_left(_BOUNDS, seconds)) < len(_BOUNDS):
                found[place] += 1
            found[-2] += seconds
            found[-1] += 1

    def value(self, name: str, **labels: str) -> float:
        """Of a counter or gauge; 0 where nothing was told."""
        return self._values.get(name, {}).get(tuple(sorted(labels.items())), 0.0)

    def text(self) -> str:
        """All of them."""
        self._memory()
        with self._lock:
            return "".join(f"{line}\n" for line in self._lines())

    def _memory(self) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.set("memory_bytes", peak * (1 if sys.platform == "darwin" else 1024), of="process")
        for device in jax.local_devices():
            if stats := device.memory_stats():
                self.set("memory_bytes", stats["bytes_in_use"], of=f"{device.platform}:{device.id}")

    def _lines(self) -> Iterator[str]:
        for name, of in sorted(self._values.items()):
            kind = "counter" if name.endswith("_total") else "gauge"
            yield from _head(name, kind)
            yield from (f"{PREFIX}{name}{_said(key)} {value:g}" for key, value in of.items())
        for name, of in sorted(self._histograms.items()):
            yield from _head(name, "histogram")
            for key, (*buckets, total, count) in of.items():
                below = 0.0
                for bound, more in zip(_BOUNDS, buckets, strict=True):
                    below += more
                    limit = (*key, ("le", f"{bound:g}"))
                    yield f"{PREFIX}{name}_bucket{_said(limit)} {below:g}"
                yield f"{PREFIX}{name}_bucket{_said((*key, ('le', '+Inf')))} {count:g}"
                yield f"{PREFIX}{name}_sum{_said(key)} {total:g}"
                yield f"{PREFIX}{name}_count{_said(key)} {count:g}"


def _head(name: str, kind: str) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {HELP.get(name, '')}"
    yield f"# TYPE {PREFIX}{name} {kind}"


def _said(key: Labels) -> str:
    if not key:
        return ""
    escaped = ((k, v.replace("\\", r"\\").replace('"', r"\"")) for k, v in key)
    return "{" + ",".join(f'{k}="{v}"' for k, v in escaped) + "}"
