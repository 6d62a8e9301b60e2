"""Runs commands in forks of one process that has imported everything, and sends them a signal at a chosen moment.

A moment is a number of events that change files: opening for writing, renaming, creating and removing. Unlike a time it
means the same on every machine. Requests and answers are lines of JSON.
"""

import json
import os
import signal
import sys
import tempfile

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def preload() -> None:
    """Import what commands import."""
    import matplotlib.figure  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from trl.trainer import sft_trainer  # noqa: F401

    import eckart.cli.main
    import eckart.report.page
    import eckart.training.trainer  # noqa: F401
    from eckart.operations.merging import restored  # noqa: F401


class Moment:
    """Counts the events in a folder that change files, and sends a signal at one of them."""

    def __init__(self, folder: str, at: int | None, number: int) -> None:
        self.folder, self.at, self.number, self.count = folder, at, number, 0

    def __call__(self, event: str, arguments: tuple) -> None:
        if event not in CHANGES and (event != "open" or not (arguments[2] or 0) & WRITING):
            return
        if not os.path.abspath(os.fsdecode(arguments[0])).startswith(self.folder):  # noqa: PTH100
            return
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), self.number)


def run(request: dict) -> None:
    """One command, in this process."""
    os.chdir(request["folder"])
    tempfile.tempdir = request["temporary"]
    output = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = ["eckart", *request["arguments"]]
    from eckart import training
    from eckart.__main__ import run as run_command_line
    from eckart.training.sweep_cell import train_here

    sweep = training.sweep
    training.sweep = lambda *given, **options: sweep(*given, **options, run_cell=train_here)
    moment = Moment(request["folder"], request["at"], request["signal"])
    sys.addaudithook(moment)
    status = 1
    try:
        run_command_line()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    with open(request["log"] + ".events", "w") as file:  # noqa: PTH123
        file.write(str(moment.count))
    os._exit(status)


def main() -> None:
    """Answer each request with the exit status, negative for the signal that killed the process."""
    preload()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                run(request)
            except BaseException:
                import traceback

                traceback.print_exc()
            os._exit(99)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
