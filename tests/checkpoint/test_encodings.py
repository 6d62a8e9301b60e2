"""Weights stored as codes and scales: read as the numbers they stand for, or never taken for weights."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from eckart.adapter import Adapter, AdapterLayer
from eckart.checkpoint import layout, open_checkpoint
from eckart.errors import FileFormatError, OptionError
from eckart.operations import analyze, compare, extract, merge

W = torch.randn(256, 384, generator=torch.Generator().manual_seed(0)) * 0.02
W[:128, :128] *= 30  # a lost scale of a block changes more than the norm
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
UP, Q = "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"


def codes_of(weight, blocks, dtype=E4M3, largest=448.0):
    """Codes, scales and the values they stand for in float64; `blocks` are the sizes along each dimension."""
    scale = weight.abs()
    for dimension, block in enumerate(blocks):
        parts = scale.split(block, dimension)
        scale = torch.cat([part.amax(dimension, keepdim=True) for part in parts], dimension)
    scale = scale / largest
    full = expanded(scale, blocks, weight.shape)
    scaled = weight / full
    codes = scaled.round().to(dtype) if dtype == torch.int8 else scaled.to(dtype)
    return codes, scale, codes.double() * full.double()


def expanded(scale, blocks, shape):
    for dimension, block in enumerate(blocks):
        scale = scale.repeat_interleave(block, dimension).narrow(dimension, 0, shape[dimension])
    return scale


def mxfp4():
    """Blocks and scales as gpt-oss stores them; the truth is by transformers."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 256, (2, 6, 3, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(110, 130, (2, 6, 3), dtype=torch.uint8, generator=generator)
    truth = convert_moe_packed_tensors(blocks, scales)
    return {f"{EXPERTS}_blocks": blocks, f"{EXPERTS}_scales": scales}, truth.double(), EXPERTS


def scaled(name, scale_name, blocks, weight=W, **options):
    codes, scale, truth = codes_of(weight, blocks, **options)
    return {name: codes, scale_name: scale}, truth, name


def llm_int8():
    """Codes and row maxima as LLM.int8 of bitsandbytes stores them; the truth is by bitsandbytes."""
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    codes, maxima, _ = int8_vectorwise_quant(W.half())
    truth = int8_vectorwise_dequant(codes, maxima).double()
    tensors = {f"{UP}.weight": codes, f"{UP}.SCB": maxima, f"{UP}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, truth, f"{UP}.weight"


def without_dimensions(case):
    """The scale of a whole tensor as a scalar."""
    tensors, truth, name = case
    return {key: value.reshape(()) if value.numel() == 1 else value for key, value in tensors.items()}, truth, name


def with_powers_of_two(case):
    """Block scales in E8M0."""
    tensors, _, name = case
    codes, scale = tensors.values()
    scale = scale.log2().ceil().exp2()
    truth = codes.double() * expanded(scale, (128, 128), codes.shape).double()
    return {name: codes, f"{name}_scale_inv": scale.to(torch.float8_e8m0fnu)}, truth, name


STACK = torch.stack([W, 2 * W])
CASES = {
    "blocks, DeepSeek": lambda: scaled(f"{UP}.weight", f"{UP}.weight_scale_inv", (128, 128)),
    "blocks with a remainder": lambda: scaled(f"{UP}.weight", f"{UP}.weight_scale_inv", (128, 128), W[:200, :300]),
    "blocks in E8M0": lambda: with_powers_of_two(scaled(f"{UP}.weight", f"{UP}.weight_scale_inv", (128, 128))),
    "blocks named scale": lambda: scaled(f"{UP}.weight", f"{UP}.scale", (128, 128)),
    "rows": lambda: scaled(f"{UP}.weight", f"{UP}.weight_scale", (1, 384)),
    "tensor": lambda: scaled(f"{UP}.weight", f"{UP}.weight_scale", (256, 384)),
    "tensor, a scalar": lambda: without_dimensions(scaled(f"{UP}.weight", f"{UP}.weight_scale", (256, 384))),
    "tensor, ComfyUI": lambda: scaled(f"{UP}.weight", f"{UP}.scale_weight", (256, 384)),
    "E5M2": lambda: scaled(f"{UP}.weight", f"{UP}.weight_scale", (256, 384), dtype=E5M2, largest=57344.0),
    "int8 rows": lambda: scaled(f"{UP}.weight", f"{UP}.weight_scale", (1, 384), dtype=torch.int8, largest=127.0),
    "experts, blocks": lambda: scaled(EXPERTS, f"{EXPERTS}_scale_inv", (1, 128, 128), STACK),
    "experts, rows": lambda: scaled(EXPERTS, f"{EXPERTS}_scale", (1, 1, 384), STACK),
    "experts, one scale each": lambda: scaled(EXPERTS, f"{EXPERTS}_scale", (1, 256, 384), STACK),
    "LLM.int8": llm_int8,
    "MXFP4": mxfp4,
}


@pytest.mark.parametrize("case", CASES)
def test_codes_are_read_as_the_numbers_they_stand_for(case):
    tensors, truth, name = CASES[case]()
    checkpoint = open_checkpoint(tensors)
    assert list(checkpoint.tensors) == [name]
    torch.testing.assert_close(checkpoint.read(name).double(), truth, rtol=1e-7 if case != "LLM.int8" else 1e-3, atol=0)
    for start, stop in ((0, 1), (1, 2), (len(truth) - 1, len(truth))):
        assert torch.equal(checkpoint.rows(name, start, stop), checkpoint.read(name)[start:stop])
    assert not layout(checkpoint).skipped


REFUSED = {
    "GPTQ": ({"qweight": torch.ones(4, 8, dtype=torch.int32), "qzeros": torch.ones(1, 1, dtype=torch.int32),
              "scales": torch.ones(4, 8), "g_idx": torch.zeros(32, dtype=torch.int32)}, "GPTQ"),
    "compressed-tensors": ({"weight_packed": torch.ones(8, 1, dtype=torch.int32), "weight_scale": torch.ones(8, 1)},
                           "compressed-tensors"),
    "NVFP4": ({"weight": torch.ones(8, 8, dtype=torch.uint8), "weight_scale": torch.ones(8, 1).to(E4M3),
               "weight_scale_2": torch.ones(())}, "NVFP4"),
    "MLX": ({"weight": torch.ones(8, 8, dtype=torch.uint32), "scales": torch.ones(8, 2), "biases": torch.ones(8, 2)},
            "MLX"),
    "HQQ": ({"W_q": torch.ones(8, 8, dtype=torch.uint8), "scale": torch.ones(8, 8)}, "HQQ"),
    "quanto": ({"weight._data": torch.ones(8, 8, dtype=torch.int8), "weight._scale": torch.ones(8, 1)}, "quanto"),
    "zero points": ({"weight": torch.ones(8, 8, dtype=torch.int8), "weight_scale": torch.ones(8, 1),
                     "weight_zero_point": torch.ones(8, 1)}, "zero point"),
    "another block": ({"weight": torch.ones(8, 8).to(E4M3), "weight_scale_inv": torch.ones(2, 2)},
                      r"do not fit the shape \[2, 2\] of up.weight_scale_inv"),
}  # fmt: skip


@pytest.mark.parametrize("encoding", REFUSED)
def test_codes_of_other_encodings_and_their_scales_are_never_matrices(encoding):
    tensors, said = REFUSED[encoding]
    found = layout(open_checkpoint({f"up.{leaf}": tensor for leaf, tensor in tensors.items()}))
    assert not found.matrices
    reasons = [item.reason for item in found.skipped]
    assert all(reason.startswith("quantized storage: ") for reason in reasons)
    assert any(re.search(said, reason) for reason in reasons)


def test_dense_weights_whose_names_look_like_an_encoding_are_matrices():
    state = {"attn.W_q": torch.ones(4, 4), "attn._data": torch.ones(4, 4), "attn.scales": torch.ones(4, 4)}
    assert len(layout(open_checkpoint(state)).matrices) == 3


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_no_quantizer_writes_is_refused(scale):
    tensors, _, name = CASES["rows"]()
    tensors[f"{name}_scale"][3] = scale
    with pytest.raises(FileFormatError, match="weight_scale has scales that are zero, negative or not finite"):
        open_checkpoint(tensors).read(name)


@pytest.fixture
def base(tmp_path):
    """A model whose feed-forward weight is in FP8, and whose attention is not quantized."""
    folder = tmp_path / "base"
    folder.mkdir()
    tensors, _, _ = CASES["blocks, DeepSeek"]()
    plain = torch.randn(384, 384, generator=torch.Generator().manual_seed(3)).bfloat16()
    tensors |= {f"{Q}.weight": plain, f"{UP}.input_scale": torch.ones(()), "scaled_fp8": torch.zeros(2).to(E4M3)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    quantization = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def adapter_of(*modules):
    generator = torch.Generator().manual_seed(4)
    rows = {UP: 256, Q: 384}
    layers = {
        name: AdapterLayer(torch.randn(2, 384, generator=generator), torch.randn(rows[name], 2, generator=generator), 2)
        for name in modules
    }
    return Adapter(layers)


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_codes_that_no_adapter_changes_are_copied_with_their_scales_and_config(base, tmp_path, dtype):
    merge(base, adapter_of(Q), tmp_path / "out", dtype=dtype)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before.keys() - {f"{Q}.weight"}:
        assert after[name].dtype == before[name].dtype
        assert torch.equal(after[name].flatten().view(torch.uint8), before[name].flatten().view(torch.uint8))
    assert after[f"{Q}.weight"].dtype == (torch.float32 if dtype else torch.bfloat16)
    assert "quantization_config" in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_merge_into_codes_is_refused_and_into_dense_weights_is_right(base, tmp_path):
    adapter = adapter_of(UP, Q)
    with pytest.raises(OptionError, match=r"is quantized .*fp8.*`dtype=bfloat16` writes dense weights"):
        merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge(base, adapter, tmp_path / "out", dtype="float32")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == {f"{UP}.weight", f"{Q}.weight"}
    truth = CASES["blocks, DeepSeek"]()[1] + adapter[UP].lora_B.double() @ adapter[UP].lora_A.double()
    torch.testing.assert_close(after[f"{UP}.weight"].double(), truth, rtol=1e-5, atol=1e-6)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_analysis_extraction_and_comparison_see_the_numbers(base, tmp_path):
    tensors, truth, name = CASES["blocks, DeepSeek"]()
    found = {matrix.name: matrix for matrix in analyze(base).matrices}
    assert found[UP].spectrum.fro_norm == pytest.approx(float(truth.norm()), rel=1e-6)
    assert found[UP].dtype == "fp8"
    adapter = adapter_of(UP)
    tuned = {name: (truth + adapter[UP].lora_B.double() @ adapter[UP].lora_A.double()).float()}
    result = extract(tensors, tuned, rank=2)
    assert result.error < 1e-5
    assert compare(tensors, {name: truth.float()}).norm_difference < 1e-6 * float(truth.norm())
