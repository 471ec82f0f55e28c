"""``ssl-bench eval``: evaluate a run, or a file of weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from rich.table import Table

from ssl_bench.config.settings import EvalSettings, Settings
from ssl_bench.data import Dataset
from ssl_bench.data.names import several
from ssl_bench.distributed import collectives
from ssl_bench.distributed.device import choose
from ssl_bench.errors import require
from ssl_bench.evaluation import runner
from ssl_bench.experiment import audit
from ssl_bench.experiment.loading import console, load, note, note_coarse, say_images
from ssl_bench.experiment.preparation import with_labels_of_each
from ssl_bench.experiment.run_config import EvalConfig, real_configs
from ssl_bench.models import backbones, checkpoints, encoders, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.runs import run_folder, schema
from ssl_bench.utils.formatting import digits, listed


def evaluate(config: EvalConfig) -> Path:
    """Evaluate a run or a file of weights: ``ssl-bench eval``.

    Returns:
        The folder with the results; for a file of weights, a new one under the runs' folder.

    Raises:
        UserError: there is no such run or file, or it does not hold an encoder.
    """
    settings = config.settings
    check_ranks(settings)
    hardware = choose(settings.precision)
    folder, plan = collectives.on_rank_zero(lambda: _evaluated(settings))
    datasets = data_of(settings, plan)
    wanted, lacking = with_labels_of_each(
        real_configs(config.evals), datasets, by_name=True, way_out="--data LABELLED"
    )
    for data in datasets:
        say_images(data)
        note_coarse(data)
    seed = plan["seed"] if settings.seed is None else settings.seed
    spec = EncoderSpec.of(plan["encoder"])
    audits = [
        audit.evaluations(spec, evals, data, seed, hardware)
        for evals, data in zip(wanted, datasets, strict=True)
    ]
    for line in dict.fromkeys(chain(lacking, *(left_out for _, left_out, _ in audits))):
        note(line)
    if recipe := dict.fromkeys(chain.from_iterable(told for *_, told in audits)):
        console.print(f"recipe: {'; '.join(recipe)}", soft_wrap=True)
    with collectives.rank_zero_only(run_folder.locked(folder, settings.wait)):
        how = seed, hardware, folder.parent, settings.keep_features
        found = (
            runner.evaluate_run(folder, evals, data, *how)
            for (evals, *_), data in zip(audits, datasets, strict=True)
        )
        shown(plan["method"], plan["data"], chain.from_iterable(found))
        collectives.on_rank_zero(lambda: draw_evaluations(folder))
    console.print(f"run folder: {folder}", soft_wrap=True)
    return folder


def data_of(settings: EvalSettings, plan: Mapping[str, Any]) -> list[Dataset]:
    """What a run is evaluated on: the settings' data, else its own, at its image size."""
    source = settings.data or plan.get("eval_data_source") or plan["data_source"]
    _say_data(settings, settings.weights or settings.target, source)
    spec = EncoderSpec.of(plan["encoder"])
    stride = settings.stride or schema.mapping(plan.get("settings")).get("stride")
    skip = settings.skip_broken or (not settings.data and bool(plan.get("skip_broken")))
    sources = several(source)
    require(bool(sources), f"data {source!r} names no data set")
    views = settings.test_clips, settings.test_crops
    how = settings.data_dir, settings.storage, skip, None, spec.frames, stride, views
    return [load(each, spec.image_size, *how).as_tested() for each in sources]


def check_ranks(settings: Settings | EvalSettings) -> None:
    """Require the processes that the settings ask for, which `launcher.on_devices` starts.

    Raises:
        UserError: there are others.
    """
    require(
        collectives.world_size() == settings.devices * settings.nodes,
        f"--devices {settings.devices} and nodes {settings.nodes}: only `ssl-bench run` and "
        "`ssl-bench eval` work on several; 1 would work here",
    )


def shown(
    method: str, pretrained_on: str | None, found: Iterable[runner.Record]
) -> list[runner.Record]:
    """The records, shown beside their baselines; after an error, those found before it."""
    records = []
    try:
        for record in found:
            records.append(record)
    finally:
        if records:
            console.print(beside_baselines(method, records, pretrained_on))
    return records


def draw_evaluations(folder: Path) -> None:
    """The figures of what evaluations have kept for some, see `figures.of_evaluations`."""
    from ssl_bench.experiment import figures  # a second that help need not wait for

    for path in figures.of_evaluations(folder):
        console.print(f"figure: {path}", soft_wrap=True)


def headline(scores: Mapping[str, float]) -> float:
    """The first score."""
    return next(iter(scores.values()))


def interval(scores: Mapping[str, float]) -> tuple[float, float] | None:
    """The ends of the first score's interval, where the evaluation gives one."""
    name = next(iter(scores))
    low, high = scores.get(f"{name}_low"), scores.get(f"{name}_high")
    return None if low is None or high is None else (low, high)


def beside_baselines(
    method: str, records: Iterable[runner.Record], pretrained_on: str | None = None
) -> Table:
    """One row for each evaluation: the method's score, its baselines' and what it gains."""
    records = list(records)
    labels = list(dict.fromkeys(label for record in records for label in record["baselines"]))
    tested = " or ".join(f"{count:,}" for count in sorted({r["test_images"] for r in records}))
    notes = sorted({record["note"] for record in records if record["note"]})
    units = [record.get("unit", "top-1 accuracy (%)") for record in records]
    is_mixed = len(set(units)) > 1
    what = "" if is_mixed else f"{units[0]}, "
    lower = [record["eval"] for record in records if record.get("better") == "lower"]
    beside = (
        f"less the baseline; lower is better in {listed(lower)}"
        if lower
        else "gain over the baseline"
    )
    caption = f"{what}{tested} test images, one seed ({beside})"
    sets = list(dict.fromkeys(record["data"] for record in records))
    data, are_several = ", ".join(sets), len(sets) > 1
    origin = "" if pretrained_on in (None, data) else f", pre-trained on {pretrained_on}, evaluated"
    table = Table(title=f"{method}{origin} on {data}", caption="\n".join([caption, *notes]))
    if are_several:
        table.add_column("data")
    table.add_column("evaluation")
    table.add_column(method, justify="right", style="bold")
    for label in labels:
        table.add_column(label, justify="right")
    for record, unit in zip(records, units, strict=True):
        score = headline(record["scores"])
        others = {label: headline(scores) for label, scores in record["baselines"].items()}
        gains = {label: f" ({digits(score - other, unit, '+')})" for label, other in others.items()}
        if record.get("better") == "neither":
            gains = dict.fromkeys(others, "")
        cells = (digits(others[n], unit) + gains[n] if n in others else "-" for n in labels)
        name = f"{record['eval']}\n{unit}" if is_mixed else record["eval"]
        of = (record["data"],) if are_several else ()
        table.add_row(*of, name, digits(score, unit) + _interval(record["scores"], unit), *cells)
    return table


def _interval(scores: Mapping[str, float], unit: str) -> str:
    """The interval of the headline, where the evaluation gives one: " [29.80, 32.60]"."""
    ends = interval(scores)
    return f" [{', '.join(digits(end, unit) for end in ends)}]" if ends else ""


def _evaluated(settings: EvalSettings) -> tuple[Path, dict[str, Any]]:
    """The folder of what is to be evaluated, and its plan."""
    source = settings.weights or settings.target
    if settings.weights or checkpoints.is_foreign(source):
        _say_data(settings, source, None)
        folder = _import_weights(source, settings, {})
    else:
        folder = run_folder.find_trained(settings.runs_dir, source, settings.wait)
        plan = schema.load_plan(folder)
        _say_data(settings, source, plan["data_source"])
        if settings.image_size not in (None, plan["encoder"]["image_size"]):
            folder = _import_weights(str(folder), settings, plan)
    return folder, schema.load_plan(folder)


def _say_data(settings: EvalSettings, source: str, known: str | None) -> None:
    require(
        bool(settings.data or known), f"say what to evaluate {source!r} on, e.g. --data cifar10"
    )


def _import_weights(source: str, settings: EvalSettings, plan: Mapping[str, Any]) -> Path:
    """The run folder of weights from elsewhere, or of a run at another image size.

    Args:
        plan: the run's, or nothing.
    """
    checkpoint = checkpoints.read(source, settings)
    notes = checkpoint.notes  # as it was before it is resized
    for line in notes:
        console.print(line, soft_wrap=True)
    encoder, spec, pair = checkpoint.encoder, checkpoint.spec, checkpoint.pair
    require(
        not (spec.is_text and settings.image_size),
        f"{source!r} reads texts, so --image-size means nothing; leave it out",
    )
    is_vit, size = encoders.is_vit(encoder), settings.image_size
    rows, columns = encoder.patch_embed.grid_size if is_vit else (1, 1)
    largest = spec.image_size // rows * max(rows, columns)
    require(
        rows == columns or size is not None,
        f"{source!r} has a grid of {rows} x {columns} patches, and images are evaluated as "
        f"squares; say their size, e.g. --image-size {largest}",
    )
    if size is not None and (size != spec.image_size or rows != columns):
        backbones.resize(encoder, size)
        how = ""
        if is_vit:
            side = encoder.patch_embed.grid_size[0]
            how = (
                f": position embeddings interpolated from {rows} x {columns} to {side} x {side} "
                "patches"
            )
        console.print(f"evaluated at {size} px{how}")
        spec = dataclasses.replace(spec, image_size=size)
    name = plan.get("method") or (Path(source).name if Path(source).exists() else source)
    identity = {
        "method": f"{name} at {spec.image_size} px" if plan else name,
        "weights_sha256": weights.digest(encoder),
        "encoder": spec.to_json(),
    }
    if pair is not None:
        identity["text_side_sha256"] = weights.digest(pair)
    nothing = {"data": None, "data_source": None, "epochs": None, "seed": 0}
    # The seeds of a run at another image size belong together, like those of the run.
    shared = [plan.get("identity", identity["weights_sha256"]), identity["encoder"]]
    told = {"identity": schema.digest(shared), "source": source, "notes": notes}
    config = {**nothing, **plan, **identity, **told}
    stem = re.sub(r"[^\w.-]+", "-", Path(source).stem)
    folder = run_folder.create(
        settings.runs_dir, f"weights-{stem}-{schema.digest(identity)}", config
    )
    with run_folder.locked(folder, wait=True):
        if not schema.is_trained(folder):
            if pair is not None:
                weights.save_text_side(pair, folder)
            weights.save(encoder, spec, folder)
    return folder
