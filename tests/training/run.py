"""A training in a process of its own: `python run.py MODEL TEXT OUT JSON`, as a script of a user would have it."""

import json
import os
import signal
import sys

from eckart.engine.progress import NoProgress
from eckart.nn import LoRAConfig
from eckart.training import DataOptions, TrainSettings, model_to_train, train


class Killer(NoProgress):
    """Ends the process, as the kernel or a scheduler does, once a step is done."""

    def __init__(self, step: int) -> None:
        self.step, self.stage, self.done = step, "", 0

    def start(self, stage: str, total: int, unit: str) -> None:
        self.stage, self.done = stage, 0

    def update(self, amount: int, detail: str = "") -> None:
        self.done += amount
        if (self.stage, self.done) == ("Training", self.step):
            os.kill(os.getpid(), signal.SIGKILL)


def main(model: str, text: str, output: str, options: str) -> None:
    given = json.loads(options)
    if given.get("first_loads") and os.environ["RANK"] != "0":
        model_to_train.load_model = None  # type: ignore[assignment]  # a call would fail
    train(
        model,
        text,
        config=LoRAConfig(**given["config"]),
        settings=TrainSettings(**given["settings"]),
        options=DataOptions(**given["options"]),
        output=output,
        progress=Killer(given["kill_at"]),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
