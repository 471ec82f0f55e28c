"""States of trainings on disk, and evaluations' trainings that go on from them.

As every random draw is a function of the step, a state is what the parameters and the optimiser
hold, and the number of steps they have seen.
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_bench.distributed import collectives
from ssl_bench.errors import UserError, first_line, is_of_memory, require
from ssl_bench.utils import pickled
from ssl_bench.utils.files import atomic, make_inside
from ssl_bench.utils.signals import defer_signals, error_of

SECONDS_BETWEEN_STATES = 60.0
_QUICK = 3.0
"""Seconds: writing a state for longer makes states rarer, so that it takes a twentieth of the time
at most."""


def pause(seconds: float, took: float) -> float:
    """How long to train until the next state is written, where the last one took so long.

    Args:
        seconds: the pause where writing is quick.
        took: seconds.
    """
    return seconds * max(1.0, took / _QUICK)


def agreed(signal_number: int | None, is_due: bool) -> tuple[int, bool]:
    """What every rank does after a step: the signal to stop for, 0 for none, and whether to save.

    Args:
        signal_number: which this rank was told to stop by, if it was.
        is_due: whether it is time to save, by the clock of rank 0.
    """
    wish = int(collectives.largest(2 * (signal_number or 0) + (is_due and collectives.rank() == 0)))
    return wish // 2, wish > 0


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain values; a process killed meanwhile leaves the old one."""
    with atomic(path) as temporary:
        torch.save(dict(state), temporary)


def load(path: Path) -> dict[str, Any]:
    """Read a state, its check sums compared; nothing if there is none.

    Raises:
        UserError: it cannot be read, or is not as it was written.
    """
    if not path.exists():
        return {}
    with readable(path):
        return dict(pickled.read(path))


def load_on_all(path: Path, load_first: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A state, on each rank: rank 0 reads it in its own way, and the others read the same one.

    Args:
        load_first: what rank 0 reads; nothing if there is no state.

    Raises:
        UserError: it cannot be read, or a rank does not see it.
    """
    of_first: dict[str, Any] = {}

    def step_of_first() -> int | None:
        of_first.update(load_first())
        return of_first.get("step")

    step = collectives.on_rank_zero(step_of_first)
    if step is None or collectives.rank() == 0:
        return of_first
    state: dict[str, Any] = {}
    if path.exists():
        with readable(path):
            # What a rank keeps of it on a GPU, or as its shard, is read into memory alone.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    require(
        state.get("step") == step,
        f"process {collectives.rank()} does not see checkpoint {str(path)!r} of step {step}, which "
        "process 0 goes on from; a --runs-dir on a disk that all machines share would work",
    )
    return state


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say of whatever fails in the block that the state cannot be read."""
    try:
        yield
    except Exception as error:
        if is_of_memory(error):
            raise  # the state may be whole
        raise UserError(
            f"checkpoint {str(path)!r} cannot be read ({first_line(error)}); "
            "delete it to start again"
        ) from error


class EvalCheckpoint:
    """Where an evaluation keeps the states of its trainings until its scores are stored.

    The evaluation must be deterministic: one that goes on takes the state of its n-th training for
    its n-th training.

    Attributes:
        folder: made where there is a state to keep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths = (folder / f"{number}.pt" for number in itertools.count(1))
        self._started = time.monotonic()
        self._before = 0.0

    @property
    def seconds(self) -> float:
        """Since the evaluation began, earlier starts included up to their last states."""
        return self._before + time.monotonic() - self._started

    def remove(self) -> None:
        """Delete all states, and the folder above if it holds no others."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
            with suppress(OSError):
                self.folder.parent.rmdir()

    def next_path(self) -> Path:
        """The file of the next training's state."""
        return next(self._paths)

    def count_in(self, seconds: float) -> None:
        """Add the time that an earlier start took up to a state."""
        self._before = max(self._before, seconds)


class Training:
    """A training in steps that may have begun in another process: `training` makes one.

    Attributes:
        start: steps that are done already.
        last_loss: of the last step that is done; not a number if there is none.
    """

    def __init__(
        self,
        start: int = 0,
        loss: Tensor | float = math.nan,
        after: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        self.start, self._loss, self._after = start, loss, after

    @property
    def last_loss(self) -> float:
        """Waits for a device."""
        return float(self._loss)

    def after_step(self, done: int, loss: Tensor) -> None:
        """Tell that so many steps are done, and the last one's loss.

        Where there is a place for it, the state is saved now and then, after the last step, and
        where the program is asked to end, which it then does.
        """
        self._loss = loss.detach()
        if self._after:
            self._after(done, self._loss)


@contextmanager
def training(
    scratch: EvalCheckpoint | None, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int
) -> Iterator[Training]:
    """A training of a model, gone on with where an earlier start left its state.

    With several ranks, all of which have the same model after each step, rank 0 writes.

    Args:
        scratch: where states are kept; None for nowhere: then the training begins anew each time,
            and ends at once where that is asked for.
        model: which the state, if there is one, is put into.
        optimizer: of the model, which its own state is put into.
        steps: of the whole training.

    Raises:
        UserError: the state cannot be read.
    """
    if scratch is None:
        yield Training()
        return
    path = scratch.next_path()
    with defer_signals() as wanted:
        collectives.barrier()  # each of them notes a signal from here on: nobody waits in vain
        start, last, saved, wait = 0, math.nan, time.monotonic(), SECONDS_BETWEEN_STATES
        state = load_on_all(path, lambda: load(path))
        if state:
            with readable(path):
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optimizer"])
                start, last = state["step"], state["loss"]
                scratch.count_in(state["seconds"])

        def after(done: int, loss: Tensor) -> None:
            nonlocal saved, wait
            at, now = "", time.monotonic()
            stop, is_wanted = agreed(wanted(), now - saved > wait or done == steps)
            # There is no going on from a training that has diverged.
            if is_wanted and bool(loss.isfinite()):
                if collectives.rank() == 0:
                    make_inside(scratch.folder.parent.parent, scratch.folder)
                    of_parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    own = {"step": done, "loss": loss.item(), "seconds": scratch.seconds}
                    save(path, own | of_parts)
                saved, at = time.monotonic(), f"step {done} of {steps} of an evaluation is saved"
                wait = pause(SECONDS_BETWEEN_STATES, saved - now)
            if stop:
                raise error_of(stop, at)

        yield Training(start, last, after)
