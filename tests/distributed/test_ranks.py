"""Several processes against one: the same losses, weights, features and answers."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import forked
import pytest
import ranks_work
import torch
from ranks_work import MAE, METHODS, MOCO, SESSIONS
from safetensors.torch import load_file
from torch import Tensor

from ssl_bench.api.registry import Plugin

WORLDS = ["ddp-2", "fsdp-2", "ddp-4", "fsdp-4"]
TRAINED = [(world, plugin) for world in WORLDS for plugin in ranks_work.methods_of(world)]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process made, in ``alone``, and several, in ``<strategy>-<ranks>``."""
    home = tmp_path_factory.mktemp("ranks")
    alone = home / "alone"
    for plugin in METHODS:
        ranks_work.train(plugin, alone / plugin.name)
    ranks_work.train_until(MOCO, alone / "stopped")
    ranks_work.extract(alone)
    ranks_work.tune(alone)
    with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
        forked.together(ranks_work.work, 4, free_ports(len(SESSIONS)), str(home))
    for world in ("ddp-2", "fsdp-2"):
        ranks_work.resume(home / world / "stopped", alone / f"from-{world}")
    return home


def losses(folder: Path) -> Tensor:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return torch.tensor([json.loads(line)["loss"] for line in lines], dtype=torch.float64)


def weights(folder: Path) -> dict[str, Tensor]:
    encoder = load_file(folder / "encoder.safetensors")
    return load_file(folder / "method.safetensors") | {
        f"encoder.{n}": t for n, t in encoder.items()
    }


def cost(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "cost.json").read_text())


def assert_same_training(ours: Path, theirs: Path) -> None:
    assert len(losses(theirs)) > 5
    # A cosine may be nearly zero.
    torch.testing.assert_close(losses(ours), losses(theirs), rtol=1e-5, atol=1e-6)
    found, expected = weights(ours), weights(theirs)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        error = (found[name].double() - tensor.double()).norm()
        assert error <= 1e-5 * tensor.double().norm() + 1e-6, name


@pytest.mark.parametrize(("world", "plugin"), TRAINED, ids=lambda each: getattr(each, "name", each))
def test_training_is_that_of_one_process(home: Path, world: str, plugin: Plugin) -> None:
    assert_same_training(home / world / plugin.name, home / "alone" / plugin.name)
    ours, theirs = (cost(home / where / plugin.name) for where in (world, "alone"))
    strategy, ranks = world.split("-")
    assert (ours["devices"], ours["strategy"]) == (int(ranks), strategy)
    assert (theirs["devices"], theirs["strategy"]) == (1, None)
    same = ("steps", "images_seen", "flops", "encoder_parameters", "trained_parameters")
    assert [ours[name] for name in same] == [theirs[name] for name in same]


@pytest.mark.parametrize("world", ["ddp-2", "fsdp-2"])
@pytest.mark.parametrize("plugin", [MOCO, MAE], ids=lambda plugin: plugin.name)
def test_so_is_one_part_by_part(home: Path, world: str, plugin: Plugin) -> None:
    assert_same_training(home / world / f"{plugin.name}-parts", home / "alone" / plugin.name)


def test_batch_norm_follows_the_whole_batch(home: Path) -> None:
    running = [name for name in weights(home / "alone" / MOCO.name) if "running_var" in name]
    assert running
    first = ranks_work.build(MOCO).state_dict()
    for name in running:
        assert (weights(home / "ddp-2" / MOCO.name)[name] - first[name]).norm() > 1e-3, name


@pytest.mark.parametrize(
    "resumed",
    [
        *("alone/from-ddp-2", "alone/from-fsdp-2", "ddp-2/from-alone", "fsdp-2/from-alone"),
        *("fsdp-2/from-ddp-2", "ddp-2/from-fsdp-2"),
    ],
)
def test_any_number_of_processes_goes_on_from_a_checkpoint(home: Path, resumed: str) -> None:
    stopped = home / resumed.split("from-")[1] / "stopped"
    state = torch.load(stopped / "checkpoint.pt", weights_only=True)
    assert state["step"] == ranks_work.STOP_AT
    assert all(type(tensor) is Tensor for tensor in state["method"].values())
    assert_same_training(home / resumed, home / "alone" / MOCO.name)
    assert not (home / resumed / "checkpoint.pt").exists()


@pytest.mark.parametrize("world", ["ddp-2", "fsdp-2"])
def test_as_many_processes_go_on_to_the_very_same_weights(home: Path, world: str) -> None:
    ours, theirs = (weights(home / world / name) for name in ("from-itself", MOCO.name))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("world", ["ddp-2", "ddp-3", "ddp-4"])
def test_each_image_counts_once_in_features_neighbours_and_probes(home: Path, world: str) -> None:
    expected = torch.load(home / "alone" / "features-0.pt")
    for rank in range(int(world[-1])):
        found = torch.load(home / world / f"features-{rank}.pt")
        for split in ("train", "test", "few"):
            torch.testing.assert_close(found[split], expected[split], rtol=1e-6, atol=1e-6)
        assert torch.equal(found["predictions"], expected["predictions"])
        assert found["scores"] == expected["scores"]
        assert torch.equal(found["probed"], expected["probed"])
    assert len(expected["probed"].unique()) > 1


@pytest.mark.parametrize("world", [*WORLDS, "ddp-3"])
def test_fine_tuning_is_that_of_one_process(home: Path, world: str) -> None:
    """Crops, erasing, mixing and dropped paths too, with a batch that cannot be divided evenly."""
    expected = torch.load(home / "alone" / "tuned-None-0.pt")
    for rank in range(int(world[-1])):
        found = torch.load(home / world / f"tuned-None-{rank}.pt")
        for (ours, predicted), (theirs, right) in zip(found, expected, strict=True):
            assert ours.keys() == theirs.keys()
            for name, tensor in theirs.items():
                error = (ours[name].double() - tensor.double()).norm()
                assert error <= 1e-5 * tensor.double().norm() + 1e-6, name
            assert all(map(torch.equal, predicted, right))


@pytest.mark.parametrize("world", ["ddp-2", "ddp-3", "ddp-4"])
def test_fine_tuning_that_one_process_is_told_to_stop_goes_on_to_the_same(
    home: Path, world: str
) -> None:
    for rank in range(int(world[-1])):
        (whole, _), _ = torch.load(home / world / f"tuned-None-{rank}.pt")
        [(stopped, _)] = torch.load(home / world / f"tuned-{ranks_work.STOP_AT}-{rank}.pt")
        assert all(torch.equal(stopped[name], whole[name]) for name in whole)
