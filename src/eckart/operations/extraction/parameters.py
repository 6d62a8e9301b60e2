"""Matrices that PEFT adapts as parameters of a module (`target_parameters`): experts, and the routers that choose them.

In transformers 5 a router next to fused experts is a module of its own class, which returns several tensors: PEFT can
wrap its `weight`, but not the module.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from eckart.checkpoint import MatrixView

_ROUTERS = ("router", "gate")


def routers(views: Iterable[MatrixView], naming: Callable[[str], str]) -> set[str]:
    """Modules that are routers next to fused experts."""
    tensors = list(views)
    experts = {naming(view.tensor).rpartition(".")[0] for view in tensors if view.kind == "expert"}
    found = set()
    for view in tensors:
        parent, _, leaf = naming(view.module).rpartition(".")
        if leaf in _ROUTERS and view.kind == "linear" and f"{parent}.experts" in experts:
            found.add(view.module)
    return found


def as_parameter(view: MatrixView, naming: Callable[[str], str]) -> MatrixView:
    """A matrix under the name of its parameter in transformers."""
    kind = "expert" if view.kind == "expert" else "parameter"
    return replace(view, name=naming(view.tensor) + view.name.removeprefix(view.module), kind=kind)
