"""Pre-training: one plain loop."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import Tensor

from ssl_bench.api.method import Method
from ssl_bench.api.step import Step
from ssl_bench.data import Dataset, Split
from ssl_bench.distributed import collectives, strategy
from ssl_bench.distributed.device import Hardware, peak_memory_mib
from ssl_bench.errors import require
from ssl_bench.models import encoders, spread, weights
from ssl_bench.runs import schema
from ssl_bench.runs.schema import Plan, is_trained
from ssl_bench.training import flops, gradients, resume, setup, training_state
from ssl_bench.training.schedule import Schedule
from ssl_bench.utils import progress
from ssl_bench.utils.files import make_inside, write_json
from ssl_bench.utils.rng import SampleRng
from ssl_bench.utils.signals import defer_signals, error_of

SECONDS_BETWEEN_CHECKPOINTS = 60.0
_RECORDS_PER_RUN = 250
_STEPS_BETWEEN_RECORDS = 50
T = TypeVar("T")


@dataclass(frozen=True)
class Training:
    """One pre-training: what is trained, on what, and where it is written.

    ``images_at_once`` and ``encoded_at_once`` limit the images whose activations each rank keeps,
    in all and in an encoder.
    """

    method: Method
    data: Dataset
    plan: Plan
    folder: Path
    hardware: Hardware
    images_at_once: int | None
    encoded_at_once: int | None
    flops_per_step: int

    def cost(self, steps: int, seconds: float) -> dict[str, Any]:
        """What so many steps cost, on every axis that runs are compared by."""
        return {
            "steps": steps,
            "images_seen": steps * self.plan.batch_size,
            "flops": self.flops_per_step * steps,
            "seconds": round(seconds, 2),
        }


def pretrain(
    method: Method,
    data: Dataset,
    plan: Plan,
    folder: Path,
    hardware: Hardware,
    micro_batch_size: int | None = None,
    snapshot_steps: Collection[int] = (),
) -> Mapping[str, Any]:
    """Train the method as planned and write the encoder; resume from a checkpoint, if there is one.

    Args:
        micro_batch_size: how many images' activations each rank keeps at a time, where they
            are `taken_in_parts`; None for as many as suit the hardware, or all. It changes rounding
            alone.
        snapshot_steps: after which steps to write the encoder as it is then, and what it cost.

    Returns:
        What it cost, as in ``cost.json``.

    Raises:
        UserError: the loss is not finite, or the checkpoint cannot be read.
    """
    in_parts = gradients.taken_in_parts(method)
    at_once = micro_batch_size or hardware.images_at_once(plan.encoder.patches)
    hardware.reset_peak_memory()
    method.to(hardware.device).train()
    training = Training(
        method,
        data,
        plan,
        folder,
        hardware,
        images_at_once=at_once if in_parts else None,
        encoded_at_once=micro_batch_size if in_parts == "encoder" else None,
        flops_per_step=flops.of_step(method, plan.encoder, plan.batch_size),
    )
    encoders.keep_at_once(method, training.encoded_at_once)
    steps, seconds = 0, 0.0
    with defer_signals() as wanted:
        if method.trains:
            schedule = Schedule(len(data.train), plan.batch_size, plan.epochs)
            method.before_training(data.train, plan.seed)
            steps, seconds = schedule.steps, _train(training, schedule, snapshot_steps, wanted)
        return _finish(training, steps, seconds)


def _train(
    training: Training,
    schedule: Schedule,
    snapshot_steps: Collection[int],
    wanted: Callable[[], int | None],
) -> float:
    """The loop, until a signal is wanted. Returns the device-seconds of this and earlier starts."""
    method, plan = training.method, training.plan
    hardware, folder = training.hardware, training.folder
    seed, total, ranks = plan.seed, schedule.steps, collectives.world_size()
    train = training.data.train.to(hardware.device)
    state = training_state.read(folder)
    start, seconds_before = state.get("step", 0), state.get("seconds", 0.0)
    losses = {name: values.to(hardware.device) for name, values in state.get("losses", {}).items()}
    trainer = _restored(training, train, state)
    del state
    _check_snapshots(folder, snapshot_steps, start)
    share = collectives.shard(plan.batch_size)
    samples = (
        SampleRng(seed, step, schedule.batch(step, seed, "order")[share])
        for step in range(start, total)
    )
    started = checkpointed = time.monotonic()
    pause = SECONDS_BETWEEN_CHECKPOINTS

    with (
        closing(trainer.batches(samples)) as source,
        progress.bar(f"pre-train {plan.method}", total) as bar,
        collectives.path_on_rank_zero(folder / schema.METRICS).open("a", encoding="utf-8") as file,
    ):
        metrics = _Metrics(file, bar, losses, hardware.precision)
        for step in map(schedule.step, range(start, total)):
            loss, learning_rate = trainer.take(step, metrics.next(source))
            done = step.number + 1
            if done in snapshot_steps:
                if hardware.device.type == "cuda":
                    torch.cuda.synchronize()
                before = time.monotonic()
                _snapshot(training, done, seconds_before + (before - started) * ranks)
                started += time.monotonic() - before  # which is no part of the training
            metrics.add(step, loss, learning_rate, method.watched_BD)
            now = time.monotonic()
            stop, is_wanted = resume.agreed(wanted(), now - checkpointed > pause)
            if is_wanted:
                if collectives.rank() == 0:
                    os.fsync(file.fileno())  # whose records the checkpoint counts on
                seconds = seconds_before + (now - started) * ranks
                own = trainer.optimizer.optimizer
                training_state.save(method, own, done, seconds, metrics.losses, folder)
                checkpointed = time.monotonic()
                pause = resume.pause(SECONDS_BETWEEN_CHECKPOINTS, checkpointed - now)
            if stop:
                raise error_of(stop, f"step {done} of {total} is saved")
    return seconds_before + (time.monotonic() - started) * ranks


class _Metrics:
    """Writes a line of ``metrics.jsonl`` with the mean losses every few steps, and shows it."""

    def __init__(
        self,
        file: IO[str],
        bar: progress.Bar,
        losses: Mapping[str, Iterable[Tensor]],
        precision: str,
    ) -> None:
        self._file, self._bar, self._precision = file, bar, precision
        self.losses = {name: list(values) for name, values in losses.items()}
        self._written, self._waited, self._steps = time.monotonic(), 0.0, 0

    def next(self, source: Iterator[T]) -> T:
        """The next batch, for which the training has to wait."""
        before = time.monotonic()
        batch = next(source)
        self._waited += time.monotonic() - before
        return batch

    def add(
        self,
        step: Step,
        losses: Mapping[str, Tensor],
        learning_rate: float,
        watched_BD: Tensor | None,
    ) -> None:
        """Note a step's losses; write the means since the last line where one is due.

        Args:
            watched_BD: features whose spread belongs to the line.

        Raises:
            UserError: the loss is not finite.
        """
        for name, loss in losses.items():
            self.losses.setdefault(name, []).append(loss)
        self._steps += 1
        done = step.number + 1
        every = min(max(1, step.total // _RECORDS_PER_RUN), _STEPS_BETWEEN_RECORDS)
        if done % every and done < step.total:
            return
        means = {
            name: collectives.mean(torch.stack(values).mean()).item()
            for name, values in self.losses.items()
        }
        mean_loss = means.pop(gradients.TOTAL)
        bad = "".join(f", {name} is {each}" for name, each in means.items() if not isfinite(each))
        more_precise = "" if self._precision == "fp32" else " or --precision fp32"
        require(
            isfinite(mean_loss),
            f"the loss is {mean_loss} at step {done}{bad}; a smaller --base-lr (the learning rate "
            f"is {learning_rate:.3g} now){more_precise} may help",
        )
        now = time.monotonic()
        speed = self._steps * step.batch_size / (now - self._written)
        waiting = self._waited / (now - self._written)
        record = {
            "step": done,
            "epoch": round(done / step.per_epoch, 4),
            "loss": mean_loss,
            **({"losses": means} if means else {}),
            **(spread.of_watched(watched_BD) if watched_BD is not None else {}),
            "learning_rate": learning_rate,
            "images_per_second": round(speed, 1),
            "waiting": round(waiting, 4),
        }
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        note = f"loss {mean_loss:.4f}  {speed:,.0f} img/s  waiting for data {waiting:.0%}"
        self._bar.update(done, note)
        self.losses, self._written, self._waited, self._steps = {}, now, 0.0, 0


def _finish(training: Training, steps: int, seconds: float) -> dict[str, Any]:
    """Write what a training has made, ``encoder.json`` last; the checkpoint is not needed then."""
    method, folder, hardware = training.method, training.folder, training.hardware
    state = method.state_dict()
    own = strategy.full_state(
        {name: state[name] for name in state if not name.startswith("encoder.")}
    )
    cost = {
        **training.cost(steps, seconds),
        "flops_per_step": training.flops_per_step,
        "peak_memory_mib": round(collectives.largest(peak_memory_mib(hardware.device))),
        "encoder_parameters": sum(p.numel() for p in method.encoder.parameters()),
        "trained_parameters": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "device": hardware.name,
        "devices": collectives.world_size(),
        "strategy": strategy.strategy(),
        "precision": hardware.precision,
        "compiled": hardware.compiled,
        "images_at_once": training.images_at_once,
        "encoded_at_once": training.encoded_at_once,
        **_spread(method),
    }
    if collectives.rank() == 0:
        weights.write(folder / schema.METHOD_WEIGHTS, own)
        write_json(folder / schema.COST, cost)
    weights.save(method.encoder, training.plan.encoder, folder)
    if collectives.rank() == 0:
        (folder / schema.CHECKPOINT).unlink(missing_ok=True)
    return cost


def _spread(method: Method) -> dict[str, Any]:
    """How far the compared features are spread in the end, and whether they have collapsed."""
    if method.watched_BD is None:
        return {}
    found = spread.of_watched(method.watched_BD)
    why = spread.collapsed(found)
    return {**found, "collapsed": why} if why else found


def snapshot_folder(folder: Path, step: int) -> Path:
    """Where the encoder after a step is, in a run folder."""
    return folder / schema.SNAPSHOTS / f"step-{step:08}"


def _check_snapshots(folder: Path, steps: Collection[int], start: int) -> None:
    """Require that no encoder is wanted of a step before the start, but those that are there."""
    written = collectives.on_rank_zero(
        lambda: {step for step in steps if is_trained(snapshot_folder(folder, step))}
    )
    for step in steps:
        require(
            step > start or step in written,
            f"the encoder of step {step} is wanted on the way, and the training is at step {start} "
            f"already; without --eval-every, or with checkpoint {str(folder / 'checkpoint.pt')!r} "
            "deleted, it would be resumed",
        )


def _snapshot(training: Training, steps: int, seconds: float) -> None:
    home = snapshot_folder(training.folder, steps)
    if collectives.rank() == 0:
        make_inside(training.folder, home)
        write_json(home / schema.COST, training.cost(steps, seconds))
    if training.method.text_side is not None:
        own = training.method.text_side.state_dict(prefix=f"{weights.TEXT_SIDE}.")
        own = strategy.full_state(own)
        if collectives.rank() == 0:
            weights.write(home / schema.METHOD_WEIGHTS, own)
    weights.save(training.method.encoder, training.plan.encoder, home)


def _restored(training: Training, train: Split, state: Mapping[str, Any]) -> setup.Trainer:
    """The method ready to be trained, as it was at the checkpoint, if there is one."""
    path, plan, method = training.folder / schema.CHECKPOINT, training.plan, training.method
    with resume.readable(path):
        if state:
            method.load_state_dict(state["method"])
    how = plan.encoder, train, plan.seed, training.images_at_once
    trainer = setup.prepare(method, training.hardware, *how)
    with resume.readable(path):
        if state:
            strategy.load_optimizer(trainer.optimizer.optimizer, state["optimizer"])
    return trainer
