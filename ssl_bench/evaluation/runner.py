"""Evaluating an encoder and its baselines, and storing what was found.

With several ranks, rank 0 evaluates while the others wait, however long that takes, except where an
evaluation is ``sharded``: that one every rank calls, and it comes to the same result on
each, with features extracted, queries answered and batches divided by all of them. Rank 0 writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ssl_bench import CORE_VERSION
from ssl_bench.api.declarations import BASELINES
from ssl_bench.api.registry import Plugin
from ssl_bench.data import Dataset
from ssl_bench.distributed import collectives
from ssl_bench.distributed.device import Hardware
from ssl_bench.errors import UserError, first_line, require
from ssl_bench.evaluation import gate
from ssl_bench.evaluation.features import Encoder, FeatureCache, RawPixels
from ssl_bench.models import backbones, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.text_encoder import ImageText
from ssl_bench.runs import run_folder, schema
from ssl_bench.training.resume import EvalCheckpoint
from ssl_bench.utils import progress
from ssl_bench.utils.files import (
    atomic,
    checked_name,
    load_json,
    make_inside,
    sha256_of,
    write_json,
)
from ssl_bench.utils.formatting import plain

Record = dict[str, Any]
_TEXT = "text"


def evaluate_run(
    folder: Path,
    evals: Mapping[Plugin, Any],
    data: Dataset,
    seed: int,
    hardware: Hardware,
    runs_dir: Path,
    keep_features: bool = True,
) -> Iterator[Record]:
    """Evaluate the encoder in a folder, each evaluation beside its baselines.

    What is stored already is read, not computed again. Baselines are stored in folders of their
    own under ``runs_dir/baselines``, so that runs share them.

    Args:
        evals: the evaluations and the ``Config`` of each.
        keep_features: whether to keep features that had to be extracted, in ``features/`` of the
            encoder's or the baseline's folder. Those kept before are used in any case.

    Yields:
        One record for each evaluation, as stored in its ``scores.json``.

    Raises:
        UserError: what an evaluation found does not pass the `gate`; nothing of it is stored.
    """
    module, spec = collectives.on_rank_zero(lambda: weights.load(folder))
    encoders = _Encoders(spec, data, seed, hardware, runs_dir, keep_features)
    pair = collectives.on_rank_zero(lambda: weights.load_text_side(folder, spec))
    encoder = encoders.frozen(module, folder, pair)
    for plugin, config in evals.items():
        kind = plugin.load_class()
        record = _evaluate(plugin, config, encoder, data, folder)
        if "baselines" not in record:
            record["baselines"] = {}
            for label, (name, baseline_config) in kind(config).baselines().items():
                if name == "pixels" and spec.is_text:
                    continue
                baseline, home = encoders.baseline(name)
                if kind(baseline_config).supports(baseline, data) is not None:
                    continue
                with collectives.rank_zero_only(run_folder.locked(home, wait=True)):
                    found = _evaluate(plugin, baseline_config, baseline, data, home)
                record["baselines"][label] = found["scores"]
            if collectives.rank() == 0:
                home = _folder(folder, plugin, config, data, encoder)
                write_json(home / schema.SCORES, record)
        yield record


def frozen_encoder(folder: Path, data: Dataset, seed: int, hardware: Hardware) -> Encoder:
    """The encoder in a folder, with the features of these data that evaluations have kept there.

    Others that it extracts are not kept.

    Raises:
        UserError: the folder holds no readable encoder.
    """
    module, spec = weights.load(folder)
    encoders = _Encoders(spec, data, seed, hardware, folder.parent, keep_features=False)
    return encoders.frozen(module, folder)


def in_words(record: Record) -> str:
    """An evaluation's headline in a few words."""
    headline = next(iter(record["scores"].values()))
    return f"{record['eval']} {headline:.2f} {record['unit']}"


def protocol(plugin: Plugin, config: Any, data: Dataset, of_text: bool = False) -> str:
    """The hash of all that defines an evaluation but the encoder, the seed and the precision.

    Args:
        of_text: whether the encoder reads the captions, and none of the images.
    """
    made_by = [CORE_VERSION, plugin.name, plugin.version]
    reads = [_TEXT] if of_text else []
    return schema.digest([*made_by, schema.non_defaults(config), data.fingerprint, *reads])


def folder_name(
    plugin: Plugin, config: Any, data: Dataset, seed: int, precision: str, of_text: bool = False
) -> str:
    """The name of the folder under ``evals`` that holds an evaluation's result."""
    which = protocol(plugin, config, data, of_text)
    return checked_name(f"{plugin.name}-{which}-seed{seed}-{precision}")


def _folder(home: Path, plugin: Plugin, config: Any, data: Dataset, encoder: Any) -> Path:
    how = encoder.seed, encoder.hardware.precision, encoder.spec.is_text
    name = folder_name(plugin, config, data, *how)
    return home / schema.EVALS / name


def _evaluate(plugin: Plugin, config: Any, encoder: Any, data: Dataset, home: Path) -> Record:
    """Evaluate one encoder once, or read the stored result."""
    folder = _folder(home, plugin, config, data, encoder)
    checkpoint = EvalCheckpoint(home / schema.UNFINISHED / folder.name)
    expected = {
        "eval": plugin.name,
        "protocol": protocol(plugin, config, data, encoder.spec.is_text),
        "test_images": len(data.test),
    }
    stored = collectives.on_rank_zero(lambda: _stored(folder, checkpoint, expected))
    if stored is not None:
        return stored
    evaluation = plugin.load_class()(config)
    devices = collectives.world_size() if evaluation.sharded else 1
    environment = {**run_folder.environment(encoder.hardware.name), "devices": devices}

    def compute() -> Any:
        encoder.checkpoint = checkpoint
        try:
            return evaluation.evaluate(encoder, data)
        finally:
            encoder.checkpoint = None

    def store(found: Any) -> Record:
        """Write what was found, if it passes the gate; its record."""
        result = gate.admit(found, plugin.name, data)
        has_masks = "mask" in plugin.declared.columns
        make_inside(folder.parent.parent, folder)
        files: dict[str, Mapping[str, np.ndarray]] = {}
        if result.predictions_N is not None:
            labels_N = data.test.labels_N.cpu().numpy().astype(np.int32)
            files[schema.PREDICTIONS] = {"predictions": result.predictions_N, "labels": labels_N}
        if result.arrays:
            files[schema.ARRAYS] = result.arrays
        for stale in {schema.PREDICTIONS, schema.ARRAYS} - files.keys():
            (folder / stale).unlink(missing_ok=True)
        record = {
            "eval": plugin.name,
            "version": plugin.version,
            "code": plugin.fingerprint,
            "source": "" if plugin.module else str(plugin.path),
            "protocol": expected["protocol"],
            "config": asdict(config),
            **({"reads": _TEXT} if encoder.spec.is_text else {}),
            "data": data.name,
            "data_fingerprint": data.fingerprint,
            "data_source": data.source,
            "note": data.note,
            "seed": encoder.seed,
            "classes": list(data.mask_classes if has_masks else data.classes),
            "scores": result.scores,
            "unit": result.unit,
            "better": result.better,
            "chosen": result.chosen,
            "digests": {name: _save_arrays(folder / name, each) for name, each in files.items()},
            "test_images": len(data.test),
            "seconds": round(checkpoint.seconds * devices, 2),
            "precision": encoder.hardware.precision,
            "environment": environment,
        }
        write_json(folder / schema.SCORES, record)
        checkpoint.remove()
        return record

    if evaluation.sharded:
        result = compute()
        return collectives.on_rank_zero(lambda: store(result))
    return collectives.on_rank_zero(lambda: store(compute()))


def _stored(folder: Path, checkpoint: EvalCheckpoint, expected: Mapping[str, Any]) -> Record | None:
    """The record of an evaluation that is done; None where there is none that is to be trusted."""
    path = folder / schema.SCORES
    if not path.exists():
        return None
    try:
        record = gate.check_record(load_json(path), folder, **expected)
    except (OSError, ValueError, RecursionError, UserError) as error:
        note = f"evaluated anew: {str(path)!r} is no result ({first_line(error)})"
        progress.console.print(plain(note), markup=False, highlight=False, soft_wrap=True)
        return None
    checkpoint.remove()
    return record


def _save_arrays(path: Path, arrays: Mapping[str, Any]) -> str:
    """Write arrays by name; the SHA-256 of the file."""
    with atomic(path) as temporary:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        return sha256_of(temporary)


@dataclass(frozen=True)
class _Encoders:
    """An encoder under evaluation, and the baselines like it, made when they are asked for."""

    spec: EncoderSpec
    data: Dataset
    seed: int
    hardware: Hardware
    runs_dir: Path
    keep_features: bool
    _made: dict[str, tuple[Any, Path]] = field(default_factory=dict)

    def frozen(self, module: nn.Module, home: Path, pair: ImageText | None = None) -> Encoder:
        """The encoder with these weights; its features are kept in its folder."""
        data, hardware = self.data, self.hardware
        # The processor, its threads and the library decide how sums are rounded.
        made_from = {
            "core_version": CORE_VERSION,
            "weights": weights.digest(module),
            "encoder": self.spec.to_json(),
            "data": data.fingerprint,
            "precision": hardware.precision,
            "device": hardware.device.type,
            "hardware": hardware.name,
            "torch": torch.__version__,
        }
        splits = {data.train: "train", data.test: "test"}
        cache = FeatureCache(home / schema.FEATURES, made_from, splits, self.keep_features)
        return Encoder(module, self.spec, hardware, self.seed, cache, pair)

    def baseline(self, kind: str) -> tuple[Any, Path]:
        """A baseline, "pixels" or "random", and its folder."""
        if kind not in self._made:
            known = " or ".join(BASELINES)
            require(kind in BASELINES, f"unknown baseline {kind!r}; {known} would work")
            spec, data, seed = self.spec, self.data, self.seed
            if not spec.is_text:  # what belongs to it changes nothing in an untrained encoder
                spec = replace(spec, text=None)
            config = {
                "baseline": kind,
                "data": data.name,
                "data_fingerprint": data.fingerprint,
                "encoder": spec.to_json(),
                "seed": seed,
            }
            sparse = {**config, "encoder": schema.non_defaults(spec)}
            name = f"{kind}-{data.name}-seed{seed}-{schema.digest([CORE_VERSION, sparse])}"
            home = collectives.on_rank_zero(
                lambda: run_folder.create(self.runs_dir / schema.BASELINES, name, config)
            )
            self._made[kind] = (
                RawPixels(spec, self.hardware, seed)
                if kind == "pixels"
                else self.frozen(backbones.build(spec, seed), home),
                home,
            )
        return self._made[kind]
