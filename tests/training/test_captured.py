"""A recorded step, replayed with other images and draws, is the step itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import helpers
import pytest
import torch
from helpers import BATCH, CPU, Recorder
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssl_bench.api.method import Method
from ssl_bench.api.registry import Plugin
from ssl_bench.api.step import Batch, Step
from ssl_bench.data import Dataset
from ssl_bench.distributed.device import choose
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.vocabulary import Tokens
from ssl_bench.training import gradients, setup
from ssl_bench.training.captured import (
    CannotBeRecorded,
    CapturedStep,
    Losses,
    Made,
    Record,
    Stored,
    Work,
    _as_graph,
)
from ssl_bench.training.schedule import Schedule
from ssl_bench.utils.rng import SampleRng, StaticKeys

_TRAINED = [p for p in helpers.METHODS if p.name != "random-init"]


def trainer(method: Method, spec: EncoderSpec, data: Dataset) -> setup.Trainer:
    return setup.prepare(method, CPU, spec, data.train, 0, None)


def captured(each: setup.Trainer, record: Record | None, told: list[str]) -> setup.Trainer:
    """The same, by recordings."""
    what = each.method, each.hardware, each.spec, each.train
    return replace(each, captured=setup.capture(*what, tell=told.append, record=record))


def trained(
    each: setup.Trainer, steps: int
) -> Iterator[tuple[dict[str, float], dict[str, Tensor]]]:
    """The losses and the state after each step of two epochs or more."""
    schedule = Schedule(len(each.train), BATCH, 2)
    samples = [SampleRng(0, step, schedule.batch(step, 0, "order")) for step in range(steps)]
    for number, batch in enumerate(each.batches(samples)):
        losses, _ = each.take(replace(schedule.step(number), total=steps), batch)
        state = {name: value.clone() for name, value in each.method.state_dict().items()}
        yield {name: loss.item() for name, loss in losses.items()}, state


@pytest.mark.parametrize("plugin", _TRAINED, ids=helpers.named)
def test_recorded_steps_are_the_steps(plugin: Plugin, spec: EncoderSpec, tiny: Dataset) -> None:
    spec, tiny = helpers.fitting(plugin, replace(spec, architecture=helpers.SHAPE), tiny)
    told: list[str] = []
    recorder = Recorder()
    ours = trained(
        captured(trainer(helpers.build(plugin, spec).train(), spec, tiny), recorder, told), 5
    )
    for (loss, state), (expected_loss, expected) in zip(
        ours, trained(trainer(helpers.build(plugin, spec).train(), spec, tiny), 5), strict=True
    ):
        assert loss == expected_loss
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(state[name], value), name
    assert recorder.recordings and not told


class _Reads(Method):
    """A parameter whose loss depends on the step, or on the method, in a way of the test's."""

    centre: Tensor

    def __init__(self, scale: Callable[[Any, Step], float]) -> None:
        torch.nn.Module.__init__(self)
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.scale, self.rate = scale, 1.0
        self.left: list[Tensor] | None = None
        self.register_buffer("centre", torch.ones(()))

    def loss(self, batch: Batch, step: Step) -> Tensor:
        self.left = [self.weight.detach() * 2]
        return self.weight * self.scale(self, step)

    def after_optimizer_step(self, step: Step) -> None:
        assert self.left is not None
        self.left = None


def backward_of(method: Method) -> Callable[[Stored, Step], Losses]:
    return lambda stored, step: gradients.backward(method, Batch({}, stored[0]), step, CPU)


def gradients_of(
    method: Method, steps: int, per_epoch: int, told: list[str]
) -> tuple[list[float], int]:
    """The gradient at each step, and how often a step was recorded."""
    recorder = Recorder()
    draws = SampleRng(0, 0, torch.arange(2))
    step = CapturedStep(method, backward_of(method), told.append, recorder)
    found = []
    for number in range(steps):
        now = Step(number, steps, per_epoch, 2)
        step.prepare(now, (draws, ()))
        step.take(now, (draws, ()))
        [gradient] = [p.grad for p in method.parameters() if p.grad is not None]
        found.append(gradient.item())
        method.zero_grad()
        method.after_optimizer_step(now)
    return found, recorder.recordings


def test_what_changes_with_the_epoch_is_recorded_anew() -> None:
    told: list[str] = []
    found, recordings = gradients_of(_Reads(lambda method, step: step.epoch), 12, 4, told)
    assert found == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert (recordings, told) == (3, [])


def test_a_ramp_is_recorded_anew_while_it_rises() -> None:
    told: list[str] = []
    method = _Reads(lambda method, step: step.epoch_ramp(1.0, 2.0, 0.5))
    found, recordings = gradients_of(method, 16, 4, told)
    assert found == [1] * 4 + [2] * 12
    assert (recordings, told) == (2, [])


def test_the_optimizers_state_is_there_before_a_step_is_recorded(
    spec: EncoderSpec, tiny: Dataset
) -> None:
    [plugin] = [p for p in helpers.METHODS if p.name == "mae"]
    each = trainer(helpers.build(plugin, spec).train(), spec, tiny)
    states: list[int] = []

    def record(work: Work) -> tuple[Made, Callable[[], None]]:
        states.append(len(each.optimizer.optimizer.state))
        return Recorder()(work)

    assert len(list(trained(captured(each, record, []), 3))) == 3
    assert states and states[0] > 0


def test_what_changes_with_every_step_is_not_recorded() -> None:
    told: list[str] = []
    found, recordings = gradients_of(_Reads(lambda method, step: step.fraction), 4, 4, told)
    assert found == [0, 0.25, 0.5, 0.75]
    assert recordings == 1
    [line] = told
    assert "fraction" in line


class _Changes(_Reads):
    """A number of its own and a buffer change now and then: the one is set, the other replaced."""

    def after_optimizer_step(self, step: Step) -> None:
        super().after_optimizer_step(step)
        if step.number == 3:
            self.rate = 3.0
        if step.number == 7:
            self.centre = self.centre * 2


def test_what_changes_in_the_method_is_recorded_anew() -> None:
    told: list[str] = []
    method = _Changes(lambda method, step: method.rate * method.centre)
    found, recordings = gradients_of(method, 12, 99, told)
    assert found == [1, 1, 1, 1, 3, 3, 3, 3, 6, 6, 6, 6]
    assert (recordings, told) == (3, [])


def test_a_loss_that_counts_its_calls_is_not_recorded() -> None:
    class Counts(_Reads):
        def loss(self, batch: Batch, step: Step) -> Tensor:
            self.rate += 1
            return super().loss(batch, step)

    told: list[str] = []
    _, recordings = gradients_of(Counts(lambda method, step: 1.0), 3, 3, told)
    assert recordings == 1
    [line] = told
    assert "rate" in line


def test_what_was_recorded_before_is_gone_when_a_step_is_recorded_anew() -> None:
    alive: list[weakref.ref[Any]] = []
    found: list[int] = []

    def record(work: Work) -> tuple[Made, Callable[[], None]]:
        found.append(sum(each() is not None for each in alive))
        made, replay = Recorder()(work)
        alive.append(weakref.ref(replay))
        return made, replay

    method = _Reads(lambda method, step: step.epoch)
    draws = SampleRng(0, 0, torch.arange(2))
    step = CapturedStep(method, backward_of(method), print, record)
    for number in range(12):
        step.prepare(Step(number, 12, 4, 2), (draws, ()))
        step.take(Step(number, 12, 4, 2), (draws, ()))
    assert found == [0, 0, 0]


def test_a_step_that_cannot_be_recorded_is_taken_nevertheless(
    spec: EncoderSpec, tiny: Dataset
) -> None:
    def refuse(work: Work) -> tuple[Made, Callable[[], None]]:
        work()
        raise CannotBeRecorded("it waits for the device")

    [plugin] = [p for p in helpers.METHODS if p.name == "moco"]
    told: list[str] = []
    each = captured(trainer(helpers.build(plugin, spec).train(), spec, tiny), refuse, told)
    expected = trained(trainer(helpers.build(plugin, spec).train(), spec, tiny), 3)
    assert [loss for loss, _ in trained(each, 3)] == [loss for loss, _ in expected]
    [line] = told
    assert "it waits for the device" in line


class _Crossing(TorchDispatchMode):
    """Raises where a tensor is copied from one device to another: that cannot be recorded."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor)]
        if "copy" in func.__name__ and len({each.device.type for each in given}) > 1:
            raise AssertionError(f"{func} copies between devices")
        return out


@pytest.mark.parametrize("plugin", _TRAINED, ids=helpers.named)
def test_no_loss_copies_from_the_cpu_or_waits(
    plugin: Plugin, spec: EncoderSpec, tiny: Dataset
) -> None:
    spec, tiny = helpers.fitting(plugin, spec, tiny)
    method = helpers.build(plugin, spec).train()
    texts = setup.texts_of(method, tiny.train)
    # Tensors of shapes alone: an operation whose result depends on values is an error.
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in method.modules():
            for own in (module._parameters, module._buffers):
                own |= {k: on_cuda(v) for k, v in own.items() if v is not None}
        images_NCHW, labels_N = map(on_cuda, (tiny.train.images_NCHW, tiny.train.labels_N))
        train = replace(tiny.train, images_NCHW=images_NCHW, labels_N=labels_N)
        if texts:
            texts = Tokens(*(on_cuda(getattr(texts, each.name)) for each in fields(texts)))
        pixels = (images_NCHW[:BATCH],) * len(method.transforms())
        keys = StaticKeys(labels_N.device)
        draws = SampleRng(0, 0, labels_N[:BATCH], keys=keys)
        for mode in (nullcontext(), _Crossing()):  # what is made but once is there by then
            keys.rewind()
            with mode:
                batch = setup.as_batch(method, train, spec, texts, draws, pixels)
                method.loss(batch, Step(3, 100, 10, BATCH))


def on_cuda(tensor: Tensor) -> Tensor:
    """One like it, on a GPU that need not be there, as nothing is in its memory."""
    other = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(other, tensor.requires_grad) if is_parameter else other


class _FakeGraphs:
    """What `torch.cuda` has for recordings, where there is no GPU: one whose end CUDA refuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting, self.current, self.began, self.ended = 0, "own", 0, list[Any]()
        self.breaks = True

        class Stream:
            device, device_index = torch.device("cpu"), 0

            def wait_stream(self, other: Any) -> None:
                pass

        own = Stream()
        stand_ins = {
            "Stream": Stream,
            "stream": lambda stream: nullcontext(),
            "current_stream": lambda: own,
            "set_stream": lambda stream: setattr(self, "current", "own"),
            "CUDAGraph": SimpleNamespace,
            "graph": self.graph,
            "graph_pool_handle": lambda: (0, 7),
            "get_sync_debug_mode": lambda: self.waiting,
            "set_sync_debug_mode": lambda mode: setattr(self, "waiting", mode),
        }
        for name, stand_in in stand_ins.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            monkeypatch.setattr(torch._C, name, lambda *args: self.ended.append(args), False)

    @contextmanager
    def graph(self, graph: Any, pool: Any = None, **how: Any) -> Iterator[None]:
        before, self.current = self.current, "capturing"
        self.began += 1
        if not self.breaks:
            yield
        else:
            self.breaks = False
            try:
                yield
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")
        self.current = before

    def wait(self) -> Made:
        if self.waiting == "error":
            raise RuntimeError("called a synchronizing CUDA operation\nmore")
        return Made({}, (), {})


def test_what_waits_is_found_out_before_it_breaks_a_recording(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = _FakeGraphs(monkeypatch)
    with pytest.raises(CannotBeRecorded, match=r"synchronizing CUDA operation$"):
        _as_graph(cuda.wait)
    assert (cuda.began, cuda.waiting) == (0, 0)


def test_a_broken_recording_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = _FakeGraphs(monkeypatch)
    works: list[Any] = []

    def work() -> Made:
        works.append(cuda.waiting)
        if cuda.began:
            raise RuntimeError("operation not permitted when stream is capturing")
        return Made({}, (), {})

    with pytest.raises(CannotBeRecorded, match="not permitted"):
        _as_graph(work)
    assert works == [0, 0, "error", 0]
    assert cuda.current == "own"
    assert cuda.ended == [(0, (0, 7)), (0, (0, 7))]
    assert cuda.began == 2, "one that ends takes the generator out of the broken one"


@pytest.mark.gpu
@pytest.mark.parametrize("wait", [Tensor.item, lambda _: torch.cuda.synchronize()])
def test_after_a_broken_recording_a_gpu_is_as_before(wait: Callable[[Tensor], Any]) -> None:
    def drawn() -> Made:
        return Made({"loss": torch.rand(1, device="cuda")}, (), {})

    def waits() -> Made:
        made = drawn()
        wait(made.losses["loss"])
        return made

    stream = torch.cuda.current_stream()
    with pytest.raises(CannotBeRecorded):
        _as_graph(waits)
    assert torch.cuda.current_stream() == stream
    assert 0 <= torch.rand(1, device="cuda").item() < 1
    torch.cuda.empty_cache()
    made, replay = _as_graph(drawn)
    torch.manual_seed(0)
    replay()
    first = made.losses["loss"].item()
    replay()
    assert made.losses["loss"].item() != first


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("plugin", _TRAINED, ids=helpers.named)
def test_a_graph_of_a_step_is_the_step(
    plugin: Plugin, precision: str, spec: EncoderSpec, tiny: Dataset
) -> None:
    spec, tiny = helpers.fitting(plugin, spec, tiny)
    hardware = replace(choose(precision), compiled=False)  # type: ignore[arg-type]
    data = replace(tiny, train=tiny.train.to(hardware.device))
    told: list[str] = []

    def fresh() -> setup.Trainer:
        method = helpers.build(plugin, spec).to(hardware.device).train()
        return setup.prepare(method, hardware, spec, data.train, 0, None)

    start = {name: value.detach() for name, value in fresh().method.named_parameters()}
    ours = trained(captured(fresh(), None, told), 8)
    for (loss, state), (expected_loss, expected) in zip(ours, trained(fresh(), 8), strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-3 if precision == "fp32" else 2e-2)
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-3)
    assert helpers.difference_of_moves(state, expected, start) < 0.2
    assert not told
