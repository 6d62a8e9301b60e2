"""The folder in which one process works on one output; it is only ever a folder that eckart made."""

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from eckart.engine.shard import Shard
from eckart.errors import OutputError

LOCK = "lock"
SHARD_LOCK = re.compile(r"shard-\d{1,6}-of-(\d{1,6})\.lock")  # of a process that shares the work
SETTING_UP = 60  # seconds that one of these waits for another to begin
SHOWN = 5  # names in a message
_UNFINISHED = r"\.tmp\w{6}"  # under such a name safetensors writes a file before it gets its own
_REMOVED = ".removed"  # a subfolder while it is deleted: a half of it is never taken for the whole


class WorkingFolder:
    """A locked folder next to an output, deleted when the output is complete.

    Attributes:
        path: the folder.
    """

    def __init__(
        self, path: Path, output: Path, names: str, *, marker: str | None = None, shard: Shard | None = None
    ) -> None:
        """Create the folder, or take over the one of a run that ended.

        Args:
            path: the folder.
            output: what is written, for messages.
            names: regular expression of the names that eckart uses in it.
            marker: name of the file that is written first and deleted last; a folder without it contains nothing else.
            shard: the share of this process, if others work in the folder too once `share` is called.

        Raises:
            OutputError: the folder contains anything else, is a link, cannot be written, or another process uses it.
        """
        self.path, self._marker = path, marker
        self._names = re.compile(rf"{names}|{SHARD_LOCK.pattern}|{_UNFINISHED}|\{_REMOVED}")
        self._lock = FileLock(path / LOCK, timeout=0 if shard is None else SETTING_UP, thread_local=False)
        own = f"shard-{shard.number}-of-{shard.count}.lock" if shard else LOCK
        self._own = FileLock(path / own, timeout=0, thread_local=False) if shard else self._lock
        try:
            self._refuse_foreign()
            path.mkdir(exist_ok=True)
            self._own.acquire()
            self._lock.acquire()
            if shard is None:
                self._refuse_shards()
        except BaseException as error:
            self.release()
            with suppress(OSError):
                path.rmdir()  # unless there is anything in it
            if isinstance(error, Timeout):
                msg = f"{path}: another process is writing {output}; wait for it, or choose another output"
                raise OutputError(msg) from None
            if isinstance(error, OSError):
                msg = f"{path}: cannot be written ({error.strerror}); choose another output"
                raise OutputError(msg) from None
            raise

    def share(self) -> None:
        """Let processes with other shares work in the folder from now on."""
        self._lock.release()

    def share_counts(self) -> set[int]:
        """Of how many shares each was one that has begun here, by the locks that they left."""
        return {int(found[1]) for entry in self.path.iterdir() if (found := SHARD_LOCK.fullmatch(entry.name))}

    def _refuse_shards(self) -> None:
        for entry in self.path.iterdir():
            if SHARD_LOCK.fullmatch(entry.name):
                with FileLock(entry, timeout=0):
                    pass

    def _refuse_foreign(self) -> None:
        if self.path.is_symlink():
            msg = f"{self.path} is a link, and eckart works in a folder of this name; choose another output"
            raise OutputError(msg)
        if not self.path.is_dir():
            return
        is_marked = self._marker is None or (self.path / self._marker).is_file()
        own = {LOCK, self._marker, f"{self._marker}.tmp"}
        foreign = sorted(
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in own
            and not SHARD_LOCK.fullmatch(entry.name)
            and not (is_marked and self._names.fullmatch(entry.name))
        )
        if foreign:
            msg = (
                f"{self.path} contains files that eckart did not write ({first_names(foreign)}), and eckart works in a "
                "folder of this name; move them away, or choose another output"
            )
            raise OutputError(msg)

    def write_marker(self, text: str) -> None:
        """Write the marker, completely or not at all."""
        assert self._marker is not None
        write_whole(self.path / self._marker, text)

    def clear(self) -> None:
        """Delete all work: everything with one of the names."""
        removed = self.path / _REMOVED
        remove(removed)
        for entry in sorted(self.path.iterdir()):
            if self._names.fullmatch(entry.name):
                is_folder = entry.is_dir() and not entry.is_symlink()
                remove(entry.rename(removed) if is_folder else entry)

    def close(self) -> None:
        """Delete the folder, also if this is interrupted once."""
        if not self._lock.is_locked:
            return
        try:
            self._delete()
        except BaseException:
            self._delete()
            raise

    def _delete(self) -> None:
        """Delete the folder, the marker last: what is left by a kill is still known as eckart's."""
        with suppress(OSError):
            self.clear()
            for name in (f"{self._marker}.tmp", self._marker) if self._marker is not None else ():
                (self.path / name).unlink(missing_ok=True)
            (self.path / LOCK).unlink(missing_ok=True)
            self.path.rmdir()
        self._lock.release()
        if self.path.exists():  # on Windows, where an open file such as the lock cannot be deleted
            with suppress(OSError):
                (self.path / LOCK).unlink(missing_ok=True)
                self.path.rmdir()

    def release(self) -> None:
        """Let another process use the folder."""
        self._lock.release()
        self._own.release()


def calibration_folder(output: Path) -> Path:
    """The folder next to an output in which a command keeps what it learned from text."""
    return output.with_name(f"{output.name}.calibration.partial")


def write_whole(file: Path, text: str) -> None:
    """Write a small file, completely or not at all; a kill leaves at most a file of its name and `.tmp`."""
    partial = file.with_name(f"{file.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def first_names(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
