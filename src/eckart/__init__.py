"""A low-rank workbench for neural-network weights: see the rank, extract the adapter, trust the numbers.

The names used daily are here and arrive when they are first used, so that importing eckart imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eckart.analysis import Analysis as Analysis
    from eckart.analysis import analyze as analyze
    from eckart.linalg import Spectrum as Spectrum
    from eckart.linalg import spectrum as spectrum

__version__ = "0.1.0"

_HOMES = {
    "eckart.analysis": ("Analysis", "analyze"),
    "eckart.linalg": ("Spectrum", "spectrum"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    """A daily name, imported from its package at its first use."""
    if name not in _HOME_OF:
        msg = f"module 'eckart' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The daily names beside what is already here."""
    return sorted({*globals(), *_HOME_OF})
