"""How ranks meet before they exchange anything.

Torch's own ways to wait for others handle no signal for minutes. This waits in Python, whose signal
handlers run, and a rank that leaves tells the others.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from ssl_bench.distributed.environment import DistributedEnvironment
from ssl_bench.errors import UserError, first_line, require

_PATIENCE_SECONDS = 1800.0
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_PER_TRY = 2.0
_SECONDS_FOR_AN_ANSWER = 60.0


def meet(environment: DistributedEnvironment) -> dist.TCPStore:
    """Wait until every rank has arrived.

    Returns:
        A connection to the store of rank 0 (or of torchrun), which torch may use, too. Rank 0 must
        keep it for as long as any rank needs it.

    Raises:
        UserError: another rank has left, the command that started this one has ended, or not all
            have arrived within half an hour.
    """
    # Torchrun's store may outlive the processes, which torchrun restarts and counts.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    arrived, left = (f"ssl-bench: {event} {attempt}" for event in ("arrived", "left"))
    deadline = time.monotonic() + _PATIENCE_SECONDS
    store = _connect(environment, deadline)
    try:
        count = store.add(arrived, 1)
        while count < environment.world:
            state = f"{count} of {environment.world} processes have come"
            _check_waiting(environment, deadline, state)
            if store.check([left]):
                raise UserError(f"process {store.get(left).decode()} ended before all had met")
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            count = store.add(arrived, 0)
    except dist.DistError as error:
        raise UserError("process 0 ended before all had met") from error
    except BaseException:
        with suppress(Exception):
            store.compare_set(left, "", str(environment.rank))
        raise
    if environment.marker:
        with suppress(OSError):
            Path(environment.marker).touch()
    store.set_timeout(timedelta(seconds=_SECONDS_FOR_AN_ANSWER))
    return store


def cannot_meet(environment: DistributedEnvironment, reason: str) -> UserError:
    """The error of a rank that cannot reach the others."""
    return UserError(
        f"process {environment.rank} of {environment.world} cannot meet the others at "
        f"{environment.address}, port {environment.port}: {reason}"
    )


def _connect(environment: DistributedEnvironment, deadline: float) -> dist.TCPStore:
    """A connection to the store; rank 0 creates it unless torchrun has."""
    is_server = environment.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while True:
        try:
            return dist.TCPStore(
                *(environment.address, environment.port),
                is_master=is_server,
                timeout=timedelta(seconds=_SECONDS_PER_TRY),
                wait_for_workers=False,
                multi_tenant=is_server,  # so that torch's own store can be this one
            )
        except (RuntimeError, ValueError) as error:
            if is_server:
                raise cannot_meet(environment, first_line(error)) from error
            _check_waiting(environment, deadline, first_line(error))
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _check_waiting(environment: DistributedEnvironment, deadline: float, state: str) -> None:
    is_orphan = environment.parent is not None and os.getppid() != environment.parent
    require(not is_orphan, "the command that started this process has ended")
    if time.monotonic() > deadline:
        raise cannot_meet(environment, state)
