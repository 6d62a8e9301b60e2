"""PEFT configs: what disagrees with the tensors is refused, unknown fields are named, and no regex takes minutes."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import eckart
from eckart.adapter import AdapterLayer, TensorOutline
from eckart.errors import FileFormatError, NotFiniteError, SourceError
from eckart.formats import load_adapter
from eckart.formats.peft_config import KNOWN_FIELDS, unknown_fields
from eckart.formats.peft_patterns import NamePatterns, RegexBudget
from eckart.operations import extract


def damaged(tmp_path, llama_pair, change):
    tmp_path.mkdir(exist_ok=True)
    extract(llama_pair / "base", llama_pair / "tuned", rank=2, output=tmp_path / "a")
    file, weights = tmp_path / "a/adapter_config.json", tmp_path / "a/adapter_model.safetensors"
    config, tensors = json.loads(file.read_text()), load_file(weights)
    change(config, tensors)
    file.write_text(json.dumps(config))
    save_file(tensors, weights)
    return tmp_path / "a"


TOKENS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config, tensors: config.update(r=3), r"rank is 3 .* lora_A is \(2, 64\)"),
        (lambda config, tensors: config.update(r=0), "greater than or equal to 1"),
        (lambda config, tensors: config.update(r=10**12), "less than 2147483648"),
        (lambda config, tensors: config.update(lora_alpha=float("nan")), "lora_alpha: .*finite"),
        (lambda config, tensors: config.update(alpha_pattern={"q": float("inf")}), "alpha_pattern.q: .*finite"),
        (lambda config, tensors: config.update(rank_pattern={"q_proj": -2}), "rank_pattern.q_proj: .*greater"),
        (lambda config, tensors: config.update(peft_type="IA3"), "only LORA"),
        (lambda config, tensors: config.update(rank_pattern={"(": 2}), "not a regex"),
        (lambda config, tensors: config.update(use_dora=True), "use_dora is True .* no magnitude"),
        (lambda config, tensors: config.update(lora_bias=True), "lora_bias is True .* no bias"),
        (
            lambda config, tensors: tensors.update({TOKENS: torch.ones(2, 64)}),
            "shape .2, 64., and trainable_token_indices does not name as many",
        ),
        (
            lambda config, tensors: tensors.update({f"{FIRST}.lora_magnitude_vector": torch.ones(64)}),
            "use_dora is False .* has a magnitude",
        ),
        (lambda config, tensors: tensors.update({f"{FIRST}.lora_B.bias": torch.ones(64)}), "lora_bias is False"),
        (lambda config, tensors: config.update(init_lora_weights="pissa_niter_4"), "path_initial_model"),
        (lambda config, tensors: config.update(use_qalora=True), "use_qalora: a variant of LoRA"),
        (lambda config, tensors: config.update(rank_pattern={r"(\w+)*\d": 2}), "could take minutes to match"),
        (lambda config, tensors: config.update(alpha_pattern={".*" * 9 + "x": 2}), "could take minutes to match"),
        (lambda config, tensors: tensors.pop(f"{FIRST}.lora_B.weight"), "q_proj: lora_B missing"),
        (
            lambda config, tensors: tensors.update({f"{FIRST}.lora_embedding_{p}": torch.ones(2, 2) for p in "AB"}),
            "q_proj: factors of an embedding and of a matrix",
        ),
    ],
)
def test_a_config_that_disagrees_with_its_tensors_is_refused(llama_pair, tmp_path, change, said):
    with pytest.raises(FileFormatError, match=said):
        load_adapter(damaged(tmp_path, llama_pair, change))


def test_a_layer_that_is_not_finite_is_met_when_it_is_read(llama_pair, tmp_path):
    name = f"{FIRST}.lora_A.weight"
    adapter = load_adapter(damaged(tmp_path, llama_pair, lambda config, tensors: tensors[name].fill_(float("nan"))))
    with pytest.raises(NotFiniteError, match=rf"{name} contains 128 values that are NaN"):
        list(adapter.values())


def test_nothing_but_headers_is_read_for_the_size_of_an_adapter(llama_pair, tmp_path):
    path = damaged(tmp_path, llama_pair, lambda config, tensors: None)
    stored = load_file(path / "adapter_model.safetensors")
    adapter = load_adapter(path)
    (path / "adapter_model.safetensors").unlink()
    assert adapter.params == sum(tensor.numel() for tensor in stored.values())
    assert adapter.nbytes == sum(tensor.nbytes for tensor in stored.values())
    assert all(isinstance(layer.lora_A, TensorOutline) for layer in adapter.outline().values())


def test_a_folder_that_is_no_adapter_is_refused(llama_pair):
    with pytest.raises(SourceError, match="neither a PEFT adapter"):
        load_adapter(llama_pair / "base")


def test_the_fields_that_peft_knows_are_known_and_others_are_named(llama_pair, tmp_path):
    from dataclasses import fields

    from peft import LoraConfig

    assert {field.name for field in fields(LoraConfig)} <= KNOWN_FIELDS
    path = damaged(tmp_path, llama_pair, lambda config, tensors: config.update(lora_of_tomorrow=1, revision="main"))
    adapter = load_adapter(path)
    assert adapter.config["lora_of_tomorrow"] == 1
    assert unknown_fields(adapter.config) == ["lora_of_tomorrow"]


def first_match(pattern, name, default=0):
    return NamePatterns(pattern, RegexBudget()).value(name, default)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("base_model", "_orig_mod.base_model"),
        ("base_model", "pretrained_model._forward_module.base_model"),
        ("base_model", "module.module.base_model"),
        ("base_model.model.", "base_model.model.module."),
        ("base_model.model.", ""),
        ("layers.1.", "layers.1._fsdp_wrapped_module."),
        ("mlp.", "_checkpoint_wrapped_module._orig_mod.mlp."),
        (".weight", ".default.weight"),
        ("lora_A.", "lora_A.my_adapter."),
    ],
)
def test_what_wrappers_and_adapter_names_add_to_names_is_taken_out(llama_pair, tmp_path, old, new):
    def rename(_, tensors):
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    renamed = load_adapter(damaged(tmp_path / "1", llama_pair, rename))
    assert renamed == load_adapter(damaged(tmp_path / "2", llama_pair, lambda *_: None))
    assert any(new in name for name in load_file(tmp_path / "1/a/adapter_model.safetensors"))


def test_two_adapters_in_one_file_are_refused(llama_pair, tmp_path):
    def double(_, tensors):
        tensors.update({name.replace(".weight", ".other.weight"): tensor + 1 for name, tensor in tensors.items()})

    with pytest.raises(FileFormatError, match="contains several adapters"):
        load_adapter(damaged(tmp_path, llama_pair, double))


@pytest.mark.parametrize(
    "key",
    [
        "q_proj",
        r".*\.0\..*v_proj",
        r"^model\.layers\.(0|1|2|3|4|5|6|7|8|9|10)\.self_attn\.(q|k|v|o)_proj",
        r".*\.layers\.\d+\..*proj",
        r"(?:model\.)?layers\.[0-9]{1,2}\.mlp\.\w+",
        r"^model\.layers\.0\.self_attn\.q_proj",
        "layers.5.self_attn.q_proj",
        "attn.q_proj",
        r"attn\.q_proj",
        ".q_proj",
        "self.attn.q.proj",
        "^self_attn.q_proj",
        "q_proj$",
        "",
    ],
)
def test_patterns_that_people_write_are_matched_as_peft_matches_them(key):
    from peft.utils.other import get_pattern_key

    for name in (
        f"model.layers.{i}.{m}" for i in (0, 5, 10) for m in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up")
    ):
        assert first_match({key: 1}, name) == (get_pattern_key([key, "none"], name) == key)


def test_the_first_of_several_keys_decides_whether_it_is_a_name_or_a_regex():
    from peft.utils.other import get_pattern_key

    keys = ["up", r".*q_pro.", "^a.q_proj", "q_proj", r"b\.\w+", r"^c\.v", r"(v|w)", "v"]
    for order in (keys, keys[::-1]):
        for name in ("a.up", "a.q_proj", "b.v", "c.v", "x.c.v", "c.w", "none"):
            key = get_pattern_key([*order, "none"], name)
            assert first_match({key: index for index, key in enumerate(order)}, name, None) == (
                order.index(key) if key in order else None
            )


def test_names_are_looked_up_and_never_tried_one_by_one(monkeypatch):
    monkeypatch.setattr(RegexBudget, "matches", None)
    names = [f"model.layers.{i}.{part}" for i in range(300) for part in ("self_attn.q_proj", "mlp.up_proj", "mlp.down")]
    for keys in ([f"^{re.escape(name)}" for name in names], names):
        patterns = NamePatterns({key: index for index, key in enumerate(keys)}, RegexBudget())
        assert [patterns.value(name, None) for name in names] == list(range(len(names)))


def test_regexes_that_are_harmless_one_by_one_are_refused_together():
    crafted = {".*" * 3 + f"a.*{number}x": 4 for number in range(1000)}
    patterns = NamePatterns(crafted, RegexBudget())
    with pytest.raises(ValueError, match="could take minutes"):  # all of them would take an hour
        [patterns.value(f"model.layers.{number}." + "a" * 40, 0) for number in range(1000)]


@pytest.mark.parametrize(
    "key",
    [
        "(a+)+b", "(a|a)*b", "(.*)*", "((a?){9}){9}", r"(\w+\.?)+x", "a?" * 40 + "a" * 40, "(a|aa)" * 40,
        ".*" * 8 + "b", "(?x: # [\n (a+)+ ] )", "(a)" * 700, r"\[(a+)+]b", "[]](a+)+b", "[^]](a+)+b",
        "(" * 400 + "a" + ")" * 400 + "*b",
    ],
)  # fmt: skip
def test_a_regex_that_could_take_minutes_is_not_tried(key):
    with pytest.raises(ValueError, match=r"minutes|not a regex"):
        first_match({key: 1}, "model.layers.0." + "a" * 60)


def test_a_config_names_a_local_model_by_its_absolute_path_and_a_hub_model_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "org/base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    layer = AdapterLayer(torch.ones(1, 4), torch.ones(4, 1), 1)
    for model, named in (("org/base", str(tmp_path / "org/base")), ("org/other", "org/other"), (None, None)):
        eckart.Adapter({"q": layer}, base_model=model).save(tmp_path / "out", force=True)
        config = json.loads((tmp_path / "out/adapter_config.json").read_text())
        assert config.get("base_model_name_or_path") == named
