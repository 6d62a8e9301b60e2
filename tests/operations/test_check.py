"""Whether runtimes load an adapter: rules as a table, the real PEFT and diffusers as truth, every command run."""

import copy
import json
import shlex
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from eckart.cli.main import app
from eckart.errors import OptionError
from eckart.formats import load_adapter
from eckart.operations.checking.check import check
from eckart.operations.checking.runtimes import RUNTIMES
from eckart.operations.conversion import convert

from .pipelines import adapter as pipeline_adapter
from .pipelines import clip, narrow

# PEFT and transformers warn about their own internals; what is tested here is their numbers.
pytestmark = pytest.mark.filterwarnings("ignore")

# Name -> the options of PEFT's LoraConfig.
PROJECTIONS = ["q_proj", "k_proj", "v_proj"]
KINDS = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "alphas": {"alpha_pattern": {"q_proj": 5}},
    "ranks": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 3}},
    "bias": {"lora_bias": True},
    "base bias": {"bias": "lora_only", "target_modules": ["q_proj", "k_proj", "v_proj"]},
    "rank 24": {"r": 24, "lora_alpha": 24},
    "rank 600": {"r": 600, "lora_alpha": 600},
    "head": {"modules_to_save": ["lm_head"]},
    "norms": {"modules_to_save": ["input_layernorm"]},
    "last norm": {"modules_to_save": ["model.norm"]},
    "tokens": {"trainable_token_indices": {"embed_tokens": [3, 5]}},
    "embedding": {"target_modules": [*PROJECTIONS, "embed_tokens"]},
    "regex": {"target_modules": r".*\.(q|k|v)_proj"},
    "q alone": {"target_modules": ["q_proj"]},
}
# Kind -> runtime -> (whether it loads, whether it ignores nothing, the words of what it refuses or ignores).
EXPECTED = {
    "plain": {"vllm": (True, True, ""), "sglang": (True, True, ""), "diffusers": (False, True, "language models")},
    "dora": {"vllm": (False, True, "DoRA"), "sglang": (False, True, "DoRA"), "llama.cpp": (False, True, "DoRA")},
    "rslora": {"vllm": (True, True, ""), "sglang": (True, False, "use_rslora"), "llama.cpp": (False, False, "own")},
    "alphas": {"vllm": (True, True, ""), "sglang": (True, False, "alpha_pattern")},
    "ranks": {"vllm": (True, True, ""), "sglang": (False, False, "one rank")},
    "bias": {"vllm": (False, True, "lora_bias"), "sglang": (False, True, "lora_bias")},
    "base bias": {"vllm": (False, True, "lora_only")},
    "rank 24": {"vllm": (True, True, ""), "sglang": (True, True, "")},
    "rank 600": {"vllm": (False, True, "512"), "sglang": (True, True, "")},
    "head": {"vllm": (False, True, "to_save"), "sglang": (True, False, "saved"), "mlx": (False, True, "tensors")},
    "norms": {"vllm": (False, True, "to_save"), "sglang": (False, True, "saved"), "llama.cpp": (False, False, "norms")},
    "last norm": {"vllm": (False, True, "to_save"), "sglang": (True, False, "saved")},
    "tokens": {"vllm": (False, True, "token"), "sglang": (True, False, "token"), "mlx": (False, True, "tensors")},
    "embedding": {"vllm": (True, True, ""), "sglang": (True, True, "")},
    "regex": {"vllm": (True, True, ""), "sglang": (False, True, "list")},
    "q alone": {"vllm": (True, True, ""), "sglang": (False, True, "fuses")},
}  # fmt: skip


@pytest.fixture(scope="session")
def adapters(tiny_model, tmp_path_factory):
    """Kind -> the folder of an adapter of the tiny Llama that PEFT saved, with random values."""
    from peft import LoraConfig, get_peft_model

    folder, made = tmp_path_factory.mktemp("adapters"), {}

    def make(kind):
        if kind not in made:
            options = {"r": 4, "lora_alpha": 8, "target_modules": PROJECTIONS} | KINDS[kind]
            model = get_peft_model(copy.deepcopy(tiny_model("llama")), LoraConfig(task_type="CAUSAL_LM", **options))
            generator = torch.Generator().manual_seed(7)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.requires_grad:
                        noise = torch.randn(parameter.shape, generator=generator)
                        parameter.add_(noise, alpha=0.02 if "magnitude" in name or "lora" not in name else 0.2)
            made[kind] = folder / kind.replace(" ", "-")
            model.save_pretrained(made[kind], save_embedding_layers=False)
        return made[kind]

    return make


@pytest.mark.parametrize(("kind", "runtime"), [(kind, name) for kind, rows in EXPECTED.items() for name in rows])
def test_a_verdict_follows_the_rules_of_the_runtime(kind, runtime, adapters):
    loads, whole, words = EXPECTED[kind][runtime]
    verdict = check(adapters(kind), [runtime]).verdicts[runtime]
    reasons = " ".join([*verdict.texts("refuses"), *verdict.texts("ignores")])
    assert (verdict.loads, not verdict.texts("ignores")) == (loads, whole), reasons
    assert words in reasons
    assert bool(words) == bool(reasons)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_what_a_check_says_it_loads_with_every_tensor_of_the_file(kind, adapters, tiny_model):
    from peft import PeftModel

    verdict = check(adapters(kind), ["peft"]).verdicts["peft"]
    assert verdict.fits
    assert verdict.fix is None
    model = PeftModel.from_pretrained(copy.deepcopy(tiny_model("llama")), adapters(kind))
    stored = load_file(adapters(kind) / "adapter_model.safetensors")
    values = [tensor for name, tensor in model.state_dict().items() if "original" not in name]
    assert stored
    assert all(any(v.shape == t.shape and torch.equal(v, t) for v in values) for t in stored.values())


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({}, []),
        ({"rank_pattern": {"q_proj": 4}}, []),
        ({"use_rslora": True}, ["PEFT 0.8"]),
        ({"target_parameters": None, "lora_bias": False}, ["PEFT 0.14"]),
        ({"trainable_token_indices": [1], "use_rslora": False}, ["PEFT 0.15"]),
    ],
)
def test_the_release_of_peft_that_an_adapter_needs_follows_from_its_fields(fields, needs, adapters, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(load_file(adapters("plain") / "adapter_model.safetensors"), folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": PROJECTIONS} | fields
    (folder / "adapter_config.json").write_text(json.dumps(config))
    found = check(folder, ["peft"]).verdicts["peft"].texts("needs")
    assert [text.rpartition(": ")[2] for text in found] == needs


def test_vllm_needs_the_smallest_option_that_its_config_allows(adapters):
    for kind, option in (("plain", None), ("rank 24", "max_lora_rank=32")):
        needs = check(adapters(kind), ["vllm"]).verdicts["vllm"].texts("needs")
        assert bool(needs) == bool(option)
        assert not option or option in needs[0]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Kind -> an adapter of a Stable Diffusion pipeline, in the format of its name."""
    folder = tmp_path_factory.mktemp("pictures")
    projection = {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (320, 320)}
    plain = pipeline_adapter(narrow(projection | clip("text_encoder", 64)), scale=0.5)
    dora = {name: replace(one, magnitude=torch.rand(len(one.lora_B))) for name, one in plain.items()}
    convert(plain, "diffusers", output=folder / "diffusers")
    convert(plain, "kohya", output=folder / "kohya.safetensors")
    convert(plain, "peft", output=folder / "peft")
    stored = load_file(folder / "kohya.safetensors")
    biases = {name.replace(".alpha", ".diff_b"): torch.rand(len(stored[name.replace(".alpha", ".lora_up.weight")]))
              for name in stored if name.endswith(".alpha")}  # fmt: skip
    save_file(stored | biases, folder / "kohya-bias.safetensors")
    convert(replace(plain, layers=dora), "kohya", output=folder / "kohya-dora.safetensors")
    convert(replace(plain, layers=dora), "diffusers", output=folder / "diffusers-dora")
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("kind", "runtime", "loads", "whole"),
    [
        ("diffusers", "diffusers", True, True),
        ("kohya", "diffusers", True, True),
        ("kohya-dora", "diffusers", True, False),
        ("kohya-bias", "diffusers", False, True),
        ("kohya-bias", "comfyui", True, True),
        ("diffusers-dora", "diffusers", True, True),
        ("peft", "diffusers", False, True),
        ("kohya", "comfyui", True, True),
        ("diffusers", "comfyui", True, False),
        ("kohya-dora", "comfyui", True, False),
        ("diffusers", "vllm", False, True),
        ("kohya", "llama.cpp", False, True),
        ("kohya", "peft", False, True),
    ],
)
def test_adapters_of_pipelines_are_judged_by_format_and_parts(kind, runtime, loads, whole, pictures):
    verdict = check(pictures[kind], [runtime]).verdicts[runtime]
    assert (verdict.loads, not verdict.texts("ignores")) == (loads, whole), verdict


def test_diffusers_itself_drops_the_dora_of_a_kohya_file_and_keeps_that_of_its_own(pictures):
    from diffusers import StableDiffusionPipeline

    for kind, kept in (("kohya-dora", False), ("diffusers-dora", True)):
        path = pictures[kind]
        file = path if path.is_file() else path / "pytorch_lora_weights.safetensors"
        state, _ = StableDiffusionPipeline.lora_state_dict(load_file(file))
        assert any("dora" in name or "magnitude" in name for name in state) == kept


def test_diffusers_itself_refuses_biases_in_a_kohya_file(pictures):
    from diffusers import StableDiffusionPipeline

    with pytest.raises(ValueError, match="diff_b"):
        StableDiffusionPipeline.lora_state_dict(load_file(pictures["kohya-bias"]))


LANGUAGE = [(kind, name) for kind in KINDS for name in ("vllm", "sglang", "peft", "llama.cpp", "mlx")]
PICTURES = [
    (kind, name)
    for kind in ("diffusers", "kohya", "kohya-dora", "kohya-bias", "peft")
    for name in ("diffusers", "comfyui")
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, which is the current one: commands name their outputs in it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def assert_the_command_works(source, runtime, base, folder):
    """Run the command that a check prints, if there is one, and check its result."""
    verdict = check(source, [runtime], base=base).verdicts[runtime]
    if verdict.fix is None:
        return
    assert not verdict.fits or verdict.texts("needs")
    ended = CliRunner().invoke(app, shlex.split(verdict.fix)[1:])
    assert ended.exit_code == 0, (verdict.fix, ended.stderr)
    (output,) = folder.iterdir()
    again = check(output, [runtime], base=base)
    assert again.fits, again.verdicts[runtime]
    assert again.verdicts[runtime].fix is None or again.verdicts[runtime].texts("needs")


@pytest.mark.parametrize(("kind", "runtime"), LANGUAGE)
def test_every_command_works_and_its_result_fits(kind, runtime, adapters, tiny_folder, here):
    assert_the_command_works(adapters(kind), runtime, tiny_folder("llama"), here)


@pytest.mark.parametrize("runtime", ["vllm", "sglang", "peft", "mlx"])
@pytest.mark.parametrize("form", ["kohya", "mlx"])
def test_every_command_for_another_format_works_and_its_result_fits(form, runtime, adapters, tiny_folder, here):
    source, base = here.parent / ("one.safetensors" if form == "kohya" else "one"), tiny_folder("llama")
    convert(adapters("plain"), form, base=base, output=source)
    assert_the_command_works(source, runtime, base, here)
    assert bool(list(here.iterdir())) == (form != runtime)


@pytest.mark.parametrize(("kind", "runtime"), PICTURES)
def test_every_command_for_a_pipeline_works_and_its_result_fits(kind, runtime, pictures, here):
    assert_the_command_works(pictures[kind], runtime, None, here)


def test_a_command_is_printed_wherever_a_step_helps(adapters):
    expected = {
        "vllm": {"plain": None, "dora": "convert", "rank 24": "resize", "head": "convert", "norms": None, "bias": None},
        "sglang": {"plain": None, "rslora": "convert", "ranks": "resize", "tokens": "convert", "q alone": None},
        "mlx": {"plain": "convert", "dora": "convert", "ranks": "convert", "tokens": "convert", "norms": None},
        "peft": {"plain": None, "dora": None, "norms": None},
    }
    for runtime, kinds in expected.items():
        for kind, verb in kinds.items():
            fix = check(adapters(kind), [runtime]).verdicts[runtime].fix
            assert (fix and shlex.split(fix)[1]) == verb, (runtime, kind)


@pytest.mark.parametrize("runtime", ["vllm", "sglang", "mlx"])
@pytest.mark.parametrize("choice", [["--rank", "4"], ["--energy", "0.6"]], ids=" ".join)
def test_an_extraction_for_a_runtime_fits_it(runtime, choice, llama_pair, tmp_path):
    base, output = llama_pair / "base", tmp_path / "out"
    words = ["extract", base, llama_pair / "tuned", "-o", output, *choice, "--for", runtime]
    ended = CliRunner().invoke(app, [str(word) for word in words])
    assert ended.exit_code == 0, ended.stderr
    assert check(output, [runtime], base=base).fits
    ranks = {layer.rank for layer in load_adapter(output).values()}
    assert (len(ranks) == 1) == (runtime != "vllm" or choice[0] == "--rank")


def test_an_option_that_the_runtime_needs_is_named(adapters, tmp_path):
    words = ["convert", str(adapters("rank 24")), "-o", str(tmp_path / "out"), "--for", "vllm"]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0
    assert "max_lora_rank=32" in ended.stderr


def test_an_extraction_that_no_runtime_takes_is_refused_before_any_work(llama_pair, tmp_path):
    words = ["extract", llama_pair / "base", llama_pair / "tuned", "-o", tmp_path / "out", "--for", "vllm"]
    words += ["--modules-to-save", "norm"]
    ended = CliRunner().invoke(app, [str(word) for word in words])
    assert ended.exit_code == 1
    assert "no conversion makes this adapter fit vLLM" in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "runtime"), [("ranks", "sglang"), ("dora", "vllm"), ("rank 24", "mlx")])
def test_a_resized_adapter_for_a_runtime_fits_it(kind, runtime, adapters, tiny_folder, tmp_path):
    base = tiny_folder("llama")
    words = ["resize", adapters(kind), "-o", tmp_path / "out", "--energy", "0.8", "--for", runtime, "--base", base]
    ended = CliRunner().invoke(app, [str(word) for word in words])
    assert ended.exit_code == 0, ended.stderr
    assert check(tmp_path / "out", [runtime], base=base).fits


def test_a_runtime_that_does_not_exist_is_refused(adapters):
    with pytest.raises(OptionError, match="among peft, vllm"):
        check(adapters("plain"), ["ollama"])


def test_every_rule_names_the_file_that_states_it():
    rules = [rule for runtime in RUNTIMES.values() for rule in runtime.rules]
    assert len(rules) > 40
    assert all(rule.source.endswith((".py", ".cpp")) for rule in rules)
