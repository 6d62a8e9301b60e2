"""Full fine-tuning of a causal language model: AdamW on float32 weights."""

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from eckart.engine.progress import NoProgress, Progress
from eckart.errors import EckartError, OptionError
from eckart.nn.processor import multiplies_bfloat16
from eckart.training.sequences import shuffled_batches

if TYPE_CHECKING:
    from torch import nn

MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class FinetuneSettings:
    """How to fine-tune or distill.

    Attributes:
        steps: optimizer steps.
        batch_size: sequences per step.
        learning_rate: peak learning rate, reached after `warmup_steps`; then it falls linearly towards zero.
        warmup_steps: steps over which the learning rate rises.
        seed: seed of the order of the sequences.
        compute_dtype: `"float32"`, or `"bfloat16"` to run the matrix products in it (autocast); the weights,
            their gradients and the optimizer's state are float32 in both cases.
    """

    steps: int
    batch_size: int = 4
    learning_rate: float = 5e-5
    warmup_steps: int = 5
    seed: int = 0
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuse invalid settings, with all faults."""
        faults = [
            f"`{name}` must be at least {least}, got {getattr(self, name)}"
            for name, least in (("steps", 1), ("batch_size", 1), ("warmup_steps", 0))
            if getattr(self, name) < least
        ]
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            faults.append(f"`learning_rate` must be a positive number, got {self.learning_rate}")
        if self.compute_dtype not in ("float32", "bfloat16"):
            faults.append(f"`compute_dtype` must be 'float32' or 'bfloat16', got {self.compute_dtype!r}")
        if faults:
            msg = "invalid training settings"
            raise OptionError.listing(msg, faults)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 1."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / (self.warmup_steps + 1)
        return self.learning_rate * (self.steps - step + 1) / max(1, self.steps - self.warmup_steps)


@dataclass(frozen=True)
class FinetuneResult:
    """The loss of every step in nats per token, the number of tokens trained on, and the time."""

    losses: list[float] = field(repr=False)
    tokens: int
    seconds: float


def fast_dtype() -> Literal["float32", "bfloat16"]:
    """`bfloat16` if the processor multiplies in it, else `float32`."""
    return "bfloat16" if multiplies_bfloat16() else "float32"


def finetune(
    model: "nn.Module",
    sequences: Tensor,
    settings: FinetuneSettings,
    *,
    progress: Progress = NoProgress(),
) -> FinetuneResult:
    """Train every parameter of a causal language model, in place.

    Args:
        model: called as `model(input_ids=..., labels=...)` and returning `.loss`, as transformers'
            models do; its parameters must be float32.
        sequences: token ids, int64, shape `(sequences, length)`, as `pack_texts` returns.
        settings: how to train.
        progress: receives the steps.

    Returns:
        The losses of the steps; the model is left in evaluation mode, without gradients.

    Raises:
        EckartError: a loss or gradient is not finite; the weights are then those after the step before.
        OptionError: the weights are not float32, or there is nothing to train on.

    Loshchilov & Hutter (2019), "Decoupled weight decay regularization"; the weight decay is zero, so that weights
    change only by their gradients.
    """
    _check(model, sequences)
    # The fused kernel needs dense float32 parameters, which _check has verified.
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    batches = shuffled_batches(sequences, settings.batch_size, torch.Generator().manual_seed(settings.seed))
    device = next(model.parameters()).device
    losses: list[float] = []
    start = time.perf_counter()
    model.train()
    progress.start("Fine-tuning", settings.steps, "steps")
    try:
        for step in range(1, settings.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            losses.append(_step(model, next(batches).to(device), optimizer, settings, step=step))
            progress.update(1, f"loss {losses[-1]:.4f}")
    finally:
        progress.finish()
    model.eval()
    tokens = settings.steps * settings.batch_size * sequences.shape[1]
    return FinetuneResult(losses=losses, tokens=tokens, seconds=time.perf_counter() - start)


def _step(
    model: "nn.Module",
    batch: Tensor,
    optimizer: torch.optim.Optimizer,
    settings: FinetuneSettings,
    *,
    step: int,
) -> float:
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=settings.compute_dtype == "bfloat16"):
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
    _require_finite("loss", loss.item(), settings, step)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    _require_finite("norm of the gradient", norm.item(), settings, step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def _require_finite(what: str, value: float, settings: FinetuneSettings, step: int) -> None:
    if not math.isfinite(value):
        msg = (
            f"training stopped at step {step} of {settings.steps}: the {what} is {value}; "
            f"a learning rate below {settings.learning_rate:g} usually helps"
        )
        raise EckartError(msg)


def _check(model: "nn.Module", sequences: Tensor) -> None:
    faults = []
    others = sorted({str(p.dtype) for p in model.parameters() if p.dtype != torch.float32})
    if others:
        faults.append(f"the model's weights must be float32, got {', '.join(others)}: call model.float()")
    if sequences.ndim != 2 or sequences.shape[0] < 1 or sequences.shape[1] < 2:
        faults.append(f"sequences must have the shape (sequences, length of 2 or more), got {tuple(sequences.shape)}")
    if faults:
        msg = "this model cannot be fine-tuned on these sequences"
        raise OptionError.listing(msg, faults)
