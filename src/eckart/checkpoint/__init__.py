"""Weights on disk and in memory: locate, read by rows, identify, compare and write."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
