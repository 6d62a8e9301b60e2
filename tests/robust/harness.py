"""Commands in processes of their own, disturbed at a chosen moment, and what they leave."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .commands import COMMANDS

SERVER = Path(__file__).with_name("server.py")
DONE = (0, 3)  # `plan` ends with 3 where a setting does not fit
# Times and memory differ from run to run, and TensorBoard's files have the time in their names.
MEASURED = re.compile(rb'"(seconds|peak_rss_bytes|peak_bytes)":\s*(\{[^}]*\}|[^,}\]]+)')
NAMED_BY_TIME = re.compile(rb'"tensorboard/[^"]*",?\s*')


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run writes, and how many changes of files it makes."""

    content: dict[str, bytes]
    events: int


@dataclass(frozen=True)
class Place:
    """A copy of the inputs, and where an output is written."""

    folder: Path
    name: str

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def output(self) -> Path:
        return self.work / f"out{COMMANDS[self.name].suffix}"

    def left(self) -> list[str]:
        """What is there besides the inputs and the output."""
        given = {path.name for path in (self.folder.parent / "originals").iterdir()} | {self.output.name}
        hidden = [path.name for path in self.work.iterdir() if path.name not in given]
        return hidden + [path.name for path in (self.folder / "temporary").iterdir()]


class Harness:
    """Runs commands in forks of one process."""

    def __init__(self, originals: Path, folder: Path) -> None:
        self.folder, self.count, self.runs = folder, 0, 0
        self.references: dict[str, Reference] = {}
        shutil.copytree(originals, folder / "originals", symlinks=True)
        self.process = subprocess.Popen(
            [sys.executable, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._read() == "ready"

    def place(self, name: str) -> Place:
        """A new copy of the inputs for a command."""
        self.count += 1
        folder = self.folder / f"{self.count:05}"  # paths of one length, which count in the bytes of an adapter
        (folder / "temporary").mkdir(parents=True)
        shutil.copytree(self.folder / "originals", folder / "work", symlinks=True)
        return Place(folder, name)

    def run(
        self, place: Place, *options: str, at: int | None = None, number: int = 0, vanishing: Path | None = None,
        file_limit: int = 0, output: Path | None = None,
    ) -> tuple[int | str, str]:  # fmt: skip
        """Exit status, negative for a signal, and everything printed.

        Args:
            place: where the command runs.
            options: further options.
            at: number of the change of files at which the process is disturbed.
            number: signal that it then gets.
            vanishing: input that is then renamed, instead.
            file_limit: bytes that a file may have at most.
            output: another output.
        """
        output = output or place.output
        self.runs += 1
        request = {
            "folders": [str(place.work), str(output.parent)],
            "temporary": str(place.folder / "temporary"),
            "log": str(place.folder / f"log{self.runs}"),
            "arguments": COMMANDS[place.name].arguments(output, *options),
            "at": at,
            "signal": number,
            "vanishing": vanishing and str(vanishing),
            "file_limit": file_limit,
        }
        return self._answer(request, Path(request["log"]))

    def resume(self, stopped: str, log: Path) -> tuple[int | str, str]:
        """Let a stopped process continue."""
        return self._answer({"continue": int(stopped.split()[1])}, log)

    def repeat(self, place: Place) -> tuple[int | str, str]:
        """The same command again, which replaces an output that is already complete."""
        return self.run(place, *(["--force"] if place.output.exists() and not COMMANDS[place.name].continues else []))

    def reference(self, name: str) -> Reference:
        """What an undisturbed run does."""
        if name not in self.references:
            place = self.place(name)
            status, log = self.run(place)
            assert status in DONE, log
            assert place.left() == []
            events = int((place.folder / f"log{self.runs}.events").read_text())
            self.references[name] = Reference(content(place.output, place.work), events)
            shutil.rmtree(place.folder)
        return self.references[name]

    def close(self) -> None:
        self.process.communicate()

    def _answer(self, request: dict, log: Path) -> tuple[int | str, str]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self._read()
        return line if line.startswith("stopped") else int(line), log.read_text()

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def content(output: Path, work: Path) -> dict[str, bytes]:
    """The bytes of every file of an output, without what is measured and where the inputs are."""
    files = [output] if output.is_file() else sorted(path for path in output.rglob("*") if path.is_file())

    def cleaned(data: bytes) -> bytes:
        for folder in (work, output.parent):
            data = data.replace(str(folder).encode(), b"work")
        return NAMED_BY_TIME.sub(b"", MEASURED.sub(b"", data))

    return {
        path.relative_to(output).as_posix(): cleaned(path.read_bytes())
        for path in files
        if "tensorboard" not in path.parts and path.name != "lock"
    }
