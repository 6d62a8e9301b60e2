"""Errors of a training explained: losses that are not finite, and too little memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eckart.errors import EckartError

SHOWN = 3
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class DivergenceError(EckartError):
    """A loss or gradient is not finite; the weights are those before that step."""

    step: int = 0

    @classmethod
    def at(cls, step: int, steps: int, module: str | None, gradients: Sequence[str], rate: float) -> "DivergenceError":
        """The error at `step`, seen first in a module's output, or else in the gradients of these parameters."""
        if module is not None:
            what = f"the loss is not finite; the first module whose output is not finite is {module}"
        elif gradients:
            # In the backward pass NaN and Inf spread from the end of the model to its start.
            named = ", ".join(name.replace(".adapters.default", "") for name in reversed(gradients[-SHOWN:]))
            more = f" and {len(gradients) - SHOWN} more" if len(gradients) > SHOWN else ""
            what = f"the gradient is not finite, in {named}{more}"
        else:
            what = "the loss or gradient of another process is not finite"
        error = cls(f"training stopped at step {step} of {steps}: {what}; a learning rate below {rate:g} usually helps")
        error.step = step
        return error

    def keeping(self, adapter: Path | None) -> "DivergenceError":
        """The same error, with the place of the adapter as it was before the step."""
        if adapter is None:
            return self
        error = DivergenceError(f"{self}. The adapter as it was before that step is in {adapter}")
        error.step = self.step
        return error


@torch.no_grad()
def first_bad_module(model: nn.Module, inputs: Mapping[str, Any]) -> str:
    """The innermost module whose output is the first that is not finite on these inputs."""
    bad: list[str] = []

    def watch(name: str) -> Any:
        def look(_module: nn.Module, _inputs: object, output: object) -> None:
            values = output[0] if isinstance(output, tuple) and output else output
            if not bad and isinstance(values, Tensor) and not values.isfinite().all():
                bad.append(name)

        return look

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    training = model.training
    model.eval()
    try:
        model(**{name: value for name, value in inputs.items() if name != "labels"})
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return bad[0].replace(".base_layer", "") if bad else "the loss itself"


@contextmanager
def explaining_memory(source: str, advice: str) -> Iterator[None]:
    """Turn an out-of-memory error into one that says which settings to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        short = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not short and not any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
            raise
        plan = f"`eckart plan {source}` shows which settings fit"
        msg = f"not enough memory for this training; lower one of these settings, cheapest first: {advice}; {plan}"
        raise EckartError(msg) from error
