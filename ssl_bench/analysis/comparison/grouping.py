"""Which scores belong together: rows by settings, columns by protocol, tables by data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from ssl_bench.runs import schema
from ssl_bench.utils.files import load_json

_NEEDED = (
    "group", "method", "seed", "eval", "protocol", "evaluated_on", "test_fingerprint",
    "test_images", "eval_precision", "score",
)  # fmt: skip
_TOLD = ("settings", "pretrained_on", "data_fingerprint", "eval_precision", "eval_seed")
_OF_RUNS = ("run", "group", "method", "settings", "pretrained_on", "data_fingerprint", "seed")


@dataclass(frozen=True)
class Column:
    """A score of an evaluation under a protocol.

    Attributes:
        variant: how the protocol differs from the evaluation's others, or "".
        unit: of the evaluation's headline; "" for its other scores.
        is_headline: whether it is the evaluation's first score, which alone is tested.
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
        """For a table's head."""
        title = f"{self.evaluation} {self.variant}".rstrip()
        return title if self.is_headline else f"{title}: {self.score}"


class Score(NamedTuple):
    """One number of one run, in a cell."""

    run: str
    seed: int
    value: float
    eval: str
    folder: str


@dataclass(frozen=True)
class Grouped:
    """Scores, each with the group and the column it belongs to.

    Attributes:
        rows: the scores with the columns of their runs, ``key`` and ``label`` of the group, and
            ``column``, the key of a `Column`. A seed of a group is there once.
        differing: by key of a group, the settings in which the method's groups differ.
        twins: runs of a seed that another run of the group has too, and that run, which stands for
            both.
    """

    rows: pd.DataFrame
    differing: Mapping[str, Mapping[str, Any]]
    twins: Mapping[str, str]
    notes: tuple[str, ...]


def rows(runs: pd.DataFrame, scores: pd.DataFrame) -> Grouped:
    """Tell groups and columns apart."""
    found = scores.merge(runs[list(_OF_RUNS)], on="run", how="inner")
    is_missing = found[list(_NEEDED)].isna()
    is_whole = ~is_missing.any(axis="columns")
    notes = [
        f"{run}: scores are left out, for these are not known of them: "
        + ", ".join(name for name in _NEEDED if part[name].any())
        for run, part in is_missing[~is_whole].groupby(found["run"], sort=False)
    ]
    found = found[is_whole]
    value = pd.to_numeric(found["value"], errors="coerce")
    own_seed = found["eval_seed"].isna() | (found["eval_seed"] == found["seed"])
    seed = "-seed" + found["eval_seed"].astype("Int64").astype("string")
    found = found.assign(
        value=value.where(np.isfinite(value)),
        eval_seed=found["eval_seed"].mask(own_seed),
        key=found["group"] + "-" + found["eval_precision"] + seed.mask(own_seed, ""),
        column=found["eval"] + "/" + found["protocol"] + "/" + found["score"],
    )
    labels: dict[str, str] = {}
    differing: dict[str, dict[str, Any]] = {}
    firsts = found.drop_duplicates("key").set_index("key")[[*_TOLD, "group", "method"]]
    for method, peers in firsts.groupby("method"):
        differing |= _differences({key: _told(row) for key, row in peers.to_dict("index").items()})
        words = {
            key: ", ".join(f"{name}={_word(value)}" for name, value in differing[key].items())
            for key in peers.index
        }
        own = {key: f"{method} {words[key]}".rstrip() for key in words}
        times = Counter(own.values())
        twins = [key for key in own if times[own[key]] > 1]
        for key in twins:
            own[key] += f" ({peers.loc[key, 'group'][:8]})"
        if twins:
            versions = peers.loc[twins, "data_fingerprint"].nunique()
            what = "on different versions of their data" if versions > 1 else "by different code"
            notes.append(
                f"{method}: groups of the same settings were made {what}; the hashes in brackets "
                "tell them apart"
            )
        labels |= own
    found, standing, doubled = _once(found.assign(label=found["key"].map(labels)))
    return Grouped(found, differing, standing, (*notes, *doubled))


def _once(found: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    """Runs of one seed in a group as one, since a copy or a repetition is no other observation.

    Where they disagree, their mean stands for them. The run that stands for them is one that ended,
    and whose cost is known if there is such a one.
    """
    seed = ["key", "seed"]
    order = 2 * found["step"].notna() + found["images_seen"].isna()
    ended = found.iloc[order.argsort(kind="stable")]
    first = ended.groupby(seed)["run"].first()
    own = pd.Series(first.reindex(pd.MultiIndex.from_frame(found[seed])).array, found.index)
    is_twin = own != found["run"]
    if not is_twin.any():
        return found, {}, []
    twins = dict(zip(found.loc[is_twin, "run"], own[is_twin], strict=True))
    place = [*seed, "column", "step"]
    # A twin's score stands only where the run that stands for it has none.
    both = found.assign(run=own, alias=found["run"])[own.isin(own[is_twin])]
    both = both.iloc[is_twin[both.index].argsort(kind="stable")]
    values = both.groupby(place, dropna=False)["value"]
    is_mixed = values.transform("nunique", dropna=False) > 1
    both["value"] = both["value"].mask(is_mixed, values.transform("mean"))
    notes = []
    for (label, number, run), part in both.groupby(["label", "seed", "run"]):
        others = sorted({*part["alias"]} - {run})
        differ = "; where their scores differ, their mean is taken" * bool(
            is_mixed[part.index].any()
        )
        if others:
            notes.append(
                f"{label}: seed {number:.0f} is counted once, as {run}, and is also that of "
                f"{', '.join(others)}{differ}"
            )
    merged = both.drop_duplicates(place)[found.columns]
    return pd.concat([found.drop(both.index), merged]).sort_index(), twins, notes


def order(group: Any) -> tuple[Any, ...]:
    """Sort groups by method and then by their settings, numbers as numbers."""
    values = [
        (name, (0, value, "") if isinstance(value, int | float) else (1, 0, str(value)))
        for name, value in group.differing.items()
    ]
    return (group.method, values, group.key)


def versions(rows: pd.DataFrame) -> list[str]:
    """Why tables of one data set are apart."""
    notes = []
    for data, part in rows.groupby("evaluated_on", sort=False):
        found = part.drop_duplicates(["test_fingerprint", "test_images"])
        if len(found) > 1:
            each = " / ".join(
                f"{row['test_fingerprint'][:8]} with {int(row['test_images']):,} test images"
                for _, row in found.iterrows()
            )
            notes.append(f"{data} in {len(found)} versions, in tables of their own: {each}")
    return notes


def by_device(rows: pd.DataFrame, runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Each score with its run's device, since a second on one is no second on another."""
    devices = runs.set_index("run")["device"].fillna("a device that is not known")
    rows = rows.assign(device=rows["run"].map(devices))
    names = sorted(rows["device"].unique())
    if len(names) < 2:
        return rows, []
    return rows, [f"seconds of different devices are in tables of their own: {' / '.join(names)}"]


def columns(rows: pd.DataFrame) -> tuple[tuple[Column, ...], list[str]]:
    """The columns of a table, headlines first, and why an evaluation has several."""
    found: list[Column] = []
    notes = []
    for name, part in rows.groupby("eval", sort=True):
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
    # Headlines first, and those first of which one is better than another.
    found.sort(key=lambda column: (not column.is_headline, column.better == "neither"))
    return tuple(found), notes


def _variants(protocols: pd.DataFrame) -> tuple[dict[str, str], str]:
    """In which settings protocols differ: of each one, and in words."""
    configs = {row["protocol"]: _config(row["folder"]) for _, row in protocols.iterrows()}
    hashes = {protocol: protocol for protocol in configs}
    known = [config for config in configs.values() if config is not None]
    if len(known) < len(configs):
        return hashes, f"{' / '.join(hashes)} (what differs cannot be read)"
    differing = _differences({p: config for p, config in configs.items() if config is not None})
    apart = list(dict.fromkeys(name for each in differing.values() for name in each))
    variants = {
        protocol: ", ".join(f"{name}={_word(value)}" for name, value in each.items())
        for protocol, each in differing.items()
    }
    reason = "; ".join(f"{n} {' / '.join(_word(config.get(n)) for config in known)}" for n in apart)
    if len(set(variants.values())) < len(variants):
        because = "; ".join(filter(None, [reason, "its code or the training images differ"]))
        return hashes, f"{' / '.join(hashes)} ({because})"
    return variants, reason


def _config(folder: str) -> Mapping[str, Any] | None:
    try:
        config = load_json(Path(folder) / schema.SCORES)["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return config if isinstance(config, dict) else None


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """Everything a group may differ in from others of its method."""
    settings = json.loads(row["settings"]) if isinstance(row["settings"], str) else {}
    told = {
        **settings,
        "pretrained_on": row["pretrained_on"],
        "evaluated_in": row["eval_precision"],
    }
    if not pd.isna(row["eval_seed"]):
        told["evaluated_with_seed"] = int(row["eval_seed"])
    return told


def _differences(peers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each peer, the settings that are not the same in all of them."""
    names = dict.fromkeys(name for each in peers.values() for name in each)
    apart = [n for n in names if len({_word(each.get(n)) for each in peers.values()}) > 1]
    return {
        key: {name: each[name] for name in apart if name in each} for key, each in peers.items()
    }


def _word(value: Any) -> str:
    """A setting in a label: 8.0 epochs are 8."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list | tuple):
        return "+".join(map(_word, value)) or "none"
    return "-" if value is None or value != value else str(value)
