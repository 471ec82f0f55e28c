"""ssl-bench: which self-supervised method is better, on your data, under your budget."""

__version__ = "0.1.0"

RESULTS = 1
"""Raised by every change of the core that changes what a training or an evaluation computes."""
