"""Which devices of this host a model in use lies on, outside a run."""

import re
from collections.abc import Callable, Sequence

import jax

from srum_jax.core import sharding
from srum_jax.core.errors import BadInput, quoted


def placed(
    mesh: jax.sharding.Mesh | str | None,
    precision: str | None,
    weight_bytes: Callable[[str], int],
) -> tuple[jax.sharding.Mesh, str]:
    """(the mesh that a model lies on, the precision of its weights).

    mesh: "COPIESxDEVICES", so many copies of the weights, each cut over so many devices; None: all
    accelerators, with as many copies as they hold, or on a CPU one device. precision: None for
    bfloat16, on a CPU float32. weight_bytes: of all parameters in a precision. Raises BadInput for
    devices that are not there.
    """
    told = isinstance(mesh, jax.sharding.Mesh)
    devices = sharding.here(mesh) if told else jax.local_devices()
    on_cpu, precision = devices[0].platform == "cpu", of_weights(devices, precision)
    if told:
        return mesh, precision
    cut = None
    if mesh is None:
        devices = devices[:1] if on_cpu else devices
    else:
        copies, cut = _parsed(mesh)
        if copies * cut > len(devices):
            raise BadInput(f"mesh {mesh} takes {copies * cut} devices: there are {len(devices)}")
        devices = devices[: copies * cut]
    return sharding.inference_mesh(devices, weight_bytes(precision), cut=cut), precision


def of_weights(devices: Sequence[jax.Device], told: str | None = None) -> str:
    """The precision of a model's weights: as told, else bfloat16, on a CPU float32."""
    return told or ("float32" if devices[0].platform == "cpu" else "bfloat16")


def _parsed(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text) if isinstance(text, str) else None
    if not found:
        raise BadInput(f"mesh {quoted(text)} is no COPIESxDEVICES, for example 2x4")
    return int(found[1]), int(found[2])
