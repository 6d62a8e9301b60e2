"""Arguments that a library's message names become flags of the command line."""

import pytest
import typer
from typer.testing import CliRunner

from eckart.cli import flags
from eckart.cli.main import app
from eckart.errors import OptionError

GROUP = typer.main.get_command(app)


def shown_by(command: str, message: str) -> str:
    """The message as a command shows it."""
    parent = typer.Context(GROUP)
    with flags.running(typer.Context(GROUP.commands[command], parent=parent)):
        return flags.with_flags(message)


@pytest.mark.parametrize(
    ("command", "message", "shown"),
    [
        ("extract", "`rank` must be at least 1, got 0", "--rank must be at least 1, got 0"),
        ("extract", "use `modules_to_save=norm`", "use --modules-to-save norm"),
        ("extract", "add `eval='text.txt'`", "add --eval text.txt"),
        ("extract", "`force=True` replaces it", "--force replaces it"),
        ("extract", "`base` does not exist", "BASE does not exist"),
        ("analyze", "`base` does not exist", "--base does not exist"),
        ("analyze", "`open` needs `output`", "--open needs --output"),
        ("combine", "one number for each of `adapters`", "one number for each of ADAPTER"),
        ("train", "`resume=False` starts over", "--no-resume starts over"),
        ("train", "`learning_rate` is not finite, `lr=1e-4`", "--learning-rate is not finite, --lr 1e-4"),
        ("train", "`report_to=wandb` needs", "--report-to wandb needs"),
        ("train", "`held_out` is empty", "--eval-data is empty"),
        ("train", "`lora_plus_ratio=16`", "--lora-plus 16"),
        ("train", "try `answers_only=False`", "try --loss-on all"),
        ("merge", "`quantize=nf4` and `modules_to_save`", "--quantize nf4 and --modules-to-save"),
        ("merge", "the module `q_proj` and `x=1`", "the module `q_proj` and `x=1`"),
        ("merge", "`B · A` and `train --resume`", "`B · A` and `train --resume`"),
    ],
)
def test_arguments_become_flags_and_other_words_stay(command, message, shown):
    assert shown_by(command, message) == shown


def test_outside_a_command_a_message_stays():
    assert flags.with_flags("`rank` must be at least 1") == "`rank` must be at least 1"


def test_a_refusal_is_shown_in_flags(monkeypatch):
    def refuse(*_, **__):
        msg = "`output` exists; `force=True` replaces it"
        raise OptionError(msg)

    monkeypatch.setattr("eckart.operations.analyze", refuse)
    ended = CliRunner().invoke(app, ["analyze", "model"])
    assert (ended.exit_code, ended.stderr) == (1, "eckart: --output exists; --force replaces it\n")
