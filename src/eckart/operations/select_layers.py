"""Which layers of an adapter a command works on, by PEFT's target rules and presets, from its outline."""

from collections.abc import Iterable, Sequence

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import Layout, MatrixView, select


def select_layers(outline: Adapter, target: Sequence[str], exclude: Sequence[str]) -> tuple[str, ...]:
    """Names of the layers that some `target` takes and no `exclude` does; all of them without a target.

    Raises:
        MismatchError: patterns that match nothing, each with the nearest names; or nothing is left.
    """
    shapes = shapes_of(outline, outline)
    views = [
        MatrixView(name, name.partition("[")[0], name, outline[name].kind, shape, 0, False, shape)
        for name, shape in shapes.items()
    ]
    return tuple(view.name for view in select(Layout(views, []), target or (".*",), exclude))


def shapes_of(outline: Adapter, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Shape of each layer's update, as `AdapterLayer.low_rank` lays it."""
    return {name: outline[name].low_rank().shape for name in names}
