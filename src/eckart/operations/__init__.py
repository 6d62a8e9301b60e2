"""What the commands do: each operation plans from headers, computes matrix by matrix, and writes its output whole."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
