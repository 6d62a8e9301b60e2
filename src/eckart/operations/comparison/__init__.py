"""Adapters and checkpoints side by side, and whether a merge is what it claims."""
