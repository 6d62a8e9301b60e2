"""A training in a process of its own: `python run.py MODEL TEXT OUT JSON`, as a script of a user would have it."""

import json
import os
import signal
import sys

from eckart.nn import LoRAConfig
from eckart.training import DataOptions, TrainSettings, train


class Killer:
    """Ends the process, as the kernel or a scheduler does, once a step is done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def at(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        if (stage, done) == ("training", self.step):
            os.kill(os.getpid(), signal.SIGKILL)

    def note(self, message: str) -> None:
        pass


def main(model: str, text: str, output: str, options: str) -> None:
    given = json.loads(options)
    train(
        model,
        text,
        config=LoRAConfig(**given["config"]),
        settings=TrainSettings(**given["settings"]),
        options=DataOptions(**given["options"]),
        output=output,
        watcher=Killer(given["kill_at"]),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
