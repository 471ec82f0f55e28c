"""ALBEF's losses against naive ones in float64, and a value that the official code gave."""

from __future__ import annotations

import dataclasses
from typing import Any

import helpers
import naive
import naive_text
import pytest
import torch
import torch.nn.functional as F
from helpers import make_images
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.api.step import Batch, Step
from ssl_bench.errors import UserError
from ssl_bench.methods.albef import contrast, hard_negatives
from ssl_bench.models import masked_tokens, text_encoder, vocabulary
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import setup
from ssl_bench.utils.rng import SampleRng

ALBEF = registry.find("method", "albef")
SPEC = EncoderSpec("vit_micro", 16, 4, 3, (0.5,) * 3, (0.25,) * 3, helpers.SHAPE)
COUNT = 5


def rows(count: int, width: int, shift: float) -> Tensor:
    i, j = torch.arange(count), torch.arange(width)
    return torch.sin(0.7 * (i[:, None] + 1).double() * (j + 2) + shift)


def test_contrast_is_the_official_one() -> None:
    image, words = rows(8, 6, 0).requires_grad_(), rows(8, 6, 0.3).requires_grad_()
    temperature = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    slow = [F.normalize(rows(8, 6, shift), dim=1) for shift in (0.1, 0.4)]
    queues = [F.normalize(rows(16, 6, shift), dim=1) for shift in (1.0, 1.5)]
    keys = [torch.cat(pair) for pair in zip(slow, queues, strict=True)]
    features = F.normalize(image, dim=1), F.normalize(words, dim=1)
    loss = contrast(*features, *slow, *keys, temperature, torch.tensor(0.4).double())
    loss.backward()
    assert loss.item() == pytest.approx(0.1673781516, rel=1e-6)
    found = [each.grad.norm().item() for each in (image, words, temperature)]  # type: ignore[union-attr]
    expected = [0.005165927943, 0.02442199692, 0.07893483167]
    assert found == pytest.approx(expected, rel=1e-6)


def built(**changes: Any) -> Any:
    given: Any = {"alpha": 0.4, **changes}
    config = dataclasses.replace(helpers.small(ALBEF), **given)
    kind = ALBEF.load_class()
    texts = [helpers.captions_of(label) for label in range(5)]
    spec = setup.with_text(SPEC, kind, config, texts)
    method: Any = setup.build_method(kind, config, spec, 3, 0)
    for number, module in enumerate(
        (method.encoder, method.text_side, method.slow_encoder, method.slow_side)
    ):
        naive.randomise(module, number)
    method.share.fill_(0.3)
    return method.double()


def batch_of(method: Any) -> Batch:
    split = make_images(COUNT, 3, 16, 3, seed=1)
    draws = SampleRng(0, 0, torch.arange(COUNT))
    ids_BL = vocabulary.tokens_of(split.captions, None, method.data.text, torch.device("cpu")).draw(
        draws
    )
    views = {"image": split.images_NCHW.double() / 255 - 0.5}
    return Batch(views, draws, captions_BL=ids_BL)


class Naive:
    """A text side's float64 weights, and one text or pair at a time."""

    def __init__(self, side: Any, images: Tensor, ids_BL: Tensor) -> None:
        self.weights = naive.weights_of(side)
        self.text = naive.under(self.weights, "text")
        self.spec, self.images = side.text.spec, images
        self.length = [int((row != self.spec.id(vocabulary.PAD)).sum()) for row in ids_BL]
        self.ids = [row[:n].tolist() for row, n in zip(ids_BL, self.length, strict=True)]

    def read(self, ids: list[int]) -> list[Tensor]:
        return naive_text.encode(self.text, ids, self.spec.depth, self.spec.num_heads)

    def fuse(self, ids: list[int], image: int) -> list[Tensor]:
        tokens = list(self.images[image])
        how = self.spec.fusion_depth, self.spec.num_heads
        return naive_text.fuse(self.text, self.read(ids), tokens, *how)

    def image(self, number: int) -> Tensor:
        row_D = naive_text.linear(self.weights, "image_proj", self.images[number][0])
        return row_D / row_D.norm()

    def words(self, number: int) -> Tensor:
        row_D = naive_text.linear(self.weights, "text_proj", self.read(self.ids[number])[0])
        return row_D / row_D.norm()


def test_losses_are_the_naive_ones() -> None:
    method = built(mask_share=0.4)
    batch = batch_of(method)
    ids_BL = batch.captions_BL
    assert ids_BL is not None
    losses = method.loss(batch, helpers.FIRST_STEP)
    assert set(losses) == {"itc", "itm", "mlm"}
    image_BSD = method.encoder.forward_features(batch.views["image"]).detach()
    slow_BSD = method.slow_encoder.forward_features(batch.views["image"]).detach()
    ours = Naive(method.text_side, image_BSD, ids_BL)
    slow = Naive(method.slow_side, slow_BSD, ids_BL)
    pairs = range(COUNT)
    share, temperature = 0.3, method.temperature.detach()
    slow_images = [slow.image(n).detach() for n in pairs]
    slow_texts = [slow.words(n).detach() for n in pairs]

    def one_way(query: Tensor, own: Tensor, keys: list[Tensor], number: int) -> Tensor:
        logits = torch.stack([query @ key for key in keys]) / temperature
        target = torch.stack([own @ key for key in keys]).div(temperature).softmax(0) * share
        target[number] += 1 - share
        return -(target * logits.log_softmax(0)).sum()

    texts, images = [*slow_texts, *method.texts.rows_KD], [*slow_images, *method.images.rows_KD]
    to_text = [one_way(ours.image(n), slow_images[n], texts, n) for n in pairs]
    to_image = [one_way(ours.words(n), slow_texts[n], images, n) for n in pairs]
    itc = torch.stack([*to_text, *to_image]).mean()
    assert naive.relative_error(losses["itc"], itc) < 1e-5

    def match(ids: list[int], image: int, belongs: int) -> Tensor:
        logits = naive_text.linear(ours.weights, "match", ours.fuse(ids, image)[0])
        return -logits.log_softmax(0)[belongs]

    def other(likeness: list[Tensor], number: int, purpose: str) -> int:
        shares = (torch.stack(likeness) / temperature).softmax(0) + 1e-4
        shares[number] = 0
        drawn = float(batch.rng.uniform(purpose, 1)[number]) * float(shares.sum().detach())
        return next(n for n in pairs if float(shares[: n + 1].sum().detach()) > drawn)

    terms = [match(ours.ids[n], n, 1) for n in pairs]
    for n in pairs:
        image = other([ours.words(n) @ slow_images[k] for k in pairs], n, "negative image")
        caption = other([ours.image(n) @ slow_texts[k] for k in pairs], n, "negative text")
        assert image != n and caption != n
        terms += [match(ours.ids[n], image, 0), match(ours.ids[caption], n, 0)]
    itm = torch.stack(terms).mean()
    assert len(terms) == 3 * COUNT
    assert naive.relative_error(losses["itm"], itm) < 1e-5

    masked = masked_tokens.mask_tokens(ids_BL, method.text, batch.rng, 0.4)
    terms = []
    for n in pairs:
        ids = masked.ids_BL[n][: ours.length[n]].tolist()
        hidden, answers = ours.fuse(ids, n), slow.fuse(ids, n)
        for place, target in enumerate(masked.targets_BL[n][: len(ids)].tolist()):
            if target >= 0:
                logs = naive_text.logits(ours.text, hidden[place]).log_softmax(0)
                soft = naive_text.logits(slow.text, answers[place]).softmax(0).detach()
                terms.append(-(1 - share) * logs[target] - share * (soft * logs).sum())
    assert len(terms) > 2
    mlm = torch.stack(terms).mean()
    assert naive.relative_error(losses["mlm"], mlm) < 1e-5

    (losses["itc"] + losses["itm"] + losses["mlm"]).backward()
    (itc + itm + mlm).backward()
    errors = naive.gradient_errors(method.text_side, ours.weights)
    assert all(error < 1e-4 for name, error in errors.items() if ".key.bias" not in name), errors


def test_what_follows_a_step() -> None:
    method = built(temperature=0.2, momentum=0.9, alpha=0.6)
    assert method.temperature.item() == pytest.approx(0.2)
    batch = batch_of(method)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    ids_BL, slow_side = batch.captions_BL, method.slow_side
    images_BSD = method.slow_encoder.forward_features(batch.views["image"])
    images_BD = slow_side.embed_images(images_BSD[:, 0])
    texts_BD = slow_side.embed_texts(slow_side.text(ids_BL))
    method.loss(batch, helpers.FIRST_STEP)
    with torch.no_grad():
        method.temperature.fill_(0.7)
    method.after_optimizer_step(Step(0, 20, 4, COUNT))
    after = method.state_dict()
    assert after["temperature"] == 0.5
    assert float(after["share"]) == pytest.approx(0.6 / 4)
    assert int(after["images.pointer"]) == COUNT
    for queue, slow in (("images", images_BD), ("texts", texts_BD)):
        rows_KD = after[f"{queue}.rows_KD"]
        torch.testing.assert_close(rows_KD[:COUNT], slow)
        assert torch.equal(rows_KD[COUNT:], before[f"{queue}.rows_KD"][COUNT:])
    for names in (
        ("slow_side.text.words.weight", "text_side.text.words.weight"),
        ("slow_encoder.blocks.0.attn.proj.weight", "encoder.blocks.0.attn.proj.weight"),
    ):
        slow, fast = (before[name] for name in names)
        assert not torch.equal(slow, fast)
        torch.testing.assert_close(after[names[0]], 0.9 * slow + 0.1 * fast)
    method.loss(batch, helpers.FIRST_STEP)
    with torch.no_grad():
        method.temperature.fill_(1e-5)
    method.after_optimizer_step(Step(9, 20, 4, COUNT))
    assert method.temperature.item() == pytest.approx(0.001)
    assert float(method.share) == pytest.approx(0.6)


@pytest.mark.parametrize(("given", "width"), [(16, 16), (0, helpers.SHAPE["embed_dim"])])
def test_texts_are_as_wide_as_asked_for_or_as_the_images(given: int, width: int) -> None:
    reader = built(text_width=given).text_side.text
    assert reader.words.weight.shape[1] == width
    assert reader.fusion[0].cross_attention.key.in_features == helpers.SHAPE["embed_dim"]


def test_a_collapse_is_looked_for_in_the_images_features() -> None:
    method = built()
    batch = batch_of(method)
    method.loss(batch, helpers.FIRST_STEP)
    tokens = method.encoder.forward_features(batch.views["image"])
    expected = method.text_side.embed_images(tokens[:, 0])
    torch.testing.assert_close(method.watched_BD, expected)


def test_a_picture_is_lit_where_its_caption_looks() -> None:
    """From 15 % of the contrast to all of it, at the patch that [CLS] attends to most."""
    method = built(fusion_depth=2)
    batch = batch_of(method)
    images, ids_BL = batch.views["image"], batch.captions_BL
    assert ids_BL is not None
    original, lit = method.pictures(batch).values()
    assert torch.equal(original, images)
    ours = Naive(method.text_side, method.encoder.forward_features(images), ids_BL)
    last = naive.under(ours.text, "fusion.1")
    for n in range(COUNT):
        tokens, heads = list(ours.images[n]), ours.spec.num_heads
        hidden = naive_text.fuse(ours.text, ours.read(ours.ids[n]), tokens, 1, heads)
        own = naive_text.attend(last, "attention", hidden[0], hidden, heads)
        row = naive_text.norm(last, "attention_norm", hidden[0] + own)
        query = naive_text.linear(last, "cross_attention.query", row)
        shares = []
        for part in torch.arange(len(query)).chunk(heads):
            keys = [naive_text.linear(last, "cross_attention.key", token)[part] for token in tokens]
            scores = torch.stack([query[part] @ key for key in keys]) / len(part) ** 0.5
            shares.append(scores.softmax(dim=0))
        attended = torch.stack(shares).mean(dim=0)[1:].view(4, 4)
        shown = (attended / attended.max()).repeat_interleave(4, 0).repeat_interleave(4, 1)
        darkest = images[n].min()
        expected = darkest + (images[n] - darkest) * (0.15 + 0.85 * shown)
        torch.testing.assert_close(lit[n], expected)


def test_left_stays_left() -> None:
    assert [view.flip for view in built().transforms().values()] == [0.0]


def test_hard_negatives_are_drawn_as_their_similarity_says() -> None:
    similarity = torch.tensor([[9.0, 1.0, 0.0, -1.0]])
    uniform = torch.arange(3000) / 3000
    drawn = torch.cat([hard_negatives(similarity, each.view(1, 1)) for each in uniform])
    shares = similarity[0].softmax(0) + 1e-4
    shares[0] = 0
    expected = shares / shares.sum()
    assert not (drawn == 0).any()
    counts = drawn.bincount(minlength=4) / len(drawn)
    torch.testing.assert_close(counts, expected, rtol=0.02, atol=0.002)


@pytest.mark.parametrize(
    "losses", [("itc",), ("itm",), ("mlm",), ("itc", "mlm"), ("itm", "mlm"), ("itc", "itm")]
)
def test_each_loss_can_be_left_out(losses: tuple[str, ...]) -> None:
    method = built(loss=losses).float()
    batch = batch_of(method)
    batch = Batch({"image": batch.views["image"].float()}, batch.rng, captions_BL=batch.captions_BL)
    found = method.loss(batch, helpers.FIRST_STEP)
    assert set(found) == set(losses)
    sum(found.values()).backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    method.after_optimizer_step(helpers.FIRST_STEP)
    assert (text_encoder.why_no_pair(method.text_side) is None) == ("itc" in losses)
    assert method.data.text.predicts == ("mlm" in losses)


@pytest.mark.parametrize(
    ("losses", "alpha", "slow"),
    [("itc", 0.0, 1), ("itm", 0.4, 0), ("mlm", 0.4, 1), ("mlm", 0.0, 0)],
)
def test_what_no_loss_reads_is_not_computed(losses: str, alpha: float, slow: int) -> None:
    method = built(loss=(losses,), alpha=alpha)
    images, texts = list[Tensor](), list[Tensor]()
    real = method.slow_encoder.forward_features

    def watched(views: Tensor) -> Tensor:
        images.append(views)
        return real(views)

    method.slow_encoder.forward_features = watched
    method.text_side.text.register_forward_hook(lambda *call: texts.append(call[-1]))
    method.loss(batch_of(method), helpers.FIRST_STEP)
    assert (len(images), len(texts)) == (slow, 1)


@pytest.mark.parametrize("losses", [(), ("itc", "itc"), ("mim",)])
def test_other_losses_are_refused(losses: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="itc,itm,mlm"):
        ALBEF.load().Config(loss=losses)


def test_queues_of_partial_batches_are_refused() -> None:
    config = helpers.small(ALBEF)
    refuses = ALBEF.load_class().refuses
    assert refuses(config, 24, 1000, 1) is None
    assert "--queue-size" in (refuses(config, 25, 1000, 1) or "")
    assert "--queue-size 72 " in (refuses(config, 24, 90, 1) or "")  # its own older keys
    without = dataclasses.replace(config, loss=("itm", "mlm"))
    assert refuses(without, 25, 90, 1) is None
