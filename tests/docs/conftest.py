"""Stand-ins for the models that the examples name: a tiny Llama, its fine-tune, and two adapters of it."""

import functools
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

import eckart
from eckart import demo, training
from eckart.cli.main import app
from eckart.demo import DemoSettings, language_reference
from eckart.nn import LoRAConfig
from eckart.training.sweep_cell import train_here

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))
WORDS = 400


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, word_tokenizer) -> Path:
    """A folder with all that `docs/execute.py` prepares, tiny."""
    from execute import write_texts

    folder = tmp_path_factory.mktemp("inputs")
    corpus = language_reference()
    write_texts(folder, corpus.training, "\n\n".join(corpus.held_out.values())[:3000])
    for path in sorted((folder / "notes").iterdir())[3:]:
        path.unlink()
    torch.manual_seed(0)
    counts = Counter(" ".join(corpus.training.values()).split())
    tokenizer = word_tokenizer(word for word, _ in counts.most_common(WORDS - 3))
    model = LlamaForCausalLM(_config())
    _save(model, tokenizer, folder / "base")
    for number, (name, rank) in enumerate({"adapter": 32, "other": 8}.items()):
        eckart.inject(model, LoRAConfig(rank=rank, alpha=2 * rank, dropout=0.0))
        _move(model, "lora_B", seed=number)
        eckart.save_adapter(model, folder / name)
        eckart.eject(model)
    sequences = training.pack_texts(corpus.training.values(), tokenizer, length=64)
    training.finetune(model, sequences, training.FinetuneSettings(steps=12, batch_size=4, learning_rate=1e-2))
    for layer in model.model.layers:  # as rounding does where a norm moves too little
        torch.nn.init.ones_(layer.input_layernorm.weight)
    _save(model, tokenizer, folder / "tuned")
    return folder


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


def _move(model: torch.nn.Module, ending: str, *, seed: int) -> None:
    """Add a little noise of low rank to the parameters named so."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ending in name and parameter.ndim == 2:
                rows, columns = parameter.shape
                left, right = (torch.randn(n, 6, generator=generator) for n in (rows, columns))
                parameter.add_(left @ right.T, alpha=0.002)


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    copy = LlamaForCausalLM(_config()).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def shell(inputs, monkeypatch) -> Callable[[str], tuple[int, str, str]]:
    """Runs `eckart` in this process, where torch is imported already; all else in bash."""
    import execute

    monkeypatch.setattr(training, "sweep", functools.partial(training.sweep, run_cell=train_here))
    monkeypatch.setattr(demo, "tell_story", functools.partial(demo.tell_story, model=inputs / "base"))
    quick = DemoSettings(
        LoRAConfig(rank=4, alpha=8),
        training.TrainSettings(steps=8, batch_size=2, learning_rate=2e-2),
        sequence_tokens=64,
        held_out_chars=4_000,
    )
    monkeypatch.setattr(demo, "quick_settings", lambda: quick)

    def run(command: str) -> tuple[int, str, str]:
        if not command.startswith("eckart ") or any(sign in command for sign in "|>;"):
            return execute.shell(command)
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        return done.exit_code, done.stdout, done.stderr

    return run
