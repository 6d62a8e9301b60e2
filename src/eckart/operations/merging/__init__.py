"""Adapters baked into a base and taken out again, streamed."""
