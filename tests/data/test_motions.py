"""Clips: the embedded ones, whose class no single frame tells, and what is done with frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import CPU, SHAPE
from torch import Tensor

from ssl_bench import data
from ssl_bench.api import registry
from ssl_bench.data import Dataset, holdout
from ssl_bench.data.embedded import motions
from ssl_bench.data.sampling import Sampling
from ssl_bench.errors import UserError
from ssl_bench.evaluation import finetuning
from ssl_bench.evaluation.features import RawPixels, match_channels, prepare
from ssl_bench.models import backbones, encoders, video
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.transforms.augmentations import Augmentation, augment, normalize
from ssl_bench.utils.rng import SampleRng

Call = Callable[..., tuple[int, str, str]]
NAME = "fashion-motions"


@pytest.fixture(scope="module")
def clips() -> Dataset:
    return data.load(NAME)


def test_clips_are_images_of_several_frames(clips: Dataset) -> None:
    assert (clips.frames, clips.channels, clips.size, clips.view_size) == (8, 1, 16, 16)
    assert clips.train.images_NCHW.shape == (6000, 8, 16, 16)
    assert clips.test.labels_N.bincount().tolist() == [200] * 10
    assert len(clips.mean) == len(clips.std) == 1
    mean = clips.train.images_NCHW.double().mean() / 255
    assert clips.mean[0] == pytest.approx(mean.item())
    few = clips.train.subset([3, 5])
    assert (few.frames, few.channels, len(few)) == (8, 1, 2)
    # The same ones wherever they are made.
    assert clips.fingerprint == "7f46f7dbaa24ad76"


def nearest(train: Tensor, test: Tensor, labels_N: Tensor, expected_N: Tensor) -> float:
    """Accuracy in percent of the label of the nearest of some images."""
    found_M = torch.cdist(test.flatten(1).float(), train.flatten(1).float()).argmin(dim=1)
    return 100 * (labels_N[found_M] == expected_N).double().mean().item()


def test_the_class_is_in_the_motion_and_in_no_frame(clips: Dataset) -> None:
    train, test = clips.train, clips.test
    labels = train.labels_N, test.labels_N
    assert nearest(train.images_NCHW, test.images_NCHW, *labels) > 40
    # Six standard deviations of chance on 2,000 clips are 4 points.
    for frame in (0, 3, 7):
        first, second = (split.images_NCHW[:, frame] for split in (train, test))
        assert 6 < nearest(first, second, *labels) < 14


def test_one_frame_is_the_middle_one(clips: Dataset) -> None:
    whole = motions.read("test", Sampling(motions.LENGTH))
    assert torch.equal(motions.read("test", Sampling(1)).images_NCHW[:, 0], whole.images_NCHW[:, 7])
    assert torch.equal(clips.test.images_NCHW, whole.images_NCHW[:, :15:2])


@pytest.mark.parametrize(
    "frames,stride,span", [(8, 4, "29"), (16, 2, "31"), (17, 1, "17"), (2, 99, "100")]
)
def test_a_clip_that_is_too_long_is_refused(frames: int, stride: int, span: str) -> None:
    with pytest.raises(UserError, match=f"span {span}") as error:
        data.load(NAME, frames=frames, stride=stride)
    assert "16" in str(error.value) and "would work" in str(error.value)


def test_validation_keeps_the_frames(clips: Dataset) -> None:
    train, test = holdout.of_split(clips.train)
    assert (train.frames, test.frames, len(train) + len(test)) == (8, 8, 6000)


def test_all_frames_are_cropped_and_mirrored_alike() -> None:
    image = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    draws = SampleRng(0, 0, torch.arange(4))
    views = augment(image.repeat(1, 5, 1, 1), Augmentation(16), draws)
    assert views.shape == (4, 15, 16, 16)
    expected = augment(image, Augmentation(16), draws)
    torch.testing.assert_close(views, expected.repeat(1, 5, 1, 1), rtol=0, atol=1e-6)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    repeated = normalize(expected, mean, std).repeat(1, 5, 1, 1)
    assert torch.equal(normalize(expected.repeat(1, 5, 1, 1), mean, std), repeated)


def test_randaugment_is_alike_in_all_frames_of_a_clip() -> None:
    spec = EncoderSpec("vit_nano", 16, 4, 3, (0.5,) * 3, (0.25,) * 3, frames=4)
    encoder: Any = SimpleNamespace(spec=spec, hardware=CPU)
    images = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    still = images.byte().repeat(1, 4, 1, 1)
    policy = {"auto_augment": "rand-m9-n3-p1", "random_erasing": 0.0}
    config = registry.find("eval", "finetune").config(**policy)
    views = finetuning.training_views(still, encoder, config, SampleRng(0, 0, torch.arange(3)))
    frames = views.unflatten(1, (4, 3))
    assert torch.equal(frames, frames[:, :1].expand_as(frames))
    assert not torch.equal(frames[0], frames[1])


def test_channels_of_each_frame_are_matched() -> None:
    grey, colour = torch.rand(2, 4, 8, 8), torch.rand(2, 12, 8, 8)
    assert torch.equal(match_channels(grey, 1, frames=4), grey)
    assert torch.equal(match_channels(grey, 3, frames=4), grey.repeat_interleave(3, dim=1))
    expected = torch.cat([match_channels(each, 1) for each in colour.split(3, dim=1)], dim=1)
    assert torch.equal(match_channels(colour, 1, frames=4), expected)


def test_an_image_goes_through_an_encoder_of_clips(tiny: Dataset) -> None:
    """As a clip that stands still; features by rows and columns are the mean over time."""
    spec = EncoderSpec("vit_micro", 16, 4, 1, (0.5,), (0.25,), SHAPE, frames=4)
    encoder = backbones.build(spec, seed=0).eval()
    images = tiny.test.images_NCHW[:3]
    still = images.repeat(1, 4, 1, 1)
    given = prepare(images, spec, CPU)
    assert given.shape == (3, 4, 16, 16)
    assert torch.equal(given, prepare(still, spec, CPU))
    with torch.no_grad():
        features = encoder.forward_features(given)
        assert features.shape == (3, 2 * 16, 32)
        pooled = encoders.pool(encoder, features)
        assert list(pooled) == ["avg"]
        torch.testing.assert_close(pooled["avg"], features.mean(dim=1))
        torch.testing.assert_close(encoders.represent(encoder, given), pooled["avg"])
    by_place = encoders.feature_map(encoder, features)
    assert by_place.shape == (3, 4, 4, 32)
    torch.testing.assert_close(by_place[:, 1, 2], (features[:, 6] + features[:, 22]) / 2)
    assert encoders.width(encoder) == 32
    assert RawPixels(spec, CPU, 0).features(tiny.test)["pixels"].shape == (40, 4 * 16 * 16)


def test_frames_are_pairs_side_by_side() -> None:
    clips = torch.arange(2 * 4).view(2, 4, 1, 1).expand(-1, -1, 2, 3)
    assert torch.equal(video.as_clips(video.as_frames(clips, 2), 2), clips)
    assert video.as_frames(clips, 2)[1, :, 0, 0].tolist() == [2, 3]
    assert video.strips(clips, 4)[1, 0, 0].tolist() == [4] * 3 + [5] * 3 + [6] * 3 + [7] * 3


def test_an_encoder_of_images_says_nothing_of_frames(spec: EncoderSpec) -> None:
    assert "frames" not in spec.to_json()
    clip_spec = dataclasses.replace(spec, frames=4)
    assert EncoderSpec.of(clip_spec.to_json()) == clip_spec
    assert clip_spec.patches == 2 * spec.patches
    for frames in (3, 0, -2, "4", 1.5, 10**9):
        with pytest.raises(UserError, match=r"frames|patches"):
            EncoderSpec.of({**spec.to_json(), "frames": frames})


@pytest.mark.parametrize(
    "words,named",
    [
        (["--method", "mae", "--data", NAME], "--frames 1"),
        (["--method", "videomae", "--data", "fashion-mnist"], NAME),
        (["--method", "videomae", "--data", NAME, "--frames", 1], "--frames 1"),
        (["--method", "videomae", "--data", NAME, "--frames", 7], "--frames 6 or 8"),
        (["--method", "mae", "--frames", 8], "frames 8"),
        (["--method", "random-init", "--data", NAME, "--backbone", "resnet18"], "--frames 1"),
    ],
)
def test_frames_that_do_not_fit_get_one_line(
    ssl_bench: Call, tmp_path: object, words: list[object], named: str
) -> None:
    code, _, err = ssl_bench("run", "--runs-dir", tmp_path, "--epochs", 1, *words)
    assert (code, err.count("\n")) == (2, 1), err
    assert named in err


@pytest.mark.parametrize(
    ("frames", "stride", "length", "first"),
    [(8, 2, 16, 0), (4, 1, 16, 6), (1, 1, 5, 2), (2, 3, 9, 2), (4, 5, 16, 0)],
)
def test_a_clip_lies_in_the_middle(frames: int, stride: int, length: int, first: int) -> None:
    assert Sampling(frames, stride).centre(length, "it") == first


def test_what_would_fit_is_what_fits() -> None:
    with pytest.raises(UserError, match="--frames 4 or --stride 3 would work"):
        Sampling(5, 4).centre(16, "it")
    for fitting in (Sampling(4, 4), Sampling(5, 3)):
        fitting.centre(16, "it")
    for larger in (Sampling(5, 4), Sampling(6, 4)):
        with pytest.raises(UserError):
            larger.centre(16, "it")
