"""What a run shows, in sentences."""

from __future__ import annotations

import math
import shlex
from typing import Any

import pytest
from scipy import stats

from ssl_bench.cli import flags
from ssl_bench.experiment import conclusion


def record(name: str, score: float, images: int = 10_000, **others: float) -> dict[str, Any]:
    labels = {"untrained": "random init", "pixels": "raw pixels", "scratch": "from scratch"}
    baselines = {labels[key]: {"top1": value} for key, value in others.items()}
    return {"eval": name, "scores": {"top1": score}, "baselines": baselines, "better": "higher",
            "unit": "top-1 accuracy (%)", "test_images": images}  # fmt: skip


def told(*records: dict[str, Any], steps: int = 4000, pace: float | None = None) -> str:
    return " ".join(conclusion.sentences("mae", records, steps, pace))


def test_a_baseline_that_is_ahead_is_said_plainly() -> None:
    text = told(record("knn", 85.48, untrained=74.32, pixels=86.87))
    assert "mae is ahead of an untrained encoder in knn (+11.16)" in text
    assert "Raw pixels are ahead of mae in knn (-1.39)" in text
    assert "every baseline" not in text and "Nothing" not in text


def test_every_baseline_is_said_where_none_is_left() -> None:
    text = told(record("knn", 85.0, untrained=74.0), record("finetune", 88.0, scratch=85.0))
    assert "ahead of every baseline" in text and "knn (+11.00)" in text
    assert "finetune (+3.00)" in text and "other seeds may differ" in text


@pytest.mark.parametrize(("images", "is_alike"), [(500, True), (50_000, False)])
def test_what_chance_may_explain_depends_on_the_test_images(images: int, is_alike: bool) -> None:
    text = told(record("linear", 73.8, images, untrained=70.0))
    assert ("Chance may explain" in text) is is_alike
    assert ("Nothing here shows" in text) is is_alike


@pytest.mark.parametrize("images", [900, 1000, 1100, 1200])
def test_chance_is_that_of_two_shares_at_the_five_percent_level(images: int) -> None:
    variance = sum(p * (100 - p) for p in (73.8, 70.0)) / images
    is_alike = 2 * stats.norm.sf(3.8 / math.sqrt(variance)) > 0.05
    text = told(record("linear", 73.8, images, untrained=70.0))
    assert ("Chance may explain" in text) == is_alike


# Independent ones add up in squares: two of 2.2 points either side are 3.1, for a difference of 3.
@pytest.mark.parametrize(
    ("half", "is_alike"), [(6.0, True), (2.2, True), (2.0, False), (1.0, False)]
)
def test_what_chance_may_explain_depends_on_the_intervals(half: float, is_alike: bool) -> None:
    def with_ends(score: float) -> dict[str, float]:
        return {"miou": score, "miou_low": score - half, "miou_high": score + half}

    scores = {"scores": with_ends(44.0), "baselines": {"random init": with_ends(47.0)}}
    text = told({**record("segmentation", 0.0), **scores, "unit": "mIoU (%)"})
    assert ("Chance may explain" in text) is is_alike
    assert ("An untrained encoder is ahead" in text) is not is_alike


def test_a_lower_score_that_is_better_is_ahead() -> None:
    low = {**record("depth", 0.2, untrained=0.4), "better": "lower", "unit": "error"}
    assert "ahead of every baseline: of an untrained encoder in depth (-0.2)" in told(low)
    assert told({**low, "better": "neither"}) == ""


def test_raw_pixels_alone_do_not_tell_whether_pretraining_pays() -> None:
    assert "Nothing" not in told(record("knn", 20.0, pixels=45.0))
    assert "Nothing" in told(record("knn", 20.0, pixels=45.0, untrained=30.0))


@pytest.mark.parametrize(
    ("pace", "wanted"),
    [(4.83, "--budget-time 10m would give about 2,900"), (0.5, "--budget-time 1h would give about"),
     (None, "--epochs")],
)  # fmt: skip
def test_a_short_training_is_said_to_be_short(pace: float | None, wanted: str) -> None:
    text = told(steps=184, pace=pace)
    assert "184 steps" in text and wanted in text
    assert told(steps=conclusion.FEW_STEPS, pace=pace) == ""


def test_what_trains_nothing_concludes_nothing() -> None:
    assert told(record("knn", 74.0, untrained=74.0), steps=0) == ""


@pytest.mark.parametrize(
    "args",
    [
        "--method mae --mask-ratio 0.5 --data photos --seed 3 --name mine --evals knn",
        "--method mocov3 --budget-time 10m --batch-size 64 --knn-neighbors 5",
        "--preset imagenet-mae-vitb --data photos",
        "--method supervised --preset small --match other",
    ],
)
def test_each_command_is_one_that_can_be_given(args: str) -> None:
    config = flags.parse_run(args.split())
    found = conclusion.next_commands(config, 6.5, "run-1")
    own = config.method.name
    sweep = shlex.split(found.pop("more seeds"))
    assert sweep[:2] == ["ssl-bench", "sweep"] and sweep[-2:] == ["--seed", "0..4"]
    assert "--budget-time" not in sweep and "--name" not in sweep
    again = flags.parse_run(sweep[2:-2])
    assert (again.method, again.method_config) == (config.method, config.method_config)
    longer, other = (flags.parse_run(shlex.split(command)[2:]) for command in found.values())
    assert longer.settings.epochs == 26 and longer.method_config == config.method_config
    assert longer.settings.seed == other.settings.seed == config.settings.seed
    assert other.settings.match == "run-1" and other.method.name != own
    for name in ("data", "batch_size", "backbone", "evals"):
        assert getattr(other.settings, name) == getattr(config.settings, name)
    assert other.evals == config.evals


@pytest.mark.parametrize(
    "args", ["--method albef --data flickr", "--method videomae --data kinetics"]
)
def test_no_method_is_offered_that_may_not_read_the_data(args: str) -> None:
    found = conclusion.next_commands(flags.parse_run(args.split()), 2, "run-1")
    assert list(found) == ["more seeds", "four times as long"]
