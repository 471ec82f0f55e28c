"""The report: a page of tables made from what was measured, and its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks import augmenting, charts, results
from benchmarks.cases import AUGMENTED, CASES, GROWTH
from benchmarks.contestants import CONTESTANTS
from benchmarks.results import Measured
from benchmarks.rounds import Round, Spread, ratio, spread
from ssl_bench.utils.files import atomic, load_json, writing

_PAGE = """\
# Speed on {device}

Written by `python -m benchmarks`. Every round of every contestant is a process of its own, and
they take turns; figures are medians over the rounds, and in brackets the lowest and the highest.
Ratios are taken round by round: above 1, ours is ahead. No time of a training counts unless it
computes the same loss and gradient as the others from the same weights, images and mask noise.
"""
_ABOUT_TRAINING = """\
Whole training steps: loading, augmentation, forward, backward, optimiser. Memory is the training
process's peak, without its data workers. GFLOP/s are floating-point operations of the contestant's
own step, as torch counts them, at its speed; the share is of the rate at which this machine does
nothing but the step's matrix products, one after the other. Where two times to the first step are
given, the second one found compiled code of the round before. Where the processor gains
nothing from bf16, everybody trains in fp32."""
_ABOUT_METHODS = """\
Whole training steps, as above, of other methods: beside lightly's modules for each of them, as they
are shipped, and beside plain PyTorch.
BEiT is missing, for lightly has none. Masks are the same for all. lightly's iBOT does less: its
centre of patches is that of the hidden ones, as in DINOv2, so that its teacher's head sees no
others, where the paper's is that of all patches."""
_ABOUT_GROWTH = """\
Milliseconds an image of whole training steps, and peak memory in MiB, as one thing grows and all
else stays: a ViT-Ti/4 at 32 pixels, 128 images a step for MAE and 64 for MoCo v3, three quarters of
the patches hidden."""
_ABOUT_AUGMENT = """\
Views made and nothing else, one for MAE and two for MoCo v3; an image counts once."""


def write(path: Path) -> Path:
    """Write the page and the figures beside a file of results; returns the page.

    Raises:
        UserError: something cannot be read or written.
    """
    found, device = results.load(path), load_json(path)["device"]
    lines = [_PAGE.format(device=device)]
    for part, sections in _PARTS.items():
        if part in found:
            lines += sections(found[part], path)
    page = path.with_suffix(".md")
    with writing(page), atomic(page) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return page


def _training(
    subjects: Mapping[str, Measured],
    path: Path,
    part: str = "training",
    title: str = "Training",
    about: str = _ABOUT_TRAINING,
) -> list[str]:
    subjects = {name: subjects[name] for name in CASES if name in subjects}
    picture = charts.training(subjects, path, part)
    lines = [f"## {title}", "", about, "", f"![Images a second]({picture.name})"]
    for name, measured in subjects.items():
        lines += ["", f"### {name}", "", f"{CASES[name].words()}. {_how(measured)}", ""]
        heads = ["images/s", "ours / it", "peak MiB", "s to first step"]
        heads += ["GFLOP/s", "share"] if measured.work else []
        rows = {}
        for contestant, rounds in measured.rounds.items():
            speed = spread(rounds, "images_per_second")
            work = measured.work.get(contestant)
            reached = work["gflop_per_image"] * speed.median if work else None
            cells = [
                _shown(speed, 1),
                _ratio(measured, contestant),
                f"{spread(rounds, 'peak_mib').median:,.0f}",
                _first_steps(rounds, CONTESTANTS[contestant].compile),
                f"{reached:,.0f}" if reached else "-",
                _share(reached, work),
            ]
            rows[CONTESTANTS[contestant].title] = cells[: len(heads)]
        lines += _table(heads, rows)
    return [*lines, ""]


def _share(reached: float | None, work: Mapping[str, float] | None) -> str:
    """Of the machine's rate; no step outruns its own products: above 1 it was measured badly."""
    if not reached or not work or not work["product_gflops_per_second"]:
        return "-"
    share = reached / work["product_gflops_per_second"]
    return f"{share:.0%}" if share <= 1 else "not measured: the machine was disturbed"


def _first_steps(rounds: Sequence[Round], compiles: bool) -> str:
    times = [each["seconds_to_first_step"] for each in rounds]
    if compiles and len(times) > 1:
        return f"{times[0]:.1f}, then {Spread.of(times[1:]).median:.1f}"
    return f"{Spread.of(times).median:.1f}"


def _growth(subjects: Mapping[str, Measured], path: Path) -> list[str]:
    names = list(dict.fromkeys(name for each in subjects.values() for name in each.rounds))
    picture = charts.growth(subjects, path)
    lines = ["## How cost grows", "", _ABOUT_GROWTH, "", f"![Cost]({picture.name})"]
    for series, cases in GROWTH.items():
        points = {
            value: subjects[case.name] for value, case in cases.items() if case.name in subjects
        }
        if not points:
            continue
        lines += ["", f"### {series}", "", _how(*points.values()), ""]
        titles = [CONTESTANTS[name].title for name in names]
        heads = (*(f"{title}: {unit}" for title in titles for unit in ("ms", "MiB")), "ratio")
        rows = {}
        for value, measured in points.items():
            cells = []
            for name in names:
                rounds = measured.rounds.get(name)
                speed = rounds and spread(rounds, "images_per_second")
                cells.append(f"{1000 / speed.median:,.2f}" if speed else "-")
                cells.append(f"{spread(rounds, 'peak_mib').median:,.0f}" if rounds else "-")
            rows[value] = (*cells, _ratio(measured, names[-1]))
        lines += _table(heads, rows)
    return [*lines, ""]


def _augment(subjects: Mapping[str, Measured], path: Path) -> list[str]:
    subjects = {name: subjects[name] for name in AUGMENTED if name in subjects}
    picture = charts.augment(subjects, path)
    lines = ["## Augmentation", "", _ABOUT_AUGMENT, "", f"![Views]({picture.name})"]
    for name, measured in subjects.items():
        lines += ["", f"### {name}", "", f"Batches of {AUGMENTED[name].batch_size}. "
                  f"{_how(measured)}", ""]  # fmt: skip
        rows = {
            title: (
                _shown(spread(measured.rounds[key], "images_per_second"), 0),
                _ratio(measured, key),
            )
            for key, title in augmenting.NAMES.items()
            if key in measured.rounds
        }
        lines += _table(("images/s", "ours / it"), rows)
    return [*lines, ""]


def _elsewhere(title: str, part: str) -> Callable[[Mapping[str, Measured], Path], list[str]]:
    """A part of which nothing is known but what its module tells."""

    def sections(subjects: Mapping[str, Measured], path: Path) -> list[str]:
        import importlib

        module = importlib.import_module(f"benchmarks.{part}")
        first = next(iter(module.NAMES))
        beside = getattr(module, "beside", lambda name: first)
        lines = [f"## {title}"]
        for measured in subjects.values():
            keys = list(dict.fromkeys(k for rounds in measured.rounds.values() for k in rounds[0]))
            rows = {}
            for name, rounds in measured.rounds.items():
                cells = [_shown(spread(rounds, key)) if key in rounds[0] else "-" for key in keys]
                rows[module.NAMES[name]] = (*cells, _ratio(measured, name, beside(name)))
            heads = (*(key.replace("_", " ") for key in keys), "ahead")
            lines += ["", _how(measured), "", *_table(heads, rows)]
        return [*lines, ""]

    return sections


def _ratio(measured: Measured, name: str, ours: str = "") -> str:
    """How far ours is ahead, by images a second, or else by seconds.

    By default, ours is in bf16 where that was measured, and in fp32 elsewhere.
    """
    ours = ours or ("ours" if "ours" in measured.rounds else "ours-fp32")
    rounds, own = measured.rounds.get(name), measured.rounds.get(ours)
    if not rounds or not own or name == ours:
        return "-"
    if "images_per_second" in rounds[0]:
        return _shown(ratio(own, rounds, "images_per_second"), 2)
    return _shown(ratio(rounds, own, "seconds"), 2) if "seconds" in rounds[0] else "-"


def _shown(value: Spread, digits: int | None = None) -> str:
    def number(one: float) -> str:
        return f"{one:,.4g}" if digits is None else f"{one:,.{digits}f}"

    return f"{number(value.median)} ({number(value.low)}-{number(value.high)})"


def _how(*measured: Measured) -> str:
    """Date, commit, versions and rounds, once where they are all the same."""
    told: dict[str, list[str]] = {}
    for each in measured:
        for name, value in each.about.items():
            values = told.setdefault(name, [])
            if str(value) not in values:
                values.append(str(value))
    return "; ".join(f"{name} {', '.join(values)}" for name, values in told.items()) + "."


def _table(heads: Iterable[str], rows: Mapping[str, Iterable[str]]) -> list[str]:
    heads = ["", *heads]
    lines = [heads, ["---"] * len(heads), *([name, *cells] for name, cells in rows.items())]
    return [f"| {' | '.join(cells)} |" for cells in lines]


_PARTS: Mapping[str, Callable[[Mapping[str, Measured], Path], list[str]]] = {
    "training": _training,
    "methods": partial(
        _training, part="methods", title="Training of other methods", about=_ABOUT_METHODS
    ),
    "growth": _growth,
    "augment": _augment,
    "loading": _elsewhere("Loading from files", "loading"),
    "evaluations": _elsewhere("Evaluations", "evaluations"),
    "tables": _elsewhere("Tables of 10,000 runs", "tables"),
    "recorded": _elsewhere("Steps recorded as a CUDA graph", "recorded"),
}
