"""Pre-training: one plain loop."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from ssl_bench.api.method import Batch, Method
from ssl_bench.data import Dataset, Split
from ssl_bench.distributed import collectives, strategy
from ssl_bench.distributed.device import Hardware, peak_memory_mib
from ssl_bench.distributed.strategy import Replica
from ssl_bench.errors import UserError, require
from ssl_bench.models import encoders, weights
from ssl_bench.models.encoders import EncoderSpec
from ssl_bench.runs import schema
from ssl_bench.runs.schema import Plan, is_trained
from ssl_bench.training import flops, gradients, optim, resume, training_state
from ssl_bench.training.optim import Schedule
from ssl_bench.transforms.augmentations import evaluation_view, normalize
from ssl_bench.transforms.loader import views
from ssl_bench.utils import progress, rng
from ssl_bench.utils.files import make_inside, write_json
from ssl_bench.utils.rng import SampleRng
from ssl_bench.utils.signals import defer_signals, error_of

SECONDS_BETWEEN_CHECKPOINTS = 60.0
_RECORDS_PER_RUN = 250
_STEPS_BETWEEN_RECORDS = 50


def build_method(
    method_class: type[Method], config: Any, spec: EncoderSpec, classes: int, seed: int
) -> Method:
    """The method around a fresh encoder, a function of its arguments alone."""
    encoder = encoders.build(spec, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(seed, "method"))
        return method_class(config, encoder, classes)


def make_batch(
    method: Method, train: Split, spec: EncoderSpec, seed: int, step: int, index_B: Tensor
) -> Batch:
    """Augmented, normalised views of the images at those indices, where the split's labels are.

    Raises:
        UserError: an image of a streamed split cannot be read.
    """
    [batch] = batches(method, train, spec, [SampleRng(seed, step, index_B.cpu())])
    return batch


def batches(
    method: Method, train: Split, spec: EncoderSpec, steps: Iterable[SampleRng]
) -> Generator[Batch]:
    """`make_batch` for the samples of each step, the next ones got ready meanwhile by threads.

    Close it where it is not iterated to its end.

    Args:
        steps: each with one row per sample, on the CPU.
    """
    recipes = method.augmentations(spec.image_size)
    with closing(views(train, recipes, steps)) as found:
        for batch_draws, unnormalized in found:
            normalized = tuple(normalize(view, spec.mean, spec.std, True) for view in unnormalized)
            yield Batch(normalized, train.labels_N[batch_draws.samples_B], batch_draws)


def pretrain(
    method: Method,
    data: Dataset,
    plan: Plan,
    folder: Path,
    hardware: Hardware,
    micro_batch_size: int | None = None,
    snapshot_steps: Collection[int] = (),
) -> Mapping[str, Any]:
    """Train the method as planned and write the encoder; a checkpoint, if there, is gone on from.

    Args:
        micro_batch_size: how many images' activations each rank keeps at a time, where the method's
            loss `splits`, or else its encoders, where it encodes in parts; None for as many as suit
            the hardware, or all. It changes rounding alone.
        snapshot_steps: after which steps to write the encoder as it is then, and what it cost.

    Returns:
        What it cost, as in ``cost.json``.

    Raises:
        UserError: the loss is not finite, or the checkpoint cannot be read.
    """
    spec = plan.encoder
    images_at_once = micro_batch_size or hardware.images_at_once(spec.patches)
    hardware.reset_peak_memory()
    method.to(hardware.device).train()
    flops_per_step = flops.of_step(method, spec, plan.batch_size)
    encoded_at_once = None if method.per_sample_loss else micro_batch_size
    encoders.keep_at_once(method, encoded_at_once)
    steps = 0
    if method.trains:
        steps = Schedule.of(len(data.train), plan.batch_size, plan.epochs, method.config).steps
        method.before_training(data.train, spec, plan.seed)
    with defer_signals() as wanted:
        seconds = 0.0
        if method.trains:
            seconds = _train(
                *(method, data, plan, spec, folder, hardware, images_at_once),
                {step: flops_per_step * step for step in snapshot_steps},
                wanted,
            )
        return _finish(
            *(method, plan, spec, folder, hardware, images_at_once, encoded_at_once),
            *(steps, flops_per_step, seconds),
        )


def _finish(
    method: Method,
    plan: Plan,
    spec: EncoderSpec,
    folder: Path,
    hardware: Hardware,
    images_at_once: int | None,
    encoded_at_once: int | None,
    steps: int,
    flops_per_step: int,
    seconds: float,
) -> dict[str, Any]:
    """Write what a training has made, ``encoder.json`` last; the checkpoint is not needed then."""
    state = method.state_dict()
    own = strategy.full_state(
        {name: state[name] for name in state if not name.startswith("encoder.")}
    )
    if collectives.rank() == 0:
        weights.write(folder / schema.METHOD_WEIGHTS, own)
    cost = {
        **_cost(steps, plan.batch_size, flops_per_step * steps, seconds),
        "flops_per_step": flops_per_step,
        "peak_memory_mib": round(collectives.largest(peak_memory_mib(hardware.device))),
        "encoder_parameters": sum(p.numel() for p in method.encoder.parameters()),
        "trained_parameters": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "device": hardware.name,
        "devices": collectives.world_size(),
        "strategy": strategy.strategy(),
        "precision": hardware.precision,
        "compiled": hardware.compiled,
        "images_at_once": images_at_once,
        "encoded_at_once": encoded_at_once,
    }
    if collectives.rank() == 0:
        write_json(folder / schema.COST, cost)
    weights.save(method.encoder, spec, folder)
    if collectives.rank() == 0:
        (folder / schema.CHECKPOINT).unlink(missing_ok=True)
    return cost


def restore(method: Method, folder: Path) -> None:
    """Load a finished run's weights into the method."""
    own = weights.read(folder / schema.METHOD_WEIGHTS)
    encoder = weights.read(folder / schema.ENCODER_WEIGHTS)
    method.load_state_dict(own | {f"encoder.{name}": value for name, value in encoder.items()})


@torch.no_grad()
def pictures(
    method: Method, data: Dataset, spec: EncoderSpec, seed: int, count: int
) -> Mapping[str, Tensor]:
    """The method's pictures of the first test images of as many classes as there are, or of all."""
    labels_N = data.test.labels_N
    firsts = list(range(len(labels_N)))
    if not data.unlabelled:
        firsts = [int((labels_N == label).nonzero()[0]) for label in labels_N.unique()]
    index_B = torch.tensor(firsts[:count])
    images_BCHW = evaluation_view(data.test.images(index_B), spec.image_size)
    view = normalize(images_BCHW, spec.mean, spec.std)
    batch = Batch((view,), labels_N[index_B], SampleRng(seed, 0, index_B, "pictures/"))
    # What was compiled for the device of the training need not compile on the CPU.
    with torch.compiler.set_stance("force_eager"):
        return method.cpu().eval().pictures(batch)


def _train(
    method: Method,
    data: Dataset,
    plan: Plan,
    spec: EncoderSpec,
    folder: Path,
    hardware: Hardware,
    images_at_once: int | None,
    snapshot_flops: Mapping[int, int],
    wanted: Callable[[], int | None],
) -> float:
    """The loop. Returns the device-seconds it took, earlier starts included.

    Args:
        wanted: the signal that asks the program to end after the step under way, if any.
    """
    config, seed, batch_size = method.config, plan.seed, plan.batch_size
    train = data.train.to(hardware.device)
    schedule = Schedule.of(len(data.train), batch_size, plan.epochs, config)
    total = schedule.steps
    record_every = min(max(1, total // _RECORDS_PER_RUN), _STEPS_BETWEEN_RECORDS)
    state = training_state.read(folder)
    start, seconds_before = state.get("step", 0), state.get("seconds", 0.0)
    # There are none in a checkpoint of an older version.
    losses = list(state.get("losses", torch.empty(0)).to(hardware.device))
    replica, optimizer = _restored(method, state, hardware, spec, folder)
    del state
    ranks = collectives.world_size()
    written = collectives.on_rank_zero(
        lambda: {s for s in snapshot_flops if is_trained(snapshot_folder(folder, s))}
    )
    for step in snapshot_flops:
        require(
            step > start or step in written,
            f"the encoder of step {step} is wanted on the way, and the training is at step {start} "
            f"already; without --eval-every, or with checkpoint {str(folder / 'checkpoint.pt')!r} "
            "deleted, it would go on",
        )
    started = checkpointed = recorded = time.monotonic()
    pause = SECONDS_BETWEEN_CHECKPOINTS
    first, waited = start, 0.0  # of this process since the last record
    own = collectives.shard(batch_size)
    steps = (
        SampleRng(seed, step, schedule.batch(step, seed, "order")[own])
        for step in range(start, total)
    )

    with (
        closing(batches(method, train, spec, steps)) as source,
        progress.bar(f"pre-train {plan.method}", total) as bar,
        collectives.path_on_rank_zero(folder / schema.METRICS).open(
            "a", encoding="utf-8"
        ) as metrics,
    ):
        for step in range(start, total):
            learning_rate = schedule.learning_rate(step)
            optim.set_learning_rate(optimizer, learning_rate)
            before = time.monotonic()
            batch = next(source)
            waited += time.monotonic() - before
            torch.manual_seed(dropout_key(seed, step))
            loss = gradients.backward(method, batch, hardware, images_at_once, replica)
            optimizer.step()
            optimizer.zero_grad()
            method.after_step((step + 1) / total)
            if step + 1 in snapshot_flops:
                if hardware.device.type == "cuda":
                    torch.cuda.synchronize()
                before = time.monotonic()
                seconds = seconds_before + (before - started) * ranks
                cost = _cost(step + 1, batch_size, snapshot_flops[step + 1], seconds)
                _snapshot(method, spec, cost, folder)
                started += time.monotonic() - before  # which is no part of the training

            losses.append(loss)
            now = time.monotonic()
            if (step + 1) % record_every == 0 or step + 1 == total:
                mean_loss = collectives.mean(torch.stack(losses).mean()).item()
                if not math.isfinite(mean_loss):
                    raise UserError(
                        f"the loss is {mean_loss} at step {step + 1}; "
                        f"a base lr below {config.base_lr} or --precision fp32 may help"
                    )
                now = time.monotonic()
                speed = (step + 1 - first) * batch_size / (now - recorded)
                waiting = waited / (now - recorded)
                record = {
                    "step": step + 1,
                    "epoch": round((step + 1) / schedule.steps_per_epoch, 4),
                    "loss": mean_loss,
                    "learning_rate": learning_rate,
                    "images_per_second": round(speed, 1),
                    "waiting": round(waiting, 4),
                }
                metrics.write(json.dumps(record) + "\n")
                metrics.flush()
                note = f"loss {mean_loss:.4f}  {speed:,.0f} img/s  waiting for data {waiting:.0%}"
                bar.update(step + 1, note)
                losses, recorded, first, waited = [], now, step + 1, 0.0
            stop, is_wanted = resume.agreed(wanted(), now - checkpointed > pause)
            if is_wanted:
                if collectives.rank() == 0:
                    os.fsync(metrics.fileno())  # whose records the checkpoint counts on
                seconds = seconds_before + (now - started) * ranks
                training_state.save(method, optimizer, step + 1, seconds, losses, folder)
                checkpointed = time.monotonic()
                pause = resume.pause(SECONDS_BETWEEN_CHECKPOINTS, checkpointed - now)
            if stop:
                raise error_of(stop, f"step {step + 1} of {total} is saved")
    return seconds_before + (time.monotonic() - started) * ranks


def dropout_key(seed: int, step: int) -> int:
    """The seed of torch's own random numbers in a step, which are another rank's on no rank."""
    number = collectives.rank()
    return rng.key(seed, "dropout", step, *([number] if number else []))


def prepared(
    method: Method, hardware: Hardware, spec: EncoderSpec
) -> tuple[Replica | None, torch.optim.Optimizer]:
    """A method ready for its first step: compiled, wrapped for several ranks, with its optimiser.

    Its parameters may be others then.
    """
    if hardware.compiled:
        compile_blocks(method)
    replica: Replica | None = None
    if collectives.world_size() > 1:
        replica = strategy.wrap(method, flops.terms_of_step(method, spec))
    return replica, optim.of_method(method, method.config)


def snapshot_folder(folder: Path, step: int) -> Path:
    """Where the encoder after a step is, in a run folder."""
    return folder / schema.SNAPSHOTS / f"step-{step:08}"


def whole(epochs: float) -> float:
    """A number of epochs as an int where it is one: 8 and 8.0 must not be two runs."""
    return int(epochs) if epochs == int(epochs) else epochs


def compile_blocks(method: Method) -> None:
    """Compile each transformer block: blocks alike share their code, whoever calls them.

    A block of which only some tokens are wanted (`encoders.block_at`) is not called, and so runs
    as it is.
    """
    torch.compiler.reset()  # what other trainings of this process compiled
    for module in method.modules():
        if isinstance(module, Block):
            module.compile(dynamic=False)


def _cost(step: int, batch_size: int, counted: int, seconds: float) -> dict[str, Any]:
    """What training up to a step cost, on every axis that runs are compared by."""
    return {
        "steps": step,
        "images_seen": step * batch_size,
        "flops": counted,
        "seconds": round(seconds, 2),
    }


def _snapshot(method: Method, spec: EncoderSpec, cost: Mapping[str, Any], folder: Path) -> None:
    home = snapshot_folder(folder, cost["steps"])
    if collectives.rank() == 0:
        make_inside(folder, home)
        write_json(home / schema.COST, cost)
    weights.save(method.encoder, spec, home)


def _restored(
    method: Method, state: Mapping[str, Any], hardware: Hardware, spec: EncoderSpec, folder: Path
) -> tuple[Replica | None, torch.optim.Optimizer]:
    """What is `prepared`, as it was at the checkpoint, if there is one."""
    with resume.readable(folder / schema.CHECKPOINT):
        if state:
            method.load_state_dict(state["method"])
    replica, optimizer = prepared(method, hardware, spec)
    with resume.readable(folder / schema.CHECKPOINT):
        if state:
            strategy.load_optimizer(optimizer, state["optimizer"])
    return replica, optimizer
