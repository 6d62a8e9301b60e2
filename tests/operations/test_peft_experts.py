"""Fused experts against the real PEFT: what it computes and writes, read one expert at a time and written back."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from eckart.adapter import Adapter, AdapterLayer, TensorOutline
from eckart.errors import FileFormatError, MismatchError
from eckart.formats import load_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_experts_per_tok": 2,
}  # fmt: skip


def moe(kind, **changes):
    """A tiny random mixture of experts."""
    import transformers

    torch.manual_seed(0)
    names = {"mixtral": "Mixtral", "qwen3": "Qwen3Moe", "gpt_oss": "GptOss", "llama4": "Llama4"}
    config = {"llama4": "Llama4TextConfig"}.get(kind, f"{names[kind]}Config")
    own = {
        "mixtral": {"num_local_experts": 4},
        "qwen3": {"num_experts": 4, "moe_intermediate_size": 24},
        "gpt_oss": {"num_local_experts": 4, "layer_types": ["full_attention"] * 2},
        "llama4": {"num_local_experts": 4, "intermediate_size_mlp": 48, "num_experts_per_tok": 1},
    }[kind]
    options = SIZES | own | changes
    return getattr(transformers, f"{names[kind]}ForCausalLM")(getattr(transformers, config)(**options)).eval()


def logits(model):
    with torch.no_grad():
        return model(torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(1))).logits


def peft_folder(kind, folder, parameters, **options):
    """An adapter that PEFT made and wrote, and what its model computes."""
    from peft import LoraConfig, get_peft_model

    base = moe(kind, **options.pop("sizes", {}))
    owner = "feed_forward" if kind == "llama4" else "mlp"
    targets = [f"{owner}.experts.{parameter}" for parameter in parameters]
    config = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj"], "target_parameters": targets} | options
    torch.manual_seed(7)
    model = get_peft_model(base, LoraConfig(init_lora_weights=False, **config)).eval()
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(tensor, std=0.2)
    model.save_pretrained(folder)
    return model


def add_densely(model, adapter, *, transposed=False):
    """Add every layer's dense update to the model's own tensors; experts in PEFT's orientation."""
    with torch.no_grad():
        for name, layer in adapter.items():
            module, _, index = name.partition("[")
            if not index:
                model.get_submodule(module).weight.add_(layer.delta())
                continue
            delta = layer.delta()
            model.get_parameter(module)[int(index[:-1])].add_(delta.T if transposed else delta)
    return model


BOTH = ("gate_up_proj", "down_proj")
CASES = [
    ("mixtral", BOTH, {}),
    ("mixtral", BOTH[:1], {}),
    ("mixtral", BOTH[1:], {"use_rslora": True}),
    ("mixtral", BOTH, {"rank_pattern": {"down_proj": 5}, "alpha_pattern": {"mlp.experts.gate_up_proj": 2}}),
    ("mixtral", BOTH, {"target_modules": []}),
    ("qwen3", BOTH, {"rank_pattern": {r".*\.1\.mlp\.experts\.gate_up_proj": 1}}),
    ("gpt_oss", BOTH, {}),
    ("gpt_oss", BOTH, {"sizes": {"intermediate_size": 32}}),
    ("llama4", BOTH, {}),
]


@pytest.mark.parametrize(("kind", "parameters", "options"), CASES)
def test_peft_computes_what_our_updates_add_and_gets_its_files_back(kind, parameters, options, tmp_path):
    from peft import PeftModel

    theirs = logits(peft_folder(kind, tmp_path / "theirs", parameters, **options))
    adapter, make = load_adapter(tmp_path / "theirs"), lambda: moe(kind, **options.get("sizes", {}))
    experts = [name for name, layer in adapter.items() if layer.kind == "expert"]
    assert len(experts) == 2 * 4 * len(parameters)
    assert experts[:2] == [f"{experts[0][:-3]}[0]", f"{experts[0][:-3]}[1]"]
    ours = logits(add_densely(make(), adapter, transposed=kind == "gpt_oss"))
    scale = float(theirs.abs().max())
    assert float((ours - theirs).abs().max()) <= 2e-5 * scale
    assert float((theirs - logits(make())).abs().max()) > 1e-2 * scale
    replace(adapter, keep_scales=True).save(tmp_path / "ours")
    again = PeftModel.from_pretrained(make(), tmp_path / "ours").eval()
    torch.testing.assert_close(logits(again), theirs, rtol=0, atol=0)
    before, after = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours"))
    assert set(before) == set(after)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_shapes_are_known_without_reading_and_the_parameters_of_a_layer_are_distinguished(tmp_path):
    peft_folder("mixtral", tmp_path / "a", BOTH)
    outline = load_adapter(tmp_path / "a").outline()
    up, down = (outline[f"model.layers.1.mlp.experts.{parameter}[3]"] for parameter in BOTH)
    assert (up.lora_A.shape, up.lora_B.shape) == ((3, 32), (96, 3))
    assert (down.lora_A.shape, down.lora_B.shape) == ((3, 48), (32, 3))
    assert isinstance(up.lora_A, TensorOutline)
    assert outline.params == sum(t.numel() for t in load_file(tmp_path / "a/adapter_model.safetensors").values())


def layer(rank, alpha, *, rslora=False, shape=(96, 32)):
    return AdapterLayer(
        torch.randn(rank, shape[1]), torch.randn(shape[0], rank), alpha, rslora=rslora, kind="expert"
    )  # fmt: skip


def test_experts_of_different_rank_and_scale_are_written_as_one_stack(tmp_path):
    from peft import PeftModel

    torch.manual_seed(2)
    up, down = (f"model.layers.0.mlp.experts.{parameter}" for parameter in BOTH)
    layers = {f"{up}[2]": layer(2, 1), f"{up}[0]": layer(5, 3, rslora=True), f"{down}[3]": layer(1, 2, shape=(32, 48))}
    adapter = Adapter(layers)
    adapter.save(tmp_path / "a")
    again = load_adapter(tmp_path / "a")
    assert list(again) == [f"{parameter}[{expert}]" for parameter in (up, down) for expert in range(4)]
    assert {name: again[name].rank for name in layers} == {f"{up}[2]": 5, f"{up}[0]": 5, f"{down}[3]": 1}
    for name, found in again.items():
        expected = layers[name].delta() if name in layers else torch.zeros_like(found.delta())
        torch.testing.assert_close(found.delta(), expected)
    by_peft = logits(PeftModel.from_pretrained(moe("mixtral"), tmp_path / "a").eval())
    torch.testing.assert_close(by_peft, logits(add_densely(moe("mixtral"), adapter)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"m.e.up[0]": layer(2, 2), "m.e.up[1]": layer(2, 2, shape=(9, 9))}, "m.e.up: experts of different shapes"),
        ({"m.e.a[0]": layer(2, 2), "m.e.b[0]": layer(2, 2)}, "which m.e.a, m.e.b do not show"),
        ({f"m.e.{name}[0]": layer(2, 2) for name in ("gate", "up", "down")}, "do not show"),
        ({"m.e.up[0]": layer(2, 0), "m.e.up[1]": layer(2, 1)}, "some scales are zero, others are not"),
    ],
)
def test_experts_that_peft_cannot_hold_are_refused(layers, said, tmp_path):
    with pytest.raises(MismatchError, match=said):
        Adapter(layers).save(tmp_path / "a")
    assert not (tmp_path / "a").exists()


INNER, OUTER = (f"base_model.model.model.layers.0.mlp.experts{level}.lora_" for level in (".base_layer", ""))


def drop(name):
    def change(config, tensors):
        for part in "AB":
            del tensors[f"{name}{part}.weight"]

    return change


def square(config, tensors):
    """Parameters whose shapes tell nothing: an ungated unit of the same sizes both ways."""
    for name in (INNER, OUTER):
        tensors[f"{name}A.weight"], tensors[f"{name}B.weight"] = torch.ones(12, 32), torch.ones(32, 12)
    config["target_parameters"] = [name.replace("gate_up_proj", "first") for name in config["target_parameters"]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop(INNER), "layers.0.mlp.experts: the file has 1 parameters, the config targets down_proj, gate_up_proj"),
        (square, "layers.0.mlp.experts: shapes and names do not distinguish first from down_proj"),
        (lambda config, tensors: config.update(r=5), r"rank is 5 .* lora_A is \(12, "),
        (lambda config, tensors: config.update(r=12), r"q_proj: rank is 12 .* lora_A is \(3, 32\)"),
        (lambda config, tensors: config["target_parameters"].append("mlp.experts.router"), "which is which"),
        (
            lambda config, tensors: tensors.update({f"{OUTER}B.bias": torch.ones(32)}),
            "experts: an adapter of a parameter has lora_A and lora_B, got .*bias",
        ),
        (
            lambda config, tensors: tensors.update({f"{OUTER}A.weight": torch.ones(12, 0)}),
            "shapes and names do not distinguish",
        ),
        (
            lambda config, tensors: tensors.update({f"{OUTER}A.weight": torch.ones(())}),
            "not every parameter has the matrices lora_A and lora_B",
        ),
        (
            lambda config, tensors: tensors.pop(f"{INNER}B.weight"),
            "not every parameter has the matrices lora_A and lora_B",
        ),
    ],
)
def test_experts_that_cannot_be_identified_are_refused_by_name(change, said, tmp_path):
    peft_folder("mixtral", tmp_path / "a", BOTH)
    file, weights = tmp_path / "a/adapter_config.json", tmp_path / "a/adapter_model.safetensors"
    config, tensors = json.loads(file.read_text()), load_file(weights)
    change(config, tensors)
    file.write_text(json.dumps(config))
    save_file(tensors, weights)
    with pytest.raises(FileFormatError, match=said):
        load_adapter(tmp_path / "a")
