"""Peak memory of a training step, by what the tensors that are alive then are used for."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from eckart.nn import adapted_modules
from eckart.planning.memory import PARTS, Part
from eckart.planning.module_tracker import OUTSIDE, ModuleTracker
from eckart.planning.step import TrainingStep
from eckart.planning.storages import Life, StorageLog

LOGITS, INPUTS, TEMPORARY, GATHERED = "logits and loss", "inputs", "temporary", "gathered layers"
FORWARD, BACKWARD, UPDATE = "forward", "backward", "optimizer step"


def account(step: TrainingStep, *, granularity: int = 1) -> tuple[dict[Part, int], dict[str, int], str]:
    """Memory at the peak of a step, which is run once, on tensors with or without data.

    Args:
        step: the step; its optimizer must have its states.
        granularity: bytes of a storage are rounded up to a multiple of this.

    Returns:
        bytes by part; those of the part `other` by use; the running module and the phase.
    """
    accountant = _Accountant(step, granularity)
    accountant.run()
    return accountant.peak()


class _Accountant:
    def __init__(self, step: TrainingStep, granularity: int) -> None:
        self.step, self.phase = step, FORWARD
        self.tracker = ModuleTracker(step.model, at_end=lambda: self.ends.append(self.log.clock))
        self.log = StorageLog(granularity=granularity, origin=self._moment)
        self.ends: list[int] = []  # of passes that compute outputs; what outlives them is saved for the gradients

    def run(self) -> None:
        step, log = self.step, self.log
        with self.tracker, log, _labelling_gathered(log, step):
            self._label_permanent()
            log.restart()
            self.began = log.clock - 1
            loss = step.loss()
            self.phase = BACKWARD
            step.backward(loss)
            log.label([p.grad for p in step.trained if p.grad is not None], ("gradients", None))
            self.phase = UPDATE
            step.update()

    def _label_permanent(self) -> None:
        model, log = self.step.model, self.log
        adapted = adapted_modules(model).values()
        log.label([*model.parameters(), *model.buffers()], ("weights", None))
        for module in adapted:
            log.label([*module.adapters.parameters(), *module.adapters.buffers()], ("adapters", None))
            if any(module.factors(name).magnitude is not None for name in module.adapters):
                log.label([module.squared_norms()], ("adapters", None))
        for states in self.step.optimizer.state.values():
            log.label([value for value in states.values() if hasattr(value, "untyped_storage")], ("optimizer", None))
        log.label([self.step.ids], ("other", INPUTS))
        log.label([self.step.buckets], ("gradients", None))

    def _moment(self) -> tuple[str, str, bool]:
        """The phase, the running module, and whether that module computes outputs."""
        inside = self.tracker.is_inside
        is_place = inside or self.phase == BACKWARD
        return self.phase, self.tracker.here() if is_place else OUTSIDE, inside

    def peak(self) -> tuple[dict[Part, int], dict[str, int], str]:
        log = self.log
        parts: dict[Part, int] = dict.fromkeys(PARTS, 0)
        details: dict[str, int] = dict.fromkeys((LOGITS, INPUTS, TEMPORARY), 0)
        divided, at, last = self.step.setting.divided, log.peak_at, None

        def size(life: Life) -> int:
            return -(-life.nbytes // divided.get(self._use(life)[0], 1))

        if divided:
            at = log.peak_of(size, self.began)
        for life in filter(lambda life: life.is_alive(at), log.lives):
            last = life
            part, detail = self._use(life)
            parts[part] += size(life)
            if detail is not None:
                details[detail] = details.get(detail, 0) + size(life)
        assert last is not None
        return parts, details, self._where(*last.origin[:2])

    def _where(self, phase: str, path: str) -> str:
        if phase == UPDATE:
            return UPDATE
        return f"{path or 'model' if self._is_body(path) else OUTSIDE}, {phase}"

    def _use(self, life: Life) -> tuple[Part, str | None]:
        if life.use is not None:
            return life.use
        phase, path, computes = life.origin
        if phase != UPDATE and not self._is_body(path):
            return "other", LOGITS
        if computes:
            place = bisect_right(self.ends, life.start)
            if place < len(self.ends) and life.is_alive(self.ends[place]):
                return "activations", None
        return "other", TEMPORARY

    def _is_body(self, place: str) -> bool:
        body = self.step.body
        return place != OUTSIDE and (not body or place == body or place.startswith(f"{body}."))


@contextmanager
def _labelling_gathered(log: StorageLog, step: TrainingStep) -> Iterator[None]:
    """Inside the block, the log records the memory that FSDP takes and frees for gathered layers, by resizing it."""
    if not step.setting.shards_parameters:
        yield
        return
    from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group

    def labelling(resize: Any) -> Any:
        def resize_and_label(tensor: Any) -> None:
            resize(tensor)
            log.label([tensor], ("other", GATHERED))

        return resize_and_label

    with ExitStack() as stack:
        for module, name in (
            (_fsdp_param, "alloc_storage"),
            (_fsdp_param, "free_storage"),
            (_fsdp_param_group, "alloc_storage"),
        ):
            stack.enter_context(patch.object(module, name, labelling(getattr(module, name))))
        yield
