"""Retrieval, zero-shot classification and hidden words: against plain counting, and as commands."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import helpers
import naive
import naive_text
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import CPU, make_images
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.data import Dataset, load
from ssl_bench.evals import masked_words, retrieval
from ssl_bench.evaluation.features import Encoder, prepare
from ssl_bench.evaluation.metrics import subset
from ssl_bench.evaluation.texts import as_bytes, as_texts
from ssl_bench.experiment import figures
from ssl_bench.models import vocabulary
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.transforms.augmentations import evaluation_view

Command = Callable[..., tuple[int, str, str]]
SPEC = EncoderSpec("vit_micro", 16, 4, 3, (0.5,) * 3, (0.25,) * 3, helpers.SHAPE)
ALBEF, BERT = (registry.find("method", name) for name in ("albef", "bert"))
WORDS = ("one", "two", "three", "four", "five")
"""Training captions have them, so that texts can be told apart."""


@pytest.fixture(scope="module")
def data() -> Dataset:
    train, test = make_images(60, 3, 16, 3, seed=1), make_images(14, 3, 16, 3, seed=2)
    captions = tuple(
        (f"image {WORDS[n % 9 // 3]} {WORDS[n % 3]}", f"easy {WORDS[n // 5]} {WORDS[n % 5]}")
        for n in range(14)
    )
    test = dataclasses.replace(test, captions=captions)
    return Dataset("tiny", train, test, ("one", "two", "three"), "fingerprint", "", 16)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    method = helpers.build(ALBEF, SPEC)
    spec = helpers.with_text(ALBEF, SPEC)
    return Encoder(method.encoder, spec, CPU, seed=0, pair=method.text_side)


def run(name: str, encoder: Encoder, data: Dataset, **config: Any) -> Any:
    plugin = registry.find("eval", name)
    return plugin.load_class()(plugin.load().Config(**config)).evaluate(encoder, data)


def parts(encoder: Encoder, data: Dataset) -> tuple[Tensor, Tensor, list[str]]:
    """Test images and all of their captions in the common space."""
    views = prepare(data.test.images(torch.arange(14)), SPEC, CPU)
    images = encoder.pair.embed_images(encoder.tokens(views)[:, 0])
    texts = [each for own in data.test.captions or () for each in own]
    ids = vocabulary.tokenize(texts, encoder.text.spec)
    return images, encoder.pair.embed_texts(encoder.text(ids)), texts


def test_presets_are_the_published_and_the_embedded_datas() -> None:
    """The published model ranks 256 anew; captions of the embedded scenes say "a large ..."."""
    assert registry.find("eval", "retrieval").presets()["albef-vitb16"] == {"rerank": 256}
    quick = registry.find("eval", "zero-shot").presets()["quick"]
    assert quick == {"templates": ("a large {}", "there is a large {}")}


def test_what_was_trained_beside_the_encoder_drops_nothing() -> None:
    side = helpers.build(ALBEF, SPEC)
    pair = Encoder(side.encoder, SPEC, CPU, 0, pair=side.text_side.train()).pair
    assert not any(module.training for module in pair.modules())
    assert not any(parameter.requires_grad for parameter in pair.parameters())


def test_recalls_are_counted(encoder: Encoder, data: Dataset) -> None:
    images, words, texts = parts(encoder, data)
    captions = data.test.captions or ()
    expected = {}
    for rank in (1, 5, 10):
        right = 0
        for image, own in zip(images, captions, strict=True):
            order = (words @ image).argsort(descending=True).tolist()
            right += any(texts[place] in own for place in order[:rank])
        expected[f"text_of_image_r{rank}"] = 100 * right / 14
        right = 0
        for word, caption in zip(words, texts, strict=True):
            order = (images @ word).argsort(descending=True).tolist()
            right += any(caption in captions[place] for place in order[:rank])
        expected[f"image_of_text_r{rank}"] = 100 * right / 28
    result = run("retrieval", encoder, data, rerank=0, resamples=200)
    for name, score in expected.items():
        assert result.scores[name] == pytest.approx(score), name
        low, high = (result.scores[f"{name}_{end}"] for end in ("low", "high"))
        assert low <= score <= high and (low < high or score in (0, 100)), name
    mean = (expected["text_of_image_r1"] + expected["image_of_text_r1"]) / 2
    assert next(iter(result.scores.items())) == ("mean_r1", pytest.approx(mean))
    assert result.scores["mean_r1_low"] <= mean <= result.scores["mean_r1_high"]
    assert result.scores["mean_r1_low"] < result.scores["mean_r1_high"]
    same = sum(a in own for own in captions for a in texts)
    assert result.scores["chance"] == pytest.approx(100 * same / (14 * 28))


def test_the_best_are_ranked_anew_by_the_matching_head(
    encoder: Encoder, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways: one that is always right puts first what was among the five best."""
    captions, reader = data.test.captions or (), encoder.text
    tokens_NSD = encoder.tokens(prepare(data.test.images(torch.arange(14)), SPEC, CPU))
    _, _, texts = parts(encoder, data)
    ids_ML = vocabulary.tokenize(texts, reader.spec)
    pad = reader.spec.id(vocabulary.PAD)
    text_of = {(*row,): text for row, text in zip(ids_ML.tolist(), texts, strict=True)}

    def matching(hidden_BLD: Tensor, ids_BL: Tensor, image_BSD: Tensor) -> Tensor:
        seen_BL = reader.seen(ids_BL)
        torch.testing.assert_close(hidden_BLD[seen_BL], reader(ids_BL)[seen_BL])
        whole_BL = F.pad(ids_BL, (0, ids_ML.shape[1] - ids_BL.shape[1]), value=pad)
        image_B = (image_BSD[:, None] - tokens_NSD).abs().flatten(2).sum(dim=2).argmin(dim=1)
        pairs = zip(whole_BL.tolist(), image_B.tolist(), strict=True)
        is_right = [text_of[(*ids,)] in captions[image] for ids, image in pairs]
        return F.one_hot(torch.tensor(is_right).long(), 2).float()

    monkeypatch.setattr(encoder.pair, "matching", matching)
    before, after = (
        run("retrieval", encoder, data, rerank=most, resamples=1).scores for most in (0, 5)
    )
    for way in ("text_of_image", "image_of_text"):
        assert before[f"{way}_r1"] < before[f"{way}_r5"] == after[f"{way}_r1"] < 100, way
    assert after["mean_r1_low"] == after["mean_r1_high"], "one sample has no width"


def test_ranks_that_are_perfect_and_ranks_that_are_not() -> None:
    is_right = torch.eye(12, dtype=torch.bool)
    assert retrieval._hits(torch.eye(12), is_right).all()
    hits = retrieval._hits(torch.eye(12), is_right.roll(1, 1))
    assert not hits[:, 0].any() and hits[:, 2].any()


def test_images_that_are_retrieved_are_kept_for_a_figure(data: Dataset) -> None:
    """Of an encoder that gives each caption other images."""
    method, spec = helpers.build(ALBEF, SPEC), helpers.with_text(ALBEF, SPEC)
    naive.randomise(method.text_side)
    encoder = Encoder(method.encoder, spec, CPU, seed=0, pair=method.text_side)
    result = run("retrieval", encoder, data, rerank=0, resamples=1)
    images, words, sentences = parts(encoder, data)
    captions = data.test.captions or ()
    queries = as_texts(result.arrays["queries"].numpy())
    assert queries == [own[0] for own in captions[:5]]
    views = (255 * evaluation_view(data.test.images(torch.arange(14)), 16)).round().byte()
    for number, query in enumerate(queries):
        best = (images @ words[sentences.index(query)]).topk(5).indices
        assert torch.equal(result.arrays["answers"][number], views[best])
        rights = [int(query in captions[image]) for image in best.tolist()]
        assert result.arrays["is_right"][number].tolist() == rights
    assert 0 < result.arrays["is_right"].sum() < 25
    answers = result.arrays["answers"].flatten(1)
    assert len(answers.unique(dim=0)) > 1


def test_what_is_found_is_the_best_ten_images_of_each_caption(
    encoder: Encoder, data: Dataset
) -> None:
    """However many are to be ranked anew; fewer where there are fewer."""
    images, words, _ = parts(encoder, data)
    result = run("retrieval", encoder, data, rerank=0, resamples=1)
    assert torch.equal(result.arrays["found"], (words @ images.T).topk(10, dim=1).indices)
    few = dataclasses.replace(data, test=data.test.subset(range(3)))
    arrays = run("retrieval", encoder, few, rerank=99, resamples=1).arrays
    assert arrays["found"].shape == (6, 3)
    assert arrays["answers"].shape == (3, 3, 3, 16, 16)


def test_maps_of_words_are_the_attention_of_the_last_layer(encoder: Encoder, data: Dataset) -> None:
    arrays = run("masked-words", encoder, data).arrays
    index = subset(14, 1000, data.fingerprint)[:4]
    tokens_BTD = encoder.tokens(prepare(data.test.images(index), SPEC, CPU)).double()
    reader = encoder.text
    weights, heads = naive.weights_of(reader), reader.spec.num_heads
    last = naive.under(weights, "fusion.0")
    for place, image in enumerate(index.tolist()):
        caption = (data.test.captions or ())[image][0]
        [ids] = vocabulary.tokenize([caption], reader.spec).tolist()
        ids = [each for each in ids if each != reader.spec.id(vocabulary.PAD)]
        rows = naive_text.encode(weights, ids, reader.spec.depth, heads)
        shown = as_texts(arrays["words"][place].numpy())
        assert shown[: len(ids) - 2] == [reader.spec.words[each] for each in ids[1:-1]]
        assert not any(shown[len(ids) - 2 :])
        for word, row_D in enumerate(rows[1:-1]):
            own_D = naive_text.attend(last, "attention", row_D, rows, heads)
            query_D = naive_text.linear(
                last,
                "cross_attention.query",
                naive_text.norm(last, "attention_norm", row_D + own_D),
            )
            keys = [naive_text.linear(last, "cross_attention.key", t) for t in tokens_BTD[place]]
            parts = [
                torch.stack([query_D[c] @ key[c] / len(c) ** 0.5 for key in keys]).softmax(0)
                for c in torch.arange(len(query_D)).chunk(heads)
            ]
            expected = torch.stack(parts).mean(dim=0)[1:].view(4, 4).float()
            torch.testing.assert_close(
                arrays["word_maps"][place, word], expected, rtol=1e-4, atol=1e-5
            )
    views = (255 * evaluation_view(data.test.images(index), 16)).round().byte()
    assert torch.equal(arrays["word_images"], views)


def test_texts_of_any_script_are_kept_and_drawn_without_a_word(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    sentences = ["\u8863" * 100, "costs $5 or $6$", "\U0001f455 bag"]
    kept = as_texts(as_bytes(sentences).numpy())
    assert kept == ["\u8863" * 66, *sentences[1:]]
    arrays = {
        "queries": as_bytes(sentences).numpy(),
        "answers": np.zeros((3, 2, 3, 8, 8), np.uint8),
        "is_right": np.zeros((3, 2), np.uint8),
    }
    figures._save(figures.retrieved(arrays), tmp_path / "retrieved.png")
    assert (tmp_path / "retrieved.png").exists() and not recwarn.list


def test_what_has_other_shapes_is_not_drawn() -> None:
    arrays = {
        "queries": np.zeros((2, 9), np.uint8),
        "answers": np.zeros((2, 5, 3, 8, 8), np.uint8),
        "is_right": np.zeros((2, 5), np.uint8),
    }
    assert figures.RETRIEVED.fits(arrays)
    for name, wrong in (
        ("queries", np.zeros((3, 9), np.uint8)),
        ("queries", np.zeros((2, 9), np.int64)),
        ("answers", np.zeros((2, 5, 2, 8, 8), np.uint8)),
        ("answers", np.zeros((2, 5, 3, 8), np.uint8)),
        ("answers", np.zeros((2, 5, 3, 8, 3000), np.uint8)),
        ("is_right", np.zeros((2, 4), np.uint8)),
        ("is_right", np.zeros((2, 0), np.uint8)),
    ):
        assert not figures.RETRIEVED.fits({**arrays, name: wrong}), (name, wrong.shape)


@pytest.mark.parametrize("is_of_text", [False, True])
def test_what_is_ranked_anew_stays_first(
    is_of_text: bool, encoder: Encoder, known: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among the best, by the logit that they belong together alone, however large it is."""

    def belongs(hidden_BLD: Tensor, ids_BL: Tensor, image_BSD: Tensor) -> Tensor:
        sure_B = torch.sin(ids_BL.double() @ torch.arange(ids_BL.shape[1]).double())
        return torch.stack([9 * sure_B.square(), 30 + sure_B], dim=1)

    def looked_at(images_BCHW: Tensor) -> Tensor:
        images.append(len(images_BCHW))
        return tokens(images_BCHW)

    images, tokens = list[int](), encoder.tokens
    monkeypatch.setattr(encoder.pair, "matching", belongs)
    monkeypatch.setattr(encoder, "tokens", looked_at)
    monkeypatch.setattr(retrieval, "_AT_ONCE", 7)
    _, _, texts = parts(encoder, known)
    images.clear()
    ids = vocabulary.tokenize(texts, encoder.text.spec)
    shape = (len(texts), 14) if is_of_text else (14, len(texts))
    score = 1 - torch.rand(shape, generator=torch.Generator().manual_seed(0)) / 100
    before, best = score.clone(), score.topk(4, dim=1).indices
    _, hidden = retrieval._texts(encoder, ids)
    retrieval._rerank(score, is_of_text, 4, encoder, known, hidden, ids)
    # Each of the 14 once, and again where its pairs are in two of the 8 chunks.
    assert sum(images) <= 14 + 7
    after = score.topk(4, dim=1).indices
    assert torch.equal(after.sort().values, best.sort().values)
    others = torch.ones_like(score, dtype=torch.bool).scatter(1, best, False)
    assert torch.equal(score[others], before[others])
    if not is_of_text:
        assert not torch.equal(after, best)
        sure = belongs(ids, ids, ids)[:, 1][after]
        assert (sure.diff(dim=1) < 0).all() and sure.std() > 0.1


def test_the_interval_is_that_of_the_percentiles() -> None:
    generator = torch.Generator().manual_seed(0)
    image_M = torch.tensor([0, 0, 0, 1, 2, 2, *range(3, 30)])
    hits_N3, hits_M3 = (
        torch.randint(2, (count, 3), generator=generator).double() for count in (30, len(image_M))
    )
    found_72 = retrieval._intervals(hits_N3, hits_M3, image_M, 4000, "print")
    draws = torch.randint(30, (4000, 30), generator=generator)
    of_image, drawn = [hits_M3[image_M == image] for image in range(30)], []
    for row in draws.tolist():
        of_images_3 = hits_N3[row].mean(dim=0)
        of_texts_3 = torch.cat([of_image[image] for image in row]).mean(dim=0)
        both = (of_images_3[0] + of_texts_3[0]) / 2
        drawn.append(torch.cat([both[None], of_images_3, of_texts_3]))
    ends_2 = torch.tensor([0.025, 0.975], dtype=torch.float64)
    expected_72 = 100 * torch.stack(drawn).quantile(ends_2, dim=0).T
    torch.testing.assert_close(found_72, expected_72, rtol=0, atol=2.0)
    torch.testing.assert_close(found_72[0], expected_72[0], rtol=0, atol=1.5)
    other_72 = retrieval._intervals(hits_N3, hits_M3, image_M, 4000, "another")
    assert not torch.equal(found_72, other_72)


def test_sentences_are_three_unless_others_are_given() -> None:
    assert registry.find("eval", "zero-shot").config().templates == (
        *("a {}", "a photo of a {}", "there is a {}"),
    )


def test_names_of_classes_are_words() -> None:
    module = importlib.import_module(registry.find("eval", "zero-shot").load_class().__module__)
    assert module._readable("T-shirt_Top") == "t-shirt top"


def test_each_class_is_a_direction_whatever_its_sentences_agree_on(data: Dataset) -> None:
    """The mean of sentences that differ is short, and that must not count against a class."""
    towards = {"a one": (1.0, 0.1), "b one": (1.0, -0.1), "a two": (-0.6, 0.8), "b two": (0.6, 0.8),
               "a three": (-1.0, 0.0), "b three": (-1.0, 0.0)}  # fmt: skip

    class Pair:
        text: Any = None

        def embed_texts(self, hidden: Tensor) -> Tensor:
            return F.normalize(torch.tensor([towards[each] for each in hidden]), dim=1)

        def embed_images(self, features: Tensor) -> Tensor:
            return F.normalize(torch.tensor([[0.7, 0.8]]), dim=1).expand(len(features), 2)

    class Reader:
        spec = None

        def __call__(self, texts: Any) -> Any:
            return texts

    class Sentences(list[str]):
        def to(self, device: Any) -> Sentences:
            return self

    Pair.text = Reader()
    fake = SimpleNamespace(
        pair=Pair(), hardware=CPU, features=lambda split: {"cls": torch.zeros(len(split), 4)}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "tokenize", lambda texts, spec: Sentences(texts))
        found = run("zero-shot", fake, data, templates=("a {}", "b {}"))  # type: ignore[arg-type]
    assert set(found.predictions_N.tolist()) == {1}


def test_zero_shot_is_the_nearest_sentence(encoder: Encoder, data: Dataset) -> None:
    images, _, _ = parts(encoder, data)
    templates = ("a {}", "class {}: easy")
    means = []
    for name in data.classes:
        sentences = [template.format(name) for template in templates]
        ids = vocabulary.tokenize(sentences, encoder.text.spec)
        means.append(encoder.pair.embed_texts(encoder.text(ids)).mean(dim=0))
    found = run("zero-shot", encoder, data, templates=templates)
    cosine = torch.nn.functional.normalize(torch.stack(means), dim=1) @ images.T
    assert found.predictions_N.tolist() == cosine.argmax(dim=0).tolist()


@pytest.fixture(scope="module")
def known(data: Dataset) -> Dataset:
    """Each test image has a caption of its own."""
    captions = tuple(
        (f"easy easy an image of class {WORDS[number // 5]} {WORDS[number % 5]}",)
        for number in range(14)
    )
    return dataclasses.replace(data, test=dataclasses.replace(data.test, captions=captions))


def test_hidden_words_are_counted(known: Dataset) -> None:
    data = known
    method, spec = helpers.build(BERT, SPEC), helpers.with_text(BERT, SPEC)
    encoder = Encoder(method.encoder, spec, CPU, seed=0)
    own, right, count = encoder.text.spec, 0, 0
    for captions in data.test.captions or ():
        [ids] = vocabulary.tokenize(captions[:1], own)
        for place, word in enumerate(ids.tolist()):
            if own.words[word] in (vocabulary.PAD, vocabulary.CLS, vocabulary.SEP):
                continue
            hidden = ids.clone()
            hidden[place] = own.id(vocabulary.MASK)
            logits = encoder.text.predict(encoder.text(hidden[None]))[0, place]
            right, count = right + int(logits.argmax() == word), count + 1
    found = run("masked-words", encoder, data)
    assert found.scores["accuracy"] == pytest.approx(100 * right / count)
    words = [w for each in data.test.captions or () for w in ids_of(each[0], own)]
    train = [w for each in data.train.captions or () for w in ids_of(each[0], own)]
    top = max(range(len(own.words)), key=lambda word: (train.count(word), -word))
    assert found.scores["frequent"] == pytest.approx(100 * words.count(top) / len(words))
    assert 0 < words.count(top) < len(words)


def why_not(name: str, encoder: Any, data: Dataset) -> str | None:
    """Why an evaluation cannot be made of an encoder on a data set."""
    plugin = registry.find("eval", name)
    return plugin.load_class()(plugin.load().Config()).supports(encoder, data)


@pytest.mark.parametrize(
    ("plugin", "losses"), [(ALBEF, ("itc",)), (ALBEF, ("mlm",)), (BERT, ("nsp",)), (BERT, ("mlm",))]
)
def test_hidden_words_are_asked_of_a_head_that_was_trained(
    plugin: registry.Plugin, losses: tuple[str, ...], data: Dataset
) -> None:
    config = dataclasses.replace(helpers.small(plugin), loss=losses)
    own: Any = helpers.with_text(plugin, SPEC, config).text
    fake = SimpleNamespace(text=SimpleNamespace(spec=own), pair=None)
    assert (why_not("masked-words", fake, data) is None) == ("mlm" in losses)


def test_hidden_words_beside_an_image_are_not_asked_without_images(
    encoder: Encoder, data: Dataset
) -> None:
    assert why_not("masked-words", encoder, data) is None
    without = dataclasses.replace(data, imageless="it is a plain text")
    assert "tiny" in (why_not("masked-words", encoder, without) or "")


@pytest.mark.parametrize(
    ("classes", "works"),
    [
        (("0", "1"), False),
        (("n01440764", "n01443537"), False),
        (("n01440764", "goldfish"), True),
        (("number 9", "n95"), True),
        (("n95", "n96"), True),
    ],
)
def test_classes_without_names_are_not_told_by_names(
    classes: tuple[str, ...], works: bool, encoder: Encoder, data: Dataset
) -> None:
    named = dataclasses.replace(data, classes=classes)
    assert (why_not("zero-shot", encoder, named) is None) == works


def ids_of(caption: str, spec: vocabulary.TextSpec) -> list[int]:
    """A caption's tokens that are no special ones."""
    [row] = vocabulary.tokenize([caption], spec).tolist()
    return [
        word
        for word in row
        if spec.words[word] not in (vocabulary.PAD, vocabulary.CLS, vocabulary.SEP)
    ]


def test_each_word_is_hidden_alone_and_counts_as_one(
    known: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a reader that says the same word, whatever it sees."""
    monkeypatch.setattr(masked_words, "_TEXTS_AT_ONCE", 50)
    own: Any = helpers.with_text(BERT, SPEC).text
    seen: list[list[int]] = []

    class Reader:
        spec = own

        def __call__(self, ids_BL: Tensor) -> Tensor:
            seen.extend(ids_BL.tolist())
            return ids_BL

        def predict(self, ids_BL: Tensor) -> Tensor:
            said = torch.full_like(ids_BL, own.id("image"))
            return F.one_hot(said, len(own.words)).float()

    fake: Any = SimpleNamespace(text=Reader(), pair=None, hardware=CPU, spec=SPEC)
    found = run("masked-words", fake, known)
    words = [w for each in known.test.captions or () for w in ids_of(each[0], own)]
    assert len(seen) == len(words)
    assert all(row.count(own.id(vocabulary.MASK)) == 1 for row in seen)
    share = words.count(own.id("image")) / len(words)
    assert 0 < share < 0.5
    assert found.scores["accuracy"] == pytest.approx(100 * share)


def test_hidden_words_are_guessed_beside_the_own_and_the_next_image(
    encoder: Encoder, known: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of as many images as asked for; here each is right beside its own image alone."""
    asked: list[tuple[list[list[int]], list[int]]] = []

    def predict(
        encoder: Encoder, ids: Tensor, columns: Tensor, data: Dataset, images: Tensor
    ) -> Tensor:
        asked.append((ids.tolist(), images.tolist()))
        return ids[torch.arange(len(ids)), columns] * (len(asked) == 1)

    monkeypatch.setattr(masked_words, "_predict", predict)
    scores = run("masked-words", encoder, known, images=9).scores
    ids_NL = vocabulary.tokenize([each for [each] in known.test.captions or ()], encoder.text.spec)
    own = {tuple(row): number for number, row in enumerate(ids_NL.tolist())}
    (ids, right), (_, wrong) = asked
    assert len(own) == 14
    assert right == [own[tuple(row)] for row in ids]
    chosen = subset(14, 9, known.fingerprint).tolist()
    following = dict(zip(chosen, [*chosen[1:], chosen[0]], strict=True))
    assert {*right} == {*chosen} and wrong == [following[image] for image in right]
    assert (scores["accuracy"], scores["accuracy_wrong_image"]) == (100, 0)


def test_a_word_is_guessed_beside_the_image_that_is_said(known: Dataset) -> None:
    """By a reader whose guess depends on it, one word and one image at a time."""
    method = helpers.build(ALBEF, SPEC)
    naive.randomise(method.text_side)
    spec = helpers.with_text(ALBEF, SPEC)
    encoder = Encoder(method.encoder, spec, CPU, seed=0, pair=method.text_side)
    ids_BL = vocabulary.tokenize(known.test.first_captions, encoder.text.spec)
    columns_B, images_B = 1 + torch.arange(14) % 5, torch.arange(14).flip(0)
    views = prepare(known.test.images(images_B), SPEC, CPU)
    expected = []
    for ids, column, tokens in zip(ids_BL, columns_B, encoder.tokens(views), strict=True):
        hidden = ids.clone()[None]
        hidden[0, column] = encoder.text.spec.id(vocabulary.MASK)
        states = encoder.text.fuse(encoder.text(hidden), hidden, tokens[None])
        expected.append(int(encoder.text.predict(states)[0, column].argmax()))
    predict = masked_words._predict
    assert predict(encoder, ids_BL, columns_B, known, images_B).tolist() == expected
    assert predict(encoder, ids_BL, columns_B, known, images_B.roll(1)).tolist() != expected


def test_features_of_an_encoder_of_captions_are_those_of_the_first(data: Dataset) -> None:
    method, spec = helpers.build(BERT, SPEC), helpers.with_text(BERT, SPEC)
    encoder = Encoder(method.encoder, spec, CPU, seed=0)
    found = encoder.features(data.test)
    other = tuple((each[0], "another") for each in data.test.captions or ())
    again = encoder.features(dataclasses.replace(data.test, captions=other))
    torch.testing.assert_close(found["avg"], again["avg"])
    ids = vocabulary.tokenize([data.test.first_captions[3]], encoder.text.spec)
    states, seen = encoder.text(ids)[0], encoder.text.seen(ids)[0]
    torch.testing.assert_close(found["cls"][3], states[0])
    torch.testing.assert_close(found["avg"][3], states[seen].mean(dim=0))


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_without_a_place_is_refused(template: str, ssl_bench: Command) -> None:
    words = ("--evals", "zero-shot", "--zero-shot-templates", template)
    code, _, err = ssl_bench("run", "--method", "albef", *words)
    assert code == 2 and "{}" in err and err.count("\n") == 1


def test_commands(image_folder: Path, tmp_path: Path, ssl_bench: Command) -> None:
    """A table of captions is pre-trained on, and its run evaluated again from its folder."""
    files = sorted((image_folder / "train").rglob("*.png"))
    lines = [
        json.dumps(
            {
                "image": str(path.relative_to(image_folder)),
                "caption": f"{path.parent.name} {number}",
                "split": "train" if number % 4 else "test",
            }
        )
        for number, path in enumerate(files)
    ]
    (image_folder / "captions.jsonl").write_text("\n".join(lines))
    runs = ("--runs-dir", tmp_path / "runs")
    small = ("--text-width", 16, "--text-heads", 2, "--backbone", "vit_nano", "--precision", "fp32")
    evals = "retrieval,masked-words"
    code, _, err = ssl_bench(
        *("run", "--method", "albef", "--data", image_folder, "--epochs", 1, "--batch-size", 12),
        *("--queue-size", 24, "--evals", evals, *small, *runs),
    )
    assert code == 0, err
    [folder] = [each for each in (tmp_path / "runs").glob("albef-*")]
    assert (folder / "figures" / "pictures.png").exists()
    before = scores(folder)
    assert set(before) == {"retrieval", "masked-words"}
    drawn = sorted(path.name for path in folder.glob("evals/*/*.png"))
    assert drawn == ["retrieved-images.png", "words-over-images.png"]
    code, out, err = ssl_bench("show", folder, "--json")
    shown = json.loads(out)
    assert str(folder / "figures" / "pictures.png") in shown["run"]["figures"]
    found = [Path(each).name for own in shown["evaluations"].values() for each in own["figures"]]
    assert sorted(found) == drawn
    code, _, err = ssl_bench("report", *runs, "-o", tmp_path / "report")
    assert code == 0, err
    for kind in ("retrieved", "words"):
        [table] = (tmp_path / "report" / "figures").glob(f"{kind}-albef-*.csv")
        assert "albef" in table.read_text()
    for each in (folder / "evals").iterdir():
        each.joinpath("scores.json").unlink()
    code, _, err = ssl_bench("eval", folder, "--evals", evals, *runs)
    assert code == 0, err
    assert scores(folder) == before
    code, _, err = ssl_bench("eval", folder, "--evals", "retrieval", "--data", "fashion-mnist")
    assert code == 2 and "captions" in err


def scores(folder: Path) -> dict[str, Any]:
    records = [json.loads(path.read_text()) for path in folder.glob("evals/*/scores.json")]
    return {record["eval"]: record["scores"] for record in records}


def test_an_encoder_without_a_text_side_is_left_out(ssl_bench: Command, tmp_path: Path) -> None:
    code, _, err = ssl_bench(
        *("run", "--method", "random-init", "--data", "fashion-captions"),
        *("--evals", "retrieval", "--runs-dir", tmp_path),
    )
    assert code == 2
    assert "captions" in err and err.count("\n") == 1


def test_an_encoder_of_captions_is_exported_with_its_vocabulary(
    tmp_path: Path, ssl_bench: Command, image_folder: Path
) -> None:
    import ssl_bench as package

    rows = [
        json.dumps({"image": str(path.relative_to(image_folder)), "caption": f"a thing {number}"})
        for number, path in enumerate(sorted(image_folder.rglob("*.png")))
    ]
    (image_folder / "captions.jsonl").write_text("\n".join(rows))
    code, _, err = ssl_bench(
        *("run", "--method", "bert", "--data", image_folder, "--epochs", 1, "--batch-size", 12),
        *("--text-width", 16, "--evals", "masked-words", "--runs-dir", tmp_path / "runs"),
    )
    assert code == 0, err
    [folder] = (tmp_path / "runs").glob("bert-*")
    output = tmp_path / "bert.safetensors"
    code, out, err = ssl_bench("export", folder, "--output", output)
    assert code == 0, err
    assert "load_encoder" in out
    encoder: Any = package.load_encoder(str(output))
    ids = vocabulary.tokenize(["a thing 3"], encoder.spec)
    assert encoder.spec.words[ids[0, 2]] == "thing"
    whole: Any = package.load_encoder(str(folder))
    torch.testing.assert_close(encoder(ids), whole(ids))
    code, _, err = ssl_bench("export", folder, "--format", "hf", "--output", tmp_path / "hf")
    assert code == 2 and err.count("\n") == 1


def test_a_prepared_copy_keeps_the_captions(
    tmp_path: Path, ssl_bench: Command, image_folder: Path
) -> None:
    rows = [
        json.dumps({"image": str(path.relative_to(image_folder)), "caption": [f"a {n}", f"b {n}"]})
        for n, path in enumerate(sorted(image_folder.rglob("*.png")))
    ]
    (image_folder / "captions.jsonl").write_text("\n".join(rows))
    output = tmp_path / "copy"
    code, _, err = ssl_bench("data", "prepare", image_folder, "-o", output)
    assert code == 0, err
    ours, theirs = (load(str(each)) for each in (image_folder, output))
    assert ours.test.captions and ours.test.captions == theirs.test.captions
    assert ours.train.captions == theirs.train.captions
