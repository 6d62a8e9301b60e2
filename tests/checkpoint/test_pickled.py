"""Pickled weights are refused, and what the refusal tells to run keeps every tensor under its name."""

import re

import pytest
import torch
import transformers
from safetensors.torch import load_file

from eckart.checkpoint import open_checkpoint
from eckart.errors import SourceError

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns about its own internals


def refusal(source) -> str:
    with pytest.raises(SourceError, match="never read") as caught:
        open_checkpoint(source)
    return str(caught.value)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bert", "whisper"])
def test_a_model_is_converted_by_the_class_that_keeps_every_tensor(name, tiny_model, tmp_path) -> None:
    model = tiny_model(name)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    named, folder = re.search(r"transformers\.(\w+)\.from_pretrained\('(.+?)'", refusal(tmp_path)).groups()
    getattr(transformers, named).from_pretrained(folder, dtype="auto").save_pretrained(tmp_path / "new")
    model.save_pretrained(tmp_path / "expected")
    saved, expected = (load_file(tmp_path / each / "model.safetensors") for each in ("new", "expected"))
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("file", "written"),
    [
        ("adapter_model.bin", "adapter_model"),
        ("pytorch_model.bin", "model"),  # without a config
        ("model.pt", "model"),
        ("v1.ckpt", "v1"),
    ],
)
def test_the_tensors_of_any_other_file_are_copied_under_their_names(file, written, tmp_path) -> None:
    shared = torch.randn(4, 3)
    state = {"a.weight": shared, "b.weight": shared, "c": shared.T}
    torch.save(state, tmp_path / file)
    code = re.search(r"(safetensors\.torch\.save_file.*)", refusal(tmp_path / file))[1]
    import safetensors.torch

    eval(code, {"safetensors": safetensors, "torch": torch})  # exactly what the message says
    saved = load_file(tmp_path / f"{written}.safetensors")
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[key], state[key]) for key in state)
