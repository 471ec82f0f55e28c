"""Fine-tuning: the whole encoder and a linear classifier, trained on the labels.

The recipe of MAE (He et al., *Masked Autoencoders Are Scalable Vision Learners*, arXiv:2111.06377,
appendix A.1, table 9; ``main_finetune.py``, facebookresearch/mae ``efb2a80``): mean of the patch
tokens and a fresh norm after it, layer-wise learning-rate decay, RandAugment, random erasing,
mixup and cutmix, label smoothing, drop path. With ``pooling`` "cls" and no layer decay, that of
DeiT (Touvron et al., arXiv:2012.12877; ``main.py``, facebookresearch/deit ``0282d2a``), which
MoCo v3 fine-tunes by. The last epoch is evaluated, on the test split, once.
With ``trials``, learning rate and crops are chosen for each encoder on held-out training images,
which belongs to the protocol: the same number for every method, and for the baseline.

Deviations from the official codes. The last epoch is reported instead of the best, which is chosen
on the test split. A batch larger than the training split shrinks to it, so that small data work.
The learning rate follows MAE's schedule for DeiT's recipe too, instead of steps by epoch from
1e-6, and no image is repeated within a batch: one schedule and one order for every recipe.
Views are made of the stored squares, whether these are in memory or streamed. Clips are not
mirrored, as the motion would be, too; each begins anywhere in its video, and in a test there is the
one in the middle, or as many as ``--test-clips`` says, in as many crops as ``--test-crops`` says,
whose probabilities are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from torch import Tensor

from ssl_bench.api import Evaluation, FinetuningConfig, FrozenEncoder, Result, Training
from ssl_bench.api.ranges import LogUniform, Uniform, draw
from ssl_bench.config.finetuning_settings import FINETUNING_PRESETS
from ssl_bench.data import Dataset, Split
from ssl_bench.evaluation import finetuning
from ssl_bench.evaluation.metrics import accuracy, holdout
from ssl_bench.experiment import audit

HELD_OUT = 0.1
"""Share of the training images that trials are judged on."""


@dataclass(frozen=True, kw_only=True)
class Config(FinetuningConfig):
    """Flags of fine-tuning; the defaults are MAE's for ViT-B on ImageNet."""

    rates: ClassVar[str] = "base lr, scratch lr for the baseline from scratch"

    scratch_lr: Annotated[float, "(0, inf)"] = 5e-4
    """The baseline's that is trained from scratch, for a batch of 256 and without layer decay."""
    trials: Annotated[int, "[0, inf)"] = 0
    """Learning rates and crops to try, each on nine tenths of the training images, the given ones
    first; what is best on the last tenth trains on all. 0 takes the given ones untried."""


class FineTuning(Evaluation):
    """The whole encoder, trained on the labels."""

    version = 1
    is_default = True
    sharded = True
    search_space = {"base_lr": LogUniform(2e-4, 2e-2), "crop_scale": Uniform(0.08, 1.0)}
    presets = {
        **FINETUNING_PRESETS,
        "quick": {**FINETUNING_PRESETS["quick"], "scratch_lr": 2e-3},
        "imagenet-mae-vitb": {},
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

    def training(self, encoder: FrozenEncoder, classes: int) -> Training:
        """The classifier, the optimiser and the crops."""
        model = finetuning.classifier(encoder, classes, self.config)
        return finetuning.training_of(model, encoder.spec, self.config)

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Fine-tune on the training split, classify the test split."""
        config, chosen = self._best(encoder, data) if self.config.trials else (self.config, {})
        predictions_N = _trained(encoder, data, data.train, data.test, config)
        top = accuracy(predictions_N, data.test.labels_N)
        return Result({"top1": top}, predictions_N, chosen=chosen)

    def _best(self, encoder: FrozenEncoder, data: Dataset) -> tuple[Config, dict[str, Any]]:
        """The best of the trials on held-out training images, and what is worth telling of it.

        The draws are the same for every method, encoder and seed. A trial that diverges is the
        worst.

        Raises:
            UserError: all of them diverge.
        """
        rows = draw("sobol", self.search_space, self.config.trials - 1, "finetune")
        configs = [self.config, *(replace(self.config, **row) for row in rows)]
        fit_N, held_out_N = holdout(data, HELD_OUT)
        fit, held_out = data.train.subset(fit_N.tolist()), data.train.subset(held_out_N.tolist())
        tops = []
        for config in configs:
            try:
                predictions_N = _trained(encoder, data, fit, held_out, config)
                tops.append(accuracy(predictions_N, held_out.labels_N))
            except finetuning.Diverged:
                tops.append(-1.0)
        best = max(range(len(configs)), key=tops.__getitem__)
        if tops[best] < 0:
            raise finetuning.Diverged(f"all {len(configs)} trials of fine-tuning diverged")
        drawn = {name: getattr(configs[best], name) for name in self.search_space}
        return configs[best], {**drawn, "validation_top1": tops[best]}


def _trained(
    encoder: FrozenEncoder, data: Dataset, train: Split, test: Split, config: Config
) -> Tensor:
    """Fine-tune on one split, and predict the classes of another: int64 ``(N,)``."""
    model = finetuning.classifier(encoder, len(data.classes), config)
    finetuning.train(model, encoder, train, config)
    return finetuning.predict(model, encoder, test)
