"""Help and wrong usage: what a user who does not know the commands reads."""

import re
import shlex
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from eckart.cli import combine, convert, train, training_options
from eckart.cli.main import app

GROUP = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)
ALIASES = {
    "--lr": "train",
    "--lora-alpha": "train",
    "--lora-dropout": "train",
    "--gradient-accumulation-steps": "train",
    "--max-steps": "train",
    "--num-train-epochs": "train",
    "--warmup-ratio": "train",
    "--target-modules": "extract",
    "-r": "resize",
    "-f": "merge",
    "-n": "merge",
}


def eckart(*arguments: str) -> str:
    ended = CliRunner().invoke(app, list(arguments))
    return ended.stdout + ended.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example_whose_options_exist(command):
    shown = eckart(command, "--help")
    _, example, text = shown.partition("\nExample:\n")
    assert example
    lines = text.replace("\\\n", " ").splitlines()
    calls = [shlex.split(line)[1:] for line in lines if line.startswith("  $ eckart ")]
    assert calls
    for call in calls:
        if call[1] == "--dump-recipe":
            del call[1]
        flags = {flag for each in GROUP.commands[call[1]].params for flag in each.opts}
        assert {word for word in call if re.match(r"--?[a-z]", word)} <= flags


@pytest.mark.parametrize("columns", ["40", "80", "200"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_option_with_its_values_at_any_width(command, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    shown = eckart(command, "--help")
    options = [each for each in GROUP.commands[command].params if each.param_type_name == "option" and not each.hidden]
    assert options
    for option in options:
        assert option.help, option.name
        assert option.help[0].isupper(), option.help
        assert option.help.rstrip()[-1] in ".]", option.help
        assert all(flag in shown for flag in option.opts)
        assert option.is_flag or f" {option.metavar}" in shown


@pytest.mark.parametrize(("flag", "command"), ALIASES.items())
def test_common_names_of_other_tools_are_understood(flag, command):
    assert any(flag in option.opts for option in GROUP.commands[command].params)
    assert flag in eckart(command, "--help")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["extract", "a", "b", "-o", "c", "--rnak", "3"], "--rank"),
        (["train", "a", "b", "-o", "c", "--learningrate", "1"], "--learning-rate"),
        (["merge", "a", "b", "-o", "c", "--dry-rn"], "--dry-run"),
        (["extrat", "a"], "'extract'"),
    ],
)
def test_a_mistyped_name_suggests_the_right_one(arguments, said):
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 2
    assert said in ended.stderr


def test_the_choices_are_those_of_the_library():
    from eckart.adapter.adapter import AdapterFormat
    from eckart.operations.combination import mixture
    from eckart.training import settings

    assert set(get_args(combine.Method)) == set(get_args(mixture.Method))
    assert set(get_args(convert.Format)) == {*get_args(AdapterFormat), "lora"}
    assert set(get_args(train.Schedule)) == set(get_args(settings.Schedule))
    assert set(get_args(training_options.BaseDtype)) == set(get_args(settings.Dtype))


def test_metavars_show_the_choices_that_are_accepted():
    compared = 0
    for command in GROUP.commands.values():
        for option in command.params:
            choices = [str(arg) for arg in get_args(option.type_descriptor.annotation)]
            if option.param_type_name == "option" and "|" in (option.metavar or "") and choices:
                assert option.metavar.split("|") == choices, option.name
                compared += 1
    assert compared > 5


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell, monkeypatch):
    monkeypatch.setenv("_ECKART_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "eckart extr")
    monkeypatch.setenv("COMP_WORDS", "eckart extr")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert "extract" in CliRunner().invoke(app, [], prog_name="eckart").output


def test_the_main_help_says_how_to_complete():
    assert "eckart --install-completion" in eckart("--help")
