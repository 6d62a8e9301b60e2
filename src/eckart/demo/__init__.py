"""The demo: a real model and an adapter of it, trained and taken apart on this machine, without the hub."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
