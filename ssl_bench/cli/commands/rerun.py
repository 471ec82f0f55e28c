"""Whether a run's numbers come out again: ``ssl-bench rerun``."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from ssl_bench import CORE_VERSION
from ssl_bench.api import registry
from ssl_bench.api.registry import Kind, Plugin
from ssl_bench.cli import trust
from ssl_bench.cli.commands.show import text
from ssl_bench.config.command_settings import RerunSettings
from ssl_bench.config.settings import Precision
from ssl_bench.data.names import several
from ssl_bench.errors import UserError, first_line, require, unknown
from ssl_bench.experiment import run_config
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.runs import run_folder, schema
from ssl_bench.runs.schema import mapping
from ssl_bench.utils import arrays
from ssl_bench.utils.files import write_json
from ssl_bench.utils.terminal import Console

_ENVIRONMENT = ("code", "python", "packages", "device", "cores", "platform")
_OUTCOME = "rerun.json"
_console = Console()


def rerun(settings: RerunSettings) -> int:
    """Train and evaluate a run again in a new folder, and compare: ``ssl-bench rerun``.

    Resumes an interrupted repetition.

    Returns:
        The exit code: 0 where everything that could be compared came out the same, else 1.
    """
    folder = run_folder.find_trained(settings.runs_dir, settings.target)
    from ssl_bench.experiment import loading, running

    config, left_out = config_of(folder, settings)
    wanted = config.settings
    if wanted.runs_dir.exists():
        note = f"the repetition in {wanted.runs_dir} was interrupted, and is resumed"
        _console.print(note)
    datasets = loading.data_of(config)
    for note in (*changes(folder, config, datasets.training.fingerprint), *left_out):
        _console.print(f"note: {note}", style="yellow")
    again = running.run(config, datasets)
    outcome = outcomes(folder, again.folder)
    verdicts = {row["same"] for row in outcome}
    same = True in verdicts and False not in verdicts
    write_json(again.folder / _OUTCOME, {"of": str(folder), "same": same, "parts": outcome})
    headers = [Column(title, overflow="fold") for title in ("what", "before", "again", "")]
    table = Table(*headers, title=f"{folder.name}, and again")
    for row in outcome:
        verdict = {True: "the same", False: "differs: ", None: "cannot tell: "}[row["same"]]
        verdict += row["difference"]
        table.add_row(row["what"], row["before"], row["again"], verdict)
    _console.print(table)
    verdict = "came out the same" if same else "did NOT come out the same"
    if verdicts == {None}:
        verdict = "nothing of it could be compared"
    _console.print(f"{verdict}: {folder.name}")
    return int(not same)


def config_of(folder: Path, settings: RerunSettings) -> tuple[RunConfig, list[str]]:
    """The config that repeats a finished run in a folder of its own.

    Returns:
        It, and one line for each evaluation that cannot be repeated as a part of the run.
    """
    plan = schema.load_plan(folder)
    require(
        "weights_sha256" not in plan,
        f"run {folder.name!r} holds weights from elsewhere, which cannot be trained again; "
        "`ssl-bench eval` evaluates them",
    )
    try:
        return _config(folder, plan, settings)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"run {folder.name!r} does not tell how it was made ({problem})") from error


def _config(
    folder: Path, plan: Mapping[str, Any], settings: RerunSettings
) -> tuple[RunConfig, list[str]]:
    cost = schema.load_object(folder / schema.COST)
    records = [(p.parent.name, schema.load_object(p)) for p in schema.score_files(folder)]
    method = _made_by("method", plan["method"], plan.get("method_source"), plan["method_code"])
    plugin_of = {
        name: _made_by("eval", record["eval"], record.get("source"), record.get("code"))
        for name, record in records
    }
    files = {plugin.path for plugin in (method, *plugin_of.values()) if plugin.source}
    trust.ask(f"run {folder.name!r} was made with", sorted(files), folder, settings.trust)
    evals: dict[Plugin, Any] = {}
    left_out = []
    eval_source, eval_fingerprints = _evaluated_on(plan, [record for _, record in records])
    for name, record in records:
        plugin = plugin_of[name]
        is_alike = (record["seed"], record["precision"]) == (plan["seed"], plan["precision"])
        if not is_alike or record["data_fingerprint"] not in eval_fingerprints:
            left_out.append(f"{name} is left out: its data, seed or precision differ")
        elif evals.get(plugin, own := plugin.config_of(record["config"])) != own:
            left_out.append(
                f"{name} is left out: {plugin.name} is there under another protocol, and a run has "
                "one"
            )
        else:
            evals[plugin] = own
    snapshots = len(list(folder.glob("snapshots/*/encoder.json")))
    if snapshots:
        left_out.append(f"{snapshots} encoders on the way are left out; the last one is repeated")
    if cost.get("devices", 1) > 1:
        left_out.append(
            f"it was trained on {cost['devices']} devices, and is on one, which rounds differently"
        )
    is_per_sample = method.load_class().per_sample_loss
    require(bool(plan["data_source"]), f"run {folder.name!r} does not tell where its data are")
    spec = EncoderSpec.of(plan["encoder"])
    again = replace(
        run_config.settings_of(plan),
        # What was found out stands for what was asked for, so that this machine finds the same.
        method=method.source or method.name,
        data=plan["data_source"],
        eval_data=eval_source,
        backbone=spec.backbone,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        epochs=plan["epochs"] or 1,
        budget_flops=None,
        budget_time="",
        match="",
        precision=plan["precision"],
        compile="on" if cost.get("compiled") else "off",
        micro_batch_size=cost.get("images_at_once" if is_per_sample else "encoded_at_once"),
        devices=1,
        nodes=1,
        strategy="auto",
        evals=tuple(each.source or each.name for each in evals) or ("none",),
        eval_every="",
        log=(),
        runs_dir=_rerun_folder(folder, settings.runs_dir, plan["precision"]),
        data_dir=settings.data_dir,
        wait=False,
    )
    own = method.config_of(plan["method_config"])
    return RunConfig(again, method, own, evals, {}, run_config.search_of(plan)), left_out


def _evaluated_on(
    plan: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> tuple[str | None, set[str]]:
    """``--eval-data`` and the fingerprints of the data that evaluations are repeated on.

    That is what the run itself was evaluated on, as far as it was.
    """
    asked = plan.get("eval_data_source")
    sources = several(asked) if asked else ()
    own = [each for each in records if each.get("data_source") in sources]
    if own and len(sources) > 1:
        return asked, {each["data_fingerprint"] for each in own}
    own += [each for each in records if each["data_fingerprint"] == plan["data_fingerprint"]]
    first = next(iter([*own, *records]), {})
    found = first.get("data_fingerprint", plan["data_fingerprint"])
    source = first.get("data_source")
    if found == plan["data_fingerprint"] or not isinstance(source, str):
        return None, {plan["data_fingerprint"]}
    return source, {found}


def _made_by(kind: Kind, name: str, source: Any, code: Any) -> Plugin:
    """The plugin that a run was made with; nothing of it is run.

    Args:
        source: the file that it was, "" where it was an installed one.
        code: its fingerprint then.
    """
    if not source:
        plugin = registry.installed(kind, name)
        if plugin is None:
            raise unknown(kind, name, registry.discover(kind))
        return plugin
    require(
        isinstance(source, str) and source.endswith(".py") and Path(source).is_file(),
        f"{kind} {name!r} was the file {source!r}, which is not there",
    )
    plugin = registry.find(kind, source)
    require(
        plugin.fingerprint == code,
        f"{kind} {name!r} was the file {source!r}, which is no part of the installation "
        f"and whose code is not what it was: {code} then, {plugin.fingerprint} now. "
        "`ssl-bench run` makes a new run with it",
    )
    return plugin


def _rerun_folder(folder: Path, runs_dir: Path, precision: Precision) -> Path:
    """The folder for a rerun: a new one, or that of an interrupted rerun.

    An interrupted rerun has no outcome, nobody works on it, and it began in this environment.
    """
    here, interrupted = _here(precision), []
    for place in runs_dir.glob(f"reruns/{glob.escape(folder.name)}-????????T??????.??????Z"):
        for path in place.glob(f"*/{schema.ENVIRONMENT}"):
            before = schema.load_object(path)
            is_alike = all(before.get(name) == here[name] for name in _ENVIRONMENT)
            is_ended = (path.parent / _OUTCOME).exists() or run_folder.is_locked(path.parent)
            if is_alike and not is_ended:
                interrupted.append(place)
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    return max(interrupted, default=runs_dir / "reruns" / f"{folder.name}-{now}")


def _here(precision: Precision) -> Mapping[str, Any]:
    from ssl_bench.distributed.device import choose

    return run_folder.environment(choose(precision).name)


def changes(folder: Path, config: RunConfig, fingerprint: str) -> Iterator[str]:
    """What is not as it was when the run was made, one line each.

    Args:
        fingerprint: of the data as they are now.
    """
    plan, before = schema.load_plan(folder), schema.load_object(folder / schema.ENVIRONMENT)
    now = _here(config.settings.precision)
    for name in _ENVIRONMENT:
        if name not in before or before[name] == now[name]:
            continue
        if isinstance(before[name], dict) and isinstance(now[name], dict):
            for key, value in before[name].items():
                if value != now[name].get(key):
                    yield f"{name} {key} was {value}, is {now[name].get(key)}"
        else:
            yield f"{name} was {before[name]}, is {now[name]}"
    if plan["data_fingerprint"] != fingerprint:
        yield f"data {plan['data']} was {plan['data_fingerprint']}, is {fingerprint}"
    if before.get("earlier"):
        yield f"the run was interrupted; what it began with: {text(before['earlier'])}"
    if "core_version" in plan and plan["core_version"] != CORE_VERSION:
        yield f"the core was version {plan['core_version']}, is {CORE_VERSION}"
    if config.method.version != plan["method_version"]:
        yield f"{plan['method']} was version {plan['method_version']}, is {config.method.version}"
    elif config.method.fingerprint != plan["method_code"]:
        yield f"the code of {plan['method']} is not the run's ({config.method.path})"


def outcomes(folder: Path, again: Path) -> list[dict[str, Any]]:
    """Weights, scores and predictions of a run and of its repetition, side by side.

    Returns:
        For each part ``what``, ``before``, ``again``, whether they are the ``same`` (None where
        that cannot be told), and the ``difference``.
    """
    rows = [_compared_weights(folder, again)]
    found = [(path, schema.load_object(path)) for path in schema.score_files(again)]
    are_several = len({record["data"] for _, record in found}) > 1
    for path, record in found:
        which = path.parent.name
        name = f"{record['eval']} on {record['data']}" if are_several else record["eval"]
        record_before = schema.load_object(folder / schema.EVALS / which / schema.SCORES)
        before = mapping(record_before.get("scores"))
        if not before:
            rows.append(_unknown(name, f"protocol {record['protocol']} is new"))
            continue
        for score, value in record["scores"].items():
            was = before.get(score, math.nan)
            was = was if isinstance(was, int | float) else math.nan
            is_same = was == value or (was != was and value != value)
            apart = "" if is_same else f"{value - was:+.4g}"
            rows.append(_row(f"{name} {score}", f"{was:.4f}", f"{value:.4f}", apart))
        rows += _compared_predictions(folder / schema.EVALS / which, again / schema.EVALS / which)
    return rows


def _compared_weights(folder: Path, again: Path) -> dict[str, Any]:
    from ssl_bench.models import weights

    if not (folder / schema.ENCODER_WEIGHTS).exists():
        return _unknown("encoder", "its weights were not kept")
    try:
        old, new = weights.load(folder)[0], weights.load(again)[0]
    except UserError as error:
        return _unknown("encoder", str(error))
    digests = weights.digest(old), weights.digest(new)
    shapes = [{name: w.shape for name, w in each.state_dict().items()} for each in (old, new)]
    if shapes[0] != shapes[1]:
        return _row("encoder", digests[0][:12], digests[1][:12], "another architecture")
    largest = max(
        (a.float() - b.float()).abs().max().item()
        for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True)
    )
    apart = "" if digests[0] == digests[1] else f"weights by up to {largest:.2g}"
    return _row("encoder", digests[0][:12], digests[1][:12], apart)


def _compared_predictions(before: Path, again: Path) -> list[dict[str, Any]]:
    what = "  its predictions"
    try:
        old, new = (
            arrays.read(each / schema.PREDICTIONS, ["predictions"]) for each in (before, again)
        )
    except UserError as error:
        return [_unknown(what, str(error))]
    if not old or not new:
        return []
    first_N, second_N = old["predictions"], new["predictions"]
    is_alike = first_N.shape == second_N.shape
    differing = int((first_N != second_N).sum()) if is_alike else second_N.size
    apart = f"{differing:,} images" if differing else ""
    return [_row(what, f"{first_N.size:,}", f"{second_N.size:,}", apart)]


def _row(what: str, before: str, again: str, difference: str) -> dict[str, Any]:
    same = not difference
    return dict(what=what, before=before, again=again, same=same, difference=difference)


def _unknown(what: str, why: str) -> dict[str, Any]:
    return {**_row(what, "-", "-", why), "same": None}
