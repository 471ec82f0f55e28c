"""How an evaluation's training is resumed: with its step, its loss and its optimiser."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ssl_bench.training import resume


def run(folder: Path, steps: int, until: int, fails_at: int = -1) -> tuple[Any, nn.Linear]:
    """Train a layer for so many steps; a step may give a loss that is no number."""
    torch.manual_seed(0)
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    with resume.training(resume.EvalCheckpoint(folder), layer, optimizer, steps) as training:
        for step in range(training.start, until):
            loss = (layer(torch.tensor([[1.0, step]])) - step).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            training.after_step(step + 1, loss * (torch.nan if step == fails_at else 1))
    return training, layer


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "SECONDS_BETWEEN_STATES", -1.0)


def test_a_training_goes_on_with_step_loss_and_momentum(tmp_path: Path) -> None:
    whole, expected = run(tmp_path / "whole" / "a", 6, 6)
    run(tmp_path / "two" / "a", 6, 4)
    rest, layer = run(tmp_path / "two" / "a", 6, 6)
    assert (rest.start, rest.last_loss) == (4, whole.last_loss)
    assert torch.equal(layer.weight, expected.weight)
    done, layer = run(tmp_path / "two" / "a", 6, 6)
    assert (done.start, done.last_loss) == (6, whole.last_loss)
    assert torch.equal(layer.weight, expected.weight)


def test_seconds_of_earlier_starts_count(tmp_path: Path) -> None:
    run(tmp_path / "a", 6, 4)
    path = tmp_path / "a" / "1.pt"
    resume.save(path, {**resume.load(path), "seconds": 1000.0})
    run(tmp_path / "a", 6, 6)
    assert 1000 < resume.load(path)["seconds"] < 1100


def test_a_training_that_has_diverged_is_not_resumed(tmp_path: Path) -> None:
    run(tmp_path / "a", 6, 6, fails_at=5)
    training, _ = run(tmp_path / "a", 6, 5)
    assert training.start == 5, "the last step with a number"


def test_the_end_is_kept_however_short_the_training_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "SECONDS_BETWEEN_STATES", 1000.0)
    run(tmp_path / "a", 6, 5)
    assert not (tmp_path / "a" / "1.pt").exists()
    run(tmp_path / "a", 6, 6)
    assert resume.load(tmp_path / "a" / "1.pt")["step"] == 6


def test_states_that_take_long_to_write_are_written_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 50 seconds here, and writing 30, of which 3 are quick."""
    clock, saved, save = [0.0], list[int](), resume.save

    def slow(path: Path, state: Any) -> None:
        saved.append(state["step"])
        clock[0] += 30
        save(path, state)

    monkeypatch.setattr(resume, "SECONDS_BETWEEN_STATES", 60.0)
    monkeypatch.setattr(resume, "save", slow)
    monkeypatch.setattr(resume, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters())
    with resume.training(resume.EvalCheckpoint(tmp_path / "a"), layer, optimizer, 30) as training:
        for step in range(30):
            clock[0] += 50
            training.after_step(step + 1, torch.tensor(0.5))
    assert saved == [2, 15, 28, 30], "60 seconds at first, then 10 times as many"


def test_each_training_of_an_evaluation_goes_on_with_its_own_state(tmp_path: Path) -> None:
    """And the seconds of the last one are all that have passed."""
    folder = tmp_path / "a"
    layers = [nn.Linear(2, 1) for _ in "12"]
    states = [copy.deepcopy(layer.state_dict()) for layer in layers]
    folder.mkdir()
    for number, state in enumerate(states, 1):
        how = {"step": 6, "loss": 0.5, "seconds": 100.0 * number}
        optimizer = torch.optim.SGD(layers[0].parameters()).state_dict()
        resume.save(folder / f"{number}.pt", {**how, "model": state, "optimizer": optimizer})
    checkpoint = resume.EvalCheckpoint(folder)
    for state in states:
        layer = nn.Linear(2, 1)
        optimizer_of = torch.optim.SGD(layer.parameters())
        with resume.training(checkpoint, layer, optimizer_of, 6) as training:
            assert training.start == 6
        assert torch.equal(layer.weight, state["weight"])
    assert checkpoint.before == 200
