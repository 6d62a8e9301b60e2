"""A language model on text: its loss, and the part of a fine-tune's gain that an adapter recovers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
