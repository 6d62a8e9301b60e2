"""Every operation on a model with a weight in each encoding, and between encodings."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eckart.adapter import Adapter, AdapterLayer
from eckart.checkpoint import layout, open_checkpoint
from eckart.engine import Execution
from eckart.errors import MismatchError, OptionError
from eckart.operations import analyze, compare, extract, merge, plan_merge, unmerge
from eckart.operations.analysis.plan import plan_analysis
from eckart.operations.model_writer.planned import planned

from .encoded_samples import EACH, SAMPLES, Sample

Q = "model.layers.0.self_attn.q_proj"
PLAIN = torch.randn(256, 256, generator=torch.Generator().manual_seed(3)).bfloat16()
RANK = 2
EXTRA = {f"{Q}.weight": PLAIN, "model.norm.weight": torch.ones(256)}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model folder with one quantized weight and a dense one, and an adapter of the first."""

    folder: object
    sample: Sample
    matrix: str
    adapter: Adapter
    tuned: torch.Tensor
    """The quantized weight with the update, float64."""


def model_of(tmp_path, sample: Sample) -> Model:
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(sample.tensors | EXTRA, folder / "model.safetensors", {"format": "pt", "kept": "text"})
    config = {"model_type": "gpt_oss" if sample.truth.ndim == 3 else "llama", "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config | dict(sample.config)))
    view = next(view for view in layout(open_checkpoint(folder)).matrices if view.tensor == sample.name)
    generator = torch.Generator().manual_seed(4)
    outputs, inputs = view.shape
    kind = "expert" if view.kind == "expert" else "linear"
    factors = torch.randn(RANK, inputs, generator=generator), torch.randn(outputs, RANK, generator=generator)
    layer = AdapterLayer(*factors, RANK, kind=kind)
    update = layer.low_rank().dense()
    tuned = sample.truth.clone()
    tuned.view(-1, *tuned.shape[-2:])[0] += update.T if view.transposed else update
    return Model(folder, sample, view.name, Adapter({view.name: layer}), tuned)


@pytest.fixture(params=EACH)
def model(request, tmp_path):
    return model_of(tmp_path, SAMPLES[request.param]())


def dense(model: Model) -> dict[str, torch.Tensor]:
    return {model.sample.name: model.sample.truth.float()} | EXTRA


def test_analysis_sees_the_numbers(model):
    found = {matrix.name: matrix for matrix in analyze(model.folder).matrices}
    truth = model.sample.truth
    first = truth.view(-1, *truth.shape[-2:])[0]
    assert len(found) == 1 + (len(truth) if truth.ndim == 3 else 1)
    assert found[model.matrix].spectrum.fro_norm == pytest.approx(float(first.norm()), rel=1e-6)
    assert found[model.matrix].dtype == open_checkpoint(model.folder).tensors[model.sample.name].quantization
    assert found[Q].dtype == "bfloat16"


def test_a_dry_run_says_how_each_matrix_is_stored_and_what_is_read(model):
    encoding = open_checkpoint(model.folder).tensors[model.sample.name].quantization
    options = {"full": False, "target": (), "exclude": (), "execution": Execution()}
    preview = plan_analysis(model.folder, **options).preview()
    assert {match.name: match.stored for match in preview.matches}.items() >= {
        model.matrix: (encoding,),
        Q: ("bfloat16",),
    }.items()
    beside = ("input_scale", "output_scale", "weight_format")  # which the weight does not need
    parts = [tensor for name, tensor in model.sample.tensors.items() if not name.endswith(beside)]
    assert preview.read_bytes == sum(part.nbytes for part in parts) + PLAIN.nbytes
    tuned = dense(model) | {model.sample.name: model.tuned.float()}
    difference = plan_analysis(tuned, model.folder, **options).preview()
    assert difference.matches[0].stored == ("float32", encoding)


def test_an_update_between_dense_weights_and_codes_is_extracted_and_compared(model):
    base = dense(model)
    before = base | {model.sample.name: (2 * model.sample.truth - model.tuned).float()}
    result = extract(before, model.folder, rank=RANK, target=f"^{model.matrix.partition('[')[0]}.*")
    found = result.adapter[model.matrix].low_rank().dense()
    torch.testing.assert_close(found, model.adapter[model.matrix].low_rank().dense(), rtol=1e-3, atol=1e-3)
    difference = compare(before, model.folder)
    update = model.adapter[model.matrix].low_rank().fro_norm
    assert difference.norm_difference == pytest.approx(float(update), rel=1e-4)


def test_a_merge_into_dense_weights_is_right(model, tmp_path):
    merge(model.folder, model.adapter, tmp_path / "out", dtype="float32")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == {model.sample.name, *EXTRA}
    torch.testing.assert_close(after[model.sample.name].double(), model.tuned, rtol=1e-6, atol=1e-6)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.keys().isdisjoint({"quantization_config", "quantization"})
    assert config["torch_dtype"] == "float32"


# The relative error of the merged weight, rounded to the nearest codes.
WRITTEN = {
    **dict.fromkeys(("FP8, blocks, DeepSeek-V3", "FP8, rows", "FP8, groups", "FP8, tensor", "FP8, ComfyUI"), 0.04),
    **dict.fromkeys(("FP8, tensor, a scalar", "FP8, blocks in E8M0, DeepSeek-V4", "FP8, torchao", "MXFP8"), 0.04),
    "FP8, blocks with a remainder": 0.04,
    "FP8, E5M2": 0.08,
    "FP8, compressed-tensors": 0.04,
    **dict.fromkeys(("INT8, rows", "INT8, torchao", "INT8, quanto", "GPTQ, 8 bits"), 0.02),
    **dict.fromkeys(("MXFP4, Quark", "MXFP4, auto-round", "MXFP4, DeepSeek-V4", "MXFP4, compressed-tensors"), 0.15),
    **dict.fromkeys(
        ("NVFP4, ModelOpt", "NVFP4, torchao", "NVFP4, compressed-tensors", "GPTQ, 4 bits", "GPTQ, version 2", "AWQ"),
        0.15,
    ),
    **dict.fromkeys(("GPTQ, act-order", "GPTQ, asymmetric", "GPTQ without g_idx", "GPTQ, auto-round"), 0.15),
    "compressed-tensors, 4 bits": 0.15,
    "compressed-tensors, rows": 0.25,
    "compressed-tensors, 8 bits": 0.02,
}


@pytest.mark.parametrize("encoding", WRITTEN)
def test_a_merge_into_codes_quantizes_the_changed_weight_in_the_same_way(encoding, tmp_path):
    model = model_of(tmp_path, SAMPLES[encoding]())
    result = merge(model.folder, model.adapter, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (model.folder, tmp_path / "out"))
    assert {name: (value.shape, value.dtype) for name, value in before.items()} == {
        name: (value.shape, value.dtype) for name, value in after.items()
    }
    assert not torch.equal(*(each[next(iter(model.sample.tensors))].view(torch.uint8) for each in (before, after)))
    assert json.loads((tmp_path / "out" / "config.json").read_text()).items() >= dict(model.sample.config).items()
    written = open_checkpoint(tmp_path / "out")
    assert written.tensors[model.sample.name].quantization == open_checkpoint(model.folder).tensors[
        model.sample.name].quantization  # fmt: skip
    values = written.read(model.sample.name).double()
    error = float((values - model.tuned).norm() / model.tuned.norm())
    assert error < WRITTEN[encoding]
    assert result.requantization_error == pytest.approx(error, rel=1e-3)
    assert result.update_error == pytest.approx(
        error * float(model.tuned.norm() / (model.tuned - model.sample.truth).norm()), rel=1e-3
    )
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "kept": "text"}
    computed = planned(plan_merge(model.folder, model.adapter))
    assert torch.equal(computed.read(model.sample.name).double(), values)


def test_scales_that_fit_stay_and_with_them_all_codes_that_no_update_changes(tmp_path):
    model = model_of(tmp_path, SAMPLES["FP8, groups"]())
    layer = model.adapter[model.matrix]
    B = layer.lora_B.clone()
    B[8:] = 0
    merge(model.folder, Adapter({model.matrix: dataclasses.replace(layer, lora_B=B)}), tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (model.folder, tmp_path / "out"))
    name = model.sample.name
    codes, scales = ([each[leaf] for each in (before, after)] for leaf in (name, f"{name}_scale"))
    assert torch.equal(codes[0][8:].view(torch.uint8), codes[1][8:].view(torch.uint8))
    assert bool((scales[1] >= scales[0]).all())
    assert bool((scales[1] > scales[0])[:8].any())


@pytest.mark.parametrize("encoding", sorted({*EACH} - {*WRITTEN}))
def test_a_merge_into_codes_that_are_not_written_is_refused(encoding, tmp_path):
    model = model_of(tmp_path, SAMPLES[encoding]())
    stored = open_checkpoint(model.folder).tensors[model.sample.name].quantization
    said = f"would be changed, in {stored}, which eckart reads and does not write; `dtype=bfloat16` writes dense"
    with pytest.raises(OptionError, match=said):
        merge(model.folder, model.adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_taken_out_of_codes_into_dense_weights(model, tmp_path):
    with pytest.raises(OptionError, match="writes dense weights"):
        unmerge(model.folder, model.adapter, tmp_path / "out")
    unmerge(model.folder, model.adapter, tmp_path / "out", dtype="float32")
    after = load_file(tmp_path / "out" / "model.safetensors")[model.sample.name]
    torch.testing.assert_close(after.double(), 2 * model.sample.truth - model.tuned, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_codes_that_no_adapter_changes_are_copied_with_all_that_describes_them(model, tmp_path, dtype):
    generator = torch.Generator().manual_seed(5)
    factors = torch.randn(RANK, 256, generator=generator), torch.randn(256, RANK, generator=generator)
    merge(model.folder, Adapter({Q: AdapterLayer(*factors, RANK)}), tmp_path / "out", dtype=dtype)
    before, after = (load_file(folder / "model.safetensors") for folder in (model.folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name in model.sample.tensors:
        assert after[name].dtype == before[name].dtype
        assert torch.equal(after[name].flatten().view(torch.uint8), before[name].flatten().view(torch.uint8))
    assert after[f"{Q}.weight"].dtype == (torch.float32 if dtype else torch.bfloat16)
    assert not torch.equal(after[f"{Q}.weight"].float(), PLAIN.float())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert dict(model.sample.config).items() <= config.items()
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "kept": "text"}
    again = open_checkpoint(tmp_path / "out")
    assert torch.equal(again.read(model.sample.name).double(), model.sample.truth)


def test_a_merge_that_adds_or_repeats_tensors_copies_codes_of_each(tmp_path):
    model = model_of(tmp_path, SAMPLES["FP8, blocks, DeepSeek-V3"]())
    head = torch.randn(3, 256, generator=torch.Generator().manual_seed(6))
    merge(model.folder, Adapter({}, {"score.weight": head}, task_type="SEQ_CLS"), tmp_path / "head")
    after = load_file(tmp_path / "head" / "model.safetensors")
    assert after.keys() == {*model.sample.tensors, *EXTRA, "score.weight"}

    factors = torch.randn(RANK, 256), torch.randn(256, RANK)
    layers = {Q.replace("layers.0", "layers.1"): AdapterLayer(*factors, RANK)}
    adapter = Adapter(layers, config={"layer_replication": [[0, 1], [0, 1]]})
    merge(model.folder, adapter, tmp_path / "deeper")
    after = load_file(tmp_path / "deeper" / "model.safetensors")
    copies = {name.replace("layers.0", "layers.1"): name for name in model.sample.tensors}
    assert after.keys() >= {*model.sample.tensors, *copies}
    for copy, name in copies.items():
        assert torch.equal(after[copy].view(torch.uint8), model.sample.tensors[name].view(torch.uint8))
    assert "quantization_config" in json.loads((tmp_path / "deeper" / "config.json").read_text())


FILES = {"hf_quant_config.json": True, "quantize_config.json": True, "generation_config.json": False}


@pytest.mark.parametrize("file", FILES)
def test_files_that_describe_codes_are_left_out_of_a_dense_model(file, tmp_path):
    model = model_of(tmp_path, SAMPLES["FP8, rows"]())
    (model.folder / file).write_text("{}")
    merge(model.folder, model.adapter, tmp_path / "out", dtype="bfloat16")
    assert (tmp_path / "out" / file).exists() != FILES[file]


def test_an_operation_on_codes_that_are_not_read_says_what_they_are(tmp_path):
    model = model_of(tmp_path, SAMPLES["GPTQ, act-order"]())
    tensors = model.sample.tensors | {f"{model.matrix}.scales": torch.ones(3, 64)}
    save_file(tensors | EXTRA, model.folder / "model.safetensors", {"format": "pt"})
    said = r"up_proj: .*cannot be {}: quantized storage: GPTQ: 256 inputs do not divide .* dequantize it with GPTQModel"
    with pytest.raises(MismatchError, match=said.format("merged")):
        merge(model.folder, model.adapter, tmp_path / "out", dtype="float32")
    for operation in (extract, compare):
        with pytest.raises(MismatchError, match=said.format("used") + f"; `exclude={model.matrix}`") as refusal:
            operation(dense(model), model.folder, **({"rank": 1} if operation is extract else {}))
        assert str(refusal.value).count("up_proj:") == 1
    other = EXTRA | {f"{Q}.weight": PLAIN.float() + 1}
    result = extract(dense(model) | other, model.folder, rank=1, exclude=model.matrix)
    assert {layer.name for layer in result.layers} == {Q}
