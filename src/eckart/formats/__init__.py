"""Adapter files and the `Adapter` value: one file per format, and the tables of module names of model families."""

from pathlib import Path

import lazy_loader

from eckart.adapter.adapter import Adapter, register_writer
from eckart.formats.table import FORMATS, format_of

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def _write(adapter: Adapter, path: Path, *, force: bool) -> None:
    format_of(adapter.format).write(adapter, path, force=force)


# `Adapter.save` finds the formats here, and imports one when it is written.
for name in FORMATS:
    register_writer(name, _write)
