"""Where per-matrix work runs: threads, memory, progress, and what is kept when it is killed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
