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
Views are made of the stored squares, whether these are in memory or streamed. Clips are not
mirrored, as the motion would be, too; each is the middle one of its video, and the only one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from ssl_bench.api import Evaluation, FinetuningConfig, FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.evaluation import finetuning
from ssl_bench.evaluation.metrics import accuracy
from ssl_bench.experiment import audit


@dataclass(frozen=True, kw_only=True)
class Config(FinetuningConfig):
    """Flags of fine-tuning; the defaults are MAE's for ViT-B on ImageNet."""

    rates: ClassVar[str] = "base lr, scratch lr for the baseline from scratch"

    scratch_lr: Annotated[float, "(0, inf)"] = 5e-4
    """The same for the baseline trained from scratch, which has no layer decay."""


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
        **{
            f"imagenet-simmim-{size}": {
                "batch_size": 2048,
                "base_lr": 6.25e-4,
                "warmup": 20 / 100,
                "layer_decay": layer_decay,
                "head_std": head_std,
            }
            for size, layer_decay, head_std in (("vitb", 0.65, 2e-5), ("swinb", 0.9, 0.02))
        },
        "imagenet-ibot-vits": {
            "epochs": 200,
            "base_lr": 1e-3,
            "warmup": 20 / 200,
            "layer_decay": 0.75,
            "pooling": "cls",
        },
        "kinetics-videomae-vitb": {
            "epochs": 75,
            "warmup": 5 / 75,
            "layer_decay": 0.75,
            "auto_augment": "rand-m7-n4-mstd0.5-inc1",
        },
        "imagenet-beit-kmeans-vitb": {"base_lr": 1e-3, "warmup": 20 / 100},
        "imagenet-data2vec-vitb": {
            "batch_size": 512,
            "warmup": 16_000 / 250_200,
            "beta2": 0.95,
            "head_std": 0.02,
            "mixup": 0.7,
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
        audit.drop_path(model.encoder, config.drop_path)
        audit.layer_decay(model, groups, config.layer_decay)
        return audit.weight_decay(
            model, groups, config.weight_decay, not config.decay_norm_and_bias
        )

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Fine-tune on the training split, classify the test split."""
        model = finetuning.classifier(encoder, len(data.classes), self.config)
        finetuning.train(model, encoder, data.train, self.config)
        predictions_N = finetuning.predict(model, encoder, data.test)
        return Result({"top1": accuracy(predictions_N, data.test.labels_N)}, predictions_N)
