"""Checkpoints written in a stream load everywhere, or leave nothing."""

import json
import os
import secrets
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from eckart.checkpoint import TensorSpec, atomic_directory, copy_companions, open_checkpoint, write_tensors
from eckart.checkpoint.dtypes import COPIED, FLOAT32
from eckart.checkpoint.header import DTYPES
from eckart.checkpoint.writer import open_files, plan_shards, write_index
from eckart.errors import OutputError


def specs_of(state):
    return [TensorSpec.of(name, tensor) for name, tensor in state.items()]


def write_shards(folder, tensors, shard_bytes=10**9):
    """Tensors into files of a folder that appears once they are whole."""
    tensors = dict(tensors)
    with atomic_directory(folder) as partial:
        shards = plan_shards(specs_of(tensors), shard_bytes)
        with open_files(partial, shards) as files:
            for name, tensor in reversed(tensors.items()):
                files.write(name, tensor)
        write_index(partial, shards)


STATE = {
    "flag": torch.tensor([True, False, True]),
    "half": torch.randn(3, 5).to(torch.bfloat16),
    "wide": torch.randn(7, 4, dtype=torch.float64),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "sliced": torch.randn(6, 6)[:, ::2],
}


def test_one_file_holds_everything_aligned(tmp_path) -> None:
    write_shards(tmp_path / "out", STATE)
    file = tmp_path / "out" / "model.safetensors"
    found = load_file(file)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    length = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + length])
    for name, tensor in STATE.items():
        assert (8 + length + header[name]["data_offsets"][0]) % tensor.dtype.itemsize == 0


def test_shards_hold_at_most_their_size_and_the_index_finds_every_tensor(tmp_path) -> None:
    state = {f"t{i}": torch.full((10,), float(i)) for i in range(7)} | {"large": torch.ones(100)}
    write_shards(tmp_path / "out", state, shard_bytes=100)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-{i:05}-of-00005.safetensors" for i in range(1, 6)]
    for file in files:
        tensors = load_file(file)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 100 or len(tensors) == 1
    checkpoint = open_checkpoint(tmp_path / "out")
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in state.items())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 7 * 40 + 400


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_transformers_loads_what_was_written(shard_bytes, tiny_model, tiny_folder, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_folder("qwen2")
    checkpoint = open_checkpoint(folder)
    write_shards(tmp_path / "out", {name: checkpoint.read(name) for name in checkpoint.tensors}, shard_bytes)
    copy_companions(folder, tmp_path / "out")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected = tiny_model("qwen2").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_config_and_tokenizer_come_along_and_weights_do_not(minilm, tmp_path) -> None:
    copy_companions(minilm, tmp_path)
    copied = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "tokenizer.json", "vocab.txt"} <= copied
    assert not any(name.endswith(".safetensors") for name in copied)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", torch.ones(2))], "1 tensors are missing, the first is b"),
        ([("a", torch.ones(2)), ("a", torch.ones(2))], "no such tensor, or it was written before"),
        ([("z", torch.ones(2))], "no such tensor"),
        ([("a", torch.ones(3))], r"a of shape \(3,\)"),
        ([("a", torch.ones(2).half())], "torch.float16"),
    ],
)
def test_tensors_that_are_not_those_announced_leave_nothing(tensors, message, tmp_path) -> None:
    specs = [TensorSpec(name, (2,), FLOAT32) for name in "ab"]
    with pytest.raises(ValueError, match=message), atomic_directory(tmp_path / "out") as folder:
        write_tensors(folder / "model.safetensors", specs, tensors, {})
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_half_way_leaves_nothing(tmp_path, monkeypatch) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="No space left"):
        write_shards(tmp_path / "out", STATE)
    assert not list(tmp_path.iterdir())


def test_writing_that_comes_in_pieces_is_finished(tmp_path, monkeypatch) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, data[:7]))
    write_shards(tmp_path / "out", STATE)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


def test_threads_write_and_read_at_once_on_a_system_without_positioned_calls(tmp_path, monkeypatch) -> None:
    for name in ("pread", "preadv", "pwrite", "pwritev", "posix_fallocate"):
        monkeypatch.delattr(os, name, raising=False)
    values = {f"t{number}": torch.full((50, 1000), float(number)) for number in range(16)}
    specs = [TensorSpec.of(name, tensor) for name, tensor in values.items()]
    with open_files(tmp_path, {"model.safetensors": specs}) as files, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: [files.write(name, values[name][i], 1000 * i) for i in range(50)], values))
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(open_checkpoint(tmp_path).read, values))
    assert all(torch.equal(tensor, values[name]) for name, tensor in zip(values, read, strict=True))


def test_blocks_come_in_any_order_and_in_several_runs(tmp_path) -> None:
    values = {"a": torch.arange(12.0).view(4, 3), "b": torch.arange(5).to(torch.bfloat16)}
    shards = {f"{name}.safetensors": specs_of({name: tensor}) for name, tensor in values.items()}
    with open_files(tmp_path, shards) as files:
        assert files.is_new
        files.write("a", values["a"][2:], start=6)
    with open_files(tmp_path, shards) as files:
        assert not files.is_new
        files.write("a", values["a"][:2])
        files.write("b", values["b"])
    found = {name: load_file(tmp_path / f"{name}.safetensors")[name] for name in values}
    assert all(torch.equal(found[name], tensor) for name, tensor in values.items())
    (tmp_path / "b.safetensors").write_bytes(b"cut short")
    with open_files(tmp_path, shards) as files:
        assert files.is_new


@pytest.mark.parametrize(
    ("name", "values", "start"), [("z", torch.ones(1), 0), ("a", torch.ones(1).half(), 0), ("a", torch.ones(2), 11)]
)
def test_a_block_that_has_no_place_is_not_written(name, values, start, tmp_path) -> None:
    spec = TensorSpec("a", (4, 3), FLOAT32)
    with open_files(tmp_path, {"model.safetensors": [spec]}) as files, pytest.raises(ValueError, match="expected"):
        files.write(name, values, start)
    assert not load_file(tmp_path / "model.safetensors")["a"].any()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted({*DTYPES.values()} - {*COPIED}, key=str)), st.lists(st.integers(0, 5), max_size=3)
        ),
        max_size=6,
    ),
    st.integers(1, 200),
)
def test_whatever_is_written_is_read_back(tmp_path, parts, shard_bytes) -> None:
    state = {f"t{i}": torch.ones(shape).to(dtype.torch) for i, (dtype, shape) in enumerate(parts)}
    out = tmp_path / secrets.token_hex(4)
    write_shards(out, state, shard_bytes)
    checkpoint = open_checkpoint(out)
    assert checkpoint.tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(checkpoint.read(name).float(), tensor.float())
    loaded = {name: t for file in out.glob("*.safetensors") for name, t in load_file(file).items()}
    assert loaded.keys() == state.keys()
