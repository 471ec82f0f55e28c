"""Comparing finished runs: statistics, reports, tables."""
