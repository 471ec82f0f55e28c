"""How long a training is, where a budget says so: FLOPs, time, or those of another run."""

from __future__ import annotations

import copy
import json
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ssl_bench import draws, flops, gradients, optim, pretrain, runs
from ssl_bench.contract import Method
from ssl_bench.data import Dataset
from ssl_bench.draws import Draws
from ssl_bench.encoders import EncoderSpec
from ssl_bench.errors import UserError, require
from ssl_bench.files import read_json
from ssl_bench.hardware import Hardware
from ssl_bench.optim import Schedule
from ssl_bench.runs import Plan
from ssl_bench.settings import Settings

_WARM_UP_STEPS, _MOST_STEPS, _MOST_SECONDS = 2, 10, 10.0


def of(settings: Settings) -> dict[str, Any] | None:
    """What a run may cost, for its ``config.json``: ``flops`` or ``seconds``; None without limit.

    Raises:
        UserError: the run to match does not exist, is not finished, or has no FLOPs recorded.
    """
    if settings.match:
        folder = runs.find_trained(settings.runs_dir, settings.match)
        counted = read_json(folder / "cost.json").get("flops")
        require(
            bool(counted),
            f"run {folder.name!r} has no FLOPs to match: "
            + ("it trains nothing" if counted == 0 else "it was made before they were counted"),
        )
        return {"match": folder.name, "flops": counted}
    if settings.budget_flops:
        return {"flops": settings.budget_flops}
    return {"seconds": settings.budget_seconds} if settings.budget_time else None


def spend(
    budget: dict[str, Any], plan: Plan, method: Method, data: Dataset, hardware: Hardware, to: Path
) -> Plan:
    """The plan with as many epochs as the budget pays for, in whole steps.

    What a second buys is measured over a few steps, once: a run that is there already under the
    same time keeps the length it was given.

    Args:
        plan: its epochs are not looked at.
        to: the folder of the run folders.

    Raises:
        UserError: not a single step can be paid for.
    """
    spec = EncoderSpec.of(plan.encoder)
    steps_per_epoch = Schedule.of(
        len(data.train), plan.batch_size, 1, method.config
    ).steps_per_epoch
    if "flops" in budget:
        price, unit = float(flops.of_step(method, spec, plan.batch_size)), "FLOPs"
    else:
        earlier = _earlier(budget, plan, to)
        if earlier is not None:
            return replace(plan, epochs=earlier)
        price, unit = seconds_per_step(method, data, plan, hardware), "seconds"
    limit = budget[unit.lower()]
    require(
        limit >= price,
        f"a budget of {limit:g} {unit} is less than the {price:.3g} of a single step of "
        f"{plan.batch_size} images",
    )
    return replace(plan, epochs=pretrain.whole(int(limit / price) / steps_per_epoch))


def seconds_per_step(method: Method, data: Dataset, plan: Plan, hardware: Hardware) -> float:
    """The median time of a few steps of a copy of the method, data included."""
    spec, trial = EncoderSpec.of(plan.encoder), copy.deepcopy(method)
    trial.to(hardware.device).train()
    trial.before_training(data.train, spec, plan.seed)
    optimizer = optim.of_method(trial, trial.config)
    if hardware.compiled:
        pretrain.compile_blocks(trial)
    schedule = Schedule.of(len(data.train), plan.batch_size, 1, trial.config)
    most = min(_MOST_STEPS, schedule.steps)
    steps = (Draws(plan.seed, s, schedule.batch(s, plan.seed, "order")) for s in range(most))
    train, times = data.train.to(hardware.device), []
    with closing(pretrain.batches(trial, train, spec, steps)) as source:
        for step in range(most):
            started = time.monotonic()
            torch.manual_seed(draws.key(plan.seed, "dropout", step))
            at_once = hardware.images_at_once(spec.patches)
            gradients.backward(trial, next(source), hardware, at_once).item()
            optimizer.step()
            optimizer.zero_grad()
            trial.after_step((step + 1) / most)
            times.append(time.monotonic() - started)
            if step >= _WARM_UP_STEPS and sum(times) > _MOST_SECONDS:
                break
    measured = sorted(times[_WARM_UP_STEPS:] or times)
    return measured[len(measured) // 2]


def _earlier(budget: dict[str, Any], plan: Plan, to: Path) -> float | None:
    """The epochs of a run that was given the same time for the same thing."""
    wanted = json.loads(json.dumps(asdict(plan)))
    for folder in sorted(to.glob(f"{plan.method}-{plan.data}-seed{plan.seed}-*")):
        try:
            found = runs.plan_of(folder)
        except UserError:
            continue
        same = all(found.get(name) == value for name, value in wanted.items() if name != "epochs")
        if same and found.get("budget") == budget:
            return found["epochs"]
    return None
