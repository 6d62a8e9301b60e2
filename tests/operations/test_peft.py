"""PEFT files: written here and loaded by the real PEFT on real models, and the other way round."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from eckart.adapter import Adapter, AdapterLayer
from eckart.errors import MismatchError, NotFiniteError
from eckart.formats import load_adapter
from eckart.operations import extract

from .conftest import save_pair

# PEFT and transformers warn about their own internals; what is tested here is their numbers.
pytestmark = pytest.mark.filterwarnings("ignore")


def outputs(model, inputs):
    with torch.no_grad():
        result = model(**inputs)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


def assert_peft_computes_the_same(make, folder, inputs, *, tolerance=2e-5):
    """PEFT's model with the adapter equals the base with our deltas added to its weights; both differ from the base."""
    from peft import PeftModel

    plain = outputs(make(), inputs)
    by_peft = outputs(PeftModel.from_pretrained(make(), folder).eval(), inputs)
    ours, adapter = make(), load_adapter(folder)
    with torch.no_grad():
        for module, layer in adapter.items():
            owner = ours.get_submodule(module)
            owner.weight = nn.Parameter(owner.weight + layer.delta())
            if layer.bias is not None:
                owner.bias += layer.bias * layer.scaling
        for name, tensor in adapter.modules_to_save.items():
            ours.get_parameter(name).copy_(tensor)
    by_hand = outputs(ours, inputs)
    scale = float(by_hand.abs().max())
    assert float((by_peft - by_hand).abs().max()) <= tolerance * scale
    assert float((by_hand - plain).abs().max()) > 1e-3 * scale
    return by_peft


def tokens(vocabulary, length=12):
    return {"input_ids": torch.randint(0, vocabulary, (2, length), generator=torch.Generator().manual_seed(1))}


def test_a_small_llama_with_every_kind_of_pattern(llama_pair, tmp_path):
    from transformers import LlamaForCausalLM

    extract(llama_pair / "base", llama_pair / "tuned", energy=0.8, output=tmp_path / "a")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["rank_pattern"]
    assert all(key.startswith("^model\\.layers\\.") for key in config["rank_pattern"])
    assert_peft_computes_the_same(
        lambda: LlamaForCausalLM.from_pretrained(llama_pair / "base"), tmp_path / "a", tokens(97)
    )


def test_the_whole_fine_tune_comes_back_through_peft(llama_pair, tmp_path):
    from transformers import LlamaForCausalLM

    extract(llama_pair / "base", llama_pair / "tuned", rank=8, output=tmp_path / "a")
    make = lambda: LlamaForCausalLM.from_pretrained(llama_pair / "base")  # noqa: E731
    by_peft = assert_peft_computes_the_same(make, tmp_path / "a", tokens(97))
    tuned = outputs(LlamaForCausalLM.from_pretrained(llama_pair / "tuned"), tokens(97))
    torch.testing.assert_close(by_peft, tuned, rtol=0, atol=2e-5 * float(tuned.abs().max()))


def test_an_embedding_and_the_output_layer_tied_to_it(llama_pair, tmp_path):
    from transformers import LlamaForCausalLM

    make = lambda: LlamaForCausalLM.from_pretrained(llama_pair / "base")  # noqa: E731
    pair = save_pair(make(), tmp_path, rank=4, names=lambda name: "embed" in name or "q_proj" in name)
    target = ["embed_tokens", "q_proj"]
    found = extract(pair / "base", pair / "tuned", rank=4, output=tmp_path / "a", target=target)
    assert found.adapter["model.embed_tokens"].kind == "embedding"
    assert "lm_head" in found.adapter
    by_peft = assert_peft_computes_the_same(make, tmp_path / "a", tokens(97))
    tuned = outputs(LlamaForCausalLM.from_pretrained(pair / "tuned"), tokens(97))
    torch.testing.assert_close(by_peft, tuned, rtol=0, atol=5e-5 * float(tuned.abs().max()))


def test_a_budget_counts_the_copy_of_a_tied_output_layer(llama_pair, tmp_path):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(llama_pair / "base")
    pair = save_pair(model, tmp_path, rank=4, names=lambda name: "embed" in name or "q_proj" in name)
    target = ["embed_tokens", "q_proj"]
    found = extract(pair / "base", pair / "tuned", budget=1500, target=target)
    assert "lm_head" in found.adapter
    assert 1000 < found.adapter.params <= 1500


def test_gpt2_with_conv1d(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    size = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 50, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0))
    pair = save_pair(model, tmp_path, rank=3, names=lambda name: ".c_" in name)
    found = extract(pair / "base", pair / "tuned", rank=3, output=tmp_path / "a")
    assert {layer.kind for layer in found.adapter.values()} == {"conv1d"}
    assert found.adapter["transformer.h.0.attn.c_attn"].lora_A.shape == (3, 32)
    assert found.adapter["transformer.h.0.attn.c_attn"].lora_B.shape == (96, 3)
    assert found.error < 1e-4
    make = lambda: GPT2LMHeadModel.from_pretrained(pair / "base")  # noqa: E731
    by_peft = assert_peft_computes_the_same(make, tmp_path / "a", tokens(50))
    tuned = outputs(GPT2LMHeadModel.from_pretrained(pair / "tuned"), tokens(50))
    torch.testing.assert_close(by_peft, tuned, rtol=0, atol=5e-5 * float(tuned.abs().max()))


class Pixels(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 24, (1, 5), stride=2, bias=False)
        self.head = nn.Linear(24, 10)

    def forward(self, pixels):
        hidden = self.conv2(self.conv1(pixels).relu()).relu()
        return SimpleNamespace(logits=self.head(hidden.mean((2, 3))))


def test_a_convolution(tmp_path):
    torch.manual_seed(0)
    base = Pixels().eval()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for weight in (tuned.conv1.weight, tuned.conv2.weight, tuned.head.weight):
            weight.add_((torch.randn(len(weight), 4) @ torch.randn(4, weight[0].numel())).view_as(weight), alpha=0.1)
    found = extract(base, tuned, rank=4, output=tmp_path / "a", target=["conv1", "conv2", "head"])
    assert found.adapter["conv2"].lora_A.shape == (4, 16, 1, 5)
    assert found.adapter["conv2"].lora_B.shape == (24, 4, 1, 1)
    assert found.error < 1e-4
    inputs = {"pixels": torch.randn(2, 3, 9, 9)}
    by_peft = assert_peft_computes_the_same(lambda: copy.deepcopy(base), tmp_path / "a", inputs)
    expected = outputs(tuned, inputs)
    torch.testing.assert_close(by_peft, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_minilm_with_its_norms_and_biases(minilm, tmp_path):
    from transformers import AutoModel

    generator = torch.Generator().manual_seed(5)
    tuned = load_file(minilm / "model.safetensors")
    for name, tensor in tuned.items():
        if tensor.is_floating_point() and "position_ids" not in name:
            tuned[name] = tensor + 0.02 * max(float(tensor.std()), 0.1) * torch.randn(tensor.shape, generator=generator)
    (tmp_path / "tuned").mkdir()
    save_file(tuned, tmp_path / "tuned/model.safetensors", metadata={"format": "pt"})
    (tmp_path / "tuned/config.json").write_text((minilm / "config.json").read_text())
    saved = ["norm", "bias"]
    found = extract(minilm, tmp_path / "tuned", rank=384, output=tmp_path / "a", modules_to_save=saved)
    assert sum(layer.bias is not None for layer in found.adapter.values()) == 37
    assert sum("LayerNorm" in name for name in found.adapter.modules_to_save) == 26
    make = lambda: AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()  # noqa: E731
    by_peft = assert_peft_computes_the_same(make, tmp_path / "a", tokens(30000))
    embeddings = AutoModel.from_pretrained(tmp_path / "tuned", dtype=torch.float32).eval()
    with torch.no_grad():  # embeddings were left out: take the base's, and the fine-tune is whole again
        for name, parameter in make().embeddings.named_parameters():
            if "LayerNorm" not in name:
                embeddings.embeddings.get_parameter(name).copy_(parameter)
    expected = outputs(embeddings, tokens(30000))
    torch.testing.assert_close(by_peft, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_smollm2_itself(smollm2_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    make = lambda: AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval()  # noqa: E731
    base = load_file(smollm2_folder / "model.safetensors")
    generator = torch.Generator().manual_seed(2)
    tuned = {
        name: (t.float() + 1e-3 * torch.randn(t.shape, generator=generator)).to(t.dtype) if "proj" in name else t
        for name, t in base.items()
    }
    found = extract(base, tuned, rank=16, output=tmp_path / "a")
    assert len(found.layers) == 210
    assert_peft_computes_the_same(make, tmp_path / "a", tokens(49000, 24), tolerance=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 7},
        {"r": 4, "lora_alpha": 7, "use_rslora": True},
        {"r": 4, "lora_alpha": 6, "rank_pattern": {"up_proj": 2, "layers.1.self_attn.q_proj": 6}},
        {"r": 4, "lora_alpha": 6, "alpha_pattern": {r".*\.0\..*v_proj": 3}, "rank_pattern": {"down_proj": 1}},
        {"r": 3, "use_dora": True},
        {"r": 3, "modules_to_save": ["norm"]},
        {"r": 2, "bias": "lora_only"},
    ],
    ids="+".join,
)
def test_adapters_that_peft_wrote_are_read_and_written_back_the_same(llama_pair, tmp_path, options):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaForCausalLM

    def make():
        return LlamaForCausalLM.from_pretrained(llama_pair / "base").eval()

    torch.manual_seed(4)
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    model = get_peft_model(make(), LoraConfig(target_modules=targets, init_lora_weights=False, **options)).eval()
    model.save_pretrained(tmp_path / "theirs")
    adapter = replace(load_adapter(tmp_path / "theirs"), keep_scales=True)
    adapter.save(tmp_path / "ours")
    again = PeftModel.from_pretrained(make(), tmp_path / "ours").eval()
    torch.testing.assert_close(outputs(again, tokens(97)), outputs(model, tokens(97)), rtol=0, atol=0)
    theirs, ours = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours"))
    assert set(theirs) == set(ours)
    for module, layer in adapter.items():
        if layer.magnitude is None:
            expected = model.get_submodule(f"base_model.model.{module}").get_delta_weight("default")
            torch.testing.assert_close(layer.delta(), expected, rtol=1e-5, atol=1e-6)


class Dreams(Pixels):
    """Pixels with a table of styles."""

    def __init__(self):
        super().__init__()
        self.styles = nn.Embedding(7, 24)
        self.conv3 = nn.Conv1d(24, 5, 3)

    def forward(self, pixels):
        hidden = self.conv2(self.conv1(pixels).relu()).relu().mean(2)
        return SimpleNamespace(logits=self.head(hidden.mean(2) + self.styles.weight[0]), more=self.conv3(hidden))


def test_dora_of_convolutions_and_embeddings_has_the_shapes_that_peft_loads(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    base, inputs = Dreams().eval(), {"pixels": torch.randn(2, 3, 12, 19)}
    targets = ["conv1", "conv2", "conv3", "head", "styles"]
    config = LoraConfig(r=3, use_dora=True, init_lora_weights=False, target_modules=targets)
    model = get_peft_model(copy.deepcopy(base), config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "magnitude" in name:
                tensor.mul_(1 + 0.3 * torch.rand(tensor.shape))
    model.save_pretrained(tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs")
    assert {name: tuple(layer.magnitude.shape) for name, layer in adapter.items()} == {
        "conv1": (16,), "conv2": (24,), "conv3": (5,), "head": (10,), "styles": (24,),
    }  # fmt: skip
    adapter.save(tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours"))
    assert {name: t.shape for name, t in theirs.items()} == {name: t.shape for name, t in ours.items()}
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").eval()
    with torch.no_grad():
        expected, found = model(**inputs), again(**inputs)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=0)
    torch.testing.assert_close(found.more, expected.more, rtol=0, atol=0)


@pytest.mark.parametrize("with_experts", [False, True])
@pytest.mark.parametrize("keep_scales", [False, True])
def test_every_scale_survives_also_for_readers_of_one_alpha(tmp_path, keep_scales, with_experts):
    def layer(rank, alpha, rslora, kind="linear"):
        bias = None if with_experts else torch.randn(64)
        return AdapterLayer(torch.randn(rank, 64), torch.randn(64, rank), alpha, rslora=rslora, kind=kind, bias=bias)

    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qo"]
    layers = [layer(4, 8, True), layer(4, 8, False), layer(2, 3, True), layer(9, 5, False)]
    if with_experts:
        layers += [layer(rank, alpha, True, "expert") for rank, alpha in ((2, 3), (3, 7))]
        names += [f"model.layers.0.mlp.experts.gate_up_proj[{expert}]" for expert in range(2)]
    adapter = Adapter(dict(zip(names, layers, strict=True)), keep_scales=keep_scales)
    adapter.save(tmp_path / "a")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert (config["r"], bool(config["alpha_pattern"])) == (9, keep_scales)
    for name, again in load_adapter(tmp_path / "a").items():
        torch.testing.assert_close(again.delta(), adapter[name].delta())
        if again.bias is not None:
            torch.testing.assert_close(again.bias * again.scaling, adapter[name].bias * adapter[name].scaling)
        assert keep_scales or (again.alpha, again.rslora) == (config["lora_alpha"], False)


@pytest.mark.parametrize("alpha", [1e3, 1e-12], ids=["too large", "too small"])
def test_a_scale_that_half_precision_cannot_carry_in_a_factor_is_refused(alpha, tmp_path):
    factors = [(torch.randn(2, 4).half(), torch.full((4, 2), 1e3).half(), alpha) for alpha in (1, 1, alpha)]
    adapter = Adapter({f"layers.{i}": AdapterLayer(*parts) for i, parts in enumerate(factors)})
    with pytest.raises(NotFiniteError, match="set `keep_scales`"):
        adapter.save(tmp_path / "a")


def test_dora_and_plain_layers_do_not_mix(tmp_path):
    plain = AdapterLayer(torch.randn(2, 4), torch.randn(4, 2), 2)
    other = replace(plain, magnitude=torch.ones(4))
    with pytest.raises(MismatchError, match=r"a\.plain"):
        Adapter({"a.plain": plain, "a.other": other}).save(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_plain_layer_next_to_one_with_a_bias_gets_a_bias_of_zeros(tmp_path):
    plain = AdapterLayer(torch.randn(2, 4), torch.randn(4, 2), 2)
    Adapter({"a.plain": plain, "a.other": replace(plain, bias=torch.ones(4))}).save(tmp_path / "a")
    saved = load_adapter(tmp_path / "a")
    assert saved["a.plain"].bias.tolist() == [0.0] * 4
    assert saved["a.other"].bias.tolist() == [1.0] * 4
    assert all(torch.equal(layer.delta(), plain.delta()) for layer in saved.values())
