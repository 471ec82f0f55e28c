"""What a configured run does, whatever its flags say, read off the objects that do it.

Views, optimisers, modules and their initial weights, each fact as a short text under a name with a
space in it, such as ``"blur of a view"``: ``ssl-bench recipe`` compares these texts with published
ones. What an optimiser holds has the name of the flag that is to set it, such as
``"weight_decay"``, so that a flag that nobody heeds is told from one that somebody does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from timm.layers import DropPath
from torch import nn

from ssl_bench.api.evaluation import Training
from ssl_bench.api.method import Method
from ssl_bench.api.optimizers import OptimizerSpec, cosine
from ssl_bench.api.step import Step
from ssl_bench.distributed.device import Hardware
from ssl_bench.evaluation.features import Encoder
from ssl_bench.experiment import initial_values, measured
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.models import backbones
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import setup
from ssl_bench.transforms import augmentations
from ssl_bench.transforms.augmentations import Augmentation
from ssl_bench.utils.formatting import many

_CHANNELS, _CLASSES, _SMALL, _FRAMES = 3, 1000, 32, 8
_STEPS, _STEPS_PER_EPOCH = 400, 20
_NO_CROP = "not used"
_COURSE = "learning rate's course"


def of_run(config: RunConfig) -> dict[str, str]:
    """The facts of a run's method, around a backbone without weights and without any data.

    Raises:
        UserError: there is no such backbone, or the method cannot be built around it.
    """
    spec = _spec(config)
    method = _built(config, spec)
    if not method.trains:
        return {}
    found = of_views(method.transforms())
    if not config.settings.image_size:  # the data's, which nobody has read
        found.pop("views of an image", None)
    optimizer = method.optimizer()
    drawn = _drawn(config, spec)
    return (
        found
        | of_optimizer(method, optimizer)
        | of_schedules(optimizer, config.epochs_on(), config.batch_on())
        | of_modules(method)
        | initial_values.of_method(drawn)
        | measured.of_method(config.method, drawn)
    )


def of_evaluations(config: RunConfig) -> dict[str, dict[str, str]]:
    """By evaluation: the facts of what it trains on views of images, and of what it predicts.

    Raises:
        UserError: there is no such backbone.
    """
    spec = _spec(config)
    nowhere = Hardware(torch.device("meta"), "fp32", "none")
    found, evaluations = {}, {}
    with nowhere.device:
        encoder = Encoder(backbones.build(spec, config.settings.seed), spec, nowhere, 0)
        for plugin, own in config.evals.items():
            evaluation = plugin.load_class()(plugin.real_config(own))
            training = evaluation.training(encoder, _CLASSES)
            found[plugin.name] = of_training(training, own) if training else {}
            evaluations[plugin] = evaluation
    for plugin, evaluation in evaluations.items():
        found[plugin.name] |= measured.of_evaluation(plugin, evaluation)
    return found


def of_training(training: Training, config: Any) -> dict[str, str]:
    """How an evaluation under those settings trains; a course ends at its ``min_lr``, if any."""
    found = of_views({"training": training.view}) | of_optimizer(training.model, training.optimizer)
    if momentum := found.get("optimiser's momentum"):  # a method's flag is its teacher's
        found["momentum"] = momentum
    courses = of_schedules(training.optimizer, config.epochs, config.batch_size)
    lowest = getattr(config, "min_lr", 0)
    if lowest:
        share = lowest / (config.base_lr * config.batch_size / 256)
        course = courses[_COURSE].replace(f"cosine to {round(share, 6):g}", "cosine to min lr")
        courses[_COURSE] = course
    positions = initial_values.of_positions(getattr(training.model, "encoder", None))
    if positions:
        found["position embedding"] = positions
    return found | courses


def _spec(config: RunConfig) -> EncoderSpec:
    """The backbone, for colour images of some size if the data's is meant."""
    settings = config.settings
    size = settings.image_size or _SMALL
    mean = (0.5,) * _CHANNELS
    columns = config.method.declared.columns
    frames = settings.frames or (1 if "clip" not in columns or "image" in columns else _FRAMES)
    spec = EncoderSpec(
        settings.backbone, size, settings.patch_size, _CHANNELS, mean, mean, frames=frames
    )
    if spec.is_vit and not spec.patch_size:
        patch_size = backbones.default_patch_size(spec.backbone, size)
        spec = replace(spec, patch_size=patch_size)
    return spec


def of_views(views: Mapping[str, Augmentation]) -> dict[str, str]:
    """How views are made; where they are not made alike, of each by its name."""
    if not views:
        return {}
    sizes = [view.size for view in views.values()]
    counts = (f"{sizes.count(size)} of {size} px" for size in dict.fromkeys(sizes))
    found = {"views of an image": ", ".join(counts)}
    for name, (says, applies) in _VIEWS.items():
        texts = {each: says(view) for each, view in views.items() if applies(view)}
        if texts:
            found[name] = _together(texts)
    applied = {
        name: text
        for name, (text, applies) in _COLOURS.items()
        if any(map(applies, views.values()))
    }
    in_order = (applied[name] for name in augmentations.COLOUR_STEPS if name in applied)
    found["order of colour changes"] = ", ".join(in_order) or "none"
    return found


def of_optimizer(module: nn.Module, spec: OptimizerSpec) -> dict[str, str]:
    """Kind and constants of the optimiser, and what weight decay and clipping reach."""
    optimizer = spec.optimizer
    groups = optimizer.param_groups
    kind = type(optimizer).__name__
    found = {"optimizer": kind.lower(), "kind of optimiser": kind}
    for name, key in _CONSTANTS.items():
        values = [group[key] for group in groups if key in group]
        if values and values[0] is not None:
            found[name] = _several(map(_numbers, values))
    if all("betas" in group for group in groups):
        found["beta2"] = _several(f"{group['betas'][1]:g}" for group in groups)
    if any("momentum" in group for group in groups):
        kinds = ("Nesterov" if group.get("nesterov") else "plain" for group in groups)
        found["kind of momentum"] = _several(kinds)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decays: dict[bool, list[float]] = {True: [], False: []}
    scales: dict[bool, list[float]] = {True: [], False: []}
    undecayed = set()
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)].rpartition(".")[2]
            is_weight = parameter.ndim > 1 and name != "bias"
            decays[is_weight].append(group["weight_decay"])
            scales[is_weight].append(group.get("lr_scale", 1.0))
            if is_weight and group["weight_decay"] == 0:
                undecayed.add(name)
    found["weight decay of norms and biases"] = (
        _several(f"{each:g}" if each else "none" for each in decays[False]) or "none"
    )
    if any(decays[True]) and decays[False]:
        found["decay_norm_and_bias"] = _several("yes" if each else "no" for each in decays[False])
    found["weights without decay"] = ", ".join(sorted(undecayed)) or "none"
    found["learning rate of norms and biases"] = (
        _several("that of weights" if each == 1 else f"{each:g} of it" for each in scales[False])
        or "that of weights"
    )
    rates = sorted({group.get("lr_scale", 1.0) for group in groups})
    found["layer_decay"] = _several(f"{a / b:g}" for a, b in pairwise(rates)) or "1"
    norm = spec.clip_norm
    whose = "each parameter's own norm" if spec.clip_each else "norm of all parameters"
    found["clip_grad"] = "none" if norm is None else f"{norm:g}"
    found["gradient clipping"] = "none" if norm is None else f"{whose}, {norm:g}"
    return found


def of_schedules(spec: OptimizerSpec, epochs: float, batch_size: int) -> dict[str, str]:
    """How learning rate and weight decay change in a training of that many epochs."""
    per_epoch = max(_STEPS_PER_EPOCH, math.ceil(_STEPS / epochs))
    total = max(1, round(per_epoch * epochs))
    steps = [Step(number, total, per_epoch, batch_size) for number in range(total)]
    rates = [spec.learning_rate(step) for step in steps]
    found = {_COURSE: _course(rates, per_epoch)}
    peak = rates.index(max(rates))
    (first, _), (_, highest), (last, lowest) = (
        _held(spec, step) for step in (steps[0], steps[peak], replace(steps[0], number=total))
    )
    found["base_lr"] = f"{highest * 256 / batch_size:g}"
    found["warmup"] = many(
        _warmup(spec, peak / per_epoch, 1 / per_epoch, steps[0], epochs), "epoch"
    )
    if "%" not in found[_COURSE]:  # what falls in steps has no curve that ends anywhere
        found |= {"final_lr": f"{lowest / highest:g}", "min_lr": f"{lowest:g}"}
    found |= {"weight_decay": first, "final_weight_decay": last}
    if spec.weight_decay:
        decays = [spec.weight_decay(step) for step in steps]
        found["weight decay's course"] = f"{decays[0]:g}, {_falls(decays)}"
    else:
        found["weight decay's course"] = "constant"
    return found


def _warmup(spec: OptimizerSpec, about: float, error: float, like: Step, epochs: float) -> float:
    """How many epochs it takes until the learning rate is highest, exact to 1/1000 of an epoch.

    Args:
        about: the number of epochs by the steps of ``like``, and ``error`` how far off it may be.
    """
    first, end = (round(1000 * (about + each)) for each in (-error, error))
    fine = replace(like, total=round(1000 * epochs), per_epoch=1000)
    rates = {n: spec.learning_rate(replace(fine, number=n)) for n in range(max(0, first), end + 1)}
    return max(rates, key=rates.__getitem__) / 1000


def _held(spec: OptimizerSpec, step: Step) -> tuple[str, float]:
    """The weight decay of what is decayed and the highest learning rate, in that step.

    A group with a schedule of its own is left aside.
    """
    spec.prepare(step)
    every = spec.optimizer.param_groups
    groups = [group for group in every if "schedule" not in group] or every
    of_weights = (g for g in groups if any(each.ndim > 1 for each in g["params"]))
    decays = {group["weight_decay"] for group in of_weights}
    return _several(f"{each:g}" for each in decays - {0} or {0}), max(g["lr"] for g in groups)


def of_modules(method: Method) -> dict[str, str]:
    """Constants of norms and of dropout, and the layers of what follows the encoder."""
    norms: dict[str, list[str]] = {}
    rates = set()
    for module in method.modules():
        if isinstance(module, nn.LayerNorm):
            norms.setdefault("layer norms", []).append(f"{module.eps:g}")
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            norms.setdefault("batch norms", []).append(
                f"{module.eps:g}, momentum {module.momentum:g}"
            )
        elif isinstance(module, DropPath):
            rates.add(float(module.drop_prob or 0))
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            rates.add(float(module.p))
    found = {f"epsilon of {kind}": _several(each) for kind, each in norms.items()}
    top = max(rates, default=0.0)
    found["drop path and dropout"] = f"up to {top:g}" if top else "none"
    for name, child in method.named_children():
        layers = [*child] if isinstance(child, nn.Sequential) else []
        trained = any(parameter.requires_grad for parameter in child.parameters())
        if (
            trained
            and child is not method.encoder
            and any(isinstance(x, nn.Linear) for x in layers)
        ):
            found[f"layers of the {name.replace('_', ' ')}"] = ", ".join(map(_layer, layers))
    return found


def _how(config: RunConfig, spec: EncoderSpec) -> tuple[type[Method], Any, EncoderSpec, int, int]:
    plugin = config.method
    own, kind = plugin.real_config(config.method_config), plugin.load_class()
    spec = setup.with_text(spec, kind, own, [["any text"]])
    return kind, own, spec, _CLASSES, config.settings.seed


def _built(config: RunConfig, spec: EncoderSpec) -> Method:
    """The method without weights, if it can do without."""
    how = _how(config, spec)
    try:
        with torch.device("meta"):
            return setup.build_method(*how)
    except (NotImplementedError, RuntimeError):  # it looks at values while it is built
        return setup.build_method(*how)


def _drawn(config: RunConfig, spec: EncoderSpec) -> Method:
    """The method with weights, around a narrow backbone."""
    return setup.build_method(*_how(config, initial_values.narrow(spec)))


def _jitter(view: Augmentation) -> str:
    if not (any(view.jitter) and view.jitter_probability):
        return "none"
    return f"({', '.join(f'{each:g}' for each in view.jitter)}) p {view.jitter_probability:g}"


def _chance(probability: float) -> str:
    return f"p {probability:g}" if probability else "none"


def _range(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}"


def _tries(view: Augmentation) -> str:
    if view.cut_crop:
        return "1, cut off at the border"
    return f"up to {augmentations._CROP_ATTEMPTS}, then the largest in the centre"


def _crops(view: Augmentation) -> bool:
    return view.crop_scale is not None


_VIEWS: Mapping[str, tuple[Callable[[Augmentation], str], Callable[[Augmentation], Any]]] = {
    "area of a crop": (
        lambda v: _range(*v.crop_scale) if v.crop_scale else _NO_CROP, lambda v: True),
    "shape of a crop": (
        lambda v: _range(*v.crop_ratio) if _crops(v) else _NO_CROP, lambda v: True),
    "tries for a crop": (lambda v: _tries(v) if _crops(v) else _NO_CROP, lambda v: True),
    "interpolation of a crop": (
        lambda v: v.interpolation if _crops(v) else _NO_CROP, lambda v: True),
    "flip of a view": (lambda v: _chance(v.flip), lambda v: True),
    "colour jitter of a view": (_jitter, lambda v: True),
    "grey views": (lambda v: _chance(v.grayscale), lambda v: True),
    "blur of a view": (lambda v: _chance(v.blur), lambda v: True),
    "deviation of the blur": (lambda v: _range(*v.blur_sigma), lambda v: v.blur),
    "solarisation of a view": (lambda v: _chance(v.solarize), lambda v: True),
    "threshold of the solarisation": (
        lambda v: f"{v.solarize_threshold * 255:g} of 255", lambda v: v.solarize),
}  # fmt: skip
_COLOURS: Mapping[str, tuple[str, Callable[[Augmentation], Any]]] = {
    "jitter": ("jitter", lambda v: any(v.jitter) and v.jitter_probability),
    "grayscale": ("grey", lambda v: v.grayscale),
    "blur": ("blur", lambda v: v.blur),
    "solarize": ("solarise", lambda v: v.solarize),
}
_CONSTANTS = {
    "optimiser's betas": "betas",
    "optimiser's epsilon": "eps",
    "optimiser's momentum": "momentum",
    "LARS trust coefficient": "trust",
}


def _together(texts: Mapping[str, str]) -> str:
    """One text for all views where they agree; views that are numbered and alike count as one."""
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    families: dict[str, set[str]] = {}
    for name, text in texts.items():
        families.setdefault(name.rpartition("_")[0], set()).add(text)
    shown = {}
    for name, text in texts.items():
        family = name.rpartition("_")[0]
        shown[family if family and len(families[family]) == 1 else name] = text
    return "; ".join(f"{name}: {text}" for name, text in shown.items())


def _several(texts: Any) -> str:
    return " or ".join(sorted(set(texts)))


def _numbers(value: Any) -> str:
    return ", ".join(f"{each:g}" for each in value) if isinstance(value, tuple) else f"{value:g}"


def _layer(layer: nn.Module) -> str:
    if isinstance(layer, nn.Linear):
        return f"linear {layer.out_features}{'' if layer.bias is not None else ' without bias'}"
    if isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
        affine = layer.weight is not None
        shifts = affine and layer.bias is not None and layer.bias.requires_grad
        return "norm" + ("" if shifts else " without shift" if affine else " without affine")
    return type(layer).__name__


def _course(values: Sequence[float], per_epoch: int) -> str:
    """In shares of the highest value: how it rises to it, how it falls, and when it changes."""
    inside = (a != b for i, (a, b) in enumerate(pairwise(values), 1) if i % per_epoch)
    when = "by step" if any(inside) else "by epoch"
    values = values if when == "by step" else values[::per_epoch]
    top = max(values)
    shares = [value / top for value in values]
    peak = values.index(top)
    parts = []
    if peak:
        start = shares[0]
        ramp = (start + (1 - start) * number / peak for number in range(peak))
        is_straight = all(map(_close, shares, ramp))
        parts.append(f"{'linear' if is_straight else 'rising'} from {start:g}")
    parts.append(_falls(shares[peak:], peak))
    parts += [] if parts == ["constant"] else [when]
    return ", ".join(parts)


def _falls(values: Sequence[float], before: int = 0) -> str:
    """What a course does after its start, which is the first of the values."""
    count = len(values)
    if all(_close(value, values[0]) for value in values):
        return "constant"
    for name, curve in _CURVES.items():
        # The end is what comes after the last step.
        share = curve((count - 1) / count, 0.0, 1.0)
        end = values[0] + (values[-1] - values[0]) / share
        if all(_close(v, curve(i / count, values[0], end)) for i, v in enumerate(values)):
            return f"{name} to {round(end, 6) + 0.0:g}"
    drops = [i for i in range(1, count) if not _close(values[i], values[i - 1])]
    if len(drops) > 5:
        return "other"
    total = before + count
    return ", ".join(f"{values[i]:.3g} at {100 * (before + i) / total:.3g} %" for i in drops)


_CURVES: Mapping[str, Callable[[float, float, float], float]] = {
    "cosine": cosine,
    "linear": lambda done, start, end: start + (end - start) * done,
}


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
