"""Layers in four bits: what a dense layer with the dequantized weight computes, in an eighth of its memory."""

import copy
import gc

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from eckart.checkpoint import open_checkpoint
from eckart.errors import MismatchError, NotFiniteError, OptionError
from eckart.linalg import nf4
from eckart.nn import LoRAConfig, adapter_of, inject
from eckart.nn.frozen import frozen_weight
from eckart.nn.linear4bit import blocks_of
from eckart.nn.quantize import quantize_model
from eckart.nn.quantized import Nf4Linear, by_bitsandbytes

OUT, IN = 48, 64


def layer(*, bias=True, dtype=torch.float32, double=True):
    """A layer in NF4, and the dense one that it stands for."""
    torch.manual_seed(0)
    dense = nn.Linear(IN, OUT, bias=bias, dtype=dtype)
    packed = Nf4Linear(nf4.quantize(dense.weight, double=double), copy.deepcopy(dense.bias))
    dense.weight = nn.Parameter(packed.blocks.dequantize(), requires_grad=False)
    return packed, dense


class Net(nn.Module):
    """Two linear layers, one of them at two places, and an output layer tied to the embedding."""

    def __init__(self, width=64):
        super().__init__()
        self.embed_tokens = nn.Embedding(20, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)
        self.again = self.down
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, 20, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, tokens):
        x = self.down(torch.relu(self.up(self.embed_tokens(tokens))))
        return self.lm_head(self.norm(self.again(torch.cat([x, x], dim=-1))))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_output_and_gradients_are_those_of_the_dense_layer(dtype, double, bias):
    packed, dense = layer(bias=bias, dtype=dtype, double=double)
    x = torch.randn(2, 5, IN, dtype=dtype)
    g = torch.randn(2, 5, OUT, dtype=dtype)
    results = []
    for module in (packed, dense):
        here = x.clone().requires_grad_()
        y = module(here)
        y.backward(g)
        results.append((y.detach(), here.grad, None if module.bias is None else module.bias.grad))
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]
    for mine, theirs in zip(*results, strict=True):
        if theirs is not None:
            assert mine.dtype == theirs.dtype
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_the_gradient_is_that_of_finite_differences():
    packed, _ = layer(double=False)
    packed.bias = nn.Parameter(packed.bias.double())
    x = torch.randn(3, IN, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(packed, (x,))


def test_nothing_dense_is_kept_for_the_backward_pass():
    packed, _ = layer()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: None):
        packed(torch.randn(3, IN, requires_grad=True))
    assert max(kept, default=0) < OUT * IN / 8


def test_autocast_decides_the_dtype():
    packed, dense = layer()
    x = torch.randn(3, IN)
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(x).dtype == dense(x).dtype == torch.bfloat16
        torch.testing.assert_close(packed(x), dense(x), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(("double", "most"), [(True, 0.53), (False, 0.57)])
def test_a_parameter_takes_little_more_than_half_a_byte(double, most):
    packed = Nf4Linear(nf4.quantize(torch.randn(512, 1024), double=double))
    assert sum(buffer.nbytes for buffer in packed.buffers()) / (512 * 1024) < most


@pytest.mark.parametrize("double", [True, False])
def test_copies_and_state_dicts_hold_the_same_weight(double):
    packed, _ = layer(double=double)
    expected = packed.dense(torch.float32)
    alike = copy.deepcopy(packed)
    assert torch.equal(alike.dense(torch.float32), expected)
    assert alike.codes.data_ptr() != packed.codes.data_ptr()
    other, _ = layer(double=not double)
    torch.nn.init.ones_(other.bias)
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other.dense(torch.float32), expected)
    assert torch.equal(other.bias, packed.bias)
    other.codes.zero_()
    assert torch.equal(packed.dense(torch.float32), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("weight.absmax"), "absmax is missing"),
        (lambda state: [state.pop(key) for key in list(state) if key != "bias"], "Missing key.*weight"),
        (lambda state: state.update(extra=torch.ones(1)), "Unexpected key.*extra"),
        (lambda state: state.update(layer(double=False)[1].state_dict()), "not a weight in NF4"),
        (
            lambda state: state.update(Nf4Linear(nf4.quantize(torch.ones(8, 8), double=True)).state_dict()),
            r"\(8, 8\), exp",
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(change, said):
    packed, _ = layer()
    state = dict(packed.state_dict())
    change(state)
    with pytest.raises(RuntimeError, match=said):
        packed.load_state_dict(state)


def test_a_cast_leaves_the_scales_as_they_are():
    packed, _ = layer()
    expected = packed.dense(torch.float32)
    packed.to(torch.bfloat16).double()
    assert packed.bias.dtype == torch.float64
    assert torch.equal(packed.dense(torch.float32), expected)
    assert packed.to("meta").absmax.is_meta


@pytest.mark.parametrize("double", [True, False])
def test_a_model_computes_with_dequantized_weights(double):
    torch.manual_seed(0)
    model = Net()
    dense = copy.deepcopy(model)
    assert quantize_model(model, double=double) == ["up", "down"]
    assert model.again is model.down
    assert isinstance(model.up, Nf4Linear)
    assert type(model.lm_head) is nn.Linear
    assert model.lm_head.weight is model.embed_tokens.weight
    with torch.no_grad():
        for name in ("up", "down"):
            weight = dense.get_submodule(name).weight
            weight.copy_(nf4.quantize(weight, double=double).dequantize())
    tokens = torch.randint(20, (2, 7))
    torch.testing.assert_close(model(tokens), dense(tokens))
    assert quantize_model(model) == []


@pytest.mark.slow
def test_dense_weights_are_freed_one_after_another(monkeypatch):
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    alive = []
    quantize = nf4.quantize

    def counting(weight, **options):
        gc.collect()
        alive.append(sum(type(o) is nn.Parameter and o.shape == (64, 64) for o in gc.get_objects()))
        return quantize(weight, **options)

    monkeypatch.setattr("eckart.nn.quantize.nf4.quantize", counting)
    quantize_model(model)
    assert alive == [4, 3, 2, 1]


def test_conv1d_is_quantized_as_bitsandbytes_does_it(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=30, n_embd=32, n_layer=1, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0)
    ).eval()
    weight = model.transformer.h[0].attn.c_attn.weight.detach().clone()
    assert len(quantize_model(model, double=False)) == 4
    packed = model.transformer.h[0].attn.c_attn
    assert torch.equal(packed.dense(torch.float32), nf4.quantize(weight.T).dequantize())
    assert torch.equal(open_checkpoint(model).read("transformer.h.0.attn.c_attn.weight"), packed.dense(torch.float32).T)
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_a_quantized_model_is_read_and_saved_like_a_checkpoint(tmp_path):
    model = Net()
    quantize_model(model)
    state = model.state_dict()
    live = open_checkpoint(model)
    assert torch.equal(live.read("up.weight"), model.up.dense(torch.float32))
    save_file(
        {name: t for name, t in state.items() if name != "lm_head.weight" and "again" not in name},
        tmp_path / "model.safetensors",
    )
    stored = open_checkpoint(tmp_path)
    assert torch.equal(stored.read("down.weight"), model.down.dense(torch.float32))
    other = Net()
    quantize_model(other)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    tokens = torch.randint(20, (2, 7))
    assert torch.equal(other(tokens), model(tokens))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters_take_the_gradients_that_they_take_on_dequantized_weights(method):
    torch.manual_seed(0)
    packed = Net()
    dense = copy.deepcopy(packed)
    quantize_model(packed)
    tokens, gradients = torch.randint(20, (4, 7)), []
    for name in ("up", "down"):
        dense.get_submodule(name).weight.data.copy_(packed.get_submodule(name).dense(torch.float32))
    for model in (packed, dense):
        inject(model, LoRAConfig(rank=2, target=("up", "down"), method=method))
        nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(gradient is not None for gradient in gradients[0].values())
    torch.testing.assert_close(*gradients)
    assert set(adapter_of(packed)) == {"up", "down"}


class TestBitsandbytes:
    """Its layers, its operator and ours."""

    bnb = pytest.importorskip("bitsandbytes")

    def linear(self, dtype=torch.float32, **options):
        torch.manual_seed(0)
        theirs = self.bnb.nn.Linear4bit(IN, OUT, quant_type="nf4", compute_dtype=dtype, **options)
        return theirs.to(dtype).to("cpu")

    @pytest.mark.parametrize("double", [True, False])
    def test_its_operator_gives_the_values_of_ours(self, double):
        blocks = nf4.quantize(torch.randn(OUT, IN), double=double)
        kernel = torch.ops.bitsandbytes.dequantize_4bit.default
        assert torch.equal(by_bitsandbytes(blocks, kernel), blocks.dequantize())

    @pytest.mark.parametrize("double", [True, False])
    def test_its_layer_is_read_and_becomes_ours(self, double):
        theirs = self.linear(compress_statistics=double).train()
        weight = theirs.weight
        if weight.quant_state is None:
            theirs.weight = weight = weight._quantize(torch.device("cpu"))
        expected = self.bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        assert torch.equal(blocks_of(theirs).dequantize(), expected)
        assert torch.equal(frozen_weight(theirs, torch.float32), expected)
        model = nn.Sequential(theirs)
        x = torch.randn(3, IN, requires_grad=True)
        y = model(x)
        assert quantize_model(model) == ["0"]
        torch.testing.assert_close(model(x), y)
        assert model[0].codes.data_ptr() == weight.data_ptr()

    def test_one_whose_scales_it_rounded_is_refused(self):
        theirs = self.linear()
        theirs.weight.quant_state.packing_format_for_cpu = True
        with pytest.raises(MismatchError, match="load it again"):
            blocks_of(theirs)


def _with_hook():
    model = Net()
    model.up.register_forward_hook(lambda *_: None)
    return model


class Experts(nn.Module):
    """A stack of matrices in one parameter."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ParameterDict({"up": nn.Parameter(torch.ones(2, 4, 4))})


class Odd(nn.Linear):
    """More than a linear layer."""

    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("model", "options", "error", "said"),
    [
        (Net, {"target": "lm_head"}, MismatchError, "'lm_head': lm_head shares the weight of embed_tokens"),
        (Net, {"target": ["q_proj"]}, MismatchError, "'q_proj' matches nothing"),
        (Experts, {"target": ".*"}, MismatchError, "experts.up: expert, and nf4 is for linear layers"),
        (Net, {"target": "norm"}, MismatchError, "is left out: norm"),
        (Net, {"block_size": 48}, OptionError, "`block_size` is 48"),
        (lambda: Net().double(), {}, MismatchError, "up: float64"),
        (lambda: nn.Sequential(Odd(4, 4)), {}, MismatchError, "Odd is more than a linear layer"),
        (_with_hook, {"target": "up"}, MismatchError, "up: it has hooks"),
        (lambda: nn.Sequential(nn.Linear(4, 4, device="meta")), {}, MismatchError, "no values yet"),
        (lambda: nn.MultiheadAttention(8, 2), {"target": "out_proj"}, MismatchError, "without calling it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_quantized_is_refused(model, options, error, said):
    with pytest.raises(error, match=said):
        quantize_model(model(), **options)


def test_a_model_with_adapters_or_without_finite_weights_is_refused_unchanged():
    model = Net()
    with torch.no_grad():
        model.down.weight[0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match="down"):
        quantize_model(model)
    assert type(model.up) is nn.Linear
    inject(model, LoRAConfig(rank=1, target=("up",)))
    with pytest.raises(MismatchError, match="quantize it first"):
        quantize_model(model)
