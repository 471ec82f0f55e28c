"""What each of several processes does for `test_ranks`, which looks at the files it leaves."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import helpers
import pytest
import torch
from helpers import CPU, SHAPE, make_images

from ssl_bench.api import optimizers, registry
from ssl_bench.api.method import Method
from ssl_bench.api.registry import Plugin
from ssl_bench.data import Dataset, Split
from ssl_bench.distributed import collectives, process_group, strategy
from ssl_bench.distributed.environment import DistributedEnvironment
from ssl_bench.errors import UserError
from ssl_bench.evaluation import finetuning
from ssl_bench.evaluation.features import Encoder
from ssl_bench.models import backbones, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import pretrain, setup, training_state
from ssl_bench.training import resume as resuming
from ssl_bench.training.resume import EvalCheckpoint
from ssl_bench.utils.signals import Interrupted

SPEC = EncoderSpec("vit_micro", 16, 4, 3, (0.5,) * 3, (0.25,) * 3, SHAPE)
WIDTHS = {"decoder_embed_dim": 16, "proj_hidden_dim": 32, "proj_output_dim": 16}
SESSIONS = [("fsdp", 4), ("ddp", 4), ("ddp", 3), ("ddp", 2), ("fsdp", 2), ("ddp", 2)]
STOP_AT = 4
PROBING = {"epochs": 2, "batch_size": 50, "optimizer": "sgd", "base_lr": 0.5}
TUNING = {"epochs": 1, "batch_size": 11, "base_lr": 0.02, "drop_path": 0.3, "crop_scale": 0.4}
MOCO, MAE = registry.find("method", "mocov3"), registry.find("method", "mae")
TEACHING = registry.find("method", str(Path(__file__).with_name("teacher_method.py")))
METHODS = [*(p for p in helpers.METHODS if p.name != "random-init"), TEACHING]
FEW = [MAE, MOCO, registry.find("method", "moco"), TEACHING]
"""Without state, with a network that follows, with a queue, with losses of several names."""


def methods_of(world: str) -> list[Plugin]:
    """Who trains there: each method with both strategies, on two processes and on four."""
    return METHODS if world in ("ddp-4", "fsdp-2") else FEW


def steady_adamw(groups: Any, beta2: float) -> torch.optim.AdamW:
    """AdamW that does not blow up rounding where a gradient is zero, such as a key's bias."""
    return torch.optim.AdamW(groups, betas=(0.9, beta2), eps=1e-3, fused=True)


def data() -> Dataset:
    train, test = make_images(120, 3, 16, 3, seed=1), make_images(41, 3, 16, 3, seed=2)
    return Dataset("tiny", train, test, ("a", "b", "c"), "fingerprint", "", 16)


class Killed(BaseException):
    """Stands for the death of all processes."""


def narrow(plugin: Plugin) -> Any:
    """The method's small settings, narrower still where a wide layer does not matter."""
    config = helpers.small(plugin)
    names = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{n: v for n, v in WIDTHS.items() if n in names})


def build(plugin: Plugin) -> Method:
    config = narrow(plugin)
    spec, _ = helpers.fitting(plugin, SPEC, data())
    spec = helpers.with_text(plugin, spec, config)
    return setup.build_method(plugin.load_class(), config, spec, 3, seed=0)


def train(plugin: Plugin, folder: Path, **options: Any) -> Any:
    """A short training in this process, one of the ranks or the only one."""
    folder.mkdir(parents=True, exist_ok=True)
    spec, dataset = helpers.fitting(plugin, SPEC, data())
    plan = helpers.plan(plugin, spec, dataset, config=narrow(plugin))
    method = build(plugin)
    with mock.patch.object(optimizers, "adamw", steady_adamw):
        cost = pretrain.pretrain(method, dataset, plan, folder, CPU, **options)
    if strategy.strategy() == "ddp":
        states = collectives.gather_objects(weights.digest(method))
        assert len(set(states)) == 1, f"ranks differ after {plugin.name}"
    return cost


def train_until(plugin: Plugin, folder: Path) -> None:
    """Train up to a step's checkpoint."""
    write = training_state.save

    def write_and_die(*arguments: Any) -> None:
        write(*arguments)
        if arguments[2] == STOP_AT:
            raise Killed

    often = mock.patch.object(pretrain, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    with often, mock.patch.object(training_state, "save", write_and_die), suppress(Killed):
        train(plugin, folder)


def extract(folder: Path) -> None:
    """Features of both splits, and what is answered with their help, as every rank has it."""
    dataset = data()
    encoder = Encoder(backbones.build(SPEC, seed=0), SPEC, CPU, seed=0)
    knn = registry.find("eval", "knn")
    few = Split(dataset.test.images_NCHW[:2], dataset.test.labels_N[:2])
    result = knn.load_class()(knn.config()).evaluate(encoder, dataset)
    probe = registry.find("eval", "linear-paper")
    probed = probe.load_class()(probe.config(**PROBING)).evaluate(encoder, dataset)
    found = {
        "train": dict(encoder.features(dataset.train)),
        "test": dict(encoder.features(dataset.test)),
        "few": dict(encoder.features(few)),
        "predictions": result.predictions_N,
        "scores": dict(result.scores),
        "probed": probed.predictions_N,
    }
    torch.save(found, folder / f"features-{collectives.rank()}.pt")


def tune(folder: Path, stop_at: int | None = None) -> None:
    """Fine-tune with all that is drawn at random; the weights and predictions on every rank.

    Args:
        stop_at: the step after which the last rank is told to stop; the training then goes on.
    """
    dataset = data()
    encoder = Encoder(backbones.build(SPEC, seed=0), SPEC, CPU, seed=0)
    encoder.checkpoint = EvalCheckpoint(folder / f"tuning-{stop_at}")
    config = registry.find("eval", "finetune").config(**TUNING)

    @contextmanager
    def defer_signals() -> Iterator[Any]:
        steps = itertools.count(1)
        is_last = collectives.rank() == collectives.world_size() - 1
        yield lambda: signal.SIGTERM if is_last and next(steps) == stop_at else None

    found = []
    for count in (None, 2):  # of the training images: all, or fewer than would do for each rank
        train = Split(dataset.train.images_NCHW[:count], dataset.train.labels_N[:count])
        model = finetuning.classifier(encoder, 3, config)
        with mock.patch.object(optimizers, "adamw", steady_adamw):
            with mock.patch.object(resuming, "defer_signals", defer_signals), suppress(Interrupted):
                finetuning.train(model, encoder, train, config)
                assert stop_at is None
            if stop_at:
                collectives.largest(0)  # until the state is written
                encoder.checkpoint = EvalCheckpoint(folder / f"tuning-{stop_at}")
                model = finetuning.classifier(encoder, 3, config)
                finetuning.train(model, encoder, train, config)
        few = Split(dataset.test.images_NCHW[:2], dataset.test.labels_N[:2])
        predictions = [finetuning.predict(model, encoder, split) for split in (dataset.test, few)]
        found.append((model.state_dict(), predictions))
        if stop_at:
            break
    torch.save(found, folder / f"tuned-{stop_at}-{collectives.rank()}.pt")


def refuse() -> None:
    raise UserError(f"seen by rank {collectives.rank()} of {collectives.world_size()}")


def resume(stopped: Path, folder: Path) -> None:
    """Go on from a checkpoint, in a folder of its own."""
    if collectives.rank() == 0:
        shutil.copytree(stopped, folder)
    collectives.largest(0)
    train(MOCO, folder)


def work(rank: int, ports: list[int], folder: str) -> None:
    """One process of the largest world; the last ones have nothing to do in smaller worlds.

    ``alone``, with a checkpoint in ``alone/stopped``, is there already.
    """
    for port, (kind, world) in zip(ports, SESSIONS, strict=True):
        if rank >= world:
            continue
        place = DistributedEnvironment(rank, world, rank, world, "127.0.0.1", port)
        home = Path(folder, f"{kind}-{world}")
        is_new = not home.exists()
        with process_group.initialised(place, kind, print):  # type: ignore[arg-type]
            is_new = collectives.broadcast(is_new)
            assert collectives.largest(15 if rank == world - 1 else 0) == 15
            assert collectives.largest(0) == 0
            assert collectives.gather_objects(rank) == list(range(world))
            with pytest.raises(UserError, match="seen by rank 0"):
                collectives.on_rank_zero(refuse)
            home.mkdir(exist_ok=True)
            if not is_new:
                resume(Path(folder, "fsdp-2", "stopped"), home / "from-fsdp-2")
                continue
            tune(home)
            if (kind, world) != ("fsdp", 4):
                extract(home)
                tune(home, STOP_AT)
            if world == 3:
                continue
            for plugin in methods_of(home.name):
                train(plugin, home / plugin.name)
            if world == 2:
                for plugin in (MOCO, MAE):
                    train(plugin, home / f"{plugin.name}-parts", micro_batch_size=5)
                train_until(MOCO, home / "stopped")
                resume(home / "stopped", home / "from-itself")
                resume(Path(folder, "alone", "stopped"), home / "from-alone")
            if (kind, world) == ("fsdp", 2):
                resume(Path(folder, "ddp-2", "stopped"), home / "from-ddp-2")
