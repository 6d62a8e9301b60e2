"""A model in shards, its fine-tune and an adapter, and a server that has them."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eckart.adapter import Adapter, AdapterLayer
from eckart.checkpoint.remote import table, transport

from .server import Files, serving

PROJ = "model.layers.{}.self_attn.{}_proj"


@pytest.fixture(autouse=True)
def _separate(monkeypatch):
    """Nothing is mounted from one test to the next, and no test waits."""
    mounts = table.Mounts()
    for name, value in vars(mounts).items():
        monkeypatch.setattr(table.MOUNTS, name, value)
    yield
    if table.MOUNTS.parent:
        shutil.rmtree(table.MOUNTS.parent)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch) -> None:
    monkeypatch.setattr(transport, "FIRST_DELAY_S", 0.001)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def originals(tmp_path_factory) -> Path:
    """base/ in two shards with an index, tuned/ in one file, adapter/ and kohya-like files."""
    folder = tmp_path_factory.mktemp("originals")
    torch.manual_seed(0)
    names = [PROJ.format(layer, each) for layer in range(2) for each in "qkvo"]
    base = {f"{name}.weight": torch.randn(512, 512, dtype=torch.float32) for name in names}
    base |= {f"model.layers.{layer}.input_layernorm.weight": torch.ones(512) for layer in range(2)}
    update = {name: torch.randn(512, 4) @ torch.randn(4, 512) / 50 for name in names}
    tuned = {name: weight + update.get(name.removesuffix(".weight"), 0) for name, weight in base.items()}
    config = '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": false}'
    for model in ("base", "tuned"):
        (folder / model).mkdir()
        (folder / model / "config.json").write_text(config)
        (folder / model / "tokenizer.json").write_text('{"version": "1.0"}')
    shards = [{n: t for n, t in base.items() if f"layers.{layer}." in n} for layer in range(2)]
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / "base" / file, metadata={"format": "pt"})
    entries = ", ".join(f'"{n}": "{f}"' for f, shard in zip(files, shards, strict=True) for n in shard)
    (folder / "base" / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{entries}}}}}')
    save_file(tuned, folder / "tuned" / "model.safetensors", metadata={"format": "pt"})
    layers = {name: AdapterLayer(torch.randn(4, 512), torch.randn(512, 4), 4.0) for name in names[:4]}
    Adapter(layers, base_model="org/base").save(folder / "adapter")
    return folder


@pytest.fixture
def server(originals):
    with serving(originals) as files:
        yield files


def needed_bytes(*files: Path) -> int:
    """Bytes of the projections in files."""
    from eckart.checkpoint import open_checkpoint

    return sum(i.nbytes for file in files for i in open_checkpoint(file).tensors.values() if "proj" in i.name)


__all__ = ["Files", "needed_bytes"]
