"""Official weights of text encoders: transformers' BERT, and ALBEF's file with its names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import helpers
import naive
import pytest
import torch
from helpers import make_images
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor

import ssl_bench as package
from ssl_bench.api import registry
from ssl_bench.api.step import Batch
from ssl_bench.config.settings import WeightSettings
from ssl_bench.errors import UserError
from ssl_bench.models import checkpoints, text_formats, vocabulary
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import setup
from ssl_bench.utils.rng import SampleRng

Command = Callable[..., tuple[int, str, str]]
transformers = pytest.importorskip("transformers")
ALBEF = registry.find("method", "albef")
SPEC = EncoderSpec("vit_micro", 16, 4, 3, (0.5,) * 3, (0.25,) * 3, helpers.SHAPE)
WORDS = [*vocabulary.SPECIAL, *(f"w{number}" for number in range(40))]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
}


def saved(folder: Path, kind: str = "BertForPreTraining", **changes: Any) -> tuple[Any, Path]:
    """A model of transformers with made-up weights, and the folder it was saved in."""
    model = getattr(transformers, kind)(transformers.BertConfig(**(SIZES | changes))).eval()
    naive.randomise(model)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return model, folder


def read(path: Path, **hints: Any) -> Any:
    return checkpoints.read(str(path), WeightSettings(**hints))


TEXTS = [" ".join(f"w{n * step % 40}" for n in range(1, step + 2)) for step in (3, 9, 1)]


@pytest.mark.parametrize("kind", ["BertForPreTraining", "BertForMaskedLM", "BertModel"])
def test_bert_computes_what_transformers_does(kind: str, tmp_path: Path) -> None:
    theirs, folder = saved(tmp_path / "bert", kind)
    found = read(folder)
    ours, own = found.encoder.eval(), found.spec.text
    theirs_of = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    given = theirs_of(TEXTS, padding="max_length", max_length=16, return_tensors="pt")
    ids_BL = vocabulary.tokenize(TEXTS, own)
    assert ids_BL.tolist() == given["input_ids"].tolist()
    seen_BL = ours.seen(ids_BL)
    body = getattr(theirs, "bert", theirs)
    hidden_BLD = ours(ids_BL)
    expected_BLD = body(**given).last_hidden_state
    torch.testing.assert_close(hidden_BLD[seen_BL], expected_BLD[seen_BL], rtol=1e-5, atol=1e-5)
    assert own.predicts == (kind != "BertModel")
    assert own.next_sentence == (kind == "BertForPreTraining")
    if own.predicts:
        out = theirs(**given)
        logits_BLV = out.prediction_logits if own.next_sentence else out.logits
        torch.testing.assert_close(
            ours.predict(hidden_BLD)[seen_BL], logits_BLV[seen_BL], rtol=1e-5, atol=1e-5
        )
    if own.next_sentence:
        pairs = theirs_of(
            TEXTS, TEXTS[::-1], padding="max_length", max_length=24, return_tensors="pt"
        )
        rows_BL = vocabulary.joined(ids_BL, vocabulary.tokenize(TEXTS[::-1], own), own)
        assert rows_BL.tolist() == pairs["input_ids"].tolist()
        found_B2 = ours.next_sentence(ours(rows_BL, vocabulary.segments(rows_BL, own)))
        expected_B2 = theirs(**pairs).seq_relationship_logits
        torch.testing.assert_close(found_B2, expected_B2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "head"),
    [("BertForSequenceClassification", "classifier"), ("BertForQuestionAnswering", "qa_outputs")],
)
def test_a_head_of_another_task_is_left_out(kind: str, head: str, tmp_path: Path) -> None:
    theirs, folder = saved(tmp_path / "bert", kind)
    found = read(folder)
    assert f"{head} (tensors: 2)" in found.left_out
    ids_BL = vocabulary.tokenize(TEXTS, found.spec.text)
    seen_BL = found.encoder.seen(ids_BL)
    expected_BLD = theirs.bert(ids_BL, attention_mask=seen_BL.long()).last_hidden_state
    hidden_BLD = found.encoder.eval()(ids_BL)
    torch.testing.assert_close(hidden_BLD[seen_BL], expected_BLD[seen_BL], rtol=1e-5, atol=1e-5)


def test_old_files_of_bert_are_read_alike(tmp_path: Path) -> None:
    """A pickle, norms with gamma and beta, and positions that are counted in the file."""
    model, folder = saved(tmp_path / "bert")
    expected = read(folder).encoder.state_dict()
    (folder / "model.safetensors").unlink()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"): t
        for name, t in model.state_dict().items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(24)[None]
    torch.save(old, folder / "pytorch_model.bin")
    found = read(folder).encoder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_whether_texts_are_lower_cased_the_tokenizer_tells(tmp_path: Path) -> None:
    """Where it does not, the words do, which are in lower case here."""
    _, folder = saved(tmp_path / "bert")
    assert read(folder).spec.text.lowercase
    for told in (True, False):
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": told}))
        assert read(folder).spec.text.lowercase is told


def changed(folder: Path, **config: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def test_a_tokenizer_that_does_not_fit_is_told(tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "bert")
    path = folder / "vocab.txt"
    path.write_text("\n".join([*WORDS, "more"]))
    with pytest.raises(UserError, match=r"45 words.*46.*vocab\.txt"):
        read(folder)
    path.write_text("\n".join([WORDS[-1], *WORDS[:-1]]))
    with pytest.raises(UserError, match=r"word 0.*word 1.*vocab\.txt"):
        read(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"no vocab\.txt.*--tokenizer"):
        read(folder)
    other = tmp_path / "words"
    other.write_text("\n".join(WORDS))
    assert read(folder, tokenizer=str(other)).spec.text.words == WORDS


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
        {"layer_norm_eps": 1e-5},
        {"is_decoder": True},
        {"num_attention_heads": 5},
    ],
)
def test_another_kind_of_bert_is_refused(config: Mapping[str, Any], tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "bert")
    changed(folder, **config)
    with pytest.raises(UserError) as caught:
        read(folder)
    assert "\n" not in str(caught.value) and str(next(iter(config.values()))) in str(caught.value)


def test_other_sizes_and_weights_of_bert_are_refused(tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "narrow", intermediate_size=64)
    with pytest.raises(UserError, match=r"64.*128"):
        read(folder)
    model, folder = saved(tmp_path / "untied", tie_word_embeddings=False)
    state = model.state_dict()
    state["cls.predictions.decoder.weight"] = state["cls.predictions.decoder.weight"] + 1
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="tied"):
        read(folder)


def test_a_bert_is_evaluated_by_command(
    tmp_path: Path, ssl_bench: Command, image_folder: Path
) -> None:
    _, folder = saved(tmp_path / "bert")
    rows = [
        json.dumps({"image": str(path.relative_to(image_folder)), "caption": f"w{n} w{n + 1}"})
        for n, path in enumerate(sorted(image_folder.rglob("*.png"))[:30])
    ]
    table = image_folder / "captions.jsonl"
    table.write_text("\n".join(rows))
    runs = ("--runs-dir", tmp_path / "runs")
    code, out, err = ssl_bench(
        *("eval", "--weights", folder, "--data", table, "--evals", "masked-words", *runs)
    )
    assert code == 0, err
    assert "32 wide, 2 layers, 4 heads, 45 words" in out
    assert list((tmp_path / "runs").glob("weights-bert-*/evals/masked-words-*/scores.json"))
    text = tmp_path / "text.txt"
    text.write_text("w1 w2\nw3 w4\n\nw5 w6\nw1 w9 w3\n")
    code, _, err = ssl_bench("eval", folder, "--data", text, "--evals", "masked-words", *runs)
    assert code == 0, err
    code, _, err = ssl_bench("eval", folder, "--data", table, "--image-size", 32, *runs)
    assert code == 2 and "--image-size" in err and err.count("\n") == 1


_BACK = [
    ("words.", "embeddings.word_embeddings."),
    ("positions.", "embeddings.position_embeddings."),
    ("norm.", "embeddings.LayerNorm."),
]
_IN_LAYER = [
    ("cross_attention.out.", "crossattention.output.dense."),
    ("cross_norm.", "crossattention.output.LayerNorm."),
    ("cross_attention.", "crossattention.self."),
    ("attention.out.", "attention.output.dense."),
    ("attention_norm.", "attention.output.LayerNorm."),
    ("attention.", "attention.self."),
    ("grow.", "intermediate.dense."),
    ("shrink.", "output.dense."),
    ("norm.", "output.LayerNorm."),
]


def official(method: Any) -> dict[str, Tensor]:
    """The method's weights under the names that ALBEF's own code gives them."""
    found: dict[str, Tensor] = {"temp": method.temperature.detach()[0]}
    for copy, encoder, side in (
        ("", method.encoder, method.text_side),
        ("_m", method.slow_encoder, method.slow_side),
    ):
        found |= {f"visual_encoder{copy}.{n}": t for n, t in encoder.state_dict().items()}
        bert: dict[str, Tensor] = {}
        for name, tensor in side.text.state_dict().items():
            part, _, rest = name.partition(".")
            if part in ("layers", "fusion"):
                number, _, rest = rest.partition(".")
                ours, theirs = next(pair for pair in _IN_LAYER if rest.startswith(pair[0]))
                layer = int(number) + (side.text.spec.depth if part == "fusion" else 0)
                bert[f"bert.encoder.layer.{layer}.{theirs}{rest.removeprefix(ours)}"] = tensor
            elif pair := next((p for p in _BACK if name.startswith(p[0])), None):
                bert[f"bert.{pair[1]}{name.removeprefix(pair[0])}"] = tensor
        words = side.text.state_dict()
        # Half of the positions is what ALBEF keeps as the kind of a first text.
        kind_D = torch.linspace(-1, 1, side.text.spec.width)
        bert["bert.embeddings.position_embeddings.weight"] = words["positions.weight"] - kind_D
        bert["bert.embeddings.token_type_embeddings.weight"] = torch.stack([kind_D, kind_D + 1])
        bert["bert.embeddings.position_ids"] = torch.arange(side.text.spec.max_tokens)[None]
        head = "cls.predictions"
        bert |= {
            f"{head}.bias": words["bias"],
            f"{head}.decoder.weight": words["words.weight"],
            f"{head}.decoder.bias": words["bias"],
        }
        for ours, theirs in (("transform", "dense"), ("transform_norm", "LayerNorm")):
            bert |= {
                f"{head}.transform.{theirs}.{kind}": words[f"{ours}.{kind}"]
                for kind in ("weight", "bias")
            }
        found |= {f"text_encoder{copy}.{name}": tensor for name, tensor in bert.items()}
        for ours, theirs in (("image_proj", "vision_proj"), ("text_proj", "text_proj")):
            own = side.state_dict()
            found |= {f"{theirs}{copy}.{k}": own[f"{ours}.{k}"] for k in ("weight", "bias")}
    own = method.text_side.state_dict()
    found |= {f"itm_head.{kind}": own[f"match.{kind}"] for kind in ("weight", "bias")}
    queues = {"image_queue": method.images, "text_queue": method.texts}
    found |= {name: queue.rows_KD.T.contiguous() for name, queue in queues.items()}
    return found | {"queue_ptr": torch.zeros(1, dtype=torch.int64)}


def built() -> Any:
    config = dataclasses.replace(helpers.small(ALBEF), text_heads=2)
    texts = [helpers.captions_of(label) for label in range(5)]
    spec = setup.with_text(SPEC, ALBEF.load_class(), config, texts)
    return setup.build_method(ALBEF.load_class(), config, spec, 3, 0)


@pytest.fixture(scope="module")
def albef() -> Any:
    method = built()
    for n, each in enumerate((method.encoder, method.text_side, method.slow_encoder)):
        naive.randomise(each, n)
    naive.randomise(method.slow_side, 9)
    method.share.fill_(0.4)
    return method


@pytest.fixture
def file(albef: Any, tmp_path: Path) -> Path:
    path = tmp_path / "ALBEF.pth"
    torch.save({"model": official(albef), "epoch": 3}, path)
    (tmp_path / "vocab.txt").write_text(albef.data.text.vocabulary + "\n")
    return path


def losses(method: Any) -> dict[str, float]:
    split = make_images(5, 3, 16, 3, seed=1)
    draws = SampleRng(0, 0, torch.arange(5))
    texts = vocabulary.tokens_of(split.captions, None, method.data.text, torch.device("cpu"))
    views = {"image": split.images_NCHW.float() / 255 - 0.5}
    batch = Batch(views, draws, captions_BL=texts.draw(draws))
    return {name: loss.item() for name, loss in method.loss(batch, helpers.FIRST_STEP).items()}


def test_official_albef_gives_the_same_losses(albef: Any, file: Path) -> None:
    other = built()
    other.share.fill_(0.4)
    for queue in ("images", "texts"):
        getattr(other, queue).load_state_dict(getattr(albef, queue).state_dict())
    assert losses(other) != pytest.approx(losses(albef), rel=1e-2)
    for branch, encoder, side in (
        (None, other.encoder, other.text_side),
        ("visual_encoder_m", other.slow_encoder, other.slow_side),
    ):
        found = read(file, num_heads=2, branch=branch)
        encoder.load_state_dict(found.encoder.state_dict())
        side.load_state_dict(found.pair.state_dict(), strict=branch is None)
        assert (found.spec.mean, found.spec.std) == (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    assert losses(other) == pytest.approx(losses(albef), rel=1e-5)


def test_official_albef_is_evaluated_by_command(
    file: Path, ssl_bench: Command, image_folder: Path, tmp_path: Path
) -> None:
    rows = [
        json.dumps({"image": str(path.relative_to(image_folder)), "caption": f"class {n}"})
        for n, path in enumerate(sorted(image_folder.rglob("*.png"))[:30])
    ]
    table = image_folder / "captions.jsonl"
    table.write_text("\n".join(rows))
    command = ("eval", "--weights", file, "--data", table, "--num-heads", 2)
    runs = ("--runs-dir", tmp_path / "runs")
    evals = ("--evals", "retrieval,masked-words")
    code, out, err = ssl_bench(*command, *evals, *runs)
    assert code == 0, err
    assert "ALBEF" in out
    assert len(list((tmp_path / "runs").glob("weights-ALBEF-*/evals/*/scores.json"))) == 2
    file.with_name("vocab.txt").unlink()
    code, out, err = ssl_bench(*command, *evals, *runs)
    assert code == 2 and "captions" in err
    assert "vocab.txt" in out
    other = tmp_path / "other.txt"
    other.write_text("\n".join(WORDS))
    image_encoder = tmp_path / "vit.pth"
    images = text_formats.albef_images(torch.load(file), None, "")
    torch.save(images, image_encoder)
    with pytest.raises(UserError, match="--tokenizer"):
        read(image_encoder, num_heads=2, tokenizer=str(other))
    encoder: Any = package.load_encoder(file, num_heads=2)
    images_BCHW = torch.zeros(1, 3, 16, 16)
    assert encoder.forward_features(images_BCHW).shape == (1, 17, 32)


def test_what_else_an_albef_holds_is_told(albef: Any, file: Path) -> None:
    left_out = read(file, num_heads=2).left_out
    assert all(f"{name} (tensors: 1)" in left_out for name in ("temp", "image_queue", "queue_ptr"))
    assert "visual_encoder_m" in left_out and left_out.endswith("and 1 more")  # the epoch
    assert "visual_encoder " not in left_out and "text_encoder " not in left_out
    file.with_name("vocab.txt").unlink()
    assert "text_encoder (tensors" in read(file, num_heads=2).left_out


def test_a_blip_is_no_albef(albef: Any, file: Path) -> None:
    assert read(file, num_heads=2).kind.startswith("ALBEF")
    file.with_name("vocab.txt").unlink()
    crossed = "text_encoder.encoder.layer.0.crossattention.self.query.weight"
    torch.save({"model": official(albef) | {crossed: torch.zeros(32, 32)}}, file)
    assert read(file, num_heads=2).kind.startswith("BLIP")


def test_an_albef_that_is_none_is_told(albef: Any, file: Path) -> None:
    state = official(albef)
    with pytest.raises(UserError, match="visual_encoder_m"):
        read(file, num_heads=2, branch="teacher")
    del state["text_encoder.bert.encoder.layer.1.attention.self.query.weight"]
    torch.save(state, file)
    with pytest.raises(UserError, match=r"lacks.*query"):
        read(file, num_heads=2)
    file.with_name("vocab.txt").write_text("\n".join(WORDS))
    with pytest.raises(UserError, match="words"):
        read(file, num_heads=2)
