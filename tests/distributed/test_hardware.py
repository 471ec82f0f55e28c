"""Where a run computes, and what is chosen for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssl_bench.distributed import device
from ssl_bench.errors import UserError


def test_compilation_follows_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    chosen = {word: device.choose("fp32", word).compiled for word in ("off", "on")}
    assert chosen == {"off": False, "on": True}


def test_what_cannot_compile_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--compile off would work"):
        device.choose("fp32", "on")
    assert not device.choose("fp32", "auto").compiled


@pytest.mark.parametrize(
    ("info", "precision"),
    [
        ("vendor_id : AuthenticAMD\nflags : avx2 avx512f avx512_bf16", "bf16"),
        ("vendor_id : GenuineIntel\nflags : avx2 avx512f avx512_bf16 amx_bf16", "bf16"),
        ("vendor_id : GenuineIntel\nflags : avx2 avx512f avx512_bf16", "fp32"),
        ("vendor_id : AuthenticAMD\nflags : avx2", "fp32"),
        ("", "fp32"),
    ],
)
def test_a_cpu_takes_bf16_unasked_only_where_its_products_are_faster(
    info: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "_cpu_info", lambda: info)
    assert device.choose().precision == precision
    assert device.choose("bf16").precision == "bf16"


@pytest.mark.parametrize(("patches", "images"), [(16, 256), (64, 64), (196, 20), (10000, 1)])
def test_a_cpu_takes_few_images_of_many_patches(patches: int, images: int) -> None:
    cpu = device.Hardware(torch.device("cpu"), "fp32", "test")
    assert cpu.images_at_once(patches) == images
    gpu = device.Hardware(torch.device("cuda"), "fp32", "test")
    assert gpu.images_at_once(patches) is None


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_products_have_the_precision_that_is_told(precision: Any, dtype: torch.dtype) -> None:
    """The range of bfloat16 is float32's, so that losses need no scaling."""
    weights = torch.ones(2, 2)
    with device.Hardware(torch.device("cpu"), precision, "test").autocast():
        assert (weights @ weights).dtype == dtype
