"""The Python interface: what ``ssl-bench`` does, with results that a notebook can show.

Keyword arguments are the flags of the command line: ``mask_ratio=0.75`` is ``--mask-ratio 0.75``,
``evals=["knn", "linear"]`` is ``--evals knn,linear``, ``keep_features=False`` is
``--no-keep-features``, and None leaves a flag at its default. The command line's own code reads and
checks them, so Python and the command line share runs and their folders.

Whatever a person can mend raises `UserError`, whose message is one line.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.errors import as_user_error, require
from ssl_bench.results import Compared, Run, Runs
from ssl_bench.runs import index, run_folder, schema

if TYPE_CHECKING:
    import pandas as pd

    from ssl_bench.models.backbones import Backbone

_RUNS_DIR = "runs"

# Other libraries, when they are imported, miss what their own bars would need in a notebook.
warnings.filterwarnings("ignore", message="IProgress not found")


def run(**settings: Any) -> Run:
    """Pre-train a method and evaluate it beside its baselines: ``ssl-bench run``.

    What is done already is reused, and what was interrupted is resumed. It is done in this process,
    on one device.

    Args:
        settings: any flag of ``ssl-bench run``, the method's and the evaluations' included, such as
            ``method``, ``data``, ``epochs``, ``seed``, ``mask_ratio``, ``knn_neighbors``.

    Raises:
        UserError: a flag does not exist or has an impossible value, or the data cannot be used.

    Example:
        >>> mae = ssl_bench.run(method="mae", mask_ratio=0.75, data="photos/", epochs=5)
        >>> mae.scores.query("is_headline")[["method", "eval", "value"]]
    """
    with as_user_error():
        from ssl_bench.cli import flags

        config = flags.parse_run(_args(settings))
        from ssl_bench.experiment import running

        return Run(running.run(config).folder)


def sweep(file: str | Path | None = None, /, **settings: Any) -> Runs:
    """Do every combination of several values, or a search: ``ssl-bench sweep``.

    Args:
        file: a TOML file with the sweep's flags.
        settings: any flag of ``ssl-bench sweep``; a list or a range holds the values of a grid, and
            ``**{"mae.epochs": 4}`` goes to one method. By default ``cluster="debug"``, which does
            one run after the other in this process; ``"local"`` and ``"slurm"`` return at once, and
            what is returned then shows how far the runs are.

    Returns:
        The runs of the grid; of a search, those with the best settings, or its trials until then.

    Raises:
        UserError: as of `run`, of any cell before the first one begins.

    Example:
        >>> runs = ssl_bench.sweep(method=["mae", "mocov3"], seed=range(3), epochs=1)
        >>> ssl_bench.compare(runs)
    """
    with as_user_error():
        from ssl_bench.cli.commands import sweep as command

        args = _args({"cluster": "debug", **settings})
        return Runs(command.main([*([str(file)] if file else []), *args]))


def compare(runs: Any = None, **settings: Any) -> Compared:
    """Put runs side by side: means over seeds, intervals, costs and tests: ``ssl-bench compare``.

    Args:
        runs: a `Run`, `Runs`, a name or a part of one, a folder, rows of the table that
            ``ssl_bench.runs()`` gives, or a list of such. Default: all in ``runs_dir``.
        settings: any flag of ``ssl-bench compare``, such as ``runs_dir`` and ``at="equal-flops"``.

    Raises:
        UserError: there is no such run, or none at all.

    Example:
        >>> every = ssl_bench.runs("runs")
        >>> ssl_bench.compare(every[every["method"] != "byol"])
    """
    with as_user_error():
        from ssl_bench.cli import parser
        from ssl_bench.cli.commands.compare import compared
        from ssl_bench.config.command_settings import CompareSettings

        names = list(_names(runs))
        require(runs is None or bool(names), "there are no runs to compare; without any, all are")
        given = parser.parse("compare", CompareSettings, [*names, *_args(settings)])
        return Compared(run_folder.find(given.runs_dir, list(given.runs)), compared(given))


def runs(runs_dir: str | Path = _RUNS_DIR) -> pd.DataFrame:
    """The table of all runs in a folder, one row for each.

    Returns:
        A DataFrame with the columns that ``ssl-bench query`` lists: ``run``, ``folder``,
        ``method``, ``state``, ``seed``, ``flops`` and others.

    Raises:
        UserError: there are none.

    Example:
        >>> ssl_bench.runs("runs").sort_values("flops")[["run", "state", "flops"]]
    """
    with as_user_error():
        return index.load(Path(runs_dir)).runs


def load_run(name: str | Path, runs_dir: str | Path = _RUNS_DIR) -> Run:
    """A run that is there already, by its folder, its name or a part of it.

    Raises:
        UserError: there is no such run.

    Example:
        >>> ssl_bench.load_run("mae-fashion-mnist-seed0").plot_loss()
    """
    with as_user_error():
        [folder] = run_folder.find(Path(runs_dir), [str(name)])
        return Run(folder)


def load_encoder(
    source: str | Path | Run, *, runs_dir: str | Path = _RUNS_DIR, **hints: Any
) -> Backbone:
    """Load what a run has trained, or anyone's pre-trained encoder, as a timm model.

    Args:
        source: a run, its folder, its name or a part of it, or what
            `models.checkpoints.load_encoder` takes: a file of weights, a folder that transformers
            saved, ``timm:NAME`` or ``hf:NAME``.
        runs_dir: where a run is looked for by its name.
        hints: ``image_size``, and where a file does not tell ``backbone``, ``num_heads``, ``grid``
            and ``branch``.

    Returns:
        The model in eval mode. ``forward_features`` maps float32 ``(B, C, H, W)`` to features, of
        a Vision Transformer tokens ``(B, prefix + L, D)``. Its ``pretrained_cfg`` has the size of
        the images and the mean and the standard deviation that normalise them.

    Raises:
        UserError: there is no such run or file, or it holds no encoder of timm.

    Example:
        >>> encoder = ssl_bench.load_encoder("mae-fashion-mnist-seed0")
        >>> config = timm.data.resolve_model_data_config(encoder)
        >>> transform = timm.data.create_transform(**config)
    """
    with as_user_error():
        from ssl_bench.models import checkpoints

        if isinstance(source, Run):
            source = source.folder
        home, path = Path(runs_dir), Path(source).expanduser()
        is_run = (path / schema.ENVIRONMENT).exists()
        if not (path.exists() or checkpoints.is_foreign(str(source))):
            is_run = any(home.glob(f"*/{schema.CONFIG}"))  # else it is a file that does not exist
        if is_run:
            source = run_folder.find_trained(home, str(path))
        return checkpoints.load_encoder(source, **hints)


def _args(settings: Mapping[str, Any]) -> list[str]:
    """The arguments of the command line that says the same."""
    from ssl_bench.cli import argv

    groups: list[Sequence[str]] = []
    for name, value in settings.items():
        require(
            name not in ("h", "help"), "help is that of the command line: `ssl-bench run --help`"
        )
        scope, dot, own = name.replace("_", "-").rpartition(".")
        if isinstance(value, bool):
            groups.append((f"--{scope}{dot}{'' if value else 'no-'}{own}",))
        elif value is not None:
            groups.append((f"--{scope}{dot}{own}", _text(value)))
    return list(argv.joined(groups))


def _text(value: Any) -> str:
    """A value as a command line has it; several are separated by commas."""
    from ssl_bench.experiment.run_config import text_of

    value = value.tolist() if hasattr(value, "tolist") else value  # NumPy's
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(map(_text, value))
    return text_of(value)


def _names(runs: Any) -> Iterator[str]:
    """The folders or names of whatever stands for runs."""
    if isinstance(runs, str | Path):
        yield str(runs)
    elif isinstance(runs, Run):
        yield str(runs.folder)
    elif runs is not None:
        for each in runs["folder"] if hasattr(runs, "columns") else runs:
            yield from _names(each)
