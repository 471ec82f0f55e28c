"""How an evaluation's training is resumed: with its step, its loss and its optimiser."""

from __future__ import annotations

from pathlib import Path
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
