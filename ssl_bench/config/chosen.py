"""How the settings of a run's method were chosen: by a search, by a preset, or by hand.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ssl_bench.utils import typed_json
from ssl_bench.utils.files import Unreadable

NOT_RECORDED = "not recorded"
"""What is known of a run without a record."""
MOST_UNEQUAL = 2
"""How many times the cost of one search or of one training another one may have."""
ROLES = ("base_lr", "weight_decay", "crop_scale")
"""How the names of those settings end that searches cover in every method that has them."""

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class ChosenBy:
    """How the settings of a run's method were chosen; without anything, it has none to choose.

    Attributes:
        preset: whose values are taken where nothing else is said.
        tuned: what the method's class says of how it tuned that preset; "" if it did not, or where
            an old search has no ``tried``.
        flags: the method's settings that are neither the preset's nor a search's.
        trial: which trial of a search the run is, from 1; 0 if it is none.
        trials: of the search that has chosen, the number that were judged; 0 without a search.
        tried: how many it made, those that failed among them; 0 where it was not recorded.
        trial_length: of each, as a share of the run's.
        space: what each of them drew, by flag: the range in words.
        draws: "random" or "sobol".
        search_seed: of the draws.
        judged_on: the data whose held-out images judged them.
        judged_by: the evaluation that did.
        better: which of its scores are.
        scores: of the trials, by that evaluation, in their order.
        flops: of all trials' pre-training.
        config: the method's settings that were chosen; with others, the search does not count.
    """

    preset: str = ""
    tuned: str = ""
    flags: tuple[str, ...] = ()
    trial: int = 0
    trials: int = 0
    tried: int = 0
    trial_length: float = 1.0
    space: Mapping[str, str] = field(default_factory=dict)
    draws: str = ""
    search_seed: int = 0
    judged_on: str = ""
    judged_by: str = ""
    better: Better = "higher"
    scores: tuple[float, ...] = ()
    flops: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)


NOTHING = ChosenBy()


def read(record: Any) -> ChosenBy | None:
    """A record that a run has stored; None where it has none that can be read."""
    try:
        found: ChosenBy = typed_json.of(ChosenBy, record)
    except Unreadable:
        return None
    return found


def in_words(record: ChosenBy | None) -> str:
    """How settings were chosen, short enough for a table; "" where there was nothing to choose."""
    if record is None:
        return NOT_RECORDED
    if record == NOTHING:
        return ""
    if record.trials:
        return ", ".join(_search_in_words(record))
    if record.trial:
        return "a trial of a search"
    if record.flags:
        return "set by hand"
    return f"preset, tuned {record.tuned}" if record.tuned else "preset, not tuned"


def _search_in_words(record: ChosenBy) -> Iterator[str]:
    tried = record.tried or record.trials
    share = record.trial_length
    length = f" of {share:.3g} {'of' if share < 1 else 'times'} the length" if share != 1 else ""
    failed = f" ({tried - record.trials} failed)" if tried > record.trials else ""
    yield f"{tried} trial{'s' * (tried > 1)}{length}{failed}"
    yield f"held-out {record.judged_by}"
    if record.flags:
        yield f"{len(record.flags)} set by hand"
    if record.tuned or record.tried:
        yield f"the rest of {'a tuned' if record.tuned else 'an untuned'} preset"


def differences(a: ChosenBy | None, b: ChosenBy | None) -> Iterator[str]:
    """In what settings were chosen otherwise, so that a lead may be that of the tuning.

    How many settings of their own methods have is not the tuning's doing; of a setting that both
    have, one search should not leave out what the other one has. What their presets hold beside a
    search speaks against one of the two alone (see `comparison.fairness`). What is not recorded is
    not known to be alike.
    """
    if NOTHING in (a, b):
        return
    if a is None or b is None:
        yield "what is not recorded"
    elif not (a.trials and b.trials):
        if in_words(a) != in_words(b):
            yield "by what"
    else:
        less, more = sorted((a.flops, b.flops))
        is_other = {
            "trials": (a.tried or a.trials) != (b.tried or b.trials),
            "length of trials": a.trial_length != b.trial_length,
            "cost of the search": not 0 < more <= MOST_UNEQUAL * less,
            "judge": a.judged_by != b.judged_by,
            "held-out data": _data(a) != _data(b),
            "settings by hand beside it": {*a.flags} != {*b.flags},
        }
        yield from (what for what, differs in is_other.items() if differs)
        for role in ROLES:
            searched = [any(name.endswith(role) for name in each.space) for each in (a, b)]
            has = [any(name.endswith(role) for name in each.config) for each in (a, b)]
            if all(has) and searched[0] != searched[1]:
                yield f"{role.replace('_', ' ')} not searched in all"


def _data(record: ChosenBy) -> list[str]:
    """What has judged, wherever it lies."""
    return [each.rpartition("/")[2] for each in record.judged_on.split(",")]
