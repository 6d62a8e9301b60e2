"""Adapter files and the `Adapter` value: one file per format, and the tables of module names of model families."""

from eckart.adapter import Adapter, AdapterLayer
from eckart.adapter.adapter import register_writer
from eckart.formats import diffusers, kohya, peft
from eckart.formats.files import check_name, load_adapter, unknown_fields
from eckart.formats.renaming import rename_for_base
from eckart.formats.sources import open_adapter_or_checkpoint

__all__ = [
    "Adapter",
    "AdapterLayer",
    "check_name",
    "load_adapter",
    "open_adapter_or_checkpoint",
    "rename_for_base",
    "unknown_fields",
]

register_writer("peft", peft.write)
register_writer("kohya", kohya.write)
register_writer("diffusers", diffusers.write)
