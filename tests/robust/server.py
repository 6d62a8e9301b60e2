"""Runs commands in forks of one process that has imported everything, and disturbs them at a chosen moment.

A moment is a number of events that change files: opening for writing, renaming, creating and removing. Unlike a time it
means the same on every machine. Requests and answers are lines of JSON.
"""

import gc
import json
import os
import signal
import sys
import tempfile
import traceback

from commands import use_small_demo

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def preload() -> None:
    """Import what commands import, and fill the caches that every drawing would fill again."""
    import matplotlib.figure
    import torch.utils.tensorboard  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from trl.trainer import sft_trainer  # noqa: F401

    import eckart.cli.main
    import eckart.planning.planner
    import eckart.planning.simulation
    import eckart.report.page
    import eckart.training.trainer  # noqa: F401
    from eckart.operations.merging import restored  # noqa: F401
    from eckart.report.page import bundle

    bundle.plotly()
    use_small_demo()
    # Blank figures: drawing takes most of the time of a command, and changes no file.
    matplotlib.figure.Figure.draw = lambda self, renderer: None
    gc.freeze()  # a fork collects no garbage of this process, and shares its memory


class Moment:
    """Counts the events that change files in a folder; at one of them it sends a signal, or renames a file away."""

    def __init__(self, request: dict) -> None:
        self.folders = tuple(request["folders"])
        self.at, self.number, self.vanishing = request["at"], request["signal"], request["vanishing"]
        self.count = 0

    def __call__(self, event: str, arguments: tuple) -> None:
        if event not in CHANGES and (event != "open" or not (arguments[2] or 0) & WRITING):
            return
        if isinstance(arguments[0], int):
            return
        if not os.path.abspath(os.fsdecode(arguments[0])).startswith(self.folders):  # noqa: PTH100
            return
        self.count += 1
        if self.count != self.at:
            return
        if self.vanishing:
            os.rename(self.vanishing, self.vanishing + ".vanished")  # noqa: PTH104
        else:
            os.kill(os.getpid(), self.number)


def run(request: dict) -> None:
    """One command, in this process."""
    os.chdir(request["folders"][0])
    tempfile.tempdir = request["temporary"]
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = ["eckart", *request["arguments"]]
    from eckart import training
    from eckart.__main__ import run as run_command_line
    from eckart.training.sweep_cell import train_here

    sweep = training.sweep
    training.sweep = lambda *given, **options: sweep(*given, **options, run_cell=train_here)
    if request["file_limit"]:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
    moment = Moment(request)
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


def answer(child: int) -> None:
    """Print the exit status, negative for the signal that killed the process, or that the process has stopped."""
    _, status = os.waitpid(child, os.WUNTRACED)
    print(f"stopped {child}" if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status), flush=True)


def main() -> None:
    """Answer each request: a command to run, or a stopped process to continue."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background inherits that it is ignored
    preload()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "continue" in request:
            os.kill(request["continue"], signal.SIGCONT)
            answer(request["continue"])
            continue
        child = os.fork()
        if child == 0:
            try:
                run(request)
            except BaseException:
                traceback.print_exc()
            os._exit(99)
        answer(child)


if __name__ == "__main__":
    main()
