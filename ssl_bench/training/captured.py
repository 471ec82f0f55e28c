"""A step as one CUDA graph: its losses and their gradients, and its views, in a single launch.

A small encoder's step is thousands of short operations, and a GPU is done with each before Python
has sent the next one. They are recorded once, and replayed at every step with other images, other
draws and the weights as they are by then. What a loss computes in Python is recorded with its
value, so the graph is recorded anew whenever something that the loss reads of `Step`, or a number
or tensor among the model's own attributes and buffers, is another one than before; where that
happens at every step, or recording fails, operations are sent one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ssl_bench.api.step import Step
from ssl_bench.utils.rng import SampleRng, StaticKeys

_WARM_UPS = 3  # autograd, cuBLAS and compiled code set themselves up
_LEAST_STEPS = 3  # that a recording must serve

_NUMBERS = bool | int | float | str | None

Losses = Mapping[str, Tensor]
Stored = tuple[SampleRng, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Made:
    """What a step leaves behind: always in the same memory, once it is recorded.

    Attributes:
        losses: scalars by name.
        gradients: of each parameter that has one.
        attributes: what the loss has left in the model: tensors, or containers of some.
    """

    losses: Losses
    gradients: Sequence[tuple[torch.nn.Parameter, Tensor]]
    attributes: Mapping[str, Any]


Work = Callable[[], Made]
Record = Callable[[Work], tuple[Made, Callable[[], None]]]


class CapturedStep:
    """The losses and gradients of any step, from a recording.

    Args:
        model: what is trained, a `Method` for one.
        backward: given a step's draws and the tensors that its losses are made of, such as its
            images, adds the gradients to the parameters' and returns the losses.
        record: records work, whose memory it then fills at each replay.
        tell: is told why a step cannot be recorded.

    Attributes:
        why_not: why steps are not recorded any more; "" where they are.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        backward: Callable[[Stored, Step], Losses],
        tell: Callable[[str], None],
        record: Record | None = None,
    ) -> None:
        self._model, self._backward = model, backward
        self._record, self._tell = record or _as_graph, tell
        self._made: Made | None = None
        self._replay: Callable[[], None] | None = None
        self._known: Mapping[str, Any] = {}
        self._read: Mapping[tuple[Any, ...], Any] = {}
        self._holders: Sequence[torch.nn.Module] = ()
        self._served = 0
        self._has_begun = False
        self.why_not = ""

    def prepare(self, step: Step, stored: Stored) -> None:
        """Record the step if it is another one than was recorded; draws on torch's generators.

        But not the first one: the optimiser makes its state in it, which then is there before the
        recording's memory, and part of the peak.
        """
        has_begun, self._has_begun = self._has_begun, True
        if self.why_not or not has_begun:
            return
        changed = self._changes(step)
        if self._made and not changed:
            return
        if self._made and self._served < _LEAST_STEPS:
            self._give_up(
                f"its loss depends on {' and '.join(changed)}, which changes at every step"
            )
            return
        self._made = self._replay = None  # before their memory is needed again
        self._served = 0
        draws, tensors = stored
        self._keys = StaticKeys(draws.samples_B.device)
        self._samples_B = draws.samples_B.clone()
        copies = {id(each): each.clone() for each in _distinct(tensors)}
        self._tensors = list(copies.values())
        placed = tuple(copies[id(each)] for each in tensors)
        draws = replace(draws, samples_B=self._samples_B, keys=self._keys)
        watched = _WatchedStep(step)
        model, before = self._model, dict(vars(self._model))

        def work() -> Made:
            self._keys.rewind()
            model.zero_grad(set_to_none=True)
            vars(model).update(before)
            losses = self._backward((draws, placed), cast(Step, watched))
            left = {k: v for k, v in vars(model).items() if v is not before.get(k)}
            for name, value in left.items():
                if isinstance(value, _NUMBERS):
                    raise CannotBeRecorded(f"its loss changes {name}, a number of the model's own")
            gradients = [(each, each.grad) for each in model.parameters() if each.grad is not None]
            return Made(losses, gradients, left)

        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        try:
            self._made, self._replay = self._record(work)
        except CannotBeRecorded as error:
            self._give_up(str(error))
        for buffer, value in buffers:  # such as the running means of batch norms
            buffer.copy_(value)
        for name in vars(model).keys() - before.keys():
            delattr(model, name)
        vars(model).update(before)
        model.zero_grad(set_to_none=True)
        self._read = watched.read
        self._holders = [module for module in model.modules() if module._buffers]
        self._known = self._state()

    def _changes(self, step: Step) -> list[str]:
        """What is another one than when the step was recorded."""
        now = self._state() if self._made else {}
        read = [f"the step's {k[0]}" for k, value in self._read.items() if _of(step, *k) != value]
        return read + [name for name, value in self._known.items() if now.get(name) != value]

    def _state(self) -> dict[str, Any]:
        """The model's own numbers, and where its tensors lie, but for those that its loss sets."""
        left = self._made.attributes if self._made else {}
        found = {name: value for name, value in vars(self._model).items() if name not in left}
        for number, module in enumerate(self._holders):  # found once: modules are many
            found |= {f"{name} ({number})": value for name, value in module._buffers.items()}
        return {
            name: value.data_ptr() if isinstance(value, Tensor) else value
            for name, value in found.items()
            if isinstance(value, Tensor | _NUMBERS)
        }

    def take(self, step: Step, stored: Stored) -> Losses:
        """Set the gradients of the step's losses, and return these; call `prepare` before."""
        draws, tensors = stored
        if not self._made:
            return self._backward(stored, step)
        self._keys.fill(draws.step)
        self._samples_B.copy_(draws.samples_B)
        for place, each in zip(self._tensors, _distinct(tensors), strict=True):
            place.copy_(each)
        assert self._replay
        self._replay()
        self._served += 1
        for parameter, gradient in self._made.gradients:
            parameter.grad = gradient
        vars(self._model).update(self._made.attributes)
        return {name: loss.clone() for name, loss in self._made.losses.items()}

    def _give_up(self, why: str) -> None:
        self.why_not, self._made, self._replay = why, None, None
        self._tell(f"a step cannot be recorded as a CUDA graph, and takes longer so: {why}")


class _WatchedStep:
    """A step that remembers what was read of it, and what its methods returned."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.read: dict[tuple[Any, ...], Any] = {}

    def __getattr__(self, name: str) -> Any:
        if callable(getattr(self._step, name)):
            return partial(self._note, name)
        return self._note(name)

    def _note(self, *asked: Any) -> Any:
        value = self.read[asked] = _of(self._step, *asked)
        return value


def _of(step: Step, name: str, *arguments: Any) -> Any:
    """An attribute of a step, or what a method of it returns."""
    value = getattr(step, name)
    return value(*arguments) if callable(value) else value


def _distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor once: views of a split in memory are made of the same one."""
    return list({id(each): each for each in tensors}.values())


class CannotBeRecorded(Exception):
    """Work is not the same operations each time; the text says why."""


def _as_graph(work: Work) -> tuple[Made, Callable[[], None]]:
    """Record work as a CUDA graph.

    Raises:
        CannotBeRecorded: it waits for the GPU, or copies something there from the CPU.
    """
    stream, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(stream)
    try:
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS - 1):
                work()
            with _waiting_refused():
                work()
    finally:
        stream.wait_stream(side)
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    try:
        # Threads that decode images may allocate memory meanwhile.
        with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
            made = work()
    except RuntimeError as error:
        _end_broken_recording(stream, pool)
        first: BaseException = error
        while first.__context__:  # what went wrong, and not that the recording had to end
            first = first.__context__
        raise CannotBeRecorded(str(first).partition("\n")[0]) from error
    return made, graph.replay


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Find out what waits for the GPU before it breaks a recording.

    Raises:
        CannotBeRecorded: something does.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():  # that torch does not see all that waits
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        raise CannotBeRecorded(str(error).partition("\n")[0]) from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _end_broken_recording(stream: torch.cuda.Stream, pool: Any) -> None:
    """Take the stream, the allocator and the generator out of a recording that broke.

    Where CUDA refuses to end it, torch 2.11 leaves them as they were in it: random numbers could
    not be drawn any more, memory not be given back, and nothing else be recorded.
    """
    torch.cuda.set_stream(stream)
    with suppress(RuntimeError, AttributeError):  # the recording has ended by itself
        torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        torch._C._cuda_releasePool(stream.device_index, pool)
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device=stream.device)
