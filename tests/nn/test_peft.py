"""Adapters beside real PEFT: the same outputs and gradients, and files that go both ways."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import eckart
from eckart.errors import MismatchError
from eckart.nn import adapted_modules

from .layers import KINDS, Alone, build, example, randomise, seeded, train_a_little
from .models import TOKENS, Twice, gpt2, llama, loss_of, trainable

pytestmark = [  # transformers deprecates what PEFT asks it; PEFT takes any bias for a factor that lost its shape
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'. 1 LoRA tensor.*lora_B.bias:peft.utils.warning.PeftWarning"),
]
METHODS = ("lora", "rslora", "dora", "lora_bias")
BIASES = {"none": "none", "lora_only": "lora-only", "all": "all"}


def peft_config(method, target, **options):
    return LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=[target] if isinstance(target, str) else list(target),
        use_rslora=method == "rslora",
        use_dora=method == "dora",
        lora_bias=method == "lora_bias",
        **options,
    )


def eckart_config(method, target, **options):
    options |= {"rslora": {"rslora": True}, "dora": {"method": "dora"}}.get(method, {})
    return eckart.LoRAConfig(rank=3, alpha=6, target=target, **options)


def train_theirs_a_little(model):
    for seed, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        with torch.no_grad():
            if parameter.ndim == 1 or parameter.shape[0] == 1:  # magnitudes and biases
                parameter.mul_(1 + torch.rand(parameter.shape, generator=seeded(seed), dtype=parameter.dtype)).add_(0.1)
            else:
                randomise(parameter, seed, scale=0.5)


def gradients(model, loss):
    """Gradients by a name that both libraries share: the module, and the part."""
    model.zero_grad()
    loss(model).backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        name = name.removeprefix("base_model.model.")  # noqa: PLW2901
        module, _, part = name.replace(".base_layer.", ".").partition(".adapters.default.")
        for theirs, ours in PARTS.items():
            if name.endswith(theirs):
                module, part = name.removesuffix(theirs), ours
        found[module, part] = parameter.grad.reshape(-1).clone()
    return found


PARTS = {
    ".lora_A.default.weight": "lora_A",
    ".lora_B.default.weight": "lora_B",
    ".lora_embedding_A.default": "lora_A",
    ".lora_embedding_B.default": "lora_B",
    ".lora_B.default.bias": "lora_bias",
    ".lora_magnitude_vector.default.weight": "magnitude",
}


def assert_equal_in_training(ours, theirs, loss):
    torch.testing.assert_close(loss(ours), loss(theirs), rtol=1e-12, atol=1e-12)
    found, expected = gradients(ours, loss), gradients(theirs, loss)
    assert found.keys() == expected.keys()
    for key, grad in expected.items():
        torch.testing.assert_close(found[key], grad, rtol=1e-10, atol=1e-11, msg=str(key))


def sum_of_squares(kind):
    x = example(kind)
    return lambda model: model(x).pow(2).sum()


# PEFT has no lora_bias for embeddings.
CASES = [(kind, method) for kind in KINDS for method in METHODS if (kind, method) != ("embedding", "lora_bias")]


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_an_adapter_that_peft_wrote_computes_and_trains_as_there(kind, method, bias, tmp_path):
    theirs = get_peft_model(build(kind), peft_config(method, "layer", bias=bias, fan_in_fan_out=kind == "Conv1D"))
    train_theirs_a_little(theirs)
    theirs.save_pretrained(tmp_path)
    ours = build(kind)
    eckart.inject_adapter(ours, eckart.load_adapter(tmp_path))
    assert_equal_in_training(ours, theirs, sum_of_squares(kind))
    eckart.save_adapter(ours, tmp_path / "back")
    back = PeftModel.from_pretrained(build(kind), tmp_path / "back", is_trainable=True)
    assert_equal_in_training(ours, back, sum_of_squares(kind))


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(("kind", "method"), [case for case in CASES if case[1] != "lora_bias"])
def test_an_adapter_from_here_computes_and_trains_in_peft(kind, method, bias, tmp_path):
    ours = build(kind)
    eckart.inject(ours, eckart_config(method, "layer", bias=BIASES[bias]))
    train_a_little(ours)
    if bias != "none" and kind != "embedding":
        randomise(ours.layer.bias, 3)
    eckart.save_adapter(ours, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(build(kind), tmp_path / "adapter", is_trainable=True)
    assert_equal_in_training(ours, theirs, sum_of_squares(kind))


TARGETS = {
    "gpt2": (gpt2, ("c_attn", "c_proj", "c_fc", "wte")),
    "llama": (llama, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens")),
}


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("architecture", TARGETS)
def test_whole_models_train_as_in_peft_and_back_again(architecture, method, tmp_path):
    build_model, targets = TARGETS[architecture]
    ours = build_model()
    eckart.inject(ours, eckart_config(method, targets))
    train_a_little(ours)
    eckart.save_adapter(ours, tmp_path / "ours")
    theirs = PeftModel.from_pretrained(build_model(), tmp_path / "ours", is_trainable=True)
    assert_equal_in_training(ours, theirs, loss_of)
    theirs.save_pretrained(tmp_path / "theirs")
    again = build_model()
    eckart.inject_adapter(again, eckart.load_adapter(tmp_path / "theirs"))
    assert_equal_in_training(again, theirs, loss_of)


@pytest.mark.parametrize(
    ("architecture", "target"), [("gpt2", "c_attn"), ("llama", "all-linear"), ("llama", "embed_tokens")]
)
def test_the_modules_taken_are_those_that_peft_takes(architecture, target):
    build_model, _ = TARGETS[architecture]
    ours, theirs = build_model(), build_model()
    injection = eckart.inject(ours, eckart_config("lora", target))
    config = peft_config("lora", target, fan_in_fan_out=architecture == "gpt2")
    if target == "all-linear":
        config.target_modules = target
    adapted = get_peft_model(theirs, config)
    names = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in trainable(adapted)}
    assert set(injection.modules) == names


def test_several_steps_of_training_end_where_peft_ends(tmp_path):
    ours = gpt2()
    eckart.inject(ours, eckart_config("dora", "c_attn", bias="all"))
    eckart.save_adapter(ours, tmp_path / "start")
    theirs = PeftModel.from_pretrained(gpt2(), tmp_path / "start", is_trainable=True)
    for model in (ours, theirs):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(10):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
    torch.testing.assert_close(loss_of(ours), loss_of(theirs), rtol=1e-9, atol=0)


def test_with_dropout_dora_keeps_its_base_whole_where_peft_drops_its_input_too(tmp_path):
    """PEFT adds (scale − 1)·W·drop(x), which at the start is nothing in the mean alone; ours scales W·x itself."""
    ours = build("linear")
    eckart.inject(ours, eckart_config("dora", "layer", dropout=0.5))
    before = build("linear")(example("linear"))
    with torch.no_grad():
        ours.layer.adapters["default"].magnitude.mul_(2)
    bias = ours.layer.base_layer.bias
    for _ in range(3):
        torch.testing.assert_close(ours(example("linear")), 2 * (before - bias) + bias, rtol=1e-12, atol=1e-12)
    eckart.save_adapter(ours, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(build("linear"), tmp_path / "adapter", is_trainable=True)
    theirs.base_model.model.layer.lora_dropout["default"] = nn.Dropout(0.5)
    assert not torch.allclose(theirs.train()(example("linear")), 2 * (before - bias) + bias)
    torch.testing.assert_close(theirs.eval()(example("linear")), ours.eval()(example("linear")), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_stored_adapter_trains_in_float32_and_is_not_changed_itself(stored, tmp_path):
    model = llama(dtype=torch.float32)
    eckart.inject(model, eckart_config("dora", "q_proj"))
    train_a_little(model)
    adapter = eckart.adapter_of(model)
    for path in adapter:
        layer = adapter.layers[path]
        adapter.layers[path] = type(layer)(**{**vars(layer), "lora_A": layer.lora_A.to(stored)})
    before = {path: layer.lora_A.clone() for path, layer in adapter.items()}
    again = llama(dtype=torch.float32)
    eckart.inject_adapter(again, adapter)
    factors = [module.adapters["default"] for module in adapted_modules(again).values()]
    assert {parameter.dtype for part in factors for parameter in part.parameters()} == {torch.float32}
    with torch.no_grad():
        for part in factors:
            part.lora_A.add_(1)
    assert all(torch.equal(adapter[path].lora_A, before[path]) for path in before)


@pytest.mark.parametrize("trained", [True, False])
def test_a_loaded_adapter_trains_or_stays_frozen_with_its_biases(trained, tmp_path):
    theirs = get_peft_model(gpt2(), peft_config("lora", "c_attn", bias="all", fan_in_fan_out=True))
    train_theirs_a_little(theirs)
    theirs.save_pretrained(tmp_path)
    ours = gpt2()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    eckart.inject_adapter(ours, eckart.load_adapter(tmp_path), trainable=trained)
    names = {name.replace(".base_layer.", ".") for name in trainable(ours) if ".adapters." not in name}
    assert names == ({name for name, _ in gpt2().named_parameters() if name.endswith(".bias")} if trained else set())
    torch.testing.assert_close(loss_of(ours), loss_of(theirs), rtol=1e-12, atol=0)
    eckart.save_adapter(ours, tmp_path / "again")
    twice = PeftModel.from_pretrained(gpt2(), tmp_path / "again")
    torch.testing.assert_close(loss_of(twice), loss_of(theirs), rtol=1e-12, atol=0)
    eckart.eject(ours)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_what_a_loaded_adapter_does_not_fit_is_refused_with_every_fault(tmp_path):
    model = llama()
    eckart.inject(model, eckart_config("lora", ("q_proj", "up_proj")))
    eckart.save_adapter(model, tmp_path / "adapter")
    other = nn.Module()
    other.model = nn.Module()
    other.model.layers = nn.ModuleList([nn.Module() for _ in range(2)])
    for layer in other.model.layers:
        layer.self_attn, layer.mlp = nn.Module(), nn.Module()
        layer.self_attn.q_proj = nn.Linear(8, 16)
        layer.mlp.up_proj = nn.Embedding(24, 16)
    with pytest.raises(MismatchError) as refusal:
        eckart.inject_adapter(other, eckart.load_adapter(tmp_path / "adapter"))
    words = str(refusal.value)
    assert words.count("q_proj") == words.count("up_proj") == 2
    assert "for a linear layer of shape (16, 16), the model has a linear of (16, 8)" in words
    assert not adapted_modules(other)
    assert all(parameter.requires_grad for parameter in other.parameters())


@pytest.mark.parametrize("part", ["linear1", "self_attn.out_proj"])
def test_an_adapter_that_torch_would_ignore_is_refused(part, tmp_path):
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    plain = Alone(nn.Linear(8, 8))
    eckart.inject(plain, eckart_config("lora", "layer"))
    adapter = eckart.adapter_of(plain)
    renamed = type(adapter)({part: adapter["layer"]})
    with pytest.raises(MismatchError, match="without calling it"):
        eckart.inject_adapter(layer, renamed)


def test_a_shared_module_carries_a_loaded_adapter_at_all_its_places():
    model, again = Twice().double(), Twice().double()
    again.load_state_dict(model.state_dict())
    eckart.inject(model, eckart.LoRAConfig(rank=2, target="shared"))
    train_a_little(model)
    eckart.inject_adapter(again, eckart.adapter_of(model))
    x = torch.randn(3, 6, generator=seeded(0), dtype=torch.float64)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_a_name_behind_the_prefix_of_the_whole_model_is_found():
    inner = llama().model
    eckart.inject(inner, eckart_config("lora", "q_proj"))
    train_a_little(inner)
    whole = llama()
    injection = eckart.inject_adapter(whole, eckart.adapter_of(inner))
    assert injection.modules == tuple(f"model.{name}" for name in eckart.adapter_of(inner))
    torch.testing.assert_close(whole.model(TOKENS)[0], inner(TOKENS)[0], rtol=0, atol=0)
