"""How per-matrix work is executed: threads, memory, progress, and the results stored for resuming."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
