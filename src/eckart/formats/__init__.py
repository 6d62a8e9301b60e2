"""Adapter files and the `Adapter` value: one file per format, and the tables of module names of model families."""

from pathlib import Path

import lazy_loader

from eckart.adapter.adapter import Adapter, register_writer

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def _write_peft(adapter: Adapter, path: Path, *, force: bool) -> None:
    from eckart.formats import peft

    peft.write(adapter, path, force=force)


def _write_kohya(adapter: Adapter, path: Path, *, force: bool) -> None:
    from eckart.formats import kohya

    kohya.write(adapter, path, force=force)


def _write_diffusers(adapter: Adapter, path: Path, *, force: bool) -> None:
    from eckart.formats import diffusers

    diffusers.write(adapter, path, force=force)


# `Adapter.save` finds the formats here, and imports one when it is written.
register_writer("peft", _write_peft)
register_writer("kohya", _write_kohya)
register_writer("diffusers", _write_diffusers)
