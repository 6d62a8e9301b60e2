"""The demo: an adapter of a small real model, trained, resized and merged on this machine, without the hub."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
