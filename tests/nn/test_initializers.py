"""Initial values: what the factors hold at the start, and that the model computes what it did before."""

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import eckart
from eckart.errors import MismatchError, OptionError
from eckart.linalg import nf4
from eckart.nn import adapted_modules, initialize
from eckart.nn.loftq import loftq
from eckart.nn.quantized import Nf4Linear

from .layers import seeded
from .models import TOKENS, llama

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
RANK = 3
BATCHES = [{"input_ids": TOKENS, "labels": TOKENS, "attention_mask": torch.ones_like(TOKENS)}]


def planted(out, inner, *, seed=0, rank=8):
    """A weight whose singular values fall by a factor of four, so that its leading vectors are well apart."""
    U = torch.linalg.qr(torch.randn(out, rank, dtype=torch.float64, generator=seeded(seed))).Q
    V = torch.linalg.qr(torch.randn(inner, rank, dtype=torch.float64, generator=seeded(seed + 1))).Q
    return U * 4.0 ** -torch.arange(rank), V.T


class Small(nn.Module):
    """A linear layer, a convolution and an embedding with planted weights."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.linear = nn.Linear(40, 24, dtype=dtype)
        self.conv = nn.Conv1d(24, 12, 3, dtype=dtype)
        self.embedding = nn.Embedding(50, 40, dtype=dtype)
        with torch.no_grad():
            for seed, weight in enumerate((self.linear.weight, self.conv.weight, self.embedding.weight)):
                left, right = planted(weight.shape[0], weight[0].numel(), seed=seed)
                weight.copy_((left @ right).view_as(weight))

    def forward(self, ids):
        return self.conv(self.linear(self.embedding(ids)).transpose(1, 2))


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_start_from_weights_changes_neither_output_nor_base(init, method, dtype):
    model = Small(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.arange(20).view(2, 10)
    expected = model(ids)
    config = eckart.LoRAConfig(rank=RANK, alpha=6, method=method, target=("linear", "conv", "embedding"))
    eckart.inject(model, config)
    initialize(model, init)
    limit = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 0.02}[dtype]  # factors are float32 or wider
    assert (model(ids) - expected).abs().max() <= limit * expected.abs().max()
    assert all(module.factors("default").start is not None for module in adapted_modules(model).values())
    eckart.eject(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_pissa_holds_the_best_approximation():
    model = Small()
    eckart.inject(model, eckart.LoRAConfig(rank=RANK, alpha=12, target=("linear", "conv", "embedding")))
    initialize(model, "pissa")
    for module in adapted_modules(model).values():
        factors = module.factors("default")
        U, S, Vh = torch.linalg.svd(module.rows())
        held = factors.scaling * factors.lora_B.flatten(1) @ factors.lora_A.flatten(1)
        assert torch.allclose(held, U[:, :RANK] * S[:RANK] @ Vh[:RANK], atol=1e-6)
        norms = factors.lora_B.flatten(1).norm(dim=0), factors.lora_A.flatten(1).norm(dim=1)
        assert torch.allclose(*norms, rtol=1e-5), "balanced"


def test_olora_is_the_qr_decomposition():
    model = Small()
    eckart.inject(model, eckart.LoRAConfig(rank=RANK, target="linear"))
    initialize(model, "olora")
    module = adapted_modules(model)["linear"]
    Q, R = torch.linalg.qr(module.rows())
    factors = module.factors("default")
    assert torch.allclose(factors.lora_B @ factors.lora_A, Q[:, :RANK] @ R[:RANK], atol=1e-12)
    assert torch.allclose(factors.lora_B.T @ factors.lora_B, torch.eye(RANK, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_gradients_are_those_of_peft(init):
    ours = Small(torch.float32)
    config = LoraConfig(r=RANK, lora_alpha=6, target_modules=["linear"], init_lora_weights=init)
    theirs = get_peft_model(deepcopy(ours), config)
    eckart.inject(ours, eckart.LoRAConfig(rank=RANK, alpha=6, target="linear"))
    initialize(ours, init)
    layer = theirs.base_model.model.linear
    factors = adapted_modules(ours)["linear"].factors("default")
    ids = torch.arange(20).view(2, 10)
    for model in (theirs, ours):
        model(ids).square().sum().backward()
    # PiSSA's factors are unique up to signs, and OLoRA's too: B·dA and dB·A do not depend on them.
    pairs = (
        (layer.lora_B.default.weight @ layer.lora_A.default.weight.grad, factors.lora_B @ factors.lora_A.grad),
        (layer.lora_B.default.weight.grad @ layer.lora_A.default.weight, factors.lora_B.grad @ factors.lora_A),
    )
    for expected, found in pairs:
        assert expected.abs().max() > 0
        assert (expected - found).abs().max() <= 1e-4 * expected.abs().max()


def test_the_adapter_of_a_moved_start_is_what_training_changed(tmp_path):
    model = Small()
    eckart.inject(model, eckart.LoRAConfig(rank=RANK, target="linear"))
    initialize(model, "pissa")
    with torch.no_grad():
        adapted_modules(model)["linear"].factors("default").lora_B.add_(0.1)
    ids = torch.arange(20).view(2, 10)
    trained = model(ids)
    adapter = eckart.save_adapter(model, tmp_path / "adapter")
    assert adapter["linear"].rank == 2 * RANK
    eckart.eject(model)
    eckart.inject_adapter(model, eckart.load_adapter(tmp_path / "adapter"))
    assert torch.allclose(model(ids), trained, atol=1e-9)


def test_eva_starts_at_the_leading_directions_of_the_inputs():
    model = llama()
    eckart.inject(model, eckart.LoRAConfig(rank=RANK))
    padded = BATCHES[0] | {"attention_mask": torch.ones_like(TOKENS).index_fill_(1, torch.tensor([0]), 0)}
    initialize(model, "eva", batches=[padded])
    module = adapted_modules(model)["model.layers.1.mlp.down_proj"]
    seen = []
    module.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    with torch.no_grad():
        model(**padded)
    X = seen[0][:, 1:].flatten(0, 1).double()
    factors = module.factors("default")
    best = torch.linalg.svdvals(X)[:RANK].square().sum()
    held = (X @ factors.lora_A.double().T).square().sum()
    assert held >= 0.99 * best
    assert held <= best * (1 + 1e-6)
    assert not factors.lora_B.any()
    assert factors.start is None


def test_lora_ga_starts_at_the_leading_directions_of_the_gradient():
    model = llama()
    eckart.inject(model, eckart.LoRAConfig(rank=RANK, alpha=6))
    with torch.no_grad():
        expected = model(**BATCHES[0]).logits
    initialize(model, "lora-ga", batches=BATCHES)
    with torch.no_grad():
        assert torch.allclose(model(**BATCHES[0]).logits, expected, atol=1e-5)
    path = "model.layers.0.self_attn.o_proj"
    factors = adapted_modules(model)[path].factors("default")
    A, B = factors.lora_A.detach().double(), factors.lora_B.detach().double()
    eckart.eject(model)
    model.requires_grad_(True)
    model(**BATCHES[0]).loss.backward()
    gradient = model.get_submodule(path).weight.grad.double()
    size = len(gradient) ** 0.5 / 16
    S = torch.linalg.svdvals(gradient)
    assert torch.allclose(A @ A.T, size * torch.eye(RANK, dtype=torch.float64), atol=1e-5)
    assert (gradient @ A.T).square().sum() / size >= 0.99 * S[:RANK].square().sum()
    assert (B.T @ gradient).square().sum() / size >= 0.95 * S[RANK : 2 * RANK].square().sum()


def test_loftq_loses_less_than_nf4_alone_and_leaves_an_adapter_for_the_dense_base():
    dense = torch.randn(128, 64, generator=seeded(5))
    blocks, A, B = loftq(dense, 16, 2.0)
    alone = (dense - nf4.quantize(dense, double=True).dequantize()).norm()
    assert (dense - blocks.dequantize() - 2 * B @ A).norm() < 0.8 * alone
    model = nn.Sequential(nn.Linear(64, 128))
    with torch.no_grad():
        model[0].weight.copy_(dense)
    x = torch.randn(7, 64, generator=seeded(6))
    expected = model(x)
    eckart.inject(model, eckart.LoRAConfig(rank=16))
    initialize(model, "loftq")
    module = adapted_modules(model)["0"]
    assert isinstance(module.base_layer, Nf4Linear)
    with torch.no_grad():
        with_start = (model(x) - expected).norm()
        base_alone = (module.base_layer(x) - expected).norm()
    assert with_start < 0.8 * base_alone
    assert module.layer("default").delta().abs().max() < 1e-6, "nothing is trained yet, so nothing is to be saved"


REFUSED = {
    "eva without data": ("eva", {}, {}, OptionError, "batches"),
    "eva of a convolution": ("eva", {"target": ("linear", "conv")}, {"batches": BATCHES}, MismatchError, "conv"),
    "lora-ga of a high rank": ("lora-ga", {"rank": 20}, {"batches": BATCHES}, MismatchError, "twice the rank is 40"),
    "no such adapter": ("pissa", {}, {"name": "other"}, MismatchError, "no adapter 'other'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_start_so_is_refused(case):
    init, config, options, kind, words = REFUSED[case]
    model = Small()
    eckart.inject(model, eckart.LoRAConfig(**{"rank": RANK, "target": "linear"} | config))
    with pytest.raises(kind, match=words):
        initialize(model, init, **options)


def test_data_that_is_not_finite_is_refused():
    model = llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[TOKENS[0, 0]] = float("inf")
    eckart.inject(model, eckart.LoRAConfig(rank=RANK))
    with pytest.raises(eckart.EckartError, match="not finite"):
        initialize(model, "eva", batches=BATCHES)
