"""Machines that are not here: their names, memory and peaks, and compiling for them.

The only file that uses private or experimental interfaces of jax for this (topology descriptions
and the clients that compile without a device), and imports them when a machine is opened. The
compilers come with `pip install -e ".[plan-tpu]"` (libtpu) and `".[plan-gpu]"` (the CUDA plugin and
its assembler); neither needs a chip or a driver. Measured with jax 0.10.2.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from srum_jax.core.errors import BadInput

GIB = 2**30
# Shares of a GPU's memory that JAX takes for programs: left alone, and with the setting below
# (JAX's documentation, "GPU memory allocation").
LEFT, MOST = 0.75, 0.95
RAISED = f"XLA_PYTHON_CLIENT_MEM_FRACTION={MOST}"


@dataclasses.dataclass(frozen=True)
class ChipKind:
    """A kind of chip: what it has, and the sizes of machines to try in turn.

    memory_gib: of TPUs what libtpu prints when it refuses a program, of GPUs what CUDA calls their
    total · flops: dense bfloat16 products accumulated in float32, a second · bandwidth: bytes of
    its memory a second · host: size of one host of a larger machine · devices: what JAX calls it
    (`device_kind`) · float32: share of `flops` that products of float32 reach as JAX does them by
    default · compiles: a compiler here makes programs for it; for others what is kept is summed ·
    margin: share by which compiled peaks are raised, for a compiler whose figures were not held
    against the chip.
    """

    platform: str  # tpu | gpu
    memory_gib: float
    flops: float
    bandwidth: float
    sizes: tuple[str, ...]
    host: str
    devices: tuple[str, ...]
    float32: float = 1.0
    compiles: bool = True
    margin: float = 0.0
    options: tuple[tuple[str, Any], ...] = ()  # of the topology's description

    @property
    def hbm_gib(self) -> float:
        """Memory that programs may use where JAX is left alone."""
        return round(LEFT * self.memory_gib, 2) if self.platform == "gpu" else self.memory_gib

    @property
    def raised_gib(self) -> float:
        """The same with the setting RAISED, which TPUs do not have."""
        return round(MOST * self.memory_gib, 2) if self.platform == "gpu" else self.memory_gib


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_MEGACORE = (("chip_config_name", "megacore"),)


def _tpu_kind(
    memory_gib: float, flops: float, bandwidth: float, *devices: str, cubes=False, options=()
) -> ChipKind:
    """A kind of chip in slices of four a host, flat or `cubes`."""
    sizes, host = (_CUBES, "2x2x1") if cubes else (_FLAT, "2x2")
    return ChipKind("tpu", memory_gib, flops, bandwidth, sizes, host, devices, options=options)


def _gpu_kind(
    memory_gib: float, flops: float, bandwidth: float, *devices: str, **more: Any
) -> ChipKind:
    """A kind of card, up to eight a host; products of float32 go through TF32 at half the speed."""
    more = dict(float32=0.5, margin=0.1) | more
    sizes = ("1", "2", "4", "8")
    return ChipKind("gpu", memory_gib, flops, bandwidth, sizes, "8", devices, **more)


# Peaks: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; NVIDIA's data sheets of H200 SXM, H100
# SXM, A100 80GB SXM, L4 and T4 and its Ada whitepaper, without the factor of sparsity.
KINDS = {
    # Of a v4 both cores are one device, as on the chip itself.
    "v4": _tpu_kind(30.75, 275e12, 1.2e12, "TPU v4", cubes=True, options=_MEGACORE),
    "v5e": _tpu_kind(15.75, 197e12, 0.819e12, "TPU v5 lite", "TPU v5e"),
    "v5p": _tpu_kind(95.74, 459e12, 2.765e12, "TPU v5", "TPU v5p", cubes=True),
    "v6e": _tpu_kind(31.25, 918e12, 1.638e12, "TPU v6 lite", "TPU v6e"),
    "h200": _gpu_kind(139.8, 989e12, 4.8e12, "NVIDIA H200"),
    "h100": _gpu_kind(79.1, 989e12, 3.35e12, "NVIDIA H100 80GB HBM3"),
    "a100": _gpu_kind(79.1, 312e12, 2.039e12, "NVIDIA A100-SXM4-80GB", compiles=False),
    "l4": _gpu_kind(22.0, 121e12, 0.3e12, "NVIDIA L4", compiles=False),
    # No unit for bfloat16, which XLA widens to float32 there, nor for TF32.
    "t4": _gpu_kind(14.7, 8.1e12, 0.32e12, "Tesla T4", float32=1.0, compiles=False),
    "rtx4090": _gpu_kind(23.6, 165e12, 1.008e12, "NVIDIA GeForce RTX 4090", compiles=False),
}


def kind_of(device: str) -> str | None:
    """The key of KINDS of a device that JAX calls `device`; None where it is none of them."""
    return next((name for name, kind in KINDS.items() if device in kind.devices), None)


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine: `chips` chips of `kind` (a key of KINDS), `shape` as "4x4" or, of GPUs, "8"."""

    kind: str
    shape: str

    def __str__(self):
        return f"{self.kind}:{self.shape}"

    @property
    def chips(self) -> int:
        """How many it has."""
        return math.prod(_axes(self.shape))

    @property
    def host(self) -> "Target":
        """A single host of it: the machine itself if it is smaller."""
        alone = Target(self.kind, KINDS[self.kind].host)
        return alone if alone.chips < self.chips else self


def _axes(shape: str) -> tuple[int, ...]:
    return tuple(int(n) for n in shape.split("x"))


def parse(text: str) -> Target:
    """The target that `text`, as "v5e:4x4", names. Raises BadInput with the known ones."""
    kind, colon, shape = text.partition(":")
    if kind not in KINDS or not colon:
        known = ", ".join(f"{name}:{k.sizes[-3]}" for name, k in KINDS.items())
        raise BadInput(f'--plan "{text}" must be TYPE:SHAPE, for example {known}')
    target, axes = Target(kind, shape), KINDS[kind].sizes[0].count("x")
    shaped = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) and shape.count("x") == axes
    if not shaped or target.chips % target.host.chips:
        raise BadInput(
            f'--plan "{text}": a shape of {kind} is one of {", ".join(KINDS[kind].sizes)}'
        )
    return target


def larger(target: Target) -> list[Target]:
    """The targets of the same kind with more chips, in order."""
    every = [Target(target.kind, shape) for shape in KINDS[target.kind].sizes]
    return [one for one in every if one.chips > target.chips]


def smallest(gib: float) -> list[Target]:
    """Of each kind the smallest machine with so much memory; kinds without one are left out."""
    found = []
    for name, kind in KINDS.items():
        every = (Target(name, shape) for shape in kind.sizes)
        found.append(next((one for one in every if one.chips * kind.hbm_gib >= gib), None))
    return [one for one in found if one is not None]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiler made of a program for one chip.

    fits: whether it accepted it · peak: bytes on the chip that uses most, arguments included (of a
    refused program what it would have needed; None: it did not say) · text: the optimised program,
    "" if refused · seconds of processor time · why: the compiler's words where it refused.
    """

    fits: bool
    peak: int | None
    text: str
    seconds: float
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Machine:
    """A target that programs can be lowered and compiled for: its devices, and those of one of its
    hosts alone, as a machine of its own."""

    target: Target
    devices: Sequence[Any]
    host: Sequence[Any]

    @property
    def hbm_gib(self) -> float:
        """Memory of one chip that a program may use."""
        return KINDS[self.target.kind].hbm_gib

    @property
    def compiles(self) -> bool:
        """Whether programs can be compiled for it here; otherwise its devices have names alone."""
        return KINDS[self.target.kind].compiles

    def compile(self, lowered: jax.stages.Lowered) -> Compiled:
        """What the target's compiler makes of a program lowered for `devices` or `host`.

        Raises jax.errors.JaxRuntimeError for every refusal but that of too little memory.
        """
        kind = KINDS[self.target.kind]
        # No card is here to time kernels on.
        options = {"xla_gpu_autotune_level": 0} if kind.platform == "gpu" else None
        start = time.process_time()
        try:
            made = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as e:
            if "RESOURCE_EXHAUSTED" not in str(e):
                raise
            return Compiled(False, needed(str(e)), "", time.process_time() - start, str(e))
        peak = int(_peak(made.memory_analysis()) * (1 + kind.margin))
        fits = peak <= kind.hbm_gib * GIB
        return Compiled(fits, peak, made.as_text(), time.process_time() - start)


@dataclasses.dataclass(frozen=True)
class NamedDevice:
    """A place in the mesh of a machine that nothing is compiled for: it says how arrays are cut."""

    id: int
    platform: str
    process_index: int = 0

    @property
    def device_kind(self) -> str:
        """What a mesh asks of its devices."""
        return self.platform


def describe(target: Target) -> Machine:
    """The machine of a target, without touching a device.

    Raises BadInput where its compiler is not installed or knows no such shape.
    """
    platform = KINDS[target.kind].platform
    if not KINDS[target.kind].compiles:
        cards = [NamedDevice(number, platform) for number in range(target.chips)]
        return Machine(target, cards, cards[: target.host.chips])
    module = {"tpu": "libtpu", "gpu": "jax_plugins.xla_cuda12"}[platform]
    if not _importable(module):
        raise BadInput(
            f"--plan {target} compiles for {platform.upper()}s without one, which needs the "
            f'package {module}: pip install -e ".[plan-{platform}]"'
        )
    jax.config.update("jax_platforms", "cpu")  # chips that are here stay free
    find = {"tpu": _tpu, "gpu": _gpu}[platform]
    try:
        devices = find(target)
        # A machine of its own: a part of a larger one's devices cannot be compiled for.
        host = devices if target.host == target else find(target.host)
    except Exception as e:  # whatever the plugin raises for a shape it does not know
        raise BadInput(f"--plan {target}: {type(e).__name__}: {e}") from e
    return Machine(target, devices, host)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


# What libtpu reads of the environment when it is loaded. Several processes may hold it where none
# drives a chip; this machine is not to be looked for over the network, and whatever the last two
# say, the topology's name counts.
_LIBTPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """With these variables set, unless they are, and as before afterwards: other parts of a program
    read the same ones to find the hosts of a run."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _tpu(target: Target) -> Sequence[Any]:
    from jax.experimental import topologies

    options = dict(KINDS[target.kind].options)
    bounds = (*_axes(target.host.shape), 1)[:3]
    with _environment(_LIBTPU):
        return topologies.get_topology_desc(
            platform="tpu", topology_name=str(target), chips_per_host_bounds=bounds, **options
        ).devices


# What the compiler asks of an H200 or H100: the sizes of a Hopper SM (CUDA C++ Programming Guide,
# compute capability 9.0) and of the card (NVIDIA's data sheets).
_HOPPER = """
platform_name: "CUDA"
device_description_str: "%s"
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  l2_cache_size: 52428800
  memory_bandwidth: %d
  device_memory_size: %d
}
"""


def _gpu(target: Target) -> Sequence[Any]:
    from jax._src.cudnn import fused_attention_stablehlo as fused
    from jax.experimental import topologies

    try:
        fused.check_cudnn_version()
    except RuntimeError:  # not installed: kernels are only named in the program, never loaded
        fused.cuda_versions = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    kind, cards = KINDS[target.kind], target.host.chips
    described = _HOPPER % (kind.devices[0], kind.bandwidth, kind.memory_gib * GIB)
    shape = f"1x{target.chips // cards}x{cards}"  # partitions, hosts of each, cards of each host
    return topologies.get_topology_desc(
        platform="cuda", topology_name=target.kind, topology=shape, target_config=described
    ).devices


def _peak(memory) -> int:
    if memory.peak_memory_in_bytes:
        return memory.peak_memory_in_bytes
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return kept + memory.temp_size_in_bytes - memory.alias_size_in_bytes


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def needed(message: str) -> int | None:
    """Bytes that a compiler's refusal says a program needs; None where it does not say."""
    found = re.search(r"\(?([\d.]+)([KMGT]?)\)? (?:of|exceeds)[^\d]*[\d.]+[KMGT]", message)
    return int(float(found[1]) * _UNITS[found[2]]) if found else None
