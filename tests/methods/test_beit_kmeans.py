"""BEiT with k-means tokens against a naive float64 reference, and where its tokens come from."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from helpers import CPU, FIRST_STEP, SHAPE
from naive import Weights, under
from safetensors.torch import save_file
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.api.step import Batch, Step
from ssl_bench.cli import flags
from ssl_bench.data import Dataset, Split
from ssl_bench.errors import UserError
from ssl_bench.experiment import loading
from ssl_bench.experiment.preparation import prepare_run
from ssl_bench.models import codebook
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import pretrain, setup
from ssl_bench.utils.rng import SampleRng

BEIT = registry.find("method", "beit-kmeans")
STATISTICS = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
VIT = EncoderSpec("vit_micro", 16, 4, 3, *STATISTICS, SHAPE)
OWN = EncoderSpec("beit_base_patch16_224", 16, 4, 3, *STATISTICS, SHAPE)
_PRETRAINING = {
    "use_rel_pos_bias": False,
    "use_shared_rel_pos_bias": True,
    "use_abs_pos_emb": True,
    "global_pool": "token",
}
SHARED = EncoderSpec("beit_base_patch16_224", 16, 4, 3, *STATISTICS, {**SHAPE, **_PRETRAINING})
TABLE = "relative_position_bias_table"
SIDE, TOKENS, VALUES = 4, 12, 48


def build(spec: EncoderSpec = VIT, **changes: Any) -> Any:
    config = BEIT.config(**{"codebook_size": TOKENS, **changes})
    return setup.build_method(BEIT.load_class(), config, spec, 3, seed=0)


def batch_of(count: int = 3) -> Batch:
    images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Batch({"image": images}, SampleRng(0, 0, torch.arange(count)))


def offset(first: int, second: int) -> int:
    """Where the table has the bias of attention from one token to another; token 0 is the class."""
    if first == 0 or second == 0:
        return -1 if first == second else (-3 if first == 0 else -2)
    (top, left), (bottom, right) = divmod(first - 1, SIDE), divmod(second - 1, SIDE)
    return (top - bottom + SIDE - 1) * (2 * SIDE - 1) + left - right + SIDE - 1


def beit(weights: Weights, x: Tensor) -> Tensor:
    """Blocks with layer scales, biases of queries and values, and of distances."""
    heads, size = SHAPE["num_heads"], x.shape[1] // SHAPE["num_heads"]
    offsets = torch.tensor([[offset(i, j) for j in range(len(x))] for i in range(len(x))])
    for index in range(SHAPE["depth"]):
        block = under(weights, f"blocks.{index}")
        own = under(block, "attn")
        normed = naive.layer_norm(under(block, "norm1"), x)
        bias = torch.cat([own["q_bias"], torch.zeros(x.shape[1]), own["v_bias"]])
        qkv = normed @ own["qkv.weight"].T + bias
        table = own.get(TABLE, weights.get(f"rel_pos_bias.{TABLE}"))
        assert table is not None
        outputs = []
        for head in range(heads):
            q, k, v = (qkv[:, part * x.shape[1] + head * size :][:, :size] for part in range(3))
            exponentials = (q @ k.T / math.sqrt(size) + table[offsets, head]).exp()
            outputs.append(exponentials / exponentials.sum(1, keepdim=True) @ v)
        attended = naive.linear(under(own, "proj"), torch.cat(outputs, dim=1))
        x = x + block["gamma_1"] * attended
        normed = naive.layer_norm(under(block, "norm2"), x)
        x = x + block["gamma_2"] * naive.perceptron(under(block, "mlp"), normed)
    return x


def reference(
    weights: Weights, entries: Tensor, images: Tensor, hidden: Tensor, is_vit: bool
) -> tuple[Tensor, Tensor]:
    """Logits of each image's hidden patches, and their mean cross-entropy."""
    encoder = under(weights, "encoder")
    kernel, bias = encoder["patch_embed.proj.weight"], encoder["patch_embed.proj.bias"]
    logits, losses = [], []
    for image, patches in zip(images, hidden.tolist(), strict=True):
        tokens, targets = [encoder["cls_token"][0, 0]], []
        for index, (row, column, pixels) in enumerate(naive.cut(image, 4)):
            token = torch.stack([(one * pixels).sum() for one in kernel]) + bias
            token = weights["mask_token"][0, 0] if index in patches else token
            position = naive.position(len(token), column, row) if is_vit else 0
            tokens.append(token + position)
            distances = (entries - pixels.permute(1, 2, 0).flatten()).square().sum(1).tolist()
            targets.append(distances.index(min(distances)))
        x = torch.stack(tokens)
        if is_vit:
            x = naive.transformer(under(encoder, "blocks"), x, SHAPE["num_heads"])
        else:
            x = beit(encoder, x + (encoder["pos_embed"][0] if "pos_embed" in encoder else 0))
        x = naive.layer_norm(under(encoder, "norm" if "norm.bias" in encoder else "fc_norm"), x)
        for index in patches:
            scores = naive.linear(under(weights, "head"), x[1 + index])
            logits.append(scores)
            losses.append(scores.exp().sum().log() - scores[targets[index]])
    return torch.stack(logits), torch.stack(losses).mean()


@pytest.mark.parametrize("spec", [VIT, OWN, SHARED], ids=["vit", "beit", "beit-shared"])
def test_predictions_loss_and_gradients_equal_the_naive_reference(spec: EncoderSpec) -> None:
    method = build(spec)
    naive.randomise(method)
    if spec is SHARED:
        torch.nn.init.normal_(method.encoder.pos_embed)
    method.codebook_KP.normal_(generator=torch.Generator().manual_seed(1))
    batch = batch_of()
    images, hidden = batch.views["image"], method.mask(batch.rng)
    loss = method.loss(batch, FIRST_STEP)
    loss.backward()

    weights = naive.weights_of(method)
    entries = method.codebook_KP.double()
    logits, expected = reference(weights, entries, images.double(), hidden, spec is VIT)
    expected.backward()
    assert naive.relative_error(method.predict(images, hidden).flatten(0, 1), logits) < 1e-5
    assert naive.relative_error(loss, expected) < 1e-5
    errors = naive.gradient_errors(method, weights)
    assert max(errors.values()) < 1e-5, max(errors, key=errors.__getitem__)
    assert any(TABLE in name for name in errors) == (spec is not VIT)


def test_the_papers_masks_hide_75_of_196_patches_in_blocks() -> None:
    ratio = BEIT.presets()["imagenet-beit-kmeans-vitb"]["mask_ratio"]
    method = build(EncoderSpec("vit_micro", 224, 16, 3, *STATISTICS, SHAPE), mask_ratio=ratio)
    hidden = method.mask(SampleRng(0, 0, torch.arange(500)))
    assert hidden.shape == (500, 75)
    grids = torch.zeros(500, 196).scatter(1, hidden, 1).view(500, 14, 14)
    assert (grids.sum(dim=(1, 2)) == 75).all()
    right = grids[:, :, 1:][grids[:, :, :-1] > 0].mean()
    assert right > 0.7  # 0.38 if each patch were drawn by itself
    assert len(grids.flatten(1).unique(dim=0)) == 500


def lloyd(patches: list[list[float]], centres: list[list[float]], rounds: int) -> Tensor:
    """k-means, one patch at a time."""
    for _ in range(rounds):
        members: list[list[list[float]]] = [[] for _ in centres]
        for patch in patches:
            distances = [math.dist(patch, centre) for centre in centres]
            members[distances.index(min(distances))].append(patch)
        centres = [
            [sum(values) / len(own) for values in zip(*own, strict=True)] if own else centre
            for own, centre in zip(members, centres, strict=True)
        ]
    return torch.tensor(centres)


def test_codebook_is_lloyds_k_means_of_different_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(40, 3, generator=generator)
    often = torch.cat([patches, patches[:1].expand(500, -1), patches.flip(0)])
    found = codebook.fit(often, 6, seed=0)
    different = patches.unique(dim=0)
    first = codebook.rng.permutation(40, 0, "codebook")[:6]
    expected = lloyd(different.tolist(), different[first].tolist(), 10)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(found, codebook.fit(often, 6, seed=1))
    assert torch.equal(codebook.fit(often, 40, seed=0).unique(dim=0), different)
    with pytest.raises(UserError, match=r"codebook size 41 .* up to 40 would work"):
        codebook.fit(often, 41, seed=0)


def test_a_centre_nearest_to_no_patch_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    nearest = codebook.nearest
    monkeypatch.setattr(
        codebook, "nearest", lambda patches, centres: 1 + nearest(patches, centres[1:])
    )
    patches = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    found = codebook.fit(patches, 4, seed=0)
    first = patches.unique(dim=0)[codebook.rng.permutation(20, 0, "codebook")[0]]
    assert torch.equal(found[0], first) and found.isfinite().all()


def test_mixed_precision_does_not_round_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    patches, entries = (torch.randn(count, 8, generator=generator) for count in (400, 100))
    expected = torch.cdist(patches.double(), entries.double()).argmin(dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codebook.nearest(patches, entries), expected)


def test_codebook_is_a_function_of_training_images_and_seed(tiny: Dataset) -> None:
    def fitted(train: Split, seed: int, torch_seed: int) -> Tensor:
        torch.manual_seed(torch_seed)
        method = build()
        method.before_training(train, seed)
        return method.codebook_KP

    first = fitted(tiny.train, 0, 1)
    assert torch.equal(first, fitted(tiny.train, 0, 2))
    assert not torch.equal(first, fitted(tiny.train, 1, 1))
    assert not torch.equal(first, fitted(tiny.test, 0, 1))
    method = build(codebook_size=48, crop_scale=1.0, color_jitter=0.0)
    method.before_training(tiny.train, 0)
    batch = setup.make_batch(method, tiny.train, VIT, 0, 0, torch.arange(24))
    patches = batch.views["image"].unfold(2, 4, 4).unfold(3, 4, 4)
    patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3)
    error = (patches - method.codebook_KP[codebook.nearest(patches, method.codebook_KP)]).square()
    assert error.mean() < 0.9 * patches.var(dim=(0, 1, 2)).mean()


def written(folder: Path, name: str = "mine.safetensors", **tensors: Tensor) -> str:
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / name)
    return str(folder / name)


def entries_of(seed: int = 0, rows: int = 5) -> Tensor:
    entries = torch.rand(rows, VALUES, generator=torch.Generator().manual_seed(seed))
    entries[0, 0], entries[-1, -1] = 0, 1  # black and white
    return entries


def test_codebook_images_are_drawn_from_all(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits are often ordered by class."""
    seen: list[int] = []

    class Watched:
        def __len__(self) -> int:
            return len(tiny.train)

        def images(self, index_B: Tensor) -> Tensor:
            seen.extend(index_B.tolist())
            return tiny.train.images(index_B)

    monkeypatch.setattr(importlib.import_module(BEIT.load_class().__module__), "_IMAGES", 12)
    for seed in (0, 1):
        build().before_training(Watched(), seed)
    first, second = set(seen[:12]), set(seen[12:])
    assert len(first) == len(second) == 12
    assert first != second and max(first) >= 24


def test_codebook_patches_are_drawn_anew_of_each_part_of_the_images(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one image again and again, so that only the patches that are drawn differ."""
    found: list[tuple[Tensor, int]] = []

    def note(patches_NP: Tensor, count: int, seed: int) -> Tensor:
        found.append((patches_NP, seed))
        return patches_NP[:count]

    monkeypatch.setattr(codebook, "fit", note)
    alike = tiny.train.subset([0] * 256)
    for seed in (0, 1):
        build().before_training(alike, seed)
    (first, _), (second, _) = found
    assert [seed for _, seed in found] == [0, 1]
    assert first.shape == (256, VALUES), "a patch of each image"
    assert not torch.equal(first[:128], first[128:]) and not torch.equal(first, second)


def test_a_codebook_is_fitted_to_16_patches_for_a_token_of_2048_images(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are seen in an evaluation."""
    found: list[Tensor] = []

    def note(patches_NP: Tensor, count: int, seed: int) -> Tensor:
        found.append(patches_NP)
        return patches_NP[:count]

    monkeypatch.setattr(codebook, "fit", note)
    for tokens in (64, 256):
        build(codebook_size=tokens).before_training(tiny.train.subset([0] * 2500), 0)
    fewest, patches_NP = found
    assert fewest.shape == (2048, VALUES), "one of each image at least"
    assert patches_NP.shape == (16 * 256, VALUES)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in STATISTICS)
    image = (tiny.train.images_NCHW[0] / 255 - mean) / std
    own = torch.stack([pixels.permute(1, 2, 0).flatten() for _, _, pixels in naive.cut(image, 4)])
    assert (patches_NP[:, None] - own).abs().amax(dim=2).amin(dim=1).max() < 1e-5


def test_a_tokenizer_of_the_users_own_is_taken_as_it_is(tiny: Dataset, tmp_path: Path) -> None:
    """Its entries are pixels in [0, 1], as they are before images are normalised."""
    path = written(tmp_path, codebook=entries_of())
    method = build(tokenizer=path)
    assert method.head.out_features == method.config.codebook_size == 5
    two = written(tmp_path, "two", codebook=entries_of(rows=2))
    assert build(tokenizer=two).head.out_features == 2
    method.before_training(tiny.train, 0)
    pixels = entries_of().view(5, 4, 4, 3).double()
    mean, std = (torch.tensor(each, dtype=torch.float64) for each in STATISTICS)
    torch.testing.assert_close(method.codebook_KP.double(), ((pixels - mean) / std).flatten(1))
    noise = 0.01 * torch.randn(1, 4, 4, 3)
    for token in range(5):
        patch = (((pixels[token] + noise) - mean) / std).float().flatten()
        assert codebook.nearest(patch, method.codebook_KP) == token


def test_another_tokenizer_at_the_same_path_is_another_run(
    image_folder: Path, tmp_path: Path
) -> None:
    def prepared(*words: str) -> Any:
        path = str(tmp_path / "mine.safetensors")
        words = ("--method", "beit-kmeans", "--tokenizer", path, *words)
        more = ("--data", str(image_folder), "--image-size", "16", "--patch-size", "4")
        config = flags.parse_run([*words, *more, "--batch-size", "8", "--evals", "knn"])
        return prepare_run(config, loading.data_of(config)).plan

    written(tmp_path, codebook=entries_of(0))
    first = prepared()
    assert first.name == prepared("--tokenizer-hash", first.method_config.tokenizer_hash).name
    written(tmp_path, codebook=entries_of(1))
    assert prepared().name != first.name
    with pytest.raises(UserError, match="is not the one that the run was made with"):
        prepared("--tokenizer-hash", first.method_config.tokenizer_hash)


def test_a_tokenizer_that_cannot_be_used_is_refused_in_one_line(
    ssl_bench: Callable[..., tuple[int, str, str]], image_folder: Path, tmp_path: Path
) -> None:
    good = entries_of()
    (tmp_path / "text").write_text("no tensors")
    files = {
        str(tmp_path / "nowhere"): "nowhere",
        str(tmp_path / "text"): "text",
        written(tmp_path, "a", encoder=good): "'encoder'",
        written(tmp_path, "b", codebook=good, more=good[0]): "'more'",
        written(tmp_path, "c", codebook=good[0]): "floats in a row",
        written(tmp_path, "d", codebook=good[:1]): "(1, 48)",
        written(tmp_path, "e", codebook=good.int()): "torch.int32",
        written(tmp_path, "f", codebook=good * 255): "[0, 1]",
        written(tmp_path, "g", codebook=good * torch.nan): "[0, 1]",
        written(tmp_path, "h", codebook=good[:, :16]): "--patch-size",
    }
    where = ("--data", image_folder, "--image-size", 16, "--patch-size", 4, "--batch-size", 8)
    for file, told in files.items():
        words = ("run", "--method", "beit-kmeans", "--tokenizer", file, *where)
        code, _, err = ssl_bench(*words, "--runs-dir", tmp_path / "runs")
        assert (code, err.count("\n")) == (2, 1), err
        assert told in err
    assert not list((tmp_path / "runs").glob("*"))
    with pytest.raises(UserError, match="--tokenizer"):
        build(tokenizer_hash="12345678")


@pytest.mark.parametrize("spec", [VIT, OWN, SHARED], ids=["vit", "beit", "beit-shared"])
def test_class_token_and_positions_alone_are_not_decayed(spec: EncoderSpec) -> None:
    method = build(spec, weight_decay=0.03, final_lr=1 / 150, warmup=0.0, base_lr=1.875e-4)
    recipe = method.optimizer()
    assert recipe.clip_norm == 3.0 and not recipe.clip_each
    assert recipe.learning_rate(Step(0, 800, 1, 2048)) == pytest.approx(1.5e-3)
    assert recipe.learning_rate(Step(800, 800, 1, 2048)) == pytest.approx(1e-5)
    decay = {id(p): g["weight_decay"] for g in recipe.optimizer.param_groups for p in g["params"]}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            is_exempt = parameter.ndim == 1 or name.endswith(("cls_token", "pos_embed"))
            assert decay[id(parameter)] == (0.0 if is_exempt else 0.03), name


@pytest.mark.parametrize("spec", [VIT, OWN], ids=["vit", "beit"])
def test_dropped_paths_reach_the_last_block(spec: EncoderSpec) -> None:
    assert build(spec, drop_path=0.3).encoder.blocks[-1].drop_path1.drop_prob == 0.3


@pytest.mark.parametrize("backbone", ["test_resnet", "swin_nano"])
def test_other_backbones_are_refused_in_one_line(backbone: str) -> None:
    with pytest.raises(UserError, match=r"Vision Transformer.*beit_base") as raised:
        build(EncoderSpec(backbone, 32, None, 3, *STATISTICS))
    assert "\n" not in str(raised.value)


def test_pictures_keep_what_is_seen(tiny: Dataset) -> None:
    method, batch = build(), batch_of()
    method.before_training(tiny.train, 0)
    rows = method.pictures(batch)
    is_hidden = rows["masked"].isnan()
    assert 0.3 < is_hidden.double().mean() < 0.5
    assert torch.equal(rows["predicted"][~is_hidden], rows["original"][~is_hidden])
    entries = method.codebook_KP
    for image, shown in zip(rows["original"], rows["tokens"], strict=True):
        pairs = zip(naive.cut(image, 4), naive.cut(shown, 4), strict=True)
        for (_, _, pixels), (_, _, token) in pairs:
            distances = (entries - pixels.permute(1, 2, 0).flatten()).square().sum(dim=1)
            nearest = entries[distances.argmin()].view(4, 4, 3).permute(2, 0, 1)
            torch.testing.assert_close(token, nearest)


def test_pictures_show_the_likeliest_token(tiny: Dataset) -> None:
    method, batch = build(), batch_of()
    method.before_training(tiny.train, 0)
    torch.nn.init.zeros_(method.head.weight)
    method.head.bias.data[7] = 1
    rows = method.pictures(batch)
    expected = method.codebook_KP[7].view(4, 4, 3).permute(2, 0, 1).repeat(3, 1, 4, 4)
    is_hidden = rows["masked"].isnan()
    torch.testing.assert_close(rows["predicted"][is_hidden], expected[is_hidden])


def test_it_is_never_called_plain_beit() -> None:
    assert "beit" not in registry.discover("method")
    assert "k-means tokens" in BEIT.summary


def test_a_beit_is_trained_and_read_again(tiny: Dataset, tmp_path: Path) -> None:
    """On timm's own BEiT, from the codebook to the encoder that is written."""
    spec = EncoderSpec("beit_base_patch16_224", 16, 4, 3, tiny.mean, tiny.std, SHAPE)
    plan = pretrain.Plan(
        BEIT.name, 1, BEIT.config(codebook_size=TOKENS), tiny.name, tiny.fingerprint, spec,
        2, 24, 0, "fp32",
    )  # fmt: skip
    cost = pretrain.pretrain(build(spec), tiny, plan, tmp_path, CPU)
    assert cost["steps"] == 10
    restored = build(spec)
    setup.restore(restored, tmp_path)
    assert restored.codebook_KP.any()
