"""Comparing adapters and checkpoints, and checking a merge."""
