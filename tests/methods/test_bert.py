"""BERT's objective against a naive one in float64 and against transformers' BERT."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import helpers
import naive
import naive_text
import pytest
import torch
from helpers import make_images
from torch import nn

from ssl_bench.api import registry
from ssl_bench.api.step import Batch
from ssl_bench.errors import UserError
from ssl_bench.models import masked_tokens, text_encoder, vocabulary
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.vocabulary import TextSpec
from ssl_bench.training import flops, setup
from ssl_bench.utils.rng import SampleRng

BERT = registry.find("method", "bert")
SPEC = EncoderSpec("vit_micro", 16, 4, 3, (0.5,) * 3, (0.25,) * 3)


def rng(count: int, step: int = 0) -> SampleRng:
    return SampleRng(0, step, torch.arange(count))


@pytest.fixture
def method() -> Any:
    method = helpers.build(BERT, SPEC)
    naive.randomise(method.encoder)
    return method.double()


def test_loss_and_gradient_are_the_naive_ones(method: Any) -> None:
    train, own = make_images(6, 3, 16, 3, seed=1), method.data.text
    ids_BL = vocabulary.tokens_of(train.captions, None, own, torch.device("cpu")).draw(rng(6))
    batch = Batch({}, rng(6), captions_BL=ids_BL)
    [loss] = method.loss(batch, helpers.FIRST_STEP).values()
    loss.backward()

    weights = naive.weights_of(method.encoder)
    seen_BL, targets_BL = masked_tokens.mask_tokens(ids_BL, own, rng(6), method.config.mask_share)
    losses = []
    for ids_L, targets_L, whole_L in zip(seen_BL, targets_BL, ids_BL, strict=True):
        length = int((whole_L != own.id(vocabulary.PAD)).sum())
        rows = naive_text.encode(weights, ids_L[:length].tolist(), own.depth, own.num_heads)
        for row_D, target in zip(rows, targets_L[:length].tolist(), strict=True):
            if target >= 0:
                losses.append(-naive_text.logits(weights, row_D).log_softmax(dim=0)[target])
    assert len(losses) > 2
    expected = torch.stack(losses).mean()
    expected.backward()
    assert naive.relative_error(loss, expected) < 1e-6
    errors = naive.gradient_errors(method.encoder, weights)
    # Attention does not depend on the bias of its keys.
    assert all(error < 1e-6 for name, error in errors.items() if ".key.bias" not in name), errors


def of_pairs(**changes: Any) -> Any:
    """The method with the prediction of the next sentence, in float64."""
    config = dataclasses.replace(helpers.small(BERT), loss=("mlm", "nsp"), **changes)
    spec = helpers.with_text(BERT, SPEC, config)
    method: Any = setup.build_method(BERT.load_class(), config, spec, 3, 0)
    naive.randomise(method.encoder)
    return method.double()


def test_both_losses_and_their_gradient_are_the_naive_ones() -> None:
    method, train = of_pairs(), make_images(8, 3, 16, 3, seed=1)
    own = method.data.text
    texts = vocabulary.tokens_of(train.captions, None, own, torch.device("cpu"))
    ids_BL, is_next_B = texts.draw_pairs(rng(8), own)
    assert is_next_B.any() and not is_next_B.all()
    batch = Batch({}, rng(8), captions_BL=ids_BL, is_next_B=is_next_B)
    found = method.loss(batch, helpers.FIRST_STEP)
    sum(found.values()).backward()

    weights = naive.weights_of(method.encoder)
    masked = masked_tokens.mask_tokens(ids_BL, own, rng(8), method.config.mask_share)
    words, order = [], []
    for seen_L, targets_L, whole_L, is_next in zip(*masked, ids_BL, is_next_B, strict=True):
        whole = [own.words[number] for number in whole_L.tolist()]
        length = whole.index(vocabulary.PAD) if vocabulary.PAD in whole else len(whole)
        second = whole.index(vocabulary.SEP) + 1
        ids = seen_L[:length].tolist()
        rows = naive_text.encode(weights, ids, own.depth, own.num_heads, second)
        for row_D, target in zip(rows, targets_L[:length].tolist(), strict=True):
            if target >= 0:
                words.append(-naive_text.logits(weights, row_D).log_softmax(dim=0)[target])
        pooled_D = torch.tanh(naive_text.linear(weights, "pooler", rows[0]))
        logs = naive_text.linear(weights, "follows", pooled_D).log_softmax(dim=0)
        order.append(-logs[0 if is_next else 1])
    assert len(words) > 2
    expected = {"mlm": torch.stack(words).mean(), "nsp": torch.stack(order).mean()}
    sum(expected.values()).backward()  # type: ignore[union-attr]
    for name, value in expected.items():
        assert naive.relative_error(found[name], value) < 1e-6, name
    errors = naive.gradient_errors(method.encoder, weights)
    assert all(error < 1e-6 for name, error in errors.items() if ".key.bias" not in name), errors


@pytest.mark.parametrize("losses", [("mlm",), ("nsp",)])
def test_each_loss_can_be_left_out(losses: tuple[str, ...]) -> None:
    config = dataclasses.replace(helpers.small(BERT), loss=losses)
    spec = helpers.with_text(BERT, SPEC, config)
    method: Any = setup.build_method(BERT.load_class(), config, spec, 3, 0)
    _, batch = flops.trial_step(method, SPEC, 4)
    found = method.loss(batch, helpers.FIRST_STEP)
    assert tuple(found) == losses
    sum(found.values()).backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


DOCUMENTS = (("a b c", "d e", "f"), ("g h i j", "k l"), ("m",), ("n", "o", "p q", "r"))


def pairs_of(count: int, step: int = 0) -> tuple[Any, list[str], list[bool], list[int]]:
    """Drawn pairs in words, of a sentence of each sample in turn."""
    sentences = [(each,) for own in DOCUMENTS for each in own]
    numbers = [number for number, own in enumerate(DOCUMENTS) for _ in own]
    words = vocabulary.learn_vocabulary([each for (each,) in sentences], 99)
    spec = TextSpec(words, True, 16, 32, 1, 2, next_sentence=True)
    texts = vocabulary.tokens_of(tuple(sentences), tuple(numbers), spec, torch.device("cpu"))
    samples = [number % len(sentences) for number in range(count)]
    draws = SampleRng(3, step, torch.tensor(samples))
    ids_BL, is_next_B = texts.draw_pairs(draws, spec)
    shown = [
        " ".join(spec.words[n] for n in row if spec.words[n] != vocabulary.PAD)
        for row in ids_BL.tolist()
    ]
    return spec, shown, is_next_B.tolist(), samples


def test_pairs_are_neighbours_or_of_different_documents() -> None:
    drawn_pairs = [pairs_of(10, step)[1:] for step in range(60)]
    shown, is_next, samples = (
        list(chain.from_iterable(each)) for each in zip(*drawn_pairs, strict=True)
    )
    place = {each: (d, n) for d, own in enumerate(DOCUMENTS) for n, each in enumerate(own)}
    sentences = list(place)
    seen = set()
    for text, follows, sample in zip(shown, is_next, samples, strict=True):
        assert text.startswith("[CLS] ") and text.endswith(" [SEP]")
        first, second = text.removeprefix("[CLS] ").removesuffix(" [SEP]").split(" [SEP] ")
        (document, number), (other, at) = place[first], place[second]
        own, drawn = place[sentences[sample]]
        last = len(DOCUMENTS[own]) - 1
        assert (document, number) == (own, max(0, min(drawn, last - 1)))
        assert follows == (other == document)
        assert not follows or at == number + 1
        seen.add((first, second))
    single = sentences.index("m")
    told = [each for each, sample in zip(is_next, samples, strict=True) if sample != single]
    assert sum(told) / len(told) == pytest.approx(0.5, abs=0.05)
    assert not any(each for each, s in zip(is_next, samples, strict=True) if s == single)
    others = {second for first, second in seen if first == "m"}
    assert others == set(sentences) - {"m"}


def test_the_same_step_draws_the_same_pairs_and_another_step_others() -> None:
    assert pairs_of(30) == pairs_of(30)
    assert pairs_of(30)[1] != pairs_of(30, step=1)[1]


@pytest.mark.parametrize(("first", "second"), [(2, 9), (9, 2), (9, 9), (1, 1), (6, 6), (7, 6)])
def test_pairs_that_are_too_long_are_cut_as_transformers_does(
    first: int, second: int, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    letters = [" ".join("abcdefghi"[:first]), " ".join("jklmnopqr"[:second])]
    words = vocabulary.learn_vocabulary([" ".join("abcdefghijklmnopqr")], 99)
    path = tmp_path / "vocab.txt"
    path.write_text(words + "\n")
    theirs = transformers.BertTokenizerFast(str(path))
    how = {"padding": "max_length", "truncation": "longest_first"}
    for length in (11, 13, 15, 23):
        spec = TextSpec(words, True, length, 32, 1, 2, next_sentence=True)
        rows = vocabulary.tokenize(letters, spec)
        found_BL = vocabulary.joined(rows[:1], rows[1:], spec)
        expected = theirs(*letters, max_length=length, **how)
        assert found_BL[0].tolist() == expected["input_ids"]
        assert vocabulary.segments(found_BL, spec)[0].tolist() == expected["token_type_ids"]


def test_sentences_of_one_document_have_no_other_to_be_told_from() -> None:
    with pytest.raises(UserError, match="--loss mlm"):
        vocabulary.check_documents((("a",), ("b",)), (0, 0))
    with pytest.raises(UserError, match="two texts"):
        vocabulary.check_documents((("a",), ("b",)), (0, 1))
    vocabulary.check_documents((("a",), ("b",), ("c",)), (0, 0, 1))
    vocabulary.check_documents((("a", "b"), ("c",)), None)


@pytest.mark.parametrize("losses", [(), ("mlm", "mlm"), ("itc",)])
def test_other_losses_are_refused(losses: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="mlm,nsp"):
        BERT.load().Config(loss=losses)


def test_outputs_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    words = "\n".join([*vocabulary.SPECIAL, *(f"w{number}" for number in range(40))])
    spec = TextSpec(words, True, 12, 32, 3, 4)
    ours = text_encoder.TextEncoder(spec).eval()
    naive.randomise(ours)
    config = transformers.BertConfig(
        vocab_size=45,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=12,
        pad_token_id=0,
    )
    theirs = transformers.BertForMaskedLM(config).eval()
    state = {}
    for name, value in ours.state_dict().items():
        for mine, its in _NAMES:
            name = re.sub(mine, its, name)
        state[name] = value
    embeddings = "bert.embeddings"
    state |= {
        f"{embeddings}.token_type_embeddings.weight": torch.zeros(2, 32),
        "cls.predictions.decoder.weight": state[f"{embeddings}.word_embeddings.weight"],
        "cls.predictions.decoder.bias": state["cls.predictions.bias"],
    }
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing)
    ids_BL = torch.randint(5, 45, (6, 12), generator=torch.Generator().manual_seed(0))
    ids_BL[:, 0], ids_BL[1:4, 7:] = spec.id(vocabulary.CLS), spec.id(vocabulary.PAD)
    expected = theirs(input_ids=ids_BL, attention_mask=ours.seen(ids_BL).long()).logits
    found = ours.predict(ours(ids_BL))
    seen_BL = ours.seen(ids_BL)
    torch.testing.assert_close(found[seen_BL], expected[seen_BL], rtol=1e-5, atol=1e-5)


_NAMES = [
    (r"^words\.", "bert.embeddings.word_embeddings."),
    (r"^positions\.", "bert.embeddings.position_embeddings."),
    (r"^norm\.", "bert.embeddings.LayerNorm."),
    (r"^bias$", "cls.predictions.bias"),
    (r"^transform_norm\.", "cls.predictions.transform.LayerNorm."),
    (r"^transform\.", "cls.predictions.transform.dense."),
    (r"^layers\.(\d+)\.norm\.", r"bert.encoder.layer.\1.output.LayerNorm."),
    (r"^layers\.", "bert.encoder.layer."),
    (r"attention_norm\.", "attention.output.LayerNorm."),
    (r"attention\.out\.", "attention.output.dense."),
    (r"attention\.(query|key|value)\.", r"attention.self.\1."),
    (r"\.grow\.", ".intermediate.dense."),
    (r"\.shrink\.", ".output.dense."),
]


def test_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    texts = ["A bag, left of a SNEAKER!", "naïve café", "zzz bag", "", "\u4e2d bag"]
    words = vocabulary.learn_vocabulary(texts[:2], 60)
    path = tmp_path / "vocab.txt"
    path.write_text(words + "\n")
    theirs = transformers.BertTokenizerFast(str(path), do_lower_case=True)
    spec = TextSpec(*vocabulary.read_vocabulary(path), 16, 32, 1, 2)
    expected = theirs(texts, padding="max_length", max_length=16, truncation=True)["input_ids"]
    assert vocabulary.tokenize(texts, spec).tolist() == expected
    theirs.save_pretrained(tmp_path)
    assert vocabulary.read_vocabulary(tmp_path / "tokenizer.json") == (words, True)


@pytest.mark.parametrize("lowercase", [True, False])
def test_parts_between_spaces_have_the_tokens_of_the_whole(
    lowercase: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a  BAG,\tbag\xa0a bag", "\u4e2d\u6587 a\x1cbag \u0301e \u0130s[MASK]", " a bag ", ""]
    words = vocabulary.learn_vocabulary([*texts, "bag bag"], 40)
    tokenizer, asked = vocabulary._tokenizer(words, lowercase), list[str]()
    expected = [[2, *tokenizer.encode(text).ids, 3] for text in texts]

    class Watched:
        def encode(self, text: str, **how: Any) -> Any:
            asked.append(text)
            return tokenizer.encode(text, **how)

    monkeypatch.setattr(vocabulary, "_tokenizer", lambda *how: Watched())
    ids_BL = vocabulary.tokenize(texts, TextSpec(words, lowercase, 64, 32, 1, 2))
    assert [[i for i in row if i] for row in ids_BL.tolist()] == expected
    assert len(asked) == len(set(asked)) == len({part for t in texts for part in t.split(" ")})


def test_a_learned_vocabulary_spells_what_it_has_no_word_for() -> None:
    words = vocabulary.learn_vocabulary(["a bag of bags", "a bag"], 20).split("\n")
    assert words[:5] == list(vocabulary.SPECIAL)
    assert {"bag", "bags", "a", "##g"} <= set(words)
    assert words.index("bag") < words.index("bags")
    spec = TextSpec("\n".join(words), True, 8, 32, 1, 2)
    found = [spec.words[number] for number in vocabulary.tokenize(["gab"], spec)[0].tolist()]
    assert found[:3] == [
        vocabulary.CLS,
        vocabulary.UNKNOWN,
        vocabulary.SEP,
    ]  # no word began with a g
    found = [spec.words[number] for number in vocabulary.tokenize(["bga"], spec)[0].tolist()]
    assert found[:5] == [vocabulary.CLS, "b", "##g", "##a", vocabulary.SEP]


def test_a_long_text_is_cut_before_its_last_token() -> None:
    spec = TextSpec(vocabulary.learn_vocabulary(["a b c d e f g h"], 30), True, 6, 32, 1, 2)
    [row] = vocabulary.tokenize(["a b c d e f g h"], spec).tolist()
    assert [spec.words[number] for number in row] == [
        vocabulary.CLS,
        "a",
        "b",
        "c",
        "d",
        vocabulary.SEP,
    ]


def test_frequent_words_come_first() -> None:
    words = vocabulary.learn_vocabulary(["zz yy yy xx xx xx"], 14).split("\n")
    assert words[-3:] == ["xx", "yy", "zz"]
    letters = vocabulary.learn_vocabulary(["ab ab ab c"], 8).split("\n")
    assert letters[5:] == ["##b", "a", "c"]
    letters = vocabulary.learn_vocabulary(["bb bb bb a"], 8).split("\n")
    assert letters[5:] == ["##b", "b", "a"], "a letter counts as often as its word comes"


@pytest.mark.parametrize(("losses", "texts", "marks"), [(("mlm",), 1, 2), (("mlm", "nsp"), 2, 3)])
def test_there_is_room_for_the_longest_texts_or_as_much_as_asked_for(
    losses: tuple[str, ...], texts: int, marks: int
) -> None:
    config = dataclasses.replace(helpers.small(BERT), loss=losses)
    own: Any = helpers.with_text(BERT, SPEC, config).text
    every = [each for label in range(5) for each in helpers.captions_of(label)]
    ids_BL = vocabulary.tokenize(every, dataclasses.replace(own, max_tokens=99))
    longest = int((ids_BL != own.id(vocabulary.PAD)).sum(dim=1).max()) - 2
    assert own.max_tokens == 8 * math.ceil((texts * longest + marks) / 8)
    short: Any = helpers.with_text(BERT, SPEC, dataclasses.replace(config, max_tokens=7)).text
    assert short.max_tokens == 7


def test_words_alone_are_128_wide_unless_asked_otherwise() -> None:
    for given, width in ((0, 128), (96, 96)):
        config = dataclasses.replace(helpers.small(BERT), text_width=given)
        assert vocabulary.spec_of(config, ["a word"]).width == width


def test_text_that_costs_are_measured_with_is_nowhere_padded() -> None:
    spec = vocabulary.spec_of(helpers.small(BERT), ["a word", "and another one"])
    ids_BL = vocabulary.noise(spec, rng(400))
    assert ids_BL.shape == (400, spec.max_tokens)
    assert set(ids_BL.flatten().tolist()) == set(range(spec.size)) - {spec.id(vocabulary.PAD)}


@pytest.mark.parametrize(
    "wrong", [{"dropout": 1.0}, {"width": 0}, {"depth": 2**20 + 1}, {"fusion_depth": -1}], ids=str
)
def test_sizes_that_no_text_encoder_has_are_refused(wrong: dict[str, Any]) -> None:
    spec = vocabulary.spec_of(helpers.small(BERT), ["a word"])
    fields = dataclasses.asdict(spec)
    assert TextSpec.of({**fields, "dropout": 0.9, "depth": 2**20}).depth == 2**20
    with pytest.raises(UserError, match="no sizes"):
        TextSpec.of({**fields, **wrong})


def test_dropout_is_as_asked_for_and_where_bert_has_it() -> None:
    """Of the embedded tokens, of each sublayer's output before it is added, of the attention."""
    config = dataclasses.replace(helpers.small(BERT), text_dropout=0.3)
    own: Any = helpers.with_text(BERT, SPEC, config).text
    encoder = text_encoder.TextEncoder(dataclasses.replace(own, fusion_depth=1, image_width=8))
    calls: Counter[str] = Counter()

    def count(name: str) -> Callable[..., None]:
        return lambda *call: calls.update([name])

    for name, module in encoder.named_modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.3, name
            module.register_forward_hook(count(name))
    ids_BL = torch.full((2, 5), own.id("class"))
    encoder.train().fuse(encoder(ids_BL), ids_BL, torch.randn(2, 3, 8))
    layers = [*(f"layers.{number}" for number in range(own.depth)), "fusion.0"]
    expected = {"dropout": 1, "fusion.0.cross_attention.dropout": 1}
    expected |= {f"{layer}.attention.dropout": 1 for layer in layers}
    expected |= {f"{layer}.dropout": 2 + (layer == "fusion.0") for layer in layers}
    assert calls == expected


def test_initial_weights_are_narrow_and_biases_zero() -> None:
    encoder = text_encoder.TextEncoder(
        TextSpec("\n".join([*vocabulary.SPECIAL, "a"]), True, 60, 96, 2, 4)
    )
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" not in name:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


def test_hidden_tokens_are_words_and_as_many_as_said() -> None:
    spec = TextSpec(
        vocabulary.learn_vocabulary(["one two three four five six"], 50), True, 16, 32, 1, 2
    )
    ids_BL = vocabulary.tokenize(["one two three four five six"] * 4000, spec)
    seen_BL, targets_BL = masked_tokens.mask_tokens(ids_BL, spec, rng(4000), 0.15)
    hidden_BL = targets_BL >= 0
    assert torch.equal(targets_BL[hidden_BL], ids_BL[hidden_BL])
    assert torch.equal(seen_BL[~hidden_BL], ids_BL[~hidden_BL])
    assert not hidden_BL[:, [0, *range(7, ids_BL.shape[1])]].any()
    assert hidden_BL[:, 1:7].double().mean() == pytest.approx(0.15, abs=0.01)
    masked = (seen_BL[hidden_BL] == spec.id(vocabulary.MASK)).double().mean()
    kept = (seen_BL[hidden_BL] == ids_BL[hidden_BL]).double().mean()
    assert masked == pytest.approx(0.8, abs=0.03)
    assert kept == pytest.approx(0.1, abs=0.02)
    assert {*seen_BL[hidden_BL].tolist()} == {*range(spec.size)}, (
        "any word takes a hidden one's place"
    )
    again = masked_tokens.mask_tokens(ids_BL, spec, rng(4000, step=1), 0.15)
    assert not torch.equal(seen_BL, again.ids_BL)


def test_each_caption_of_an_image_is_drawn() -> None:
    captions = tuple(("one",) if number % 2 else ("two", "three") for number in range(400))
    spec = TextSpec(vocabulary.learn_vocabulary(["one two three"], 50), True, 8, 32, 1, 2)
    words_BL = vocabulary.tokens_of(captions, None, spec, torch.device("cpu")).draw(rng(400))[:, 1]
    assert set(words_BL[1::2].tolist()) == {spec.id("one")}
    assert words_BL[::2].eq(spec.id("two")).double().mean() == pytest.approx(0.5, abs=0.1)
    assert set(words_BL[::2].tolist()) == {spec.id("two"), spec.id("three")}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[PAD]\n[UNK]\nbag\n", "[CLS]"),
        ("\n".join([*vocabulary.SPECIAL, "bag", "bag"]), "bag"),
        (json.dumps({"model": {"type": "BPE", "vocab": {}}}), "BPE"),
        (json.dumps({"model": {"type": "WordPiece", "vocab": [1]}}), "vocab.txt"),
        ("{", "vocab.txt"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(
    content: str | bytes, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="tokenizer") as caught:
        vocabulary.read_vocabulary(path)
    assert told in str(caught.value)


def test_texts_are_looked_up_once_for_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    method, train = helpers.build(BERT, SPEC), make_images(6, 3, 16, 3, seed=1)
    real, asked = vocabulary.tokens_of, list[Any]()

    def watched(*how: Any) -> vocabulary.Tokens:
        asked.append(how)
        return real(*how)

    monkeypatch.setattr(vocabulary, "tokens_of", watched)
    steps = [SampleRng(0, step, torch.arange(6)) for step in range(3)]
    assert len(list(setup.batches(method, train, SPEC, steps))) == 3 and len(asked) == 1


def _tokenizer_json(words: list[str], normalizer: Any) -> str:
    model = {"type": "WordPiece", "vocab": {w: n for n, w in enumerate(words)}}
    return json.dumps({"model": model, "normalizer": normalizer})


@pytest.mark.parametrize(
    ("word", "normalizer", "lowercase"),
    [
        ("Bag", {"type": "BertNormalizer", "lowercase": True, "strip_accents": True}, True),
        ("bag", {"type": "BertNormalizer", "lowercase": False, "strip_accents": None}, False),
        *(("Bag", None, False), ("bag", None, True)),
        ("Bag", {"type": "Sequence", "normalizers": [{"type": "NFC"}]}, False),
    ],
)
def test_whether_texts_are_lower_cased_is_told_by_the_normaliser_or_the_words(
    word: str, normalizer: Any, lowercase: bool, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(_tokenizer_json([*vocabulary.SPECIAL, word], normalizer))
    assert vocabulary.read_vocabulary(path)[1] == lowercase


@pytest.mark.parametrize(
    "other", [{"strip_accents": False}, {"handle_chinese_chars": False}, {"clean_text": False}]
)
def test_another_normaliser_is_refused(other: dict[str, bool], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    normalizer = {"type": "BertNormalizer", "lowercase": True, **other}
    path.write_text(_tokenizer_json([*vocabulary.SPECIAL, "bag"], normalizer))
    with pytest.raises(UserError, match=next(iter(other))):
        vocabulary.read_vocabulary(path)


def test_a_spec_comes_back_from_its_json() -> None:
    spec = helpers.with_text(BERT, SPEC)
    assert spec.is_text
    stored = json.loads(json.dumps(dataclasses.asdict(spec)))
    assert EncoderSpec.of(stored) == spec
    with pytest.raises(UserError):
        EncoderSpec.of({**stored, "text": None})
    with pytest.raises(UserError):
        EncoderSpec.of({**stored, "text": {**stored["text"], "width": -1}})
    with pytest.raises(UserError):
        EncoderSpec.of({**stored, "text": {**stored["text"], "vocabulary": "a"}})


def test_what_of_the_training_texts_is_not_read_is_told(tmp_path: Path) -> None:
    texts = ["one two three four five six", "one two three four", "seven"]

    def told(**changes: Any) -> list[str]:
        config = dataclasses.replace(helpers.small(BERT), **changes)
        return [*vocabulary.caveats(config, texts, vocabulary.spec_of(config, texts))]

    assert told() == told(max_tokens=8) == []
    [cut] = told(max_tokens=7)
    assert "1 of 3 training texts" in cut and "--max-tokens 8 " in cut
    known = ["one", "two", "three", "four", "five", "six"]
    for words, shares in ((known, []), (known[:5], ["18 %"])):  # 1 and 2 of 11 are not there
        tokenizer = tmp_path / "vocab.txt"
        tokenizer.write_text("\n".join([*vocabulary.SPECIAL, *words]))
        found = told(tokenizer=str(tokenizer))
        assert [line.partition(" of")[0] for line in found] == shares
