"""Outputs appear whole or not at all, and never in place of what must stay."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from eckart.checkpoint import atomic_directory, atomic_file, check_output
from eckart.checkpoint.manifest import MANIFEST, write_manifest
from eckart.checkpoint.output import refusing_full_disk
from eckart.errors import OutputError


def write_and_raise(path, error):
    with atomic_directory(path, force=True) as folder:
        (folder / "config.json").write_text("new")
        raise error


def entries(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)


def write_result(out, name="config.json", text="old"):
    with atomic_directory(out) as folder:
        (folder / name).write_text(text)


def test_a_folder_appears_when_its_block_ends(tmp_path) -> None:
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "config.json").write_text("{}")
        assert not (tmp_path / "out").exists()
    assert entries(tmp_path) == ["out"]
    assert entries(tmp_path / "out") == ["config.json"]


def test_a_file_appears_when_its_block_ends(tmp_path) -> None:
    with atomic_file(tmp_path / "out.bin") as file:
        file.write_bytes(b"1")
        assert not (tmp_path / "out.bin").exists()
    assert (tmp_path / "out.bin").read_bytes() == b"1"
    assert entries(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError, OSError])
@pytest.mark.parametrize("exists", [True, False])
def test_after_a_failure_nothing_new_is_there_and_nothing_old_is_lost(failure, exists, tmp_path) -> None:
    out = tmp_path / "out"
    if exists:
        write_result(out)
    with pytest.raises(failure):
        write_and_raise(out, failure())
    assert entries(tmp_path) == (["out"] if exists else [])
    assert not exists or (out / "config.json").read_text() == "old"


def test_force_replaces_a_result_whole(tmp_path) -> None:
    out = tmp_path / "out"
    for text in ("one", "two"):
        with atomic_directory(out, force=True) as folder:
            (folder / "config.json").write_text(text)
            (folder / text).touch()
    assert entries(out) == ["config.json", "two"]
    assert entries(tmp_path) == ["out"]


def test_when_the_last_rename_fails_the_old_result_comes_back(tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    with atomic_directory(out) as folder:
        (folder / "config.json").write_text("old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(PermissionError("no")))
    with pytest.raises(PermissionError), atomic_directory(out, force=True):
        pass
    assert entries(tmp_path) == ["out"]
    assert (out / "config.json").read_text() == "old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fills_is_a_refusal_and_leaves_nothing(number, tmp_path) -> None:
    with pytest.raises(OutputError, match=r"out: writing failed \(.*nothing was left behind"):
        write_and_raise(tmp_path / "out", OSError(number, os.strerror(number)))
    assert entries(tmp_path) == []


def test_a_disk_that_fills_under_torch_or_safetensors_is_a_refusal_too(tmp_path) -> None:
    with (
        pytest.raises(OutputError, match=r"took less.*; it is kept"),
        refusing_full_disk(tmp_path, "it is kept"),
    ):
        torch.save(torch.zeros(10**5), "/dev/full")
    other = RuntimeError("other than a disk")
    told = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(OutputError, match="No space left on device"), refusing_full_disk(tmp_path, "it is kept"):
        raise told
    with pytest.raises(RuntimeError, match=r"^other"), refusing_full_disk(tmp_path, "it is kept"):
        raise other


def test_an_output_that_exists_needs_force(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="it already exists; use `force`"):
        check_output(tmp_path / "out")
    check_output(tmp_path / "out", force=True)


def folder_with(name):
    def make(out):
        write_result(out)
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")

    return make


def folder_of_the_user(out):
    out.mkdir()
    (out / "model.safetensors").write_text("mine")


def enter(out):
    write_result(out)
    os.chdir(out)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (folder_of_the_user, "folder", r"eckart did not write this folder, which contains model\.safetensors; remove"),
        (folder_with("thesis.txt"), "folder", r"files that eckart did not write \(thesis\.txt\); move them away"),
        (folder_with("a/b.safetensors"), "folder", r"did not write \(a/b\.safetensors\)"),
        (lambda out: out.write_text("mine"), "file", "eckart did not write this file"),
        (lambda out: out.write_text("mine"), "folder", "it is a file, and a folder is to be written"),
        (write_result, "file", "it is a folder, and a file is to be written"),
        (enter, "folder", "working folder"),
    ],
)
def test_force_replaces_only_what_eckart_wrote(make, kind, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "out")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(OutputError, match=message):
        check_output(tmp_path / "out", kind=kind, force=True)
    write = atomic_file if kind == "file" else atomic_directory
    with pytest.raises(OutputError, match=message), write(tmp_path / "out", force=True):
        pass
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("content", [b'{"format": "eckart-train/1"}', b"x" * 10**5 + b"eckart-output/1"])
def test_force_replaces_a_file_with_the_tag_of_one_of_eckarts_formats(content, tmp_path) -> None:
    (tmp_path / "out.bin").write_bytes(content)
    with atomic_file(tmp_path / "out.bin", force=True) as file:
        file.write_bytes(b"new")
    assert (tmp_path / "out.bin").read_bytes() == b"new"


@pytest.mark.parametrize(
    "manifest", ["", "[]", '{"files": ["mine"]}', '{"format": "eckart-output/2", "files": ["mine"]}']
)
def test_a_damaged_manifest_lists_nothing(manifest, tmp_path) -> None:
    write_result(tmp_path / "out", "mine")
    (tmp_path / "out" / MANIFEST).write_text(manifest)
    with pytest.raises(OutputError, match="eckart did not write this folder, which contains mine"):
        check_output(tmp_path / "out", force=True)


def test_a_manifest_is_the_same_however_the_files_are_listed(tmp_path) -> None:
    write_result(tmp_path / "out", "b")
    first = (tmp_path / "out" / MANIFEST).read_bytes()
    write_manifest(tmp_path / "out", ["b", MANIFEST])
    assert (tmp_path / "out" / MANIFEST).read_bytes() == first
    assert b'"eckart-output/1"' in first


def killed(out):
    """What a process leaves that is killed while it writes."""
    hidden = out.with_name(f".{out.name}.partial")
    hidden.mkdir()
    (hidden / "lock").touch()
    (hidden / "new").mkdir()
    (hidden / "new" / "half").touch()
    (hidden / ".new.partial").mkdir()  # of an output in the output
    return hidden


def test_what_a_killed_process_left_is_removed_by_the_next_one_of_the_same_output(tmp_path) -> None:
    killed(tmp_path / "out")
    write_result(tmp_path / "other")
    assert entries(tmp_path) == [".out.partial", "other"]
    write_result(tmp_path / "out")
    assert entries(tmp_path) == ["other", "out"]
    assert entries(tmp_path / "out") == ["config.json"]


def test_a_result_moved_away_by_a_killed_process_comes_back(tmp_path) -> None:
    out = tmp_path / "out"
    write_result(out)
    out.rename(killed(out) / "old")
    with pytest.raises(OutputError, match="already exists"):
        write_result(out)
    assert (out / "config.json").read_text() == "old"
    assert entries(tmp_path) == ["out"]


def test_two_processes_never_write_the_same_output_at_once(tmp_path) -> None:
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "one").touch()
        with pytest.raises(OutputError, match="another process is writing"):
            write_result(tmp_path / "out")
    assert entries(tmp_path / "out") == ["one"]


@pytest.mark.parametrize("make", [Path.mkdir, lambda hidden: hidden.symlink_to(hidden.parent)], ids=["folder", "link"])
def test_a_folder_of_the_name_that_eckart_works_in_is_not_touched(make, tmp_path) -> None:
    make(tmp_path / ".out.partial")
    (tmp_path / ".out.partial" / "mine").write_text("mine")
    with pytest.raises(OutputError, match=r"eckart works in a folder of this\s+name"):
        write_result(tmp_path / "out")
    assert (tmp_path / ".out.partial" / "mine").read_text() == "mine"


def test_force_does_not_replace_a_link(tmp_path) -> None:
    (tmp_path / "out").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="it is a link"):
        check_output(tmp_path / "out", force=True)


def hard_link(out, model):
    write_result(out)
    (out / "other-name").hardlink_to(model / "model.safetensors")
    write_manifest(out)


def link_into(out, model):
    write_result(out)
    (model / "model.safetensors").rename(out / "stored")
    (model / "model.safetensors").symlink_to(out / "stored")
    write_manifest(out)


def partial_link(out, model):
    folder = out.with_name("out.partial") / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").hardlink_to(model / "model.safetensors")


OVERLAPS = {  # how the output comes to touch an input, its name, and the reason
    "same": (None, "model", "it is the input"),
    "dotted": (None, "model/../model", "it is the input"),
    "above": (None, "", "it contains the input"),
    "below": (None, "model/out", "it is inside the input"),
    "link": (lambda out, model: out.symlink_to(model), "out", "it is the input"),
    "hard link": (hard_link, "out", "it shares a file with the input"),
    "link into": (link_into, "out", "it shares a file with the input"),
    "partial": (lambda out, model: model.rename(out.with_name("out.partial")), "out", "it is the input"),
    "partial link": (partial_link, "out", "it shares a file with the input"),
}


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_an_input_is_never_replaced_or_shared(overlap, force, tmp_path) -> None:
    make, name, reason = OVERLAPS[overlap]
    model = tmp_path / "model"
    write_result(model, "model.safetensors")
    if make:
        make(tmp_path / "out", model)
    source = model if model.exists() else tmp_path / "out.partial"
    with pytest.raises(OutputError, match=f"{reason}.*inputs are never changed"):
        check_output(tmp_path / name, force=force, inputs=[None, tmp_path / "missing", source])


def test_an_output_next_to_an_input_file_is_separate_from_it(tmp_path) -> None:
    (tmp_path / "model.gguf").touch()
    check_output(tmp_path / "model", inputs=[tmp_path / "model.gguf"])


def test_a_folder_that_does_not_exist_is_named(tmp_path) -> None:
    with pytest.raises(OutputError, match=r"missing does not exist; create it"):
        check_output(tmp_path / "missing" / "out")


def test_a_folder_that_is_not_writable_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="is not writable"):
        check_output(tmp_path / "out")


def test_a_disk_too_small_is_refused_with_what_is_needed_and_free(tmp_path, monkeypatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(3 * 10**9))
    with pytest.raises(OutputError, match=r"needs 14.00 GB and .* has 3.00 GB free"):
        check_output(tmp_path / "out", 14 * 10**9)
    check_output(tmp_path / "out", 2 * 10**9)
