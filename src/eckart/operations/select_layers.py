"""Which layers of an adapter an operation changes: PEFT's target rules and presets, applied to its outline."""

from collections.abc import Iterable, Sequence

from eckart.adapter.outline import AdapterOutline
from eckart.checkpoint import Layout, MatrixView, as_patterns, select


def select_layers(
    outline: AdapterOutline, target: str | Sequence[str], exclude: str | Sequence[str]
) -> tuple[str, ...]:
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


def shapes_of(outline: AdapterOutline, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Shape of each layer's update, in the orientation of `AdapterLayer.low_rank`."""
    return {name: outline[name].update_shape for name in names}


def parameter_of(name: str) -> str:
    """The parameter that an expert is a slice of, such as `experts.gate_up_proj` of `experts.gate_up_proj[3]`."""
    return name.partition("[")[0]
