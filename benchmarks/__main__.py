"""``python -m benchmarks``: ours and the others on the same work, in turn, over several rounds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import results, rounds
from benchmarks.cases import AUGMENTED, CASES, GROWTH, METHOD_CASES, Case
from ssl_bench.errors import UserError, unknown

_STARTING, _COMPILING = 12.0, 60.0
"""Seconds until a contestant is under way, and until it has compiled."""
_HELP = "`python -m benchmarks --help`"


@dataclass(frozen=True)
class _Words:
    """What the user asked for; None is what a part does by itself."""

    rounds: int | None
    seconds: float | None
    cases: Sequence[str] | None
    contestants: Sequence[str] | None
    folder: Path | None


@dataclass(frozen=True)
class _Job:
    """Rounds to run: one subject of one part."""

    part: str
    subject: str
    names: Sequence[str]
    rounds: int
    measure: Callable[[str], dict[str, float]]
    seconds: float
    expected_seconds: float
    case: Case | None = None


def main(words: Sequence[str] | None = None) -> int:
    """Measure the parts that are asked for, and write the report; returns the exit code."""
    asked = _parser().parse_args(words)
    try:
        _run(asked.parts, asked)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART",
        help=f"{', '.join(_PARTS)}, or all; by default training",
    )  # fmt: skip
    parser.add_argument("--cases", type=_names, help=f"of training and methods: {', '.join(CASES)}")
    parser.add_argument("--contestants", type=_names, help="of the parts: see the report")
    parser.add_argument("--rounds", type=int, help="of each contestant")
    parser.add_argument("--seconds", type=float, help="of measuring, in each round")
    parser.add_argument("--folder", type=Path, help="of pictures, for loading")
    parser.add_argument("--output", type=Path, default=Path("results/speed"))
    return parser


def _names(words: str) -> list[str]:
    return words.split(",")


def _run(parts: Sequence[str], asked: argparse.Namespace) -> None:
    for part in parts:
        if part not in (*_PARTS, "all"):
            raise unknown("part", part, [*_PARTS, "all"], see=_HELP)
    for case in asked.cases or ():
        if case not in CASES:
            raise unknown("case", case, CASES, see=_HELP)
    for name, value in (("rounds", asked.rounds), ("seconds", asked.seconds)):
        if value is not None and value <= 0:
            raise UserError(f"{name} must be above 0, not {value}")

    if asked.folder and not asked.folder.is_dir():
        raise UserError(f"no such folder: {asked.folder}")

    import torch

    from ssl_bench.distributed.device import choose

    hardware = choose()
    chosen = list(_PARTS) if "all" in parts else [*dict.fromkeys(parts or ["training"])]
    words = _Words(asked.rounds, asked.seconds, asked.cases, asked.contestants, asked.folder)
    jobs = [job for part in chosen for job in _PARTS[part](words, hardware.device)]
    minutes = sum(job.expected_seconds for job in jobs) / 60
    # The same name may be that of processors with fast bf16 and without.
    name = hardware.name + (", in fp32" if hardware.precision == "fp32" else "")
    print(f"{', '.join(chosen)} on {name}: about {minutes:.0f} minutes", flush=True)

    path = results.path_of(asked.output, name)
    found = results.load(path)
    from benchmarks import machine, report

    rate: dict[str, float] = {}
    for job in jobs:
        print(f"{job.part}: {job.subject}", flush=True)
        if job.case:
            _gate(job, hardware.device)
        rate = rate or machine.matrix_rate(hardware.device)
        measured = rounds.in_turn(job.names, job.rounds, job.measure)
        if not any(measured.values()):
            raise UserError(f"{job.part}: nobody could be measured; what was stored stays")
        about = results.about(
            rounds=job.rounds,
            seconds=job.seconds,
            **{f"{name} matrix products, GFLOP/s": value for name, value in rate.items()},
        )
        if torch.cuda.is_available():
            about["cuda"] = torch.version.cuda
        subjects = found.setdefault(job.part, {})
        subjects[job.subject] = results.Measured(about, measured)
        results.save(path, name, found)
        if job.part == "training":
            subjects[job.subject] = results.Measured(about, measured, _work(job))
            results.save(path, name, found)
    print(f"report: {report.write(path)}")


def _gate(job: _Job, device: Any) -> None:
    from benchmarks import gate

    assert job.case
    try:
        found = gate.losses(job.case, job.names, device)
    except gate.Differs as error:
        raise UserError(f"{job.subject}: {error}; no time counts") from error
    losses = ", ".join(f"{loss:.5f}" for loss in sorted({*found.values()}))
    print(f"  same weights, same noise: losses {losses}", flush=True)


def _work(job: _Job) -> dict[str, dict[str, float]]:
    """Of each contestant's step; who runs the same code in the same precision shares it."""
    from benchmarks.contestants import CONTESTANTS

    assert job.case
    known: dict[Any, dict[str, float]] = {}
    work = {}
    for name in job.names:
        contestant = CONTESTANTS[name]
        same = (contestant.build, contestant.precision)
        if same not in known:
            try:
                known[same] = rounds.in_process(
                    "benchmarks.training:work", case=asdict(job.case), contestant=name
                )
            except rounds.Failed as error:
                print(f"  the work of {name} is not known: {error}", flush=True)
                continue
        work[name] = known[same]
    return work


def _known(names: Sequence[str], known: Collection[str]) -> Sequence[str]:
    """The names, which all have to be known."""
    for name in names:
        if name not in known:
            raise unknown("contestant", name, known, see=_HELP)
    return names


def _present(names: Sequence[str], device: Any) -> list[str]:
    """Those that can run here; of the others, one line each."""
    from benchmarks.contestants import CONTESTANTS

    names = _known(names, CONTESTANTS)
    obstacles = {name: CONTESTANTS[name].obstacle(device) for name in names}
    for name, obstacle in obstacles.items():
        if obstacle:
            print(f"without {name}: {obstacle}", flush=True)
    return [name for name, obstacle in obstacles.items() if not obstacle]


def _of_precision(in_bf16: Sequence[str], in_fp32: Sequence[str]) -> Sequence[str]:
    """Who runs here if nobody is named."""
    from ssl_bench.distributed.device import choose

    return in_bf16 if choose().precision == "bf16" else in_fp32


def _training(words: _Words, device: Any) -> list[_Job]:
    from benchmarks.contestants import ON_CPU, ON_CPU_FP32, ON_GPU

    on_gpu = device.type == "cuda"
    cases = words.cases or (
        ["gpu-mae-b16-224", "gpu-mae-l16-224", "gpu-mocov3-b16-224"]
        if on_gpu
        else ["mae-ti4-32", "mocov3-ti4-32"]
    )
    defaults = ON_GPU if on_gpu else _of_precision(ON_CPU, ON_CPU_FP32)
    names = _present(words.contestants or defaults, device)
    count, seconds = words.rounds or 2, words.seconds or 4.0
    return [_trained("training", case, CASES[case], names, count, seconds) for case in cases]


def _methods(words: _Words, device: Any) -> list[_Job]:
    from benchmarks.contestants import ON_METHODS, ON_METHODS_FP32

    if device.type != "cpu":
        print("without methods: their cases are for a CPU", flush=True)
        return []
    defaults = _of_precision(ON_METHODS, ON_METHODS_FP32)
    names = _present(words.contestants or defaults, device)
    count, seconds = words.rounds or 2, words.seconds or 4.0
    cases = words.cases or METHOD_CASES
    return [_trained("methods", case, CASES[case], names, count, seconds) for case in cases]


def _growth(words: _Words, device: Any) -> list[_Job]:
    from benchmarks.contestants import ON_GROWTH, ON_GROWTH_FP32

    defaults = _of_precision(ON_GROWTH, ON_GROWTH_FP32)
    names = _present(words.contestants or defaults, device)
    count, seconds = words.rounds or 1, words.seconds or 3.0
    distinct = {case.name: case for series in GROWTH.values() for case in series.values()}
    return [
        _trained("growth", name, case, names, count, seconds) for name, case in distinct.items()
    ]


def _trained(
    part: str, subject: str, case: Case, names: Sequence[str], count: int, seconds: float
) -> _Job:
    import time

    from benchmarks.contestants import CONTESTANTS

    def measure(name: str) -> dict[str, float]:
        return rounds.in_process(
            "benchmarks.training:measure",
            case=asdict(case), contestant=name, seconds=seconds, started=time.time(),
        )  # fmt: skip

    compiling = sum(CONTESTANTS[name].compile for name in names) * _COMPILING
    counting = 6 * _STARTING if part == "training" else 0
    expected = count * len(names) * (_STARTING + seconds) + compiling + counting + len(names)
    return _Job(part, subject, names, count, measure, seconds, expected, case)


def _augment(words: _Words, device: Any) -> list[_Job]:
    from benchmarks import augmenting

    count, seconds = words.rounds or 3, words.seconds or 2.0

    def job(case: str) -> _Job:
        def measure(name: str) -> dict[str, float]:
            return rounds.in_process(
                "benchmarks.augmenting:measure", name=name, seconds=seconds, case=case
            )

        expected = count * len(augmenting.NAMES) * (_STARTING / 2 + seconds)
        return _Job("augment", case, list(augmenting.NAMES), count, measure, seconds, expected)

    return [job(case) for case in AUGMENTED]


def _elsewhere(part: str, **more: Any) -> list[_Job]:
    """A part whose module has ``NAMES`` and ``measure(name, seconds)``."""
    import importlib

    words: _Words = more.pop("words")
    module = importlib.import_module(f"benchmarks.{part}")
    count, seconds = words.rounds or 3, words.seconds or 5.0
    names = _known(words.contestants or list(module.NAMES), module.NAMES)

    def measure(name: str) -> dict[str, float]:
        return rounds.in_process(f"benchmarks.{part}:measure", name=name, seconds=seconds, **more)

    expected = count * len(names) * (_STARTING + seconds)
    subject = Path(more["folder"]).name if more.get("folder") else part
    return [_Job(part, subject, names, count, measure, seconds, expected)]


def _loading(words: _Words, device: Any) -> list[_Job]:
    return _elsewhere("loading", words=words, folder=words.folder and str(words.folder))


def _evaluations(words: _Words, device: Any) -> list[_Job]:
    return _elsewhere("evaluations", words=words)


def _tables(words: _Words, device: Any) -> list[_Job]:
    from benchmarks import tables

    _known(words.contestants or [], tables.NAMES)  # before folders are made
    return _elsewhere("tables", words=words, folder=tables.folders())


def _recorded(words: _Words, device: Any) -> list[_Job]:
    if device.type != "cuda":
        print("without recorded: it is of a GPU's steps", flush=True)
        return []
    return _elsewhere("recorded", words=words)


_PARTS: Mapping[str, Callable[[_Words, Any], list[_Job]]] = {
    "training": _training,
    "methods": _methods,
    "growth": _growth,
    "augment": _augment,
    "loading": _loading,
    "evaluations": _evaluations,
    "tables": _tables,
    "recorded": _recorded,
}


if __name__ == "__main__":
    sys.exit(main())
