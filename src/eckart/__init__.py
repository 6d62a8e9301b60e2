"""A low-rank workbench for neural-network weights: see the rank, extract the adapter, trust the numbers.

Names and packages are imported when they are first used, so `import eckart` imports no torch.
"""

import lazy_loader

import eckart.formats  # noqa: F401 (registers the formats that `Adapter.save` writes)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
