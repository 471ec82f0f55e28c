"""What finished runs say: comparisons, reports, tables."""
