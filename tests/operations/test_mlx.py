"""MLX adapters: logits of the real mlx-lm, its rule in NumPy, round trips through PEFT, refusals by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import eckart
from eckart.adapter import Adapter, AdapterLayer
from eckart.checkpoint import open_checkpoint
from eckart.errors import FileFormatError, MismatchError, OptionError, OutputError, SourceError
from eckart.formats import load_adapter
from eckart.operations.conversion import convert

from .pipelines import assert_same_updates

pytestmark = pytest.mark.filterwarnings("ignore")

LAYER = "model.layers.0.self_attn.q_proj"
TOKENS = torch.tensor([[3, 9, 27, 11, 40, 5], [1, 2, 60, 33, 8, 0]])
EAGER = {"experts_implementation": "eager"}  # the others compute in float32 only
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
LINEAR = ["q_proj", "v_proj", "o_proj", "down_proj"]
UNLIKE = {"rank_pattern": {"down_proj": 5, "v_proj": 2}, "alpha_pattern": {"q_proj": 3}}
STACKED = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
# Model type -> its settings; fields that mlx-lm expects in config.json and transformers 5 no longer writes.
MODELS = {
    "llama": (SIZES, {}),
    "qwen2": (SIZES, {}),
    "qwen3": (SIZES, {}),
    "gemma2": (SIZES | {"tie_word_embeddings": True}, {}),
    "phi3": (SIZES | {"pad_token_id": 0}, {}),
    "gpt2": (SIZES | GPT | {"tie_word_embeddings": True}, {"n_ctx": 128, "architectures": ["GPT2LMHeadModel"]}),
    "gptj": (SIZES | GPT | {"rotary_dim": 4}, {}),
    "mixtral": (SIZES | EXPERTS, {}),
    "qwen3_moe": (SIZES | EXPERTS, {"num_experts": 4}),
    "olmoe": (SIZES | EXPERTS, {}),
    "gpt_neox": (
        SIZES | {"intermediate_size": 128, "hidden_act": "gelu_new"},
        {"rotary_emb_base": 10000, "rotary_pct": 0.25},
    ),
    "glm4_moe": (SIZES | EXPERTS | SHARED, {"rope_scaling": None, "partial_rotary_factor": 0.5}),
    "dots1": (SIZES | EXPERTS | SHARED, {}),
}
CASES = {
    "llama": ("llama", {"target_modules": LINEAR}),
    "llama, unlike ranks": ("llama", {"target_modules": LINEAR, **UNLIKE}),
    "llama, rsLoRA": ("llama", {"target_modules": LINEAR, "use_rslora": True, **UNLIKE}),
    "llama, DoRA": ("llama", {"target_modules": LINEAR, "use_dora": True, **UNLIKE}),
    "llama, one layer": ("llama", {"target_modules": LINEAR, "layers_to_transform": [1]}),
    "llama, vocabulary": ("llama", {"target_modules": ["embed_tokens", "lm_head", "k_proj"], **UNLIKE}),
    "qwen2, biases": ("qwen2", {"target_modules": ["q_proj", "up_proj"]}),
    "qwen2, DoRA with biases": ("qwen2", {"target_modules": ["q_proj", "up_proj"], "use_dora": True}),
    "qwen3": ("qwen3", {"target_modules": LINEAR, "use_rslora": True}),
    "gemma2": ("gemma2", {"target_modules": LINEAR, **UNLIKE}),
    "phi3, fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "gpt2, Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "gptj": ("gptj", {"target_modules": ["q_proj", "fc_in"]}),
    "gpt_neox": ("gpt_neox", {"target_modules": ["query_key_value", "dense_h_to_4h"]}),
    "glm4_moe, experts": ("glm4_moe", STACKED),
    "dots1, experts": ("dots1", STACKED),
    "mixtral, experts": ("mixtral", STACKED),
    "qwen3_moe, experts": ("qwen3_moe", STACKED | {"rank_pattern": {"down_proj": 5}}),
    "olmoe, experts": ("olmoe", STACKED),
    "qwen3_moe, router": ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": ["gate.weight"]}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A function that saves a tiny random model of a type once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("bases")

    def saved(kind):
        if not (folder / kind).exists():
            torch.manual_seed(0)
            sizes, extra = MODELS[kind]
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).float()
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.ndim > 1:
                        weight.normal_(std=0.15)
            # The files of GPT-2 on the hub, which mlx-lm reads, are those of the model without its output layer.
            (model.transformer if kind == "gpt2" else model).save_pretrained(folder / kind)
            file = folder / kind / "config.json"
            config = json.loads(file.read_text())
            rope = config.pop("rope_parameters", None) or {}
            file.write_text(json.dumps({"rope_theta": rope.get("rope_theta", 10000.0), **config, **extra}))
        return folder / kind

    return saved


def trained(kind, base, folder, options):
    """The logits of PEFT's model in float64 with an adapter that PEFT made and wrote."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, **EAGER)
    torch.manual_seed(7)
    model = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, init_lora_weights=False, **options)).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                tensor.normal_(std=0.2)
            elif "magnitude" in name:
                tensor.mul_(torch.rand_like(tensor) + 0.5)
        model.save_pretrained(folder, save_embedding_layers=False)
        return model.double()(TOKENS).logits


def mlx_logits(base, adapter=None):
    """What mlx-lm computes on its CPU build, every tensor of the adapter found a place for."""
    mx = pytest.importorskip("mlx.core", reason="mlx-lm runs on Linux and macOS only: pip install 'mlx-lm[cpu]'")
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    model, _ = load_model(base, strict=True)
    if adapter is not None:
        load_adapters(model, str(adapter))
        model.eval()
    return torch.from_numpy(np.array(model(mx.array(TOKENS.numpy()))))


def assert_close(ours, theirs):
    """Equal to the rounding of float32 in mlx-lm, relative to the largest value: the other side is in float64."""
    error = float((ours.double() - theirs.double()).abs().max() / theirs.abs().max())
    assert error < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_mlx_lm_computes_what_peft_computes(case, bases, tmp_path):
    kind, options = CASES[case]
    base = bases(kind)
    theirs = trained(kind, base, tmp_path / "peft", options)
    convert(tmp_path / "peft", "mlx", base=base, output=tmp_path / "mlx")
    plain = mlx_logits(base)
    ours = mlx_logits(base, tmp_path / "mlx")
    assert float((ours - plain).abs().max() / plain.abs().max()) > 0.01
    assert_close(ours, theirs)


def written_by_mlx_lm(base, folder, *, keys, kind="lora", layers=-1, rank=3):
    """The logits of mlx-lm's model with an adapter as `mlx_lm.lora` saves one."""
    mx = pytest.importorskip("mlx.core", reason="mlx-lm runs on Linux and macOS only: pip install 'mlx-lm[cpu]'")
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    model, _ = load_model(base, strict=True)
    model.freeze()
    mx.random.seed(0)
    parameters = {"rank": rank, "scale": 1.7, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(model, layers, parameters, use_dora=kind == "dora")
    random = tree_map(lambda tensor: tensor + 0.1 * mx.random.normal(tensor.shape), model.trainable_parameters())
    model.update(random)
    folder.mkdir()
    fields = {"fine_tune_type": kind, "num_layers": layers, "lora_parameters": parameters, "model": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(fields | {"seed": 0, "optimizer": "adam"}))
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    return torch.from_numpy(np.array(model(mx.array(TOKENS.numpy()))))


ATTENTION = ["self_attn.q_proj", "self_attn.v_proj"]
STACKS = [f"mlp.switch_mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
TRAINED = {
    "llama": ("llama", {"keys": [*ATTENTION, "mlp.up_proj"]}),
    "llama, the last layer": ("llama", {"keys": ATTENTION, "layers": 1}),
    "llama, DoRA": ("llama", {"keys": ATTENTION, "kind": "dora"}),
    "llama, vocabulary": ("llama", {"keys": ["model.embed_tokens", "lm_head"]}),
    "gemma2, tied embeddings": ("gemma2", {"keys": ["model.embed_tokens", "self_attn.q_proj"]}),
    "gpt2": ("gpt2", {"keys": ["attn.c_attn", "mlp.c_proj"]}),
    "qwen3_moe": ("qwen3_moe", {"keys": [*STACKS, "mlp.gate"]}),
    "mixtral": ("mixtral", {"keys": [name.replace("mlp.", "block_sparse_moe.", 1) for name in STACKS]}),
}


@pytest.mark.parametrize("case", TRAINED)
def test_an_adapter_of_mlx_lm_merges_and_converts_to_what_mlx_lm_computes(case, bases, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    kind, options = TRAINED[case]
    base = bases(kind)
    theirs = written_by_mlx_lm(base, tmp_path / "mlx", **options)
    eckart.merge(base, [tmp_path / "mlx"], tmp_path / "merged")
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", **EAGER).double().eval()
        assert_close(merged(TOKENS).logits, theirs)
    convert(tmp_path / "mlx", "peft", base=base, output=tmp_path / "peft")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **EAGER), tmp_path / "peft").eval()
    with torch.no_grad():
        assert_close(model.double()(TOKENS).logits, theirs)


def linear(name_to_shape, *, rank=3, alpha=5.0, seed=0, **options):
    """An adapter in memory of linear layers."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return Adapter(
        {name: AdapterLayer(draw(rank, i), draw(o, rank), alpha, **options) for name, (o, i) in name_to_shape.items()}
    )


@pytest.mark.parametrize("is_dora", [False, True])
def test_the_files_mean_what_mlx_lm_computes_from_them(is_dora, tmp_path):
    """y = x Wᵀ + scale · (x a) b, and with DoRA each output times m / ‖W + scale · (a b)ᵀ‖."""
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(6, 8)), rng.normal(size=(5, 8))
    names = {LAYER: (6, 8), LAYER.replace("q_proj", "v_proj"): (6, 8)}
    adapter = linear(names)
    layers = dict(adapter) | {LAYER: replace(adapter[LAYER], alpha=7.0, rslora=True, lora_A=adapter[LAYER].lora_A[:2],
                                             lora_B=adapter[LAYER].lora_B[:, :2])}  # fmt: skip
    magnitude = torch.rand(6) + 0.5
    if is_dora:
        layers = {name: replace(layer, magnitude=magnitude) for name, layer in layers.items()}
    convert(replace(adapter, layers=layers), "mlx", family="llama", output=tmp_path / "mlx")
    file, scale = load_file(tmp_path / "mlx/adapters.safetensors"), parameters(tmp_path / "mlx")["scale"]
    for name, layer in layers.items():
        update = layer.low_rank().dense().numpy()
        a, b = (file[f"{name}.{part}"].astype(np.float64) for part in ("lora_a", "lora_b"))
        ours = x @ weight.T + scale * (x @ a) @ b
        merged = weight + update
        if is_dora:
            ours = ours * file[f"{name}.m"] / np.linalg.norm(weight + scale * (a @ b).T, axis=1)
            merged = merged * (magnitude.numpy() / np.linalg.norm(merged, axis=1))[:, None]
        np.testing.assert_allclose(ours, x @ merged.T, rtol=2e-6, atol=2e-6)


def parameters(folder):
    return json.loads((folder / "adapter_config.json").read_text())["lora_parameters"]


def test_layers_of_the_common_scale_are_copied_bit_for_bit_and_others_padded_with_zeros(tmp_path):
    names = {LAYER: (6, 8), LAYER.replace("q_proj", "v_proj"): (6, 8)}
    adapter = linear(names)
    short = {"lora_A": adapter[LAYER].lora_A[:1], "lora_B": adapter[LAYER].lora_B[:, :1]}
    layers = dict(adapter) | {LAYER: replace(adapter[LAYER], alpha=5 / 3, **short)}
    result = convert(replace(adapter, layers=layers), "mlx", family="llama", output=tmp_path / "mlx").adapter
    assert parameters(tmp_path / "mlx") == {
        "rank": 3, "scale": 5 / 3, "dropout": 0.0, "keys": ["self_attn.q_proj", "self_attn.v_proj"],
    }  # fmt: skip
    file = load_file(tmp_path / "mlx/adapters.safetensors")
    np.testing.assert_array_equal(file[f"{LAYER}.lora_b"][:1].T, layers[LAYER].lora_B)
    assert not file[f"{LAYER}.lora_b"][1:].any()
    assert not file[f"{LAYER}.lora_a"][:, 1:].any()
    assert_same_updates(load_adapter(tmp_path / "mlx"), result)


def test_an_adapter_of_mlx_goes_through_every_operation(bases, tmp_path):
    names = {f"model.layers.{n}.self_attn.q_proj": (32, 32) for n in range(2)}
    peft, base = linear(names), bases("llama")
    peft.save(tmp_path / "peft")
    convert(tmp_path / "peft", "mlx", base=base, output=tmp_path / "mlx")
    assert eckart.analyze(tmp_path / "mlx").matrices[0].spectrum.rank_for_error(0.1) in (1, 2, 3)
    small = eckart.resize(tmp_path / "mlx", rank=2, output=tmp_path / "small")
    assert small.adapter.format == "mlx"
    assert parameters(tmp_path / "small")["rank"] == 2
    both = eckart.combine([tmp_path / "mlx", tmp_path / "peft"], weights=[1, 2], base=base, output=tmp_path / "both")
    for name, layer in both.adapter.items():
        torch.testing.assert_close(layer.delta(), 3 * peft[name].delta(), rtol=1e-5, atol=1e-5)
    compared = eckart.compare(tmp_path / "mlx", tmp_path / "peft", base=base)
    assert compared.to_json()["kind"] == "adapters"
    eckart.merge(base, [tmp_path / "mlx"], tmp_path / "merged")
    eckart.merge(base, [tmp_path / "peft"], tmp_path / "expected")
    assert (tmp_path / "merged/model.safetensors").read_bytes() == (
        tmp_path / "expected/model.safetensors"
    ).read_bytes()


def test_updates_of_tied_embeddings_become_one_only_if_they_are_equal(bases, tmp_path):
    base, names = bases("gemma2"), ("model.embed_tokens", "lm_head")
    embedding = AdapterLayer(torch.randn(3, 64), torch.randn(32, 3), 5.0, kind="embedding")
    head = AdapterLayer(embedding.lora_B.T.contiguous(), embedding.lora_A.T.contiguous(), 5.0)
    both = Adapter(dict(zip(names, (embedding, head), strict=True)))
    there = convert(both, "mlx", base=base, output=tmp_path / "mlx").adapter
    assert list(there) == ["model.embed_tokens"]
    back = convert(tmp_path / "mlx", "peft", base=base).adapter
    assert_same_updates(back, both)
    unequal = replace(head, alpha=6.0)
    for layers in ({names[0]: embedding}, {names[1]: head}, {names[0]: embedding, names[1]: unequal}):
        with pytest.raises(MismatchError, match="applies one update to both"):
            convert(Adapter(layers), "mlx", base=base)
    with pytest.raises(MismatchError, match="give the model as `base`"):
        convert(both, "mlx", family="gemma2")


def test_stacks_of_older_versions_are_read(tmp_path):
    name = "model.layers.0.mlp.switch_mlp.up_proj"
    a, b = np.random.default_rng(0).normal(size=(4, 3, 8)).astype(np.float32), np.ones((4, 6, 3), np.float32)
    for folder, stored in (("new", a), ("old", a.reshape(12, 8))):
        write(tmp_path / folder, {f"{name}.lora_a": stored, f"{name}.lora_b": b})
    new, old = load_adapter(tmp_path / "new"), load_adapter(tmp_path / "old")
    assert list(new) == [f"{name}[{expert}]" for expert in range(4)]
    assert new == old
    np.testing.assert_array_equal(new[f"{name}[2]"].lora_A, a[2])


def write(folder, tensors, metadata=None, **fields):
    """A folder as mlx-lm writes it."""
    folder.mkdir(exist_ok=True)
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 3, "scale": 2.0, "dropout": 0.0}}
    changed = {key: value for key, value in (config | fields).items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(changed))
    save_file(tensors, folder / "adapters.safetensors", metadata)
    return folder


A, B = np.ones((8, 3), np.float32), np.ones((3, 6), np.float32)
PAIR = {f"{LAYER}.lora_a": A, f"{LAYER}.lora_b": B}
M = {f"{LAYER}.m": np.ones(6, np.float32)}
RANK = {"rank": 3, "scale": 2.0}
UNREADABLE = {
    "a full fine-tune": (PAIR, {"fine_tune_type": "full"}, "weights of the model, not an adapter"),
    "another kind": (PAIR, {"fine_tune_type": "lokr"}, "expected lora, dora or full, got 'lokr'"),
    "no parameters": (PAIR, {"lora_parameters": None}, "lora_parameters.rank: missing"),
    "alpha for scale": (PAIR, {"lora_parameters": {"rank": 3, "alpha": 6}}, "lora_parameters.scale: missing"),
    "a rank in words": (PAIR, {"lora_parameters": {"rank": "3", "scale": 1}}, "rank: expected a number from 1"),
    "an infinite scale": (PAIR, {"lora_parameters": {"rank": 3, "scale": float("inf")}}, "scale: expected a finite"),
    "another rank": (PAIR, {"lora_parameters": {"rank": 4, "scale": 2.0}}, r"rank is 4 .* lora_a is \(8, 3\)"),
    "half a pair": ({f"{LAYER}.lora_a": A}, {}, "lora_b missing"),
    "a tensor of no adapter": (PAIR | {"model.norm.weight": A}, {}, "model.norm.weight: not part of a LoRA"),
    "a module without a key": (PAIR, {"lora_parameters": RANK | {"keys": ["mlp.up_proj"]}}, "no key of"),
    "DoRA without m": (PAIR, {"fine_tune_type": "dora"}, "fine_tune_type is dora .* there is no m"),
    "m without DoRA": (PAIR | M, {}, "fine_tune_type is lora .* there is an m"),
    "a short m": (PAIR | {f"{LAYER}.m": np.ones(5, np.float32)}, {"fine_tune_type": "dora"}, "for 6 outputs"),
    "DoRA of an embedding": (
        {name.replace("layers.0.self_attn.q_proj", "embed_tokens"): tensor for name, tensor in (PAIR | M).items()},
        {"fine_tune_type": "dora"},
        "normalizes by token",
    ),
    "too many experts": (
        {f"{LAYER}.lora_a": np.ones((5000, 3, 1), np.float32), f"{LAYER}.lora_b": np.ones((5000, 1, 3), np.float32)},
        {},
        "up to 4096 experts",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_mlx_lm_would_not_compute_is_not_read(case, tmp_path):
    tensors, fields, message = UNREADABLE[case]
    with pytest.raises(FileFormatError, match=message):
        load_adapter(write(tmp_path / "a", tensors, **fields))


def test_a_lone_file_has_no_scale(tmp_path):
    write(tmp_path / "a", PAIR)
    (tmp_path / "a/adapter_config.json").unlink()
    with pytest.raises(SourceError, match="it has the scale"):
        load_adapter(tmp_path / "a/adapters.safetensors")


def test_earlier_states_of_a_training_run_are_read(tmp_path):
    folder = write(tmp_path / "a", PAIR)
    (folder / "adapters.safetensors").rename(folder / "0000100_adapters.safetensors")
    assert list(load_adapter(folder / "0000100_adapters.safetensors")) == [LAYER]


def test_a_header_with_metadata_null_is_read(tmp_path):
    file = write(tmp_path / "a", PAIR) / "adapters.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps({"__metadata__": None, **json.loads(content[8 : 8 + length])}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    assert load_adapter(tmp_path / "a")[LAYER].scaling == 2.0


BIASED = AdapterLayer(torch.ones(3, 8), torch.ones(6, 3), 3.0, bias=torch.ones(6))
PLAIN = replace(BIASED, bias=None)
DORA = replace(PLAIN, magnitude=torch.ones(6))
UNWRITABLE = {
    "a bias": ({LAYER: BIASED}, {}, "llama", "trained bias"),
    "a norm": ({LAYER: PLAIN}, {"model.norm.weight": torch.ones(8)}, "llama", "saved in full"),
    "DoRA and LoRA": ({LAYER: DORA, "model.layers.0.mlp.up_proj": PLAIN}, {}, "llama", "has no DoRA magnitude"),
    "DoRA of an embedding": ({"model.embed_tokens": replace(DORA, kind="embedding")}, {}, "llama", "by token"),
    "a convolution": (
        {LAYER: AdapterLayer(torch.ones(3, 8, 1, 1), torch.ones(6, 3, 1, 1), 3.0, kind="conv")}, {}, "llama",
        "a convolution",
    ),
    "experts of a dense model": (
        {f"{LAYER.replace('self_attn.q_proj', 'mlp.experts.gate_up_proj')}[0]": replace(PLAIN, kind="expert")}, {},
        "llama", "experts are not known",
    ),
    "folded weights": ({LAYER: PLAIN}, {}, "falcon_h1", "weights of falcon_h1 is not known"),
    "an unknown model": ({LAYER: PLAIN}, {}, None, "or its type as `family`"),
    "another model's names": ({LAYER: PLAIN}, {}, "gptj", "names begin with transformer."),
}  # fmt: skip


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_mlx_lm_cannot_express_is_refused_by_name(case, tmp_path):
    layers, saved, family, message = UNWRITABLE[case]
    with pytest.raises(MismatchError, match=message):
        convert(Adapter(layers, saved), "mlx", family=family, output=tmp_path / "mlx")
    assert not (tmp_path / "mlx").exists()


def test_the_options_of_a_conversion_to_mlx_are_checked(bases, tmp_path):
    with pytest.raises(OptionError, match="not both"):
        convert(linear({LAYER: (32, 32)}), "mlx", base=bases("llama"), family="llama")
    with pytest.raises(OutputError, match="an MLX adapter is a folder"):
        convert(linear({LAYER: (32, 32)}), "mlx", family="llama", output=tmp_path / "a.safetensors")


def test_the_files_of_the_model_that_an_adapter_names_say_its_type(bases, tmp_path):
    named = replace(linear({LAYER: (32, 32)}), base_model=str(bases("llama")))
    assert list(convert(named, "mlx").adapter) == [LAYER]


def test_a_text_tower_keeps_its_place_in_a_multimodal_model():
    name = "model.language_model.layers.3.mlp.up_proj"
    there = convert(linear({name: (6, 8)}), "mlx", family="gemma3").adapter
    assert list(there) == ["language_model.model.layers.3.mlp.up_proj"]
    assert list(convert(there, "peft", family="gemma3").adapter) == [name]
    with pytest.raises(MismatchError, match="names begin with"):
        convert(linear({"model.vision_tower.layers.0.fc1": (6, 8)}), "mlx", family="gemma3")


def test_stacking_experts_fills_missing_ones_with_zeros(tmp_path):
    names = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj" for layer, expert in ((0, 1), (1, 3))]
    convert(linear(dict.fromkeys(names, (6, 8))), "mlx", family="qwen3_moe", output=tmp_path / "a")
    file = load_file(tmp_path / "a/adapters.safetensors")
    assert {tensor.shape for name, tensor in file.items() if name.endswith("lora_b")} == {(4, 6, 3)}
    assert open_checkpoint(tmp_path / "a/adapters.safetensors").tensors.keys() == file.keys()
    back = convert(tmp_path / "a", "peft", family="qwen3_moe").adapter
    assert sum(float(layer.delta().abs().sum()) > 0 for layer in back.values()) == 2


@pytest.mark.parametrize("other", [{}, {"model.embed_tokens.weight": np.ones((4, 8), np.float32)}])
def test_a_base_that_mlx_quantized_says_the_type(other, tmp_path):
    save_file({f"{LAYER}.weight": np.zeros((32, 4), np.uint32), **other}, tmp_path / "model.safetensors")
    config = {"model_type": "llama", "quantization": {"group_size": 32, "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert list(convert(linear({LAYER: (32, 32)}), "mlx", base=tmp_path).adapter) == [LAYER]
