"""What each command does, once its flags are understood."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssl_bench import data as datasets
from ssl_bench.api.method import Method
from ssl_bench.config.settings import EvalSettings, PrepareSettings, Settings, Storage
from ssl_bench.data import Dataset
from ssl_bench.data.listing import Listing, counted
from ssl_bench.data.names import EMBEDDED, base, resolved
from ssl_bench.distributed import collectives, strategy
from ssl_bench.distributed.device import Hardware, choose
from ssl_bench.errors import require
from ssl_bench.evaluation import runner
from ssl_bench.experiment import audit
from ssl_bench.experiment.preparation import (
    RunData,
    prepare_run,
    snapshot_steps,
    with_labels,
    with_real_configs,
)
from ssl_bench.experiment.run_config import EvalConfig, RunConfig
from ssl_bench.models import checkpoints, encoders, weights
from ssl_bench.models.architecture import Hints
from ssl_bench.models.encoders import EncoderSpec
from ssl_bench.runs import run_folder, schema
from ssl_bench.runs.schema import Plan
from ssl_bench.training import budget as budgets
from ssl_bench.training import pretrain
from ssl_bench.utils import progress
from ssl_bench.utils.files import make_inside, readable
from ssl_bench.utils.terminal import Console

_IMAGES_IN_PICTURE = 10
_BROKEN_SHOWN = 10
console = Console()


@dataclass(frozen=True)
class Run:
    """A run that is done.

    Attributes:
        folder: the run folder.
        records: each evaluation asked for, as in its ``scores.json``.
    """

    folder: Path
    records: Sequence[runner.Record]


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
    ranks = _ranks(settings)
    datasets = datasets or data_of(config)
    data, eval_data = datasets
    prepared = prepare_run(config, datasets, expected)
    config = prepared.config
    spec, method, hardware = prepared.spec, prepared.method, prepared.hardware
    facts = {
        "preset": settings.preset,
        "budget": prepared.budget,
        "method_code": plugin.fingerprint,
        "data_source": data.source,
        **({"eval_data_source": resolved(settings.eval_data)} if settings.eval_data else {}),
        **({"skip_broken": True, "broken": data.broken} if settings.skip_broken else {}),
    }
    names = collectives.gather_objects(prepared.plan.name)
    require(
        len(set(names)) == 1,
        f"processes are about to make different runs, {names[0]!r} and others; do all machines see "
        "the same data and the same code?",
    )

    def create() -> tuple[Plan, Path]:
        with budgets.settled(prepared.budget, prepared.plan, settings.runs_dir) as plan:
            content = {**config.to_json(), **asdict(plan), "identity": plan.identity, **facts}
            return plan, run_folder.create(settings.runs_dir, plan.name, content)

    plan, folder = collectives.on_rank_zero(create)
    _announce(plan, spec, data, hardware, settings)
    if eval_data is not data:
        console.print("evaluated on ", end="")
        _say_images(eval_data)
    for line in prepared.left_out:
        _note(line)
    console.print(f"recipe: {prepared.recipe}", soft_wrap=True)
    is_first = collectives.rank() == 0
    # What is drawn in the end must be whole, and training may shard the method.
    shown = copy.deepcopy(method) if ranks > 1 and is_first else method
    with collectives.rank_zero_only(run_folder.locked(folder, settings.wait)):
        snapshots = snapshot_steps(settings, plan, method, data)
        if collectives.broadcast(schema.is_trained(folder)):
            console.print("pre-trained already: reused")
            homes = {step: pretrain.snapshot_folder(folder, step) for step in snapshots}
            missing = collectives.broadcast(
                [s for s, home in homes.items() if not schema.is_trained(home)]
            )
            require(
                not missing,
                f"run {folder.name!r} was trained without --eval-every {settings.eval_every}, and "
                f"its encoder of step {missing and missing[0]} is not there; another --runs-dir "
                "would train it again",
            )
            if is_first:
                pretrain.restore(shown, folder)
        else:
            used = {"devices": ranks, "nodes": settings.nodes, "strategy": strategy.strategy()}
            collectives.on_rank_zero(
                lambda: run_folder.record_environment(folder, hardware.name, used)
            )
            with collectives.rank_zero_only(run_folder.failures_noted(folder)):
                cost = pretrain.pretrain(
                    method, data, plan, folder, hardware, settings.micro_batch_size, snapshots
                )
            console.print(
                f"pre-trained: {cost['images_seen']:,} images seen, {cost['flops']:.3g} FLOPs, "
                f"{cost['seconds']:.0f} {'s' if ranks == 1 else 'device-seconds'}, "
                f"peak memory {cost['peak_memory_mib']:,} MiB"
            )
            if ranks > 1 and is_first:
                pretrain.restore(shown, folder)
        collectives.on_rank_zero(lambda: _draw(shown, data, plan, spec, folder))
        with collectives.rank_zero_only(run_folder.failures_noted(folder)):
            records = _shown(
                plan.method,
                plan.data,
                runner.evaluate_run(
                    *(folder, config.evals, eval_data, plan.seed, hardware),
                    settings.runs_dir,
                    settings.keep_features,
                ),
            )
            for step in snapshots:
                home = pretrain.snapshot_folder(folder, step)
                for record in runner.evaluate_run(
                    *(home, config.evals_on_the_way, eval_data, plan.seed, hardware),
                    settings.runs_dir,
                    keep_features=False,
                ):
                    console.print(f"step {step:,}: {runner.in_words(record)}")
    console.print(f"run folder: {folder}", soft_wrap=True)
    return Run(folder, records)


def evaluate(config: EvalConfig) -> Path:
    """Evaluate a run or a file of weights: ``ssl-bench eval``.

    Returns:
        The folder with the results; for a file of weights, a new one under the runs' folder.

    Raises:
        UserError: there is no such run or file, or it does not hold an encoder.
    """
    config = with_real_configs(config)
    settings = config.settings
    _ranks(settings)
    hardware = choose(settings.precision)
    folder, plan = collectives.on_rank_zero(lambda: _evaluated(settings))
    data_source = settings.data or plan.get("eval_data_source") or plan["data_source"]
    size = plan["encoder"]["image_size"]
    skip = settings.skip_broken or (not settings.data and bool(plan.get("skip_broken")))
    data = load(data_source, size, settings.data_dir, settings.storage, skip)
    evals, _ = with_labels(config.evals, data, by_name=True, way_out="--data LABELLED")
    _say_images(data)
    seed = plan["seed"] if settings.seed is None else settings.seed
    spec = EncoderSpec.of(plan["encoder"])
    evals, left_out = audit.supported(spec, evals, data, seed, hardware)
    for line in left_out:
        _note(line)
    recipe = audit.evaluations(spec, evals, seed, hardware)
    if recipe:
        console.print(f"recipe: {'; '.join(recipe)}", soft_wrap=True)
    with collectives.rank_zero_only(run_folder.locked(folder, settings.wait)):
        keep = settings.keep_features
        found = runner.evaluate_run(folder, evals, data, seed, hardware, folder.parent, keep)
        _shown(plan["method"], plan["data"], found)
    console.print(f"run folder: {folder}", soft_wrap=True)
    return folder


def _ranks(settings: Settings | EvalSettings) -> int:
    """How many processes there are, which `launcher.on_devices` has started."""
    ranks = settings.devices * settings.nodes
    require(
        collectives.world_size() == ranks,
        f"devices {settings.devices} and nodes {settings.nodes}: only `ssl-bench run` and "
        "`ssl-bench eval` work on several; 1 would work here",
    )
    return ranks


def _evaluated(settings: EvalSettings) -> tuple[Path, dict[str, Any]]:
    """The folder of what is to be evaluated, and its plan."""
    source = settings.weights or settings.target
    if settings.weights or checkpoints.is_foreign(source):
        _say_data(settings, source, None)
        folder = _import_weights(source, settings, {})
    else:
        folder = run_folder.find_trained(settings.runs_dir, source, settings.wait)
        plan = schema.plan_of(folder)
        _say_data(settings, source, plan["data_source"])
        if settings.image_size not in (None, plan["encoder"]["image_size"]):
            folder = _import_weights(str(folder), settings, plan)
    return folder, schema.plan_of(folder)


def prepare(settings: PrepareSettings) -> None:
    """Write a data set once as files that are read fast: ``ssl-bench data prepare``.

    Raises:
        UserError: there is no such data set, an image cannot be read, or the folder exists or
            cannot be written.
    """
    from ssl_bench.data.prepare import prepare

    assert settings.output is not None
    place = base(settings.source)
    require(
        place != EMBEDDED,
        f"data set {EMBEDDED!r} is inside the package, ready to be used",
    )
    source = Path(place).expanduser().resolve()
    require(
        source not in settings.output.expanduser().resolve().parents,
        f"output {str(settings.output)!r} lies in {settings.source!r} and would become a part of "
        "it; a folder beside it would work",
    )
    listing = datasets.list_images(settings.source, settings.data_dir)
    _say_images(listing)
    with progress.bar(f"prepare {readable(settings.source)}", 1) as bar:
        written = prepare(
            listing,
            settings.output,
            settings.short_side,
            settings.quality,
            bar.of,
            settings.skip_broken,
        )
    left_out = counted(listing.left_out)
    for note in (*written.caveats, *filter(None, [left_out]), *_some(written.broken)):
        _note(f"{listing.name}: {note}")
    console.print(
        f"{written.count - written.reduced:,} images copied as they are, {written.reduced:,} made "
        "smaller"
    )
    console.print(f"data: {readable(settings.output)}", soft_wrap=True)


def load(
    source: str,
    image_size: int | None,
    data_dir: Path,
    storage: Storage = "auto",
    skip_broken: bool = False,
) -> Dataset:
    """A data set by name or path, while a progress bar shows. Rank 0 comes first: it downloads."""

    def read() -> Dataset:
        with progress.bar(f"read {readable(source)}", 1) as bar:
            return datasets.load(source, image_size, data_dir, bar.of, storage, skip_broken)

    def read_first() -> None:
        found.append(read())
        name, broken = found[0].name, found[0].broken
        for note in (found[0].left_out, *_some(broken)):
            if note:
                _note(f"{name}: {note}")

    found: list[Dataset] = []
    collectives.on_rank_zero(read_first)
    return found[0] if found else read()


def data_of(config: RunConfig, read: Callable[..., Dataset] = load) -> RunData:
    """What a run is trained on, and what it is evaluated on, if it is."""
    settings = config.settings
    how = settings.data_dir, settings.storage, settings.skip_broken
    data = read(settings.data, settings.image_size, *how)
    source = settings.eval_data
    is_wanted = bool(config.evals or settings.eval_every)
    if not source or not is_wanted or resolved(source) == data.source:
        return RunData(data, data)
    return RunData(data, read(source, data.view_size, *how))


def _some(broken: Sequence[str]) -> Iterator[str]:
    """The first images that were left out as they cannot be read, and the number of the others."""
    yield from broken[:_BROKEN_SHOWN]
    if broken[_BROKEN_SHOWN:]:
        yield f"{len(broken) - _BROKEN_SHOWN:,} more broken images"


def _note(text: str) -> None:
    console.print(f"note: {text}", style="yellow", highlight=False, soft_wrap=True)


def _announce(
    plan: Plan, spec: EncoderSpec, data: Dataset, hardware: Hardware, settings: Settings
) -> None:
    ranks = settings.devices * settings.nodes
    machines = f" on {settings.nodes} machines" if settings.nodes > 1 else ""
    console.print(f"{plan.method} on ", end="")
    _say_images(data)
    console.print(
        f"images {data.storage}\n"
        f"{spec.backbone}, {spec.image_size} px in {spec.patches} patches of {spec.patch_size} px; "
        f"{plan.epochs:.4g} epochs of batch {plan.batch_size}, seed {plan.seed}\n"
        f"{f'{ranks} processes{machines} ({strategy.strategy()}), each ' if ranks > 1 else ''}"
        f"{hardware.name}, {hardware.precision}{', compiled' if hardware.compiled else ''}"
    )
    if data.note:
        _note(f"{plan.data}: {data.note}")


def _say_images(data: Dataset | Listing) -> None:
    """What is in a data set, and how it was understood."""
    labels = "no labels" if data.unlabelled else f"{len(data.classes):,} classes"
    console.print(
        f"{data.name}: {len(data.train):,} training and {len(data.test):,} test images, {labels}",
        soft_wrap=True,
    )
    for note in data.notes:
        console.print(f"data {data.name}: {note}", soft_wrap=True)


def _draw(method: Method, data: Dataset, plan: Plan, spec: EncoderSpec, folder: Path) -> None:
    """The loss curve, and whatever pictures the method has of the first test images."""
    from ssl_bench.experiment import figures  # a second that the first step need not wait for

    title = f"{plan.method} on {plan.data}, {plan.epochs:.4g} epochs, seed {plan.seed}"
    if (folder / schema.METRICS).exists() and not (folder / "figures/loss.png").exists():
        make_inside(folder, folder / schema.FIGURES)
        figures.loss_curve(folder / schema.METRICS, title, folder / "figures/loss.png")
        console.print(f"loss curve: {folder / 'figures/loss.png'}", soft_wrap=True)
    output = folder / "figures/pictures.png"
    if not output.exists():
        rows = pretrain.pictures(method, data, spec, plan.seed, _IMAGES_IN_PICTURE)
        if rows:
            make_inside(folder, folder / schema.FIGURES)
            figures.picture_rows(rows, spec, f"{title}: test images", output)
            console.print(f"pictures: {output}", soft_wrap=True)


def _shown(
    method: str, pretrained_on: str | None, found: Iterator[runner.Record]
) -> list[runner.Record]:
    """The records, shown beside their baselines: those that were found before an error, too."""
    from ssl_bench.experiment import baseline_table

    records = []
    try:
        for record in found:
            records.append(record)
    finally:
        if records:
            console.print(baseline_table.beside_baselines(method, records, pretrained_on))
    return records


def _say_data(settings: EvalSettings, source: str, known: str | None) -> None:
    require(
        bool(settings.data or known), f"say what to evaluate {source!r} on, e.g. --data cifar10"
    )


def _import_weights(source: str, settings: EvalSettings, plan: Mapping[str, Any]) -> Path:
    """The run folder of weights from elsewhere, or of a run at another image size.

    Args:
        plan: the run's, or nothing.
    """
    checkpoint = checkpoints.read(source, Hints.of(settings))
    for note in checkpoint.notes:
        console.print(note, soft_wrap=True)
    encoder, spec = checkpoint.encoder, checkpoint.spec
    rows, columns = encoder.patch_embed.grid_size
    require(
        rows == columns or settings.image_size is not None,
        f"{source!r} has a grid of {rows} x {columns} patches, and images are evaluated as "
        f"squares; say their size, e.g. --image-size {max(rows, columns) * spec.patch_size}",
    )
    size = settings.image_size
    if size is not None and (size != spec.image_size or rows != columns):
        encoders.resize(encoder, size)
        side = encoder.patch_embed.grid_size[0]
        console.print(
            f"evaluated at {size} px: position embeddings interpolated from "
            f"{rows} x {columns} to {side} x {side} patches"
        )
        spec = dataclasses.replace(spec, image_size=size)
    name = plan.get("method") or (Path(source).name if Path(source).exists() else source)
    identity = {
        "method": f"{name} at {spec.image_size} px" if plan else name,
        "weights_sha256": weights.digest(encoder),
        "encoder": asdict(spec),
    }
    nothing = {"data": None, "data_source": None, "epochs": None, "seed": 0}
    # The seeds of a run at another image size belong together, like those of the run.
    shared = [plan.get("identity", identity["weights_sha256"]), identity["encoder"]]
    told = {"identity": schema.digest(shared), "source": source, "notes": checkpoint.notes}
    config = {**nothing, **plan, **identity, **told}
    stem = re.sub(r"[^\w.-]+", "-", Path(source).stem)
    folder = run_folder.create(
        settings.runs_dir, f"weights-{stem}-{schema.digest(identity)}", config
    )
    with run_folder.locked(folder, wait=True):
        if not schema.is_trained(folder):
            weights.save(encoder, spec, folder)
    return folder
