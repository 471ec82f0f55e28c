"""How long a training is, where a budget says so: FLOPs, time, or those of another run."""

from __future__ import annotations

import copy
import glob
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ssl_bench.api.method import Method
from ssl_bench.config.settings import Settings
from ssl_bench.data import Dataset
from ssl_bench.distributed import collectives
from ssl_bench.distributed.device import Hardware
from ssl_bench.errors import UserError, require
from ssl_bench.models import encoders
from ssl_bench.runs import run_folder, schema
from ssl_bench.runs.schema import Plan
from ssl_bench.training import flops, gradients, setup
from ssl_bench.training.schedule import Schedule, whole_epochs
from ssl_bench.utils.rng import SampleRng

_WARM_UP_STEPS, _STEPS, _MOST_SECONDS = 2, 12, 10.0
_BURST = 5  # steps after which a GPU is waited for, as it runs behind


def of(settings: Settings, hardware: Hardware) -> dict[str, Any] | None:
    """What a run may cost, for its ``config.json``: ``flops``, or ``seconds`` on a ``device``.

    None where there is no limit.

    Raises:
        UserError: the run to match does not exist, is not finished, or has no FLOPs recorded.
    """
    return collectives.on_rank_zero(lambda: _of(settings, hardware.name))


def _of(settings: Settings, device: str) -> dict[str, Any] | None:
    if settings.match:
        folder = run_folder.find_trained(settings.runs_dir, settings.match)
        counted = schema.load_object(folder / schema.COST).get("flops")
        why = "it trains nothing" if counted == 0 else "they were not counted when it was made"
        require(bool(counted), f"run {folder.name!r} has no FLOPs to match: {why}")
        return {"match": folder.name, "flops": counted}
    if settings.budget_flops:
        return {"flops": settings.budget_flops}
    if settings.budget_time:
        ranks = settings.devices * settings.nodes
        name = f"{ranks} x {device}" if ranks > 1 else device
        return {"seconds": settings.budget_seconds, "device": name}
    return None


def spend(
    budget: dict[str, Any],
    plan: Plan,
    method: Method,
    data: Dataset,
    hardware: Hardware,
    settings: Settings,
) -> Plan:
    """The plan with as many epochs as the budget pays for, in whole steps.

    What a second buys is measured over a few steps, once: where a run is there already that got the
    same time for the same thing on such a device, whatever its seed, its length is taken.

    Raises:
        UserError: not a single step can be paid for.
    """
    spec = plan.encoder
    steps_per_epoch = Schedule(len(data.train), plan.batch_size, 1).steps_per_epoch
    price: float
    if "flops" in budget:
        price, unit = flops.of_step(method, spec, plan.batch_size), "FLOPs"
    else:
        earlier = collectives.on_rank_zero(lambda: _earlier(budget, plan, settings.runs_dir))
        if earlier is not None:
            return replace(plan, epochs=earlier)
        at_once = settings.micro_batch_size
        price, unit = seconds_per_step(method, data, plan, hardware, at_once), "seconds"
    limit = budget[unit.lower()]
    require(
        limit >= price,
        f"a budget of {limit:g} {unit} is less than the {price:.3g} of a single step of "
        f"{plan.batch_size} images",
    )
    whole = int(limit) if unit == "FLOPs" else limit  # which floats count in whole steps no more
    return replace(plan, epochs=whole_epochs(int(whole // price) / steps_per_epoch))


@contextmanager
def settled(budget: Mapping[str, Any] | None, plan: Plan, runs_dir: Path) -> Iterator[Plan]:
    """The plan, with the length that another process bought for the same time meanwhile, if any.

    Processes that began together measured different seconds; until the end of the block, by when
    the run folder is there for others to find, no other gets here.
    """
    if not budget or "seconds" not in budget:
        yield plan
        return
    runs_dir.mkdir(parents=True, exist_ok=True)
    with run_folder.held(runs_dir, wait=True):
        earlier = _earlier(budget, plan, runs_dir)
        yield plan if earlier is None else replace(plan, epochs=earlier)


def seconds_per_step(
    method: Method,
    data: Dataset,
    plan: Plan,
    hardware: Hardware,
    micro_batch_size: int | None = None,
) -> float:
    """The median time of a few steps of a copy of the method, data included; that of rank 0."""
    spec, trial = plan.encoder, copy.deepcopy(method)
    trial.to(hardware.device).train()
    trial.before_training(data.train, plan.seed)
    at_once = micro_batch_size or hardware.images_at_once(spec.patches)
    schedule = Schedule(len(data.train), plan.batch_size, 1)
    own = collectives.shard(plan.batch_size)
    steps = (
        SampleRng(plan.seed, s, schedule.batch(s, plan.seed, "order")[own]) for s in range(_STEPS)
    )
    in_parts = gradients.taken_in_parts(trial)
    encoders.keep_at_once(trial, micro_batch_size if in_parts == "encoder" else None)
    train = data.train.to(hardware.device)
    trainer = setup.prepare(trial, hardware, spec, train, plan.seed, at_once)
    burst = 1 if hardware.device.type == "cpu" else _BURST
    firsts = [*range(_WARM_UP_STEPS), *range(_WARM_UP_STEPS, _STEPS, burst), _STEPS]
    times = []
    with closing(trainer.batches(steps)) as source:
        for first, end in pairwise(firsts):
            started = time.monotonic()
            for step in range(first, end):
                losses, _ = trainer.take(replace(schedule.step(step), total=_STEPS), next(source))
            losses[gradients.TOTAL].item()
            times.append(collectives.broadcast((time.monotonic() - started) / (end - first)))
            if sum(times[_WARM_UP_STEPS:]) * burst > _MOST_SECONDS:
                break
    return statistics.median(times[_WARM_UP_STEPS:])


def _earlier(budget: Mapping[str, Any], plan: Plan, runs_dir: Path) -> float | None:
    """The epochs of a run that was given the same time for the same thing, seeds aside."""
    wanted = json.loads(json.dumps(plan.to_json()))
    alike = wanted.keys() - {"epochs", "seed"}
    start = glob.escape(f"{plan.method}-{plan.data}-seed")
    for folder in sorted(runs_dir.glob(f"{start}*")):
        try:
            found = schema.load_plan(folder)
        except UserError:
            continue
        if found.get("budget") == budget and all(found.get(n) == wanted[n] for n in alike):
            return found["epochs"]
    return None
