"""Several processes against one naive computation over the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import helpers
import naive
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_bench.api import registry
from ssl_bench.api.method import Batch
from ssl_bench.distributed import collectives
from ssl_bench.models import backbones, encoders, prototypes
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import setup
from ssl_bench.utils.rng import SampleRng

MOCO, DINO = (registry.find("method", name) for name in ("mocov3", "dino"))
SPEC = EncoderSpec("vit_micro", 16, 4, 3, (0.5,) * 3, (0.25,) * 3)
BATCH, WIDTH = 12, 7
WORLDS = (3, 2)
BATCH_NORMED = ("test_resnet", "test_efficientnet")


def images() -> tuple[Tensor, Tensor]:
    """Two views of the whole batch; images differ in colour, as photographs do."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randn(BATCH, 3, 1, 1, generator=generator)
    first, second = (colours + torch.randn(BATCH, 3, 16, 16, generator=generator) for _ in "12")
    return first, second


def moco() -> Any:
    config = MOCO.config(proj_hidden_dim=32, proj_output_dim=16, freeze_patch_embed=False)
    method: Any = setup.build_method(MOCO.load_class(), config, SPEC, 3, seed=0)
    naive.randomise(method)
    with torch.no_grad():
        method.encoder.cls_token.mul_(0.1)
        method.momentum_encoder.cls_token.mul_(0.1)
    return method.train()


def rows() -> tuple[Tensor, Tensor]:
    """What a batch norm gets, far from zero mean, and what its output is multiplied with."""
    generator = torch.Generator().manual_seed(1)
    inputs, weights = (torch.randn(BATCH, WIDTH, generator=generator) for _ in "12")
    return 3 * inputs + 10, weights


def own(tensor: Tensor) -> Tensor:
    """This rank's share of a batch."""
    return tensor.chunk(collectives.world_size())[collectives.rank()]


def batch_norm_found() -> dict[str, Any]:
    norm = collectives.SyncBatchNorm1d(WIDTH)
    naive.randomise(norm)
    whole, weights = rows()
    inputs = own(whole).clone().requires_grad_()
    outputs = norm(inputs)
    (outputs * own(weights)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in norm.named_parameters()}
    return {
        "outputs": outputs.detach(),
        "input gradient": inputs.grad,
        "gradients": gradients,
        "state": norm.state_dict(),
        "evaluated": norm.eval()(own(whole)).detach(),
    }


def moco_found() -> dict[str, Any]:
    method = moco()
    views = tuple(own(view) for view in images())
    count = len(views[0])
    named = dict(zip(("first", "second"), views, strict=True))
    loss = method.loss(Batch(named, SampleRng(0, 0, torch.arange(count))), helpers.FIRST_STEP)
    loss.backward()
    with torch.no_grad():
        outputs = {
            "queries": [method.query(view) for view in views],
            "keys": [method.key(view) for view in views],
        }
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return outputs | {"loss": loss.detach(), "gradients": gradients}


def covariance(rows_ND: Tensor) -> Tensor:
    """A loss of all rows at once, as VICReg and Barlow Twins have."""
    centred_ND = rows_ND - rows_ND.mean(0)
    return (centred_ND.T @ centred_ND / len(rows_ND)).pow(3).sum() + rows_ND.std(0).sum()


def covariance_found() -> Tensor:
    """A row's gradient, as the mean over ranks (of the same loss) that parameters get."""
    inputs = own(rows()[0]).clone().requires_grad_()
    covariance(collectives.gather_with_gradient(inputs)).backward()
    assert inputs.grad is not None
    return inputs.grad / collectives.world_size()


def mean_found() -> tuple[Tensor, Tensor]:
    """A loss of a mean over the whole batch, and the gradient of its mean over ranks."""
    inputs = own(rows()[0]).clone().requires_grad_()
    loss = collectives.mean_with_gradient(inputs.square().mean(0)).pow(3).sum()
    loss.backward()
    assert inputs.grad is not None
    return loss.detach(), inputs.grad / collectives.world_size()


SPREADING: dict[str, Callable[[Tensor], Tensor]] = {
    "koleo": lambda rows_BD: DINO.load().koleo(rows_BD),
    "coding rate": lambda rows_BD: prototypes.coding_rate(rows_BD[None], epsilon=0.05),
}


def spreading_found(name: str) -> tuple[Tensor, Tensor]:
    """A loss that spreads features, and the gradient of its mean over ranks."""
    inputs = own(rows()[1]).clone().requires_grad_()
    loss = SPREADING[name](inputs)
    loss.backward()
    assert inputs.grad is not None
    return loss.detach(), inputs.grad / collectives.world_size()


def balanced_found() -> Tensor:
    """Assignments of this rank's logits, of which other ranks' are far larger or smaller."""
    logits_NK = rows()[1] + torch.arange(BATCH)[:, None] / 2
    return prototypes.sinkhorn(own(logits_NK), temperature=0.5)


def uneven(tensor: Tensor) -> Tensor:
    """This rank's part of a batch: one image, or all the others for the last rank."""
    rank, last = collectives.rank(), collectives.world_size() - 1
    return tensor[rank:] if rank == last else tensor[rank : rank + 1]


def backbone_found(backbone: str, shared: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Gradients of the summed features, and what the batch norms have seen."""
    spec = EncoderSpec(backbone, 32, None, 3, (0.5,) * 3, (0.25,) * 3)
    encoder = backbones.build(spec, seed=0).train()
    naive.randomise(encoder)
    views = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    features = encoders.represent(encoder, shared(views))
    features.square().sum().backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters()}
    return {"gradients": gradients, "buffers": dict(encoder.named_buffers())}


def work(rank: int, folder: str) -> None:
    """One process of the largest world; the last ones have nothing to do in smaller worlds."""
    for world in WORLDS:
        if rank >= world:
            break
        meeting = f"file://{folder}/meeting-{world}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
        found = {
            "ranks": (collectives.rank(), collectives.world_size()),
            "gathered": collectives.gather(torch.full((2, 3), float(rank), requires_grad=True)),
            "batch norm": batch_norm_found(),
            "moco": moco_found(),
            "covariance": covariance_found(),
            "mean": mean_found(),
            "balanced": balanced_found(),
            **{name: spreading_found(name) for name in SPREADING},
            **{name: backbone_found(name, uneven) for name in BATCH_NORMED},
        }
        torch.save(found, f"{folder}/{world}-{rank}.pt")
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each rank of each world computed."""
    folder = tmp_path_factory.mktemp("ranks")
    forked.together(work, max(WORLDS), str(folder))
    return {
        world: [torch.load(Path(folder, f"{world}-{rank}.pt")) for rank in range(world)]
        for world in WORLDS
    }


@pytest.fixture(scope="module")
def expected() -> tuple[naive.Contrasted, naive.Weights]:
    """MoCo v3 over the whole batch, with its gradients in the weights."""
    weights = naive.weights_of(moco())
    views = [view.double() for view in images()]
    contrasted = naive.mocov3(weights, views, size=4, heads=4, temperature=0.2)
    contrasted.loss.backward()
    return contrasted, weights


@pytest.mark.parametrize("world", WORLDS)
def test_rows_are_gathered_in_the_order_of_the_ranks(world: int, found: Any) -> None:
    for rank, result in enumerate(found[world]):
        assert result["ranks"] == (rank, world)
        assert result["gathered"][:, 0].tolist() == [r for r in range(world) for _ in range(2)]
        assert not result["gathered"].requires_grad


@pytest.mark.parametrize("world", WORLDS)
def test_batch_norm_is_that_of_the_whole_batch(world: int, found: Any) -> None:
    results = [result["batch norm"] for result in found[world]]
    norm = nn.BatchNorm1d(WIDTH)
    naive.randomise(norm)
    weights = naive.weights_of(norm)
    whole, factors = rows()
    inputs = whole.double().requires_grad_()
    outputs = naive.batch_norm(inputs) * weights["weight"] + weights["bias"]
    (outputs * factors).sum().backward()
    ours = torch.cat([result["outputs"] for result in results])
    assert naive.relative_error(ours, outputs) < 1e-5
    ours = torch.cat([result["input gradient"] for result in results])
    assert naive.relative_error(ours, inputs.grad) < 1e-5
    for name, weight in weights.items():
        ours = torch.stack([result["gradients"][name] for result in results]).sum(0)
        assert naive.relative_error(ours, weight.grad) < 1e-5, name

    norm(whole)
    for result in results:
        assert result["state"].keys() == norm.state_dict().keys()
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(result["state"][name], value)
    evaluated = torch.cat([result["evaluated"] for result in results])
    torch.testing.assert_close(evaluated, norm.eval()(whole))


@pytest.mark.parametrize("world", WORLDS)
def test_gathered_rows_carry_gradient(world: int, found: Any) -> None:
    whole = rows()[0].double().requires_grad_()
    covariance(whole).backward()
    ours = torch.cat([result["covariance"] for result in found[world]])
    assert naive.relative_error(ours, whole.grad) < 1e-5


@pytest.mark.parametrize("world", WORLDS)
def test_a_mean_over_ranks_carries_gradient(world: int, found: Any) -> None:
    whole = rows()[0].requires_grad_()
    loss = whole.square().mean(0).pow(3).sum()
    loss.backward()
    for result in found[world]:
        torch.testing.assert_close(result["mean"][0], loss.detach())
    gradient = torch.cat([result["mean"][1] for result in found[world]])
    torch.testing.assert_close(gradient, whole.grad)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", SPREADING)
def test_features_are_spread_over_the_whole_batch(name: str, world: int, found: Any) -> None:
    loss, gradient = spreading_found(name)
    for result in found[world]:
        torch.testing.assert_close(result[name][0], loss)
    torch.testing.assert_close(torch.cat([result[name][1] for result in found[world]]), gradient)


@pytest.mark.parametrize("world", WORLDS)
def test_prototypes_are_balanced_over_the_whole_batch(world: int, found: Any) -> None:
    ours = torch.cat([result["balanced"] for result in found[world]])
    torch.testing.assert_close(ours, balanced_found())


@pytest.mark.parametrize("world", WORLDS)
def test_moco_v3_is_that_of_the_whole_batch(
    world: int, found: Any, expected: tuple[naive.Contrasted, naive.Weights]
) -> None:
    contrasted, weights = expected
    results = [result["moco"] for result in found[world]]
    for kind, references in (("queries", contrasted.queries), ("keys", contrasted.keys)):
        for view, reference in enumerate(references):
            ours = torch.cat([result[kind][view] for result in results])
            assert naive.relative_error(ours, reference) < 1e-5, (kind, view)
    loss = torch.stack([result["loss"] for result in results]).mean()
    assert naive.relative_error(loss, contrasted.loss) < 1e-5
    for name, weight in weights.items():
        if weight.grad is None:
            assert all(name not in result["gradients"] for result in results), name
        elif name == "encoder.norm.bias":  # a shift before batch norm: zero but for rounding
            assert weight.grad.norm() < 1e-12
        else:
            ours = torch.stack([result["gradients"][name] for result in results]).mean(0)
            assert naive.relative_error(ours, weight.grad) < 1e-5, name


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("backbone", BATCH_NORMED)
def test_batch_norms_of_a_backbone_are_those_of_the_whole_batch(
    backbone: str, world: int, found: Any
) -> None:
    """However many images each rank has of it."""
    results = [result[backbone] for result in found[world]]
    expected = backbone_found(backbone, lambda whole: whole)
    largest = max(gradient.abs().max().item() for gradient in expected["gradients"].values())
    for name, gradient in expected["gradients"].items():
        ours = torch.stack([result["gradients"][name] for result in results]).sum(0)
        torch.testing.assert_close(ours, gradient, rtol=1e-3, atol=1e-5 * largest)
    for result in results:
        torch.testing.assert_close(result["buffers"], expected["buffers"])


def test_one_process_is_its_own_world() -> None:
    values = torch.randn(4, WIDTH, requires_grad=True)
    assert (collectives.rank(), collectives.world_size()) == (0, 1)
    gathered = collectives.gather(values)
    assert torch.equal(gathered, values) and not gathered.requires_grad
    ours, theirs = collectives.SyncBatchNorm1d(WIDTH), nn.BatchNorm1d(WIDTH)
    assert torch.equal(ours(values), theirs(values))
    assert torch.equal(ours.running_var, theirs.running_var)  # type: ignore[arg-type]
