"""Weights stored as codes and scales: read as the numbers they stand for, or never taken for weights."""

import contextlib
import dataclasses
import json
import re
from random import Random

import pytest
import torch
from safetensors.torch import save_file

from eckart.checkpoint import layout, open_checkpoint
from eckart.checkpoint.encodings.decode import decoded
from eckart.checkpoint.encodings.encoded import modules_of
from eckart.checkpoint.encodings.table import ENCODINGS
from eckart.checkpoint.memory import MemoryCheckpoint
from eckart.errors import FileFormatError

from .encoded_samples import (
    E4M3,
    EXPERTS,
    MODULE,
    SAMPLES,
    Sample,
    awq,
    comfyui_nvfp4,
    compressed,
    gptq,
    hqq,
    mlx,
    mxfp4,
    nvfp4,
    scaled,
)


def stored(folder, sample: Sample, *, shards: int = 1, **config):
    """A sample in a model folder; of several shards, codes and scales are in different ones."""
    folder.mkdir()
    files: dict[str, dict[str, torch.Tensor]] = {}
    for place, (name, tensor) in enumerate(sample.tensors.items()):
        number = place % shards + 1
        file = "model.safetensors" if shards == 1 else f"model-{number:05}-of-{shards:05}.safetensors"
        files.setdefault(file, {})[name] = tensor
    for file, tensors in files.items():
        save_file(tensors, folder / file, {"format": "pt"})
    if shards > 1:
        weight_map = {name: file for file, tensors in files.items() for name in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | dict(sample.config) | config))
    return folder


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("encoding", SAMPLES)
def test_codes_are_read_as_the_numbers_they_stand_for(encoding, shards, tmp_path):
    sample = SAMPLES[encoding]()
    checkpoint = open_checkpoint(stored(tmp_path / "model", sample, shards=shards))
    assert list(checkpoint.tensors) == [sample.name]
    info = checkpoint.tensors[sample.name]
    values = checkpoint.read(sample.name)
    assert (tuple(values.shape), values.dtype) == (info.shape, info.dtype.torch)
    assert torch.equal(values.double(), sample.truth)
    size = len(values)
    for start, stop in ((0, 0), (0, 1), (1, 2), (size // 2 - 1, size), (size - 1, size)):
        assert torch.equal(checkpoint.rows(sample.name, start, stop), values[start:stop])
    assert not layout(checkpoint).skipped


@pytest.mark.parametrize("encoding", SAMPLES)
def test_no_two_encodings_claim_one_weight(encoding):
    sample = SAMPLES[encoding]()
    checkpoint = MemoryCheckpoint(sample.tensors)
    checkpoint.config = dict(sample.config)
    claims = [found for module in modules_of(checkpoint) for each in ENCODINGS for found in each(module)]
    assert len(claims) == 1


def changed(sample: Sample, **leaves) -> Sample:
    """A sample with other tensors, by the last part of their names; None removes one."""
    prefix = sample.name.removesuffix("weight")
    tensors = sample.tensors | {f"{prefix}{leaf}": value for leaf, value in leaves.items()}
    return dataclasses.replace(sample, tensors={name: value for name, value in tensors.items() if value is not None})


def text(value: object) -> torch.Tensor:
    """JSON as a tensor of bytes."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


ONES = torch.ones(4, 4)
CODES = torch.ones(8, 8, dtype=torch.uint8)
TWO_GROUPS = torch.tensor([0, 1] * 128, dtype=torch.int32)
MISFITS = {
    "FP8, blocks": (lambda: changed(scaled("weight_scale_inv", (1, 256)), weight_scale_inv=torch.ones(3, 3)),
                    r"\[64, 256\] do not fit the shape \[3, 3\] of .*weight_scale_inv"),
    "FP8, stated blocks": (lambda: scaled("weight_scale_inv", (32, 64), weight_block_size=[64, 64]),
                           r"do not fit the shape \[2, 4\]"),
    "FP8, integer scales": (lambda: changed(scaled("weight_scale", (1, 256)), weight_scale=torch.ones(64, 1).int()),
                            "weight_scale, int32"),
    "INT8, zero points": (lambda: changed(SAMPLES["INT8, zero points"](), weight_zero_point=ONES.to(torch.int8)),
                          r"zero points \[4, 4\], int8, do not fit the scales \[64, 1\]"),
    "MXFP4": (lambda: changed(mxfp4("weight", "weight_scale"), weight_scale=ONES.to(torch.uint8)),
              r"weight_scale \[4, 4\] do not have a scale for every 32 values"),
    "NVFP4": (lambda: changed(nvfp4(), weight_scale=ONES.to(E4M3)), r"do not have a scale for every 16 values"),
    "NVFP4, second": (lambda: changed(nvfp4(), weight_scale_2=ONES), "do not have one scale for each matrix"),
    "GPTQ, groups": (lambda: changed(gptq(), qzeros=torch.zeros(3, 8, dtype=torch.int32), scales=torch.ones(3, 64)),
                     r"256 inputs do not divide into the groups of qzeros \[3, 8\], scales \[3, 64\]"),
    "GPTQ, bits": (lambda: changed(gptq(), qzeros=torch.zeros(4, 10, dtype=torch.int32)), "not of 2, 3, 4 or 8 bits"),
    "GPTQ, g_idx": (lambda: changed(gptq(), g_idx=TWO_GROUPS[:3]), r"g_idx \[3\] is not one group for each of 256"),
    "GPTQ, another format": (lambda: gptq(checkpoint_format="marlin"), "in the format 'marlin'"),
    "AWQ, groups": (lambda: changed(awq(), scales=torch.ones(3, 64)), r"groups of qzeros \[4, 8\], scales \[3, 64\]"),
    "compressed-tensors, shape": (lambda: changed(SAMPLES["compressed-tensors, 4 bits"](),
                                                  weight_shape=torch.ones(2).long()),
                                  r"weight_shape \[1, 1\] is not that of weight_packed \[64, 32\]"),
    "compressed-tensors, shape in FP8": (lambda: changed(SAMPLES["compressed-tensors, 4 bits"](),
                                                         weight_shape=torch.ones(2).to(E4M3)), r"weight_shape \[\] is"),
    "compressed-tensors, words": (lambda: changed(SAMPLES["compressed-tensors, 4 bits"](),
                                                  weight_packed=torch.ones(64, 7, dtype=torch.int32)),
                                  "256 inputs in 7 words are not codes of 1 to 8 bits"),
    "compressed-tensors, groups": (lambda: changed(SAMPLES["compressed-tensors, 4 bits"](),
                                                   weight_scale=torch.ones(64, 3)),
                                   r"256 inputs do not divide into the groups of weight_scale \[64, 3\]"),
    "MLX without a config": (lambda: dataclasses.replace(mlx(4, 64), config={}), "the config has no `quantization`"),
    "MLX, other bits": (lambda: mlx(4, 64, config={"bits": 3, "group_size": 64}), "'bits': 3, 'group_size': 64"),
    "HQQ, shape": (lambda: changed(hqq(4, 1), shape=torch.tensor([64, 64])), r"weight of shape \[64, 64\] with 4 bits"),
    "HQQ, quantized scales": (lambda: changed(hqq(4, 1), quant_scale=torch.tensor(1)), "with quantized scales"),
    "FP4": (lambda: changed(SAMPLES["FP4, bitsandbytes"](), **{"weight.absmax": torch.ones(7)}), "do not fit together"),
    "NVFP4 with a smoothing scale": (lambda: changed(nvfp4(), pre_quant_scale=torch.ones(256)),
                                     "nvfp4, with pre_quant_scale, which is not part"),
    "FP8 rotated by ComfyUI": (lambda: changed(scaled("weight_scale", (1, 256)), comfy_quant=text(
        {"format": "float8_e4m3fn", "convrot": True})), "fp8, float8_e4m3fn with convrot of ComfyUI"),
    "LLM.int8 in another layout": (lambda: changed(SAMPLES["LLM.int8"](), weight_format=torch.tensor(2).byte()),
                                   "llm.int8 codes in the layout of a GPU"),
    "NVFP4 of ComfyUI": (lambda: changed(nvfp4(), comfy_quant=text({"format": "nvfp4"})),
                         r"weight \[64, 128\], weight_scale \[64, 16\], float8_e4m3fn, expected scales \[128, 16\]"),
    "NVFP4 of ComfyUI, padded": (lambda: changed(comfyui_nvfp4(), bias=torch.zeros(150)), "the weight is padded"),
    "NVFP4 of ComfyUI, one scale": (lambda: changed(comfyui_nvfp4(), weight_scale_2=None), "without weight_scale_2"),
    "MXFP8 of ComfyUI, rotated": (lambda: changed(SAMPLES["MXFP8, ComfyUI"](), comfy_quant=text(
        {"format": "mxfp8", "convrot": True})), "mxfp8 with convrot of ComfyUI"),
    "FP8 with a damaged marker": (lambda: changed(scaled("weight_scale", (1, 256)), comfy_quant=CODES),
                                  "fp8, None of ComfyUI"),
    "rotated": (lambda: scaled("weight_scale", (1, 256), transform_config={"config_groups": {"R1": {}}}),
                "fp8, rotated by the transform_config"),
    "GPTQ with rotations": (lambda: changed(gptq(), pairs=torch.ones(8, 8).short()), "gptq 4-bit, with pairs"),
}  # fmt: skip


@pytest.mark.parametrize("misfit", MISFITS)
def test_tensors_that_do_not_fit_together_are_refused_with_what_arrived(misfit, tmp_path):
    make, said = MISFITS[misfit]
    sample = make()
    found = layout(open_checkpoint(stored(tmp_path / "model", sample)))
    assert not found.matrices
    reasons = [item.reason for item in found.skipped]
    assert len(reasons) == len(sample.tensors)
    assert any(re.search(said, reason) for reason in reasons), reasons


UNKNOWN = {
    "EXL2": ({"q_weight": CODES.int(), "q_scale": CODES.int(), "q_scale_max": ONES}, "exllamav2"),
    "EXL3": ({"trellis": CODES.short(), "suh": torch.ones(8), "svh": torch.ones(8)}, "exllamav3"),
    "AQLM": ({"codes": CODES, "codebooks": torch.ones(1, 8, 1, 8), "scales": torch.ones(8, 1, 1, 1)}, "aqlm"),
    "EETQ": ({"weight": CODES.to(torch.int8), "weight_scales": torch.ones(8)}, "EETQ"),
    "BitNet": ({"weight": CODES, "weight_scale": torch.ones(1)}, "weight, uint8, with weight_scale, of an unknown"),
    "quanto, a shape that is not stored": ({"weight._data._data": torch.ones(64, 128, dtype=torch.uint8),
                                            "weight._scale": torch.ones(128, 1), "weight._shift": torch.ones(128, 1)},
                                           "the shape of 128 groups of 128 is not stored"),
    "quanto, misfits": ({"weight._data._data": CODES, "weight._scale": torch.ones(8, 1),
                        "weight._shift": torch.ones(8, 1)}, "quanto"),
    "torchao, another kernel": ({"_weight_qdata": CODES.int(), "_weight_scale": ONES, "_weight_zero_point": ONES},
                                "torchao"),
    "AWQ for another kernel": ({"qweight": torch.ones(64, 32, dtype=torch.int32),
                                "qzeros": torch.ones(64, 3, dtype=torch.int32), "scales": torch.ones(64, 24)},
                               "AWQ for gemv"),
    "FP8 with a scale of an unknown name": ({"weight": ONES.to(E4M3), "dequant_scaling": torch.ones(())},
                                            "weight, float8_e4m3fn, with dequant_scaling, of an unknown encoding"),
    "scales without their codes": ({"qzeros": CODES.int(), "scales": ONES}, "GPTQModel"),
    "MLX without its codes": ({"scales": ONES, "biases": ONES.clone()}, "MLX"),
    "HQQ without its codes": ({"scale": ONES, "zero": ONES.clone(), "nbits": torch.tensor(4)}, "HQQ"),
    "a scale alone": ({"weight_scale_inv": ONES}, "a scale whose codes are missing"),
    "a scale next to dense weights": ({"gate_up_proj_scale": ONES, "other": torch.ones(())}, "codes are missing"),
}  # fmt: skip


@pytest.mark.parametrize("encoding", UNKNOWN)
def test_codes_of_other_encodings_and_their_scales_are_never_matrices(encoding):
    tensors, said = UNKNOWN[encoding]
    found = layout(open_checkpoint({f"up.{leaf}": tensor for leaf, tensor in tensors.items()}))
    assert not found.matrices
    reasons = [item.reason for item in found.skipped]
    assert any(reason.startswith("quantized storage: ") and said in reason for reason in reasons), reasons


DENSE = {
    "names of encodings": {"attn.W_q": ONES, "attn._data": ONES, "attn.scales": ONES},
    "indices next to a scale": {"attn.relative_position_index": ONES.long(), "attn.logit_scale": ONES, "a.weight": ONES,
                                "b.weight": ONES},
    "FP8 without a scale": {"a.weight": ONES.to(E4M3), "a.bias": torch.ones(4), "b.weight": ONES, "c.weight": ONES},
}  # fmt: skip


@pytest.mark.parametrize("names", DENSE)
def test_dense_weights_whose_names_look_like_an_encoding_are_matrices(names):
    state = {name: tensor.clone() for name, tensor in DENSE[names].items()}
    assert len(layout(open_checkpoint(state)).matrices) == 3


FAULTY = {
    "FP8": (lambda: scaled("weight_scale", (1, 256)), "weight_scale"),
    "LLM.int8": (SAMPLES["LLM.int8"], "SCB"),
    "NVFP4": (nvfp4, "weight_scale_2"),
    "NVFP4 of ComfyUI": (comfyui_nvfp4, "weight_scale_2"),
    "GPTQ": (gptq, "scales"),
    "AWQ": (awq, "scales"),
    "compressed-tensors": (lambda: compressed("pack-quantized", num_bits=4, strategy="channel"), "weight_scale"),
    "MLX": (lambda: mlx(4, 64), "scales"),
    "HQQ": (lambda: hqq(4, 1), "scale"),
    "FP4": (SAMPLES["FP4, bitsandbytes"], "weight.absmax"),
}  # fmt: skip


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("encoding", FAULTY)
def test_a_scale_that_no_quantizer_writes_is_refused(encoding, value, tmp_path):
    make, leaf = FAULTY[encoding]
    sample = make()
    name = f"{MODULE}.{leaf}"
    sample.tensors[name] = sample.tensors[name].clone()
    sample.tensors[name].view(-1)[0] = value
    said = ("zero for codes that are not" if value == 0 else "NaN or Inf") + "|is .*a positive, finite number"
    with pytest.raises(FileFormatError, match=f"{re.escape(name)} .*({said})"):
        open_checkpoint(stored(tmp_path / "model", sample)).read(sample.name)


def test_a_zero_scale_of_a_row_of_zeros_is_read_as_zeros():
    sample = scaled("weight_scale", (1, 256))
    codes, scale = sample.tensors.values()
    codes.view(torch.uint8)[3] = 0
    scale[3] = 0
    values = open_checkpoint(sample.tensors).read(sample.name)
    assert not values[3].any()
    assert values[2].any()


WRONG_CODES = {
    "negative FP8 scale": (lambda: changed(scaled("weight_scale", (1, 256)), weight_scale=-torch.ones(64, 1)),
                           "weight_scale has 64 scales that are negative"),
    "E8M0 that is NaN": (lambda: changed(mxfp4("weight", "weight_scale"), weight_scale=torch.full((64, 8), 255).byte()),
                         "512 scales that are NaN"),
    "GPTQ group": (lambda: changed(gptq(), g_idx=4 * TWO_GROUPS), "g_idx has groups from 0 to 4, expected 0 to 3"),
    "GPTQ version": (lambda: gptq(symmetric=False, quant_method=None), "add the checkpoint_format"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_CODES)
def test_values_out_of_range_are_refused_when_they_are_read(wrong, tmp_path):
    make, said = WRONG_CODES[wrong]
    sample = make()
    with pytest.raises(FileFormatError, match=said):
        open_checkpoint(stored(tmp_path / "model", sample)).read(sample.name)


def test_tensors_that_modules_share_in_memory_are_read_for_each():
    sample = gptq(order=True)
    other = {name.replace("up_proj", "gate_proj"): value.clone() for name, value in sample.tensors.items()}
    other[f"{MODULE}.g_idx".replace("up_proj", "gate_proj")] = sample.tensors[f"{MODULE}.g_idx"]
    checkpoint = open_checkpoint(sample.tensors | other)
    assert len(checkpoint.tensors) == 2
    for name in checkpoint.tensors:
        assert torch.equal(checkpoint.read(name).double(), sample.truth)


def test_the_output_layer_in_codes_is_not_taken_for_the_embedding(tmp_path):
    sample = gptq()
    head = {name.replace(MODULE, "lm_head"): value for name, value in sample.tensors.items()}
    tensors = head | {"model.embed_tokens.weight": torch.ones(64, 256)}
    folder = stored(
        tmp_path / "model", dataclasses.replace(sample, tensors=tensors), architectures=["LlamaForCausalLM"]
    )
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.tensors) == {"lm_head.weight", "model.embed_tokens.weight"}
    assert not checkpoint.tied


def test_an_embedding_in_codes_is_shared_with_the_output_layer(tmp_path):
    sample = mlx(4, 64)
    tensors = {name.replace(MODULE, "model.embed_tokens"): value for name, value in sample.tensors.items()}
    folder = stored(
        tmp_path / "model", dataclasses.replace(sample, tensors=tensors), architectures=["LlamaForCausalLM"]
    )
    assert open_checkpoint(folder).tied == {"lm_head.weight": "model.embed_tokens.weight"}


@pytest.mark.parametrize(("form", "matrices"), [("float8_e4m3fn", 1), ("nvfp4", 0), ("mxfp8", 0), (None, 0)])
def test_what_comfyui_states_in_the_header_decides(form, matrices, tmp_path):
    sample = scaled("weight_scale", (1, 256))
    stated = json.dumps({"format_version": "1.0", "layers": {MODULE: {"format": form}}})
    save_file(sample.tensors, tmp_path / "model.safetensors", {"_quantization_metadata": stated})
    assert len(layout(open_checkpoint(tmp_path / "model.safetensors")).matrices) == matrices


@pytest.mark.parametrize(("swizzled", "matrices"), [(False, 1), (True, 0)])
def test_scales_that_torchao_stores_in_the_order_of_a_kernel_are_not_read(swizzled, matrices, tmp_path):
    stated = json.dumps({"_type": "NVFP4Tensor", "_data": {"is_swizzled_scales": swizzled, "block_size": 16}})
    sample = SAMPLES["NVFP4, torchao"]()
    save_file(sample.tensors, tmp_path / "model.safetensors", {f"{MODULE}.weight": stated})
    assert len(layout(open_checkpoint(tmp_path / "model.safetensors")).matrices) == matrices


def test_e8m0_scales_of_a_shape_that_only_divides_that_of_the_codes_are_not_read():
    codes = torch.ones(128, 256).to(E4M3)
    scales = torch.full((32, 32), 127, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    tensors = {f"{MODULE}._weight_qdata": codes, f"{MODULE}._weight_scale": scales}
    assert not layout(open_checkpoint(tensors)).matrices


@pytest.mark.parametrize("encoding", ["LLM.int8", "GPTQ, act-order", "FP8, rows"])
def test_a_conv1d_that_is_stored_as_a_linear_layer_is_read_as_in_the_model(encoding, tmp_path):
    sample, module = SAMPLES[encoding](), "transformer.h.0.mlp.c_fc"
    tensors = {name.replace(MODULE, module): value for name, value in sample.tensors.items()}
    sample = dataclasses.replace(sample, tensors=tensors, config={**sample.config, "model_type": "gpt2"})
    checkpoint = open_checkpoint(stored(tmp_path / "model", sample))
    values = checkpoint.read(f"{module}.weight")
    assert torch.equal(values.double(), sample.truth if encoding == "FP8, rows" else sample.truth.T)
    assert checkpoint.tensors[f"{module}.weight"].shape == tuple(values.shape)
    assert torch.equal(checkpoint.rows(f"{module}.weight", 3, 5), values[3:5])


def test_experts_are_named_as_in_the_model():
    names = {SAMPLES[each]().name for each in ("MXFP4, gpt-oss", "NVFP4, ModelOpt, experts", "FP8, experts, blocks")}
    assert names == {f"{EXPERTS}.gate_up_proj"}


def damaged(tensor: torch.Tensor, random: Random) -> torch.Tensor | None:
    """A tensor of another shape, data type or content, or none at all."""
    shape = list(tensor.shape) or [1]
    place = random.randrange(len(shape))
    shape[place] = random.choice([0, 1, 2, shape[place] + 1, 2 * shape[place], shape[place] // 2])
    bits = tensor.clone().reshape(-1).view(torch.uint8)
    bits[random.randrange(max(len(bits), 1)) : len(bits)] = random.randrange(256)
    dtypes = (torch.float32, torch.float16, torch.int8, torch.uint8, torch.int32, torch.int64, torch.uint32, E4M3)
    return random.choice([
        None,
        torch.ones(shape).to(tensor.dtype),
        tensor.reshape(-1).clone(),
        tensor.clone()[None],
        torch.ones(tensor.shape).to(random.choice(dtypes)),
        bits.view(tensor.dtype).view(tensor.shape),
    ])  # fmt: skip


CONFIGS = ({}, {"quantization_config": "x"}, {"quantization_config": {"weight_block_size": [0, "a"]}},
           {"quantization_config": {"checkpoint_format": 3, "config_groups": {"a": {"weights": {"group_size": -1}}}}},
           {"quantization": {"bits": [4], "group_size": None}})  # fmt: skip


@pytest.mark.parametrize("encoding", [each for each in SAMPLES if "packed data type" not in each])
def test_damaged_tensors_and_configs_are_refused_or_read_in_the_stated_shape(encoding):
    random, sample = Random(encoding), SAMPLES[encoding]()
    for _ in range(20):
        name = random.choice(list(sample.tensors))
        tensor = damaged(sample.tensors[name], random)
        rest = {key: value for key, value in sample.tensors.items() if key != name}
        stored = MemoryCheckpoint(rest | ({} if tensor is None else {name: tensor}))
        stored.config = dict(random.choice([sample.config, *CONFIGS]))
        checkpoint = decoded(stored)
        for view in layout(checkpoint).matrices:
            info = checkpoint.tensors[view.tensor]
            with contextlib.suppress(FileFormatError):
                values = checkpoint.read(view.tensor)
                assert (tuple(values.shape), values.dtype) == (info.shape, info.dtype.torch)
