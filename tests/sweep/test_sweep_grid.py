"""``ssl-bench sweep``: which cells its words and its file make, and what they refuse."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssl_bench.api import registry
from ssl_bench.cli import flags, sweep_args
from ssl_bench.cli.sweep_args import toml
from ssl_bench.config.settings import Settings
from ssl_bench.config.sweep_settings import ClusterSettings, SweepSettings
from ssl_bench.errors import UserError
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.sweep.grid import Cell, Grid

METHODS = list(registry.discover("method").values())
FEW = settings(max_examples=10, deadline=None)


def sweep(*words: object) -> Grid:
    return sweep_args.parse([str(word) for word in words])


def values(cells: Sequence[Cell], *names: str) -> list[tuple[Any, ...]]:
    """What the cells give to flags of the run or of its method."""
    found = []
    for request in requests(cells):
        everything = {**vars(request.settings), **vars(request.method_config)}
        found.append(tuple(everything[name] for name in names))
    return found


def requests(cells: Sequence[Cell]) -> list[RunConfig]:
    return [cell.config for cell in cells]


@pytest.fixture(autouse=True)
def nobodys_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No config file of whoever runs the tests, and none here."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def test_a_flag_goes_to_the_methods_that_have_it() -> None:
    found = sweep("--method", "mae,mocov3", "--mask-ratio", "0.5,0.75,0.9", "--seed", "0..4")
    of_mae = [cell for cell in found.cells if cell.method == "mae"]
    of_moco = [cell for cell in found.cells if cell.method == "mocov3"]
    assert values(of_mae, "mask_ratio", "seed") == list(
        itertools.product([0.5, 0.75, 0.9], range(5))
    )
    assert values(of_moco, "method", "seed") == [("mocov3", seed) for seed in range(5)]
    assert len(found.cells) == 20
    assert of_mae[1].label == "mae, mask ratio 0.5, seed 1"
    assert of_moco[3].label == "mocov3, seed 3"


def test_a_flag_of_one_method_alone_wins_there() -> None:
    words = ("--method", "mae,mocov3", "--base-lr", "1e-4", "--mocov3.base-lr", "1e-3,2e-3")
    for order in (words, (*words[:2], *words[4:], *words[2:4])):
        found = sweep(*order)
        assert values(found.cells, "method", "base_lr") == [
            ("mae", 1e-4), ("mocov3", 1e-3), ("mocov3", 2e-3)
        ]  # fmt: skip
    assert values(sweep("--mae.seed", "3").cells, "seed") == [(3,)]


def test_flags_of_several_values_are_not_expanded() -> None:
    [cell] = sweep("--evals", "knn,linear", "--linear-learning-rates", "0.1,0.3").cells
    request = cell.config
    assert [plugin.name for plugin in request.evals] == ["knn", "linear"]
    assert list(request.evals.values())[1].learning_rates == (0.1, 0.3)
    lengths = sweep("--evals", "linear", "--linear-epochs", "1,2").cells
    assert [cell.label for cell in lengths] == ["mae, linear epochs 1", "mae, linear epochs 2"]


@pytest.mark.parametrize(
    ("words", "flips"),
    [
        (["--flip"], [True]),
        (["--no-flip"], [False]),
        (["--flip", "yes,no"], [True, False]),
        (["--flip=no"], [False]),
        (["--flip", "False,true"], [False, True]),
        (["--flip", "--seed", "1"], [True]),
    ],
)
def test_booleans(words: list[str], flips: list[bool]) -> None:
    found = sweep(*words)
    assert values(found.cells, "flip") == [(flip,) for flip in flips]
    if len(flips) > 1:
        assert [cell.label for cell in found.cells] == [
            f"mae, flip {'yes' if flip else 'no'}" for flip in flips
        ]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("3", [3]),
        ("0..4", [0, 1, 2, 3, 4]),
        ("2..2", [2]),
        ("0..2,7", [0, 1, 2, 7]),
        ("7,0..2,1", [7, 0, 1, 2]),
        ("-1..1", [-1, 0, 1]),
    ],
)
def test_ranges_hold_both_ends(text: str, seeds: list[int]) -> None:
    assert values(sweep("--seed", text).cells, "seed") == [(seed,) for seed in seeds]


def test_any_whole_number_may_be_a_range() -> None:
    found = sweep("--decoder-depth", "1..3", "--patch-size", "2..3", "--image-size", "12")
    assert len(found.cells) == 6


@FEW
@given(
    ratios=st.lists(st.sampled_from(["0.5", "0.50", "5e-1", "0.6", "0.75"]), min_size=1),
    seeds=st.lists(st.integers(0, 9), min_size=1),
    flips=st.sampled_from([["yes"], ["no"], ["yes", "no"]]),
    methods=st.lists(st.sampled_from(["mae", "mocov3", "supervised"]), min_size=1),
)
def test_the_product_has_each_run_once(
    ratios: list[str], seeds: list[int], flips: list[str], methods: list[str]
) -> None:
    """Its size is that of the product of different values, however they are written."""
    words = ["--method", ",".join(methods), "--seed", ",".join(map(str, seeds))]
    named, flip_words = set(methods), ["--flip", ",".join(flips)]
    words += ["--mask-ratio", ",".join(ratios)] if "mae" in named else []
    words += flip_words if named & {"mae", "supervised"} else []
    cells = sweep(*words).cells
    each = {
        "mae": len(set(map(float, ratios))) * len(flips),
        "mocov3": 1,
        "supervised": len(flips),
    }
    assert len(cells) == len(set(seeds)) * sum(each[name] for name in named)
    again = requests(cells)
    assert RunConfig.from_json(json.loads(json.dumps(again[-1].to_json()))) == again[-1]
    assert all(one != other for one, other in itertools.combinations(again, 2))
    assert len({cell.label for cell in cells}) == len(cells)
    assert [request.method.name for request in again if request.method] == [
        cell.method for cell in cells
    ]


@FEW
@given(st.permutations(["--seed", "--epochs", "--base-lr", "--batch-size"]), st.booleans())
def test_words_of_a_cell_do_not_depend_on_the_order_of_flags(
    order: list[str], with_equals: bool
) -> None:
    given_ = {"--seed": "1..2", "--epochs": "1,2", "--base-lr": "1e-3", "--batch-size": "64"}
    words = ["--method", "mae"]
    for flag in order:
        words += [f"{flag}={given_[flag]}"] if with_equals else [flag, given_[flag]]
    expected = sweep("--method", "mae", *(word for pair in given_.items() for word in pair))
    assert sweep(*words).cells == expected.cells


@pytest.mark.parametrize(
    "words",
    [
        ["--mask-ratio", "0.5"],
        ["--no-flip", "--seed=3"],
        ["--preset", "imagenet-mocov3-vits", "--data", "fashion-mnist"],
        ["--method", "random-init", "--evals", "none"],
        ["--evals", "knn,linear", "--linear-epochs", "3", "--eval-every-with", "knn,linear"],
        ["--evals", "linear", "--eval-every", "0.5", "--knn-temperature", "0.1"],
        ["--preset", "imagenet-mae-vitb", "--linear-paper-epochs", "3"],
    ],
)
def test_a_cell_is_the_run_of_the_same_words(words: list[str]) -> None:
    assert requests(sweep(*words).cells) == [flags.parse_run(words)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "x"], "--seed"),
        (["--nonsense", "1"], "unknown flag '--nonsense'"),
        (["seed"], "unexpected argument 'seed'"),
        (["--seed", "1", "--seed", "2"], "given 2 times"),
        (["--epochs", "1", "--budget-flops", "1e9"], "one will do"),
        (["--preset", "imagenet-mae-vitb", "--method", "mocov3"], "another method"),
        (["--low-shot-shares", "0.1", "--evals", "knn"], "low-shot is not among"),
        (["--knn-temperature", "0.1", "--evals", "none"], "knn is not among"),
    ],
)
def test_words_that_make_no_run_make_no_sweep(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        flags.parse_run(words)
    with pytest.raises(UserError):
        sweep(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say what to sweep"),
        (["--mask-ratio"], "--mask-ratio: it needs a value"),
        (["--mask-ratio", ","], "--mask-ratio: it needs a value"),
        (["--flip", "maybe"], "--flip: 'maybe' is neither yes nor no"),
        (["--no-flip", "yes"], "--no-flip takes no value"),
        (["--no-flip", "--flip"], "flag '--flip' is given several times"),
        (["--seed", "4..0"], "range '4..0' is empty; 0..4 would work"),
        (
            ["--seed", "0..x"],
            "'0..x' is not a whole number or a range of whole numbers such as 0..4",
        ),
        (["--seed", "0..1000000000000"], "a sweep has 10,000 cells at most"),
        (["--seed", "0..999", "--epochs", "1,2,3,4,5,6,7,8,9,10,11"], "a sweep of 11,000 cells"),
        (["--seed", "1", "2"], "unexpected argument '2' after --seed"),
        (["--seed", "1", "--seed", "2"], "flag '--seed' is given several times"),
        (["--trials", "2", "--trials", "3"], "flag '--trials' is given several times"),
        (["--dry-run", "--no-dry-run"], "flag '--no-dry-run' is given several times"),
        (["--tempratur", "1", "--method", "mocov3"], "did you mean --temperature?"),
        (["--temperature", "1"], "simclr have it, 'mae' does not"),
        (["--fintune-epochs", "1"], "did you mean --finetune-epochs?"),
        (["--method", "mae,mocov4"], "unknown method 'mocov4'; did you mean 'mocov3'?"),
        (["--mocov3.seed", "1"], "--mocov3.seed: 'mocov3' is no method of this sweep: mae"),
        (["--mae.temperature", "1"], "unknown flag '--temperature'"),
        (["--mae.cluster", "local"], "unknown flag '--cluster'"),
        (["--mae.method", "mae"], "a method has no method"),
        (["--mask-ratio", "0.5,2"], "cell 'mae, mask ratio 2' is impossible: --mask-ratio 2.0"),
        (["--mask-ratio", "0.5,x"], "--mask-ratio 'x' is not a number"),
        (["--evals", "knm"], "unknown eval 'knm'"),
        (["--runs-dir", "a,b"], "--runs-dir has several values"),
        (["--epochs", "1", "--budget-flops", "1e12"], "one will do"),
        (["--trials", "3"], "--trials needs --search random or sobol"),
        (["--choose-by", "knn"], "--choose-by needs --search random or sobol"),
        (["--parallel-jobs", "0"], "--parallel-jobs 0 is out of range"),
        (["--cluster", "pbs"], "--cluster 'pbs' is none of local, slurm, debug"),
        (["--partition"], "--partition: it needs a value"),
        (["--time", "soon"], "time 'soon' is no time such as 90m, 4h or 1-12:00:00"),
        (["--time", "0h"], "no time at all"),
        (["--memory", "lots"], "memory 'lots' is no size such as 32G or 500M"),
        (["--memory", "0G"], "memory '0G' is none at all"),
        (["--cpus", "0"], "cpus 0 is out of range"),
        (["--gpus", "-1"], "gpus -1 is out of range"),
        (["--slurm-options", "exclude"], "--slurm-options 'exclude' is not KEY=VALUE"),
        (["--profile", "a100"], "unknown profile 'a100'"),
        (["--config", "no.toml"], "cannot read 'no.toml'"),
        (["no.toml"], "cannot read 'no.toml'"),
        (["mae"], "unexpected argument 'mae'; flags start with --"),
        (["--seed", "1", "a.toml"], "unexpected argument 'a.toml' after --seed"),
        (["-x", "3"], "unexpected argument '-x'"),
        (["--no-dry-run", "yes"], "--no-dry-run takes no value"),
        (["--no-retry-failed=no"], "--no-retry-failed takes no value"),
        (["--dry-run", "yes,no"], "--dry-run: it takes one value"),
        (["--no-parallel-jobs"], "unknown flag '--no-parallel-jobs'"),
        (["--parallel-jobs", "1,2"], "--parallel-jobs '1,2' is not a whole number"),
        (["--gpus", "x"], "--gpus 'x' is not a whole number"),
        (["--gpus="], "--gpus needs a value"),
        (["--gpus", "None"], "--gpus 'None' is not a whole number"),
        (["--cpus", "1.5"], "--cpus '1.5' is not a whole number"),
        (["--seed", "x"], "--seed 'x' is not a whole number"),
        (["--linear-learning-rates", "0.1,x"], "--linear-learning-rates 'x' is not a number"),
        (
            ["--mask-ratio", "0.5..0.9"],
            "'0.5..0.9' is not a number; ranges are for whole numbers, 0.5,0.7,0.9 would work",
        ),
        (["--mask-ratio", "low..0.9"], "numbers separated by commas would work"),
        (["--gpus", "8"], "--gpus asks Slurm for something; --cluster slurm would work"),
        (["--slurm-options", "a=1", "--cluster", "debug"], "--slurm-options asks Slurm"),
        (["--nodes", "2"], "nodes 2: the local cluster is this machine; --cluster slurm has more"),
        (["--nodes", "1,2", "--cluster", "debug"], "nodes 2: the debug cluster is this machine"),
    ],
)
def test_mistakes_get_one_clear_line(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        sweep_args.parse(words)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    for of_the_parser in ("Error parsing", "invalid literal", "instantiated", "could not convert"):
        assert of_the_parser not in str(error.value)


FILE = """
method = ["mae", "mocov3"]
seed = "0..1"
evals = ["knn", "linear"]
parallel-jobs = 3
[mae]
mask_ratio = [0.5, 0.75]
flip = [true, false]
[mocov3]
base-lr = 1e-3
[slurm]
partition = "gpu"
[slurm.big]
memory = "64G"
"""


def written(text: str) -> Path:
    path = Path("sweep.toml")
    path.write_text(text)
    return path


def test_a_file_makes_the_cells_that_flags_make() -> None:
    from_file = sweep(written(FILE))
    from_flags = sweep(
        *("--method", "mae,mocov3", "--seed", "0..1", "--evals", "knn,linear"),
        *("--mae.mask-ratio", "0.5,0.75", "--mae.flip", "yes,no", "--mocov3.base-lr", "1e-3"),
    )
    assert requests(from_file.cells) == requests(from_flags.cells)
    assert [cell.label for cell in from_file.cells] == [cell.label for cell in from_flags.cells]
    assert from_file.settings == SweepSettings(parallel_jobs=3)
    assert toml.read_sweep(Path("sweep.toml")).slurm == {
        "partition": "gpu",
        "big": {"memory": "64G"},
    }


NUMBERS = st.sampled_from([0.25, 0.5, 0.75, 1e-3])


@FEW
@given(
    ratios=st.lists(NUMBERS, min_size=1),
    depths=st.lists(st.integers(1, 4), min_size=1),
    flips=st.lists(st.booleans(), min_size=1),
    backbones=st.lists(st.sampled_from(["vit_nano", "vit_micro"]), min_size=1),
    rates=st.lists(NUMBERS, min_size=1),
)
def test_toml_and_flags_agree(
    ratios: list[float],
    depths: list[int],
    flips: list[bool],
    backbones: list[str],
    rates: list[float],
) -> None:
    toml = {
        "mask-ratio": ratios,
        "decoder_depth": depths,
        "flip": str(flips).lower(),
        "backbone": backbones,
        "linear-learning-rates": rates,
    }
    path = written("\n".join(f"{key} = {value}" for key, value in toml.items()))
    words = ["--mask-ratio", ",".join(map(str, ratios))]
    words += ["--decoder-depth", ",".join(map(str, depths))]
    words += ["--flip", ",".join(map(str, flips)), "--backbone", ",".join(backbones)]
    words += ["--linear-learning-rates", ",".join(map(str, rates))]
    assert requests(sweep(path).cells) == requests(sweep(*words).cells)


def test_a_list_may_be_longer_than_a_path() -> None:
    seeds = ["0", *["1"] * 3000]
    assert len(sweep("--seed", ",".join(seeds)).cells) == len(sweep("--seed", "0,1").cells)


def test_the_command_line_wins_over_the_file() -> None:
    path = written(FILE)
    found = sweep(path, "--mask-ratio", "0.9", "--parallel-jobs", "5", "--no-flip")
    of_mae = [cell for cell in found.cells if cell.method == "mae"]
    assert values(of_mae, "mask_ratio", "flip", "seed") == [(0.9, False, 0), (0.9, False, 1)]
    assert found.settings.parallel_jobs == 5
    one = sweep(path, "--mocov3.base-lr", "5e-4", "--seed", "7")
    assert values([c for c in one.cells if c.method == "mocov3"], "base_lr", "seed") == [(5e-4, 7)]
    assert len(one.cells) == 5


def test_tuples_in_toml_are_one_value_and_arrays_of_them_several() -> None:
    one = sweep(written('evals = ["knn", "linear"]\nlinear-learning-rates = [0.1, 0.3]'))
    assert [len(request.evals) for request in requests(one.cells)] == [2]
    two = sweep(written('evals = [["knn", "linear"], ["linear"]]\nlinear-weight-decays = "0,0.1"'))
    assert [len(request.evals) for request in requests(two.cells)] == [2, 1]


def test_combinations_that_are_no_grid() -> None:
    path = written(
        'seed = "0..1"\nbatch-size = 64\n'
        "[[cells]]\nmask-ratio = 0.5\nepochs = 4\n"
        "[[cells]]\nmask-ratio = 0.75\nepochs = [8, 16]\nbatch-size = 32\n"
        '[[cells]]\nmethod = "mocov3"\ntemperature = 0.1\n'
    )
    found = sweep(path).cells
    assert values(found[:6], "mask_ratio", "epochs", "batch_size", "seed") == [
        (ratio, epochs, size, seed)
        for ratio, epochs, size in ((0.5, 4, 64), (0.75, 8, 32), (0.75, 16, 32))
        for seed in (0, 1)
    ]
    assert values(found[6:], "method", "temperature", "seed") == [
        ("mocov3", 0.1, 0), ("mocov3", 0.1, 1)
    ]  # fmt: skip
    assert found[2].label == "mae, batch size 32, mask ratio 0.75, epochs 8, seed 0"
    assert len(sweep(path, "--mask-ratio", "0.6", "--epochs", "2", "--batch-size", "8").cells) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = \n", "line 1"),
        ("mask-ratoi = 0.5", "key 'mask-ratoi': unknown flag '--mask-ratoi'; did you mean"),
        ("mask-ratoi = 0.5\nepoch = 3", "key 'mask-ratoi' (did you mean --mask-ratio?)"),
        ("mask-ratoi = 0.5\n[mae]\nlr = 1", "key 'lr' in [mae] (--base-lr"),
        ("low-shot-shares = [0.1]\nevals = ['knn']", "--evals knn,low-shot would work"),
        ("temperature = 0.5", "key 'temperature': unknown flag"),
        ("[mae]\ntemperature = 0.5", "key 'temperature' in [mae]: unknown flag"),
        ("[mocov3]\nseed = 1", "key 'seed' in [mocov3]: 'mocov3' is no method of this sweep: mae"),
        ('mask-ratio = "half"', "key 'mask-ratio': 'half' is not a number"),
        ("mask-ratio = true", "key 'mask-ratio': true is not a number"),
        ("seed = 0.5", "key 'seed': 0.5 is not a whole number"),
        ('seed = "a..b"', "key 'seed': 'a..b' is not a whole number or a range"),
        ('flip = "yes"', "key 'flip': 'yes' is not yes or no"),
        ("flip = 1", "key 'flip': 1 is not yes or no"),
        ("backbone = false", "key 'backbone': false is not a text"),
        ("seed = []", "key 'seed': it needs a value"),
        ("seed = 1979-05-27", "key 'seed'"),
        ("seed = 1979-05-27", "key 'seed': 1979-05-27 is not a whole number"),
        (
            'mask-ratio = "0.5..0.9"',
            "not a number; ranges are for whole numbers, 0.5,0.7,0.9 would",
        ),
        ('cluster = "slrm"', "did you mean slurm?"),
        ("trials = 3", "--trials needs --search random or sobol"),
        ("[slurm]\nsetup = [12:00:00]", "[slurm]: setup [12:00:00] is not a text"),
        ('[slurm.big]\ngpus = "8"', "[slurm.big]: gpus '8' is not a whole number"),
        ('[slurm.big]\ntime = "soon"', "[slurm.big]: --time 'soon' is no time"),
        ("seed = [[1]]", "key 'seed'"),
        ("cells = 3", "'cells' is one table or more, each under [[cells]]"),
        ("cells = []", "'cells' is one table or more"),
        ("[[cells]]\nmask-ratoi = 1", "key 'mask-ratoi' in [[cells]] 1: unknown flag"),
        ('method = "mocov3"\n[[cells]]\nmask-cell = 2', "'mae' has it, 'mocov3' does not"),
        ('partition = "gpu"', "key 'partition' belongs into the table [slurm]"),
        ("slurm = 3", "'slurm' is a table"),
        ("[slurm]\npartitoin = 3", "[slurm] has an unknown key 'partitoin'"),
        ("[slurm]\npartition = 3", "[slurm]: partition 3 is not a text in quotes"),
        ("[slurm]\ngpus = true", "[slurm]: gpus true is not a whole number"),
        ('[slurm]\ntime = "soon"', "[slurm]: --time 'soon' is no time"),
        ("[slurm]\nsetup = [1]", "[slurm]: setup [1] is not a text, or an array of them"),
        ('parallel-jobs = "many"', "key 'parallel-jobs'"),
        ("parallel-jobs = [1, 2]", "key 'parallel-jobs': it takes one value"),
        ("parallel-jobs = 0", "--parallel-jobs 0 is out of range"),
        ('search = "random"\ntrials = 2\n[[cells]]\nseed = 1', "[[cells]] lists what to run"),
    ],
)
def test_mistakes_in_a_file_name_it(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        sweep(written(text))
    assert said in str(error.value)
    assert "sweep.toml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("parallel-jobs = 2", ["--search-seed", "x"], "--search-seed 'x' is not a whole number"),
        ("parallel-jobs = 2", ["--trials", "3"], "--trials needs --search random or sobol"),
        ('search = "random"', ["--parallel-jobs", "0"], "--parallel-jobs 0 is out of range"),
        (
            '[slurm]\ntime = "1h"',
            ["--slurm-options", "foo"],
            "--slurm-options 'foo' is not KEY=VALUE",
        ),
    ],
)
def test_a_mistake_of_the_command_line_is_not_the_files(
    text: str, words: list[str], said: str
) -> None:
    with pytest.raises(UserError) as error:
        sweep(written(text), *words)
    assert str(error.value).startswith(said)
    assert "sweep.toml" not in str(error.value)
    assert "(flags" not in str(error.value)


def test_a_file_that_is_no_text_is_refused() -> None:
    Path("sweep.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"sweep\.toml is no TOML"):
        sweep("sweep.toml")


def test_settings_of_the_sweep() -> None:
    found = sweep("--cluster", "debug", "--retry-failed", "--dry-run", "--eval-devices", "2")
    assert found.settings == SweepSettings(
        cluster="debug", retry_failed=True, dry_run=True, eval_devices=2
    )
    assert sweep("--runs-dir", "elsewhere").runs_dir == Path("elsewhere")
    off = sweep(written("dry-run = true"), "--no-dry-run")
    assert not off.settings.dry_run


def test_cluster_flags_win_over_the_file_it_over_the_config_and_that_over_defaults() -> None:
    Path("ssl-bench.toml").write_text(
        '[slurm]\npartition = "cpu"\naccount = "us"\ntime = 90\nsetup = "module load a,b"\n'
        '[slurm.a100]\npartition = "gpu"\ngpus = 4\nqos = "long"\n'
    )
    assert sweep("--cluster", "slurm").resources == ClusterSettings(
        partition="cpu", account="us", time="90", setup=("module load a,b",)
    )
    path = written('profile = "a100"\n[slurm]\nqos = "short"\nslurm-options = {exclude = "n1,n2"}')
    words = ["--cluster", "slurm", "--gpus", "8", "--setup", "echo a, b", "--setup", "echo c"]
    assert sweep(path, *words).resources == ClusterSettings(
        partition="gpu",
        account="us",
        qos="short",
        time="90",
        gpus=8,
        setup=("echo a, b", "echo c"),
        slurm_options=("exclude=n1,n2",),
    )


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        ([], [4]),
        (["--devices", "1"], [1]),
        (["--devices", "1,2"], [1, 2]),
        (["--devices", "8"], [8]),
        (["--search", "random", "--trials", "1", "--devices", "1"], [1]),
        (["--search", "random", "--trials", "1"], [4]),
    ],
)
def test_a_run_has_as_many_devices_as_its_job_has_gpus_unless_told(
    words: list[str], devices: list[int]
) -> None:
    found = sweep("--cluster", "slurm", "--gpus", "4", *words)
    assert values(found.cells, "devices") == [(count,) for count in devices]
    assert {c.settings.devices for f in found.finals for c in f.configs} <= set(devices)


def test_several_presets_are_several_runs() -> None:
    found = sweep("--preset", "quick,small", "--seed", "0,1", "--batch-size", "32")
    assert values(found.cells, "preset", "seed") == [
        ("quick", 0), ("quick", 1), ("small", 0), ("small", 1)
    ]  # fmt: skip
    assert requests(found.cells)[3] == flags.parse_run(
        ["--preset", "small", "--seed", "1", "--batch-size", "32"]
    )
    assert found.cells[3].label == "mae, preset small, seed 1"


def test_config_files_are_looked_for_here_then_at_home(tmp_path: Path) -> None:
    at_home = tmp_path / "home/.config/ssl-bench/config.toml"
    at_home.parent.mkdir(parents=True)
    at_home.write_text('[slurm]\npartition = "home"')
    assert sweep("--cluster", "slurm").resources.partition == "home"
    Path("ssl-bench.toml").write_text('[slurm]\npartition = "here"')
    assert sweep("--cluster", "slurm").resources.partition == "here"
    Path("other.toml").write_text('[slurm]\npartition = "other"')
    other = sweep("--cluster", "slurm", "--config", "other.toml")
    assert other.resources.partition == "other"


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_only_slurm_reads_what_is_asked_of_slurm(cluster: str) -> None:
    """A sweep's file may hold it for the day when the cluster is slurm."""
    Path("ssl-bench.toml").write_text("no TOML")
    path = written('profile = "a100"\nconfig = "no.toml"\n[slurm]\ngpus = 8\n')
    for words in (["--seed", "1"], [path]):
        assert sweep(*words, "--cluster", cluster).resources == ClusterSettings()
    Path("ssl-bench.toml").write_text("[slurm.a100]\ngpus = 8")
    for flag, value in (("profile", "a100"), ("config", "ssl-bench.toml")):
        with pytest.raises(UserError, match=f"^--{flag} asks Slurm for something; --cluster slurm"):
            sweep("--cluster", cluster, f"--{flag}", value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[slrum]\n", "unknown key 'slrum'; it has a table [slurm]"),
        ("slurm = 1\n", "'slurm' is a table"),
        ("[slurm.a100]\ngpu = 1\n", "[slurm.a100] has an unknown key 'gpu'"),
        ('[slurm.a100]\n[slurm.h100]\ngpus = "8"', "[slurm.h100]: gpus '8' is not a whole number"),
        ("[slurm.h100]\n", "unknown profile 'a100': ssl-bench.toml has h100"),
        ("[slurm]\nx\ny = 1", "line 2"),
    ],
)
def test_mistakes_in_a_config_file_name_it(text: str, said: str) -> None:
    Path("ssl-bench.toml").write_text(text)
    with pytest.raises(UserError) as error:
        sweep("--cluster", "slurm", "--profile", "a100")
    assert said in str(error.value)
    assert "ssl-bench.toml" in str(error.value)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90m", 90), ("4h", 240), ("1d", 1440), ("1d12h", 2160), ("1h 30m", 90), ("30s", 1),
        ("90", 90), ("90:01", 91), ("1:30:00", 90), ("1-12", 2160), ("1-12:30", 2190),
        ("1-12:00:00", 2160), ("4 hours", 240), ("1.5h", 90), ("10min", 10), ("10 Minutes", 10),
        ("2hours30mins", 150), ("0.5h", 30), ("61 sec", 2),
    ],
)  # fmt: skip
def test_times(text: str, minutes: int) -> None:
    assert ClusterSettings(time=text).minutes == minutes


@pytest.mark.parametrize(
    ("text", "mib"),
    [("", None), ("32G", 32768), ("500M", 500), ("500", 500), ("1T", 2**20), ("2048k", 2),
     ("16GB", 16384), ("16 GiB", 16384)],
)  # fmt: skip
def test_sizes_of_memory(text: str, mib: int | None) -> None:
    assert ClusterSettings(memory=text).memory_mib == mib


@pytest.mark.parametrize("text", ["", "1-2-3", "1:2:3:4", "4 years", "-1", "30m 1h", "m", "1h 90"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UserError, match="is no time"):
        ClusterSettings(time=text)


def test_a_local_time_of_toml_is_a_time() -> None:
    Path("ssl-bench.toml").write_text("[slurm]\ntime = 04:30:00\n")
    assert sweep("--cluster", "slurm").resources.minutes == 270


@pytest.mark.parametrize("value", ["--help", "-h", "--version", "--", "-", "--seed 3", "-x"])
@pytest.mark.parametrize(
    "text",
    ["backbone = {}", "data = {}", "method = {}", "evals = [{}]", "preset = {}", "search = {}",
     "config = {}", "[mae]\nbackbone = {}", "[[cells]]\nmatch = {}", "{} = 1"],
)  # fmt: skip
def test_a_value_like_a_flag_is_a_value(
    capsys: pytest.CaptureFixture[str], text: str, value: str
) -> None:
    """Or one that cannot be had; never a flag, which would print help and end with success."""
    path = written(text.replace("{}", json.dumps(value)))
    try:
        [cell] = sweep(path).cells
    except UserError as error:
        assert value in str(error) or "needs a value" in str(error)
    else:
        [request] = requests([cell])
        assert value in vars(request.settings).values() or text.startswith("config")
    assert capsys.readouterr() == ("", "")


FLAGS = sorted(
    {*(flag.name for flag in flags.offer(["--evals", "knn"]).flags), *toml.OWN, *toml.RESOURCES}
)
keys = st.sampled_from([name.replace("_", "-") for name in FLAGS]) | st.sampled_from(
    ["'--help'", "x", "mask_ratio", "no-flip", "''", "cells", "slurm", "mae"]
)
texts = st.sampled_from(["--help", "-h", "--version", "-1", "--", "", "0..4", "knn, linear"])
scalars = (
    (texts | st.text("ab-_=,.*'é ", max_size=6)).map(json.dumps)
    | st.integers(-(2**63), 2**63 - 1).map(str)
    | st.floats(-1e6, 1e6).map(repr)
    | st.sampled_from(["true", "false", "inf", "nan", "1979-05-27", "07:32:00", "'''a\nb'''"])
)
toml_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda each: f"[{', '.join(each)}]")
        | inner.map(lambda each: f"{{a = {each}}}")
    ),
    max_leaves=4,
)
tables = st.sampled_from(["", "[mae]", "[slurm]", "[slurm.big]", "[[cells]]", "[no]", "[mae.mae]"])
lines = st.lists(st.tuples(keys, toml_values).map(" = ".join), max_size=3)
documents = st.lists(st.tuples(tables, lines), max_size=3).map(
    lambda parts: "\n".join(line for table, each in parts for line in [table, *each])
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=documents, words=st.sampled_from([(), ("--cluster", "slurm", "--profile", "big")]))
def test_any_file_is_a_sweep_or_a_mistake(
    capsys: pytest.CaptureFixture[str], text: str, words: tuple[str, ...]
) -> None:
    with contextlib.suppress(UserError):
        sweep(written(text), *words)
    assert capsys.readouterr() == ("", "")


def test_no_flag_of_a_run_has_the_name_of_one_of_the_sweep() -> None:
    own = {each.name for cls in (SweepSettings, ClusterSettings) for each in fields(cls)}
    offers = [flags.offer(["--method", plugin.name]) for plugin in METHODS]
    taken = {flag.name for offer in offers for flag in offer.flags}
    assert not own & (taken | {each.name for each in fields(Settings)})


def fields(cls: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


@pytest.mark.parametrize("words", [["--help"], ["--method", "mocov3", "-h"]])
def test_help_says_the_flags_and_the_rules_without_torch(words: list[str]) -> None:
    code = (
        "import sys\nfrom ssl_bench.cli import main\n"
        "assert not main(['sweep', *sys.argv[1:]])\n"
        "heavy = {'torch', 'timm', 'pandas', 'numpy', 'scipy', 'submitit'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr
    for each in fields(SweepSettings) + fields(ClusterSettings):
        assert f"--{each.name.replace('_', '-')} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_examples_of_the_help_are_right() -> None:
    """The file shown there, and the command lines above it."""
    from ssl_bench.cli.commands import sweep_help

    text = sweep_help.text()
    start = text.index('  method = ["mae"')
    example = text[start : text.index("A search gives")]
    found = sweep(written(example))
    assert len(found.cells) == 2 * (2 * 5 + 5)
    on_slurm = sweep("sweep.toml", "--cluster", "slurm")
    assert on_slurm.resources.partition == "gpu"
    lines = [line.split()[2:] for line in text.splitlines() if line.startswith("  ssl-bench sweep")]
    assert [len(sweep(*words).cells) for words in lines] == [20, 3, 32, 30]
