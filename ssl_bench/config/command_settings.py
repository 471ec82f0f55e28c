"""What the commands beside ``run``, ``eval`` and ``sweep`` are told.

Nothing here imports torch, so that ``--help`` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ssl_bench.config.checked import CheckedConfig
from ssl_bench.config.settings import RunsSettings, WeightSettings
from ssl_bench.errors import require

At = Literal["end", "equal-images", "equal-flops", "equal-time", "equal-costs"]


@dataclass(frozen=True, kw_only=True)
class ExportSettings(WeightSettings):
    """Write a run's encoder, or anyone's, in a format that other code reads."""

    target: str = ""
    """A run's folder or name, or anyone's weights, as `ssl-bench eval --weights` takes them."""
    format: Literal["timm", "mae", "hf"] = "timm"
    """For timm's checkpoint_path, for the official MAE code, or for transformers."""
    output: Path | None = None
    """File to write, a folder for hf. Default: the run's name and the format, here."""
    overwrite: bool = False
    """Replace what is there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.target), "say what to export: a run, or a file of weights")


@dataclass(frozen=True, kw_only=True)
class ReconstructSettings(WeightSettings):
    """Hide patches of images or clips, and draw what a masked autoencoder puts in their place."""

    target: str = ""
    """A run's folder or name, or anyone's weights with their decoder."""
    images: tuple[str, ...] = ()
    """Image files; videos, too, for an encoder of clips, of which it takes the middle."""
    mask_ratio: Annotated[float | None, "(0, 1)"] = None
    """Share of the patches to hide. Default: the pre-training's, or 0.75."""
    sampling: Literal["random", "block", "grid", "tube", "frame"] | None = None
    """Which patches to hide: any, rectangles of them, or all but a regular grid; of a clip any, or
    the same places in all frames, or pairs of frames. Default: any, or of a clip the same
    places."""
    seed: int = 0
    """Seed of the masks."""
    norm_pix_loss: Literal["auto", "yes", "no"] = "auto"
    """Whether the decoder predicts normalised patches. Default: as the weights tell, or whichever
    makes its prediction better."""
    decoder_heads: Annotated[int | None, "[1, inf)"] = None
    """Attention heads of the decoder, where the weights do not tell."""
    output: Path = Path("reconstruction.png")
    """Picture to write."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.target), "say whose decoder: a run, or a file of weights")
        require(self.output.suffix == ".png", f"--output {str(self.output)!r} must end in .png")
        require(bool(self.images), "say which images to reconstruct")


@dataclass(frozen=True, kw_only=True)
class VerdictSettings(CheckedConfig):
    """How differences over seeds are judged."""

    family: Literal["column", "table"] = "column"
    """Tests that one correction covers: those of each evaluation, or of all of a table."""
    pairing: Literal["auto", "always", "never"] = "auto"
    """Whether runs of one seed are compared with each other: where five and more shared seeds show
    a correlation, wherever two methods have the same seeds, or never."""
    margin: Annotated[float, "(0, inf)"] = 0.5
    """Points of accuracy within which two methods are called equivalent."""
    interval: Literal["seeds", "seeds+images"] = "seeds"
    """What the interval of a mean counts: other seeds, or other seeds and other test images."""


@dataclass(frozen=True, kw_only=True)
class SelectionSettings(RunsSettings):
    """Which runs and which of their scores."""

    runs: tuple[str, ...] = ()
    """Run folders, parts of their names, or patterns such as 'mae-*'. Default: all."""
    method: tuple[str, ...] = ()
    """Only runs of these methods, separated by commas."""
    data: tuple[str, ...] = ()
    """Only scores on these data sets, by the names that tables have, separated by commas."""
    evals: tuple[str, ...] = ()
    """Only these evaluations, separated by commas."""
    tags: tuple[str, ...] = ()
    """Only runs with one of these tags, separated by commas."""


@dataclass(frozen=True, kw_only=True)
class CompareSettings(VerdictSettings, SelectionSettings):
    """Show runs side by side."""

    sort: str = ""
    """Order rows by an evaluation, the best first, or by a cost, the lowest first: images, flops,
    seconds. Default: by method and settings."""
    json: bool = False
    """Print everything as JSON, and no tables."""
    at: At = "end"
    """Where scores are read: at the end of each run, or at a cost that is equal for all, between
    the snapshots on either side of it; equal-costs reads them at each of the three."""
    at_cost: Annotated[float | None, "(0, inf)"] = None
    """That cost, in images, FLOPs or seconds of the device. Default: the largest that all reach."""
    csv: Path | None = None
    """Write all scores, not the headlines alone, to this file too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.at_cost is not None:
            require(
                self.at not in ("end", "equal-costs"),
                "--at-cost needs --at equal-images, equal-flops or equal-time",
            )


@dataclass(frozen=True)
class QuerySettings(RunsSettings):
    """Ask the tables of all runs and of all scores a question in SQL, or list their columns."""

    sql: str = ""
    """A query of DuckDB's SQL over the tables `runs` and `scores`. Default: list the columns."""
    schema: bool = False
    """List the columns with what they mean."""
    csv: Path | None = None
    """Write the answer to this file too, every row of it."""


@dataclass(frozen=True, kw_only=True)
class ReportSettings(VerdictSettings, SelectionSettings):
    """Write a page with tables and figures of runs, and the files for a paper."""

    output: Path = Path("report")
    """Folder to write; an older report there is replaced."""
    title: str = "Self-supervised methods compared"
    """Heading of the page."""
    watch: Annotated[float | None, "(0, inf)"] = None
    """Until Ctrl-C, look at the runs every so many seconds, 10 by default, and write the page anew
    when they have changed. An open page reloads itself."""


@dataclass(frozen=True, kw_only=True)
class ShowSettings(RunsSettings):
    """Show where a run's numbers come from: command, code, packages, device, data, cost, scores."""

    target: str = ""
    """A run's folder, or a part of its name."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.target), "say which run to show")


@dataclass(frozen=True, kw_only=True)
class RerunSettings:
    """Train and evaluate a run again, and say whether it came out the same."""

    target: str = ""
    """A run's folder, or a part of its name."""
    runs_dir: Path = Path("runs")
    """Folder that holds the run folders; the repetition goes into its reruns/."""
    data_dir: Path = Path("~/.cache/ssl-bench")
    """Folder for downloaded data sets."""
    trust: bool = False
    """Run the file that the run names as its method or evaluation, which is no part of the
    installation. Without it, a terminal is asked; whatever the file holds is run."""

    def __post_init__(self) -> None:
        require(bool(self.target), "say which run to repeat")


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(CheckedConfig):
    """Write a data set once as few large files of small images, so that later runs read it fast."""

    source: str = ""
    """A folder of class folders, Parquet or tar files of images, or a data set by name."""
    output: Path | None = None
    """Folder to write, which does not exist yet; `--data` takes it afterwards."""
    short_side: Annotated[int, "[1, inf)"] = 256
    """Longest short side in pixels that an image keeps; no image is enlarged, and those that are
    small enough are copied as they are."""
    quality: Annotated[int, "[1, 100]"] = 95
    """JPEG quality of the images that are made smaller, from 1 to 100."""
    skip_broken: bool = False
    """Leave out images that cannot be read, and count them, instead of stopping."""
    data_dir: Path = Path("~/.cache/ssl-bench")
    """Folder for downloaded data sets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.source), "say which data set to prepare: a folder, or a name")
        require(self.output is not None, "say which folder to write: -o FOLDER")


@dataclass(frozen=True)
class AblateSettings:
    """Flags of ``ssl-bench ablate`` beside those of ``ssl-bench run``."""

    values: tuple[str, ...] = ()
    """Values to try, separated by commas. Default: the paper's."""
    seeds: tuple[int, ...] = ()
    """Run each value with each of these seeds, separated by commas. Default: that of --seed."""
