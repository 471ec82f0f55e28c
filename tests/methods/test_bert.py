"""BERT's objective against a naive one in float64 and against transformers' BERT."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import helpers
import naive
import naive_text
import pytest
import torch
from helpers import make_images

from ssl_bench.api import registry
from ssl_bench.api.step import Batch
from ssl_bench.errors import UserError
from ssl_bench.models import text
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.text import TextSpec
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
    ids_BL = text.tokens_of(train.captions, own, torch.device("cpu")).draw(rng(6))
    batch = Batch({}, rng(6), captions_BL=ids_BL)
    loss = method.loss(batch, helpers.FIRST_STEP)
    loss.backward()

    weights = naive.weights_of(method.encoder)
    seen_BL, targets_BL = text.mask_tokens(ids_BL, own, rng(6), method.config.mask_share)
    losses = []
    for ids_L, targets_L, whole_L in zip(seen_BL, targets_BL, ids_BL, strict=True):
        length = int((whole_L != own.id(text.PAD)).sum())
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


def test_outputs_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    words = "\n".join([*text.SPECIAL, *(f"w{number}" for number in range(40))])
    spec = TextSpec(words, True, 12, 32, 3, 4)
    ours = text.TextEncoder(spec).eval()
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
    ids_BL[:, 0], ids_BL[1:4, 7:] = spec.id(text.CLS), spec.id(text.PAD)
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
    words = text.learn_vocabulary(texts[:2], 60)
    path = tmp_path / "vocab.txt"
    path.write_text(words + "\n")
    theirs = transformers.BertTokenizerFast(str(path), do_lower_case=True)
    spec = TextSpec(*text.read_vocabulary(path), 16, 32, 1, 2)
    expected = theirs(texts, padding="max_length", max_length=16, truncation=True)["input_ids"]
    assert text.tokenize(texts, spec).tolist() == expected
    theirs.save_pretrained(tmp_path)
    assert text.read_vocabulary(tmp_path / "tokenizer.json") == (words, True)


def test_a_learned_vocabulary_spells_what_it_has_no_word_for() -> None:
    words = text.learn_vocabulary(["a bag of bags", "a bag"], 20).split("\n")
    assert words[:5] == list(text.SPECIAL)
    assert {"bag", "bags", "a", "##g"} <= set(words)
    assert words.index("bag") < words.index("bags")
    spec = TextSpec("\n".join(words), True, 8, 32, 1, 2)
    found = [spec.words[number] for number in text.tokenize(["gab"], spec)[0].tolist()]
    assert found[:3] == [text.CLS, text.UNKNOWN, text.SEP]  # no word began with a g
    found = [spec.words[number] for number in text.tokenize(["bga"], spec)[0].tolist()]
    assert found[:5] == [text.CLS, "b", "##g", "##a", text.SEP]


def test_a_long_text_is_cut_before_its_last_token() -> None:
    spec = TextSpec(text.learn_vocabulary(["a b c d e f g h"], 30), True, 6, 32, 1, 2)
    [row] = text.tokenize(["a b c d e f g h"], spec).tolist()
    assert [spec.words[number] for number in row] == [text.CLS, "a", "b", "c", "d", text.SEP]


def test_frequent_words_come_first() -> None:
    words = text.learn_vocabulary(["zz yy yy xx xx xx"], 14).split("\n")
    assert words[-3:] == ["xx", "yy", "zz"]


def test_initial_weights_are_narrow_and_biases_zero() -> None:
    encoder = text.TextEncoder(TextSpec("\n".join([*text.SPECIAL, "a"]), True, 60, 96, 2, 4))
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" not in name:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


def test_hidden_tokens_are_words_and_as_many_as_said() -> None:
    spec = TextSpec(text.learn_vocabulary(["one two three four five six"], 50), True, 16, 32, 1, 2)
    ids_BL = text.tokenize(["one two three four five six"] * 4000, spec)
    seen_BL, targets_BL = text.mask_tokens(ids_BL, spec, rng(4000), 0.15)
    hidden_BL = targets_BL >= 0
    assert torch.equal(targets_BL[hidden_BL], ids_BL[hidden_BL])
    assert torch.equal(seen_BL[~hidden_BL], ids_BL[~hidden_BL])
    assert not hidden_BL[:, [0, *range(7, 16)]].any()
    assert hidden_BL[:, 1:7].double().mean() == pytest.approx(0.15, abs=0.01)
    masked = (seen_BL[hidden_BL] == spec.id(text.MASK)).double().mean()
    kept = (seen_BL[hidden_BL] == ids_BL[hidden_BL]).double().mean()
    assert masked == pytest.approx(0.8, abs=0.03)
    assert kept == pytest.approx(0.1, abs=0.02)
    again = text.mask_tokens(ids_BL, spec, rng(4000, step=1), 0.15)
    assert not torch.equal(seen_BL, again.ids_BL)


def test_each_caption_of_an_image_is_drawn() -> None:
    captions = tuple(("one",) if number % 2 else ("two", "three") for number in range(400))
    spec = TextSpec(text.learn_vocabulary(["one two three"], 50), True, 8, 32, 1, 2)
    words_BL = text.tokens_of(captions, spec, torch.device("cpu")).draw(rng(400))[:, 1]
    assert set(words_BL[1::2].tolist()) == {spec.id("one")}
    assert words_BL[::2].eq(spec.id("two")).double().mean() == pytest.approx(0.5, abs=0.1)
    assert set(words_BL[::2].tolist()) == {spec.id("two"), spec.id("three")}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[PAD]\n[UNK]\nbag\n", "[CLS]"),
        ("\n".join([*text.SPECIAL, "bag", "bag"]), "bag"),
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
        text.read_vocabulary(path)
    assert told in str(caught.value)


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
