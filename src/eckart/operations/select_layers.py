"""Which layers of an adapter an operation changes: PEFT's target rules and presets, applied to its outline."""

from collections.abc import Iterable, Sequence
from math import prod

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.checkpoint import Layout, MatrixView, as_patterns, select


def select_layers(outline: Adapter, target: str | Sequence[str], exclude: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the layers that some `target` matches and no `exclude` does; all layers without a target.

    Raises:
        MismatchError: patterns that match nothing, each with the nearest names; or every layer is excluded.
    """
    shapes = shapes_of(outline, outline)
    views = [
        MatrixView(name, name.partition("[")[0], name, outline[name].kind, shape, 0, False, shape)
        for name, shape in shapes.items()
    ]
    return tuple(view.name for view in select(Layout(views, []), as_patterns(target) or (".*",), exclude))


def shapes_of(outline: Adapter, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Shape of each layer's update, in the orientation of `AdapterLayer.low_rank`."""
    return {name: _shape(outline[name]) for name in names}


def _shape(layer: AdapterLayer) -> tuple[int, int]:
    inputs, outputs = prod(layer.lora_A.shape[1:]), layer.lora_B.shape[0]
    return (inputs, outputs) if layer.kind == "embedding" else (outputs, inputs)


def parameter_of(name: str) -> str:
    """The parameter that an expert is a slice of, such as `experts.gate_up_proj` of `experts.gate_up_proj[3]`."""
    return name.partition("[")[0]
