"""Folders of videos: which frames make a clip, and what is said of those that cannot be read."""

from __future__ import annotations

import errno
import importlib.util
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_bench import data
from ssl_bench.data import clips
from ssl_bench.data.clips import VideoSplit, middle
from ssl_bench.data.sampling import Sampling
from ssl_bench.data.sources import videos
from ssl_bench.distributed.device import choose
from ssl_bench.errors import UserError
from ssl_bench.evals import finetune
from ssl_bench.evaluation import finetuning
from ssl_bench.evaluation.features import Encoder, RawPixels, prepare
from ssl_bench.models import backbones
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.utils.rng import SampleRng

Call = Callable[..., tuple[int, str, str]]
COUNT, SIDE = 20, 32
with_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs PyAV")


def shades(first: int, count: int = COUNT) -> list[np.ndarray]:
    """Frames, each of one shade, which is four brighter than that of the one before."""
    return [np.full((SIDE, SIDE, 3), first + 4 * number, np.uint8) for number in range(count)]


def write_gif(path: Path, frames: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    films = [Image.fromarray(frame) for frame in frames]
    films[0].save(path, save_all=True, append_images=films[1:], duration=40)


def write_film(path: Path, frames: list[np.ndarray], codec: str = "mpeg4", **options: str) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def gifs(tmp_path: Path) -> Path:
    root = tmp_path / "films"
    for split, count in (("train", 3), ("test", 2)):
        for number in range(count):
            for name, first in (("dark", 0), ("light", 100)):
                write_gif(root / split / name / f"{number}.gif", shades(first + number))
    return root


def load(root: Path, frames: int | None = 4, stride: int | None = 3, **how: Any) -> data.Dataset:
    return data.load(str(root), 28, frames=frames, stride=stride, **how)


def shades_of(clips: torch.Tensor) -> list[list[int]]:
    """The mean of each frame of clips of 4 frames in 3 channels."""
    return clips.float().unflatten(1, (4, 3)).mean(dim=(2, 3, 4)).round().int().tolist()


def test_a_clip_is_frames_of_a_stride_from_the_middle(gifs: Path) -> None:
    found = load(gifs)
    assert isinstance(found.train, VideoSplit)
    assert (found.classes, found.frames, found.channels) == (("dark", "light"), 4, 3)
    assert (len(found.train), len(found.test), found.size) == (6, 4, 32)
    # Of frames 0, 3 ... 18 those from the second on.
    assert shades_of(found.train.images(torch.tensor([1, 3]))) == [
        [1 + 4 * number for number in (3, 6, 9, 12)],
        [100 + 4 * number for number in (3, 6, 9, 12)],
    ]
    everything = torch.cat([*found.train.chunks(4)])
    assert torch.equal(everything, found.train.images(torch.arange(6)))
    assert found.train.labels_N.tolist() == [0, 0, 0, 1, 1, 1]
    one = found.train.subset([4])
    assert one.frames_KCSS is found.train.frames_KCSS
    assert shades_of(one.images(torch.tensor([0]))) == [[101 + 4 * n for n in (3, 6, 9, 12)]]


def test_training_begins_anywhere_by_the_samples_draws(gifs: Path) -> None:
    train = load(gifs).train
    starts = set()
    for step in range(40):
        draws = SampleRng(0, step, torch.arange(6))
        drawn = shades_of(train.drawn(draws))
        assert drawn == shades_of(train.drawn(draws))
        assert drawn[2:3] == shades_of(train.drawn(draws.rows(slice(2, 3))))
        for clip in drawn[:1]:
            assert [later - clip[0] for later in clip] == [0, 12, 24, 36]
            starts.add(clip[0] // 4)
    assert starts == {0, 3, 6, 9}


def test_a_test_video_is_seen_in_several_clips_and_crops(tmp_path: Path) -> None:
    """From its beginning to its end, each at the left, in the centre and at the right."""
    films = tmp_path / "films"
    for split in ("train", "test"):
        for name, first in (("dark", 0), ("light", 100)):
            wide = [
                np.concatenate([frame + 0, frame + 9, frame + 18], 1) for frame in shades(first)
            ]
            write_gif(films / split / name / "0.gif", wide)
    found, usual = load(films, views=(3, 3)), load(films)
    index = torch.tensor([1, 0])
    [views] = ([*views] for views in found.test.seen([index]))
    firsts = [[clip[0] for clip in shades_of(view)] for view in views]
    # Of frames 0, 3 ... 18 the first four, four from the second on, and the last four.
    expected = [
        [base + 12 * start + 9 * crop for base in (100, 0)]
        for start in (0, 1, 3)
        for crop in range(3)
    ]
    assert np.abs(np.array(firsts) - expected).max() <= 1
    for split in ("train", "test"):
        ours, theirs = getattr(found, split), getattr(usual, split)
        assert torch.equal(ours.images(index), theirs.images(index))
        assert (ours.channels, ours.side) == (theirs.channels, theirs.side)
    [middle] = ([*views] for views in load(films, views=(1, 3)).test.seen([index]))
    assert all(map(torch.equal, middle, views[3:6]))
    [[one]] = ([*views] for views in usual.test.seen([index]))
    assert torch.equal(one, usual.test.images(index))
    [only] = ([*views] for views in found.train.seen([index]))
    assert len(only) == 1
    assert found.fingerprint == usual.fingerprint == usual.as_tested().fingerprint
    tested = [load(films, views=views).as_tested() for views in ((3, 3), (9, 1), (1, 3))]
    assert len({usual.fingerprint, *(each.fingerprint for each in tested)}) == 4
    assert "3 clips x 3 crops" in tested[0].note


def test_features_and_probabilities_are_averaged_over_views(gifs: Path) -> None:
    spec = EncoderSpec("vit_nano", 28, 7, 3, (0.4,) * 3, (0.2,) * 3, frames=4)
    encoder = Encoder(backbones.build(spec, 0), spec, choose("fp32", "off"), 0)
    test = load(gifs, views=(3, 1)).test
    [views] = test.seen([torch.arange(len(test))])
    seen = [prepare(view, spec, encoder.hardware) for view in views]
    expected = torch.stack([encoder.encode(view)["avg"] for view in seen]).mean(0)
    torch.testing.assert_close(encoder.features(test)["avg"], expected)
    pixels = RawPixels(spec, encoder.hardware, 0).features(test)["pixels"]
    torch.testing.assert_close(pixels, torch.stack(seen).mean(0).flatten(1))

    class Shade(torch.nn.Module):
        """Sure of class 1 where a clip is bright, a little in favour of class 0 elsewhere."""

        def forward(self, clips_BCHW: torch.Tensor) -> torch.Tensor:
            bright_B = (clips_BCHW.mean(dim=(1, 2, 3)) > threshold).float()
            return torch.stack([3 - 3 * bright_B, 9 * bright_B], dim=1)

    means = torch.stack([view.mean(dim=(1, 2, 3)) for view in seen])
    threshold = (
        means[1, 0] + means[2, 0]
    ) / 2  # of the first video its last clip alone is brighter
    shares = torch.stack([Shade()(view).softmax(1) for view in seen]).mean(0)
    assert (shares[0, 0] > 0.6) and means[2, 0] > threshold > means[1, 0]
    assert finetuning.predict(Shade(), encoder, test).tolist() == shares.argmax(1).tolist()
    votes = torch.stack([Shade()(view) for view in seen]).mean(0)
    assert votes[0].argmax() == 1  # as sums of logits would have it


def test_fine_tuning_draws_where_a_clip_begins(gifs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = EncoderSpec("vit_nano", 28, 7, 3, (0.4,) * 3, (0.2,) * 3, frames=4)
    encoder = Encoder(backbones.build(spec, 0), spec, choose("fp32", "off"), 0)
    config, train = finetune.Config(epochs=8, batch_size=6, base_lr=1e-4), load(gifs).train
    starts: set[int] = set()
    view = finetuning.training_views

    def watched(stored: torch.Tensor, *how: Any) -> torch.Tensor:
        starts.update(clip[0] % 100 // 12 for clip in shades_of(stored))
        return view(stored, *how)

    monkeypatch.setattr(finetuning, "training_views", watched)
    finetuning.train(finetuning.classifier(encoder, 2, config), encoder, train, config)
    assert starts == {0, 1, 2, 3}


def test_several_views_are_of_videos_alone(image_folder: Path, ssl_bench: Call) -> None:
    code, _, err = ssl_bench("eval", "RUN", "--test-crops", 2)
    assert (code, err.count("\n")) == (2, 1) and "--test-crops 2" in err
    for source in ("fashion-motions@validation", str(image_folder)):
        with pytest.raises(UserError, match="--test-clips 2 --test-crops 3") as error:
            data.load(source, views=(2, 3))
        assert "\n" not in str(error.value)


def test_short_videos_repeat_their_last_frame_and_are_counted(gifs: Path) -> None:
    write_gif(gifs / "train" / "dark" / "0.gif", shades(0, count=5))
    found = load(gifs)
    assert "1 video of 10 shorter than 4 frames of stride 3" in found.note
    assert found.note.endswith(": 0.gif")
    assert shades_of(found.train.images(torch.tensor([0]))) == [[0, 12, 12, 12]]
    assert shades_of(found.train.drawn(SampleRng(0, 0, torch.tensor([0])))) == [[0, 12, 12, 12]]


def test_broken_videos_are_named_together_or_left_out(gifs: Path) -> None:
    write_gif(gifs / "train" / "dark" / "1.gif", shades(0, count=1))
    (gifs / "test" / "light" / "0.gif").write_bytes(b"GIF89a nothing")
    with pytest.raises(UserError) as error:
        load(gifs)
    text = str(error.value)
    assert "1.gif (it has one frame)" in text and "light/0.gif" in text and "--skip-broken" in text
    found = load(gifs, skip_broken=True)
    assert (len(found.train), len(found.test), len(found.broken)) == (5, 3, 2)
    assert found.note.endswith("2 broken videos left out")


def test_what_is_said_of_classes_is_said_once_without_broken_videos(gifs: Path) -> None:
    shutil.rmtree(gifs / "test" / "light")
    (gifs / "train" / "dark" / "1.gif").write_bytes(b"")
    note = load(gifs, skip_broken=True).note
    assert note.count("all test images are of one class") == 1 and "1 broken video left out" in note
    for number in (0, 2):
        (gifs / "train" / "dark" / f"{number}.gif").write_bytes(b"")
    with pytest.raises(UserError, match="without 3 broken videos"):
        load(gifs, skip_broken=True)


def test_gifs_are_images_unless_several_frames_are_asked_for(gifs: Path) -> None:
    assert data.load(str(gifs), 28).frames == 1
    assert load(gifs, frames=2, stride=None).frames == 2


def test_pictures_beside_videos_are_left_out_unless_they_are_more(tmp_path: Path) -> None:
    films, (frame, *_) = tmp_path / "films", shades(0)
    for name in ("dark", "light"):
        for number in range(3):
            write_gif(films / name / f"{number}.gif", shades(number))
        (films / name / "0.gif").rename(films / name / "0.mp4")
    for place in ("poster", ".cache/poster", "dark/thumbnail"):
        (films / place).parent.mkdir(exist_ok=True)
        Image.fromarray(frame).save(films / f"{place}.jpg")
    listed = videos.find(films, "")
    assert listed.count == 6 and listed.left_out == {".jpg": 1, "in no class folder": 1}
    assert videos.is_here(films, None)
    for number in range(5):
        Image.fromarray(frame).save(films / "dark" / f"{number}.jpg")
    assert not videos.is_here(films, 4)


def test_a_fifth_is_held_out_and_a_folder_can_be_chosen(gifs: Path) -> None:
    found = load(Path(f"{gifs}@train"))
    assert len(found.train) + len(found.test) == 6
    assert "held out" in found.note
    shutil.rmtree(gifs / "test" / "light")
    (gifs / "test" / "light").mkdir()
    with pytest.raises(UserError, match="no videos"):
        load(gifs)


def test_the_fingerprint_is_of_frames_stride_and_labels(gifs: Path) -> None:
    prints = {load(gifs, *how).fingerprint for how in ((4, 3), (4, 2), (6, 3))}
    assert len(prints) == 3
    assert load(gifs).fingerprint in prints


def test_streaming_is_refused(gifs: Path) -> None:
    with pytest.raises(UserError, match="--storage memory"):
        load(gifs, storage="stream")


def test_without_pyav_the_extra_is_named(gifs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (gifs / "train" / "dark" / "9.mp4").write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"ssl-bench\[video\]"):
        load(gifs)


@with_av
@pytest.mark.parametrize(
    "suffix,codec", [(".mp4", "mpeg4"), (".avi", "mpeg4"), (".webm", "libvpx")]
)
def test_films_are_read_as_gifs_are(tmp_path: Path, suffix: str, codec: str) -> None:
    for name, first in (("dark", 0), ("light", 100)):
        for number in range(12):
            write_film(tmp_path / name / f"{number}{suffix}", shades(first + number), codec)
    found = load(tmp_path)
    assert len(found.train) + len(found.test) == 24
    [clip] = found.train.images(torch.tensor([0]))[None].flatten(1, 1)
    frames = torch.tensor(shades_of(clip)[0])
    assert (frames.diff() - 12).abs().max() <= 3
    (tmp_path / "dark" / f"0{suffix}").write_bytes(b"nothing of the kind")
    write_film(tmp_path / "dark" / f"1{suffix}", shades(0, count=1), codec)
    with pytest.raises(UserError, match="cannot read 2 videos") as error:
        load(tmp_path)
    assert f"dark/0{suffix}" in str(error.value) and "one frame" in str(error.value)


@with_av
@pytest.mark.parametrize(
    ("code", "is_broken"), [(errno.EIO, True), (errno.ENOMEM, True), (errno.EACCES, False)]
)
def test_what_ffmpeg_says_of_a_file_is_no_refusal_of_the_system(
    code: int, is_broken: bool, gifs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    (gifs / "train" / "dark" / "9.mkv").write_bytes(b"cut short")
    monkeypatch.setattr(av, "open", lambda path: av.error.err_check(-code, path))
    if is_broken:
        assert len(load(gifs, skip_broken=True).broken) == 1
    else:
        with pytest.raises(UserError, match=r"9\.mkv"):
            load(gifs, skip_broken=True)


@with_av
@pytest.mark.parametrize("name", ["film.mp4", "film.avi", "film.webm", "film.mkv", "film.gif"])
def test_a_film_that_is_cut_short_is_no_shorter_film(name: str, tmp_path: Path) -> None:
    """Even where its header comes first, and all that is left of it can be decoded."""
    film = tmp_path / name
    frames = [
        np.random.default_rng(n).integers(0, 256, (32, 32, 3), np.uint8) for n in range(COUNT)
    ]
    if film.suffix == ".gif":
        write_gif(film, frames)
    else:
        codec = "libvpx" if film.suffix == ".webm" else "mpeg4"
        more = {"movflags": "faststart"} if film.suffix == ".mp4" else {}
        write_film(film, frames, codec, **more)
    content = film.read_bytes()
    assert middle(film, 28, Sampling(COUNT)).shape[1] == 3 * COUNT
    for share in (0.5, 0.8, 0.97):
        film.write_bytes(content[: int(share * len(content))])
        with pytest.raises(UserError, match=r"cut short|truncated") as error:
            middle(film, 28, Sampling(2))
        assert name in str(error.value)


def test_decoding_stops_where_frames_take_half_of_the_memory(
    gifs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a video, too; a broken one gives back what it has taken."""
    real, squares = clips.square_CSS, list[np.ndarray]()

    def square_CSS(*args: Any, **how: Any) -> np.ndarray:
        squares.append(real(*args, **how))
        return squares[-1]

    def load_where(frames: int, **how: Any) -> None:
        monkeypatch.setattr(clips, "total_memory", lambda: 2 * frames * 3 * 32 * 32)
        squares.clear()
        load(gifs, **how)

    monkeypatch.setattr(clips, "square_CSS", square_CSS)
    load_where(70)
    assert len(squares) == 70
    with pytest.raises(UserError, match=r"memory.*--stride"):
        load_where(5)
    assert len(squares) <= 5 + 10  # the frame that is too much of each of 10 videos
    write_gif(gifs / "train" / "dark" / "0.gif", shades(0, count=1))
    load_where(63, skip_broken=True)


@with_av
def test_a_film_stands_as_its_camera_was_held(tmp_path: Path) -> None:
    frame = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    frame[:, :SIDE] = 200
    write_film(tmp_path / "film.mp4", [frame] * 5)
    lying = middle(tmp_path / "film.mp4", 28, Sampling(2))
    content = bytearray((tmp_path / "film.mp4").read_bytes())
    begin = content.index(b"tkhd") + 44  # the matrix of the track's header (ISO 14496-12, 8.3.2)
    content[begin : begin + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "film.mp4").write_bytes(content)
    upright = middle(tmp_path / "film.mp4", 28, Sampling(2))
    assert lying[..., :10].min() > 150 > 50 > lying[..., -10:].max()
    assert upright[..., :10, :].min() > 150 > 50 > upright[..., -10:, :].max()


def test_videomae_learns_from_a_folder(gifs: Path, tmp_path: Path, ssl_bench: Call) -> None:
    of_run = ["--data", gifs, "--image-size", 28, "--runs-dir", tmp_path, "--backbone", "vit_nano"]
    of_run += ["--epochs", 1, "--batch-size", 2, "--precision", "fp32", "--evals", "knn"]
    clips = ["--frames", 4, "--stride", 2]
    code, out, err = ssl_bench("run", "--method", "videomae", *of_run, *clips)
    assert code == 0, err
    assert "clips of 4 frames" in out
    [folder] = tmp_path.glob("videomae-*")
    views = "--test-clips", 2, "--test-crops", 3
    for more in ((), views, ("--stride", 1)):
        flags = "--evals", "linear,knn", "--runs-dir", tmp_path, "--linear-epochs", 1, *more
        code, out, err = ssl_bench("eval", folder, *flags)
        assert code == 0, err
        assert ("2 clips x 3 crops" in out) == (more == views)
    assert len([*(folder / "evals").glob("knn-*")]) == 3
    code, out, err = ssl_bench("run", "--method", "videomae", *of_run, *clips, *views)
    assert code == 0, err
    assert "pre-trained already: reused" in out
    code, out, err = ssl_bench("export", folder, "--format", "hf", "--output", tmp_path / "hf")
    assert code == 0, err
    film, still = gifs / "train" / "dark" / "0.gif", tmp_path / "still.png"
    Image.fromarray(shades(9)[0]).save(still)
    drawn = []
    for source in (folder, tmp_path / "hf"):
        for how in ("tube", "random", "frame"):
            picture = tmp_path / "picture.png"
            flags = "--output", picture, "--sampling", how, "--mask-ratio", 0.5
            code, out, err = ssl_bench("reconstruct", source, film, still, *flags)
            assert code == 0, err
            assert "predicts normalised patches" in out
            drawn.append(picture.read_bytes())
    assert len(set(drawn[:3])) == 3
    write_gif(tmp_path / "one.gif", shades(0, count=1))
    for file, message in ((tmp_path / "one.gif", "one frame"), (film, "block")):
        words = [file, "--output", tmp_path / "none.png"]
        words += ["--sampling", "block"] if file == film else []
        code, _, err = ssl_bench("reconstruct", folder, *words)
        assert (code, err.count("\n")) == (2, 1) and message in err, err
        assert not (tmp_path / "none.png").exists()
    code, _, err = ssl_bench("run", "--method", "mae", *of_run, *clips)
    assert (code, "--frames 1" in err) == (2, True), err
