"""A training step run under watch: what is alive when most is, told apart by what it is for."""

from bisect import bisect_right
from dataclasses import dataclass

from eckart.nn import adapted_modules
from eckart.planning.places import OUTSIDE, Places
from eckart.planning.simulation import PARTS, Part
from eckart.planning.step import TrainingStep
from eckart.planning.storages import Life, StorageLog

LOGITS, INPUTS, TEMPORARY = "logits and loss", "inputs", "temporary"
FORWARD, BACKWARD, UPDATE = "forward", "backward", "optimizer step"


@dataclass(frozen=True)
class Account:
    """Memory at the highest moment of a step.

    Attributes:
        peak_bytes: of all tensors.
        parts: of the peak.
        details: of the part `other`.
        where: the module at work, and the phase.
    """

    peak_bytes: int
    parts: dict[Part, int]
    details: dict[str, int]
    where: str


@dataclass(frozen=True)
class _Moment:
    """What went on when a storage was born: the phase, the module at work, and whether that computed outputs."""

    phase: str
    place: str
    computes: bool


def account(step: TrainingStep, *, granularity: int = 1) -> Account:
    """Run a step once, on tensors with data or without.

    Args:
        step: whose optimizer has its states.
        granularity: bytes of a storage are rounded up to a multiple of this.
    """
    return _Accountant(step, granularity).run()


class _Accountant:
    def __init__(self, step: TrainingStep, granularity: int) -> None:
        self.step, self.phase = step, FORWARD
        self.places = Places(step.model, at_end=lambda: self.ends.append(self.log.clock))
        self.log = StorageLog(granularity=granularity, origin=self._moment)
        self.ends: list[int] = []  # of passes that compute outputs: what outlives them is kept for the gradients

    def run(self) -> Account:
        step, log = self.step, self.log
        with self.places, log:
            self._tell_what_stays()
            log.restart()
            loss = step.loss()
            self.phase = BACKWARD
            step.backward(loss)
            log.tell([p.grad for p in step.trained if p.grad is not None], ("gradients", None))
            self.phase = UPDATE
            step.update()
        return self._account()

    def _tell_what_stays(self) -> None:
        model, log = self.step.model, self.log
        adapted = adapted_modules(model).values()
        log.tell([*model.parameters(), *model.buffers()], ("weights", None))
        for module in adapted:
            log.tell([*module.adapters.parameters(), *module.adapters.buffers()], ("adapters", None))
            if any(module.factors(name).magnitude is not None for name in module.adapters):
                log.tell([module.squared_norms()], ("adapters", None))
        for states in self.step.optimizer.state.values():
            log.tell([value for value in states.values() if hasattr(value, "untyped_storage")], ("optimizer", None))
        log.tell([self.step.ids], ("other", INPUTS))

    def _moment(self) -> _Moment:
        inside = self.places.is_inside
        is_place = inside or self.phase == BACKWARD
        return _Moment(self.phase, self.places.here() if is_place else OUTSIDE, inside)

    def _account(self) -> Account:
        log = self.log
        parts: dict[Part, int] = dict.fromkeys(PARTS, 0)
        details: dict[str, int] = dict.fromkeys((LOGITS, INPUTS, TEMPORARY), 0)
        highest = None
        for life in filter(lambda life: life.is_alive(log.at), log.lives):
            highest = life
            part, detail = self._use(life)
            parts[part] += life.nbytes
            if detail is not None:
                details[detail] += life.nbytes
        assert highest is not None
        return Account(log.highest, parts, details, self._where(highest.origin))

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
            place = bisect_right(self.ends, life.born)
            if place < len(self.ends) and life.is_alive(self.ends[place]):
                return "activations", None
        return "other", TEMPORARY

    def _is_body(self, place: str) -> bool:
        body = self.step.body
        return place != OUTSIDE and (not body or place == body or place.startswith(f"{body}."))
