"""``ssl-bench sweep --search``: what trials draw, and what is run once they are done."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import EXAMPLE_METHOD
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_bench.api import registry
from ssl_bench.api.ranges import LogUniform, OneOf, Range, Uniform
from ssl_bench.api.registry import Plugin
from ssl_bench.cli import flags, sweep_args
from ssl_bench.config import chosen
from ssl_bench.errors import UserError
from ssl_bench.experiment.run_config import RunConfig, text_of
from ssl_bench.runs import schema
from ssl_bench.sweep import search
from ssl_bench.sweep.grid import Cell, Final, Grid
from ssl_bench.utils.files import write_json

METHODS = list(registry.discover("method").values())
SHARES = st.floats(0, 1, exclude_max=True)
HOW = pytest.mark.parametrize("how", ["random", "sobol"])


def sweep(*words: object) -> Grid:
    return sweep_args.parse([str(word) for word in words])


def evals_of(final: Final) -> list[str]:
    [names] = {tuple(plugin.name for plugin in config.evals) for config in final.configs}
    return list(names)


def configs(cells: Sequence[Cell]) -> list[Any]:
    return [cell.config.method_config for cell in cells]


@given(low=st.floats(1e-9, 1e6), factor=st.floats(1, 1e6), u=SHARES, log=st.booleans())
def test_drawn_numbers_lie_in_their_range_and_fit_a_command_line(
    low: float, factor: float, u: float, log: bool
) -> None:
    range_ = LogUniform(low, low * factor) if log else Uniform(low, low * factor)
    value = range_.at(u)
    assert low <= value <= low * factor
    is_end = value in (low, low * factor)
    assert is_end or value == float(f"{value:.4g}")
    assert float(text_of(value)) == value


@given(low=st.integers(-50, 50), more=st.integers(0, 50), u=SHARES)
def test_whole_numbers_reach_both_ends(low: int, more: int, u: float) -> None:
    range_ = Uniform(low, low + more, whole=True)
    assert isinstance(range_.at(u), int) and low <= range_.at(u) <= low + more
    assert range_.at(0.0) == low and range_.at(1 - 1e-12) == low + more


def test_orders_of_magnitude_are_alike() -> None:
    middle = LogUniform(1e-4, 1e-2).at(0.5)
    assert middle == pytest.approx(1e-3)
    assert Uniform(1, 3).at(0.5) == 2
    assert [OneOf(("a", "b")).at(u) for u in (0, 0.49, 0.5, 0.99)] == ["a", "a", "b", "b"]


SPACE: dict[str, Range] = {"rate": LogUniform(1e-4, 1e-2), "ratio": Uniform(0, 1)}


@HOW
@given(few=st.integers(1, 20), more=st.integers(0, 20), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_longer_search_begins_with_a_shorter_one(
    how: str, few: int, more: int, seed: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = search.draw(how, SPACE, few, seed, "mae")
        assert len(short) == few
        assert search.draw(how, SPACE, few + more, seed, "mae")[:few] == short
        assert search.draw(how, SPACE, few, seed + 1, "mae") != short
        assert search.draw(how, SPACE, few, seed, "mocov3") != short


def test_a_fixed_flag_moves_no_other_random_draw() -> None:
    alone = search.draw("random", {"rate": SPACE["rate"]}, 5, 0)
    assert [{"rate": row["rate"]} for row in search.draw("random", SPACE, 5, 0)] == alone


@HOW
def test_draws_cover_the_range(how: str) -> None:
    ratios = [row["ratio"] for row in search.draw(how, SPACE, 256, 0)]
    counts = [sum(low / 8 <= ratio < (low + 1) / 8 for ratio in ratios) for low in range(8)]
    assert sum(counts) >= 255 and min(counts) >= 16
    if how == "sobol":
        assert max(counts) - min(counts) <= 2


def test_a_draw_is_the_same_everywhere() -> None:
    """Written down once: another number here would make other trials of an old command."""
    [first, *_] = search.draw("random", SPACE, 1, 0, "mae")
    assert first == {"rate": 0.000296, "ratio": 0.2406}


@HOW
def test_each_method_has_as_many_trials(how: str) -> None:
    found = sweep("--method", "mae,mocov3,random-init", "--search", how, "--trials", 5)
    methods = [cell.method for cell in found.cells]
    assert methods == ["mae"] * 5 + ["mocov3"] * 5 + ["random-init"]
    assert [cell.trial for cell in found.cells] == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1]
    for method, cells in (("mae", found.cells[:5]), ("mocov3", found.cells[5:10])):
        ranges = registry.find("method", method).search()
        drawn = configs(cells)
        for name in ranges:
            assert len({getattr(config, name) for config in drawn}) == 5
        for cell, config in zip(cells, drawn, strict=True):
            assert cell.label.startswith(f"{method}, trial {cell.trial}: ")
            for name in ranges:
                label = f"{name.replace('_', ' ')} {text_of(getattr(config, name))}"
                assert label in cell.label
    longer = sweep("--method", "mae", "--search", how, "--trials", 9)
    assert longer.cells[:5] == found.cells[:5]


def test_trials_never_meet_the_test_images_and_are_scored_by_one_evaluation() -> None:
    found = sweep("--search", "random", "--trials", 2, "--evals", "linear,knn", "--seed", "3..5")
    for request in (cell.config for cell in found.cells):
        assert request.settings.data == "fashion-mnist@validation"
        assert request.settings.seed == 3
        assert [plugin.name for plugin in request.evals] == ["linear"]
    assert [(f.seeds, evals_of(f)) for f in found.finals] == [((3, 4, 5), ["linear", "knn"])]
    assert {(f.method, f.trials, f.choose_by) for f in found.finals} == {("mae", (0, 1), "linear")}


def test_what_chooses_may_be_named() -> None:
    found = sweep("--search", "random", "--trials", 1, "--evals", "linear", "--choose-by", "knn")
    [final] = found.finals
    assert (final.choose_by, evals_of(final)) == ("knn", ["linear"])
    [request] = [cell.config for cell in found.cells]
    assert [plugin.name for plugin in request.evals] == ["knn"]


def test_without_evals_the_first_of_those_that_run_unasked_chooses() -> None:
    unasked = [plugin.name for plugin in flags.parse_run([]).evals]
    [final] = sweep("--search", "random", "--trials", 1).finals
    assert (final.choose_by, evals_of(final), final.seeds) == (unasked[0], unasked, (0,))


def test_one_value_fixes_a_flag_and_several_are_drawn_among() -> None:
    found = sweep(
        *("--search", "random", "--trials", 30, "--mask-ratio", "0.6", "--flip", "yes,no"),
        *("--weight-decay", "0,0.1", "--backbone", "vit_nano,vit_mini"),
    )
    drawn = configs(found.cells)
    assert {config.mask_ratio for config in drawn} == {0.6}
    assert {config.flip for config in drawn} == {True, False}
    assert {config.weight_decay for config in drawn} == {0, 0.1}
    assert len({config.base_lr for config in drawn}) == 30
    assert all("mask ratio" not in cell.label for cell in found.cells)
    backbones = [cell.config.settings.backbone for cell in found.cells[:8]]
    assert set(backbones) == {"vit_nano", "vit_mini"}


def test_nothing_to_draw_is_one_trial() -> None:
    fixed = [f"--{name.replace('_', '-')}=0.2" for name in registry.find("method", "mae").search()]
    [cell] = sweep("--search", "sobol", "--trials", 4, *fixed).cells
    assert cell.label == "mae, trial 1"
    few = sweep("--search", "random", "--trials", 9, *fixed[1:], "--base-lr", "1e-3,2e-3")
    assert len(few.cells) == 2 and few.finals[0].trials == (0, 1)


@pytest.mark.parametrize("data", ["fashion-mnist", "./images", "imgs@2x"])
@pytest.mark.parametrize("evals", [(), ("knn", "linear")])
def test_finals_are_the_trials_on_all_images(data: str, evals: tuple[str, ...]) -> None:
    words = ["--search", "random", "--trials", 1, "--epochs", 3, "--no-flip", "--data", data]
    found = sweep(*words, *(["--evals", ",".join(evals)] if evals else []))
    [[final]] = [each.configs for each in found.finals]
    [trial] = [cell.config for cell in found.cells]
    assert trial.settings.data == f"{data}@validation"
    assert final.method_config == trial.method_config
    unasked = () if evals else tuple(plugin.name for plugin in flags.parse_run([]).evals)
    assert tuple(plugin.name for plugin in final.evals) == (evals or unasked)
    assert dataclasses.replace(final.settings, evals=()) == dataclasses.replace(
        trial.settings, evals=(), data=data
    )


def test_a_presets_data_are_held_out_of_too() -> None:
    found = sweep("--search", "random", "--trials", 1, "--preset", "imagenet-mae-vitb")
    [trial] = [cell.config for cell in found.cells]
    assert trial.settings.data == "./imagenet@validation"
    [[final]] = [each.configs for each in found.finals]
    assert final == dataclasses.replace(
        flags.parse_run(["--preset", "imagenet-mae-vitb", "--method", "mae"]),
        method_config=trial.method_config,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trials", 2, "--data", "a,b"], "--data has several values"),
        (["--trials", 2, "--preset", "quick,small"], "--preset has several values"),
        (["--trials", 2, "--data", "cifar10@validation"], "--data cifar10 would work"),
        (["--trials", 2, "--evals", "none"], "--choose-by or --evals"),
        (["--trials", 2, "--choose-by", "knm"], "unknown eval 'knm'"),
        (["--trials", 0], "trials 0 is out of range"),
        (["--trials", 5001, "--method", "mae,mocov3"], "a sweep of 10,002 cells"),
        (["--trials", 2, "--trial-length", 0.5], "--budget-flops or --epochs would work"),
        (
            ["--trials", 2, "--trial-length", 0.5, "--match", "run", "--method", "videomae"],
            "--budget-flops or --epochs",
        ),
        (["--trials", 2, "--trial-length", 1.5], "trial-length 1.5 is out of range"),
        ([], "needs a number of trials for each method, such as --trials 16"),
        (["--trials", 2, "--mask-ratio", "1.5,2"], "is impossible: --mask-ratio"),
    ],
)
def test_mistakes_in_a_search(words: list[object], said: str) -> None:
    with pytest.raises(UserError) as error:
        sweep("--search", "random", *words)
    assert said in str(error.value)


def test_a_method_without_ranges_says_what_to_do(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text(EXAMPLE_METHOD.read_text())
    words = ("--method", own, "--search", "random", "--trials", 3)
    with pytest.raises(UserError, match=r"'mine' declares no ranges .*--mine\.base-lr"):
        sweep(*words)
    found = sweep(*words, "--mine.noise", "0.2,0.4")
    assert {config.noise for config in configs(found.cells)} <= {0.2, 0.4}


def test_a_range_of_no_flag_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    text = EXAMPLE_METHOD.read_text().replace("import Batch", "import OneOf, Batch")
    own.write_text(text + '\n    search_space = {"nois": OneOf((0, 1))}\n')
    with pytest.raises(UserError, match=r"search_space of .*mine\.py 'nois'; did you mean 'noise'"):
        sweep("--method", own, "--search", "random", "--trials", 3)


def test_the_ranges_are_no_part_of_a_methods_code(tmp_path: Path) -> None:
    """What is searched later changes no name of a run folder."""
    text = EXAMPLE_METHOD.read_text()
    line = "from ssl_bench.models import encoders"
    assert line in text
    searched = text.replace(line, f"from ssl_bench.api.ranges import Uniform\n{line}")
    searched += '\n    search_space = {"noise": Uniform(0.1, 1.0)}\n'
    alone = text.replace(line, f"{line}\nfrom ssl_bench.api.ranges import LogUniform, OneOf")
    hashes = set()
    for name, content in (("a", text), ("b", searched), ("c", alone)):
        (tmp_path / f"{name}.py").write_text(content)
        hashes.add(registry.find("method", str(tmp_path / f"{name}.py")).fingerprint)
    assert len(hashes) == 1
    changed = text.replace('"(0, inf)"] = 0.5', '"(0, inf)"] = 0.6')
    assert changed != text
    (tmp_path / "d.py").write_text(changed)
    assert registry.find("method", str(tmp_path / "d.py")).fingerprint not in hashes


@pytest.mark.parametrize("method", [m.name for m in METHODS if m.search()])
@pytest.mark.parametrize("preset", ["quick", "small"])
def test_a_presets_own_values_lie_in_the_ranges(method: str, preset: str) -> None:
    plugin: Plugin = registry.find("method", method)
    config = flags.parse_run(["--method", method, "--preset", preset]).method_config
    for name, range_ in plugin.search().items():
        if isinstance(range_, Uniform | LogUniform):
            assert range_.low <= getattr(config, name) <= range_.high, name


def test_trials_take_the_first_length_and_what_has_won_runs_under_each() -> None:
    words = ("--search", "sobol", "--trials", 3, "--budget-flops", "2e10,5e9,8e10", "--seed", "0,1")
    found = sweep(*words)
    assert {cell.config.settings.budget_flops for cell in found.cells} == {2e10}
    assert len(found.cells) == 3
    [final] = found.finals
    assert [*final.lengths] == [{"budget_flops": each} for each in (2e10, 5e9, 8e10)]
    assert "budget_flops" not in final.search.space


@pytest.mark.parametrize(
    ("flag", "given", "of_trials"),
    [
        ("budget-flops", "2e10,8e10", 5e9),
        ("epochs", "2", 0.5),
    ],
)
def test_trials_may_be_shorter_than_what_has_won(flag: str, given: str, of_trials: object) -> None:
    words = ("--search", "sobol", "--trials", 3, f"--{flag}", given)
    name = flag.replace("-", "_")
    found, long = sweep(*words, "--trial-length", 0.25), sweep(*words)
    assert {getattr(cell.config.settings, name) for cell in found.cells} == {of_trials}
    assert configs(found.cells) == configs(long.cells)
    [final], [full] = found.finals, long.finals
    assert (final.configs, final.lengths) == (full.configs, full.lengths)
    records = [dataclasses.replace(each.search, trials=3) for each in (final, full)]
    assert records[0] == dataclasses.replace(records[1], trial_length=0.25)
    shorter, usual = map(chosen.in_words, records)
    assert shorter != usual and "0.25" in shorter


def test_a_search_knows_what_it_draws_and_where_it_judges() -> None:
    words = ("--search", "sobol", "--trials", 3, "--search-seed", 7, "--mask-ratio", 0.6)
    [final] = sweep(*words, "--flip", "yes,no", "--evals", "linear").finals
    known = final.search
    assert known.space.keys() == {*registry.find("method", "mae").search(), "flip"} - {"mask_ratio"}
    assert (known.draws, known.search_seed, known.judged_by) == ("sobol", 7, "linear")
    assert known.judged_on == "fashion-mnist@validation"
    assert known.flags == ("mask_ratio",)
    assert known.tuned == registry.find("method", "mae").declared.tuned["quick"] != ""


@HOW
def test_trials_are_the_draws_of_the_search_seed(how: str) -> None:
    words = ("--search", how, "--trials", 3)
    [usual, zero, other] = [
        sweep(*words, *more).cells for more in ((), ("--search-seed", 0), ("--search-seed", 7))
    ]
    assert usual == zero
    drawn = search.draw(how, registry.find("method", "mae").search(), 3, 7, "mae")
    found = [{name: getattr(config, name) for name in drawn[0]} for config in configs(other)]
    assert found == drawn
    assert not {cell.label for cell in other} & {cell.label for cell in usual}


def test_a_search_of_an_untuned_preset_says_so() -> None:
    [final] = sweep("--search", "random", "--trials", 1, "--preset", "small").finals
    assert (final.search.tuned, final.search.flags) == ("", ())


def test_a_trial_says_that_it_is_one() -> None:
    found = sweep("--search", "sobol", "--trials", 3, "--method", "mae,random-init")
    *trials, untrained = [cell.config for cell in found.cells]
    for number, config in enumerate(trials, 1):
        again = RunConfig.from_json(json.loads(json.dumps(config.to_json())))
        assert again.chosen_by["trial"] == number
        known = chosen.read(again.chosen_by)
        assert chosen.in_words(known) == "a trial of a search"
        by_hand = chosen.read(again.with_values({"flip": not again.method_config.flip}).chosen_by)
        assert chosen.in_words(by_hand) == "set by hand"
    assert untrained.chosen_by == {}


def judged(folder: Path, better: str, *scores: float) -> list[Any]:
    """The trials of a search, once they are done, of which each took ten times the one before."""
    trials: list[Any] = []
    for number, score in enumerate(scores, 1):
        home = folder / f"run-{number}" / schema.EVALS / "knn-1"
        home.mkdir(parents=True)
        write_json(home / schema.SCORES, {"better": better})
        entry = SimpleNamespace(
            run=f"run-{number}", evals={"knn": "knn-1"}, flops=10**number, label="mae"
        )
        trials.append(SimpleNamespace(state="done", entry=entry, scores={"knn": score}))
    return trials


@pytest.mark.parametrize(("better", "best"), [("higher", 2), ("lower", 3), ("neither", None)])
def test_which_trial_is_the_best_the_evaluation_says(
    better: str, best: int | None, tmp_path: Path
) -> None:
    """And what the run keeps of its search counts the trials that failed."""
    found = sweep("--search", "random", "--trials", 4, "--evals", "knn", "--runs-dir", tmp_path)
    trials = [SimpleNamespace(state="failed"), *judged(tmp_path, better, 0.5, 0.9, 0.2)]
    if best is None:
        with pytest.raises(UserError, match="--choose-by"):
            search.best_on_all_images(found, trials, False)
    else:
        [cell], _ = search.best_on_all_images(found, trials, False)
        assert cell.config.method_config == found.finals[0].configs[best].method_config
        known = chosen.read(cell.config.chosen_by)
        assert known is not None
        assert (known.trials, known.tried, known.flops) == (3, 4, 1110)
        assert (known.scores, known.better) == ((0.5, 0.9, 0.2), better)


def test_each_length_knows_which_share_of_it_the_trials_were(tmp_path: Path) -> None:
    words = ("--search", "sobol", "--trials", 2, "--trial-length", 0.25, "--evals", "knn")
    lengths = ("--budget-flops", "2e10,5e9,1e9", "--seed", "0,1", "--runs-dir", tmp_path)
    trials = judged(tmp_path, "higher", 0.5, 0.9)
    cells, _ = search.best_on_all_images(sweep(*words, *lengths), trials, False)
    found = [(cell.config.settings, chosen.read(cell.config.chosen_by)) for cell in cells]
    told = {of.budget_flops: chosen.in_words(known).partition(",")[0] for of, known in found}
    assert told == {
        2e10: "2 trials of 0.25 of the length",
        5e9: "2 trials",
        1e9: "2 trials of 5 times the length",
    }
    assert [of.seed for of, _ in found] == 3 * [0, 1]


LEARN = [each for each in METHODS if dataclasses.fields(each.config)]
"""Methods that have anything to choose; those of text alone have no crops."""


@pytest.mark.parametrize("plugin", LEARN, ids=lambda plugin: plugin.name)
def test_every_method_is_searched_in_the_same_roles(plugin: Plugin) -> None:
    """Who may switch crops off, or take ten times the learning rate, is not a question of luck."""
    space = plugin.search()
    rate = space["base_lr"]
    assert isinstance(rate, LogUniform)
    assert rate.high / rate.low >= 50 and 1e-3 <= rate.high <= 1e-2
    own = {field.name for field in dataclasses.fields(plugin.config)}
    for role in chosen.ROLES:
        if any(name.endswith(role) for name in own):
            assert any(name.endswith(role) for name in space), role
    if plugin.declared.columns & {"image", "clip"}:
        crops = space["crop_scale"]
        assert isinstance(crops, Uniform)
        assert crops.low <= 0.2 and crops.high == 1
    assert len(space) >= 3


RATES, DECAYS, CROPS = LogUniform(5e-5, 5e-3), LogUniform(0.01, 0.3), Uniform(0.08, 1.0)
ALIKE: list[tuple[str, dict[str, Range]]] = [
    (
        "barlow-twins byol moco mocov3 simclr simsiam vicreg",
        {"base_lr": RATES, "weight_decay": DECAYS, "crop_scale": CROPS},
    ),
    (
        "dino ibot ijepa",
        {
            "base_lr": RATES,
            "momentum": OneOf((0.9, 0.96, 0.99, 0.996)),
            "final_weight_decay": LogUniform(0.04, 0.5),
        },
    ),
    ("mae videomae", {"base_lr": LogUniform(1e-4, 1e-2), "warmup": Uniform(0.02, 0.2)}),
    ("beit-kmeans mae simmim videomae", {"weight_decay": LogUniform(0.01, 0.2)}),
    ("data2vec ijepa mae simmim videomae", {"crop_scale": Uniform(0.2, 1.0)}),
    ("bert lejepa supervised", {"weight_decay": DECAYS}),
    ("beit-kmeans lejepa simmim", {"base_lr": RATES}),
    ("beit-kmeans supervised", {"crop_scale": CROPS}),
]


@pytest.mark.parametrize(("methods", "ranges"), ALIKE)
def test_methods_that_are_alike_are_searched_in_the_same_ranges(
    methods: str, ranges: dict[str, Range]
) -> None:
    """Else a comparison would be one of ranges."""
    for name in methods.split():
        assert registry.find("method", name).search().items() >= ranges.items(), name


ROLES = ("base_lr", "crop_scale", "weight_decay", "final_weight_decay")
ELSEWHERE = {("beit-kmeans", "codebook_size"), ("data2vec", "momentum")}
"""What suits another tokenizer, or trainings that are far longer."""


@pytest.mark.parametrize("plugin", LEARN, ids=lambda plugin: plugin.name)
def test_what_is_published_of_a_methods_own_settings_is_among_what_is_searched(
    plugin: Plugin,
) -> None:
    for name, range_ in plugin.search().items():
        if name in ROLES or (plugin.name, name) in ELSEWHERE:
            continue
        known = [getattr(plugin.config(), name)]
        presets = plugin.presets().items()
        known += [
            v[name] for preset, v in presets if name in v and preset not in ("quick", "small")
        ]
        if isinstance(range_, OneOf):
            assert {*known} <= {*range_.values}, name
            continue
        assert all(range_.low <= value <= range_.high for value in known), name
        if isinstance(range_, LogUniform):
            assert range_.high >= 10 * range_.low, name
