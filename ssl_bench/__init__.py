"""ssl-bench: which self-supervised method is better, on your data, under your budget."""

__version__ = "0.1.0"
