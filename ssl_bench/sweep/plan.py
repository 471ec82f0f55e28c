"""From cells to what is known of them before they run: run folder, evaluations, cost.

FLOPs are counted, and the time is what earlier runs took.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from ssl_bench.config.sweep_settings import ClusterSettings, SweepSettings
from ssl_bench.distributed.device import choose
from ssl_bench.errors import UserError, require
from ssl_bench.evaluation import runner
from ssl_bench.experiment import loading
from ssl_bench.experiment.conclusion import FEW_STEPS
from ssl_bench.experiment.preparation import Evaluated, RunData, memory_noted, prepare_run
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.runs import index
from ssl_bench.runs.index import Index
from ssl_bench.runs.schema import Plan
from ssl_bench.sweep.grid import Cell
from ssl_bench.sweep.manifest import Entry, Stage
from ssl_bench.training import flops
from ssl_bench.training.schedule import Schedule
from ssl_bench.utils import progress
from ssl_bench.utils.formatting import many


@dataclass(frozen=True)
class _Training:
    """What cells that differ in the seed alone would train, with the seed of one of them."""

    plan: Plan
    steps: int
    flops: int
    seconds: float | None
    evaluated: Sequence[Evaluated]


@dataclass(frozen=True)
class Work:
    """What is to be submitted of a cell.

    Attributes:
        stages: one after the other.
        after: the job under way that comes before them, if any.
    """

    entry: Entry
    stages: tuple[Stage, ...]
    after: str | None = None


@dataclass
class Planner:
    """Plans cells, each data set read and each kind of step counted once.

    Attributes:
        paces: what the times of the planned cells follow from, for a person.
    """

    settings: SweepSettings
    resources: ClusterSettings
    runs_dir: Path
    paces: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._load = lru_cache(maxsize=2)(loading.load)
        self._trainings: dict[str, _Training] = {}
        has_runs = any(self.runs_dir.glob("*/config.json"))
        self._index = index.load(self.runs_dir) if has_runs else None

    def entries(self, cells: Sequence[Cell]) -> list[Entry]:
        """What each cell would do.

        Raises:
            UserError: one is impossible.
        """
        planned = []
        with progress.bar("plan", len(cells)) as bar:
            for cell in cells:
                try:
                    planned.append(self._entry(cell, self._complete(cell.config)))
                except UserError as error:
                    raise UserError(f"cell {cell.label!r} is impossible: {error}") from error
                bar.update(len(planned), cell.label)
        return planned

    def notes(self, work: Iterable[Work]) -> list[str]:
        """What to know about the times and lengths of what is to be done."""
        known, unknown = False, False
        short: list[Entry] = []
        for each in work:
            if "pretrain" in each.stages and 0 < each.entry.steps < FEW_STEPS:
                short.append(each.entry)
            seconds = {
                "pretrain": each.entry.pretrain_seconds,
                "evaluate": each.entry.eval_seconds,
            }
            unknown = unknown or any(seconds[stage] is None for stage in each.stages)
            known = known or ("pretrain" in each.stages and bool(seconds["pretrain"]))
        found = [f"time by the pace of {'; '.join(self.paces)}"] if known else []
        if unknown:
            found.append(
                "? is a time that is not known before something like it has finished in "
                f"{str(self.runs_dir)!r}; after a first cell, the same command tells it"
            )
        if short:
            least, most = (which(each.steps for each in short) for which in (min, max))
            steps = f"{least} steps" if least == most else f"{least} to {most} steps"
            why = "; trials as short choose what moves least" * any(e.trial for e in short)
            found.append(
                f"{many(len(short), 'cell')} of {steps}, and an encoder hardly moves in fewer than "
                f"{FEW_STEPS}{why}"
            )
        return found

    def _entry(self, cell: Cell, config: RunConfig) -> Entry:
        settings = config.settings
        require(
            not settings.budget_time,
            "--budget-time is measured by each run for itself, which then is another run than was "
            "planned; --budget-flops would work",
        )
        datasets = loading.data_of(config, self._load)
        training = self._training(config, datasets)
        plan = replace(training.plan, seed=settings.seed)
        evals: dict[str, str] = {}
        seconds: list[float | None] = []
        for each in training.evaluated:
            data = each.data
            seconds.append(
                _evaluation_seconds([p.name for p in each.evals], data.name, self._index)
            )
            for plugin, own in each.evals.items():
                name = f"{plugin.name} on {data.name}" if plugin.name in evals else plugin.name
                how = plan.seed, plan.precision, plan.encoder.is_text
                evals[name] = runner.folder_name(plugin, own, data, *how)
        return Entry(
            label=cell.label,
            config=config.to_json(),
            run=plan.name,
            evals=evals,
            steps=training.steps,
            batch_size=plan.batch_size,
            flops=training.flops,
            pretrain_seconds=training.seconds,
            eval_seconds=None if None in seconds else sum(filter(None, seconds)),
            trial=cell.trial is not None,
        )

    def _training(self, config: RunConfig, datasets: RunData) -> _Training:
        """What a cell and all that differ from it in the seed would train; checked once for all."""
        first = replace(config.settings, seed=0)
        alike = repr(replace(config, settings=first))
        if alike not in self._trainings:
            with memory_noted(config):
                prepared = prepare_run(config, datasets)
            plan, method = prepared.plan, prepared.method
            steps = 0
            if method.trains:
                count = len(datasets.training.train)
                steps = Schedule(count, plan.batch_size, plan.epochs).steps
            spec = plan.encoder
            counted = steps * flops.of_step(method, spec, plan.batch_size)
            pace = _pace(plan, self._index) if counted else None
            if pace:
                self.paces[pace.basis] = None
            seconds = counted / pace.rate if pace else None if counted else 0.0
            self._trainings[alike] = _Training(plan, steps, counted, seconds, prepared.evaluated)
        return self._trainings[alike]

    def _complete(self, config: RunConfig) -> RunConfig:
        """The config with the precision, which would else depend on the machine that reads it."""
        if config.settings.precision != "auto":
            return config
        precision = "bf16" if self.resources.gpus else choose().precision
        return config.with_values({"precision": precision})


@dataclass(frozen=True)
class _Pace:
    """How fast something was done before.

    Attributes:
        rate: FLOPs a second on one device.
        basis: which runs tell, for a person.
    """

    rate: float
    basis: str


def _pace(plan: Plan, index: Index | None) -> _Pace | None:
    """How fast runs most like this one went, on the device that was used last.

    Of the same method, backbone and precision; else the same backbone and precision; else the same
    precision; None where there is none.
    """
    if index is None:
        return None
    done = index.runs
    done = done[(done["state"] == "trained") & (done["flops"] > 0) & (done["seconds"] > 0)]
    if done.empty:
        return None
    backbone = plan.encoder.backbone
    is_like = done["settings"].map(lambda text: json.loads(text).get("backbone") == backbone)
    is_precise = done["precision"] == plan.precision
    for which, words in (
        (is_like & is_precise & (done["method"] == plan.method), f"{plan.method}, {backbone}"),
        (is_like & is_precise, backbone),
        (is_precise, "another backbone"),
    ):
        like = done[which]
        if len(like):
            device = like.sort_values("started", na_position="first")["device"].iloc[-1]
            like = like[like["device"] == device]
            rate = float((like["flops"] / like["seconds"]).median())
            return _Pace(
                rate, f"{many(len(like), 'run')} of {words} in {plan.precision} on {device}"
            )
    return None


def _evaluation_seconds(names: Sequence[str], data: str, index: Index | None) -> float | None:
    """How long those evaluations took on that data set before; None where one is new there."""
    if not names:
        return 0.0
    if index is None:
        return None
    known = index.scores
    known = known[known["is_headline"].astype(bool) & (known["evaluated_on"] == data)]
    total = 0.0
    for name in names:
        took = known.loc[known["eval"] == name, "eval_seconds"].dropna()
        if took.empty:
            return None
        total += float(took.median())
    return total
