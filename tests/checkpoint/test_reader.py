"""Safetensors checkpoints: rows are slices, files may not change, memory is what is in flight."""

import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from eckart.checkpoint import open_checkpoint
from eckart.checkpoint.inputs import InputFiles, files_digest
from eckart.checkpoint.stamp import Stamp
from eckart.errors import FileFormatError, SourceError


@pytest.fixture
def sharded(tmp_path):
    """Two shards of one model and their index; returns the folder."""
    save_file({"a": torch.arange(12.0).reshape(4, 3), "b": torch.ones(5)}, tmp_path / "m-1.safetensors")
    save_file({"c": torch.arange(24).reshape(2, 3, 4).to(torch.bfloat16)}, tmp_path / "m-2.safetensors")
    write_index(tmp_path, {"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"})
    return tmp_path


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_real_checkpoint_reads_as_the_safetensors_library_reads_it(minilm) -> None:
    checkpoint = open_checkpoint(minilm)
    expected = load_file(minilm / "model.safetensors")
    assert set(checkpoint.tensors) == set(expected)
    assert checkpoint.config["model_type"] == "bert"
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name), tensor)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_rows_are_slices_of_the_whole(name, sharded) -> None:
    checkpoint = open_checkpoint(sharded)
    whole = checkpoint.read(name)
    for start in range(whole.shape[0] + 1):
        for stop in range(start, whole.shape[0] + 1):
            assert torch.equal(checkpoint.rows(name, start, stop), whole[start:stop])


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (3, 2), (0, 5)])
def test_rows_that_are_not_there_are_refused(start, stop, sharded) -> None:
    with pytest.raises(ValueError, match=r"rows 0\.\.4"):
        open_checkpoint(sharded).rows("a", start, stop)


def test_many_threads_read_the_same_values(minilm) -> None:
    checkpoint = open_checkpoint(minilm)
    names = [name for name, info in checkpoint.tensors.items() if len(info.shape) == 2] * 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(checkpoint.read, names))
    assert all(torch.equal(tensor, checkpoint.read(name)) for name, tensor in zip(names, found, strict=True))


def test_tensors_come_in_the_order_of_the_files(sharded) -> None:
    assert list(open_checkpoint(sharded).tensors) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "m-1.safetensors", "z": "m-1.safetensors"}, "lists 'z' in m-1.safetensors, which does not contain it"),
        ({"a": "m-2.safetensors", "c": "m-1.safetensors"}, "it is in m-1.safetensors"),
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_refused(weight_map, message, sharded) -> None:
    write_index(sharded, weight_map)
    with pytest.raises(FileFormatError, match=message):
        open_checkpoint(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded) -> None:
    save_file({"a": torch.ones(1), "c": torch.ones(1)}, sharded / "m-2.safetensors")
    with pytest.raises(FileFormatError, match="'a' is in 2 shards"):
        open_checkpoint(sharded)


def replaced(file: Path, content: bytes) -> None:
    """Replace a file by another one of the same size and modification time."""
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    other = file.with_name("other")
    other.write_bytes(content)
    os.utime(other, ns=times)
    other.replace(file)


def rewritten(file: Path, content: bytes) -> None:
    """Write other content into a file and set its modification time back."""
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(content)
    os.utime(file, ns=times)


CHANGES = {
    "shorter": lambda file: os.truncate(file, file.stat().st_size - 100),
    "touched": lambda file: os.utime(file, ns=(0, 0)),
    "gone": Path.unlink,
    "replaced": lambda file: replaced(file, save({"a": torch.zeros(64, 64)})),
    "rewritten": lambda file: rewritten(file, save({"a": torch.zeros(64, 64)})),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_after_it_was_opened_is_not_read(change, tmp_path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(64, 64)}, file)
    checkpoint = open_checkpoint(file)
    before, inputs = checkpoint.fingerprint(), InputFiles(checkpoint.files)
    inputs.check_unchanged()
    CHANGES[change](file)
    with pytest.raises(FileFormatError, match=r"changed while|cannot be read"):
        checkpoint.read("a")
    with pytest.raises(SourceError, match=r"inputs changed .*\n  - .*model.safetensors: written, replaced or removed"):
        inputs.check_unchanged()
    if change != "gone":
        assert checkpoint.fingerprint() != before


@pytest.mark.parametrize(
    "changed",
    [slice(0, 1), slice(20_000, 20_001), slice(100_000, 104_096), slice(-1, None)],
    ids=["head", "header", "middle", "tail"],
)
def test_the_fingerprint_covers_header_ends_and_samples_where_the_file_system_shows_no_change(
    changed, tmp_path, monkeypatch
) -> None:
    names = [f"a tensor with a name as long as those of {index:4} experts" for index in range(500)]
    file = tmp_path / "model.safetensors"
    save_file({name: torch.ones(64) for name in names}, file)
    monkeypatch.setattr("eckart.checkpoint.stamp.Stamp.of", lambda _: Stamp(file.stat().st_size, 1, 2, 3))
    before = files_digest([file])
    assert files_digest([file]) == before
    content = bytearray(file.read_bytes())
    content[changed] = bytes(byte ^ 1 for byte in content[changed])
    file.write_bytes(content)
    assert files_digest([file]) != before


def test_a_read_that_ends_early_is_refused(tmp_path, monkeypatch) -> None:
    save_file({"a": torch.ones(64, 64)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)

    class Ended(io.FileIO):
        def readinto(self, _):
            return 0

    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Ended(path))
    with pytest.raises(FileFormatError, match="changed while it was being read"):
        checkpoint.read("a")


def test_the_fingerprint_stays_while_the_files_do(sharded) -> None:
    assert open_checkpoint(sharded).fingerprint() == open_checkpoint(sharded).fingerprint()


@pytest.mark.slow
def test_reading_a_large_checkpoint_keeps_one_tensor_in_memory(tmp_path) -> None:
    tensors = {f"t{i}": torch.full((2000, 2000), float(i)) for i in range(16)}
    save_file(tensors, tmp_path / "model.safetensors")
    code = (
        "import resource, sys\n"
        "from eckart.checkpoint import open_checkpoint\n"
        "checkpoint = open_checkpoint(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert [float(checkpoint.read(f't{i}').max()) for i in range(16)] == list(range(16))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown_kib = subprocess.check_output([sys.executable, "-c", code, tmp_path], text=True)
    assert int(grown_kib) < 3 * 16_000
