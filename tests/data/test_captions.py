"""Captions: the embedded scenes, splits with texts, and data without."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import make_images

from ssl_bench import data
from ssl_bench.data.dataset import Dataset, fingerprint
from ssl_bench.data.embedded import scenes

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def found() -> Dataset:
    return data.load("fashion-captions")


def compositions(texts: tuple[str, ...]) -> set[tuple[str, str, str]]:
    """What the sentences of a scene say, each in a form of its own: (large, small, place)."""
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    told = []
    for sentence in texts:
        words = [w for w in sentence.replace(",", "").split() if w not in ("a", "of", "it", "and")]
        large = words[words.index("large") + 1]
        is_small_first = words[0] == "small"
        is_turned = words[0] == "large" and words[2] in opposite
        pairs = set()
        for at, word in enumerate(words):
            if word == "small":
                place = opposite[words[at - 1]] if is_turned else words[at + 2]
                pairs.add((large, words[at + 1], place))
        assert is_small_first or is_turned or "with" in words
        told.append(pairs)
    assert all(each == told[0] for each in told)
    return told[0]


def test_captions_of_a_scene_agree_and_new_compositions_are_in_the_test_split_alone(
    found: Dataset,
) -> None:
    splits = [
        [compositions(each) for each in split.captions or ()] for split in (found.train, found.test)
    ]
    seen = set().union(*splits[0])
    assert all(each - seen for each in splits[1])
    assert len({frozenset(each) for each in splits[1]}) == len(found.test)
    words = {word for each in seen for word in each}
    assert set(found.classes) <= words
    for each, label in zip(splits[1], found.test.labels_N.tolist(), strict=True):
        assert {large for large, _, _ in each} == {found.classes[label]}


def test_small_garments_lie_where_the_captions_say(found: Dataset) -> None:
    for index, (pairs, image_SS) in enumerate(
        zip(map(compositions, found.test.captions or ()), found.test.images_NCHW[:, 0], strict=True)
    ):
        if len(pairs) > 1 or index > 300:
            continue
        [(_, _, place)] = pairs
        rows, columns = image_SS.nonzero(as_tuple=True)
        across = columns if place in ("left", "right") else rows
        # A large garment and a small one beside it take 42 of 56 pixels; alone it takes 28.
        assert across.max() - across.min() > 28, (index, place)


def test_the_same_scenes_every_time(found: Dataset) -> None:
    again = scenes.read("test")
    assert torch.equal(again.images_NCHW, found.test.images_NCHW)
    assert again.captions == found.test.captions
    assert found.fingerprint == "efe559f7d7d6dce7"


def test_captions_follow_their_images() -> None:
    split = make_images(9, 3, 16, 3, seed=1)
    assert split.captions is not None
    part = split.subset([4, 2])
    assert part.captions == (split.captions[4], split.captions[2])
    assert part.to(torch.device("cpu")).captions == part.captions
    other = dataclasses.replace(split, captions=part.captions)
    assert fingerprint(split, part, ()) != fingerprint(other, part, ())
    validation = data.load("fashion-captions@validation")
    whole = scenes.read("train")
    assert validation.train.captions and validation.test.captions and whole.captions
    assert len(validation.train.captions) == len(validation.train) == 9000
    assert (
        torch.equal(
            validation.test.images_NCHW[0],
            whole.images_NCHW[whole.captions.index(validation.test.captions[0])],
        )
        or whole.captions.count(validation.test.captions[0]) > 1
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--data", "fashion-mnist"), "captions"),
        (("--evals", "retrieval-that-is-none"), "retrieval-that-is-none"),
        (("--backbone", "resnet50"), "--text-width"),
        (("--tokenizer", "/nowhere/vocab.txt"), "/nowhere/vocab.txt"),
        (("--evals", "finetune"), "captions"),
    ],
)
def test_a_mistake_gets_one_line(words: tuple[str, ...], told: str, ssl_bench: Command) -> None:
    code, _, err = ssl_bench("run", "--method", "bert", "--epochs", 0.1, *words)
    assert code == 2
    assert told in err
    assert "Traceback" not in err


def test_data_without_captions_have_no_hidden_words(ssl_bench: Command) -> None:
    words = ("--method", "random-init", "--data", "fashion-mnist", "--evals", "masked-words")
    code, _, err = ssl_bench("run", *words)
    assert code == 2
    assert "captions" in err and "fashion-captions" in err


@pytest.mark.parametrize("method", ["albef", "bert"])
def test_what_captions_lack_is_told_before_any_image_is_decoded(
    method: str, tmp_path: Path, ssl_bench: Command
) -> None:
    rows = [f"{number}.png,{'a bag' if number else ''}\n" for number in range(9)]
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    queue = ("--queue-size", 2) if method == "albef" else ()
    sizes = ("--epochs", 1, "--batch-size", 2, *queue)
    tokenizer = ("--tokenizer", tmp_path / "none.txt")
    for first, told in (("0.png,\n", "captions of"), ("0.png,a bag\n", "none.txt")):
        rows[0] = first
        (tmp_path / "captions.csv").write_text("file_name,text\n" + "".join(rows))
        code, _, err = ssl_bench("run", "--method", method, "--data", tmp_path, *sizes, *tokenizer)
        assert (code, err.count("\n")) == (2, 1) and told in err, err
