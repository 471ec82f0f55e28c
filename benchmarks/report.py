"""The report of a benchmark: a page and a figure."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.cases import CASES
from benchmarks.contestants import CONTESTANTS, is_ours

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Measured = Mapping[str, Mapping[str, list[dict[str, float]]]]


def write(measured: Measured, about: Mapping[str, Any], folder: Path) -> Path:
    """Write ``<device>.md``, ``.png`` and ``.json``; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^a-z0-9]+", "-", str(about["device"]).lower()).strip("-")
    (folder / f"{stem}.json").write_text(
        json.dumps({"about": about, "measured": measured}, indent=1) + "\n"
    )
    lines = [f"# Speed on {about['device']}", ""]
    lines += [f"- {name}: {value}" for name, value in about.items() if name != "device"]
    lines += [
        "",
        "Images a second of whole training steps: loading, augmentation, forward, backward,",
        "optimiser. Each round is a process of its own; contestants take turns; the median of the",
        "rounds counts, the spread is the lowest and the highest. The ratio is of ours in bf16 to",
        "each, round by round. Before anything is timed, all compute the same loss from the same",
        "weights and mask noise. Peak memory is of the training process without its data workers.",
        "",
        f"![Images a second]({stem}.png)",
    ]
    for case_name, contestants in measured.items():
        case = CASES[case_name]
        lines += [
            "",
            f"## {case_name}",
            "",
            f"{case.method}, encoder {case.width} x {case.depth}, {case.image_size} px in patches "
            f"of {case.patch_size}, batch {case.batch_size}.",
            "",
            "| | img/s | spread | ours / it | peak MiB | s to first step |",
            "|---|---|---|---|---|---|",
        ]
        for name, rounds in contestants.items():
            speeds = [each["images_per_second"] for each in rounds]
            ratio = "-"
            if "ours" in contestants:
                ratios = [
                    ours["images_per_second"] / its["images_per_second"]
                    for ours, its in zip(contestants["ours"], rounds, strict=True)
                ]
                ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            peak = statistics.median(each["peak_mib"] for each in rounds)
            first = statistics.median(each["seconds_to_first_step"] for each in rounds)
            lines.append(
                f"| {CONTESTANTS[name].title} | {statistics.median(speeds):,.1f} "
                f"| {min(speeds):,.1f}-{max(speeds):,.1f} | {ratio} | {peak:,.0f} | {first:.1f} |"
            )
    page = folder / f"{stem}.md"
    page.write_text("\n".join(lines) + "\n")
    _draw(measured, str(about["device"]), folder / f"{stem}.png")
    return page


def _draw(measured: Measured, device: str, output: Path) -> None:
    figure, panels = plt.subplots(
        1, len(measured), figsize=(6 * len(measured), 3.2), squeeze=False, layout="constrained"
    )
    for panel, (case_name, contestants) in zip(panels[0], measured.items(), strict=True):
        titles = [CONTESTANTS[name].title for name in contestants]
        speeds = [
            statistics.median(each["images_per_second"] for each in rounds)
            for rounds in contestants.values()
        ]
        colors = ["C0" if is_ours(CONTESTANTS[name]) else "0.6" for name in contestants]
        panel.barh(titles[::-1], speeds[::-1], color=colors[::-1])
        panel.set(title=case_name, xlabel="images a second")
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Whole training steps on {device}")
    figure.savefig(output, dpi=120)
    plt.close(figure)
