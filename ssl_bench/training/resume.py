"""Checkpoints on disk, and how an evaluation's training is resumed from one.

Every random number is a function of the step, so a checkpoint holds parameters, optimiser state and
the number of steps done.
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
"""Seconds. A checkpoint that takes longer to write is written less often, so that writing takes a
twentieth of the time at most."""


def pause(seconds: float, took: float) -> float:
    """Seconds to train until the next checkpoint, given how long it took to write the last one."""
    return seconds * max(1.0, took / _QUICK)


def agreed(signal_number: int | None, is_due: bool) -> tuple[int, bool]:
    """What all ranks do after a step: the signal to stop for, or 0, and whether to save.

    Whether it is due, rank 0 decides.
    """
    wish = int(collectives.largest(2 * (signal_number or 0) + (is_due and collectives.rank() == 0)))
    return wish // 2, wish > 0


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values; a process that is killed meanwhile leaves the old file."""
    with atomic(path) as temporary:
        torch.save(dict(state), temporary)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint and verify its check sums; nothing if there is none.

    Raises:
        UserError: it cannot be read, or is not as it was written.
    """
    if not path.exists():
        return {}
    with readable(path):
        return dict(pickled.read(path))


def load_on_all(path: Path, load_first: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A checkpoint, on every rank; rank 0 loads it, the others check that they see the same one.

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
            # Only what this rank keeps, on its GPU or as its shard, is read into memory.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    require(
        state.get("step") == step,
        f"process {collectives.rank()} does not see checkpoint {str(path)!r} of step {step}, which "
        "process 0 resumes from; a --runs-dir on a disk that all machines share would work",
    )
    return state


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn any failure in the block into a `UserError` that the checkpoint cannot be read."""
    try:
        yield
    except Exception as error:
        if is_of_memory(error):
            raise  # the file may be intact
        raise UserError(
            f"checkpoint {str(path)!r} cannot be read ({first_line(error)}); "
            "delete it to start again"
        ) from error


class EvalCheckpoint:
    """The checkpoints of an evaluation's trainings, kept until its scores are stored.

    The evaluation must be deterministic: when it is resumed, its n-th training takes the n-th
    checkpoint. The folder is made when there is something to keep.

    Attributes:
        paths: the file of each training in turn.
        before: seconds that earlier starts took up to their last checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = (folder / f"{number}.pt" for number in itertools.count(1))
        self._started = time.monotonic()
        self.before = 0.0

    @property
    def seconds(self) -> float:
        """Since the evaluation began, earlier starts included up to their last checkpoints."""
        return self.before + time.monotonic() - self._started

    def remove(self) -> None:
        """Delete all checkpoints, and the folder above if it holds no others."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
            with suppress(OSError):
                self.folder.parent.rmdir()


class Training:
    """A training of which ``start`` steps may have been done in another process."""

    def __init__(
        self,
        start: int = 0,
        loss: Tensor | float = math.nan,
        after: Callable[[int, Tensor], None] = lambda done, loss: None,
    ) -> None:
        self.start, self._loss, self._after = start, loss, after

    @property
    def last_loss(self) -> float:
        """Waits for a device."""
        return float(self._loss)

    def after_step(self, done: int, loss: Tensor) -> None:
        """Note a step's loss; save now and then, at the end, and when asked to stop."""
        self._loss = loss.detach()
        self._after(done, self._loss)


@contextmanager
def training(
    checkpoint: EvalCheckpoint | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> Iterator[Training]:
    """Train a model, resuming from the checkpoint of an earlier start if there is one.

    All ranks have the same model after each step; rank 0 writes. Without ``checkpoint`` nothing is
    kept.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    if checkpoint is None:
        yield Training()
        return
    path = next(checkpoint.paths)
    with defer_signals() as wanted:
        collectives.barrier()  # from here on every rank notes signals, so no rank waits in vain
        start, last, saved, wait = 0, math.nan, time.monotonic(), SECONDS_BETWEEN_STATES
        state = load_on_all(path, lambda: load(path))
        if state:
            with readable(path):
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optimizer"])
                start, last = state["step"], state["loss"]
                checkpoint.before = max(checkpoint.before, state["seconds"])

        def after(done: int, loss: Tensor) -> None:
            nonlocal saved, wait
            at, now = "", time.monotonic()
            stop, is_wanted = agreed(wanted(), now - saved > wait or done == steps)
            # A training that has diverged is not resumed.
            if is_wanted and bool(loss.isfinite()):
                if collectives.rank() == 0:
                    make_inside(checkpoint.folder.parent.parent, checkpoint.folder)
                    of_parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    own = {"step": done, "loss": loss.item(), "seconds": checkpoint.seconds}
                    save(path, own | of_parts)
                saved, at = time.monotonic(), f"step {done} of {steps} of an evaluation is saved"
                wait = pause(SECONDS_BETWEEN_STATES, saved - now)
            if stop:
                raise error_of(stop, at)

        yield Training(start, last, after)
