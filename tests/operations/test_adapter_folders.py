"""What a folder with a PEFT adapter may look like: in several files, in a subfolder, pickled, or of another kind."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from eckart.errors import EckartError, FileFormatError, SourceError
from eckart.formats import load_adapter
from eckart.formats.sources import open_adapter
from eckart.operations import extract

from .test_peft_experts import BOTH, peft_folder

pytestmark = pytest.mark.filterwarnings("ignore")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(llama_pair, tmp_path):
    """A PEFT adapter."""
    extract(llama_pair / "base", llama_pair / "tuned", rank=2, output=tmp_path / "adapter")
    return tmp_path / "adapter"


def contents(adapter):
    """An adapter without its files, with its tensors read."""
    return replace(adapter, layers=dict(adapter), files=(), config={})


def split(folder):
    """The adapter's file as two, with an index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    files = {name: f"adapter_model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for file in sorted(set(files.values())):
        save_file({name: tensor for name, tensor in tensors.items() if files[name] == file}, folder / file)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": files}))


def test_an_adapter_in_several_files_is_the_same_adapter(folder):
    expected = contents(load_adapter(folder))
    split(folder)
    assert contents(open_adapter(folder)) == expected
    with pytest.raises(
        SourceError, match=re.escape(f"part 1 of 2 of a model; give the folder with all of them: {folder}")
    ):
        open_adapter(folder / "adapter_model-00001-of-00002.safetensors")
    (folder / "adapter_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"adapter_model-00002-of-00002.safetensors is missing"):
        open_adapter(folder)


def test_the_only_adapter_in_subfolders_is_read_and_several_are_listed(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run/default")
    assert contents(open_adapter(tmp_path / "run")) == contents(load_adapter(folder))
    shutil.copytree(folder, tmp_path / "run/other")
    with pytest.raises(SourceError, match=rf"contains several adapters.*\n.*{tmp_path}/run/default\n.*run/other"):
        open_adapter(tmp_path / "run")


def test_the_line_that_converts_a_pickled_adapter_keeps_every_tensor_and_name(folder):
    import safetensors.torch  # noqa: F401 - the line uses it

    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(tensors | {"base_model.model.score.weight": torch.ones(2, 4)}, folder / "adapter_model.bin")
    with pytest.raises(SourceError, match="pickled weights") as refusal:
        open_adapter(folder)
    exec("import torch, safetensors.torch\n" + str(refusal.value).partition("copy the tensors: ")[2])
    assert load_file(folder / WEIGHTS).keys() == tensors.keys() | {"base_model.model.score.weight"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type is IA3.*merge it with PEFT"),
        ({"peft_type": "ADALORA", "rank_pattern": None}, "peft_type is ADALORA.*merge it with PEFT"),
        ({"peft_type": "OFT", "r": 0}, "peft_type is OFT.*merge it with PEFT"),
        ({"peft_type": "VERA"}, "peft_type is VERA"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING.*changes a model's inputs"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"lora_B_layout": "columns"}, "lora_B_layout is columns; expected rank_major or grouped_by_expert"),
        ({"lora_B_layout": "rank_major", "a": {"lora_B_layout": "grouped_by_expert"}}, "is grouped_by_expert, rank"),
    ],
)  # fmt: skip
def test_other_kinds_of_adapters_are_refused_by_their_names(folder, fields, said):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(EckartError, match=said):
        open_adapter(folder)


@pytest.mark.parametrize("where", ["alone", "in a field"])
def test_columns_grouped_by_expert_are_read_as_their_marker_says_and_written_in_pefts_order(where, tmp_path):
    peft_folder("qwen3", tmp_path / "a", BOTH)
    expected, file = contents(load_adapter(tmp_path / "a")), tmp_path / "a" / WEIGHTS
    tensors = load_file(file)
    for name in (name for name in tensors if "experts" in name and "lora_B" in name):
        out, columns = tensors[name].shape
        tensors[name] = tensors[name].view(out, columns // 4, 4).transpose(1, 2).reshape(out, columns).contiguous()
    save_file(tensors, file)
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    marker = {"lora_B_layout": "grouped_by_expert"}
    config |= marker if where == "alone" else {"fused_experts": marker}
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config))
    found = load_adapter(tmp_path / "a")
    assert contents(found) == expected
    found.save(tmp_path / "b")
    assert "lora_B_layout" not in (tmp_path / "b/adapter_config.json").read_text()
    assert contents(load_adapter(tmp_path / "b")) == expected
