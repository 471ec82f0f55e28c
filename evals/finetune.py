"""Fine-tuning: the whole encoder and a linear classifier, trained on the labels.

The recipe of MAE (He et al., *Masked Autoencoders Are Scalable Vision Learners*, arXiv:2111.06377,
appendix A.1, table 9; ``main_finetune.py``, facebookresearch/mae ``efb2a80``): mean of the patch
tokens and a fresh norm after it, layer-wise learning-rate decay, RandAugment, random erasing,
mixup and cutmix, label smoothing, drop path. With ``pooling`` "cls" and no layer decay, that of
DeiT (Touvron et al., arXiv:2012.12877; ``main.py``, facebookresearch/deit), which MoCo v3
fine-tunes by. The last epoch is evaluated, on the test split, once.

Deviations from the official codes. The last epoch is reported instead of the best, which is chosen
on the test split. A batch larger than the training split shrinks to it, so that small data work.
The learning rate follows MAE's schedule for DeiT's recipe too, instead of steps by epoch from
1e-6, and no image is repeated within a batch: one schedule and one order for every recipe.
Views are made of the stored squares, whether these are in memory or streamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from ssl_bench.api import Evaluation, FinetuningConfig, FrozenEncoder, Result
from ssl_bench.config.settings import Published
from ssl_bench.data import Dataset
from ssl_bench.errors import above
from ssl_bench.evaluation import finetuning
from ssl_bench.evaluation.metrics import accuracy
from ssl_bench.experiment import audit as audits


@dataclass(frozen=True, kw_only=True)
class Config(FinetuningConfig):
    """Flags of fine-tuning; the defaults are MAE's for ViT-B on ImageNet."""

    rates: ClassVar[str] = "base lr, scratch lr for the baseline from scratch"

    scratch_lr: float = 5e-4
    """The same for the baseline trained from scratch, which has no layer decay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        above("finetune scratch lr", self.scratch_lr, 0)


class FineTuning(Evaluation):
    """The whole encoder, trained on the labels."""

    version = 1
    is_default = True
    sharded = True
    presets = {
        "quick": {
            "epochs": 2,
            "batch_size": 128,
            "base_lr": 4e-3,
            "scratch_lr": 2e-3,
            "min_lr": 0.0,
            "layer_decay": 0.75,
            "mixup": 0.0,
            "cutmix": 0.0,
            "drop_path": 0.0,
            "crop_scale": 1.0,
            "auto_augment": "",
            "random_erasing": 0.0,
        },
        "small": {
            "base_lr": 1e-3,
            "min_lr": 0.0,
            "layer_decay": 0.75,
            "batch_size": 256,
            "crop_scale": 0.4,
            "auto_augment": "",
            "random_erasing": 0.0,
        },
        "imagenet-mae-vitb": {},
        "imagenet-mae-vitl": {
            "epochs": 50,
            "base_lr": 1e-3,
            "warmup": 5 / 50,
            "layer_decay": 0.75,
            "drop_path": 0.2,
        },
        **{
            f"imagenet-mocov3-{size}": {
                "epochs": 150,
                "base_lr": 2.5e-4,
                "min_lr": 1e-5,
                "warmup": 5 / 150,
                "layer_decay": 1.0,
                "pooling": "cls",
                "head_std": 0.02,
            }
            for size in ("vits", "vitb")
        },
    }

    def baselines(self) -> Mapping[str, tuple[str, Config]]:
        """Supervised training from scratch at the same budget, with its own learning rate."""
        scratch = replace(self.config, base_lr=self.config.scratch_lr, layer_decay=1.0)
        return {"from scratch": ("random", scratch)}

    def audit(self, encoder: FrozenEncoder) -> str:
        """Check on the real classifier that layer decay, drop path and weight decay take hold."""
        config = self.config
        model = finetuning.classifier(encoder, 2, config)
        groups = finetuning.optimizer(model, config).param_groups
        audits.drop_path(model.encoder, config.drop_path)
        audits.layer_decay(model, groups, config.layer_decay)
        return audits.weight_decay(
            model, groups, config.weight_decay, not config.decay_norm_and_bias
        )

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Fine-tune on the training split, classify the test split."""
        model = finetuning.classifier(encoder, len(data.classes), self.config)
        finetuning.train(model, encoder, data.train, self.config)
        predictions_N = finetuning.predict(model, encoder, data.test)
        return Result({"top1": accuracy(predictions_N, data.test.labels_N)}, predictions_N)


PAPER = {
    "imagenet-": {
        "batch_size": Published(1024, "MAE table 9; DeiT README, 4 x 256"),
        "weight_decay": Published(0.05, "MAE table 9; DeiT main.py"),
        "beta2": Published(0.999, "MAE table 9; torch's default"),
        "label_smoothing": Published(0.1, "MAE table 9; DeiT main.py"),
        "mixup": Published(0.8, "MAE table 9; DeiT main.py"),
        "cutmix": Published(1.0, "MAE table 9; DeiT main.py"),
        "crop_scale": Published(0.08, "timm create_transform"),
        "auto_augment": Published("rand-m9-mstd0.5-inc1", "MAE main_finetune.py; DeiT main.py"),
        "decay_norm_and_bias": Published(False, "util/lr_decay.py; timm create_optimizer"),
        "optimiser and beta1": Published("AdamW, 0.9", "MAE table 9; DeiT main.py"),
        "precision of training": Published(
            "fp16", "MAE engine_finetune.py; DeiT engine.py", "as --precision says"
        ),
        "gradient clipping": Published("none", "MAE main_finetune.py; DeiT main.py"),
        "interpolation of a crop": Published(
            "bicubic", "MAE main_finetune.py; DeiT main.py", unless={"crop_scale": 1.0}
        ),
        "views are made of": Published(
            "the whole photograph",
            "timm create_transform",
            "the stored square: of photographs, the centre",
        ),
        "RandAugment's order": Published(
            "after crop and flip", "timm create_transform", unless={"auto_augment": ""}
        ),
        "random erasing's filling": Published(
            "normal noise per pixel", "timm create_transform", unless={"random_erasing": 0.0}
        ),
        "choice of mixup or cutmix": Published(
            "a coin for each batch", "timm Mixup", unless={"mixup": 0.0, "cutmix": 0.0}
        ),
        "pixels normalised by": Published(
            "ImageNet's mean and deviation", "timm create_transform", "the training split's own"
        ),
        "position embedding": Published("trained", "MAE models_vit.py; DeiT models.py"),
        "epoch that is reported": Published(
            "best on the test split", "MAE main_finetune.py; DeiT main.py", "last"
        ),
    },
    "imagenet-mae-": {
        "sources": Published("He et al., arXiv:2111.06377, and facebookresearch/mae efb2a80", ""),
        "warmup": Published("5 epochs", "table 9"),
        "min_lr": Published(1e-6, "main_finetune.py"),
        "pooling": (Published("avg", "FINETUNE.md"), Published("cls", "appendix A.1")),
        "head_std": Published(2e-5, "main_finetune.py"),
        "random_erasing": (Published(0.25, "FINETUNE.md"), Published(0.0, "table 9: none")),
        "view for testing": Published(
            "larger images: 8/7 of the size, centre, bicubic", "util/datasets.py: 256 for 224"
        ),
        "learning rate's course": Published(
            "linear from 0, cosine to min lr, by step", "util/lr_sched.py"
        ),
        "repeated images in a batch": Published("none", "main_finetune.py"),
    },
    "imagenet-mae-vitb": {
        "epochs": Published(100, "table 9, FINETUNE.md"),
        "base_lr": (Published(5e-4, "FINETUNE.md"), Published(1e-3, "table 9")),
        "layer_decay": (Published(0.65, "FINETUNE.md"), Published(0.75, "table 9")),
        "drop_path": Published(0.1, "table 9, FINETUNE.md"),
    },
    "imagenet-mae-vitl": {
        "epochs": Published(50, "table 9, FINETUNE.md"),
        "base_lr": Published(1e-3, "table 9, FINETUNE.md"),
        "layer_decay": Published(0.75, "table 9, FINETUNE.md"),
        "drop_path": (Published(0.2, "FINETUNE.md"), Published(0.1, "table 9")),
    },
    "imagenet-mocov3-": {
        "sources": Published(
            "Touvron et al., arXiv:2012.12877, and facebookresearch/deit 0282d2a, "
            "whose recipe MoCo v3 takes",
            "",
        ),
        "epochs": Published(150, "MoCo v3 paper"),
        "base_lr": Published(2.5e-4, "DeiT main.py: 5e-4 for 512"),
        "min_lr": Published(1e-5, "DeiT main.py"),
        "warmup": Published("5 epochs", "DeiT main.py"),
        "layer_decay": Published(1.0, "DeiT main.py: none"),
        "pooling": Published("cls", "DeiT models.py"),
        "head_std": Published(0.02, "DeiT models.py, timm"),
        "drop_path": Published(0.1, "DeiT main.py"),
        "random_erasing": Published(0.25, "DeiT main.py"),
        "view for testing": Published(
            "larger images: 8/7 of the size, centre, bicubic", "DeiT datasets.py: 256 for 224"
        ),
        "learning rate's course": Published(
            "linear from 1e-6, cosine to min lr, by epoch",
            "DeiT main.py, timm create_scheduler",
            "linear from 0, cosine to min lr, by step",
        ),
        "repeated images in a batch": Published("3 views of each", "DeiT samplers.py", "none"),
    },
}
