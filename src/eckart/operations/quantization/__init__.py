"""Quantizing the linear layers of a model to four bits."""
