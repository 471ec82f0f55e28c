"""What a run and an evaluation are told: the flags that every method shares.

Nothing here imports torch, so that ``--help`` is fast.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ssl_bench.config.checked import CheckedConfig
from ssl_bench.config.presets import DEFAULT_BATCH
from ssl_bench.errors import UserError, above, no_choice, require
from ssl_bench.utils.formatting import seconds

Precision = Literal["auto", "fp32", "bf16"]
Compilation = Literal["auto", "on", "off"]
Storage = Literal["auto", "memory", "stream"]
Strategy = Literal["auto", "ddp", "fsdp"]
LOGGERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""What ``log`` may name: packages of the same names."""


@dataclass(frozen=True, kw_only=True)
class RunsSettings(CheckedConfig):
    """Where the runs are."""

    runs_dir: Path = Path("runs")
    """Folder that holds the run folders."""


@dataclass(frozen=True, kw_only=True)
class WorkSettings(RunsSettings):
    """How a run and an evaluation of one go about their work."""

    devices: Annotated[int, "[1, inf)"] = 1
    """Processes on each machine, one for each of its GPUs, or for a share of its cores."""
    nodes: Annotated[int, "[1, inf)"] = 1
    """Machines, whose processes Slurm has started: srun or `ssl-bench sweep`."""
    keep_features: bool = True
    """Keep extracted features in the run folder, so that an evaluation that comes later starts at
    once: 4 bytes for each image, feature and pooling, 72 MB for the default run."""
    test_clips: Annotated[int, "[1, inf)"] = 1
    """Clips of each test video, from its beginning to its end, over which an evaluation averages
    features, or probabilities after fine-tuning; 1 is the one in the middle."""
    test_crops: Annotated[int, "[1, inf)"] = 1
    """Crops of each of these clips, an odd number: the centre, or 3 with both ends of the longer
    side, too."""
    data_dir: Path = Path("~/.cache/ssl-bench")
    """Folder for downloaded data sets."""
    storage: Storage = "auto"
    """Decode all images into memory first, or stream them from their files, whole photographs to
    crop from; auto streams what would take more than half of the memory."""
    skip_broken: bool = False
    """Leave out images that cannot be read, and count them, instead of stopping."""
    wait: bool = False
    """Wait until another process is done with the run, instead of leaving; what it has made is
    reused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.test_crops % 2 == 1,
            f"--test-crops {self.test_crops} has no centre; 1 or 3 would work",
        )


@dataclass(frozen=True, kw_only=True)
class Settings(WorkSettings):
    """Flags of ``ssl-bench run`` that do not depend on the method."""

    method: str = "mae"
    """Name of a method (see `ssl-bench list`), or the path of a Python file that defines one.
    Default: mae, or the preset's."""
    data: str = "fashion-mnist"
    """Name of a data set (hf:NAME of the Hub's), a folder of images or of class folders, Parquet or
    tar files, videos, captions beside images, texts (see docs/data.md). After a
    path, @TRAIN+TEST names the folders or files that are the splits, @TRAIN one of which a fifth is
    held out, and @whole says that there are none; @validation in the end takes a tenth of the
    training images in place of the test images, to choose settings on."""
    eval_data: str | None = None
    """Data set to evaluate on, said like --data, or several, separated by commas. Default: the one
    that is trained on."""
    backbone: str = "vit_micro"
    """One of the presets in `ssl-bench list`, or any image model of timm by name."""
    image_size: Annotated[int | None, "[1, inf)"] = None
    """Height and width of the images in pixels. Default: the data's own size, or 64."""
    frames: Annotated[int | None, "[1, inf)"] = None
    """Frames of a clip, an even number; 1 makes images of video, the middle frame of each clip.
    Default: the data's own."""
    stride: Annotated[int | None, "[1, inf)"] = None
    """From one frame of a clip to the next, in frames of the video. Default: the data's own."""
    patch_size: Annotated[int | None, "[1, inf)"] = None
    """Height and width of a patch in pixels. Default: that in the backbone's name, or the divisor
    of the image size nearest to a quarter of it and to 16 at most; a backbone that is no plain
    Vision Transformer keeps its own."""
    epochs: Annotated[float | None, "(0, inf)"] = None
    """Passes over the training split; parts of one count in whole steps. Those of quick, 8 unless
    the method says otherwise, are for 60,000 images: fewer get more passes, for as many steps."""
    budget_flops: Annotated[float | None, "(0, inf)"] = None
    """Instead of --epochs: train for as many steps as these FLOPs pay for, forward and backward
    passes counted, such as 1e15."""
    budget_time: str = ""
    """Instead of --epochs: train for about as long as that on this device, such as 90s, 10m or 2h;
    the steps are fixed at the start, by the time that the first few take, so that a run resumes
    only where its device has the same name and as many threads."""
    match: str = ""
    """Instead of --epochs: train under the FLOPs of this run, a folder or a part of its name."""
    batch_size: Annotated[int | None, "[1, inf)"] = None
    """Images in an optimiser step. Default: the preset's, or else 128; of fewer training images,
    the largest power of two that they fill."""
    seed: int = 0
    """Seed of every random draw: weights, order, crops, masks."""
    precision: Precision = "auto"
    """Arithmetic of training; auto takes bf16 where that is faster."""
    compile: Compilation = "auto"
    """Compile the transformer blocks with torch.compile, and record the steps of a single GPU as a
    CUDA graph; auto does so on a GPU."""
    micro_batch_size: Annotated[int | None, "[1, inf)"] = None
    """Images whose activations are kept at a time; the gradient is the whole batch's. Default: all
    on a GPU, 4,096 patches' worth on a CPU."""
    devices: int = 1
    """Processes on each machine, one for each of its GPUs, or for a share of its cores; they divide
    the batch size. Results differ in rounding alone, unless a method has dropout of its own."""
    strategy: Strategy = "auto"
    """With several processes: a copy of the model in each (ddp, auto), or a share of it (fsdp)."""
    evals: tuple[str, ...] = ()
    """Evaluations to run afterwards, separated by commas; none skips them. Default: those marked
    with a star in `ssl-bench list`."""
    eval_every: str = ""
    """Evaluate the encoder on the way, too, for curves over cost: every so many epochs, such as
    0.5, or every share of the training, such as 20%."""
    eval_every_with: tuple[str, ...] = ("knn",)
    """Evaluations of --eval-every, separated by commas."""
    log: tuple[str, ...] = ()
    """Log the run, its scores and its pictures to tensorboard, wandb, mlflow or trackio, or to
    several, separated by commas. Each has to be installed, and has its settings in environment
    variables of its own, such as WANDB_MODE=offline."""
    preset: str = "quick"
    """Named set of defaults; each flag given beside it wins."""
    name: str = ""
    """What you call the run: other commands find it so, too. It changes nothing else."""
    tags: tuple[str, ...] = ()
    """Words of yours for the run, separated by commas; `ssl-bench compare --tags` chooses by
    them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.data.strip()), "--data needs a value")
        world, size = self.devices * self.nodes, self.batch_size or DEFAULT_BATCH
        require(
            size % world == 0,
            f"--batch-size {size} cannot be divided among {world} processes; "
            f"{max(1, round(size / world)) * world} could",
        )
        require(
            self.strategy != "fsdp" or world > 1,
            "strategy fsdp divides a model among several processes, and there is one; --devices 2 "
            "or more would work",
        )
        for name in self.log:
            if name not in LOGGERS:
                raise no_choice("--log", name, LOGGERS)
        if self.budget_time:
            above("--budget-time", self.budget_seconds, 0)
        if self.eval_every:
            self.epochs_between(1)
        given = [name for name in BUDGETS if getattr(self, name)]
        require(
            len(given) < 2,
            f"--{' and --'.join(given)} each fix the length of the training; one will do".replace(
                "_", "-"
            ),
        )

    @property
    def budget_seconds(self) -> float:
        """What ``budget_time`` says, in seconds."""
        text = self.budget_time.strip()
        if re.fullmatch(r"\d+\.?\d*|\.\d+", text):
            return float(text)
        found = seconds(text)
        if found is None:
            raise UserError(f"--budget-time {text!r} is no time such as 90s, 10m or 1h30m")
        first, _, second = text.partition(":")
        require(
            not (first.isdigit() and second.isdigit()),
            f"--budget-time {text!r} can be read in two ways; {first}m{second}s or "
            f"{first}h{second}m would work",
        )
        return found

    def epochs_between(self, epochs: float) -> float:
        """What ``eval_every`` says, in epochs, for a training of so many."""
        text = self.eval_every.strip()
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            raise UserError(
                f"--eval-every {text!r} is neither a number of epochs such as 0.5 nor a share of "
                "the training such as 20%"
            ) from None
        above("--eval-every", number, 0)
        return number / 100 * epochs if text.endswith("%") else number


BUDGETS = ("budget_flops", "budget_time", "match")
"""The flags, one of which may fix the length of a training instead of ``epochs``."""


@dataclass(frozen=True, kw_only=True)
class WeightSettings(RunsSettings):
    """What a user may say about weights from elsewhere."""

    backbone: str | None = None
    """Which encoder the weights are of, where they do not tell: a preset of `ssl-bench list`, or
    a Vision Transformer or ResNet of timm by name."""
    num_heads: Annotated[int | None, "[1, inf)"] = None
    """Attention heads of that encoder, where the weights do not tell."""
    grid: tuple[int, ...] = ()
    """Rows and columns of its patches, such as 8,6, where they are not as many."""
    frames: Annotated[int | None, "[2, inf)"] = None
    """Frames of the clips that it takes, where they do not tell. Default: 16, as of all published
    ones."""
    branch: str | None = None
    """Which of several networks: base_encoder (default) or momentum_encoder of MoCo v3, encoder_q
    (default) or encoder_k of MoCo v1 and v2, teacher (default) or student of DINO, else the file's
    own name of it, such as model_ema."""
    tokenizer: str | None = None
    """The vocabulary that weights of a text encoder were trained with: BERT's vocab.txt, or a
    tokenizer.json of WordPiece. Default: what lies beside them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.grid) in (0, 2), f"--grid {self.grid} is not two numbers such as 8,6")


@dataclass(frozen=True, kw_only=True)
class EvalSettings(WeightSettings, WorkSettings):
    """Flags of ``ssl-bench eval`` that do not depend on an evaluation."""

    target: str = ""
    """A run's folder or name, or weights."""
    weights: str = ""
    """Anyone's weights: a file (an official checkpoint of MAE, MoCo, DINO, iBOT, DINOv2, I-JEPA,
    ALBEF and others, or of timm or torchvision), a folder that transformers saved, timm:NAME or
    hf:NAME."""
    image_size: Annotated[int | None, "[1, inf)"] = None
    """Height and width in pixels to evaluate at; position embeddings are interpolated. Default:
    the pre-training's, or 224 for a ResNet from elsewhere, whose weights do not tell."""
    data: str | None = None
    """Data set to evaluate on, or several, separated by commas. Default: the run's --eval-data, or
    else what it was trained on."""
    stride: Annotated[int | None, "[1, inf)"] = None
    """From one frame of a clip to the next, in frames of the video. Default: the run's, or the
    data's own."""
    seed: int | None = None
    """Seed of the evaluations' draws. Default: the run's."""
    precision: Precision = "auto"
    """Arithmetic of feature extraction and fine-tuning; auto takes bf16 where that is faster."""
    evals: tuple[str, ...] = ()
    """Evaluations to run, separated by commas. Default: those marked in `ssl-bench list`."""
    preset: str = "quick"
    """Named set of defaults. Default: the run's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.target) != bool(self.weights),
            "say what to evaluate: either a run or --weights FILE",
        )


@dataclass(frozen=True, kw_only=True)
class ConfigFileSettings:
    """Run what a file describes, and nothing else: a run's config.json, or one like it."""

    config: Path
    """Run what this file describes: a run's config.json, or one like it. Only --wait and --trust go
    beside it."""
    trust: bool = False
    """Run the files that it names as method or evaluation, which are no part of the installation.
    Without it, a terminal is asked; whatever they hold is run."""
    wait: bool = False
    """Wait until another process is done with the run, instead of leaving."""
