"""Peak memory of a training step, by what the tensors that are alive then are used for."""

from bisect import bisect_right
from dataclasses import dataclass

from eckart.nn import adapted_modules
from eckart.planning.memory import PARTS, Part
from eckart.planning.module_tracker import OUTSIDE, ModuleTracker
from eckart.planning.step import TrainingStep
from eckart.planning.storages import Life, StorageLog

LOGITS, INPUTS, TEMPORARY = "logits and loss", "inputs", "temporary"
FORWARD, BACKWARD, UPDATE = "forward", "backward", "optimizer step"


@dataclass(frozen=True)
class Account:
    """Memory of a step at its peak.

    Attributes:
        peak_bytes: bytes of all tensors.
        parts: the peak by part.
        details: the part `other` by use.
        where: the running module, and the phase.
    """

    peak_bytes: int
    parts: dict[Part, int]
    details: dict[str, int]
    where: str


@dataclass(frozen=True)
class _Moment:
    """The phase and the running module when a storage was allocated, and whether that module computed outputs."""

    phase: str
    place: str
    computes: bool


def account(step: TrainingStep, *, granularity: int = 1) -> Account:
    """Run a step once, on tensors with or without data.

    Args:
        step: the step; its optimizer must have its states.
        granularity: bytes of a storage are rounded up to a multiple of this.
    """
    return _Accountant(step, granularity).run()


class _Accountant:
    def __init__(self, step: TrainingStep, granularity: int) -> None:
        self.step, self.phase = step, FORWARD
        self.tracker = ModuleTracker(step.model, at_end=lambda: self.ends.append(self.log.clock))
        self.log = StorageLog(granularity=granularity, origin=self._moment)
        self.ends: list[int] = []  # of passes that compute outputs; what outlives them is saved for the gradients

    def run(self) -> Account:
        step, log = self.step, self.log
        with self.tracker, log:
            self._label_permanent()
            log.restart()
            loss = step.loss()
            self.phase = BACKWARD
            step.backward(loss)
            log.label([p.grad for p in step.trained if p.grad is not None], ("gradients", None))
            self.phase = UPDATE
            step.update()
        return self._account()

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

    def _moment(self) -> _Moment:
        inside = self.tracker.is_inside
        is_place = inside or self.phase == BACKWARD
        return _Moment(self.phase, self.tracker.here() if is_place else OUTSIDE, inside)

    def _account(self) -> Account:
        log = self.log
        parts: dict[Part, int] = dict.fromkeys(PARTS, 0)
        details: dict[str, int] = dict.fromkeys((LOGITS, INPUTS, TEMPORARY), 0)
        last = None
        for life in filter(lambda life: life.is_alive(log.peak_at), log.lives):
            last = life
            part, detail = self._use(life)
            parts[part] += life.nbytes
            if detail is not None:
                details[detail] += life.nbytes
        assert last is not None
        return Account(log.peak_bytes, parts, details, self._where(last.origin))

    def _where(self, moment: _Moment) -> str:
        if moment.phase == UPDATE:
            return UPDATE
        place = moment.place or "model"
        return f"{place if self._is_body(moment.place) else OUTSIDE}, {moment.phase}"

    def _use(self, life: Life) -> tuple[Part, str | None]:
        origin: _Moment = life.origin
        if life.use is not None:
            return life.use
        if origin.phase != UPDATE and not self._is_body(origin.place):
            return "other", LOGITS
        if origin.computes:
            place = bisect_right(self.ends, life.start)
            if place < len(self.ends) and life.is_alive(self.ends[place]):
                return "activations", None
        return "other", TEMPORARY

    def _is_body(self, place: str) -> bool:
        body = self.step.body
        return place != OUTSIDE and (not body or place == body or place.startswith(f"{body}."))
