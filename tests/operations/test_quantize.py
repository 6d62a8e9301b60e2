"""Quantized models: what transformers and bitsandbytes load is what was written, for many architectures."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from eckart.adapter import Adapter
from eckart.checkpoint import open_checkpoint
from eckart.checkpoint.encodings.nf4 import Nf4Checkpoint
from eckart.engine import Execution
from eckart.errors import EckartError, MismatchError, NotFiniteError, OptionError, OutputError
from eckart.linalg import nf4
from eckart.operations.merging.merge import merge
from eckart.operations.quantization.plan import plan_quantize
from eckart.operations.quantization.quantize import quantize

from .test_merge import gpt2, layer, llama, tensors_in

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore")

TYPES = {
    "t5": "AutoModelForSeq2SeqLM", "bert": "AutoModelForMaskedLM", "distilbert": "AutoModelForMaskedLM",
    "whisper": "AutoModelForSpeechSeq2Seq", "vit": "AutoModelForImageClassification",
}  # fmt: skip


def loaded(folder, name="llama"):
    """A folder as transformers and bitsandbytes load it; nothing may be missing, left over or of another shape."""
    import transformers

    kind = getattr(transformers, TYPES.get(name, "AutoModelForCausalLM"))
    model, info = kind.from_pretrained(folder, device_map="cpu", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def in_4_bits(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}


def dequantized(module):
    """Its weight; as one row, because bitsandbytes 0.50 takes wrong scales where a row ends inside a block."""
    state = module.weight.quant_state
    shape, state.shape = state.shape, torch.Size([state.shape.numel()])
    weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, state).view(shape)
    state.shape = shape
    return weight


def test_what_is_written_loads_in_transformers(architecture, tiny_folder, tmp_path):
    folder = tiny_folder(architecture)
    if architecture == "falcon":
        with pytest.raises(MismatchError, match="falcon have their own class"):
            quantize(folder, tmp_path / "out")
        return
    result = quantize(folder, tmp_path / "out", double=True)
    model, found, dense = (
        loaded(tmp_path / "out", architecture),
        open_checkpoint(tmp_path / "out"),
        open_checkpoint(folder),
    )
    modules = in_4_bits(model)
    assert isinstance(found, Nf4Checkpoint)
    assert {name: info.shape for name, info in found.tensors.items()} == {n: i.shape for n, i in dense.tensors.items()}
    assert len(modules) == len(found.schemes) == len(result.layers)
    weights = sorted(float(dequantized(module).double().norm()) for module in modules.values())
    assert weights == pytest.approx(sorted(float(found.read(name).double().norm()) for name in found.schemes))
    for name in found.tensors.keys() - found.schemes.keys():
        assert torch.equal(found.read(name), dense.read(name))
    for item in result.layers:
        before, after = (c.read(f"{item.name}.weight").double() for c in (dense, found))
        assert item.error == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"double": True}, {"block_size": 128}, {"target": ["attention"]}], ids=str)
def test_logits_are_those_of_the_dequantized_weights(options, tmp_path):
    dense = llama(hidden_size=128, intermediate_size=256)
    dense.save_pretrained(tmp_path / "dense")
    quantize(tmp_path / "dense", tmp_path / "out", **options)
    model, found = loaded(tmp_path / "out").train(), open_checkpoint(tmp_path / "out")
    dense.load_state_dict({name: found.read(name) for name in found.tensors})
    tokens = torch.arange(12)[None]
    assert torch.equal(model(tokens).logits, dense.train()(tokens).logits)
    assert len(in_4_bits(model)) == (8 if "target" in options else 14)


@pytest.mark.parametrize("double", [False, True])
def test_files_and_config_are_those_that_transformers_writes(double, tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    llama(hidden_size=64).to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype="bfloat16",
    )
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config, device_map="cpu")
    peer.save_pretrained(tmp_path / "peer")
    quantize(tmp_path / "dense", tmp_path / "out", double=double)
    expected, written = tensors_in(tmp_path / "peer"), tensors_in(tmp_path / "out")
    assert written.keys() == expected.keys()
    for name, tensor in written.items():
        if "quant_state" in name:
            assert json.loads(bytes(tensor.tolist())) == json.loads(bytes(expected[name].tolist()))
        else:
            assert torch.equal(tensor, expected[name])
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("peer", "out")]
    assert configs[0] == configs[1]


def test_smollm2_takes_little_more_than_half_a_byte_a_parameter(smollm2, tmp_path):
    plain, double = (plan_quantize(smollm2, double=double) for double in (False, True))
    for plan, most in ((plain, 0.563), (double, 0.519)):
        count = sum(tensor.views[0].shape[0] * tensor.views[0].shape[1] for tensor in plan.quantized)
        assert sum(spec.nbytes for tensor in plan.quantized for spec in tensor.specs) / count < most
    result = quantize(smollm2, tmp_path / "out", double=True, dtype=torch.bfloat16)
    assert result.nbytes < 112e6
    assert (len(result.layers), result.tensors) == (210, 272)
    assert result.error == pytest.approx(0.0936, abs=1e-3)
    model = loaded(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "dense"),
    [
        ({"target": ["lm_head", "q_proj"]}, {"k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ({"exclude": ["mlp"]}, {"lm_head", "gate_proj", "up_proj", "down_proj"}),
        ({"exclude": ["model.layers.1.mlp.up_proj"]}, {"lm_head", "up_proj"}),
    ],
    ids=["output layer and queries", "no MLP", "one layer left out"],
)
def test_layers_that_stay_dense_are_in_the_config_for_transformers(options, dense, tmp_path):
    llama().save_pretrained(tmp_path / "dense")
    result = quantize(tmp_path / "dense", tmp_path / "out", **options)
    model = loaded(tmp_path / "out")
    assert in_4_bits(model).keys() == {item.name for item in result.layers}
    assert {name.rpartition(".")[2] for name, m in model.named_modules() if type(m) is torch.nn.Linear} == dense
    assert dense == {item.name.rpartition(".")[2] for item in result.skipped} - {"tokenizer"}


def test_a_merge_into_a_quantized_conv1d_is_quantized_in_its_orientation(tmp_path):
    gpt2().save_pretrained(tmp_path / "dense")
    quantize(tmp_path / "dense", tmp_path / "base")
    name = "transformer.h.1.attn.c_proj"
    adapter = Adapter({name: layer(32, 32)})
    before = open_checkpoint(tmp_path / "base").read(f"{name}.weight")
    exact = before.T + adapter[name].delta()
    merge(tmp_path / "base", adapter, tmp_path / "merged")
    weight = in_4_bits(loaded(tmp_path / "merged"))[name]
    torch.testing.assert_close(dequantized(weight), nf4.quantize(exact).dequantize())
    merge(tmp_path / "base", adapter, tmp_path / "plain", dtype=torch.float32)
    torch.testing.assert_close(loaded(tmp_path / "plain").get_parameter(f"{name}.weight").data, exact.T)


def test_an_interrupted_run_resumes_where_it_stopped(tmp_path, monkeypatch):
    from eckart.operations.model_writer import writer

    llama().save_pretrained(tmp_path / "dense")
    quantize(tmp_path / "dense", tmp_path / "whole")
    seen, write = [], writer.ModelWriter._write_tensor

    def counted(self, tensor, *others):
        seen.append(tensor.name)
        if len(seen) == 9:
            raise KeyboardInterrupt
        return write(self, tensor, *others)

    monkeypatch.setattr(writer.ModelWriter, "_write_tensor", counted)
    with pytest.raises(KeyboardInterrupt):
        quantize(tmp_path / "dense", tmp_path / "out", execution=Execution(workers=1))
    assert not (tmp_path / "out").exists()
    result = quantize(tmp_path / "dense", tmp_path / "out", execution=Execution(workers=1))
    assert len(seen) < 9 + result.tensors
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def _state(**tensors):
    return {f"model.layers.0.{name}.weight": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("tensors", "options", "error", "said"),
    [
        (
            _state(up_proj=torch.ones(4, 4)),
            {"target": ["q_proj"]},
            MismatchError,
            "'q_proj' matches nothing; nearest: ",
        ),
        (_state(up_proj=torch.ones(4, 4)), {"block_size": 100}, OptionError, "must be one of 32, 64"),
        (_state(up_proj=torch.ones(4, 4, dtype=torch.int8)), {}, MismatchError, "'all-linear' matches nothing"),
        (_state(up_proj=torch.ones(4, 4).double()), {}, MismatchError, "up_proj: float64"),
        (_state(embed_tokens=torch.ones(4, 4)), {"target": ["embed_tokens"]}, MismatchError, "embedding, and nf4"),
        (
            _state(up_proj=torch.full((4, 4), float("nan"))),
            {},
            NotFiniteError,
            "up_proj contains 16 values",
        ),
        (
            _state(up_proj=torch.ones(4, 4)) | {"model.layers.0.up_proj.weight_scale": torch.ones(1)},
            {},
            MismatchError,
            "alr",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_quantized_is_refused_and_nothing_is_left(tensors, options, error, said, tmp_path):
    (tmp_path / "model").mkdir()
    save_file(tensors, tmp_path / "model/model.safetensors")
    (tmp_path / "model/config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(error, match=said):
        quantize(tmp_path / "model", tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_quantized_model_an_existing_output_and_a_model_without_config_are_refused(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path / "dense")
    quantize(tmp_path / "dense", tmp_path / "nf4")
    with pytest.raises(MismatchError, match="already quantized"):
        quantize(tmp_path / "nf4", tmp_path / "again")
    with pytest.raises(OutputError, match="use `force` to replace it"):
        quantize(tmp_path / "dense", tmp_path / "nf4")
    with pytest.raises(EckartError, match=r"no config\.json"):
        quantize(model.state_dict(), tmp_path / "again")


def test_a_live_model_is_quantized_as_its_folder_is(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path / "dense")
    quantize(tmp_path / "dense", tmp_path / "of folder")
    quantize(model, tmp_path / "of model")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("of folder", "of model"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    loaded(tmp_path / "of model")
