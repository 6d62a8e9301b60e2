"""Outputs appear whole or not at all, and never in place of what must stay."""

import errno
import os
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors import SafetensorError

from eckart.checkpoint import atomic_directory, atomic_file, check_output
from eckart.checkpoint.output import refusing_full_disk
from eckart.errors import OutputError


def write_and_raise(path, error):
    with atomic_directory(path, force=True) as folder:
        (folder / "config.json").write_text("new")
        raise error


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


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
        out.mkdir()
        (out / "config.json").write_text("old")
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda out: (out / "thesis.txt").touch(), "a folder without results"),
        (os.chdir, "working folder"),
    ],
)
def test_force_does_not_replace_what_is_no_result(make, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    make(out)
    with pytest.raises(OutputError, match=message):
        check_output(out, force=True)


def test_force_does_not_replace_a_link(tmp_path) -> None:
    (tmp_path / "out").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="it is a link"):
        check_output(tmp_path / "out", force=True)


@pytest.mark.parametrize("used", ["out", "out/model.safetensors"])
def test_an_input_is_never_replaced(used, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").touch()
    with pytest.raises(OutputError, match="inputs are never changed"):
        check_output(tmp_path / "out", force=True, inputs=[tmp_path / used, None])


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
