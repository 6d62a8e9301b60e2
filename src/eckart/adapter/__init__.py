"""An adapter as a value: low-rank updates by module name, in memory or read when they are looked up."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
