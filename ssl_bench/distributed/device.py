"""The device of a run, and its precision."""

from __future__ import annotations

import ctypes
import os
import platform
import re
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
from ssl_bench.utils.formatting import many

_PATCHES_AT_ONCE = 4096
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h


@dataclass(frozen=True)
class Hardware:
    """A device, its name, and the precision of its matrix products; weights stay float32.

    Attributes:
        precision: "bf16" runs training under autocast.
        compiled: whether ``torch.compile`` compiles the transformer blocks that are trained, and
            the steps of a single GPU are recorded (see `training.captured`).
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

    @property
    def records_steps(self) -> bool:
        """Whether steps are recorded: on a single GPU, where blocks are compiled, too."""
        is_alone = collectives.world_size() == 1
        return self.compiled and self.device.type == "cuda" and is_alone

    def images_at_once(self, patches: int) -> int | None:
        """The number of images, of that many patches, to compute at once; None for no limit.

        A CPU's threads are fastest with a part of a batch each (see `gradients`), which also takes
        less memory.
        """
        return None if self.device.type == "cuda" else max(1, _PATCHES_AT_ONCE // patches)

    def reset_peak_memory(self) -> None:
        """Reset `peak_memory_mib`."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")


def choose(precision: Precision = "auto", compilation: Compilation = "auto") -> Hardware:
    """The first CUDA device, or the rank's own, else the CPU; bf16 where that is faster.

    Every rank takes the precision of rank 0.

    Fused attention is off on the CPU: its backward pass in bf16 takes longer than the rest of a
    step. Blocks are compiled only on a GPU: on a CPU, compiled code is no faster, and starts a
    minute later.

    Raises:
        UserError: the CUDA device has no bf16, or there is no compiler.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    if on_gpu and collectives.world_size() > 1:
        device = torch.device("cuda", torch.cuda.current_device())  # the rank's own
    fast_bf16 = torch.cuda.is_bf16_supported(False) if on_gpu else _cpu_gains_from_bf16()
    if precision == "auto":
        precision = "bf16" if collectives.broadcast(fast_bf16) else "fp32"
    if precision == "bf16" and on_gpu and not fast_bf16:
        raise UserError("--precision 'bf16' is not supported by this GPU; fp32 would work")
    has_compiler = find_spec("triton") if on_gpu else shutil.which(os.environ.get("CXX", "g++"))
    require(
        bool(has_compiler) or compilation != "on",
        f"--compile 'on' needs {'triton' if on_gpu else 'a C++ compiler'}, which is not here; "
        "--compile off would work",
    )
    compiled = on_gpu and bool(has_compiler) if compilation == "auto" else compilation == "on"
    timm.layers.set_fused_attn(on_gpu)
    if on_gpu:  # convolutions, too, which torch would compute in TF32
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
    if not on_gpu:
        _keep_freed_memory()
    name = torch.cuda.get_device_name() if on_gpu else _cpu_name()
    return Hardware(device, precision, name, compiled)


def peak_memory_mib(device: torch.device) -> float:
    """The peak memory of this process in MiB, on the GPU or resident.

    On a GPU and on Linux, since `Hardware.reset_peak_memory`.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # getrusage() includes the parent's memory when it started this process
        [peak] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(peak.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees for the next one.

    It returns large blocks to the system, which fills each page with zeros when it hands them out
    again: that takes half the time of augmenting a batch of small images, and a third of streaming
    photographs. All threads share one arena, so that none keeps what another could use.
    """
    try:
        tune = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    # Older versions take no more than 32 MiB; one setting without the other does harm.
    if tune(_MMAP_THRESHOLD, 2**30) or tune(_MMAP_THRESHOLD, 2**25):
        tune(_TRIM_THRESHOLD, 2**31 - 1)
        tune(_ARENA_MAX, 1)


def _cpu_gains_from_bf16() -> bool:
    """Whether matrix products are faster in bf16 than in fp32.

    They are with AMX, and with AVX-512's instructions on an AMD EPYC (4.3 times). On an Intel Xeon
    whose AMX is missing or hidden by a virtual machine, those same instructions run at half of the
    rate of fp32, and MAE trains at 0.6 times its speed (``results/speed``). CPUs are told apart by
    name, not by a trial, whose outcome could change while a run is resumed.
    """
    info = _cpu_info()
    return "amx_bf16" in info or ("avx512_bf16" in info and "AuthenticAMD" in info)


def _cpu_info() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _cpu_name() -> str:
    model = re.search(r"model name\s*:\s*(.*\S)", _cpu_info())
    name = model[1] if model else platform.processor() or platform.machine()
    return f"{name}, {many(torch.get_num_threads(), 'thread')}"
