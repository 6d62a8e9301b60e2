"""NF4 checkpoints: read as bitsandbytes dequantizes what transformers saved, and written as they write it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from eckart.checkpoint import layout, open_checkpoint
from eckart.checkpoint.dtypes import DType
from eckart.checkpoint.encodings.nf4 import Nf4Checkpoint
from eckart.checkpoint.encodings.nf4_scheme import STATE, Nf4Scheme
from eckart.checkpoint.writer import TensorSpec
from eckart.errors import FileFormatError
from eckart.linalg import nf4
from eckart.operations import analyze, extract

bitsandbytes = pytest.importorskip("bitsandbytes.functional")
UP = "model.layers.0.mlp.up_proj.weight"


def save_tiny_llama(folder, **options):
    """A Llama that transformers quantized with bitsandbytes on the CPU."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=90, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "dense")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **options)
    model = AutoModelForCausalLM.from_pretrained(
        folder / "dense", quantization_config=quantization, dtype=torch.bfloat16, device_map="cpu"
    )
    model.save_pretrained(folder / "nf4")
    return folder / "nf4"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    double, other = {"bnb_4bit_use_double_quant": True}, {"bnb_4bit_quant_storage": torch.bfloat16}
    return {
        name: save_tiny_llama(tmp_path_factory.mktemp("nf4"), **options)
        for name, options in {"plain": {}, "double": double, "stored as bfloat16": double | other}.items()
    }


def by_bitsandbytes(tensors, name):
    """The weight as bitsandbytes dequantizes what lies in the file."""
    parts = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    state = bitsandbytes.QuantState.from_dict(parts, device=torch.device("cpu"))
    # As one row: the AVX-512 kernel of bitsandbytes 0.50 takes wrong scales where a row ends inside a block.
    shape, state.shape = state.shape, torch.Size([state.shape.numel()])
    return bitsandbytes.dequantize_4bit(tensors[name], state).view(shape)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["plain", "double", "stored as bfloat16"])
def test_what_transformers_saved_is_read_as_bitsandbytes_dequantizes_it(kind, folders):
    checkpoint = open_checkpoint(folders[kind])
    dense, tensors = open_checkpoint(folders[kind].parent / "dense"), load_file(folders[kind] / "model.safetensors")
    assert isinstance(checkpoint, Nf4Checkpoint)
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {
        name: info.shape for name, info in dense.tensors.items()
    }
    assert len(checkpoint.schemes) == 14
    for name, info in checkpoint.tensors.items():
        found = checkpoint.read(name)
        assert (found.dtype, found.shape) == (info.dtype.torch, info.shape)
        assert info.quantization == ("nf4" if name in checkpoint.schemes else None)
        assert torch.equal(found, by_bitsandbytes(tensors, name) if name in checkpoint.schemes else tensors[name])
    assert checkpoint.tensors[UP].nbytes == sum(t.nbytes for name, t in tensors.items() if name.startswith(UP))
    assert [view.name for view in layout(checkpoint).matrices] == [view.name for view in layout(dense).matrices]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["plain", "double", "stored as bfloat16"])
def test_it_is_written_as_bitsandbytes_wrote_it(kind, folders):
    checkpoint, tensors = open_checkpoint(folders[kind]), load_file(folders[kind] / "model.safetensors")
    scheme = checkpoint.schemes[UP]
    written = dict(scheme.tensors(checkpoint.blocks(UP)))
    assert set(written) == {name for name in tensors if name.startswith(UP)}
    assert [TensorSpec.of(name, t) for name, t in written.items()] == scheme.specs()
    for name, tensor in written.items():
        if name.endswith(STATE):
            assert json.loads(bytes(tensor.tolist())) == json.loads(bytes(tensors[name].tolist()))
        else:
            assert torch.equal(tensor, tensors[name])
            assert tensor.dtype == tensors[name].dtype
    if not scheme.double:
        assert torch.equal(written[f"{UP}{STATE}"], tensors[f"{UP}{STATE}"])


SHAPES = {"rows of half a block": (700, 32), "no row on a block": (301, 94), "odd": (1001, 33), "3-D": (5, 70, 61)}


def write(folder, weight, *, name="layer.weight", storage=torch.uint8, change=None, **options):
    """A checkpoint of one quantized weight, and what was quantized."""
    blocks = nf4.quantize(weight, **options)
    scheme = Nf4Scheme(name, blocks.shape, DType.of(blocks.dtype), blocks.block_size, blocks.double, DType.of(storage))
    tensors = dict(scheme.tensors(blocks))
    if change:
        change(tensors)
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / "model.safetensors")
    return blocks


@pytest.mark.parametrize("options", [{}, {"double": True}, {"block_size": 32, "double": True}, {"block_size": 4096}])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_exactly_the_slice_of_the_whole(shape, options, tmp_path):
    weight = torch.randn(SHAPES[shape], generator=torch.Generator().manual_seed(1))
    blocks = write(tmp_path, weight, **options)
    checkpoint = open_checkpoint(tmp_path)
    whole, rows = checkpoint.read("layer.weight"), len(weight)
    assert torch.equal(whole, blocks.dequantize())
    assert torch.equal(whole, by_bitsandbytes(load_file(tmp_path / "model.safetensors"), "layer.weight"))
    for start, stop in [(0, rows), (0, 1), (1, 2), (3, 3), (rows // 2, rows // 2 + 2), (rows - 1, rows), (rows, rows)]:
        assert torch.equal(checkpoint.rows("layer.weight", start, stop), whole[start:stop])
    with pytest.raises(ValueError, match="rows"):
        checkpoint.rows("layer.weight", 0, rows + 1)


def test_analysis_and_extraction_see_dense_weights(folders):
    matrices = {matrix.name: matrix for matrix in analyze(folders["double"]).matrices}
    found = matrices["model.layers.0.mlp.up_proj"]
    assert (found.shape, found.dtype, found.noise) == ((90, 64), "nf4", None)
    base = open_checkpoint(folders["double"])
    result = extract(folders["double"], folders["double"].parent / "dense", rank=4)
    assert len(result.layers) == 14
    change = open_checkpoint(folders["double"].parent / "dense").read(UP).double() - base.read(UP).double()
    layer = next(layer for layer in result.layers if layer.name == UP.removesuffix(".weight"))
    assert layer.fro_norm == pytest.approx(float(change.norm()), rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_live_quantized_model_is_read_from_its_state_dict(folders):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folders["double"], device_map="cpu")
    live, stored = open_checkpoint(model), open_checkpoint(folders["double"])
    assert set(live.tensors) == set(stored.tensors)
    assert all(torch.equal(live.read(name), stored.read(name)) for name in stored.tensors)


def state(**changes):
    """A change of the JSON beside the weight."""

    def change(tensors):
        text = json.loads(bytes(tensors[f"layer.weight{STATE}"].tolist())) | changes
        put_text(tensors, json.dumps(text).encode())

    return change


def put_text(tensors, text):
    tensors[f"layer.weight{STATE}"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)


def put(end, value):
    return lambda tensors: tensors.update({f"layer.weight{end}": value})


HOSTILE = {
    "no codes": (lambda t: t.pop("layer.weight"), "codes are missing"),
    "no scales": (lambda t: t.pop("layer.weight.absmax"), "absmax is missing"),
    "no second level": (lambda t: t.pop("layer.weight.nested_absmax"), "nested_absmax is missing"),
    "no JSON": (lambda t: put_text(t, b"\xff{"), "not JSON"),
    "JSON of another kind": (lambda t: put_text(t, b"[1]"), "not a JSON object"),
    "deep JSON": (lambda t: put_text(t, b"[" * 60000), "not JSON"),
    "endless JSON": (lambda t: put_text(t, b" " * 70000), "short text"),
    "JSON as floats": (put(STATE, torch.ones(9)), "short text"),
    "another type": (state(quant_type="fp4"), "quant_type is fp4, expected nf4"),
    "a block size that is none": (state(blocksize=63), "blocksize is 63"),
    "a block size of another kind": (state(blocksize=True), "blocksize is True"),
    "no shape": (state(shape=None), "shape is None"),
    "an absurd shape": (state(shape=[2**47, 2**47]), "do not fit a weight of shape"),
    "an empty shape": (state(shape=[]), "shape is"),
    "a negative shape": (state(shape=[-40, -50]), "1 to 8 positive sizes"),
    "a shape of floats": (state(shape=[40.0, 50]), "positive sizes"),
    "a shape one row short": (state(shape=[39, 50]), "do not fit a weight of shape \\(39, 50\\)"),
    "a dtype that is none": (state(dtype="float64"), "dtype is float64"),
    "a dtype of another kind": (state(dtype=["float32"]), "dtype is"),
    "an offset that is not finite": (state(nested_offset=float("nan")), "nested_offset is nan"),
    "an offset of text": (state(nested_offset="0.1"), "nested_offset"),
    "another second-level block": (state(nested_blocksize=128), "nested_blocksize is 128"),
    "a map of another type": (put(".quant_map", torch.linspace(-1, 1, 16)), "quant_map is not that of NF4"),
    "a map of NaN": (put(".quant_map", torch.full((16,), float("nan"))), "quant_map is not that of NF4"),
    "a second map that falls": (put(".nested_quant_map", nf4.DYNAMIC_MAP.flip(0)), "does not ascend"),
    "a second map without end": (put(".nested_quant_map", nf4.DYNAMIC_MAP * 1e30), "does not ascend"),
    "scales of another type": (put(".absmax", torch.ones(32)), "absmax is \\(32,\\), float32"),
    "too few scales": (put(".absmax", torch.ones(31, dtype=torch.uint8)), "absmax is \\(31,\\)"),
    "codes that lie down": (put("", torch.ones(1, 1000, dtype=torch.uint8)), "codes of shape \\(1, 1000\\)"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_weight_is_refused_by_name_and_fault(case, tmp_path):
    change, said = HOSTILE[case]
    write(tmp_path, torch.randn(40, 50), double=True, change=change)
    with pytest.raises(FileFormatError, match=rf"layer\.weight: .*{said}"):
        open_checkpoint(tmp_path)


def test_all_faults_come_together(tmp_path):
    def change(tensors):
        state(shape=[40], blocksize=7)(tensors)
        tensors[f"other{STATE}"] = torch.zeros(3, dtype=torch.uint8)

    write(tmp_path, torch.randn(40, 50), change=change)
    with pytest.raises(FileFormatError, match="blocksize is 7") as caught:
        open_checkpoint(tmp_path)
    assert "other: the quantization state is not JSON" in str(caught.value)


def test_other_quantized_weights_stay_skipped(tmp_path):
    codes, found = bitsandbytes.quantize_4bit(torch.randn(64, 64), quant_type="fp4")
    tensors = {"a.weight": codes} | {f"a.weight.{key}": value for key, value in found.as_dict(packed=True).items()}
    del tensors["a.weight.quant_map"]
    tensors |= {"b.qweight": torch.ones(8, 8, dtype=torch.int32), "b.scales": torch.ones(8, 8)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = layout(open_checkpoint(tmp_path))
    assert {left.name for left in found.skipped if "quantized storage" in left.reason} >= {"a.weight", "b.qweight"}


@pytest.mark.filterwarnings("ignore")
def test_a_conv1d_is_read_in_the_orientation_of_its_dense_file(tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=64, n_layer=1, n_head=4)).save_pretrained(tmp_path / "dense")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config, device_map="cpu")
    model.save_pretrained(tmp_path / "nf4")
    found, dense = open_checkpoint(tmp_path / "nf4"), open_checkpoint(tmp_path / "dense")
    assert set(layout(found).matrices) == set(layout(dense).matrices)
    tensors = load_file(tmp_path / "nf4/model.safetensors")
    for name in found.schemes:
        assert torch.equal(found.read(name), by_bitsandbytes(tensors, name).T)
        assert torch.equal(found.rows(name, 3, 9), found.read(name)[3:9])
        assert float((found.read(name) - dense.read(name)).norm() / dense.read(name).norm()) < 0.12
