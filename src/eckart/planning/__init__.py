"""Memory of a fine-tune: simulated on tensors without data, or estimated from a number of parameters."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
