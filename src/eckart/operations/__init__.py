"""The operations behind the commands: each plans from headers, computes matrix by matrix and writes atomically."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
