"""How the settings of a run's method were chosen: by a search, by a preset, or by hand.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NOT_RECORDED = "not recorded"
"""What is known of a run without a record."""


@dataclass(frozen=True)
class ChosenBy:
    """How the settings of a run's method were chosen.

    Attributes:
        preset: whose values are taken where nothing else is said.
        tuned: what the method's class says of how it tuned that preset; "" if it did not.
        flags: the method's settings that are neither the preset's nor a search's.
        trials: of the search, the number that were judged; 0 without a search.
        trial_length: of each, as a share of the run's.
        space: what each of them drew, by flag: the range in words.
        draws: "random" or "sobol".
        search_seed: of the draws.
        judged_on: the data whose held-out images judged them.
        judged_by: the evaluation that did.
        scores: of the trials, by that evaluation, in their order.
        flops: of all trials' pre-training.
        config: the method's settings that were chosen; with others, the search does not count.
    """

    preset: str = ""
    tuned: str = ""
    flags: tuple[str, ...] = ()
    trials: int = 0
    trial_length: float = 1.0
    space: Mapping[str, str] = field(default_factory=dict)
    draws: str = ""
    search_seed: int = 0
    judged_on: str = ""
    judged_by: str = ""
    scores: tuple[float, ...] = ()
    flops: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)


def in_words(record: Mapping[str, Any] | None) -> str:
    """How settings were chosen, for a table: equal for those that were tuned alike.

    Args:
        record: a `ChosenBy` as a run has stored it. An empty one is of a method without settings.

    Returns:
        "" where there was nothing to choose.
    """
    if record is None:
        return NOT_RECORDED
    if record.get("trials"):
        trials, share = record["trials"], record.get("trial_length", 1)
        is_shorter = isinstance(share, int | float) and share != 1
        length = f" of {share:.3g} of the length" if is_shorter else ""
        noun = "trial" if trials == 1 else "trials"
        return f"{trials} {noun}{length}, held-out {record.get('judged_by')}"
    if not record:
        return ""
    if record.get("flags"):
        return "set by hand"
    tuned = record.get("tuned")
    return f"preset, tuned {tuned}" if isinstance(tuned, str) and tuned else "preset, not tuned"
