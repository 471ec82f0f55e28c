"""Where ranks meet before they exchange anything.

Torch's own ways to wait for others let no signal through, for minutes. Here it is waited in
Python, whose handlers run, and a rank that leaves says so to the others.
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


def meet(place: DistributedEnvironment) -> dist.TCPStore:
    """Wait until every rank is there.

    Returns:
        A connection to the store that rank 0 keeps (or torchrun), which torch's own exchanges may
        use, too. Rank 0 holds it for as long as anybody needs it.

    Raises:
        UserError: another rank has left, the command that started this one has ended, or not all
            have come within half an hour.
    """
    # Torchrun's store may outlive the processes that it starts anew, which it counts.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    arrived, left = (f"ssl-bench: {what} {attempt}" for what in ("arrived", "left"))
    deadline = time.monotonic() + _PATIENCE_SECONDS
    store = _connected(place, deadline)
    try:
        count = store.add(arrived, 1)
        while count < place.world:
            _look_around(place, deadline, f"{count} of {place.world} processes have come")
            if store.check([left]):
                raise UserError(f"process {store.get(left).decode()} ended before all had met")
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            count = store.add(arrived, 0)
    except dist.DistError as error:
        raise UserError("process 0 ended before all had met") from error
    except BaseException:
        with suppress(Exception):
            store.compare_set(left, "", str(place.rank))
        raise
    if place.marker:
        with suppress(OSError):
            Path(place.marker).touch()
    store.set_timeout(timedelta(seconds=_SECONDS_FOR_AN_ANSWER))
    return store


def _connected(place: DistributedEnvironment, deadline: float) -> dist.TCPStore:
    """A connection to the store; rank 0 makes it, where torchrun has not."""
    is_keeper = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while True:
        try:
            return dist.TCPStore(
                *(place.address, place.port),
                is_master=is_keeper,
                timeout=timedelta(seconds=_SECONDS_PER_TRY),
                wait_for_workers=False,
                multi_tenant=is_keeper,  # so that torch's own store is this one
            )
        except (RuntimeError, ValueError) as error:
            if is_keeper:
                raise _not_met(place, first_line(error)) from error
            _look_around(place, deadline, first_line(error))
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _look_around(place: DistributedEnvironment, deadline: float, state: str) -> None:
    is_orphan = place.parent is not None and os.getppid() != place.parent
    require(not is_orphan, "the command that started this process has ended")
    if time.monotonic() > deadline:
        raise _not_met(place, state)


def _not_met(place: DistributedEnvironment, why: str) -> UserError:
    return UserError(
        f"process {place.rank} of {place.world} cannot meet the others at {place.address}, "
        f"port {place.port}: {why}"
    )
