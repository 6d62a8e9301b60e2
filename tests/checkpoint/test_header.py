"""Safetensors headers: what the safetensors library accepts, and every fault that it refuses."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from eckart.checkpoint import open_checkpoint
from eckart.checkpoint.dtypes import COPIED
from eckart.checkpoint.header import DTYPES, read_header
from eckart.checkpoint.layouts import layout
from eckart.errors import FileFormatError


def raw(header, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2, 2), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


CORRUPT = {
    "empty file": (b"", "truncated"),
    "seven bytes": (b"\0" * 7, "truncated"),
    "no header": (b"\0" * 8, "header of 0 bytes"),
    "header longer than the file": (raw({"a": entry()}, bytes(16), length=10**6), "truncated"),
    "header longer than the limit": (raw({}, length=2**62), "header of"),
    "header is not JSON": (raw(b'{"a": '), "not valid JSON"),
    "header is a list": (raw(b"[1, 2]"), "does not begin with"),
    "header is not UTF-8": (raw(b'{"\xff": 1}'), "not valid JSON"),
    "header is nested without end": (raw(b'{"a":' + b"[" * 50_000), "not valid JSON"),
    "a number of a million digits": (
        raw(b'{"a":{"dtype":"F32","shape":[' + b"9" * 10**6 + b'],"data_offsets":[0,16]}}', bytes(16)),
        "not valid JSON",
    ),
    "unknown dtype": (raw({"a": entry("F31")}, bytes(16)), "dtype 'F31' is unknown"),
    "dtype is a list": (raw({"a": entry(["F32"])}, bytes(16)), "is unknown"),
    "field missing": (raw({"a": {"dtype": "F32", "shape": [4]}}, bytes(16)), "expected exactly"),
    "negative size": (raw({"a": entry(shape=(-2, -2))}, bytes(16)), "not a list of sizes"),
    "size is a fraction": (raw({"a": entry(shape=(2.0, 2))}, bytes(16)), "not a list of sizes"),
    "size is true": (raw({"a": entry(shape=(True, 4))}, bytes(16)), "not a list of sizes"),
    "values that do not fill a byte": (raw({"a": entry("F4", (2, 3), (0, 3))}, bytes(3)), "do not fill whole bytes"),
    "sizes overflow": (raw({"a": entry(shape=(2**62, 4), offsets=(0, 0))}), "needs"),
    "size too small for the shape": (raw({"a": entry(offsets=(0, 12))}, bytes(12)), "hold 12 bytes"),
    "offsets reversed": (raw({"a": entry(offsets=(16, 0))}, bytes(16)), "hold -16 bytes"),
    "offsets negative": (raw({"a": entry(offsets=(-16, 0))}, bytes(16)), "not a begin and an end"),
    "data truncated": (raw({"a": entry()}, bytes(15)), "truncated"),
    "data left over": (raw({"a": entry()}, bytes(17)), "1 bytes after the last tensor"),
    "tensors overlap": (raw({"a": entry(), "b": entry(offsets=(8, 24))}, bytes(24)), "overlaps"),
    "a hole between tensors": (raw({"a": entry(), "b": entry(offsets=(20, 36))}, bytes(36)), "4 bytes before"),
    "metadata is a number": (raw({"__metadata__": 0, "a": entry()}, bytes(16)), "__metadata__"),
    "metadata is not text": (raw({"__metadata__": {"n": 1}, "a": entry()}, bytes(16)), "__metadata__"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_a_corrupt_file_is_refused_as_the_safetensors_library_does(case, tmp_path) -> None:
    data, message = CORRUPT[case]
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises((SafetensorError, OSError, ValueError)):
        load_file(file)
    with pytest.raises(FileFormatError, match=message) as caught:
        open_checkpoint(file)
    assert "model.safetensors" in str(caught.value)


def test_a_name_that_comes_twice_is_refused(tmp_path) -> None:
    twice = json.dumps(entry())
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw(f'{{"a": {twice}, "a": {twice}}}'.encode(), bytes(16)))
    with pytest.raises(FileFormatError, match="'a' twice"):
        open_checkpoint(file)


def test_all_faults_of_all_shards_come_together(tmp_path) -> None:
    shards = {"one.safetensors": "sizes overflow", "two.safetensors": "data truncated"}
    for name, case in shards.items():
        (tmp_path / name).write_bytes(CORRUPT[case][0])
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileFormatError) as caught:
        open_checkpoint(tmp_path)
    assert all(name in str(caught.value) for name in shards)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "mlx"}])
def test_metadata_may_be_missing_empty_or_null_as_mlx_writes_it(metadata, tmp_path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw({"__metadata__": metadata, "a": entry()}, bytes(16)))
    assert list(load_file(file)) == list(open_checkpoint(file).tensors) == ["a"]


@pytest.mark.parametrize("name", ["F6_E2M3", "F6_E3M2"])
def test_six_bit_values_that_torch_lacks_are_read_as_bytes(name, tmp_path) -> None:
    file, data = tmp_path / "model.safetensors", bytes(range(24))
    file.write_bytes(raw({"a": entry(name, (2, 16), (0, 24))}, data))
    with safe_open(file, "pt") as peer:
        assert list(peer.keys()) == ["a"]
    checkpoint = open_checkpoint(file)
    assert checkpoint.read("a").tolist() == [list(data[:12]), list(data[12:])]
    assert [item.name for item in layout(checkpoint).skipped] == ["a"]


@pytest.mark.parametrize("name", [name for name in DTYPES if not name.startswith("F6")])
def test_every_dtype_is_read_as_the_safetensors_library_reads_it(name, tmp_path) -> None:
    tensor = torch.arange(24, dtype=torch.uint8).reshape(2, 12) % 2
    tensor = tensor.bool() if name == "BOOL" else tensor.repeat(1, 2).view(DTYPES[name].torch)
    assert tensor.dtype != torch.uint8 or name == "U8"
    file = tmp_path / "model.safetensors"
    save_file({"a": tensor}, file)
    checkpoint = open_checkpoint(file)
    expected = load_file(file)["a"]
    found = checkpoint.read("a")
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


tensors = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
    st.tuples(
        st.sampled_from(sorted({*DTYPES.values()} - {*COPIED}, key=str)),
        st.lists(st.integers(0, 4), max_size=3),
    ),
    max_size=5,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tensors)
def test_whatever_the_safetensors_library_saves_is_read_back(tmp_path, specs) -> None:
    state = {name: torch.ones(shape).to(dtype.torch) for name, (dtype, shape) in specs.items()}
    file = tmp_path / "model.safetensors"
    save_file(state, file)
    checkpoint = open_checkpoint(file)
    assert set(checkpoint.tensors) == set(state)
    for name, tensor in state.items():
        assert torch.equal(checkpoint.read(name).float(), tensor.float())


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_file_with_a_byte_changed_opens_or_is_refused_but_never_breaks(tmp_path, data) -> None:
    whole = raw({"a": entry(), "b": entry("I8", (3,), (16, 19))}, bytes(19))
    at = data.draw(st.integers(0, len(whole) - 1))
    file = tmp_path / "model.safetensors"
    file.write_bytes(whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :])
    header, faults = read_header(Path(file))
    assert (header is None) == bool(faults)
    if header:
        load_file(file)
