"""An adapter as a value: low-rank updates by module name, in memory or read when they are looked up."""

from eckart.adapter.adapter import Adapter, AdapterFormat, AdapterLayer, LayerKind
from eckart.adapter.deferred import Deferred

__all__ = ["Adapter", "AdapterFormat", "AdapterLayer", "Deferred", "LayerKind"]
