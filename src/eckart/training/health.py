"""What goes wrong in a training, in words: losses that are no numbers, and memory that is too small."""

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
    """A loss or gradient that is not finite; the weights are those before the step that it stopped."""

    step: int = 0

    @classmethod
    def at(cls, step: int, steps: int, module: str | None, gradients: Sequence[str], rate: float) -> "DivergenceError":
        """The error at `step`, first seen in a module's output, or else in the gradients of these parameters."""
        if module is not None:
            what = f"the loss is not finite; the first output that is not comes from {module}"
        elif gradients:
            # Backwards, what is not finite spreads from the end of the model to its start.
            named = ", ".join(name.replace(".adapters.default", "") for name in reversed(gradients[-SHOWN:]))
            more = f" and {len(gradients) - SHOWN} more" if len(gradients) > SHOWN else ""
            what = f"the gradient is not finite, in {named}{more}"
        else:
            what = "the loss or gradient of another process is not finite"
        error = cls(f"training stopped at step {step} of {steps}: {what}; a rate below {rate:g} usually mends that")
        error.step = step
        return error

    def keeping(self, adapter: Path | None) -> "DivergenceError":
        """The same, with where the adapter is that was there before the step."""
        if adapter is None:
            return self
        error = DivergenceError(f"{self}. The adapter as it was before that step is kept in {adapter}")
        error.step = self.step
        return error


@torch.no_grad()
def first_bad_module(model: nn.Module, inputs: Mapping[str, Any]) -> str:
    """The innermost module whose output is the first that is not finite, when the model computes these inputs."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(_module: nn.Module, _inputs: object, output: object) -> None:
            values = output[0] if isinstance(output, tuple) and output else output
            if not found and isinstance(values, Tensor) and not values.isfinite().all():
                found.append(name)

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
    return found[0].replace(".base_layer", "") if found else "the loss itself"


@contextmanager
def telling_memory(source: str, advice: str) -> Iterator[None]:
    """Turn memory that is too small into an error that says which smaller settings to use for a model."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        short = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not short and not any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
            raise
        plan = f"eckart plan {source} --memory SIZE tells which of them fit"
        msg = f"the memory is too small for this training; smaller settings, the cheapest first: {advice}; {plan}"
        raise EckartError(msg) from error
