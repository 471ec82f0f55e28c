"""The benchmark compares like with like, and reports what it measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import evaluations, gate, plain, report
from benchmarks.cases import Case
from benchmarks.contestants import CONTESTANTS, step_of

CPU = torch.device("cpu")
SMALL = {
    "mae": Case("mae", 48, 2, 3, 16, 4, 4, decoder=(32, 1, 4)),
    "mocov3": Case("mocov3", 48, 2, 3, 16, 4, 4, projector=(64, 32)),
}


@pytest.mark.parametrize("method", SMALL)
def test_contestants_compute_the_same_loss(method: str) -> None:
    found = gate.losses(SMALL[method], list(CONTESTANTS), CPU)
    assert set(found) == set(CONTESTANTS)
    assert all(loss > 0 for loss in found.values())


def test_who_computes_another_loss_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    error = plain.masked_error
    monkeypatch.setattr(plain, "masked_error", lambda *arguments: 1.01 * error(*arguments))
    with pytest.raises(ValueError, match="plain PyTorch, fp32 computes a loss of"):
        gate.losses(SMALL["mae"], ["ours-fp32", "plain"], CPU)


@pytest.mark.parametrize("method", SMALL)
def test_a_step_of_ours_trains(method: str) -> None:
    step = step_of(CONTESTANTS["ours-fp32"], SMALL[method], CPU)
    losses = [step().item() for _ in range(3)]
    assert len(set(losses)) == 3


def test_report_has_medians_and_ratios_round_by_round(tmp_path: Path) -> None:
    def rounds(*speeds: float) -> list[dict[str, float]]:
        rest = {"seconds_to_first_step": 2.0, "peak_mib": 1500.0, "steps": 9}
        return [{"images_per_second": speed, **rest} for speed in speeds]

    measured = {"mae-ti4-32": {"ours": rounds(200, 400, 300), "plain": rounds(100, 100, 300)}}
    page = report.write(measured, {"device": "Some CPU, 2 threads"}, tmp_path / "speed")
    text = page.read_text()
    assert page.name == "some-cpu-2-threads.md"
    assert "| plain PyTorch, fp32 | 100.0 | 100.0-300.0 | 2.00 (1.00-4.00) | 1,500 | 2.0 |" in text
    assert page.with_suffix(".png").stat().st_size > 5000


@pytest.mark.parametrize("words", [["--cases", "mae-xxl"], ["--rounds", "0"], ["--nope"]])
def test_mistakes_end_with_2(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert words[-1] in capsys.readouterr().err


def test_lightly_and_we_find_the_same_neighbours() -> None:
    inputs = evaluations.knn_inputs(1000, 300)
    ours, theirs = evaluations.our_knn(*inputs), evaluations.lightly_knn(*inputs)
    assert (ours == theirs).float().mean() > 0.99


def test_every_evaluation_has_one_of_ours_beside_it() -> None:
    assert {evaluations.beside(name) for name in evaluations.NAMES} == {
        "linear",
        "knn-50000",
        "knn-60000",
    }
