"""`eckart run` and `eckart --dump-recipe`: a chain of commands, checked as a whole before its first step."""

from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from eckart.cli.main import app
from eckart.cli.recipe import keys_of, read_recipe, to_yaml
from eckart.formats import load_adapter

from .test_extract import SHAPES, write_pair

GROUP = typer.main.get_command(app)
RECIPE = """\
- extract:
    base: base
    tuned: tuned
    rank: 8
    output: full
- resize:
    adapter: full
    rank: 4
    output: small
- convert:
    adapter: small
    to: kohya
    output: small.safetensors
"""


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_pair(tmp_path, SHAPES)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"base", "tuned"}


def test_a_recipe_does_what_its_commands_do_and_each_card_holds_it(folder):
    ended = eckart("run", "recipe.yaml")
    assert ended.exit_code == 0, ended.stderr
    assert names(folder) == {"recipe.yaml", "full", "small", "small.safetensors"}
    by_hand = eckart("extract", "base", "tuned", "-o", "by-hand", "--rank", 8)
    assert by_hand.exit_code == 0
    assert load_adapter("full") == load_adapter("by-hand")
    for name, step in (("full", 1), ("small", 2)):
        card = Path(name, "README.md").read_text()
        assert f"Step {step} of 3 of the recipe" in card
        assert RECIPE.strip() in card
        assert str(folder) not in card


def test_settings_change_every_step_that_states_a_key_or_one_step(folder):
    shown = eckart("run", "recipe.yaml", "--set", "rank=2", "--set", "3.to=peft", "--dry-run").stdout
    assert shown.count("--rank=2") == 2
    assert "--to=peft" in shown
    only = eckart("run", "recipe.yaml", "--set", "resize.rank=3", "--set", "extract.dtype=bfloat16", "-n").stdout
    assert "--rank=8" in only.splitlines()[0]
    assert "--dtype=bfloat16" in only.splitlines()[0]
    assert "--rank=3" in only.splitlines()[1]
    assert names(folder) == {"recipe.yaml"}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("rnk=2", "no step has 'rnk'; did you mean 'rank'?"),
        ("resise.rank=2", "no step is 'resise'; did you mean 'resize'?"),
        ("resize.rnk=2", "resize has no 'rnk'; did you mean 'rank'?"),
        ("rank", "expected KEY=VALUE"),
        ("4.rank=2", "no step is '4'"),
    ],
)
def test_a_setting_that_no_step_can_take_is_refused(folder, setting, said):
    ended = eckart("run", "recipe.yaml", "--set", setting)
    assert ended.exit_code == 1
    assert said in ended.stderr
    assert names(folder) == {"recipe.yaml"}


FAULTY = {
    "an unknown key": ("    rank: 4", "    rnk: 4", "line 8: unknown key 'rnk' of resize; did you mean 'rank'?"),
    "an unknown command": ("- resize:", "- resise:", "line 6: unknown command 'resise'; did you mean 'resize'?"),
    "a recipe in a recipe": ("- resize:", "- run:", "line 6: unknown command 'run'"),
    "a key twice": ("    rank: 4", "    rank: 4\n    rank: 5", "line 9: 'rank' of resize is given again"),
    "an alias twice": ("    rank: 8", "    target: q\n    target_modules: q", "'target-modules' of extract is given"),
    "a list for one value": ("    rank: 4", "    rank: [4, 5]", "line 8: 'rank' of resize takes one value, not a list"),
    "no value": ("    rank: 4", "    rank:", "line 8: 'rank' of resize must be a value"),
    "a flag of another value": ("    rank: 4", "    force: 1", "line 8: 'force' of resize is true or false, got '1'"),
    "a value of another kind": ("    rank: 4", "    rank: four", "line 8: resize: Invalid value for '--rank'"),
    "another choice": ("to: kohya", "to: koyha", "line 12: convert: Invalid value for '--to'"),
    "a missing argument": ("    tuned: tuned\n", "", "line 1: extract: Missing argument 'TUNED'"),
    "an input that is missing": ("tuned: tuned", "tuned: tunde", "line 1: extract: tunde"),
    "two ways to choose a rank": ("    rank: 8", "    rank: 8\n    error: 0.1", "line 1: extract: choose"),
    "one output twice": (
        "output: small\n",
        "output: full\n",
        "line 6: resize writes full, which an earlier step writes",
    ),
    "a step that is no mapping": ("- resize:", "- resize\n- resize:", "line 6: expected one command"),
    "no list": ("- extract:", "extract:", "line "),
    "no YAML": ("    rank: 8", "    rank: [8", "line "),
    "an object": ("rank: 8", "rank: !!python/object/apply:os.getcwd []", "line 4: 'rank' of extract must be a value"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_recipe_is_refused_with_its_line_before_the_first_step(folder, fault):
    old, new, said = FAULTY[fault]
    assert old in RECIPE
    (folder / "recipe.yaml").write_text(RECIPE.replace(old, new))
    ended = eckart("run", "recipe.yaml")
    assert ended.exit_code == 1
    assert said in ended.stderr
    assert "recipe.yaml" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert names(folder) == {"recipe.yaml"}


def test_all_faults_are_named_at_once(folder):
    (folder / "recipe.yaml").write_text(RECIPE.replace("rank: 4", "rnk: 4").replace("to: kohya", "too: kohya"))
    said = eckart("run", "recipe.yaml").stderr
    assert "line 8" in said
    assert "line 12" in said


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff\xfe\x00", b"a: &a [*a]", b"- " * 600_000])
def test_hostile_files_are_refused(folder, content):
    (folder / "recipe.yaml").write_bytes(content)
    ended = eckart("run", "recipe.yaml")
    assert ended.exit_code == 1
    assert ended.stderr.startswith("eckart: recipe.yaml")
    assert "unexpected" not in ended.stderr


def test_a_repetition_keeps_what_is_finished_and_replaces_no_other_output(folder):
    first, both = RECIPE.partition("- resize")[0], RECIPE.partition("- convert")[0]
    (folder / "recipe.yaml").write_text(both.replace("adapter: full", "adapter: full\n    steps: 3"))
    assert eckart("run", "recipe.yaml").exit_code == 1  # steps without distill, which only the step itself refuses
    assert first in (folder / "full" / "README.md").read_text()
    assert "full" in names(folder)
    before = (folder / "full" / "adapter_model.safetensors").stat().st_mtime_ns
    (folder / "recipe.yaml").write_text(both)
    again = eckart("run", "recipe.yaml")
    assert again.exit_code == 0, again.stderr
    assert "step 1 of 2: full was written by this step and is kept" in again.stderr
    assert (folder / "full" / "adapter_model.safetensors").stat().st_mtime_ns == before
    other = eckart("run", "recipe.yaml", "--set", "extract.rank=5")
    assert other.exit_code == 1
    assert "line 1: full exists; choose another output, or add 'force: true'" in other.stderr
    assert "line 1: full exists" in eckart("run", "recipe.yaml", "--no-resume").stderr


LINES = [
    "extract base tuned -o out --rank 8 --target q_proj --target v_proj --force --dtype bfloat16",
    "combine one two -o out --weights=-0.5,2 --method ties --density 0.30",
    "resize adapter -r 4 -o out --scale q=0 --scale v=1e-3",
    "train model data.jsonl -o out --lr 1e-3 --gradient-accumulation-steps 2 --no-dynamics",
    "extract base -- -tuned -o out",
    "merge base one two -o out --json",
]


@pytest.mark.parametrize("line", LINES)
def test_a_dumped_command_line_parses_to_the_same_command(folder, line):
    words = line.split()
    if "--" in words:
        words = ["extract", "-o", "out", "base", "--", "-tuned"]
    ended = eckart("--dump-recipe", *words)
    assert ended.exit_code == 0, ended.stderr
    (folder / "recipe.yaml").write_text(ended.stdout)
    (step,) = read_recipe(folder / "recipe.yaml", GROUP.commands)
    command = GROUP.commands[words[0]]
    expected = command.make_context(words[0], words[1:]).params
    assert command.make_context(step.command, step.argv(command)).params == expected
    assert to_yaml([step]) == ended.stdout
    assert names(folder) == {"recipe.yaml"}


def test_a_wrong_command_line_is_no_recipe():
    ended = eckart("--dump-recipe", "extract", "base", "-o", "out")
    assert ended.exit_code == 2
    assert not ended.stdout


@pytest.mark.parametrize("name", sorted(GROUP.commands.keys() - {"run"}))
def test_every_parameter_of_every_command_has_a_key(name):
    keys = keys_of(GROUP.commands[name])
    wanted = {parameter.name for parameter in GROUP.commands[name].params} - {"debug", "help"}
    assert {parameter.name for parameter in keys.values()} == wanted
    for parameter in GROUP.commands[name].params:
        for option in parameter.opts:
            if option.startswith("--") and parameter.name in wanted:
                assert keys[option.removeprefix("--")] is parameter


def test_values_stay_text_until_the_command_reads_them(folder):
    (folder / "recipe.yaml").write_text("- extract: {base: 'no', tuned: 0x10, output: 1e3, rank: 010}\n")
    (step,) = read_recipe(folder / "recipe.yaml", GROUP.commands)
    assert step.values == {"base": ["no"], "tuned": ["0x10"], "output": ["1e3"], "rank": ["010"]}
    again = yaml.safe_load(to_yaml([step]))
    assert again == [{"extract": {"base": "no", "tuned": "0x10", "output": "1e3", "rank": "010"}}]
