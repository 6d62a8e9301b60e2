"""Finished matrices that survive a kill, and are not mistaken for those of another run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from eckart.engine import Execution, Journal, NoProgress, Record, Task, open_journal, run_resumable
from eckart.errors import OutputError

PATIENCE = 120  # seconds for a Python process to import torch on a busy machine

RECORD = Record(
    {"rank": 3, "error": 0.1 + 0.2, "names": ["ü", "b"], "nothing": None, "limits": {"lower": 1e-300, "upper": 1e300}},
    {
        "lora_A": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
        "lora_B": torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16),
        "S": torch.tensor([1e-320, 2.0, float("inf")], dtype=torch.float64),
        "strided": torch.arange(12.0).view(3, 4).T,
        "empty": torch.zeros(0, 4),
    },
)


def same(first, second):
    return (
        first.facts == second.facts
        and first.tensors.keys() == second.tensors.keys()
        and all(first.tensors[key].dtype == second.tensors[key].dtype for key in first.tensors)
        and all(torch.equal(first.tensors[key], second.tensors[key]) for key in first.tensors)
    )


@pytest.fixture
def output(tmp_path):
    return tmp_path / "adapter"


def interrupted(output, fingerprint="one", names=("layer.0",)):
    """A run that kept some matrices and was then cut off."""
    journal = Journal(output, fingerprint)
    for name in names:
        journal.save(name, RECORD)
    journal.release()
    return journal.folder


@pytest.mark.parametrize("name", ["layer.0", "a/b/../c", "x" * 5000, "имя", "layer 0\n"])
def test_a_resumed_run_finds_what_was_kept_bit_for_bit(output, name):
    interrupted(output, names=[name])
    journal = Journal(output, "one")
    assert journal.restarted is None
    assert same(journal.load(name), RECORD)
    assert journal.load("another") is None


def test_a_kept_matrix_can_be_kept_again(output):
    journal = Journal(output, "one")
    journal.save("layer.0", Record({"old": True}))
    journal.save("layer.0", RECORD)
    assert same(journal.load("layer.0"), RECORD)


def test_other_inputs_start_over_and_say_so(output):
    interrupted(output)
    journal = Journal(output, "another")
    assert journal.restarted == "inputs or options changed"
    assert journal.load("layer.0") is None
    journal.save("layer.1", RECORD)
    journal.release()
    again = Journal(output, "another")
    assert again.restarted is None
    assert same(again.load("layer.1"), RECORD)


def test_starting_over_can_be_asked_for(output):
    interrupted(output)
    journal = Journal(output, "one", resume=False)
    assert journal.restarted == "as requested"
    assert journal.load("layer.0") is None


@pytest.mark.parametrize("resume", [True, False])
def test_a_first_run_has_nothing_to_throw_away(output, resume):
    journal = Journal(output, "one", resume=resume)
    assert journal.restarted is None
    assert journal.folder == output.with_name("adapter.partial")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[:-5],
        lambda data: b"\xff" * len(data),
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data.replace(b'"facts"', b'"fucts"'),
        lambda data: data.replace(b'\\"rank\\"', b'\\"rank\\\\'),
        lambda data: data.replace(b'\\"rank\\": 3', b'\\"rank\\": 4'),
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    ],
    ids=[
        *("empty", "no header", "cut short", "noise", "huge header", "no facts", "facts are no JSON", "another fact"),
        "another value",
    ],
)
def test_a_damaged_file_is_ignored_and_replaced(output, damage):
    folder = interrupted(output, names=["layer.0", "layer.1"])
    journal = Journal(output, "one")
    file = journal._file("layer.0")
    assert file.parent == folder
    damaged = damage(file.read_bytes())
    assert damaged != file.read_bytes()
    file.write_bytes(damaged)
    assert journal.load("layer.0") is None
    assert same(journal.load("layer.1"), RECORD)
    journal.save("layer.0", RECORD)
    assert same(journal.load("layer.0"), RECORD)


@pytest.mark.parametrize(("fingerprint", "name"), [("one", "layer.1"), ("another", "layer.0")])
def test_a_file_of_another_matrix_or_run_is_ignored(fingerprint, name, output):
    journal = Journal(output.with_name("other"), fingerprint)
    journal.save(name, RECORD)
    interrupted(output)
    resumed = Journal(output, "one")
    assert same(resumed.load("layer.0"), RECORD)
    journal._file(name).replace(resumed._file("layer.0"))
    assert resumed.load("layer.0") is None


@pytest.mark.parametrize("head", ["", "{", "[]", '{"format": "eckart-journal/0", "fingerprint": "one"}'])
def test_a_journal_that_does_not_say_what_it_is_starts_over(output, head):
    folder = interrupted(output)
    (folder / "journal.json").write_text(head)
    journal = Journal(output, "one")
    assert journal.restarted is not None
    assert journal.load("layer.0") is None


@pytest.mark.parametrize(
    ("names", "head"),
    [(["0123.safetensors"], False), (["model/model.safetensors"], False), (["notes.txt"], True), (["model"], False)],
)
def test_a_folder_that_eckart_did_not_make_is_refused_and_stays_as_it_is(output, names, head):
    folder = interrupted(output) if head else output.with_name("adapter.partial")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    with pytest.raises(OutputError, match=f"files that eckart did not write \\({names[0].partition('/')[0]}"):
        Journal(output, "one", resume=False)
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


def test_a_link_is_never_followed_to_another_folder(output, tmp_path):
    interrupted(output).rename(tmp_path / "elsewhere")
    output.with_name("adapter.partial").symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").iterdir())
    with pytest.raises(OutputError, match="is a link, and eckart works"):
        Journal(output, "another")
    assert sorted((tmp_path / "elsewhere").iterdir()) == before


def test_going_on_leaves_the_head_as_it_lies(output):
    head = interrupted(output) / "journal.json"
    before = head.stat().st_mtime_ns
    Journal(output, "one")
    assert head.stat().st_mtime_ns == before


def test_a_second_run_on_the_same_output_is_refused_while_the_first_is_at_work(output):
    first = Journal(output, "one")
    first.save("layer.0", RECORD)
    for fingerprint in ("one", "another"):
        with pytest.raises(OutputError, match="another process is writing"):
            Journal(output, fingerprint)
    assert same(first.load("layer.0"), RECORD)
    Journal(output.with_name("elsewhere"), "one")
    first.release()
    assert same(Journal(output, "one").load("layer.0"), RECORD)


def test_a_refused_run_leaves_no_descriptor_open(output):
    journal = Journal(output, "one")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(OutputError):
            Journal(output, "one")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    journal.release()


def test_a_complete_output_needs_no_journal(output):
    journal = Journal(output, "one")
    journal.save("layer.0", RECORD)
    held = journal.load("layer.0")
    journal.close()
    assert not journal.folder.exists()
    assert same(held, RECORD)  # what was read stays readable
    assert Journal(output, "one").load("layer.0") is None


def interrupt(path):
    raise KeyboardInterrupt


def test_a_folder_that_is_half_deleted_is_not_found_under_its_name_and_deleted_by_the_next_run(output, monkeypatch):
    journal = Journal(output, "one")
    (journal.folder / "model").mkdir()
    (journal.folder / "model" / "weights").write_bytes(b"0")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            journal.close()
    assert not (journal.folder / "model").exists()
    assert (journal.folder / ".removed" / "weights").exists()
    journal._working.release()
    Journal(output, "one").close()
    assert not journal.folder.exists()


def test_releasing_twice_or_after_closing_does_no_harm(output):
    journal = Journal(output, "one")
    journal.close()
    journal.release()
    journal.release()


@pytest.mark.parametrize("place", ["a file where the folder should be", "no parent folder", "a file for a parent"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, place):
    output = {"a file where the folder should be": tmp_path / "out"}.get(place, tmp_path / "parent" / "out")
    if place == "a file where the folder should be":
        (tmp_path / "out.partial").write_text("in the way")
    elif place == "a file for a parent":
        (tmp_path / "parent").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot be written \(.*\); choose another output"):
        Journal(output, "one")


def test_a_matrix_that_cannot_be_kept_says_what_to_do_and_leaves_no_half(output):
    journal = Journal(output, "one")
    blocked = journal._file("layer.0")
    (blocked / "in the way").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"cannot store layer\.0 .*; free some space and run the same command again"):
        journal.save("layer.0", RECORD)
    assert not list(journal.folder.glob("*.tmp"))
    assert journal.load("layer.0") is None


class Notes(NoProgress):
    def __init__(self):
        self.notes, self.started = [], []

    def note(self, message):
        self.notes.append(message)

    def start(self, stage, total, unit):
        self.started.append(total)


def tasks_of(done, count=4):
    """Tasks that note which of them were really done."""

    def work(name):
        done.append(name)
        return Record({"name": name}, {"values": torch.full((3,), float(name[-1]))})

    return [Task(f"layer.{i}", 1, 1, lambda i=i: work(f"layer.{i}")) for i in range(count)]


def kept_run(output, tasks, progress, fingerprint="one", **options):
    execution = Execution(workers=1, progress=progress, **options)
    with open_journal(output, fingerprint, execution) as journal:
        return run_resumable(tasks, stage="test", execution=execution, journal=journal)


def test_a_failed_run_resumes_with_the_unfinished_tasks(output):
    done, notes = [], Notes()
    tasks = tasks_of(done)
    tasks[2] = Task("layer.2", 1, 0, lambda: 1 / 0)  # the smallest comes last
    with pytest.raises(ZeroDivisionError):
        kept_run(output, tasks, notes)
    assert sorted(done) == ["layer.0", "layer.1", "layer.3"]
    done.clear()
    records = kept_run(output, tasks_of(done), notes)
    assert done == ["layer.2"]
    assert {name: record.facts["name"] for name, record in records.items()} == {name: name for name in records}
    assert [float(records[f"layer.{i}"].tensors["values"][0]) for i in range(4)] == [0, 1, 2, 3]
    assert notes.notes == ["resuming: 3 of 4 matrices are already done"]
    assert notes.started == [4, 1]
    assert not output.with_name("adapter.partial").exists()


def test_a_run_with_other_options_reports_that_it_starts_over(output):
    interrupted(output)
    notes, done = Notes(), []
    kept_run(output, tasks_of(done), notes, "another")
    assert notes.notes == ["starting over: inputs or options changed"]
    assert len(done) == 4


def test_without_an_output_nothing_is_kept(tmp_path):
    done = []
    records = kept_run(None, tasks_of(done), Notes())
    assert sorted(records) == sorted(done)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys, time, torch
from pathlib import Path
from eckart.engine import Execution, Record, Task, open_journal, run_resumable

def work(i):
    if i == 2:
        print("working", flush=True)
        time.sleep(600)
    return Record({"i": i}, {"values": torch.arange(5, dtype=torch.float64) / (i + 3)})

execution = Execution(workers=1)
tasks = [Task(f"layer.{i}", 1, 10 - i, lambda i=i: work(i)) for i in range(4)]
with open_journal(Path(sys.argv[1]), "one", execution) as journal:
    run_resumable(tasks, stage="test", execution=execution, journal=journal)
"""


def test_a_killed_process_leaves_its_finished_matrices_to_the_next(output):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(output)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "working\n"
        folder = output.with_name("adapter.partial")
        deadline = time.monotonic() + PATIENCE
        while len(list(folder.glob("*.safetensors"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(OutputError, match="another process is writing"):
            Journal(output, "one")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    for name in ("0123.tmp", ".tmpOespR3"):  # as a kill in the middle of writing leaves it, the latter of safetensors
        (folder / name).write_bytes(b"half a matrix")
    journal = Journal(output, "one")  # the lock died with the process
    assert journal.restarted is None
    for i in range(2):
        kept = journal.load(f"layer.{i}")
        assert kept.facts == {"i": i}
        assert torch.equal(kept.tensors["values"], torch.arange(5, dtype=torch.float64) / (i + 3))
    assert journal.load("layer.2") is journal.load("layer.3") is None
    journal.close()
    assert not Path(folder).exists()
