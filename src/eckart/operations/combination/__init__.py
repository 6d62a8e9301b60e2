"""Combining adapters into one: exact sums, and pruned ones."""
