"""Which module of a model is running: in the forward pass, and in the backward pass through what it computed."""

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

OUTSIDE = "loss"  # where no module is running
_NUMBERS = range(2**63)  # of autograd's nodes, except those that accumulate gradients


class ModuleTracker:
    """Context manager that follows a model through forward and backward passes.

    Autograd numbers its nodes in the order of their creation, so the number of a node in the backward pass identifies
    the module that was running when the node was created. The hooks are torch's global ones, because hooks of a layer
    may change how it computes.

    Args:
        model: the model to follow.
        at_end: called at the end of a forward pass of the model, or of a part that is recomputed.
    """

    def __init__(self, model: nn.Module, *, at_end: Callable[[], object] = lambda: None) -> None:
        self._names = {module: path for path, module in model.named_modules()}
        self._at_end = at_end
        self._stack: list[str] = []
        self._starts, self._paths = [-1], [OUTSIDE]  # first numbers of nodes, and the module that creates them
        self._latest = OUTSIDE
        self._handles: list[Any] = []

    def __enter__(self) -> "ModuleTracker":
        """Register the hooks."""
        self._handles = [
            register_module_forward_pre_hook(self._enters),
            register_module_forward_hook(self._leaves, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    @property
    def is_inside(self) -> bool:
        """Whether a forward pass of the model, or of a part of it, is running."""
        return bool(self._stack)

    def here(self) -> str:
        """Path of the innermost running module; "" is the model itself. Between two gradients, that of the first."""
        node = torch._C._current_autograd_node()
        if self._stack:
            self._latest = self._stack[-1]
        elif node is not None and (number := node._sequence_nr()) in _NUMBERS:
            self._latest = self._paths[bisect_right(self._starts, number) - 1]
        return self._latest

    def _enters(self, module: nn.Module, _: Any) -> None:
        if module in self._names:
            self._stack.append(self._names[module])
            self._note()

    def _leaves(self, module: nn.Module, *_: Any) -> None:
        if module in self._names and self._stack:
            self._stack.pop()
            self._note()
            if not self._stack:
                self._at_end()

    def _note(self) -> None:
        self._starts.append(torch._C._autograd._get_sequence_nr())  # type: ignore[attr-defined]
        self._paths.append(self._stack[-1] if self._stack else OUTSIDE)
