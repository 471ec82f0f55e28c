"""The tools that ``--log`` names: each sends a run's numbers and pictures to one.

Where a tool is, and whether it is offline, its own environment variables say.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ssl_bench.errors import require

SECONDS_TO_FINISH = 60.0
_PROJECT = "ssl-bench"


@dataclass
class Sent:
    """What a tool has of a run, in ``sent.json``.

    Attributes:
        run: the tool's own name of the run; "" before it has one.
        step: of the last line of ``metrics.jsonl``.
        files: scores and pictures, by their paths in the run folder.
    """

    run: str = ""
    step: int = 0
    files: tuple[str, ...] = ()


def check(names: Sequence[str]) -> None:
    """Require the package of each logger, which has its name.

    Raises:
        UserError: one is not installed.
    """
    for name in names:
        spec = find_spec(name)
        require(
            bool(spec and spec.origin),  # a folder here that has its name has none
            f"--log {name} needs a package that is not installed; "
            f"run: pip install 'ssl-bench[{name}]'",
        )


class Tool(Protocol):
    """What sends a run to a tool; the first time it sets ``sent.run``."""

    def __init__(self, folder: Path, config: Mapping[str, Any], sent: Sent) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers by name."""

    def picture(self, step: int, path: Path) -> None:
        """Send a PNG file."""

    def finish(self, failed: bool) -> None:
        """End the run, for now."""


class _TensorBoard:
    """Event files in the run folder: ``tensorboard --logdir RUNS_DIR`` finds those of all runs."""

    def __init__(self, folder: Path, config: Mapping[str, Any], sent: Sent) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Readers leave out later steps, which a process wrote that was killed before it noted them.
        purged = sent.step + 1 if sent.run else 0
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purged)
        if not sent.run:
            self._writer.add_text("run", f"```\n{json.dumps(config, indent=2)}\n```", 0)
        sent.run = folder.name

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, step: int, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(path.stem, pixels, step, dataformats="HWC")
        self._writer.flush()

    def finish(self, failed: bool) -> None:
        self._writer.close()


class _WandB:
    """Weights & Biases; with ``WANDB_MODE=offline`` it stays here, for ``wandb sync``."""

    def __init__(self, folder: Path, config: Mapping[str, Any], sent: Sent) -> None:
        import wandb

        os.environ.setdefault("WANDB_FINISH_TIMEOUT", f"{SECONDS_TO_FINISH:g}")
        sent.run = sent.run or secrets.token_hex(4)
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=sent.run,
            name=folder.name,
            notes=f"run folder: {config['run_folder']}",
            config=dict(config),
            resume="allow",
            settings=wandb.Settings(console="off"),
        )
        # Its own steps only ever grow, and evaluations on the way belong to steps that are past.
        self._run.define_metric("*", step_metric="step")
        if self._run.resumed:  # what the server has; a killed process may not have sent all
            sent.step = min(sent.step, self._run.step - 1)
        self._row = max(sent.step + len(sent.files), self._run.step - 1)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._row = max(self._row + 1, step)
        self._run.log({**values, "step": step}, step=self._row)

    def picture(self, step: int, path: Path) -> None:
        self.log(step, {path.stem: self._image(str(path))})

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _MLflow:
    """MLflow, where ``MLFLOW_TRACKING_URI`` says; by default in the current folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any], sent: Sent) -> None:
        import mlflow
        import pandas as pd

        self._client, self._metric = mlflow.MlflowClient(), mlflow.entities.Metric
        if sent.run:
            self._client.update_run(sent.run, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            experiment = mlflow.set_experiment(name).experiment_id
            made = self._client.create_run(experiment, run_name=folder.name)
            sent.run = made.info.run_id
            self._client.set_tag(sent.run, "run_folder", config["run_folder"])
            flat = pd.json_normalize(dict(config)).iloc[0].items()
            params = [mlflow.entities.Param(name, str(value)[:500]) for name, value in flat]
            for start in range(0, len(params), 100):  # as many as a request may have
                self._client.log_batch(sent.run, params=params[start : start + 100])
        self._id = sent.run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        named = [(re.sub(r"[^\w./ -]", "_", name), value) for name, value in values.items()]
        metrics = [self._metric(name, value, now, step) for name, value in named]
        self._client.log_batch(self._id, metrics=metrics)

    def picture(self, step: int, path: Path) -> None:
        self._client.log_artifact(self._id, str(path), "figures")

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


class _Trackio:
    """Trackio, in the folder ``TRACKIO_DIR`` or in the Space ``TRACKIO_SPACE_ID``."""

    def __init__(self, folder: Path, config: Mapping[str, Any], sent: Sent) -> None:
        import trackio

        sent.run = sent.run or f"{folder.name}-{secrets.token_hex(2)}"
        self._image = trackio.Image
        self._run = trackio.init(
            _PROJECT, name=sent.run, config=dict(config), resume="allow", embed=False
        )

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        self.log(step, {path.stem: self._image(str(path))})

    def finish(self, failed: bool) -> None:
        self._run.finish()


TOOLS: Mapping[str, type[Tool]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
    "trackio": _Trackio,
}
