"""Where a run computes, and in which precision."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import timm.layers
import torch

from ssl_bench.config.settings import Compilation, Precision
from ssl_bench.distributed import collectives
from ssl_bench.errors import UserError, require

_PATCHES_AT_ONCE = 4096
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h


@dataclass(frozen=True)
class Hardware:
    """A device and the precision of its matrix products; weights stay float32.

    Attributes:
        precision: "bf16" runs training under autocast.
        name: the processor's name, for a table's reader.
        compiled: whether ``torch.compile`` compiles the transformer blocks that are trained.
    """

    device: torch.device
    precision: Literal["fp32", "bf16"]
    name: str
    compiled: bool = False

    def autocast(self, cached: bool = True) -> AbstractContextManager[None]:
        """Mixed precision where the precision is bf16; ``cached`` weights are cast once."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=cached)

    def images_at_once(self, patches: int) -> int | None:
        """Images of so many patches whose activations are best kept at a time; None for any number.

        A CPU's threads are fastest with a part of a batch each (see `gradients`), which takes a
        fraction of the memory, too.
        """
        return None if self.device.type == "cuda" else max(1, _PATCHES_AT_ONCE // patches)

    def forget_peak(self) -> None:
        """Have `peak_memory_mib` count from now on."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")


def choose(precision: Precision = "auto", compilation: Compilation = "auto") -> Hardware:
    """The first CUDA device, or a rank's own, else the CPU; bf16 where the matrix units have it.

    Every rank takes the precision of rank 0.

    Fused attention is switched off on the CPU: its backward pass in bf16 takes longer than the
    rest of a step. Blocks are compiled on a GPU alone: on a CPU, compiled code is no faster, and
    starts a minute later.

    Raises:
        UserError: the CUDA device has no bf16, or there is nothing to compile with.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    if on_gpu and collectives.world_size() > 1:
        device = torch.device("cuda", torch.cuda.current_device())  # the rank's own
    has_bf16 = torch.cuda.is_bf16_supported(False) if on_gpu else _cpu_has_bf16()
    if precision == "auto":
        precision = "bf16" if collectives.broadcast(has_bf16) else "fp32"
    if precision == "bf16" and on_gpu and not has_bf16:
        raise UserError("precision 'bf16' is not supported by this GPU; fp32 would work")
    has_compiler = find_spec("triton") if on_gpu else shutil.which(os.environ.get("CXX", "g++"))
    require(
        bool(has_compiler) or compilation != "on",
        f"compile 'on' needs {'triton' if on_gpu else 'a C++ compiler'}, which is not here; "
        "--compile off would work",
    )
    compiled = on_gpu and bool(has_compiler) if compilation == "auto" else compilation == "on"
    timm.layers.set_fused_attn(on_gpu)
    if not on_gpu:
        _keep_freed_memory()
    name = torch.cuda.get_device_name() if on_gpu else _cpu_name()
    return Hardware(device, precision, name, compiled)


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that this process has held, in MiB: a GPU's own, else resident.

    Since `Hardware.forget_peak`, where the system can forget: on a GPU and on Linux.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # getrusage() counts what the parent held when it started this process
        [peak] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(peak.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _keep_freed_memory() -> None:
    """Have the C library keep what a step frees for the next one, where it is glibc.

    It gives large blocks back to the system, which fills each page with zeros when it hands them
    out again: half the time of augmenting a batch of small images goes into that, and a third of
    streaming photographs. One arena for all threads, so that none keeps what another could use.
    """
    try:
        tune = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    # Older ones take no more than 32 MiB; without the one, the other does harm.
    if tune(_MMAP_THRESHOLD, 2**30) or tune(_MMAP_THRESHOLD, 2**25):
        tune(_TRIM_THRESHOLD, 2**31 - 1)
        tune(_ARENA_MAX, 1)


def _cpu_flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _cpu_has_bf16() -> bool:
    flags = _cpu_flags()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _cpu_name() -> str:
    models = [
        line.split(":")[1].strip() for line in _cpu_flags().splitlines() if "model name" in line
    ]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
