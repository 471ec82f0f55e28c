"""Joining the other ranks through Lightning Fabric, and failing together.

Only rank 0 shows anything. A rank that fails writes the reason to the store of rank 0; rank 0
raises that error in place of its own next communication error, and the other ranks end silently.
A rank that learns of a failure but is stuck, waiting for a GPU exchange that will never complete,
is ended after some seconds.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import astuple, dataclass, replace
from typing import Any

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
import torch.distributed as dist

from ssl_bench.config.settings import Strategy
from ssl_bench.distributed import collectives, rendezvous
from ssl_bench.distributed.environment import DistributedEnvironment, cores
from ssl_bench.distributed.strategy import shard, using
from ssl_bench.errors import ToldElsewhere, UserError, first_line, is_of_memory, require, told
from ssl_bench.utils.signals import SECONDS_TO_SAVE

_KEY = "ssl-bench: failure"
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_HEAR = 3.0
_SECONDS_TO_END = 8.0
_LOST_RANK = ("gloo", "NCCL", "Connection", "Socket", "Broken pipe")
_joins = 0


@contextmanager
def initialised(
    environment: DistributedEnvironment, strategy: Strategy, note: Callable[[str], None]
) -> Iterator[None]:
    """Be one of the ranks during the block.

    Args:
        note: called on rank 0 with why any rank failed, to correct what is noted of the run.

    Raises:
        UserError: there is no device for this rank, or the ranks cannot meet; on rank 0 also where
            another rank fails.
        ToldElsewhere: on the other ranks, where any rank fails.
    """
    global _joins
    # When one process runs several commands, another rank may still be using the last port.
    environment = replace(environment, port=environment.port + _joins)
    _joins += 1
    device = _device(environment)
    with _quiet(environment):
        fabric, chosen = _fabric(environment, device, strategy)
        store = rendezvous.meet(environment)
        try:
            fabric.launch()
        except (RuntimeError, ValueError) as error:
            raise rendezvous.cannot_meet(environment, first_line(error)) from error
    monitor = _FailureMonitor(environment, store, note)
    threads = environment.threads or max(1, cores() // environment.local_world)
    torch.set_num_threads(min(_threads_at_start, threads))
    # The strides of a patch embedding's gradient cost nothing that could be measured.
    with _quiet(environment, "Grad strides do not match"):
        try:
            with collectives.ready(environment.local_world), using(fabric, chosen):
                _check_gpus(device)
                yield
                collectives.barrier()  # no rank leaves while another may still fail
        except BaseException as error:
            raise monitor.settle(error) from None
        finally:
            with suppress(Exception):
                dist.destroy_process_group()
            monitor.stopped.set()


@contextmanager
def _quiet(environment: DistributedEnvironment, warning: str = "") -> Iterator[None]:
    """Hide warnings with this beginning, and everything that is not rank 0 prints."""
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
        warnings.filterwarnings("ignore", warning)
        if environment.rank == 0:
            yield
            return
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield


def _fabric(
    environment: DistributedEnvironment, device: torch.device, strategy: Strategy
) -> tuple[Any, Any]:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)

    class Started(LightningEnvironment):
        """Ranks that are running already; Lightning reads none of Slurm's variables, and does not
        requeue the job."""

        creates_processes_externally = True
        main_address = environment.address
        main_port = environment.port

        def local_rank(self) -> int:
            return environment.local_rank

        def node_rank(self) -> int:
            return environment.rank // environment.local_world

    chosen = "ddp" if strategy == "auto" else strategy
    # Gradient buckets are never rebuilt, so that a resumed training adds in the same order.
    made: Any = (
        DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
        if chosen == "ddp"
        else ModelParallelStrategy(
            shard, data_parallel_size=environment.world, tensor_parallel_size=1
        )
    )
    # The rank's own device at every index: it may see no other.
    made.parallel_devices = [device] * environment.local_world
    nodes = environment.world // environment.local_world
    plugin: Any = Started()
    return Fabric(strategy=made, num_nodes=nodes, plugins=[plugin]), chosen


def _device(environment: DistributedEnvironment) -> torch.device:
    """This rank's GPU, which becomes torch's current one, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    is_bound = count == 1 and environment.parent is None  # Slurm may show each rank only its GPU
    require(
        is_bound or environment.local_world <= count,
        f"--devices {environment.local_world}: this machine has {count} GPU{'s' * (count > 1)}; at "
        f"most --devices {count} would work",
    )
    device = torch.device("cuda", 0 if is_bound else environment.local_rank)
    torch.cuda.set_device(device)
    return device


def _check_gpus(device: torch.device) -> None:
    """Raise `UserError` where two ranks have the same GPU."""
    if device.type == "cuda":
        own = f"{os.uname().nodename} {torch.cuda.get_device_properties(device).uuid}"
        names = collectives.gather_objects(own)
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, f"several processes were given the same GPU: {', '.join(twice)}")


_threads_at_start = torch.get_num_threads()


class _FailureMonitor:
    """Watches for failures of other ranks, and reports this rank's."""

    def __init__(
        self, environment: DistributedEnvironment, store: dist.Store, note: Callable[[str], None]
    ) -> None:
        self._environment = environment
        self._note = note
        self.stopped = threading.Event()
        self._store = store  # a connection that no exchange can block
        threading.Thread(target=self._watch, name="other ranks", daemon=True).start()

    def settle(self, error: BaseException) -> BaseException:
        """Report this rank's failure, unless another rank failed first; returns what to raise."""
        is_lost = isinstance(error, RuntimeError) and any(s in str(error) for s in _LOST_RANK)
        if is_lost or isinstance(error, dist.DistError):
            deadline = time.monotonic() + _SECONDS_TO_HEAR
            while self._first_failure() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            error = UserError(
                "another process was lost; it may have been killed, such as for want of memory; "
                "the same command resumes it from the last checkpoint, if there is one"
            )
        own = _Failure.of(self._environment.rank, error)
        first = own
        with suppress(Exception):
            content = json.dumps(astuple(own))
            first = _Failure(*json.loads(self._store.compare_set(_KEY, "", content)))
        if self._environment.rank:
            return ToldElsewhere(own.code)
        if not isinstance(error, Exception):
            return error
        self._note(first.last_line)
        if first.rank == 0:
            return error
        if first.code == 1:
            return RuntimeError(f"process {first.rank} failed\n{first.text}")
        return UserError(first.text)

    def _first_failure(self) -> _Failure | None:
        """The first failure, if there is one; losing rank 0 counts."""
        try:
            if not self._store.check([_KEY]):
                return None
            return _Failure(*json.loads(self._store.get(_KEY)))
        except Exception:
            return _Failure(0, 2, "process 0 was lost")

    def _watch(self) -> None:
        while not self.stopped.wait(_SECONDS_BETWEEN_LOOKS):
            parent = self._environment.parent
            if parent is not None and os.getppid() != parent:
                os._exit(2)
            failure = self._first_failure()
            if failure is None:
                continue
            was_signalled = failure.code > 128  # and this rank may be writing its checkpoint
            if not self.stopped.wait(SECONDS_TO_SAVE if was_signalled else _SECONDS_TO_END):
                if self._environment.rank == 0:
                    self._note(failure.last_line)
                    print(f"ssl-bench: {' '.join(failure.text.split())}", file=sys.stderr)
                    sys.stderr.flush()
                os._exit(failure.code)


@dataclass(frozen=True)
class _Failure:
    """Why a rank failed.

    Attributes:
        code: the exit code: 2 for a message, 1 for a traceback, above 128 for a signal.
    """

    rank: int
    code: int
    text: str

    @classmethod
    def of(cls, rank: int, error: BaseException) -> _Failure:
        message = told(error)
        if message is not None:
            return cls(rank, 2, f"process {rank} is {message}" if is_of_memory(error) else message)
        if not isinstance(error, Exception):
            code = 128 + getattr(error, "signal", signal.SIGINT)
            return cls(rank, code, f"process {rank} was stopped; the same command resumes it")
        return cls(rank, 1, "".join(traceback.format_exception(error)))

    @property
    def last_line(self) -> str:
        """What went wrong, without where."""
        return self.text.strip().splitlines()[-1]
