"""Every kind of source works remotely as from disk: GGUF, LoRA files, pipelines; and whole models for transformers."""

import pickle
import shutil
import subprocess
import sys

import fsspec
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from eckart.checkpoint import open_checkpoint
from eckart.cli.main import app
from eckart.errors import SourceError
from eckart.evaluation import load_model, load_tokenizer
from eckart.formats import load_adapter

from .server import serving


def same(remote, local) -> bool:
    return list(remote.tensors) == list(local.tensors) != [] and all(
        remote.read(name).equal(local.read(name)) for name in local.tensors
    )


@pytest.mark.slow
def test_a_gguf_model_is_read_by_ranges(smollm2) -> None:
    local = open_checkpoint(smollm2)
    file = local.files[0]
    with serving(file.parent) as files:
        remote = open_checkpoint(f"{files.url}/{file.name}")
        assert list(remote.tensors) == list(local.tensors)
        assert remote.config == local.config
        names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.3.mlp.up_proj.weight", "model.norm.weight"]
        assert all(remote.read(name).equal(local.read(name)) for name in names)
        assert sum(files.sent.values()) < 0.2 * file.stat().st_size


def test_a_kohya_file_is_an_adapter(tmp_path) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    tensors = {f"{name}.lora_down.weight": torch.randn(2, 8), f"{name}.lora_up.weight": torch.randn(6, 2)}
    save_file(tensors | {f"{name}.alpha": torch.tensor(1.0)}, tmp_path / "style.safetensors")
    with serving(tmp_path) as files:
        remote, local = load_adapter(f"{files.url}/style.safetensors"), load_adapter(tmp_path / "style.safetensors")
        assert remote.format == local.format == "kohya"
        assert [remote[each].delta().equal(local[each].delta()) for each in local] == [True]


def test_a_pipeline_is_read_from_a_file_system_that_lists_folders(tmp_path) -> None:
    for part in ("unet", "text_encoder"):
        (tmp_path / "pipeline" / part).mkdir(parents=True)
        (tmp_path / "pipeline" / part / "config.json").write_text("{}")
        save_file({f"{part}.to_q.weight": torch.randn(8, 8)}, tmp_path / "pipeline" / part / "model.safetensors")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "pipeline"), "/pipeline", recursive=True)
    assert same(open_checkpoint("memory://pipeline"), open_checkpoint(tmp_path / "pipeline"))
    memory.rm("/pipeline", recursive=True)


def test_transformers_gets_a_model_that_was_downloaded(tiny_folder, word_tokenizer, tmp_path) -> None:
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    word_tokenizer(["the", "rank"]).save_pretrained(folder)
    with serving(tmp_path) as files:
        tokenizer = load_tokenizer(f"{files.url}/model")
        assert "/model/model.safetensors" not in files.sent or files.sent["/model/model.safetensors"] <= 1
        remote = load_model(f"{files.url}/model").state_dict()
    local = load_model(folder).state_dict()
    assert len(tokenizer) == len(load_tokenizer(folder))
    assert all(remote[name].equal(local[name]) for name in local)


def test_shares_of_a_remote_pair_give_what_one_process_gives(server, originals, tmp_path) -> None:
    run = ["extract", f"{server.url}/base", f"{server.url}/tuned", "--rank", "2"]
    for share in (["--shard", "1/2"], ["--shard", "2/2"], []):
        ended = CliRunner().invoke(app, [*run, "-o", str(tmp_path / "shared"), *share])
        assert ended.exit_code == 0, ended.output
    CliRunner().invoke(app, [*run, "-o", str(tmp_path / "alone")])
    one, other = (tmp_path / each / "adapter_model.safetensors" for each in ("shared", "alone"))
    assert one.read_bytes() == other.read_bytes()


def test_plan_takes_the_config_of_a_url(tiny_folder) -> None:
    folder = tiny_folder("llama")
    with serving(folder.parent) as files:
        ended = CliRunner().invoke(
            app, ["plan", f"{files.url}/{folder.name}", "--method", "lora", "--max-length", "16"]
        )
        assert ended.exit_code == 0, ended.output
        assert files.sent.get(f"/{folder.name}/model.safetensors", 0) <= 1


PICKLED = """
import pickle, sys
from eckart.checkpoint import open_checkpoint
remote, local = pickle.loads(open(sys.argv[1], "rb").read()), open_checkpoint(sys.argv[2])
assert remote.fingerprint() and local.tensors
assert all(remote.read(name).equal(local.read(name)) for name in local.tensors)
"""


def test_another_process_reads_a_remote_checkpoint_that_it_is_sent(server, originals, tmp_path) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(pickle.dumps(open_checkpoint(f"{server.url}/base")))
    subprocess.run([sys.executable, "-c", PICKLED, sent, originals / "base"], check=True)


def test_a_signature_is_not_sent_to_another_process(server) -> None:
    remote = open_checkpoint(f"{server.url}/tuned/model.safetensors?signature=s3cr3t")
    with pytest.raises(SourceError, match="is not sent to other machines") as refused:
        pickle.dumps(remote)
    assert "s3cr3t" not in str(refused.value)
