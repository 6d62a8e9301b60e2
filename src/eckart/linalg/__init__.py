"""Low-rank mathematics: tensors in, tensors out, on the CPU or a GPU."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
