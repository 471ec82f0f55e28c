"""One of several ranks: joining the others through Lightning Fabric, and failing together.

Rank 0 alone shows anything. A rank that fails says why to all (the store that rank 0 keeps); rank 0
raises that in place of whatever its own next exchange with the others would have raised, and they
end without a word. A rank that hears of a failure and cannot end, as it waits for a GPU's exchange
that will never come, is ended after some seconds.
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
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
import torch.distributed as dist

from ssl_bench.config.settings import Strategy
from ssl_bench.distributed import collectives, rendezvous
from ssl_bench.distributed import strategy as replicas
from ssl_bench.distributed.environment import DistributedEnvironment, cores
from ssl_bench.errors import ToldElsewhere, UserError, first_line, is_of_memory, require, told
from ssl_bench.utils.signals import SECONDS_TO_SAVE

_KEY = "ssl-bench: failure"
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_HEAR = 3.0
_SECONDS_TO_END = 8.0
_joins = 0


@contextmanager
def initialised(
    place: DistributedEnvironment, strategy: Strategy, note: Callable[[str], None]
) -> Iterator[None]:
    """Be one of the ranks meanwhile.

    Args:
        note: called on rank 0 with why any rank failed, to correct what is noted of the run.

    Raises:
        UserError: there is no device for this rank, or the ranks cannot meet; or, on rank 0, any
            rank's.
        ToldElsewhere: on the other ranks, where one fails.
    """
    global _joins
    # Where one process runs several commands, another may still be leaving the last meeting place.
    place = replace(place, port=place.port + _joins)
    _joins += 1
    device = _device(place)
    with _muted(place.rank > 0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fabric, chosen = _fabric(place, device, strategy)
        store = rendezvous.meet(place)
        try:
            fabric.launch()
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"process {place.rank} of {place.world} cannot meet the others at {place.address}, "
                f"port {place.port}: {first_line(error)}"
            ) from error
    watch = _Watch(place, store, note)
    _set_threads(place)
    with _muted(place.rank > 0), warnings.catch_warnings():
        # Of a patch embedding's gradient, once; it costs nothing that could be measured.
        warnings.filterwarnings("ignore", "Grad strides do not match")
        try:
            with (
                collectives.messages(),
                collectives.on_machine(place.local_world),
                replicas.through(fabric, chosen),
            ):
                _check_gpus(device)
                yield
                collectives.largest(0)  # nobody leaves while another may still fail
        except BaseException as error:
            raise watch.settle(error) from None
        finally:
            with suppress(Exception):
                dist.destroy_process_group()
            watch.end()


@contextmanager
def _muted(wanted: bool) -> Iterator[None]:
    with ExitStack() as stack:
        if wanted:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def _fabric(
    place: DistributedEnvironment, device: torch.device, strategy: Strategy
) -> tuple[Any, Any]:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import ClusterEnvironment
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)

    class Started(ClusterEnvironment):
        """Ranks that are there, whoever started them: nothing is looked up in Slurm's variables,
        and no job is requeued behind our back."""

        creates_processes_externally = True
        main_address = place.address
        main_port = place.port

        @staticmethod
        def detect() -> bool:
            return True

        def world_size(self) -> int:
            return place.world

        def set_world_size(self, size: int) -> None: ...

        def global_rank(self) -> int:
            return place.rank

        def set_global_rank(self, rank: int) -> None: ...

        def local_rank(self) -> int:
            return place.local_rank

        def node_rank(self) -> int:
            return place.rank // place.local_world

    chosen = "ddp" if strategy == "auto" else strategy
    made: Any
    if chosen == "ddp":
        # Buckets of gradients stay as they are, so that a resumed training adds in the same order.
        made = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    else:
        made = ModelParallelStrategy(
            replicas.shard, data_parallel_size=place.world, tensor_parallel_size=1
        )
    # Its own device in each place: a rank may see no other.
    made.parallel_devices = [device] * place.local_world
    nodes = place.world // place.local_world
    environment: Any = Started()
    return Fabric(strategy=made, num_nodes=nodes, plugins=[environment]), chosen


def _device(place: DistributedEnvironment) -> torch.device:
    """This rank's GPU, which is made torch's current one, or the CPU.

    Raises:
        UserError: there are fewer GPUs than ranks.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    is_bound = count == 1 and place.parent is None  # Slurm may show each rank its own GPU alone
    require(
        is_bound or place.local_world <= count,
        f"devices {place.local_world}: this machine has {count} GPU{'s' * (count > 1)}; at most "
        f"--devices {count} would work",
    )
    device = torch.device("cuda", 0 if is_bound else place.local_rank)
    torch.cuda.set_device(device)
    return device


def _check_gpus(device: torch.device) -> None:
    """Raise `UserError` where two ranks have the same GPU."""
    if device.type == "cuda":
        own = f"{os.uname().nodename} {torch.cuda.get_device_properties(device).uuid}"
        found = collectives.gather_objects(own)
        twice = sorted({name for name in found if found.count(name) > 1})
        require(not twice, f"several processes were given the same GPU: {', '.join(twice)}")


def _set_threads(place: DistributedEnvironment) -> None:
    share = place.threads or max(1, cores() // place.local_world)
    torch.set_num_threads(min(_threads_at_start, share))


_threads_at_start = torch.get_num_threads()


class _Watch:
    """Hears of other ranks' failures, and tells them of this one's."""

    def __init__(
        self, place: DistributedEnvironment, store: dist.Store, note: Callable[[str], None]
    ) -> None:
        self._place = place
        self._note = note
        self._ended = threading.Event()
        self._store = store  # a connection that no exchange can block
        threading.Thread(target=self._listen, name="other ranks", daemon=True).start()

    def end(self) -> None:
        """Listen no more."""
        self._ended.set()

    def settle(self, error: BaseException) -> BaseException:
        """Tell the others why this rank fails, where it is the first one; what it is to raise."""
        if _is_loss(error):
            deadline = time.monotonic() + _SECONDS_TO_HEAR
            while self._heard() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            error = UserError(
                "another process was lost; it may have been killed, such as for want of memory; "
                "the same command goes on from the last checkpoint, if there is one"
            )
        own = _Failure.of(self._place.rank, error)
        first = own
        with suppress(Exception):
            first = _Failure(*json.loads(self._store.compare_set(_KEY, "", own.packed())))
        if self._place.rank:
            return ToldElsewhere(own.code)
        if not isinstance(error, Exception):
            return error
        self._note(first.last_line)
        return error if first.rank == 0 else first.error()

    def _heard(self) -> _Failure | None:
        """The first failure, if there is one; the loss of rank 0 is one, too."""
        try:
            if not self._store.check([_KEY]):
                return None
            return _Failure(*json.loads(self._store.get(_KEY)))
        except Exception:
            return _Failure(0, 2, "process 0 was lost")

    def _listen(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            parent = self._place.parent
            if parent is not None and os.getppid() != parent:
                os._exit(2)
            failure = self._heard()
            if failure is None:
                continue
            was_stopped = failure.code > 128  # and this one may be writing its checkpoint
            if not self._ended.wait(SECONDS_TO_SAVE if was_stopped else _SECONDS_TO_END):
                if self._place.rank == 0:
                    self._note(failure.last_line)
                    print(f"ssl-bench: {' '.join(failure.text.split())}", file=sys.stderr)
                    sys.stderr.flush()
                os._exit(failure.code)


@dataclass(frozen=True)
class _Failure:
    """Why a rank failed.

    Attributes:
        code: the exit code: 2 for what a line tells, 1 with a traceback, above 128 for a signal.
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
            number = getattr(error, "signal", signal.SIGINT)
            return cls(rank, 128 + number, f"process {rank} was stopped; the same command goes on")
        return cls(rank, 1, "".join(traceback.format_exception(error)))

    def packed(self) -> str:
        return json.dumps([self.rank, self.code, self.text])

    def error(self) -> Exception:
        if self.code == 1:
            return RuntimeError(f"process {self.rank} failed\n{self.text}")
        return UserError(self.text)

    @property
    def last_line(self) -> str:
        """What went wrong, without where."""
        return self.text.strip().splitlines()[-1]


def _is_loss(error: BaseException) -> bool:
    """Whether an error is that another rank has gone."""
    signs = ("gloo", "NCCL", "Connection", "Socket", "Broken pipe")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )
