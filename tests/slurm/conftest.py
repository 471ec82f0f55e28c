"""Tests marked ``slurm`` need a Slurm that answers and keeps accounts (``make test-slurm``)."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

_CHECKS = (
    # `scontrol ping` says at once that the controller is down; sinfo would try for 30 s.
    (["scontrol", "ping"], "Slurm is not running"),
    (["sinfo", "-h", "-o", "%T"], "Slurm does not answer"),
    (["sacct", "-n", "-X"], "Slurm has no accounting, from which the end of a killed job is known"),
)


def no_slurm() -> str | None:
    """Why the tests marked ``slurm`` cannot run, or None."""
    if not shutil.which("scontrol"):
        return "no Slurm here: scontrol is not installed (tests/slurm/up.sh installs and starts it)"
    for command, problem in _CHECKS:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except subprocess.TimeoutExpired:
            return f"{problem}: no answer in 10 s"
        if done.returncode or "DOWN" in done.stdout:
            return f"{problem}: {' '.join((done.stdout + done.stderr).split())[:200]}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip with the reason, or fail where ``REQUIRE_SLURM`` is set."""
    marked = [item for item in items if item.get_closest_marker("slurm")]
    problem = no_slurm() if marked else None
    if problem and os.environ.get("REQUIRE_SLURM"):
        raise pytest.UsageError(problem)
    if problem is None:
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason=problem))
