"""Merging into 4-bit weights: what transformers and bitsandbytes load is the merged weight, quantized once."""

import json

import pytest
import torch

from eckart.adapter import Adapter
from eckart.checkpoint import open_checkpoint
from eckart.checkpoint.dtypes import DType
from eckart.checkpoint.encodings.nf4_scheme import Nf4Scheme
from eckart.errors import MismatchError
from eckart.linalg import nf4
from eckart.operations.merging.merge import merge

from .test_merge import layer, llama, tensors_in

pytestmark = pytest.mark.filterwarnings("ignore")

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def nf4_folder(tmp_path, *, double=False, block_size=64, dtype=torch.bfloat16):
    """A Llama whose projections lie in NF4 as bitsandbytes would write them, and its plain weights."""
    from safetensors.torch import save_file

    model = llama(hidden_size=64, intermediate_size=128).to(dtype)
    plain, stored = model.state_dict(), {}
    for name, weight in plain.items():
        if "proj" in name:
            scheme = Nf4Scheme(name, tuple(weight.shape), DType.of(dtype), block_size, double)
            blocks = nf4.quantize(weight, block_size=block_size, double=double)
            stored |= {key: value.clone() for key, value in scheme.tensors(blocks)}
        else:
            stored[name] = weight
    folder = tmp_path / "base"
    model.config.quantization_config = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double, "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    folder.mkdir()
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)
    save_file(
        {name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder, plain


ADAPTER = Adapter({Q: layer(64, 64, alpha=0.3), DOWN: layer(64, 128, alpha=0.3)})


@pytest.mark.parametrize("double", [False, True])
def test_the_merged_weight_is_quantized_in_the_same_scheme(double, tmp_path):
    base, _ = nf4_folder(tmp_path, double=double)
    result = merge(base, ADAPTER, tmp_path / "out")
    before, after = open_checkpoint(base), open_checkpoint(tmp_path / "out")
    stored, merged = tensors_in(base), tensors_in(tmp_path / "out")
    assert stored.keys() == merged.keys()
    error = size = update = 0.0
    for name in before.tensors:
        module = name.removesuffix(".weight")
        if module not in ADAPTER:
            parts = [key for key in stored if key == name or key.startswith(f"{name}.")]
            assert all(torch.equal(stored[key], merged[key]) for key in parts)
            continue
        delta = ADAPTER[module].delta()
        exact = before.read(name).float() + delta
        expected = nf4.quantize(exact, double=double)
        assert torch.equal(after.blocks(name).codes, expected.codes)
        assert torch.equal(after.blocks(name).scales(), expected.scales())
        error += float((expected.dequantize() - exact).square().sum())
        size += float(exact.square().sum())
        update += float(delta.square().sum())
    assert result.requantization_error == pytest.approx((error / size) ** 0.5, rel=1e-3)
    assert result.update_error == pytest.approx((error / update) ** 0.5, rel=1e-3)
    assert (tmp_path / "out/config.json").read_bytes() == (base / "config.json").read_bytes()


def test_slabs_that_end_inside_a_block_give_the_same_codes(tmp_path, monkeypatch):
    base, _ = nf4_folder(tmp_path, double=True, block_size=256)
    whole = merge(base, ADAPTER, tmp_path / "whole")
    monkeypatch.setattr("eckart.linalg.slabs.SLAB_BYTES", 3 * 64 * 4)
    slabs = merge(base, ADAPTER, tmp_path / "slabs")
    first, second = tensors_in(tmp_path / "whole"), tensors_in(tmp_path / "slabs")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert slabs.requantization_error == pytest.approx(whole.requantization_error, rel=1e-4)


@pytest.mark.parametrize("double", [False, True])
def test_transformers_and_bitsandbytes_load_what_was_merged(double, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM

    base, _ = nf4_folder(tmp_path, double=double)
    merge(base, ADAPTER, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu")
    from bitsandbytes.functional import dequantize_4bit

    weight = loaded.get_submodule(Q).weight
    found = dequantize_4bit(weight.data, weight.quant_state)
    assert torch.equal(found, open_checkpoint(tmp_path / "out").read(f"{Q}.weight"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_plain_weights_leave_nothing_of_the_quantization(dtype, tmp_path):
    from transformers import AutoModelForCausalLM

    base, _ = nf4_folder(tmp_path)
    result = merge(base, ADAPTER, tmp_path / "out", dtype=dtype)
    assert result.requantization_error is None
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in config
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    exact = open_checkpoint(base).read(f"{Q}.weight").float() + ADAPTER[Q].delta()
    assert torch.equal(loaded.get_parameter(f"{Q}.weight"), exact.to(dtype))


@pytest.mark.parametrize("adds", ["a vocabulary of another size", "model.layers.2"])
def test_an_adapter_that_adds_tensors_needs_plain_weights(adds, tmp_path):
    from safetensors.torch import save_file

    base, _ = nf4_folder(tmp_path)
    opened = open_checkpoint(base)
    rows, width = opened.tensors["model.embed_tokens.weight"].shape
    new = {name: torch.randn(rows + 3, width) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    repeated = {"layer_replication": [[0, 2], [1, 2]]}
    adapter = Adapter({Q: ADAPTER[Q]}, new) if "vocabulary" in adds else Adapter({Q: ADAPTER[Q]}, config=repeated)
    with pytest.raises(MismatchError, match=rf"stored in NF4, and the adapter adds .*{adds}.*`dtype=bfloat16`"):
        merge(base, adapter, tmp_path / "out")
    (tmp_path / "plain").mkdir()
    save_file({name: opened.read(name) for name in opened.tensors}, tmp_path / "plain/model.safetensors")
    config = json.loads((base / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "plain/config.json").write_text(json.dumps(config))
    for source, output in ((base, "out"), (tmp_path / "plain", "expected")):
        merge(source, adapter, tmp_path / output, dtype="bfloat16")
    found, expected = tensors_in(tmp_path / "out"), tensors_in(tmp_path / "expected")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    written, plain = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "expected"))
    assert written == plain
