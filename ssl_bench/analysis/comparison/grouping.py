"""Which scores belong together: rows by settings, columns by protocol, tables by data."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from ssl_bench.runs import schema

_NEEDED = [
    *("group", "method", "seed", "eval", "protocol", "evaluated_on", "test_fingerprint"),
    *("test_images", "eval_precision", "score"),
]
_SETTINGS = ["settings", "pretrained_on", "data_fingerprint", "eval_precision", "eval_seed"]
_VERSION = ["test_fingerprint", "test_images"]
_LONGEST_LABEL = 48
"""Longer ones are replaced by letters, which a note explains."""
_OF_RUNS = ["run", "group", "method", "settings", "pretrained_on", "data_fingerprint", "seed"]


@dataclass(frozen=True)
class Column:
    """A score of an evaluation under a protocol.

    Attributes:
        variant: how the protocol differs from the evaluation's others, or "".
        unit: of the evaluation's headline; "" for its other scores.
        is_headline: whether it is the evaluation's first score, the only one that is tested.
    """

    evaluation: str
    protocol: str
    score: str
    variant: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    is_headline: bool

    @property
    def key(self) -> str:
        """Unique in a table."""
        return f"{self.evaluation}/{self.protocol}/{self.score}"

    @property
    def title(self) -> str:
        """The evaluation and its variant, with the score's name unless it is the headline."""
        title = f"{self.evaluation} {self.variant}".rstrip()
        return title if self.is_headline else f"{title}: {self.score}"

    @property
    def sign(self) -> int:
        """-1 where lower scores are better, else 1."""
        return -1 if self.better == "lower" else 1

    @property
    def is_ranked(self) -> bool:
        """Whether its scores say which group is better: a headline that is not neutral."""
        return self.is_headline and self.better != "neither"


class Score(NamedTuple):
    """One number of one run, in a cell."""

    run: str
    seed: int
    value: float
    eval: str
    folder: str


def group(
    runs: pd.DataFrame, scores: pd.DataFrame
) -> tuple[pd.DataFrame, list[str], dict[str, str], list[str]]:
    """Assign each score to its group and column.

    Returns:
        The scores with columns of their runs such as the device, ``key`` and ``label`` of the
        group, and ``column``, the key of a `Column`; each seed of a group is there once. The keys
        of the groups, by method and then by the settings in which its groups differ. Runs whose
        seed another run of the group has too, each with the run that represents both. Notes.
    """
    scores = scores.merge(runs[_OF_RUNS], on="run", how="inner")
    is_missing = scores[_NEEDED].isna()
    is_whole = ~is_missing.any(axis="columns")
    notes = [
        f"{run}: scores are left out, for these are not known of them: "
        + ", ".join(name for name in _NEEDED if part[name].any())
        for run, part in is_missing[~is_whole].groupby(scores["run"], sort=False)
    ]
    scores = scores[is_whole]
    value = pd.to_numeric(scores["value"], errors="coerce")
    has_run_seed = scores["eval_seed"].isna() | (scores["eval_seed"] == scores["seed"])
    seed = "-seed" + scores["eval_seed"].astype("Int64").astype("string")
    scores = scores.assign(
        value=value.where(np.isfinite(value)),
        eval_seed=scores["eval_seed"].mask(has_run_seed),
        key=scores["group"] + "-" + scores["eval_precision"] + seed.mask(has_run_seed, ""),
        column=scores["eval"] + "/" + scores["protocol"] + "/" + scores["score"],
    )
    labels: dict[str, str] = {}
    groups = scores.drop_duplicates("key").set_index("key")[[*_SETTINGS, "group", "method"]]
    for method, peers in groups.groupby("method"):
        rows = peers.to_dict("index")
        differing = differences({key: settings_of(row) for key, row in rows.items()})
        keys = sorted(differing, key=lambda key: (_order(differing[key]), key))
        told = described(differing)
        own = {key: f"{method} {told[key]}".rstrip() for key in keys}
        if max(map(len, own.values())) > _LONGEST_LABEL:
            long, own = own, {key: f"{method} {_letters(n)}" for n, key in enumerate(keys)}
            notes += [f"{own[key]}: {long[key].removeprefix(f'{method} ')}" for key in keys]
        times = Counter(own.values())
        ambiguous = [key for key in own if times[own[key]] > 1]
        for key in ambiguous:
            own[key] += f" ({peers.loc[key, 'group'][:8]})"
        if ambiguous:
            versions = peers.loc[ambiguous, "data_fingerprint"].nunique()
            cause = "on different versions of their data" if versions > 1 else "by different code"
            notes.append(
                f"{method}: groups of the same settings were made {cause}; the hashes in brackets "
                "tell them apart"
            )
        labels |= own
    scores, duplicates, merge_notes = _merge(scores.assign(label=scores["key"].map(labels)))
    scores = scores.assign(device=scores["run"].map(runs.set_index("run")["device"]))
    return scores, list(labels), duplicates, notes + merge_notes


def _merge(scores: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    """Merge runs of one seed in a group: a copy or a rerun is not another observation.

    Where they disagree, their mean is taken. They are represented by one whose training ended and
    whose cost is known, if there is such a run.
    """
    seed = ["key", "seed"]
    order = 2 * scores["step"].notna() + scores["images_seen"].isna()
    first = scores.iloc[order.argsort(kind="stable")].groupby(seed)["run"].first()
    chosen = pd.Series(first.reindex(pd.MultiIndex.from_frame(scores[seed])).array, scores.index)
    is_duplicate = chosen != scores["run"]
    if not is_duplicate.any():
        return scores, {}, []
    duplicates = dict(zip(scores.loc[is_duplicate, "run"], chosen[is_duplicate], strict=True))
    place = [*seed, "column", "step"]
    # A duplicate's score counts only where the run that represents it has none.
    both = scores.assign(run=chosen, alias=scores["run"])[chosen.isin(chosen[is_duplicate])]
    both = both.iloc[is_duplicate[both.index].argsort(kind="stable")]
    values = both.groupby(place, dropna=False)["value"]
    is_mixed = values.transform("nunique", dropna=False) > 1
    both["value"] = both["value"].mask(is_mixed, values.transform("mean"))
    notes = []
    for (label, number, run), part in both.groupby(["label", "seed", "run"]):
        others = sorted({*part["alias"]} - {run})
        if others:
            mean = "; where their scores differ, their mean is taken"
            notes.append(
                f"{label}: seed {number:.0f} is counted once, as {run}, and is also that of "
                f"{', '.join(others)}{mean if is_mixed[part.index].any() else ''}"
            )
    merged = both.drop_duplicates(place)[scores.columns]
    return pd.concat([scores.drop(both.index), merged]).sort_index(), duplicates, notes


def _letters(number: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    more, last = divmod(number, 26)
    return (_letters(more - 1) if more else "") + chr(ord("A") + last)


def _order(settings: Mapping[str, Any]) -> list[Any]:
    """What to sort groups by; numbers sort as numbers."""
    return [
        (name, (0, value, "") if isinstance(value, int | float) else (1, 0, str(value)))
        for name, value in settings.items()
    ]


def versions(scores: pd.DataFrame) -> dict[str, str]:
    """What tells a data set's versions apart in a title, by fingerprint; "" where there is one.

    The size of the images, or else the beginning of the fingerprint.
    """
    told: dict[str, str] = {}
    for _, part in scores.groupby("evaluated_on", sort=False):
        sizes: dict[str, str] = {}
        for fingerprint, of_version in part.groupby("test_fingerprint", sort=False):
            seen: set[Any] = {parse(t).get("image_size") for t in of_version["settings"].unique()}
            known = sorted({size for size in seen if schema.is_number(size)})
            sizes[str(fingerprint)] = f" at {' and '.join(map(str, known))} px" if known else ""
        times = Counter(sizes.values())
        for fingerprint, size in sizes.items():
            is_told = size and times[size] == 1
            several = "" if is_told else f" (version {fingerprint[:8]})"
            told[fingerprint] = f"{size}{several}" if len(sizes) > 1 else ""
    return told


def note_versions(scores: pd.DataFrame) -> list[str]:
    """Why one data set has several tables."""
    notes = []
    told = versions(scores)
    for data, part in scores.groupby("evaluated_on", sort=False):
        of_data = part.drop_duplicates(_VERSION)
        if len(of_data) > 1:
            each = " / ".join(
                f"{fingerprint[:8]}{told[fingerprint].partition(' (')[0]} with {int(images):,} "
                "test images"
                for fingerprint, images in of_data[_VERSION].to_numpy()
            )
            notes.append(f"{data} in {len(of_data)} versions, in tables of their own: {each}")
    return notes


def columns(scores: pd.DataFrame) -> tuple[tuple[Column, ...], list[str]]:
    """The columns of a table, headlines first, and why an evaluation has several."""
    found: list[Column] = []
    notes = []
    for name, part in scores.groupby("eval", sort=True):
        protocols = part.drop_duplicates("protocol")
        variants = dict.fromkeys(protocols["protocol"], "")
        if len(protocols) > 1:
            variants, reason = _variants(protocols)
            notes.append(f"{name} was run under {len(protocols)} protocols: {reason}")
        for _, row in part.drop_duplicates(["protocol", "score"]).iterrows():
            is_headline = bool(row["is_headline"])
            found.append(
                Column(
                    evaluation=str(name),
                    protocol=row["protocol"],
                    score=row["score"],
                    variant=variants[row["protocol"]],
                    unit=row["unit"] if is_headline else "",
                    better=row["better"] if is_headline else "neither",
                    is_headline=is_headline,
                )
            )
    # Headlines first, and among them those that rank the runs.
    found.sort(key=lambda column: (not column.is_headline, column.better == "neither"))
    return tuple(found), notes


def _variants(protocols: pd.DataFrame) -> tuple[dict[str, str], str]:
    """The settings in which protocols differ: those of each, and one sentence about all."""
    records = {
        row["protocol"]: schema.peek(Path(row["folder"]) / schema.SCORES)
        for _, row in protocols.iterrows()
    }
    configs = {protocol: record.get("config") for protocol, record in records.items()}
    hashes = {protocol: protocol for protocol in configs}
    known = {
        protocol: {**config, "reads": records[protocol].get("reads", "images")}
        for protocol, config in configs.items()
        if isinstance(config, dict)
    }
    if len(known) < len(configs):
        return hashes, f"{' / '.join(hashes)} (what differs cannot be read)"
    differing = differences(known)
    names = dict.fromkeys(name for each in differing.values() for name in each)
    variants = described(differing)
    reason = "; ".join(
        f"{name} {' / '.join(_format(config.get(name)) for config in known.values())}"
        for name in names
    )
    if len(set(variants.values())) < len(variants):
        because = "; ".join(filter(None, [reason, "its code or the training images differ"]))
        return hashes, f"{' / '.join(hashes)} ({because})"
    return variants, reason


def parse(text: Any) -> dict[str, Any]:
    """A value of a column of JSON, such as a run's flat settings; empty where there is none."""
    return schema.mapping(json.loads(text)) if isinstance(text, str) and text else {}


def settings_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in which a group may differ from others of its method.

    Args:
        row: a score that `group` has returned.
    """
    seed = row["eval_seed"]
    return {
        **parse(row["settings"]),
        "pretrained_on": row["pretrained_on"],
        "evaluated_in": row["eval_precision"],
        **({} if pd.isna(seed) else {"evaluated_with_seed": int(seed)}),
    }


def differences(peers: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """For each peer, its settings that are not the same in all of them."""
    names = dict.fromkeys(name for each in peers.values() for name in each)
    apart = [n for n in names if len({_format(each.get(n)) for each in peers.values()}) > 1]
    return {
        key: {name: each[name] for name in apart if name in each} for key, each in peers.items()
    }


def described(differing: Mapping[Any, Mapping[str, Any]]) -> dict[Any, str]:
    """A label of each peer: ``mask_ratio=0.5, epochs=8``.

    Numbers have four digits, and all of theirs where four would not tell every peer apart.

    Args:
        differing: what `differences` has found.
    """
    short, whole = (
        {
            key: ", ".join(f"{name}={_format(value, digits)}" for name, value in settings.items())
            for key, settings in differing.items()
        }
        for digits in (4, None)
    )
    return short if len({*short.values()}) == len(short) else whole


def _format(value: Any, digits: int | None = None) -> str:
    """A setting's value in a label: 8.0 epochs are 8."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, float) and digits and math.isfinite(value):
        return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    if isinstance(value, list | tuple):
        return "+".join(_format(each, digits) for each in value) or "none"
    return "-" if value is None or value != value else str(value)
