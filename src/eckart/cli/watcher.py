"""Stages of a training, reported by their name and position, as calls of `Progress`."""

from eckart.engine.progress import Progress


class StageWatcher:
    """Passes on to `progress`; a stage begins when its name is first reported and is over when all of it is done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage: str | None = None
        self._done = 0

    def at(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        """`done` of `total` steps of a stage are done, the last with this loss in nats per token."""
        self.show(stage, done, total, "" if loss is None else f"loss {loss:.4f}")

    def show(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` steps of a stage are done."""
        if stage != self._stage:
            self._progress.start(stage, total, "steps")
            self._stage, self._done = stage, 0
        self._progress.update(done - self._done, detail)
        self._done = done
        if done >= total:
            self._progress.finish()
            self._stage = None

    def note(self, message: str) -> None:
        """Something the user should know now."""
        self._progress.note(message)
