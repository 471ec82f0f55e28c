"""Runs as Python objects: tables, curves, encoders, pictures, and HTML for a notebook.

Everything is read from the run folders by their own readers, whenever it is asked for.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from ssl_bench.errors import UserError, as_user_error, first_line, require
from ssl_bench.runs import index, run_folder, schema

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from PIL.Image import Image
    from rich.table import Table

    from ssl_bench.analysis.comparison import Comparison
    from ssl_bench.models.backbones import Backbone
    from ssl_bench.runs.index import Index

_DAMAGE = (UserError, AttributeError, LookupError, TypeError, ValueError)
_ABOUT = ["method", "seed", "state", "images_seen", "flops", "seconds"]
_PICTURE = "<img style='max-width:100%;max-height:20em' src='data:image/png;base64,{}'>"


class Features(NamedTuple):
    """What an encoder makes of each image of a split.

    Attributes:
        values: float32 ``(N, D)``.
        labels: int64 ``(N,)``; all 0 where the data have none.
    """

    values: np.ndarray
    labels: np.ndarray


class _Results:
    """What one run and several have in common."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = tuple(folders)

    def _index(self) -> Index:
        present = [str(each) for each in self._folders if (each / schema.CONFIG).exists()]
        require(bool(present), "none of these runs has begun")
        return index.load(self._folders[0].parent, present)

    @property
    def scores(self) -> pd.DataFrame:
        """Every score of each evaluation, one row for each, with those of the baselines.

        ``method`` is the method's name or the baseline's, ``is_baseline`` tells them apart;
        ``is_headline`` marks an evaluation's main score; ``step`` is that of an encoder on the way,
        and NaN for the final one.
        """
        import pandas as pd

        from ssl_bench.analysis.comparison import grouping

        with as_user_error():
            found = self._index()
            about = found.runs[["run", "method", "seed"]]
            rows = about.merge(found.scores, on="run").assign(is_baseline=False)
            own = rows.to_dict("records")
            nothing = dict.fromkeys(("images_seen", "flops", "seconds"), 0)
            beside = [
                {**row, **nothing, "method": label, "value": values[row["score"]],
                 "is_baseline": True}
                for row in own
                if pd.isna(row["step"])
                for label, values in grouping.parse(row["baselines"]).items()
                if row["score"] in values
            ]  # fmt: skip
            every = pd.DataFrame([*own, *beside], columns=rows.columns)
            return every.drop(columns=["baselines", "folder"])

    @property
    def metrics(self) -> pd.DataFrame:
        """The curve of the pre-training: loss, learning rate and others by ``step`` and ``epoch``.

        Its first column is the name of the ``run``.
        """
        import pandas as pd

        with as_user_error():
            frames = [index.load_metrics(each / schema.METRICS) for each in self._folders]
            for frame, folder in zip(frames, self._folders, strict=True):
                frame.insert(0, "run", folder.name)
            known = [frame for frame in frames if len(frame)] or frames
            return pd.concat(known, ignore_index=True)

    def plot_loss(self, ax: Axes | None = None) -> Axes:
        """Draw the training loss by epoch, into new axes or those given.

        Raises:
            UserError: nothing was trained.
        """
        with as_user_error():
            records = self.metrics
            require(not records.empty, "there is no loss to draw: nothing was trained yet")
            import seaborn as sns
            from matplotlib import pyplot as plt

            if ax is None:
                _, ax = plt.subplots(figsize=(6, 3), layout="constrained")
            several = records["run"].nunique() > 1
            hue = "run" if several else None
            sns.lineplot(records, x="epoch", y="loss", hue=hue, estimator=None, ax=ax)
            ax.set(ylabel="training loss", title="" if several else records["run"].iloc[0])
            return ax


class Run(_Results):
    """One run, read from its folder whenever it is asked something.

    Attributes:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__([folder])
        self.folder = folder

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def name(self) -> str:
        """Of the folder; `notebook.load_run` and every command take it."""
        return self.folder.name

    @property
    def cost(self) -> dict[str, Any]:
        """What the pre-training took: ``images_seen``, ``flops``, ``seconds`` and others."""
        return schema.load_object(self.folder / schema.COST)

    def encoder(self) -> Backbone:
        """The trained encoder as a timm model, see `notebook.load_encoder`."""
        with as_user_error():
            from ssl_bench.models import checkpoints

            return checkpoints.load_encoder(self.folder)

    def features(
        self, split: str = "test", pooling: str | None = None, data: str | None = None
    ) -> Features:
        """Frozen features of the images that the run was evaluated on, and their labels.

        Those that the evaluations kept are read; others are extracted.

        Args:
            split: "train" or "test".
            pooling: "cls", the class token, or "avg", the mean of the patches. Default: the class
                token, where there is one.
            data: another data set, as ``--data`` names it.

        Raises:
            UserError: the run is not trained, or its data are not there.

        Example:
            >>> values, labels = run.features("test")
        """
        require(split in ("train", "test"), f"unknown split {split!r}; known: test, train")
        with as_user_error():
            from ssl_bench.config.settings import EvalSettings
            from ssl_bench.distributed.device import choose
            from ssl_bench.evaluation import runner
            from ssl_bench.experiment import evaluating

            folder = run_folder.find_trained(self.folder.parent, str(self.folder))
            plan = schema.load_plan(folder)
            [dataset, *_] = evaluating.data_of(EvalSettings(target=str(folder), data=data), plan)
            hardware = choose(plan.get("precision", "auto"))
            encoder = runner.frozen_encoder(folder, dataset, plan["seed"], hardware)
            images = dataset.train if split == "train" else dataset.test
            pooled = encoder.features(images)
            name = pooling or ("cls" if "cls" in pooled else "avg")
            require(name in pooled, f"unknown pooling {name!r}; known: {', '.join(sorted(pooled))}")
            return Features(pooled[name].cpu().numpy(), images.labels_N.cpu().numpy())

    def pictures(self) -> Image:
        """What the method makes of the first test images, such as MAE's reconstructions.

        Raises:
            UserError: there are none, as the method draws none or the run is not done.
        """
        path = self._figure("pictures")
        require(path.exists(), f"run {self.name!r} has no pictures; methods such as mae draw some")
        with as_user_error():
            from PIL import Image

            return Image.open(path).convert("RGB")

    def _figure(self, name: str) -> Path:
        return self.folder / schema.FIGURES / f"{name}.png"

    def _repr_html_(self) -> str:
        """Scores beside their baselines, cost, loss curve and pictures."""
        parts = [f"<p><b>{html.escape(self.name)}</b></p>"]
        try:
            parts += self._parts()
        except (*_DAMAGE, OSError) as error:
            parts.append(_paragraph(f"this cannot be shown: {first_line(error)}"))
        return "\n".join(parts)

    def _parts(self) -> Iterator[str]:
        state = schema.state(self.folder)
        if state != "trained":
            yield _paragraph(": ".join(filter(None, [state, schema.failure(self.folder)])))
        records = [schema.load_object(path) for path in schema.score_files(self.folder)]
        if records:
            from ssl_bench.experiment.evaluating import beside_baselines

            method = str(schema.load_config(self.folder)["method"])
            yield _as_html(beside_baselines(method, records))
        if cost := self.cost:
            yield _paragraph(
                f"{cost['images_seen']:,} images seen, {cost['flops']:.3g} FLOPs, "
                f"{cost['seconds']:,.0f} s on {cost['device']}, {cost['precision']}"
            )
        for path in map(self._figure, ("loss", "pictures")):
            if path.exists():
                yield _PICTURE.format(base64.b64encode(path.read_bytes()).decode())


class Runs(_Results, Sequence[Run]):
    """Several runs, each a `Run`, read from their folders whenever they are asked something."""

    def __len__(self) -> int:
        return len(self._folders)

    @overload
    def __getitem__(self, number: int) -> Run: ...

    @overload
    def __getitem__(self, number: slice) -> Runs: ...

    def __getitem__(self, number: int | slice) -> Run | Runs:
        """A run by its place, or some of them."""
        found = self._folders[number]
        return Run(found) if isinstance(found, Path) else Runs(found)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({[each.name for each in self]})"

    @property
    def table(self) -> pd.DataFrame:
        """One row for each run: method, seed, state, cost, and each evaluation's main score."""
        with as_user_error():
            found = self._index()
            scores = found.scores
            main = scores[scores["is_headline"].astype(bool) & scores["step"].isna()]
            wide = main.pivot_table(index="run", columns="eval", values="value", aggfunc="last")
            return found.runs.set_index("run")[_ABOUT].join(wide)

    @property
    def cost(self) -> pd.DataFrame:
        """What each pre-training took, one row for each run."""
        import pandas as pd

        return pd.DataFrame([each.cost for each in self], index=[each.name for each in self])

    def encoder(self) -> dict[str, Backbone]:
        """Each run's trained encoder, by name."""
        return {each.name: each.encoder() for each in self}

    def features(self, split: str = "test", **options: Any) -> dict[str, Features]:
        """Each run's `Run.features`, by name."""
        return {each.name: each.features(split, **options) for each in self}

    def pictures(self) -> Image:
        """The pictures of all runs that have some, below each other.

        Raises:
            UserError: none has any.
        """
        from PIL import Image

        drawn = [each.pictures() for each in self if each._figure("pictures").exists()]
        require(bool(drawn), "none of these runs has pictures; methods such as mae draw some")
        size = max(each.width for each in drawn), sum(each.height for each in drawn)
        whole, top = Image.new("RGB", size, "white"), 0
        for each in drawn:
            whole.paste(each, (0, top))
            top += each.height
        return whole

    def _repr_html_(self) -> str:
        try:
            return self.table.to_html(float_format="{:,.4g}".format, na_rep="")
        except _DAMAGE as error:
            return _paragraph(first_line(error))


class Compared(Runs):
    """Runs side by side, with the statistics that a comparison needs."""

    def __init__(self, folders: Iterable[Path], comparison: Comparison) -> None:
        super().__init__(folders)
        self.comparison = comparison

    @property
    def table(self) -> pd.DataFrame:
        """One row for each method and setting, and score: mean, half of its interval, mark, cost.

        Those are the columns of ``ssl-bench compare --csv``.
        """
        from ssl_bench.analysis import tables

        return tables.flat(self.comparison)

    def _repr_html_(self) -> str:
        from ssl_bench.analysis import tables

        parts = [_as_html(table) for table in tables.as_rich(self.comparison, width=200)]
        return "\n".join([*parts, *map(_paragraph, tables.notes(self.comparison))])


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _as_html(table: Table) -> str:
    """A terminal's table as one of HTML."""

    def safe(text: Any) -> str:
        return html.escape(str(text or "")).replace("\n", "<br>")

    head = "".join(f"<th>{safe(column.header)}</th>" for column in table.columns)
    rows = zip(*(column.cells for column in table.columns), strict=True)
    body = "".join(f"<tr>{''.join(f'<td>{safe(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f"<table><caption style='text-align:left'>{safe(table.title)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"<p><small>{safe(table.caption)}</small></p>"
    )
