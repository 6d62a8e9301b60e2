"""Stand-ins for what the examples start from: the folder of the demo, made from a tiny Llama."""

import functools
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from eckart import demo, training
from eckart.cli.main import app
from eckart.demo import DemoSettings, language_reference
from eckart.nn import LoRAConfig
from eckart.training.sweep_cell import train_here

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))
WORDS = 400
QUICK = DemoSettings(
    LoRAConfig(rank=8, alpha=16),
    training.TrainSettings(steps=8, batch_size=2, learning_rate=2e-2),
    sequence_tokens=64,
    held_out_chars=4_000,
)
QUICK_FINE_TUNE = training.FinetuneSettings(steps=12, batch_size=4, learning_rate=1e-2)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, word_tokenizer) -> Path:
    """A model of two layers that knows the commonest words of the language reference."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    counts = Counter(" ".join(language_reference().training.values()).split())
    word_tokenizer(word for word, _ in counts.most_common(WORDS - 3)).save_pretrained(folder)
    LlamaForCausalLM(_config()).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def quick_demo(tiny_model) -> Callable[[pytest.MonkeyPatch], None]:
    """Makes `eckart demo` train the tiny model for a few steps, on a part of the text, until the patch is undone."""
    corpus = language_reference()
    short = demo.Corpus(dict(list(corpus.training.items())[:12]), corpus.held_out)

    def apply(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(demo, "quick_settings", lambda: QUICK)
        patch.setattr(demo, "quick_fine_tune", lambda: QUICK_FINE_TUNE)
        patch.setattr(demo, "run_demo", functools.partial(demo.run_demo, model=tiny_model))
        patch.setattr("eckart.demo.learning.language_reference", lambda: short)
        patch.setattr("eckart.demo.pair.language_reference", lambda: short)

    return apply


@pytest.fixture(scope="session")
def inputs(quick_demo, tmp_path_factory) -> Path:
    """The folder in which the examples run, written by the commands with which a reader makes it."""
    from execute import FOLDER, START

    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        quick_demo(patch)
        for command in START:
            patch.chdir(folder if command.startswith("eckart demo ") else folder / FOLDER)
            done = CliRunner().invoke(app, shlex.split(command)[1:])
            assert done.exit_code == 0, done.output
    return folder / FOLDER


def _config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=WORDS,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )


@pytest.fixture
def shell(quick_demo, monkeypatch) -> Callable[[str], tuple[int, str, str]]:
    """Runs `eckart` in this process, where torch is imported already; other commands in bash."""
    import execute

    quick_demo(monkeypatch)
    monkeypatch.setattr(training, "sweep", functools.partial(training.sweep, run_cell=train_here))

    def run(command: str) -> tuple[int, str, str]:
        if not command.startswith("eckart ") or any(sign in command for sign in "|>;"):
            return execute.shell(command)
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        return done.exit_code, done.stdout, done.stderr

    return run
