"""Merging adapters into a base and removing them again, streamed."""
