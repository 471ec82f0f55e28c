"""The state of a pre-training on disk, which all ranks write and resume from together."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_bench.distributed import collectives, strategy
from ssl_bench.runs import schema
from ssl_bench.training import resume
from ssl_bench.utils.files import atomic


def save(
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
    losses: Mapping[str, Sequence[Tensor]],
    folder: Path,
) -> None:
    """Write ``checkpoint.pt``, with the losses that ``metrics.jsonl`` does not count in yet."""
    state = {
        "step": step,
        "seconds": seconds,
        "losses": {
            name: collectives.mean(torch.stack(list(values))) for name, values in losses.items()
        },
        "method": strategy.full_state(method.state_dict()),
        "optimizer": strategy.full_state(optimizer.state_dict()),
    }
    if collectives.rank() == 0:
        resume.save(folder / schema.CHECKPOINT, state)


def read(folder: Path) -> dict[str, Any]:
    """The checkpoint of a run folder, nothing if there is none; records of later steps are removed.

    Raises:
        UserError: it cannot be read, or a rank does not see it.
    """
    path, metrics = folder / schema.CHECKPOINT, folder / schema.METRICS

    def load_first() -> dict[str, Any]:
        state = resume.load(path)
        if not state:
            metrics.unlink(missing_ok=True)
            return {}
        # Without its records, a training is resumed all the same; its curve begins later.
        text = metrics.read_text("utf-8", errors="replace") if metrics.exists() else ""
        lines = text.splitlines(keepends=True)
        with resume.readable(path), atomic(metrics) as temporary:
            kept = "".join(line for line in lines if _step_of(line) <= state["step"])
            temporary.write_text(kept, "utf-8")
        return state

    return resume.load_on_all(path, load_first)


def _step_of(line: str) -> float:
    """Of a record; infinite where the line is not whole."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except ValueError:
        return math.inf
