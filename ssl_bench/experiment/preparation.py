"""What a run needs before it begins, and whether it can."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from ssl_bench.api.method import Method
from ssl_bench.api.registry import Plugin
from ssl_bench.config.presets import PRESETS
from ssl_bench.config.settings import Settings
from ssl_bench.data import Dataset
from ssl_bench.data.names import CANVASES, CAPTIONS, MOTIONS
from ssl_bench.distributed import collectives
from ssl_bench.distributed.device import Hardware, choose
from ssl_bench.errors import is_of_memory, require
from ssl_bench.experiment import audit
from ssl_bench.experiment.loading import RunData, StepCheck
from ssl_bench.experiment.run_config import Evaluations, RunConfig, real_configs
from ssl_bench.models import backbones, vocabulary
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.runs.schema import Plan
from ssl_bench.training import budget, gradients, setup
from ssl_bench.training.schedule import Schedule, whole_epochs


@dataclass(frozen=True)
class Evaluated:
    """A data set to evaluate on, and the evaluations there, at the end and on the way."""

    data: Dataset
    evals: Evaluations
    on_the_way: Evaluations


@dataclass(frozen=True)
class Prepared:
    """A run that may begin.

    Attributes:
        config: with each plugin's real ``Config``, and those evaluations that are possible.
        evaluated: which of them are, on each data set.
        method: around a fresh encoder.
        recipe: what the audit found, for a person to read.
        budget: what the training may cost, as `budget.of` has it.
        left_out: a line about each evaluation that is not possible, and about texts that are not
            read whole.
    """

    config: RunConfig
    evaluated: Sequence[Evaluated]
    plan: Plan
    spec: EncoderSpec
    method: Method
    hardware: Hardware
    recipe: str
    budget: Mapping[str, Any] | None
    left_out: Sequence[str]


@contextmanager
def memory_noted(config: RunConfig) -> Iterator[None]:
    """Have an error of memory name the method's flags that are set above the preset's values."""
    try:
        yield
    except Exception as error:
        if is_of_memory(error):
            preset = config.settings.preset
            usual = config.method.presets().get(preset, {})
            for field in fields(config.method_config):
                value = getattr(config.method_config, field.name)
                size = usual.get(field.name, field.default)
                if type(value) is type(size) is int and value > max(1, size):
                    flag = f"--{field.name.replace('_', '-')}"
                    error.add_note(f"{flag} ({value} now, {size} in preset {preset})")
        raise


def prepare_run(config: RunConfig, datasets: RunData, expected: str = "") -> Prepared:
    """Build what a run needs, without writing anything, so that whatever does not fit shows.

    Args:
        expected: the run's name, where it was found out before.

    Raises:
        UserError: the run could not begin, or is another one than was expected.
    """
    settings, plugin = config.settings, config.method
    config = replace(
        config,
        method_config=plugin.real_config(config.method_config),
        evals=real_configs(config.evals),
        evals_on_the_way=real_configs(config.evals_on_the_way),
    )
    data = datasets.training
    can_step = StepCheck(config)
    uncaptioned = data.uncaptioned if data.train.captions is None else ""
    can_step(len(data.train), uncaptioned)
    hardware = choose(settings.precision, settings.compile)
    require(
        not (data.unlabelled and "label" in plugin.declared.columns),
        f"method {plugin.name} learns from labels, and data {data.name!r} has none "
        f"({data.unlabelled}); a method that reads none would work, such as mae",
    )
    require(
        not (data.imageless and plugin.declared.columns & {"image", "clip"}),
        f"method {plugin.name} learns from images, and data {data.name!r} has none "
        f"({data.imageless}); a method that reads texts alone would work, such as bert",
    )
    _check_clips(settings, plugin, data)
    wanted, unlabelled = _with_labels(config, datasets.evaluations)
    if settings.eval_data and not (config.evals or settings.eval_every):
        unlabelled.append(f"--eval-data {settings.eval_data!r} is not used: nothing is evaluated")
    kind = plugin.load_class()
    spec = _encoder_spec(settings, plugin.presets().get(settings.preset, {}), data)
    captions, caveats = data.train.captions or (), list[str]()
    spec = setup.with_text(spec, kind, config.method_config, captions)
    if spec.text:
        texts = itertools.chain.from_iterable(captions)
        caveats += vocabulary.caveats(config.method_config, texts, spec.text)
        if spec.text.next_sentence:
            vocabulary.check_documents(captions, data.train.documents)
    usual = {**PRESETS.get(settings.preset, {})}.get("backbone", Settings.backbone)
    require(
        not spec.is_text or settings.backbone == usual,
        f"--backbone {settings.backbone!r} reads images, and method {plugin.name} captions alone; "
        "--text-width, --text-depth and --text-heads say how large its encoder is",
    )
    batch_size = config.batch_on(len(data.train))
    method = setup.build_method(kind, config.method_config, spec, len(data.classes), settings.seed)
    require(
        batch_size > 1 or not (method.trains and collectives.has_batch_norm(method)),
        f"--batch-size 1 is too small for {plugin.name} on {spec.backbone}, which needs at least 2 "
        "images in a step",
    )
    at_once = settings.micro_batch_size
    own = batch_size // (settings.devices * settings.nodes)
    in_parts = gradients.taken_in_parts(method)
    could_be = method.per_sample_loss or method.encodes_in_parts
    backbone, loss = f"backbone {spec.backbone} has batch norms over", f"the loss of {plugin.name}"
    reason = backbone if could_be else f"{loss} depends on"
    require(
        at_once is None or at_once >= own or bool(in_parts) or not method.trains,
        f"--micro-batch-size {at_once}: {reason} all images of a batch, "
        f"which cannot be split; a smaller --batch-size than {batch_size}, or more "
        "--devices, takes less memory",
    )
    plan = Plan(
        method=plugin.name,
        method_version=plugin.version,
        method_config=method.config,
        data=data.name,
        data_fingerprint=data.fingerprint,
        encoder=spec,
        epochs=whole_epochs(config.epochs_on(len(data.train))) if method.trains else 0,
        batch_size=batch_size,
        seed=settings.seed,
        precision=hardware.precision,
    )
    allowed = budget.of(settings, hardware)
    if allowed and method.trains:
        plan = budget.spend(allowed, plan, method, data, hardware, settings)
        can_step(len(data.train), uncaptioned, plan.epochs)
    require(
        expected in ("", plan.name),
        f"this would be run {plan.name!r}, not {expected!r} as when it was submitted: the code, "
        "the data or the precision that the device allows is another; submit it again",
    )
    recipe = [audit.method(method)]
    if at_once is not None and at_once < own and in_parts == "encoder":
        recipe.append(
            f"encoded {at_once} images at a time, whose activations alone are kept; costs one more "
            "forward pass of the encoder, which the FLOPs leave out, and what comes after the "
            f"encoder keeps those of all {own}"
        )
    evaluated, left_out, told = [], list[str](), list[str]()
    for each in wanted:
        where = each.data, settings.seed, hardware
        evals, not_there, of_end = audit.evaluations(spec, each.evals, *where)
        on_the_way, others, of_way = audit.evaluations(spec, each.on_the_way, *where)
        evaluated.append(Evaluated(each.data, evals, on_the_way))
        left_out += [*not_there, *others]
        told += [*of_end, *(of_way if settings.eval_every else ())]
    recipe += dict.fromkeys(told)
    return Prepared(
        config=replace(
            config,
            evals=_somewhere(config.evals, [each.evals for each in evaluated]),
            evals_on_the_way=_somewhere(
                config.evals_on_the_way, [each.on_the_way for each in evaluated]
            ),
        ),
        evaluated=evaluated,
        plan=plan,
        spec=spec,
        method=method,
        hardware=hardware,
        recipe="; ".join(recipe),
        budget=allowed,
        left_out=tuple(dict.fromkeys([*caveats, *unlabelled, *left_out])),
    )


def _check_clips(settings: Settings, plugin: Plugin, data: Dataset) -> None:
    """Require clips of a method that learns from them, and images of one that does not.

    Raises:
        UserError: it is the other way round, or frames are asked for of single images.
    """
    columns = plugin.declared.columns
    require(
        data.frames > 1 or settings.frames in (None, 1),
        f"--frames {settings.frames}: data {data.name!r} has single images, no video; leave "
        "--frames out",
    )
    require(
        data.frames == 1 or "clip" in columns,
        f"method {plugin.name} learns from images, and data {data.name!r} has clips of "
        f"{data.frames} frames; --frames 1 would take the middle frame of each",
    )
    require(
        data.frames > 1 or "clip" not in columns or "image" in columns,
        f"method {plugin.name} learns from clips, and data {data.name!r} has single images"
        + (
            " at --frames 1; 2 or more would work"
            if settings.frames
            else f"; {MOTIONS} would work, or --frames 16 for a folder of animated GIFs"
        ),
    )


def _somewhere(wanted: Evaluations, found: Sequence[Evaluations]) -> Evaluations:
    """The evaluations that are possible on some of the data."""
    return {
        plugin: config for plugin, config in wanted.items() if any(plugin in each for each in found)
    }


def _with_labels(
    config: RunConfig, datasets: Sequence[Dataset]
) -> tuple[list[Evaluated], list[str]]:
    """The evaluations on each data set, without default ones that need labels where there are none.

    Raises:
        UserError: evaluations that need labels were asked for, or data to evaluate on.
    """
    settings = config.settings
    of_preset = config.method.presets().get(settings.preset, {}).get("evals", ())
    by_name = settings.evals not in ((), of_preset) or bool(settings.eval_data)
    evals, left_out = with_labels_of_each(config.evals, datasets, by_name, "--eval-data LABELLED")
    ways = [config.evals_on_the_way for _ in datasets]
    if settings.eval_every:
        way_out = "--eval-data LABELLED, or others in --eval-every-with,"
        ways, _ = with_labels_of_each(config.evals_on_the_way, datasets, True, way_out)
    else:  # those that are of no use were never asked for
        ways = [{} if data.unlabelled else way for data, way in zip(datasets, ways, strict=True)]
    return [Evaluated(*each) for each in zip(datasets, evals, ways, strict=True)], left_out


def with_labels_of_each(
    evals: Evaluations, datasets: Sequence[Dataset], by_name: bool, way_out: str
) -> tuple[list[Evaluations], list[str]]:
    """`with_labels` of several data sets, where each evaluation needs only one that suits it.

    Raises:
        UserError: an evaluation that was asked for suits none of the data, or data suit none.
    """
    is_one = len(datasets) == 1
    found = [with_labels(evals, data, by_name and is_one, way_out) for data in datasets]
    kept: list[Evaluations] = [own for own, _ in found]
    for own, lines in found:
        require(is_one or not evals or bool(own), "; ".join(lines))
    told = [line for _, lines in found for line in lines]
    suited = _somewhere(evals, kept)
    require(is_one or not by_name or len(suited) == len(evals), "; ".join(told))
    return kept, told


def with_labels(
    evals: Evaluations, data: Dataset, by_name: bool, way_out: str
) -> tuple[dict[Plugin, Any], list[str]]:
    """The evaluations that the data have what it takes for, and lines about the others.

    Args:
        by_name: whether somebody asked for these evaluations on these data.
        way_out: the flag that evaluates on other data.

    Raises:
        UserError: somebody did, and they need labels, masks or captions that are not there.
    """
    kept, lines = dict(evals), []
    for column, why in _missing(data).items():
        lacking = [plugin for plugin in kept if column in plugin.declared.columns]
        if not lacking:
            continue
        names = ", ".join(plugin.name for plugin in lacking)
        reason = f"data {data.name!r} has no {column}s{why}, which evaluations need: {names}"
        other = {"mask": CANVASES, "caption": CAPTIONS}.get(column, "LABELLED")
        way = way_out.replace("LABELLED", other)
        require(not by_name, f"{reason}; {way} would work")
        kept = {plugin: config for plugin, config in kept.items() if plugin not in lacking}
        lines.append(f"left out: {reason}; {way} evaluates on other data")
    return kept, lines


def _missing(data: Dataset) -> dict[str, str]:
    """The columns that the data lack, and why in brackets."""
    images = {"image": f" ({data.imageless})"} if data.imageless else {}
    labels = {"label": f" ({data.unlabelled})"} if data.unlabelled else {}
    masks = {} if data.mask_classes else {"mask": ""}
    captions = {"caption": f" ({data.uncaptioned})"} if data.train.captions is None else {}
    return images | labels | masks | captions


def snapshot_steps(settings: Settings, plan: Plan, method: Method, data: Dataset) -> Sequence[int]:
    """The steps, but the last, after which an encoder is wanted on the way.

    Raises:
        UserError: they would be less than a step apart.
    """
    if not settings.eval_every or not method.trains:
        return []
    schedule = Schedule(len(data.train), plan.batch_size, plan.epochs)
    epochs = settings.epochs_between(plan.epochs)
    between = epochs * schedule.steps_per_epoch
    require(
        between >= 1,
        f"--eval-every {settings.eval_every} is {epochs:.2g} epochs, less than a step, which "
        f"takes {1 / schedule.steps_per_epoch:.2g} epochs",
    )
    steps = (round(number * between) for number in itertools.count(1))
    return list(itertools.takewhile(lambda step: step < schedule.steps, steps))


def _encoder_spec(settings: Settings, preset: Mapping[str, Any], data: Dataset) -> EncoderSpec:
    """The encoder's sizes, from the data where no flag says otherwise.

    Args:
        preset: flags that the method's own preset sets.
    """
    require(
        min(data.std) > 0,
        f"every pixel of {data.name!r} has the same value in some channel; nothing can be learned",
    )
    patch_size = settings.patch_size
    spec = EncoderSpec(
        *(settings.backbone, data.view_size, patch_size, data.channels, data.mean, data.std),
        frames=data.frames,
    )
    if data.imageless:
        return replace(spec, patch_size=None)
    if spec.is_vit:
        require(
            patch_size != 1,
            f"--patch-size 1 makes a patch of each of {data.view_size**2:,} pixels; 2 or more "
            "would work, as would leaving --patch-size out",
        )
        default = backbones.default_patch_size
        return replace(spec, patch_size=patch_size or default(spec.backbone, data.view_size))
    # A preset's patches are those of its own backbone.
    is_of_preset = patch_size == {**PRESETS.get(settings.preset, {}), **preset}.get("patch_size")
    return replace(spec, patch_size=None) if is_of_preset else spec
