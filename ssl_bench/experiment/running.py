"""``ssl-bench run``: one run, from its settings to its scores."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ssl_bench.api.method import Method
from ssl_bench.config.presets import SIZED_FOR
from ssl_bench.config.settings import Settings
from ssl_bench.data import Dataset
from ssl_bench.data.names import resolved, several
from ssl_bench.distributed import collectives, strategy
from ssl_bench.distributed.device import Hardware
from ssl_bench.errors import require
from ssl_bench.evaluation import runner
from ssl_bench.experiment import conclusion, log_follower, loggers
from ssl_bench.experiment.evaluating import check_ranks, draw_evaluations, shown
from ssl_bench.experiment.loading import RunData, console, data_of, note, note_coarse, say_images
from ssl_bench.experiment.preparation import Prepared, memory_noted, prepare_run, snapshot_steps
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.runs import run_folder, schema
from ssl_bench.runs.schema import Plan, is_trained
from ssl_bench.training import budget, pretrain, setup
from ssl_bench.training.schedule import Schedule
from ssl_bench.utils.files import make_inside
from ssl_bench.utils.formatting import many

_IMAGES_IN_PICTURE, _CLIPS_IN_PICTURE = 10, 3


@dataclass(frozen=True)
class Run:
    """A run that is done.

    Attributes:
        folder: the run folder.
        records: each evaluation asked for, as in its ``scores.json``.
        conclusion: what it shows, in sentences, and what to do next.
    """

    folder: Path
    records: Sequence[runner.Record]
    conclusion: Sequence[str] = ()


def run(config: RunConfig, datasets: RunData | None = None, expected: str = "") -> Run:
    """Pre-train, evaluate, show: ``ssl-bench run``. What is done already is not done again.

    Args:
        datasets: what `data_of` gives, where they are there already.
        expected: the run's name, where it was found out before.

    Raises:
        UserError: the settings do not fit together, the data cannot be used, or it would be another
            run than was expected.
    """
    settings, plugin = config.settings, config.method
    check_ranks(settings)
    loggers.check(settings.log)
    datasets = datasets or data_of(config)
    data = datasets.training
    with memory_noted(config):
        prepared = prepare_run(config, datasets, expected)
    config = prepared.config
    spec, hardware = prepared.spec, prepared.hardware
    eval_source = ",".join(map(resolved, several(settings.eval_data or "")))
    facts = {
        "preset": settings.preset,
        "budget": prepared.budget,
        "method_code": plugin.fingerprint,
        "data_source": data.source,
        **({"eval_data_source": eval_source} if eval_source else {}),
        **({"skip_broken": True, "broken": data.broken} if settings.skip_broken else {}),
    }
    names = collectives.gather_objects(prepared.plan.name)
    require(
        len(set(names)) == 1,
        f"processes are about to make different runs, {names[0]!r} and others; do all machines see "
        "the same data and the same code?",
    )

    def create() -> tuple[Plan, Path]:
        with budget.settled(prepared.budget, prepared.plan, settings.runs_dir) as plan:
            found = {**plan.to_json(), "identity": plan.identity}
            content = {**config.to_json(), **found, **facts}
            folder = run_folder.create(settings.runs_dir, plan.name, content)
            run_folder.call(folder, settings.name, settings.tags)
            return plan, folder

    plan, folder = collectives.on_rank_zero(create)
    _announce(plan, spec, data, hardware, settings)
    if prepared.budget is None and plan.epochs not in (0, config.epochs_on()):
        usual = many(config.epochs_on(), "epoch")
        console.print(
            f"{many(plan.epochs, 'epoch')}, for as many steps as {usual} "
            f"of {SIZED_FOR:,} images take; --epochs says otherwise",
            soft_wrap=True,
        )
    if plan.epochs and plan.batch_size != config.batch_on():
        console.print(
            f"batches of {plan.batch_size} instead of {config.batch_on()}, as there are "
            f"{len(data.train):,} training images; --batch-size says otherwise",
            soft_wrap=True,
        )
    for eval_data in datasets.evaluations:
        if eval_data is not data or len(datasets.evaluations) > 1:
            console.print("evaluated on ", end="")
            say_images(eval_data)
    for line in prepared.left_out:
        note(line)
    for each in prepared.evaluated:
        if each.evals or each.on_the_way:
            note_coarse(each.data)
    steps = Schedule(len(data.train), plan.batch_size, plan.epochs).steps if plan.epochs else 0
    if 0 < steps < conclusion.FEW_STEPS:
        note(conclusion.few(steps))
    console.print(f"recipe: {prepared.recipe}", soft_wrap=True)
    with (
        run_folder.recorded_as(config.command()),
        collectives.rank_zero_only(run_folder.locked(folder, settings.wait)),
        collectives.rank_zero_only(log_follower.following(folder, settings.log)),
    ):
        snapshots = snapshot_steps(settings, plan, prepared.method, data)
        method = _trained(prepared, data, plan, folder, settings, snapshots)
        collectives.on_rank_zero(lambda: _draw(method, data, plan, spec, folder))
        with collectives.rank_zero_only(run_folder.failures_noted(folder)):
            where = plan.seed, hardware, settings.runs_dir
            found = (
                runner.evaluate_run(folder, each.evals, each.data, *where, settings.keep_features)
                for each in prepared.evaluated
            )
            records = shown(plan.method, plan.data, chain.from_iterable(found))
            collectives.on_rank_zero(lambda: draw_evaluations(folder))
            for step in snapshots:
                home = pretrain.snapshot_folder(folder, step)
                for each in prepared.evaluated:
                    on = f"{each.data.name}: " if len(prepared.evaluated) > 1 else ""
                    for record in runner.evaluate_run(
                        home, each.on_the_way, each.data, *where, keep_features=False
                    ):
                        console.print(f"step {step:,}: {on}{runner.in_words(record)}")
    console.print(f"run folder: {folder}", soft_wrap=True)
    return Run(folder, records, _conclusion(config, plan, steps, folder, records) if steps else [])


def _conclusion(
    config: RunConfig, plan: Plan, steps: int, folder: Path, records: Sequence[runner.Record]
) -> list[str]:
    cost = schema.peek(folder / schema.COST)
    seconds = cost.get("seconds")  # of all devices together
    pace = steps * cost.get("devices", 1) / seconds if seconds else None
    return [
        " ".join(conclusion.sentences(plan.method, records, steps, pace)),
        *(
            f"{what}: `{command}`"
            for what, command in conclusion.next_commands(config, plan.epochs, plan.name).items()
        ),
    ]


def _trained(
    prepared: Prepared,
    data: Dataset,
    plan: Plan,
    folder: Path,
    settings: Settings,
    snapshots: Sequence[int],
) -> Method:
    """Pre-train the method, unless that is done already; on rank 0 it is whole then.

    Raises:
        UserError: it was trained without the encoders on the way that are wanted.
    """
    method, ranks, is_first = prepared.method, collectives.world_size(), collectives.rank() == 0
    whole = copy.deepcopy(method) if ranks > 1 and is_first else method  # training may shard it
    if collectives.broadcast(is_trained(folder)):
        console.print("pre-trained already: reused")
        homes = {step: pretrain.snapshot_folder(folder, step) for step in snapshots}
        missing = collectives.broadcast([s for s, home in homes.items() if not is_trained(home)])
        require(
            not missing,
            f"run {folder.name!r} was trained without --eval-every {settings.eval_every}, and its "
            f"encoder of step {missing and missing[0]} is not there; another --runs-dir would "
            "train it again",
        )
        if is_first:
            setup.restore(whole, folder)
        return whole
    used = {"devices": ranks, "nodes": settings.nodes, "strategy": strategy.strategy()}
    hardware = prepared.hardware
    collectives.on_rank_zero(lambda: run_folder.record_environment(folder, hardware.name, used))
    noted = collectives.rank_zero_only(run_folder.failures_noted(folder))
    with noted, memory_noted(prepared.config):
        cost = pretrain.pretrain(
            method, data, plan, folder, hardware, settings.micro_batch_size, snapshots
        )
    console.print(
        f"pre-trained: {cost['images_seen']:,} images seen, {cost['flops']:.3g} FLOPs, "
        f"{cost['seconds']:.0f} {'s' if ranks == 1 else 'device-seconds'}, "
        f"peak memory {cost['peak_memory_mib']:,} MiB"
    )
    if "collapsed" in cost:
        note(f"the training has collapsed: {cost['collapsed']}")
    if ranks > 1 and is_first:
        setup.restore(whole, folder)
    return whole


def _announce(
    plan: Plan, spec: EncoderSpec, data: Dataset, hardware: Hardware, settings: Settings
) -> None:
    ranks = settings.devices * settings.nodes
    machines = f" on {settings.nodes} machines" if settings.nodes > 1 else ""
    kind = "patches" if spec.frames == 1 else "tubelets of 2 frames and"
    patches = f" in {spec.patches} {kind} of {spec.patch_size} px" if spec.patch_size else ""
    console.print(f"{plan.method} on ", end="")
    say_images(data)
    encoder = f"{spec.backbone}, {spec.image_size} px{patches}"
    if spec.text:
        what = spec.backbone if spec.is_text else f"{encoder}, and text"
        words = f"{spec.text.size:,} words, texts of {spec.text.max_tokens} tokens"
        encoder = f"{what} in {spec.text.depth} layers of {spec.text.width}, {words}"
    console.print(
        f"images {data.storage}\n"
        f"{encoder}; "
        f"{many(plan.epochs, 'epoch')} of batch {plan.batch_size}, seed {plan.seed}\n"
        f"{f'{ranks} processes{machines} ({strategy.strategy()}), each ' if ranks > 1 else ''}"
        f"{hardware.name}, {hardware.precision}{', compiled' if hardware.compiled else ''}"
    )
    if data.note:
        note(f"{plan.data}: {data.note}")


def _draw(method: Method, data: Dataset, plan: Plan, spec: EncoderSpec, folder: Path) -> None:
    """The loss curve, and whatever pictures the method has of the first test images."""
    from ssl_bench.experiment import figures  # a second that the first step need not wait for

    title = f"{plan.method} on {plan.data}, {many(plan.epochs, 'epoch')}, seed {plan.seed}"
    if (folder / schema.METRICS).exists() and not (folder / "figures/loss.png").exists():
        make_inside(folder, folder / schema.FIGURES)
        figures.loss_curve(folder / schema.METRICS, title, folder / "figures/loss.png")
        console.print(f"loss curve: {folder / 'figures/loss.png'}", soft_wrap=True)
    output = folder / "figures/pictures.png"
    if not output.exists():
        count = _IMAGES_IN_PICTURE if spec.frames == 1 else _CLIPS_IN_PICTURE
        rows = setup.pictures(method, data, spec, plan.seed, count)
        if rows:
            make_inside(folder, folder / schema.FIGURES)
            figures.picture_rows(rows, spec, f"{title}: test images", output)
            console.print(f"pictures: {output}", soft_wrap=True)
