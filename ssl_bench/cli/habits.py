"""Flags from other tools, and their equivalents here."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

_FLAGS: tuple[tuple[str, str, str], ...] = (
    ("checkpoint ckpt ckpt_path pretrained load_from init_from model_path", "weights", ""),
    (
        "checkpoint ckpt ckpt_path pretrained load_from init_from weights",
        "epochs",
        "a run trains from the start; `ssl-bench eval --weights FILE` evaluates weights",
    ),
    (
        "resume resume_from continue restart auto_resume",
        "epochs",
        "leave it out: the same command resumes where it was interrupted",
    ),
    ("resume force overwrite", "target", "leave it out: what is done already is not done again"),
    (
        "force overwrite clean",
        "epochs",
        "no run is overwritten; with another --runs-dir it is trained again",
    ),
    ("run_name exp exp_name experiment experiment_name", "name", ""),
    ("tag label labels", "tags", ""),
    (
        "run_name exp exp_name experiment experiment_name",
        "runs_dir",
        "a run is named by its settings; --runs-dir chooses the folder it goes into",
    ),
    (
        "num_workers workers n_workers j num_threads threads",
        "storage",
        "images are decoded by a thread for each core; `taskset -c 0-3 ssl-bench ...` allows four",
    ),
    (
        "lr learning_rate blr max_lr peak_lr",
        "base_lr",
        "--base-lr is the learning rate for 256 images; for a batch it is multiplied by its size "
        "and divided by 256",
    ),
    (
        "batch bs b batchsize train_batch_size",
        "batch_size",
        "--batch-size, of all devices together",
    ),
    (
        "lr learning_rate blr max_lr peak_lr",
        "finetune_base_lr",
        "--finetune-base-lr is fine-tuning's; the linear probe tries each of "
        "--linear-learning-rates",
    ),
    ("wd decay l2", "weight_decay", ""),
    ("arch model architecture net network encoder", "backbone", ""),
    ("dataset data_path data_root dataset_path train_dir data_set", "data", ""),
    ("test_data val_data eval_dataset eval_data_path test_dir val_dir", "eval_data", ""),
    (
        "gpus gpu gpu_ids device n_gpus num_gpus ngpus nproc_per_node accelerator cuda",
        "devices",
        "one GPU is taken where there is one, --devices 2 takes two, and CUDA_VISIBLE_DEVICES says "
        "which",
    ),
    (
        "output output_dir out out_dir save_dir log_dir logdir work_dir o",
        "output",
        "--output, or -o",
    ),
    (
        "output output_dir out out_dir save_dir log_dir logdir results_dir work_dir dir o",
        "runs_dir",
        "--runs-dir names the folder that holds the run folders",
    ),
    (
        "amp fp16 bf16 fp32 half mixed_precision dtype",
        "precision",
        "--precision bf16 or fp32; bf16 is taken unasked where it is faster",
    ),
    (
        "warmup_epochs warmup_steps warmup_ratio",
        "warmup",
        "--warmup is a share of the training, such as 0.1",
    ),
    ("img_size imgsize input_size size resolution crop_size", "image_size", ""),
    ("patch", "patch_size", ""),
    ("epoch num_epochs n_epochs max_epochs", "epochs", ""),
    (
        "steps max_steps num_steps iterations iters",
        "epochs",
        "--epochs counts passes over the data, and takes parts of one",
    ),
    (
        "max_time time time_limit timeout duration budget",
        "budget_time",
        "--budget-time 1h30m, or --budget-flops 1e15",
    ),
    ("seeds", "dry_run", "--seed takes several: --seed 0,1,2 or --seed 0..4"),
    ("seeds", "epochs", "a run has one seed; `ssl-bench sweep --seed 0..4` makes a run of each"),
    ("eval evaluate evaluation evaluations probe", "evals", ""),
    ("mask mask_rate masking_ratio", "mask_ratio", ""),
    ("k knn_k neighbors", "knn_neighbors", ""),
    ("distributed ddp fsdp", "strategy", "--devices 2 --strategy ddp, or fsdp"),
    (
        "wandb tensorboard logger",
        "epochs",
        "a run folder has metrics.jsonl, and `ssl-bench query` asks all of them",
    ),
)
"""Names, the flag without which the advice is none, and the advice; "" to name that flag."""

_SIZES: Mapping[str, str] = {
    "ti": "tiny", "t": "tiny", "tiny": "tiny", "s": "small", "small": "small",
    "b": "base", "base": "base", "l": "large", "large": "large", "h": "huge", "huge": "huge",
}  # fmt: skip
_PATCHES = {"huge": 14}
_BACKBONE = re.compile(
    r"(?:dino(?:v2)?_)?(vit|deit)[-_ ]?(tiny|small|base|large|huge|ti|t|s|b|l|h)"
    r"(?:[-_/ ]*(?:patch|p)?[-_/ ]?(\d+))?(?:[-_ ]\d+)?"
)
_ALIASES: tuple[tuple[str, str], ...] = (
    (r"swin[-_ ]?(tiny|small|base|large|t|s|b|l)", "swin_{}_patch4_window7_224"),
    (r"swin[-_ ]?v2[-_ ]?(tiny|small|base|t|s|b)", "swinv2_{}_window8_256"),
    (r"beit[-_ ]?(base|large|b|l)(?:[-_/ ]?16)?", "beit_{}_patch16_224"),
    (r"convnext[-_ ]?(tiny|small|base|large|t|s|b|l)", "convnext_{}"),
    (r"resnet[-_ ]?(18|34|50|101|152)", "resnet{}"),
    (r"wide[-_ ]?resnet[-_ ]?(50|101)(?:[-_ ]?2)?", "wide_resnet{}_2"),
    (r"efficientnet[-_ ]?b([0-7])", "efficientnet_b{}"),
)
"""What torchvision, papers and people call the models of timm, and timm's name of each."""


def advice(name: str, known: Collection[str]) -> str:
    """What does what a flag does elsewhere; "" where nothing is known.

    Args:
        name: of the flag, as a field.
        known: the flags that there are here, as fields.
    """
    for names, flag, text in _FLAGS:
        if name in names.split() and flag in known:
            return text or f"--{flag.replace('_', '-')} does it here"
    return ""


def backbone(name: str) -> tuple[str, int | None] | None:
    """timm's name of the model that "vit_tiny", "ViT-B/16", "swin_t" or "ResNet-50" stands for.

    With it the patch size that a plain Vision Transformer's name gives, which here is a flag of its
    own; None without one.
    """
    plain = name.strip().lower()
    for pattern, of_timm in _ALIASES:
        if found := re.fullmatch(pattern, plain):
            return of_timm.format(_SIZES.get(found[1], found[1])), None
    found = _BACKBONE.fullmatch(plain)
    if not found:
        return None
    family, size = found[1], _SIZES[found[2]]
    if family == "deit" and size not in ("tiny", "small", "base"):
        return None
    own = f"{family}_{size}_patch{_PATCHES.get(size, 16)}_224"
    return own, int(found[3]) if found[3] else None
