"""A short distillation: the factors of an adapter trained towards a teacher's predictions, kept only if that helps.

The truncated SVD is the best approximation of an update's weights, but not of the model's predictions.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from eckart.engine.progress import NoProgress, Progress
from eckart.errors import MismatchError, NotFiniteError, OptionError
from eckart.evaluation import GainReport
from eckart.nn import LoRAFactors, adapted_modules, set_adapters
from eckart.result import Result
from eckart.training.divergence import Agreement, summed_agreement, turn_into_gradient
from eckart.training.finetuning import FinetuneSettings
from eckart.training.sequences import shuffled_batches

STUDENT = "default"
HELD_OUT_SHARE = 0.15
LEAST_HELD_OUT_TOKENS = 256
MOST_HELD_OUT_TOKENS = 2048  # predicted in float32, which is slow on a CPU

CHECK_EVERY = 10  # steps between two measurements on held-out text
TOKENS_AT_ONCE = 512  # of a batch, as the logits over a vocabulary and their gradients are most of the memory
PATIENCE = 2  # such measurements in a row without a lower KL end the training

SHORT = FinetuneSettings(steps=40, learning_rate=0.3, warmup_steps=4)
Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True, repr=False)
class DistillResult(Result):
    """The result of a distillation, measured on held-out text.

    Attributes:
        before: agreement of the original adapter with the teacher.
        after: agreement of the trained one, in the dtypes that it is written in; None if training stopped early.
        base_loss: loss of the model without adapter, in nats per token.
        teacher_loss: loss of the teacher.
        tokens: number of tokens predicted in each of these measurements.
        losses: KL of every step's batch.
        note: why the adapter was restored; None if the trained one is kept.
        seconds: wall time.
        checks: KL on the held-out text after some of the steps, by step.
        stopped: whether training ended before its last step because that KL no longer fell.
    """

    before: Agreement
    after: Agreement | None
    base_loss: float
    teacher_loss: float
    tokens: int
    losses: list[float]
    note: str | None
    seconds: float
    checks: Mapping[int, float] = field(default_factory=dict)
    stopped: bool = False

    @property
    def kept(self) -> bool:
        """Whether the trained adapter is kept."""
        return self.note is None

    def gain_recovered(self, agreement: Agreement | None) -> float | None:
        """The share of the teacher's gain that a model recovers; None if there is no gain, or no model."""
        if agreement is None:
            return None
        return GainReport(self.base_loss, self.teacher_loss, agreement.loss, self.tokens).gain_recovered

    def rows(self) -> list[dict[str, Any]]:
        """The KL of each step."""
        return [{"step": step, "kl": kl} for step, kl in enumerate(self.losses, start=1)]

    def to_json(self) -> dict[str, Any]:
        """The `distill` object of a command."""
        return {
            "kept": self.kept,
            "note": self.note,
            "steps": len(self.losses),
            "stopped": self.stopped,
            "checks": [{"step": step, "kl": kl} for step, kl in self.checks.items()],
            "held_out_tokens": self.tokens,
            "kl_before": self.before.kl,
            "kl_after": self.after.kl if self.after else None,
            "loss_before": self.before.loss,
            "loss_after": self.after.loss if self.after else None,
            "base_loss": self.base_loss,
            "teacher_loss": self.teacher_loss,
            "gain_recovered_before": self.gain_recovered(self.before),
            "gain_recovered_after": self.gain_recovered(self.after),
            "seconds": self.seconds,
        }


def distill(
    student: nn.Module,
    teacher: nn.Module | Mapping[str, float],
    sequences: Tensor,
    settings: FinetuneSettings = SHORT,
    *,
    held_out: Tensor | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
    progress: Progress = NoProgress(),
) -> DistillResult:
    """Train lora_A and lora_B of the adapter `default` towards what a teacher predicts, in place.

    AdamW minimizes KL(teacher ‖ student) over the complete vocabulary. The trained factors are kept if the KL on
    held-out sequences is lower than before, else they are restored bit for bit. It is measured every tenth step too:
    training ends when it has not fallen twice in a row, and the best factors are taken.

    Args:
        student: a causal language model with an adapter `default`, which is switched on alone; its factors that require
            a gradient train. Like the teacher it is left in evaluation mode.
        teacher: another such model, or weights of adapters of the student's own model, as `set_adapters` takes them,
            so that only one model is in memory.
        sequences: token ids in the order of the text, shape `(sequences, length)`.
        settings: how to train. A learning rate of 1 changes the numbers of a factor, per step, by their initial root
            mean square, so that one rate suits updates of every size. The products run in `compute_dtype`,
            measurements in the models' own dtype.
        held_out: further sequences to measure on; by default the last 15 % of `sequences`, which then do not train.
        dtypes: dtype in which the factors of a module, by its path, will be written; they are rounded before they are
            measured.
        progress: receives the steps, with the KL of each in nats per token.

    Returns:
        KL and loss before and after, and whether the trained factors are kept.

    Raises:
        OptionError: too few sequences.
        MismatchError: there is no factor to train, or the teacher has another vocabulary.
        NotFiniteError: teacher or student return NaN before training.

    Hinton, Vinyals & Dean (2015), "Distilling the knowledge in a neural network".
    """
    began = time.monotonic()
    set_adapters(student, {STUDENT: 1.0})
    factors = trained_factors(student)
    training, held_out = (sequences, held_out) if held_out is not None else hold_out(sequences)
    training, held_out = (ids.to(next(student.parameters()).device) for ids in (training, held_out))
    student.eval()
    teach = _predictions(teacher.eval()) if isinstance(teacher, nn.Module) else _predictions(student, teacher)
    predict, base = _predictions(student), _predictions(student, {})
    of_teacher, of_base, before = _measure(teach, [teach, base, predict], held_out)
    if not math.isfinite(before.kl):
        msg = "the teacher, or the student before training, returned NaN or Inf"
        raise NotFiniteError(msg)
    parameters = [tensor for layer in factors.values() for tensor in (layer.lora_A, layer.lora_B)]
    with _restored(student, parameters) as keep:
        watch = _Watch(lambda: _measure(teach, [predict], held_out)[0].kl, parameters, settings.steps)
        steps = _steps(predict, teach, parameters, training, settings)
        losses, note = _run(watch.until_it_rises(steps), settings.steps, progress)
        after = None
        if note is None:
            watch.take_best()
            _round(factors, dtypes or {})
            (after,) = _measure(teach, [predict], held_out)
            note = None if after.kl < before.kl else "the KL on held-out text did not fall"
        if note is None:
            keep()
    tokens, seconds = held_out[:, 1:].numel(), time.monotonic() - began
    return DistillResult(
        before, after, of_base.loss, of_teacher.loss, tokens, losses, note, seconds, watch.checks, watch.stopped
    )


class _Watch:
    """The KL on held-out text while factors train, and the factors where it was lowest."""

    def __init__(self, kl: Callable[[], float], parameters: list[nn.Parameter], steps: int) -> None:
        self._kl, self._parameters, self._steps = kl, parameters, steps
        self._best: list[Tensor] = []
        self.checks: dict[int, float] = {}
        self.stopped = False

    def until_it_rises(self, steps: Iterator[float]) -> Iterator[float]:
        """The steps, ended when the KL has not fallen for some measurements in a row."""
        for step, loss in enumerate(steps, 1):
            yield loss
            if step % CHECK_EVERY == 0 or (self.checks and step == self._steps):
                self._check(step)
            if self._waited() >= PATIENCE and step < self._steps:
                self.stopped = True
                return

    def _check(self, step: int) -> None:
        kl = self._kl()
        if not math.isfinite(kl):
            msg = f"after step {step} of {self._steps} the KL on held-out text was {kl}"
            raise NotFiniteError(msg)
        self.checks[step] = kl
        if kl <= min(self.checks.values()):
            self._best = [parameter.detach().clone() for parameter in self._parameters]

    def _waited(self) -> int:
        """Measurements since the lowest one."""
        values = list(self.checks.values())
        return len(values) - 1 - values.index(min(values)) if values else 0

    @torch.no_grad()
    def take_best(self) -> None:
        """Give the parameters their values at the lowest KL, if it was measured."""
        for parameter, value in zip(self._parameters, self._best, strict=False):
            parameter.copy_(value)


def hold_out(sequences: Tensor) -> tuple[Tensor, Tensor]:
    """The sequences to train on, and the held-out ones to measure, which are spread evenly over the rest.

    Raises:
        OptionError: too few.
    """
    count, length = sequences.shape if sequences.ndim == 2 else (0, 0)
    first = count - math.ceil(count * HELD_OUT_SHARE)
    least, most = (max(1, tokens // max(length, 1)) for tokens in (LEAST_HELD_OUT_TOKENS, MOST_HELD_OUT_TOKENS))
    if first < 1 or length < 2 or count - first < least:
        msg = (
            f"distillation needs more text: it holds out {HELD_OUT_SHARE:.0%}, which must be about "
            f"{LEAST_HELD_OUT_TOKENS} tokens or more, and got sequences of shape {tuple(sequences.shape)}"
        )
        raise OptionError(msg)
    indices = torch.linspace(first, count - 1, min(count - first, most)).round().long()
    return sequences[:first], sequences[indices]


def trained_factors(student: nn.Module) -> dict[str, LoRAFactors]:
    """The factors of the adapter `default` that require a gradient, by the path of their module.

    Raises:
        MismatchError: there are none.
    """
    factors = {
        path: module.factors(STUDENT) for path, module in adapted_modules(student).items() if STUDENT in module.adapters
    }
    trained = {
        path: layer for path, layer in factors.items() if layer.lora_A.requires_grad and layer.lora_B.requires_grad
    }
    if not trained:
        msg = f"the student has no adapter {STUDENT!r} with factors to train"
        raise MismatchError(msg)
    return trained


def _predictions(model: nn.Module, weights: Mapping[str, float] | None = None) -> Predict:
    """Computes logits of a model, with these weights of its adapters if they are given."""

    def predict(ids: Tensor) -> Tensor:
        if weights is not None:
            set_adapters(model, weights)
        try:
            return model(input_ids=ids, use_cache=False).logits
        finally:
            if weights is not None:
                set_adapters(model, {STUDENT: 1.0})

    return predict


@torch.no_grad()
def _measure(teach: Predict, models: list[Predict], windows: Tensor) -> list[Agreement]:
    """Mean KL to the teacher and mean loss of each model over all predicted tokens."""
    sums = torch.zeros(len(models), 2, dtype=torch.float64)
    for window in windows:
        goal = teach(window[None])[0, :-1]
        for row, predict in enumerate(models):
            logits = predict(window[None])[0, :-1]
            if logits.shape != goal.shape:
                msg = f"teacher and student need one vocabulary, got {goal.shape[-1]:,} and {logits.shape[-1]:,} tokens"
                raise MismatchError(msg)
            sums[row] += summed_agreement(goal, logits, window[1:])
    return [Agreement(kl, loss) for kl, loss in (sums / windows[:, 1:].numel()).tolist()]


def _run(steps: Iterator[float], count: int, progress: Progress) -> tuple[list[float], str | None]:
    """The KL of every step, and why the last one failed."""
    losses: list[float] = []
    progress.start("Distilling", count, "steps")
    try:
        for kl in steps:
            losses.append(kl)
            progress.update(1, f"KL {kl:.4f}")
    except NotFiniteError as error:
        return losses, str(error)
    finally:
        progress.finish()
    return losses, None


def _steps(
    predict: Predict, teach: Predict, parameters: list[nn.Parameter], sequences: Tensor, settings: FinetuneSettings
) -> Iterator[float]:
    """Run the steps one by one and yield the KL of each.

    Raises:
        NotFiniteError: the KL or its gradient is not finite.
    """
    groups, scales = [{"params": [parameter]} for parameter in parameters], _scales(parameters)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    batches = shuffled_batches(sequences, settings.batch_size, torch.Generator().manual_seed(settings.seed))
    for step in range(1, settings.steps + 1):
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] = settings.rate(step) * scale
        kl = _backward(predict, teach, next(batches), narrow=settings.compute_dtype == "bfloat16")
        # Not clipped: the norm depends on how the update is split into factors, but AdamW's steps do not.
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if not math.isfinite(kl + norm):
            msg = f"at step {step} of {settings.steps} the KL was {kl} and the norm of its gradient {norm}"
            raise NotFiniteError(msg)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield kl


def _backward(predict: Predict, teach: Predict, ids: Tensor, *, narrow: bool) -> float:
    """The KL on a batch; adds its gradient to the parameters."""
    total = 0.0
    for part in ids.split(max(1, TOKENS_AT_ONCE // ids.shape[1])):
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=narrow):
            with torch.no_grad():
                goal = teach(part).flatten(0, 1)
            logits = predict(part).flatten(0, 1)
        share = len(part) / len(ids)
        total += share * turn_into_gradient(goal, logits.detach())
        logits.backward(goal.mul_(share).to(logits.dtype))
    return total


@torch.no_grad()
def _scales(parameters: list[nn.Parameter]) -> list[float]:
    """Root mean square of each parameter; for a zero parameter, the mean over all of them."""
    scales = [float(parameter.square().mean().sqrt()) for parameter in parameters]
    return [scale or sum(scales) / len(scales) for scale in scales]


@torch.no_grad()
def _round(factors: Mapping[str, LoRAFactors], dtypes: Mapping[str, torch.dtype]) -> None:
    """Round the factors to the values that they will have when they are read back."""
    for path, layer in factors.items():
        for factor in (layer.lora_A, layer.lora_B):
            factor.copy_(factor.to(dtypes.get(path, factor.dtype)))


@contextmanager
def _restored(student: nn.Module, parameters: list[nn.Parameter]) -> Iterator[Callable[[], None]]:
    """Remove gradients and restore parameters bit for bit when the block ends, unless it calls the given function."""
    start, is_kept = [parameter.detach().clone() for parameter in parameters], False

    def keep() -> None:
        nonlocal is_kept
        is_kept = True

    try:
        yield keep
    finally:
        student.zero_grad(set_to_none=True)
        if not is_kept:
            with torch.no_grad():
                for parameter, value in zip(parameters, start, strict=True):
                    parameter.copy_(value)
